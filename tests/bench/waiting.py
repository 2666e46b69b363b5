"""What pods that wait cost, and for how long a slot that is free stays so: real pods, nodes and reconcilers.

All semaphores have one slot, and as many pods wait for each. The first of each are let in when a reconciler starts;
then slots are freed one after the other, in the two ways in which a reconciler comes to know of it.
"""

import http.client
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from random import Random
from statistics import median

from sidecar.protocol import Keys
from tests.bench.admissions import cpu_seconds
from tests.bench.protocol import seconds
from tests.bench.report import Report
from tests.harness.control_plane import (
    ADMIN,
    HOST,
    RECONCILER,
    Connection,
    ControlPlane,
    request,
    running_control_plane,
)
from tests.harness.nodes import RedisNode, addresses, redis_nodes
from tests.harness.reconciler import RULES, Reconciler, held, reconciler, states, token_of, waiting_pod, waits
from tests.harness.waiting import wait_for
from tests.harness.webhook import environ_for, running_webhook

PART = "waiting"
SEMAPHORES = 200
PODS_EACH = 10
FREED = 30
# Slots are freed at instants that have nothing to do with when a reconciler looks.
PAUSE_SECONDS = 0.5
IDLE_SECONDS = 10
RECONCILERS = (2, 1)
CLIENTS = 8
HOOK = "waiting"
PATIENCE_SECONDS = 60
# What the reconciler sends; what its scripts call there is counted by other names.
SENT = ("evalsha", "scan", "unlink")


@dataclass(frozen=True)
class Pod:
    """One that waits, or waited."""

    name: str
    token: str


class Crowd:
    """Pods in a namespace of their own, by semaphore in the order in which they are to be let in."""

    def __init__(self, server: ControlPlane, name: str, nodes: Sequence[RedisNode]) -> None:
        self._server, self._nodes = server, nodes
        self._namespace = server.create_namespace(name, HOOK)
        self._create()
        listed = server.ask("GET", f"{self._namespace.path}/pods")
        self._version = listed["metadata"]["resourceVersion"]
        self._spec = listed["items"][0]
        self.queues: dict[str, list[Pod]] = {}
        for pod in self._namespace.pods():
            key = pod["metadata"]["name"].rpartition("-")[0]
            self.queues.setdefault(key, []).append(Pod(pod["metadata"]["name"], token_of(pod)))

    def _create(self) -> None:
        path = f"{self._namespace.path}/pods"
        names = [(f"key-{key}", f"key-{key}-{number}") for number in range(PODS_EACH) for key in range(SEMAPHORES)]
        requests = [request("POST", path, waiting_pod(name, key)) for key, name in names]

        def work(number: int) -> None:
            with closing(Connection(self._server)) as connection:
                for each in requests[number::CLIENTS]:
                    status, body = connection.exchange(each)
                    assert status == http.HTTPStatus.CREATED, body

        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(work, range(CLIENTS)))

    @property
    def firsts(self) -> set[str]:
        return {queue[0].name for queue in self.queues.values()}

    def await_firsts(self) -> None:
        """Until the gate is lifted of the first pod of each semaphore, by what a watch tells."""
        missing = self.firsts
        connection = http.client.HTTPSConnection(
            HOST, self._server.port, context=self._server.tls, timeout=PATIENCE_SECONDS
        )
        with closing(connection):
            path = f"{self._namespace.path}/pods?watch=1&resourceVersion={self._version}"
            connection.request("GET", path, headers={"Authorization": f"Bearer {ADMIN}"})
            for line in connection.getresponse():
                pod = json.loads(line)["object"]
                if not waits(pod):
                    missing.discard(pod["metadata"]["name"])
                if not missing:
                    return
        raise AssertionError(f"the watch ended, and {len(missing)} were not let in")

    def delete(self, pod: Pod) -> None:
        """It never started, so that its slot is free as soon as a reconciler has heard that it is gone."""
        self._namespace.delete(pod.name)

    def run(self, pods: Sequence[Pod]) -> None:
        """Let their sidecars have claimed their slots, and the kubelet have said so."""
        for pod in pods:
            for node in self._nodes:
                with node.client() as client:
                    client.unlink(Keys().reservation(pod.token))
            fields = states(self._spec, sidecar="running", app="running")
            self._namespace.set_status(pod.name, phase="Running", **fields)

    def release(self, pod: Pod) -> None:
        """As its sidecar does, which tells the nodes and nobody else."""
        for node in self._nodes:
            with node.client() as client:
                client.unlink(Keys().lease(pod.token))

    def await_taken(self, pod: Pod) -> None:
        wait_for(lambda: held(self._nodes, [pod.token]), f"{pod.name} to have the slot", PATIENCE_SECONDS)

    def clear(self) -> None:
        """Nobody waits any more, and no node knows of anybody."""
        self._namespace.delete_all()
        for node in self._nodes:
            with node.client() as client:
                client.flushall()


