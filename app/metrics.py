"""What Prometheus is told: requests by prometheus-flask-exporter, and the verdicts.

`PROMETHEUS_MULTIPROC_DIR` must name an existing folder before this module is imported: prometheus_client then
keeps the values of all workers in files there, and gunicorn's first process serves their sum.
"""

from flask import Flask, request
from prometheus_client import Counter
from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

from app.admission.review import Reason

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """The metrics of one worker."""

    def __init__(self, app: Flask) -> None:
        app.before_request(_name_method)
        # By rule, not by path: a client may ask for any number of paths.
        GunicornPrometheusMetrics(app, group_by="url_rule", excluded_paths=["^/healthz$", "^/readyz$"])
        # In no registry: a process may make more than one app, and the files of all are summed where they are read.
        self._verdicts = Counter(
            "at_least_semaphore_verdicts", "Answers to admission reviews, by reason.", ["reason"], registry=None
        )
        for reason in Reason:  # so that each is there, at zero, before it first happens
            self._verdicts.labels(reason.value)

    def count(self, reason: Reason) -> None:
        """Count one verdict."""
        self._verdicts.labels(reason.value).inc()


def _name_method() -> None:
    """A client may make up any number of methods, and each would be a time series of its own."""
    if request.method not in METHODS:
        request.method = "other"
