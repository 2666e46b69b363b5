"""What an admission takes, asked over TLS as an API server asks, beside a webhook that does nothing.

A round goes through all cases in random order, and told are the medians of the rounds. Those who ask are threads of
this process: more processes take no less of the CPU that all share here. What they send is made before the clock
starts, and what came back is read when it has stopped. Each keeps its connection, as an API server does, as long as the
answers permit it, or opens one for every request.
"""

import json
import os
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import count, pairwise, product
from pathlib import Path
from random import Random
from statistics import mean, median, quantiles
from threading import Barrier
from typing import Any
from uuid import UUID

from app.admission.annotations import GREATEST_LENGTH
from tests.bench.nothing import running_nothing
from tests.bench.report import Report
from tests.harness.nodes import RedisNode, failing
from tests.harness.scene import Scene, scene
from tests.harness.waiting import wait_for
from tests.harness.webhook import Webhook, pod_asking, review_of

PART = "admissions"
ROUNDS = 5
REVIEWS = 150
CLIENTS = (1, 8, 32)
USUAL_CLIENTS = 8
COMPARED_CLIENTS = (1, 8)
WAYS = {False: "own connections", True: "kept alive"}
SHARED_KEYS = 100

CONTENDERS = 32
CONTENDED_REVIEWS = 200
CONTENDED_LENGTHS = (1, 2, 5, 20, 50, 100)

FAULT_REVIEWS = 300
FAULT_CLIENTS = 4
REVIEWS_WITHOUT_MAJORITY = 40
# For each worker more than there are semaphores.
SETTLING_REVIEWS = 100
FAULTS = {"paused": (RedisNode.pause, RedisNode.resume), "down": (RedisNode.kill, RedisNode.start)}
# Half of what the service by default waits for a node: who queues behind an answer that waits, waits a little less.
WAITED_SECONDS = 0.25

NAMESPACE = "batch"
# Longer than an API server waits: it is told how long the answer took.
PATIENCE_SECONDS = 30.0
LARGEST_RECORD_BYTES = 16 * 1024
ADMITTED, FULL, UNAVAILABLE = 200, 429, 503
S = "s (of this machine)"
MS = "ms (of this machine)"
PER_SECOND = "per second (of this machine)"

_CLOSES = b"Connection: close\r\n"
_HEAD = b"""\
POST /mutate?timeout=10s HTTP/1.1\r
Host: at-least-semaphore-pod-hook.at-least-semaphore-pod-hook.svc:443\r
User-Agent: kube-apiserver-admission\r
Content-Length: %d\r
Accept: application/json, */*\r
Content-Type: application/json\r
Accept-Encoding: gzip\r
%b\r
"""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_IS_LAST = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Case(StrEnum):
    """What the reviews of a batch ask for."""

    NEW = "new keys"
    ROTATING = f"{SHARED_KEYS} keys"
    ROOM = "one key, roomy"
    JUST_ENOUGH = "one key, just enough"
    NOTHING = "doing nothing"

    def keys(self, name: str) -> list[str]:
        match self:
            case Case.NEW:
                return [f"{name}-{number}" for number in range(REVIEWS)]
            case Case.ROTATING:
                return [f"rotating-{number % SHARED_KEYS}" for number in range(REVIEWS)]
        return [name] * REVIEWS

    @property
    def length(self) -> int:
        return REVIEWS if self is Case.JUST_ENOUGH else GREATEST_LENGTH


# What is asked --------------------------------------------------------------------------------------------


def requests(rng: Random, keys: Iterable[str], length: int, *, is_kept: bool) -> list[bytes]:
    """A request for each of these keys, with a review of its own."""
    review = json.dumps(realistic_review("<key>", length), separators=(",", ":")).encode()
    bodies = (review.replace(b"<key>", key.encode()).replace(b"<uid>", uid(rng).encode()) for key in keys)
    return [_HEAD % (len(body), b"" if is_kept else _CLOSES) + body for body in bodies]


