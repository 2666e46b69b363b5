"""What Prometheus is told: requests by prometheus-flask-exporter, and the verdicts.

`PROMETHEUS_MULTIPROC_DIR` must name an existing folder before this module is imported: prometheus_client then
keeps the values of all workers in files there, and gunicorn's first process serves their sum.
"""

import logging
import os
import sys
from pathlib import Path

from flask import Flask, request
from prometheus_client import Counter, values
from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

from app.admission.review import Reason

log = logging.getLogger(__name__)

# The files of a worker, by the kinds of metrics that there are, and the room that all their series need.
KINDS = ("counter", "gauge_max", "histogram")
FILE_BYTES = 256 * 1024
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """The metrics of one worker."""

    def __init__(self, app: Flask) -> None:
        _reserve_room(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
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


def _reserve_room(folder: Path) -> None:
    """Give this process its files with all their room; where there is none, count in memory, which nobody reads.

    prometheus_client maps files that are mostly holes into memory: a full disk would kill whoever counts, by SIGBUS.
    """
    names = [folder / f"{kind}_{os.getpid()}" for kind in KINDS]
    try:
        for name in names:
            with name.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
        for name in names:
            name.rename(f"{name}.db")  # so that nobody reads half a file
    except OSError as error:
        for name in names:
            name.unlink(missing_ok=True)
        log.error("this worker does not count for the metrics: %s: %s", folder, error.strerror)
        values.ValueClass = values.MutexValue


def give_back_room(folder: Path, pid: int) -> None:
    """Of the files of a process that is gone keep what it has written: its counts still count."""
    for kind in KINDS:
        file = folder / f"{kind}_{pid}.db"
        if file.exists():
            with file.open("r+b") as opened:
                # prometheus_client's own: how much is used, itself included, in the first four bytes.
                opened.truncate(max(8, int.from_bytes(opened.read(4), sys.byteorder)))


def _name_method() -> None:
    """A client may make up any number of methods, and each would be a time series of its own."""
    if request.method not in METHODS:
        request.method = "other"
