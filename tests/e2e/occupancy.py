"""Who had a slot when: looks at the nodes all the while, whatever happens to them."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis

from sidecar.protocol import majority
from tests.e2e.installation import NODES, Installation, Nodes

PAUSE_SECONDS = 0.02
# A node that is silent for longer counts as one that has nothing.
PATIENCE_SECONDS = 0.25


class Occupancy:
    """Which tokens had a lease on a majority of the nodes, by what was seen."""

    def __init__(self, nodes: Nodes, semaphore: str) -> None:
        self._nodes, self._semaphore = nodes, semaphore
        self._known: set[str] = set()  # every token that a record has ever named
        # When it was seen so for the first time, in monotonic seconds, and whose leases; one for every change.
        self.seen: list[tuple[float, frozenset[str]]] = []
        self.looks = 0
        self._failures: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        assert not self._failures, self._failures

    def _look_on(self) -> None:
        try:
            while not self._end.wait(PAUSE_SECONDS):
                held = self._look()
                self.looks += 1
                if not self.seen or self.seen[-1][1] != held:
                    self.seen.append((time.monotonic(), held))
        except Exception as error:  # noqa: BLE001  it would end unseen
            self._failures.append(repr(error))

    def _look(self) -> frozenset[str]:
        """Nodes are read one after the other, and yet nobody is counted whose slot has gone to another meanwhile.

        Of the two only one can have been on most nodes when they were read.
        """
        on_each = []
        for number in range(NODES):
            with suppress(redis.RedisError):
                self._known |= set(self._nodes.tokens(self._semaphore, number).values())
                # A lease lives on without a record.
                on_each.append(self._nodes.leased(number, self._known))
        counts = {token: sum(token in on for on in on_each) for token in self._known}
        return frozenset(token for token, count in counts.items() if count >= majority(NODES))

    @property
    def most(self) -> int:
        """How many there were at most."""
        return max(len(held) for _, held in self.seen)

    def arrivals(self) -> list[set[str]]:
        """The tokens in the order in which they came; several that came between two looks as one set."""
        known: set[str] = set()
        groups: list[set[str]] = []
        for _, held in list(self.seen):
            groups.append(set(held - known))
            known |= held
        return [group for group in groups if group]

    def vacancies(self) -> list[tuple[float, float]]:
        """From when to when a slot was free, of each that was taken again; the first one freed is the first taken."""
        freed: deque[float] = deque()
        found: list[tuple[float, float]] = []
        before: frozenset[str] = frozenset()
        for at, held in list(self.seen):
            freed.extend(at for _ in before - held)
            found.extend((freed.popleft(), at) for _ in held - before if freed)
            before = held
        return found


@contextmanager
def watched(installation: Installation, semaphore: str) -> Iterator[Occupancy]:
    """Meanwhile somebody looks."""
    with installation.nodes(PATIENCE_SECONDS) as nodes:
        occupancy = Occupancy(nodes, semaphore)
        occupancy.start()
        try:
            yield occupancy
        finally:
            occupancy.stop()