def uid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def realistic_review(key: str, length: int) -> dict[str, Any]:
    """As an API server sends it, which has filled in whatever a pod leaves out, and notes who has set which field."""
    pod = pod_asking(key, length)
    ours = pod["metadata"] | {"labels": {"app": "reports", "pod-template-hash": "7d9c5b8f6d"}}
    mounts = [{"name": "kube-api-access-x7k2p", "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/sa"}]
    probe = {
        "httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    container = {
        "name": "app",
        "image": "registry.example/reports:1",
        "command": [
            "/usr/local/bin/reports",
            "--listen=:8080",
            "--database=postgres://reports-db.batch.svc:5432/reports",
        ],
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": [
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "reports-db", "key": "password"}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        ],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "250m", "memory": "512Mi"}},
        "volumeMounts": mounts,
        "livenessProbe": probe,
        "readinessProbe": probe,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {"capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "readOnlyRootFilesystem": True},
    }
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    spec = {
        "volumes": [{"name": mounts[0]["name"], "projected": {"sources": sources, "defaultMode": 420}}],
        "containers": [container],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{state}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            }
            for state in ("not-ready", "unreachable")
        ],
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    }
    set_by = {
        "manager": "kube-controller-manager",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2025-11-20T10:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": managed({"metadata": ours, "spec": spec | {"containers": container}}),
    }
    pod["metadata"] = ours | {"namespace": NAMESPACE, "creationTimestamp": None, "managedFields": [set_by]}
    return review_of(pod | {"spec": spec, "status": {}}, namespace=NAMESPACE, uid="<uid>")


def managed(value: Any) -> dict[str, Any]:
    """The names of all fields, as an API server writes them."""
    return {f"f:{name}": managed(each) for name, each in value.items()} if isinstance(value, dict) else {}


# Who asks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, from before the connection is opened for it, if it is, to the last byte of the answer."""

    seconds: float
    is_reused: bool
    answer: bytes

    @property
    def code(self) -> int | str:
        """200 if the pod was admitted, or that of the denial; or what came instead of either."""
        head, _, body = self.answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            return self.answer.decode()
        response = json.loads(body)["response"]
        return 200 if response["allowed"] else int(response["status"]["code"])


class Client:
    """Asks one after the other."""

    def __init__(self, webhook: Webhook, *, is_kept: bool) -> None:
        self._webhook, self._is_kept = webhook, is_kept
        self._connection: ssl.SSLSocket | None = None

    def ask(self, request: bytes) -> Exchange:
        began = time.perf_counter()
        is_reused = self._connection is not None
        is_last = not self._is_kept
        try:
            connection = self._connection = self._connection or self._connect()
            connection.sendall(request)
            answer = receive(connection)
            is_last = is_last or bool(_IS_LAST.search(answer))
        except OSError as error:
            answer, is_last = repr(error).encode(), True
        seconds = time.perf_counter() - began
        if is_last:
            self.close()
        return Exchange(seconds, is_reused, answer)

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self._webhook.host, self._webhook.port), PATIENCE_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._webhook.tls.wrap_socket(plain, server_hostname=self._webhook.host)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


def receive(connection: ssl.SSLSocket) -> bytes:
    """One answer. Raises OSError if it does not come."""
    answer = b""
    while more := connection.recv(LARGEST_RECORD_BYTES):
        answer += more
        head, end, body = answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and length and len(body) >= int(length[1]):
            return answer
    raise ConnectionResetError("closed in the midst of an answer")


@dataclass(frozen=True)
class Batch:
    """Reviews that were asked about together; how long that took, and what CPU time whom."""

    exchanges: Sequence[Exchange]
    seconds: float
    cpu_seconds: Mapping[str, float]

    @cached_property
    def codes(self) -> Counter[int | str]:
        return Counter(each.code for each in self.exchanges)

    @property
    def rate(self) -> float:
        """Admitted per second."""
        return self.codes[ADMITTED] / self.seconds

    @property
    def reused(self) -> float:
        """The share that found a connection open."""
        return mean(each.is_reused for each in self.exchanges)

    @property
    def longest(self) -> float:
        """In seconds."""
        return max(each.seconds for each in self.exchanges)

    def percentile(self, percent: int) -> float:
        """In seconds."""
        return quantiles((each.seconds for each in self.exchanges), n=100)[percent - 1]

    def prompt(self) -> "Batch":
        """Without those answers that waited for a node which had fallen silent."""
        return replace(self, exchanges=[each for each in self.exchanges if each.seconds < WAITED_SECONDS])


Batches = Mapping[tuple[Case, int, bool], list[Batch]]


