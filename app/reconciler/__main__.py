"""`python -m app.reconciler`: wires its parts, and ends on SIGTERM."""

import logging.config
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from app import semaphores_on
from app.logs import CONFIG
from app.reconciler.api import Api, CannotConnect
from app.reconciler.events import Events
from app.reconciler.grants import Grants
from app.reconciler.metrics import Metrics, Waiting, serve_page
from app.reconciler.notices import Notices
from app.reconciler.pods import Reader
from app.reconciler.reservations import Reservations
from app.reconciler.upkeep import Upkeep
from app.reconciler.watch import Pods, keep_watching
from app.settings import Settings, SettingsError

# A loop that has not gone on for so long hangs: each of its steps is bounded by the budget of an admission.
STUCK_SECONDS = 60.0
TURN_SECONDS = 1.0

log = logging.getLogger("app.reconciler")


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logging.config.dictConfig(CONFIG)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # each request would be a line
    try:
        settings = Settings.from_env(os.environ)
        metrics = Metrics()
        api = Api(Reader(settings.variant, settings.secrets), lambda why: leave_out(why, metrics))
    except (SettingsError, CannotConnect) as error:
        sys.exit(f"cannot start: {error}")
    pods = Pods()
    events = Events(api, metrics.count_error)
    budget_seconds = settings.admission_budget_seconds
    reservation_seconds = settings.reservation_seconds
    grants = Grants(
        api,
        pods,
        semaphores_on(settings),
        events,
        metrics,
        reservation_seconds=reservation_seconds,
        budget_seconds=budget_seconds,
    )
    # Each of these on connections of its own, by a thread of its own: none waits for another.
    reservations = Reservations(
        pods,
        semaphores_on(settings),
        metrics,
        reservation_seconds=reservation_seconds,
        budget_seconds=budget_seconds,
    )
    notices = Notices(api, pods, events, metrics)
    upkeep = Upkeep(
        api,
        pods,
        semaphores_on(settings),
        metrics,
        nodes=len(settings.redis_addresses),
        budget_seconds=budget_seconds,
    )
    started_at = time.monotonic()
    metrics.registry.register(
        Waiting(pods.members, lambda: max(api.heard_at, started_at), metrics, settings.metrics_semaphores)
    )
    host = settings.bind.rpartition(":")[0].strip("[]")
    watching = threading.Thread(target=keep_watching, args=(api, pods, metrics.count_error), daemon=True, name="watch")
    checks = {
        "/healthz": lambda: watching.is_alive() and time.monotonic() - grants.turned_at < STUCK_SECONDS,
        "/readyz": lambda: pods.is_listed,
    }
    try:
        serve_page(host, settings.metrics_port, metrics.registry, checks)
    except OSError as error:
        sys.exit(f"cannot start: METRICS_PORT: cannot listen on {host}:{settings.metrics_port}: {error}")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: pods.stop())
    watching.start()
    for name, turn in (("reservations", reservations.turn), ("notices", notices.turn), ("upkeep", upkeep.turn)):
        in_background(name, go_on, turn, pods, metrics)
    log.info("started")
    grants.run()
    log.info("ended")
    # Threads that lift a gate just now may be waiting for the API server: whoever goes on does it again.
    logging.shutdown()
    os._exit(0)


def in_background(name: str, target: Callable[..., None], *arguments: object) -> None:
    """By a thread that ends with the process."""
    threading.Thread(target=target, args=arguments, daemon=True, name=name).start()


def leave_out(why: str, metrics: Metrics) -> None:
    """A pod that cannot be read: it gets no slot, and others do."""
    log.warning("a pod is left out: %s", why)
    metrics.count_error("internal")


def go_on(turn: Callable[[], None], pods: Pods, metrics: Metrics) -> None:
    """One turn after the other, as soon as pods are known, until they are stopped."""
    while not pods.is_stopped:
        try:
            if pods.is_listed:
                turn()
        except Exception:
            log.exception("a turn failed")
            metrics.count_error("internal")
        pods.wait_for_stop(TURN_SECONDS)


if __name__ == "__main__":
    main()
