"""The webhook. What stands here wires everything: `create_app` the service, the others what it is made of."""

import os
from collections.abc import Callable
from functools import partial

from flask import Flask

from app.admission.injection import Sidecar
from app.decision import Rules, decide
from app.metrics import Metrics
from app.semaphore.commands import load_scripts
from app.semaphore.model import Fault
from app.semaphore.node import Node
from app.semaphore.semaphores import Semaphores
from app.server import LARGEST_BODY_BYTES
from app.settings import Settings
from app.web import health, mutate
from sidecar.protocol import Address, Keys


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application; the settings come from the environment unless given. Raises SettingsError."""
    settings = settings or Settings.from_env(os.environ)
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY_BYTES
    app.json.compact = True  # type: ignore[attr-defined]
    metrics = Metrics(app, settings.redis_addresses)
    semaphores = semaphores_on(settings, on_fault=metrics.count_fault, on_repair=metrics.count_repair)
    app.register_blueprint(health.blueprint())
    app.register_blueprint(
        mutate.blueprint(
            decide=partial(decide, semaphores, rules_of(settings)),
            on_verdict=metrics.count_verdict,
            budget_seconds=settings.admission_budget_seconds,
        )
    )
    return app


def semaphores_on(
    settings: Settings,
    on_fault: Callable[[Address, Fault], None] = lambda *_: None,
    on_repair: Callable[[Address], None] = lambda _: None,
) -> Semaphores:
    """The semaphores on the nodes. Connections are opened when first used, so each worker has its own."""
    scripts = load_scripts()
    patience_seconds = settings.node_patience_seconds
    nodes = [
        Node(
            address,
            keys=Keys(settings.variant),
            scripts=scripts,
            patience_seconds=patience_seconds,
            username=settings.redis_username,
            password=settings.redis_password,
            on_fault=on_fault,
        )
        for address in settings.redis_addresses
    ]
    return Semaphores(nodes, patience_seconds=patience_seconds, on_repair=on_repair)


def rules_of(settings: Settings) -> Rules:
    """What holds for all admissions."""
    sidecar = Sidecar(
        image=settings.sidecar_image,
        mode=settings.sidecar_mode,
        requests=settings.sidecar_requests,
        limits=settings.sidecar_limits,
        redis_addresses=settings.sidecar_redis_addresses,
        redis_username=settings.sidecar_redis_username,
        redis_password=settings.sidecar_redis_password,
        variant=settings.variant,
        secret=settings.secrets[0],
    )
    return Rules(
        sidecar,
        settings.reservation_seconds,
        waiting_allowed=settings.waiting_allowed,
    )