class Asker:
    """Asks a webhook for batches of pods."""

    def __init__(self, rng: Random, asked: Scene) -> None:
        self._rng, self._asked = rng, asked

    def ask(
        self,
        keys: Iterable[str],
        length: int = GREATEST_LENGTH,
        *,
        clients: int,
        is_kept: bool = True,
        at_start: Callable[[], object] = lambda: None,
    ) -> Batch:
        """For a pod for each of these keys. Before that every client asks for one that does not count."""
        first = iter(requests(self._rng, ["first"] * clients, GREATEST_LENGTH, is_kept=is_kept))
        rest = iter(requests(self._rng, keys, length, is_kept=is_kept))
        seen: list[dict[str, float]] = []

        def look() -> None:
            seen.append(self._spent())
            if len(seen) == 1:
                at_start()

        barrier = Barrier(clients, look, timeout=2 * PATIENCE_SECONDS)

        def take_part(_: int) -> list[Exchange]:
            with closing(Client(self._asked.webhook, is_kept=is_kept)) as client:
                client.ask(next(first))
                barrier.wait()
                exchanges = [client.ask(request) for request in rest]
                barrier.wait()
                return exchanges

        with ThreadPoolExecutor(clients) as threads:
            exchanges = [each for part in threads.map(take_part, range(clients)) for each in part]
        began, ended = seen
        cpu_seconds = {name: ended[name] - began[name] for name in began}
        return Batch(exchanges, cpu_seconds.pop("clock"), cpu_seconds)

    def _spent(self) -> dict[str, float]:
        return {
            "clock": time.perf_counter(),
            "webhook": cpu_seconds(self._asked.webhook.workers()),
            "nodes": cpu_seconds(node.pid for node in self._asked.nodes if node.running),
            "clients": time.process_time(),
        }


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes have spent so far: proc(5)."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


# What is found --------------------------------------------------------------------------------------------


def measure(report: Report) -> None:
    """All cases, contention for one semaphore, and what it costs that nodes are away."""
    rng = Random(report.seed)
    with scene() as running, running_nothing() as nothing:
        asker = Asker(rng, running)
        asker.ask(Case.ROTATING.keys(""), clients=USUAL_CLIENTS)  # connections to nodes, scripts, these very semaphores
        measure_cases(report, rng, asker, Asker(rng, Scene([], nothing)))
        measure_contention(report, asker)
    # Workers that know but few semaphores: when a node comes back they look after all that they know.
    with scene() as running:
        measure_faults(report, Asker(rng, running), running.nodes)


def measure_cases(report: Report, rng: Random, asker: Asker, nothing: Asker) -> None:
    batches: Batches = {each: [] for each in product(Case, CLIENTS, WAYS)}
    one_more: Counter[int | str] = Counter()
    ways = list(product(CLIENTS, WAYS))
    for number in range(report.times(ROUNDS)):
        for clients, is_kept in rng.sample(ways, len(ways)):
            for case in rng.sample(list(Case), len(Case)):
                asked = nothing if case is Case.NOTHING else asker
                key = f"{case.name}-{number}-{clients}-{is_kept}"
                batch = asked.ask(case.keys(key), case.length, clients=clients, is_kept=is_kept)
                batches[case, clients, is_kept].append(batch)
                if case is Case.JUST_ENOUGH:
                    one_more += asker.ask([key], case.length, clients=1).codes
    for case in Case:
        tell_case(report, case, batches)
    tell_others(report, f"{Case.JUST_ENOUGH}: one more, not refused as full", one_more, than=FULL)
    tell_cpu(report, batches)


def tell_case(report: Report, case: Case, batches: Batches) -> None:
    those = {(clients, is_kept): batches[case, clients, is_kept] for clients, is_kept in product(CLIENTS, WAYS)}
    codes = codes_of(batch for rounds in those.values() for batch in rounds)
    tell_others(report, f"{case}: not admitted", codes, than=ADMITTED)
    reused = mean(batch.reused for clients in CLIENTS for batch in those[clients, True])
    report.add(PART, f"{case}, {WAYS[True]}: on a connection that was open", reused, "of all")
    for (clients, is_kept), rounds in those.items():
        what = f"{case}, {at_once(clients)}, {WAYS[is_kept]}"
        for percent in (50, 90, 99):
            report.add(PART, f"{what}: p{percent}", 1000 * median(each.percentile(percent) for each in rounds), MS)
        report.add(PART, f"{what}: admitted", median(each.rate for each in rounds), PER_SECOND)
        if case is not Case.NOTHING and clients in COMPARED_CLIENTS:
            pairs = zip(rounds, batches[Case.NOTHING, clients, is_kept], strict=True)
            ratio = median(ours.rate / theirs.rate for ours, theirs in pairs)
            report.add(PART, f"{what}: admitted", ratio, "of what doing nothing admits")


def tell_cpu(report: Report, batches: Batches) -> None:
    """Who spends what on a thousand reviews; and of all the share of those who ask, who are not what is measured."""
    for case, is_kept in product((Case.NEW, Case.ROTATING, Case.NOTHING), WAYS):
        rounds = batches[case, USUAL_CLIENTS, is_kept]
        for who in rounds[0].cpu_seconds:
            seconds = sum(batch.cpu_seconds[who] for batch in rounds) / (len(rounds) * REVIEWS)
            what = f"{case}, {at_once(USUAL_CLIENTS)}, {WAYS[is_kept]}: CPU, {who}"
            report.add(PART, what, 1000 * seconds, "s per 1,000 (of this machine)")
    for is_kept, way in WAYS.items():
        spent = [batch.cpu_seconds for (_, _, kept), rounds in batches.items() for batch in rounds if kept is is_kept]
        share = sum(each["clients"] for each in spent) / sum(sum(each.values()) for each in spent)
        report.add(PART, f"all of these, {way}: CPU, clients", share, "of the CPU of all")


