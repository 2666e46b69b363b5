"""What the webhook costs those who create pods, through a real API server: etcd and kube-apiserver on loopback.

Pods that nobody schedules are created in namespaces that differ in what the API server is configured to ask about them.
A round goes through all cases in random order, and told are the medians of the rounds.
"""

import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, product
from random import Random
from statistics import mean, median

from app.admission.annotations import GREATEST_LENGTH
from tests.bench.admissions import PER_SECOND, SHARED_KEYS, at_once, cpu_seconds
from tests.bench.nothing import running_nothing, running_only_answering
from tests.bench.report import Report
from tests.harness.control_plane import (
    HOOKS,
    Connection,
    ControlPlane,
    Object,
    configuration,
    request,
    running_control_plane,
)
from tests.harness.scene import scene
from tests.harness.waiting import wait_for
from tests.harness.webhook import Webhook, annotations_asking

PART = "api-server"
ROUNDS = 12
PODS = 120
UNCOUNTED_PODS = 24
CLIENTS = (1, 8)
USUAL_CLIENTS = 8


class Case(StrEnum):
    """What is created, each in a namespace of its own; the second but last answers with the patch of an admission."""

    WITHOUT = "no webhook"
    ELSEWHERE = "namespace not opted in"
    PLAIN = "pods that do not ask"
    NOTHING = "a webhook that does nothing"
    ANSWERING = "a webhook that only answers"
    ASKING = "pods that ask"

    @property
    def namespace(self) -> str:
        return self.name.lower()

    @property
    def hook(self) -> str:
        """The webhook that is configured for the namespace."""
        return {Case.PLAIN: Case.ASKING.namespace}.get(self, self.namespace)

    @property
    def asks(self) -> bool:
        return self in HOOKED


HOOKED = (Case.NOTHING, Case.ANSWERING, Case.ASKING)
# What is compared with what, and how little of its rate there may be left.
COMPARED: Sequence[tuple[Case, Case, float | None]] = (
    (Case.ELSEWHERE, Case.WITHOUT, 0.95),
    (Case.PLAIN, Case.WITHOUT, None),
    (Case.NOTHING, Case.WITHOUT, None),
    (Case.ANSWERING, Case.WITHOUT, None),
    (Case.ASKING, Case.WITHOUT, 0.45),
    (Case.ASKING, Case.NOTHING, 0.8),
    (Case.ASKING, Case.ANSWERING, None),
)


@dataclass(frozen=True)
class Batch:
    """Pods that were created together: how long that took, and what CPU time whom."""

    seconds: float
    cpu_seconds: Mapping[str, float]


class Creator:
    """Creates pods, where these webhooks are configured or not."""

    def __init__(self, server: ControlPlane, hooks: Mapping[str, Webhook], pids: Mapping[str, Sequence[int]]) -> None:
        self._hooks, self._pids = hooks, pids
        self._connections = [Connection(server) for _ in range(max(CLIENTS))]
        self._names = (f"pod-{number}" for number in count())
        for case in Case:
            server.create_namespace(case.namespace, case.hook)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    @contextmanager
    def configured(self) -> Iterator[None]:
        """Meanwhile the API server knows of the webhooks. It learns of them in the order in which they are told."""
        for name, hook in self._hooks.items():
            self._ask("POST", HOOKS, configuration(name, hook))
        wait_for(self._is_asked, "the API server to know the webhooks")
        yield
        for name in self._hooks:
            self._ask("DELETE", f"{HOOKS}/{name}")
        wait_for(lambda: not self._is_asked(), "the API server to forget the webhooks")

    def create(self, case: Case, pods: int, clients: int) -> Batch:
        """As many pods by so many clients; what they send is made before the clock starts."""
        path = f"/api/v1/namespaces/{case.namespace}/pods"
        requests = [request("POST", path, a_pod(next(self._names), asks=case.asks)) for _ in range(pods)]

        def work(number: int) -> list[tuple[int, bytes]]:
            return [self._connections[number].exchange(each) for each in requests[number::clients]]

        with ThreadPoolExecutor(clients) as threads:
            began = self._spent()
            answers = [each for part in threads.map(work, range(clients)) for each in part]
            ended = self._spent()
        refused = [body for status, body in answers if status != http.HTTPStatus.CREATED]
        assert not refused, refused[0]
        spent = {name: ended[name] - began[name] for name in began}
        return Batch(spent.pop("clock"), spent)

    def _ask(self, method: str, path: str, content: Object | None = None) -> bytes:
        status, body = self._connections[0].ask(method, path, content)
        assert status < http.HTTPStatus.BAD_REQUEST, body
        return body

    def _is_asked(self) -> bool:
        """Whether the last one of the webhooks, which is ours, adds its sidecar."""
        path = f"/api/v1/namespaces/{Case.ASKING.namespace}/pods?dryRun=All"
        return "initContainers" in json.loads(self._ask("POST", path, a_pod(next(self._names), asks=True)))["spec"]

    def _spent(self) -> dict[str, float]:
        return {"clock": time.perf_counter(), **{who: cpu_seconds(pids) for who, pids in self._pids.items()}}


