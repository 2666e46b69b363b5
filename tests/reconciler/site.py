"""What each of these tests has: a namespace whose pods may wait, the nodes that know their slots, and a kubelet."""

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from sidecar.protocol import Keys
from tests.harness.control_plane import RECONCILER, ControlPlane, Namespace, Object, paced
from tests.harness.nodes import RedisNode
from tests.harness.reconciler import (
    Reconciler,
    environ_of,
    held,
    left_ms,
    reconciler,
    sidecar_of,
    states,
    token_of,
    waiting_pod,
    waits,
)
from tests.harness.semaphores import live_slots
from tests.harness.sidecars import Sidecar, sidecar

KEY = "reports-db"
APP = "app"


class Site:
    """A namespace in which reconcilers can be started, and pods be made to run; all of it ends with the test."""

    def __init__(
        self, plane: ControlPlane, name: str, hook: str, nodes: Sequence[RedisNode], environ: Mapping[str, str]
    ) -> None:
        self.plane, self.hook, self.nodes, self.environ = plane, hook, nodes, environ
        self.pods = plane.create_namespace(name, hook)
        self.name = name
        self._namespaces = [self.pods]
        self._turns = 0
        self._reconcilers: list[Reconciler] = []
        self.sidecars: dict[str, Sidecar] = {}
        self._running = ExitStack()

    def close(self) -> None:
        self._running.close()
        for namespace in self._namespaces:
            namespace.delete_all()

    def another(self, name: str, hook: str | None = None) -> Namespace:
        """One more namespace, with the same webhook, or with this one."""
        made = self.plane.create_namespace(f"{self.name}-{name}", self.hook if hook is None else hook)
        self._namespaces.append(made)
        return made

    def semaphore(self, key: str = KEY) -> str:
        return f"{self.name}/{key}"

    # Reconcilers

    def launch(self, kubeconfig: Path | None = None, **more: str) -> Reconciler:
        """One that need not be ready; `more` are variables of its environment."""
        file = kubeconfig or self.plane.kubeconfig(RECONCILER)
        self._reconcilers.append(self._running.enter_context(reconciler({**self.environ, **more}, file)))
        return self._reconcilers[-1]

    def start(self, kubeconfig: Path | None = None, **more: str) -> Reconciler:
        started = self.launch(kubeconfig, **more)
        started.await_ready()
        return started

    @property
    def said(self) -> list[str]:
        """What each reconciler of this test has said."""
        return [each.output for each in self._reconcilers]

    # Pods

    def create(self, name: str, key: str = KEY, length: int = 1, expiration: int = 60, **more: str) -> Object:
        """A pod that waits; `more` are further annotations of our group, with _ for -."""
        return self.pods.create(waiting_pod(name, key, length, expiration, **more))

    def create_many(self, count: int, key: str = KEY, length: int = 1) -> list[str]:
        """Their names, in the order in which they are to be let in; one who sees but some of them takes the oldest."""
        names = {self.create(f"{key}-{number}", key, length)["metadata"]["name"] for number in range(count)}
        return [name for name in self.names() if name in names]

    def await_next_second(self) -> None:
        """So that pods that are created from now on are younger: creation is told in whole seconds."""
        now = int(time.time())
        paced(lambda: int(time.time()) > now, "the next second")

    def names(self) -> list[str]:
        """Of all pods, in the order in which they are to be let in."""
        return [pod["metadata"]["name"] for pod in self.pods.pods()]

    def granted(self) -> list[str]:
        """The pods whose gate is gone."""
        return [pod["metadata"]["name"] for pod in self.pods.pods() if not waits(pod)]

    def await_granted(self, *names: str, seconds: float = 30) -> None:
        """Until these pods are let in, and no others."""
        try:
            paced(lambda: set(self.granted()) == set(names), "pods to be let in", seconds)
        except AssertionError:
            raise AssertionError(f"let in are {self.granted()}, but should be {sorted(names)}") from None

    def await_let_in(self, name: str, namespace: Namespace | None = None, seconds: float = 30) -> None:
        """Until this pod is, whoever else."""
        pods = namespace or self.pods
        paced(lambda: not waits(pods.pod(name)), f"{name} to be let in", seconds)

    def await_turns(self, count: int = 1) -> None:
        """Until so many pods of new semaphores were let in, one after the other: who could be let in meanwhile was."""
        for _ in range(count):
            self._turns += 1
            name = f"turn-{self._turns}"
            self.create(name, key=name)
            self.await_let_in(name)

    def await_event(self, name: str, reason: str, seconds: float = 30) -> str:
        """The message of the pod's latest event of this reason."""
        found = paced(lambda: self.pods.events(name, reason), f"the event {reason} of {name}", seconds)
        return str(found[-1]["message"])

    def token(self, name: str) -> str:
        return token_of(self.pods.pod(name))

    def run(self, name: str) -> Sidecar:
        """Start the pod's real sidecar, and say as a kubelet that all its containers run."""
        pod = self.pods.pod(name)
        assert not waits(pod), f"{name} has not been let in"
        process = self.start_sidecar(pod)
        process.wait_for("the slot is held")
        self.say(name, "Running", sidecar="running", app="running")
        return process

    def start_sidecar(self, pod: Object) -> Sidecar:
        """The process alone, of which no kubelet has told anybody yet."""
        process = self._running.enter_context(sidecar(sidecar_of(pod)["command"], environ_of(pod)))
        self.sidecars[pod["metadata"]["name"]] = process
        return process

    def say(self, name: str, phase: str, **containers: str) -> None:
        """What a kubelet says of the pod and its containers."""
        self.pods.set_status(name, phase=phase, **states(self.pods.pod(name), **containers))

    def end(self, name: str) -> None:
        """The sidecar gives the slot back, and the pod is gone."""
        assert self.sidecars.pop(name).terminate() == 0
        self.pods.delete(name)

    # Slots

    def held(self, *names: str) -> set[str]:
        """Which of these pods, or of all, hold a slot by a majority of the nodes."""
        wanted = [pod for pod in self.pods.pods() if not names or pod["metadata"]["name"] in names]
        by_token = {token_of(pod): str(pod["metadata"]["name"]) for pod in wanted}
        return {by_token[token] for token in held(self.nodes, list(by_token))}

    def slots(self, key: str = KEY) -> list[dict[int, str]]:
        """What each node that runs has of the semaphore: slot → token."""
        found = []
        for node in self.nodes:
            if node.running:
                with suppress(redis.RedisError), node.client() as client:  # it may be killed just now
                    found.append(live_slots(client, Keys().record(self.semaphore(key))))
        return found

    def is_nowhere(self, token: str) -> bool:
        """Whether no node has anything of the token but, maybe, a dead entry in the record."""
        return all(left_ms(node, token, reserved=of) < 0 for node in self.nodes for of in (False, True))

    def await_nowhere(self, token: str, seconds: float = 30) -> None:
        paced(lambda: self.is_nowhere(token), "all nodes to forget the token", seconds)

    @contextmanager
    def watched(self, names: Collection[str], length: int, key: str = KEY) -> Iterator[None]:
        """Look at the nodes all the while: never more than `length` of these pods hold a slot, and none has two."""
        tokens = [self.token(name) for name in names]
        wrong: list[object] = []
        looked, end = 0, threading.Event()

        def look() -> None:
            nonlocal looked
            while not end.is_set():
                if len(found := held(self.nodes, tokens)) > length:
                    wrong.append(found)
                for slots in self.slots(key):
                    if len(set(slots.values())) < len(slots):
                        wrong.append(slots)
                looked += 1
                time.sleep(0.02)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
        assert looked, "nobody looked"
        assert not wrong, wrong[:3]


def settled(namespace: Namespace) -> dict[str, Any]:
    """What tells whether somebody writes: the versions of all pods, and how often each of their events came."""
    versions = {pod["metadata"]["name"]: pod["metadata"]["resourceVersion"] for pod in namespace.pods()}
    events = {
        (event["reason"], name): (event["metadata"]["resourceVersion"], event.get("count"))
        for name in versions
        for event in namespace.events(name)
    }
    return {"versions": versions, "events": events}