def measure_contention(report: Report, asker: Asker) -> None:
    for length, is_kept in product(CONTENDED_LENGTHS, WAYS):
        keys = [f"contended-{length}-{is_kept}"] * CONTENDED_REVIEWS
        codes = asker.ask(keys, length, clients=CONTENDERS, is_kept=is_kept).codes
        what = f"length {length}, {at_once(CONTENDERS)}, {WAYS[is_kept]}"
        unit = f"of {CONTENDED_REVIEWS}"
        report.add(PART, f"{what}: admitted", codes.pop(ADMITTED, 0), unit, at_least=length, at_most=length)
        tell_others(report, f"{what}: refused, not as full", codes, than=FULL)


def tell_others(report: Report, what: str, codes: Counter[int | str], *, than: int) -> None:
    """How many answers were not what all of them should be."""
    others = {code: times for code, times in codes.items() if code != than}
    report.add(PART, what, sum(others.values()), f"of {codes.total():,}", at_most=0)
    if others:
        report.note(f"instead: {others}")


def codes_of(batches: Iterable[Batch]) -> Counter[int | str]:
    return sum((batch.codes for batch in batches), Counter[int | str]())


def at_once(clients: int) -> str:
    return f"{clients} client{'s' * (clients > 1)}"


# While nodes are away -------------------------------------------------------------------------------------


def measure_faults(report: Report, asker: Asker, nodes: Sequence[RedisNode]) -> None:
    """Each node is hit as a batch begins, in between two batches with all nodes well, which it is compared to."""
    names = (f"key-{number}" for number in count())

    def ask(reviews: int, *away: RedisNode, fault: str = "") -> Batch:
        with ExitStack() as stack:
            return asker.ask(
                [next(names)] * reviews,
                clients=FAULT_CLIENTS,
                at_start=lambda: away and stack.enter_context(failing(away, *FAULTS[fault])),
            )

    ask(FAULT_REVIEWS)  # connections to nodes, scripts
    for fault in FAULTS:
        well, hit = [ask(FAULT_REVIEWS)], []
        for node in nodes:
            hit.append(ask(FAULT_REVIEWS, node, fault=fault))
            await_well(asker, nodes, next(names))
            well.append(ask(FAULT_REVIEWS))
        tell_fault(report, f"one node {fault}", hit, list(pairwise(well)))
    for fault in FAULTS:
        denied = ask(REVIEWS_WITHOUT_MAJORITY, *nodes[:2], fault=fault)
        await_well(asker, nodes, next(names))
        tell_others(report, f"two nodes {fault}: not denied as unavailable", denied.codes, than=UNAVAILABLE)
        report.add(PART, f"two nodes {fault}: the longest", denied.longest, S)


def tell_fault(report: Report, what: str, hit: Sequence[Batch], beside: Sequence[tuple[Batch, Batch]]) -> None:
    prompt = [batch.prompt() for batch in hit]
    for percent, at_most in ((50, 1.2), (99, 2)):
        wells = [mean(batch.percentile(percent) for batch in pair) for pair in beside]
        ratio = median(batch.percentile(percent) / well for batch, well in zip(prompt, wells, strict=True))
        report.add(PART, f"{what}: p{percent}", ratio, "of that with all nodes well", at_most=at_most)
    tell_others(report, f"{what}: not admitted", codes_of(hit), than=ADMITTED)
    waited = max(len(batch.exchanges) - len(rest.exchanges) for batch, rest in zip(hit, prompt, strict=True))
    report.add(PART, f"{what}: waited for it", waited, f"of {FAULT_REVIEWS} at most")
    report.add(PART, f"{what}: the longest", max(batch.longest for batch in hit), S)


def await_well(asker: Asker, nodes: Sequence[RedisNode], name: str) -> None:
    """Until all nodes hold the same, what is asked for just now included: all workers use all of them again.

    With each admission a worker looks after one of the semaphores that it knows, so that this ends here as well.
    """

    def is_well() -> bool:
        asker.ask([name] * SETTLING_REVIEWS, clients=FAULT_CLIENTS, is_kept=False)
        return len({size(node) for node in nodes}) == 1

    wait_for(is_well, "all nodes to be used again")


def size(node: RedisNode) -> int:
    with node.client() as client:
        return int(client.dbsize())