def a_pod(name: str, *, asks: bool) -> Object:
    """A pod that nobody schedules, so that it costs nothing once it is created."""
    key = f"key-{int(name.rpartition('-')[2]) % SHARED_KEYS}"
    container = {
        "name": "app",
        "image": "registry.example/reports:1",
        "env": [{"name": "DATABASE", "value": "reports"}],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}},
    }
    metadata = {"name": name, "labels": {"app": "reports"}}
    if asks:
        metadata |= {"annotations": annotations_asking(key, GREATEST_LENGTH, 3600)}
    return {"metadata": metadata, "spec": {"schedulerName": "nobody", "containers": [container]}}


def measure(report: Report) -> None:
    """Pods per second, and what CPU time they cost whom. Raises MissingError."""
    with ExitStack() as stack:
        running = stack.enter_context(scene())
        hooks = {
            Case.NOTHING.hook: stack.enter_context(running_nothing()),
            Case.ANSWERING.hook: stack.enter_context(running_only_answering()),
            Case.ASKING.hook: running.webhook,
        }
        server = stack.enter_context(running_control_plane())
        pids = {
            **{name: [process.pid] for name, process in server.processes.items()},
            "webhooks": [pid for hook in hooks.values() for pid in hook.workers()],
            "nodes": [node.pid for node in running.nodes],
        }
        creator, rng = stack.enter_context(closing(Creator(server, hooks, pids))), Random(report.seed)
        tell(report, [measure_round(rng, creator) for _ in range(report.times(ROUNDS))])


Round = Mapping[tuple[Case, int], Sequence[Batch]]


def measure_round(rng: Random, creator: Creator) -> Round:
    """Without any configuration before and after all others."""
    unconfigured = [(Case.WITHOUT, clients) for clients in CLIENTS]
    configured = [each for each in product(Case, CLIENTS) if each not in unconfigured]
    found: dict[tuple[Case, int], list[Batch]] = {each: [] for each in unconfigured + configured}

    def take(those: Sequence[tuple[Case, int]]) -> None:
        for case, clients in those:
            creator.create(case, UNCOUNTED_PODS, clients)
            found[case, clients].append(creator.create(case, PODS, clients))

    take(unconfigured)
    with creator.configured():
        take(rng.sample(configured, len(configured)))
    take(unconfigured)
    return found


def tell(report: Report, rounds: Sequence[Round]) -> None:
    def rates(case: Case, clients: int) -> list[float]:
        return [PODS / mean(batch.seconds for batch in found[case, clients]) for found in rounds]

    for clients in CLIENTS:
        for case in Case:
            report.add(PART, f"{case}, {at_once(clients)}: pods", median(rates(case, clients)), PER_SECOND)
        for case, other, at_least in COMPARED:
            ratio = median(one / two for one, two in zip(rates(case, clients), rates(other, clients), strict=True))
            report.add(PART, f"{case}, {at_once(clients)}: pods", ratio, f"of {other}", at_least=at_least)
    for case in Case:
        batches = [batch for found in rounds for batch in found[case, USUAL_CLIENTS]]
        for who in batches[0].cpu_seconds:
            spent = 1000 * mean(batch.cpu_seconds[who] for batch in batches) / PODS
            if spent:
                report.add(PART, f"{case}, {at_once(USUAL_CLIENTS)}: CPU, {who}", spent, "ms a pod (of this machine)")