def measure(report: Report) -> None:
    """How soon a slot is taken, and what the reconcilers cost. Raises MissingError."""
    with ExitStack() as stack:
        nodes = stack.enter_context(redis_nodes())
        environ = environ_for(addresses(nodes))
        webhook = stack.enter_context(running_webhook({**environ, "WAITING_ALLOWED": "true"}))
        server = stack.enter_context(running_control_plane())
        server.grant(RECONCILER, RULES)
        stack.enter_context(server.asking(webhook, HOOK))
        for count in RECONCILERS[: report.times(len(RECONCILERS))]:
            measure_reconcilers(report, server, nodes, environ, count)


def measure_reconcilers(
    report: Report, server: ControlPlane, nodes: Sequence[RedisNode], environ: dict[str, str], count: int
) -> None:
    who = "1 reconciler" if count == 1 else f"{count} reconcilers"

    def tell(what: str, value: float, unit: str, at_most: float | None = None) -> None:
        report.add(PART, f"{who}, {what}", value, f"{unit} (of this machine)", at_most=at_most)

    crowd = Crowd(server, f"crowd-{count}", nodes)
    with ExitStack() as stack:
        running = [stack.enter_context(reconciler(environ, server.kubeconfig(RECONCILER))) for _ in range(count)]
        took = seconds(crowd.await_firsts)
        tell(f"start until {SEMAPHORES} of {SEMAPHORES * PODS_EACH:,} pods are let in", took, "s")
        for process in running:
            process.await_ready()
        rng = Random(report.seed)
        freed = report.times(FREED)
        keys = rng.sample(sorted(crowd.queues), 2 * freed)
        to_delete, to_release = keys[:freed], keys[freed:]
        crowd.run([crowd.queues[key][0] for key in to_release])
        for how, free, those in (
            ("the pod is deleted", crowd.delete, to_delete),
            ("the sidecar releases", crowd.release, to_release),
        ):
            taken = [freed_until_taken(crowd, key, free, rng) for key in those]
            tell(f"{how}, until the next has the slot: median", 1000 * median(taken), "ms", 1000)
            tell(f"{how}, until the next has the slot: maximum", 1000 * max(taken), "ms", 2000)
        tell("memory of each", max(process.resident_kilobytes for process in running) / 1000, "MB", 150)
        measure_idle(tell, running, nodes, report.times(IDLE_SECONDS))
    crowd.clear()


def freed_until_taken(crowd: Crowd, key: str, free: Callable[[Pod], None], rng: Random) -> float:
    first, second = crowd.queues[key][:2]
    time.sleep(rng.uniform(0, PAUSE_SECONDS))

    def hand_over() -> None:
        free(first)
        crowd.await_taken(second)

    return seconds(hand_over)


def measure_idle(
    tell: Callable[..., None], running: Sequence[Reconciler], nodes: Sequence[RedisNode], idle_seconds: int
) -> None:
    """While pods wait, and no slot is free."""
    calls = [node.calls(*SENT) for node in nodes]
    spent = [cpu_seconds([process.pid]) for process in running]
    began = time.monotonic()
    time.sleep(idle_seconds)
    took = time.monotonic() - began
    commands = max(node.calls(*SENT) - was for node, was in zip(nodes, calls, strict=True))
    shares = [(cpu_seconds([process.pid]) - was) / took for process, was in zip(running, spent, strict=True)]
    tell("idle: each sends", commands / len(running) / took, "commands a second to the first node")
    tell("idle: each takes", 100 * max(shares), "% of a core")
