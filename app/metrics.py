"""What Prometheus is told: what workers count, and what is looked up when it asks (scrape.py).

`PROMETHEUS_MULTIPROC_DIR` must name an existing folder before this module is imported: prometheus_client then
keeps the values of all workers in files there, and gunicorn's first process serves their sum.
"""

import logging
import os
import sys
from collections.abc import Collection
from pathlib import Path

from flask import Flask, request
from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

from app.admission.review import Reason, Verdict
from app.page import serve
from app.semaphore.model import Fault
from sidecar.protocol import Address

log = logging.getLogger(__name__)

# The files of a worker, by the kinds of metrics that there are, and the room that all their series need.
KINDS = ("counter", "gauge_max", "histogram")
FILE_BYTES = 256 * 1024
# Of an admission, in seconds: a few milliseconds mostly, and a node that is waited for takes half a second.
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """The metrics of one worker."""

    def __init__(self, app: Flask, nodes: Collection[Address]) -> None:
        _reserve_room(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
        app.before_request(_name_method)
        # By rule, not by path: a client may ask for any number of paths.
        GunicornPrometheusMetrics(app, group_by="url_rule", excluded_paths=["^/healthz$", "^/readyz$"])
        # In no registry: a process may make more than one app, and the files of all are summed where they are read.
        self._verdicts = Counter(
            "at_least_semaphore_verdicts", "Answers to admission reviews, by reason.", ["reason"], registry=None
        )
        self._duration = Histogram(
            "at_least_semaphore_admission_duration_seconds",
            "From the arrival of an admission review to its verdict.",
            buckets=BUCKETS,
            registry=None,
        )
        self._faults = Counter(
            "at_least_semaphore_node_faults",
            "How often a worker began to pass over the node, by what had happened.",
            ["node", "kind"],
            registry=None,
        )
        self._repairs = Counter(
            "at_least_semaphore_node_repairs",
            "How often a worker wrote to the node what it lacked of a semaphore.",
            ["node"],
            registry=None,
        )
        # So that each is there, at zero, before it first happens.
        for reason in Reason:
            self._verdicts.labels(reason.value)
        for node in nodes:
            self._repairs.labels(node)
            for kind in Fault:
                self._faults.labels(node, kind.value)

    def count_verdict(self, verdict: Verdict, seconds: float) -> None:
        """Count one verdict, and how long it took."""
        self._verdicts.labels(verdict.reason.value).inc()
        self._duration.observe(seconds)

    def count_fault(self, node: Address, kind: Fault) -> None:
        """Count that the node is passed over from now on."""
        self._faults.labels(node, kind.value).inc()

    def count_repair(self, node: Address) -> None:
        """Count that the node was told what it lacked."""
        self._repairs.labels(node).inc()


def _reserve_room(folder: Path) -> None:
    """Give this process its files with all their room; where there is none, count in memory, which nobody reads.

    prometheus_client maps files that are mostly holes into memory: a full disk would kill whoever counts, by SIGBUS.
    """
    files = [folder / f"{kind}_{os.getpid()}.db" for kind in KINDS]
    fresh = [file.with_suffix(".new") for file in files]
    try:
        for file, new in zip(files, fresh, strict=True):
            with (file if file.exists() else new).open("ab") as opened:  # a process before had the same number
                os.posix_fallocate(opened.fileno(), 0, FILE_BYTES)
        for file, new in zip(files, fresh, strict=True):
            if new.exists():
                new.rename(file)  # so that nobody reads half a file
    except OSError as error:
        for new in fresh:
            new.unlink(missing_ok=True)
        log.error("this worker does not count for the metrics: %s: %s", folder, error.strerror)
        values.ValueClass = values.MutexValue


def serve_metrics(host: str, port: int, scrape: Collector) -> None:
    """Serve the sum of all workers and what `scrape` finds, in threads of this process. Raises OSError."""
    registry = CollectorRegistry()
    registry.register(scrape)
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    serve(host, port, make_wsgi_app(registry))


def give_back_room(folder: Path, pid: int) -> None:
    """Of the files of a process that is gone keep what it has written: its counts still count."""
    try:
        for kind in KINDS:
            with (folder / f"{kind}_{pid}.db").open("r+b") as file:
                # prometheus_client's own: how much is used, itself included, in the first four bytes.
                file.truncate(max(8, int.from_bytes(file.read(4), sys.byteorder)))
    except FileNotFoundError:  # it did not count
        pass
    except OSError as error:
        log.warning("the files of worker %d keep their room: %s", pid, error)


def _name_method() -> None:
    """A client may make up any number of methods, and each would be a time series of its own."""
    if request.method not in METHODS:
        request.method = "other"
