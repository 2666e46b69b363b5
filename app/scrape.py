"""What Prometheus is told that is looked up when it asks: the semaphores, the nodes, the certificate and the version.

What cannot be read is left out: there is no zero that means "not known". Every replica says the same of nodes and
semaphores, so of theirs one takes the `max`, not the sum.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from app.page import build_info
from app.semaphore.semaphores import Semaphores
from app.semaphore.survey import Health
from app.server import TlsContext
from app.status import Summary, sum_of, summary_of
from sidecar.protocol import Address, majority

log = logging.getLogger(__name__)

# For all that is read from the nodes: well within the ten seconds that Prometheus waits by default.
READ_SECONDS = 4.0
OTHER = "other"  # no semaphore is called that: every name has a slash

Metric = GaugeMetricFamily | CounterMetricFamily


@dataclass(frozen=True, slots=True)
class Reading:
    """What the nodes said, and when it was known, in monotonic seconds. In numbers: leases may be very many."""

    health: Mapping[Address, Health]
    unheard: int  # nodes that did not tell of all
    leases: Mapping[int, int]  # number of the node → live leases on it
    missing: Mapping[int, int]  # number of the node → leases that a majority has and it lacks
    semaphores: Sequence[Summary]
    unreadable: int
    began: float
    ended: float

    @property
    def is_success(self) -> bool:
        nodes = len(self.health)
        return nodes - self.unheard >= majority(nodes)


class Scrape(Collector):
    """Answers one reader of the page after the other; who asks while the nodes are being read shares what that brings.

    At most `most_semaphores` have series of their own; the others are summed.
    """

    def __init__(self, semaphores: Semaphores, tls: TlsContext, most_semaphores: int) -> None:
        self._semaphores = semaphores
        self._tls = tls
        self._most_semaphores = most_semaphores
        self._lock = threading.Lock()
        self._last: Reading | None = None
        self._told: Mapping[int, str] = {}  # what the log has of nodes that did not tell of all

    def collect(self) -> Iterator[Metric]:
        yield build_info()
        yield _certificate(self._tls)
        reading = self._read()
        yield from _of_nodes(reading)
        yield from _of_reading(reading)
        if reading.is_success:
            yield from _of_semaphores(reading, self._most_semaphores, time.time())

    def _read(self) -> Reading:
        asked = time.monotonic()
        with self._lock:
            if self._last is None or self._last.ended < asked:
                self._last = self._read_nodes()
            return self._last

    def _read_nodes(self) -> Reading:
        began = time.monotonic()
        deadline = began + READ_SECONDS
        # First: a node that is well, but too slow to tell of all in time, is up.
        health = self._semaphores.health(deadline)
        overview = self._semaphores.overview(deadline)
        self._tell(overview.unheard, list(health))
        return Reading(
            health=health,
            unheard=len(overview.unheard),
            leases=overview.leases,
            missing={node: sum(state.lacking.get(node, 0) for state in overview.states) for node in overview.leases},
            semaphores=[summary_of(state) for state in overview.states],
            unreadable=len(overview.unreadable),
            began=began,
            ended=time.monotonic(),
        )

    def _tell(self, unheard: Mapping[int, str], addresses: Sequence[Address]) -> None:
        """Once, as long as it stays the same."""
        for number, why in unheard.items():
            if self._told.get(number) != why:
                node = str(addresses[number])
                log.warning("node %s did not tell of all semaphores: %s", node, why, extra={"node": node})
        self._told = unheard


def _certificate(tls: TlsContext) -> Metric:
    """Of what is served: while the files cannot be used that is the last good one."""
    tls.current()
    return GaugeMetricFamily(
        "at_least_semaphore_certificate_expiry_timestamp_seconds",
        "When the certificate that the webhook serves ends, in seconds since the epoch.",
        x509.load_pem_x509_certificate(tls.served_pem).not_valid_after_utc.timestamp(),
    )


def _of_nodes(reading: Reading) -> Iterator[Metric]:
    health = reading.health
    addresses = list(health)

    def gauge(name: str, text: str, values: Iterable[tuple[Address, float | None]]) -> Metric:
        return _filled(GaugeMetricFamily(f"at_least_semaphore_node_{name}", text, labels=["node"]), values)

    yield gauge("up", "Whether the node answers: 1, or 0.", ((node, float(not health[node].fault)) for node in health))
    yield gauge(
        "round_trip_seconds",
        "How long the node takes to tell the time.",
        ((node, health[node].round_trip_seconds) for node in health),
    )
    yield gauge(
        "clock_offset_seconds",
        "How far the node's clock is ahead of this webhook's; below zero: behind.",
        ((node, health[node].clock_offset_seconds) for node in health),
    )
    yield gauge(
        "leases",
        "Leases that live on the node.",
        ((addresses[number], leases) for number, leases in reading.leases.items()),
    )
    yield gauge(
        "leases_missing",
        "Leases that a majority of nodes has and this one lacks.",
        ((addresses[number], missing) for number, missing in reading.missing.items() if reading.is_success),
    )
    yield _filled(
        CounterMetricFamily(
            "at_least_semaphore_node_expired_keys",
            "Leases and reservations that ended by themselves on the node, since it was started.",
            labels=["node"],
        ),
        ((node, each.vitals.expired_keys) for node, each in health.items() if each.vitals),
    )


def _of_reading(reading: Reading) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "at_least_semaphore_read_success",
        "Whether a majority of nodes told of all semaphores in time: 1, or 0.",
        reading.is_success,
    )
    yield GaugeMetricFamily(
        "at_least_semaphore_read_duration_seconds", "How long the nodes were read.", reading.ended - reading.began
    )


# The name of each metric of a semaphore, its help, and its value in a row at an instant of the wall clock.
_GAUGES: Sequence[tuple[str, str, Callable[[Summary, float], float | None]]] = (
    ("length", "The length by which a slot was last granted.", lambda row, _: row.length),
    ("held", "Slots that are held, by a majority of nodes.", lambda row, _: row.held),
    ("reserved", "Slots held for pods whose sidecar has not renewed yet.", lambda row, _: row.reserved),
    (
        "overdue",
        "Slots held by pods whose sidecar has not renewed for more than half of the lease.",
        lambda row, _: row.overdue,
    ),
    (
        "unconfirmed",
        "Slots with a lease on some node, but on no majority: being granted, or lost.",
        lambda row, _: row.unconfirmed,
    ),
    (
        "oldest_reservation_age_seconds",
        "Since when the oldest reservation waits for its pod to start.",
        lambda row, now: row.oldest_reservation_age_seconds(now),
    ),
)


def _of_semaphores(reading: Reading, most: int, now: float) -> Iterator[Metric]:
    # Those that somebody holds first: records of semaphores that are not used any more stay for long.
    rows = sorted(reading.semaphores, key=lambda row: (not row.held, row.semaphore))
    own, others = rows[:most], rows[most:]
    if others:
        own = [*own, sum_of(others, OTHER)]
    counts = (
        ("semaphores", "Semaphores that the nodes know.", len(rows) + reading.unreadable),
        ("semaphores_unreadable", "Semaphores that no majority of nodes knows.", reading.unreadable),
        ("semaphores_summed", 'Semaphores without series of their own: summed as "other".', len(others)),
    )
    for name, text, value in counts:
        yield GaugeMetricFamily(f"at_least_semaphore_{name}", text, value)
    for name, text, value_of in _GAUGES:
        gauge = GaugeMetricFamily(f"at_least_semaphore_{name}", text, labels=["semaphore"])
        yield _filled(gauge, ((row.semaphore, value_of(row, now)) for row in own))


def _filled(metric: Metric, values: Iterable[tuple[object, float | None]]) -> Metric:
    """The metric with these values of its label; those that are not known are left out."""
    for label, value in values:
        if value is not None:
            metric.add_metric([str(label)], value)
    return metric
