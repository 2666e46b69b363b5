"""The reconciler's page: its metrics, made when Prometheus asks, and how it is.

Every reconciler says the same of pods, so of theirs one takes the `max`, not the sum.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.page import build_info, serve
from app.reconciler.pods import Member, Stage, queues

OTHER = "other"  # no semaphore is called that: every name has a slash
# Of a wait for a slot, in seconds: from at once to a day.
BUCKETS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
ERRORS = ("api", "nodes", "internal")


class Metrics:
    """What is counted as it happens, and what was found out last."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pods_without_lease: int | None = None  # None: no majority of nodes can be read
        self._waits = Histogram(
            "at_least_semaphore_slot_wait_seconds",
            "From the creation of a pod that waits to the lifting of its gate.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._errors = Counter(
            "at_least_semaphore_reconcile_errors",
            "Requests to the API server or to nodes that failed, and turns of a loop that did, by kind.",
            ["kind"],
            registry=self.registry,
        )
        for kind in ERRORS:
            self._errors.labels(kind)

    def observe_wait(self, seconds: float) -> None:
        """From a pod's creation to the lifting of its gate."""
        self._waits.observe(seconds)

    def count_error(self, kind: str) -> None:
        """Of a kind out of ERRORS."""
        self._errors.labels(kind).inc()


class Waiting(Collector):
    """What is looked up when Prometheus asks. At most `most_semaphores` have series of their own."""

    def __init__(
        self,
        members: Callable[[], Iterable[Member]],
        heard_at: Callable[[], float],
        metrics: Metrics,
        most_semaphores: int,
    ) -> None:
        self._members, self._heard_at, self._metrics = members, heard_at, metrics
        self._most_semaphores = most_semaphores

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = time.time()
        yield build_info()
        yield GaugeMetricFamily(
            "at_least_semaphore_watch_age_seconds",
            "Since when the API server has said nothing of pods; it does so at least every 30 seconds.",
            time.monotonic() - self._heard_at(),
        )
        if (without := self._metrics.pods_without_lease) is not None:
            yield GaugeMetricFamily(
                "at_least_semaphore_pods_without_lease",
                "Pods whose sidecar has started, of whose lease no majority of nodes knows.",
                without,
            )
        pods = GaugeMetricFamily(
            "at_least_semaphore_waiting_pods", "Pods that wait for a slot, of each semaphore.", labels=["semaphore"]
        )
        oldest = GaugeMetricFamily(
            "at_least_semaphore_oldest_wait_seconds",
            "For how long the oldest pod has waited, of each semaphore.",
            labels=["semaphore"],
        )
        for semaphore, (count, since) in self._rows(now).items():
            pods.add_metric([semaphore], count)
            oldest.add_metric([semaphore], max(0.0, now - since))
        yield pods
        yield oldest

    def _rows(self, now: float) -> Mapping[str, tuple[int, float]]:
        """How many wait, and since when: those of most pods first, what is beyond the limit as one."""
        gated = (member for member in self._members() if member.stage is Stage.WAITING)
        rows = {name: (len(queue), queue[0].created) for name, queue in queues(gated, now).items()}
        names = sorted(rows, key=lambda name: (-rows[name][0], name))
        own, others = names[: self._most_semaphores], names[self._most_semaphores :]
        found = {name: rows[name] for name in own}
        if others:
            found[OTHER] = sum(rows[name][0] for name in others), min(rows[name][1] for name in others)
        return found


def serve_page(host: str, port: int, registry: CollectorRegistry, checks: Mapping[str, Callable[[], bool]]) -> None:
    """Serve metrics and checks, by their paths. Raises OSError."""
    metrics = make_wsgi_app(registry)

    def application(environ, start_response):  # type: ignore[no-untyped-def]
        check = checks.get(environ.get("PATH_INFO", ""))
        if check is None:
            return metrics(environ, start_response)
        is_well = check()
        start_response("200 OK" if is_well else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if is_well else b"not ready\n"]

    serve(host, port, application)
