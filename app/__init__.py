"""The webhook. `create_app` wires everything, and is the only place that does."""

import os
from functools import partial

from flask import Flask

from app.admission.injection import Sidecar
from app.decision import Rules, decide
from app.metrics import Metrics
from app.semaphore.commands import load_scripts
from app.semaphore.node import Node
from app.semaphore.semaphores import Semaphores
from app.server import LARGEST_BODY_BYTES
from app.settings import Settings
from app.web import health, mutate
from sidecar.protocol import Keys


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application; the settings come from the environment unless given. Raises SettingsError."""
    settings = settings or Settings.from_env(os.environ)
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY_BYTES
    app.json.compact = True  # type: ignore[attr-defined]
    metrics = Metrics(app)
    app.register_blueprint(health.blueprint())
    app.register_blueprint(
        mutate.blueprint(
            decide=partial(decide, _semaphores(settings), _rules(settings)),
            on_verdict=lambda verdict: metrics.count(verdict.reason),
            budget_seconds=settings.admission_budget_seconds,
        )
    )
    return app


def _semaphores(settings: Settings) -> Semaphores:
    """Connections are opened by the first admission, so each worker has its own."""
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
        )
        for address in settings.redis_addresses
    ]
    return Semaphores(nodes, patience_seconds=patience_seconds)


def _rules(settings: Settings) -> Rules:
    sidecar = Sidecar(
        image=settings.sidecar_image,
        mode=settings.sidecar_mode,
        redis_addresses=settings.sidecar_redis_addresses,
        redis_username=settings.sidecar_redis_username,
        redis_password=settings.sidecar_redis_password,
        variant=settings.variant,
    )
    return Rules(sidecar, settings.reservation_seconds, secret=(settings.redis_password or "").encode())
