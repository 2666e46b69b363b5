"""All that can go wrong, drawn by a seed: whatever happens, no semaphore is overfull and nobody waits for ever."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random

import pytest

from tests.harness.control_plane import Object, paced
from tests.harness.nodes import RedisNode, failing
from tests.harness.reconciler import Reconciler, held, token_of, waits
from tests.reconciler.site import Site

LENGTHS = {"one": 1, "three": 3}
SECONDS = 15
MOST_WAITING = 20
SHORTEST_LEASE_SECONDS = 5


class Storm:
    """Creates pods, plays their kubelet, and lets things fail; some other thread looks on."""

    def __init__(self, site: Site, rng: Random) -> None:
        self._site, self._rng = site, rng
        self._created = 0
        self._running: set[str] = set()
        self._reconcilers: list[Reconciler] = [site.start() for _ in range(2)]
        # While a node is paused nobody may ask it.
        self._looking = threading.Lock()
        self.tokens: dict[str, list[str]] = {key: [] for key in LENGTHS}

    def overfull(self) -> list[object]:
        """What is wrong at this instant."""
        with self._looking:
            found = {key: held(self._site.nodes, list(tokens)) for key, tokens in self.tokens.items()}
            slots = [slots for key in LENGTHS for slots in self._site.slots(key)]
        too_many = [(key, tokens) for key, tokens in found.items() if len(tokens) > LENGTHS[key]]
        return [*too_many, *(each for each in slots if len(set(each.values())) < len(each))]

    def go_on(self, seconds: float) -> None:
        """What happens to pods every day."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pods = {str(pod["metadata"]["name"]): pod for pod in self._site.pods.pods()}
            waiting = [name for name, pod in pods.items() if waits(pod)]
            starting = sorted(pods.keys() - set(waiting) - self._running)
            actions: list[Callable[[], None]] = []
            if len(waiting) < MOST_WAITING:
                actions.append(self._create)
            if starting:
                chosen = self._rng.choice(starting)
                actions += [partial(self._run, pods[chosen])] * 2
                actions.append(partial(self._site.pods.delete, chosen))
            if waiting:
                actions.append(partial(self._site.pods.delete, self._rng.choice(waiting)))
            if self._running:
                actions += [partial(self._end, self._rng.choice(sorted(self._running)))] * 3
            self._rng.choice(actions)()

    def _create(self) -> None:
        key, self._created = self._rng.choice(list(LENGTHS)), self._created + 1
        pod = self._site.create(f"{key}-{self._created}", key, LENGTHS[key], SHORTEST_LEASE_SECONDS)
        self.tokens[key].append(token_of(pod))

    def _run(self, pod: Object) -> None:
        name = str(pod["metadata"]["name"])
        self._site.start_sidecar(pod)
        self._running.add(name)
        self._site.say(name, "Running", sidecar="running", app="running")

    def _end(self, name: str) -> None:
        self._running.discard(name)
        process = self._site.sidecars.pop(name)
        if self._rng.random() < 0.3:
            process.send(signal.SIGKILL)
        else:
            process.terminate()
        if self._rng.random() < 0.3:
            self._site.say(name, "Succeeded", sidecar="terminated", app="terminated")
        self._site.pods.delete(name)

    def fail(self) -> None:
        """One thing, while pods go on where they can."""
        self._rng.choice(
            [self._pause_node, self._kill_node, self._empty_node, self._kill, self._pause, self._restart]
        )()

    def _node(self) -> RedisNode:
        """One that lacks nothing, nor do the others: what is promised holds while one at a time does."""
        paced(self._agree, "all nodes to know the same", 60)
        return self._rng.choice(self._site.nodes)

    def _agree(self) -> bool:
        return all(len({frozenset(slots.items()) for slots in self._site.slots(key)}) == 1 for key in LENGTHS)

    def _pause_node(self) -> None:
        node = self._node()
        with self._looking, failing([node], RedisNode.pause, RedisNode.resume):
            self.go_on(0.7)

    def _kill_node(self) -> None:
        with failing([self._node()], RedisNode.kill, RedisNode.start):
            self.go_on(0.7)

    def _empty_node(self) -> None:
        self._node().restart(empty=True)

    def _kill(self) -> None:
        victim = self._rng.randrange(2)
        self._reconcilers[victim].close()
        self.go_on(0.2)
        self._reconcilers[victim] = self._site.start()

    def _pause(self) -> None:
        victim = self._rng.choice(self._reconcilers)
        victim.pause()
        self.go_on(1)
        victim.resume()

    def _restart(self) -> None:
        with self._site.plane.stopped():
            self._site.plane.compact()

    def let_all_in(self) -> bool:
        """Let who has its slot make room; whether nobody waits any more."""
        pods = self._site.pods.pods()
        for pod in pods:
            if not waits(pod):
                self._site.pods.delete(pod["metadata"]["name"])
        return not pods

    def end_all(self) -> None:
        for name in sorted(self._running):
            self._end(name)


@contextmanager
def watching(storm: Storm) -> Iterator[None]:
    """Meanwhile, as fast as can be, whether all is right."""
    wrong: list[object] = []
    looked, end = 0, threading.Event()

    def look() -> None:
        nonlocal looked
        while not end.is_set():
            wrong.extend(storm.overfull())
            looked += 1
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    assert looked > SECONDS, "nobody looked"
    assert not wrong, wrong[:3]


@pytest.mark.parametrize("seed", [1, 2])
def test_no_semaphore_is_overfull_and_nobody_waits_for_ever(site, seed):
    storm = Storm(site, Random(seed))
    with watching(storm):
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            storm.go_on(0.5)
            storm.fail()
        storm.end_all()
        paced(storm.let_all_in, "everybody to be let in", 120)
    # What was granted to nobody's use ends after a minute at the latest.
    paced(lambda: not any(slots for key in LENGTHS for slots in site.slots(key)), "all slots to be free", 90)
