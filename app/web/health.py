"""Probes. Neither asks Redis: restarting the webhook would not mend it, and refusals must be given with it down."""

from flask import Blueprint


def blueprint() -> Blueprint:
    """`GET /healthz` and `GET /readyz`."""
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    @routes.get("/readyz")
    def health() -> tuple[str, int]:
        return "ok\n", 200

    return routes
