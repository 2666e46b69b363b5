"""The real reconciler, as a process of its own, and pods that wait for it."""

import http.client
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from prometheus_client.parser import text_string_to_metric_families

from app.admission.annotations import GROUP
from sidecar.protocol import Keys, Variable, majority
from tests.harness.control_plane import Object, paced
from tests.harness.nodes import RedisNode
from tests.harness.sidecars import Sidecar
from tests.harness.waiting import free_port
from tests.harness.webhook import annotations_asking

COMMAND = ("python", "-m", "app.reconciler")
SIDECAR = "at-least-semaphore-sidecar"
GATE = f"{GROUP}/slot"
WAITED_TOO_LONG = f"{GROUP}/waited-too-long"
# What the manifests let it do.
RULES: Sequence[Mapping[str, Sequence[str]]] = (
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
)


class Reconciler(Sidecar):
    """One process, which says what it does in the same form as a sidecar."""

    def __init__(self, environ: Mapping[str, str], kubeconfig: Path) -> None:
        self.port = free_port()
        super().__init__(COMMAND, {"KUBECONFIG": str(kubeconfig), "METRICS_PORT": str(self.port), **environ})

    def get(self, path: str) -> tuple[int, str]:
        """Raises OSError while it does not listen."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def is_ready(self) -> bool:
        assert self.running, f"the reconciler ended:\n{self.output}"
        with suppress(OSError):
            return self.get("/readyz")[0] == http.HTTPStatus.OK
        return False

    def await_ready(self) -> None:
        paced(self.is_ready, "the reconciler to be ready")

    def metrics(self) -> str:
        return self.get("/metrics")[1]

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """What its page has of this name, after `at_least_semaphore_`: the values of the labels → the sample."""
        return {
            tuple(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == f"at_least_semaphore_{name}"
        }

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)


@contextmanager
def reconciler(environ: Mapping[str, str], kubeconfig: Path) -> Iterator[Reconciler]:
    """A running one, which need not be ready; gone at the end whatever happened to it."""
    with closing(Reconciler(environ, kubeconfig)) as process:
        yield process


def waiting_pod(name: str, key: str = "reports-db", length: int = 1, expiration: int = 60, **more: str) -> Object:
    """A bare pod that waits for a slot; `more` are further annotations of our group, with _ for -."""
    return direct_pod(name, key, length, expiration, when_full="wait", **more)


def direct_pod(name: str, key: str = "reports-db", length: int = 1, expiration: int = 60, **more: str) -> Object:
    """One that is given its slot when it is created, or is refused."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations_asking(key, length, expiration, **more)},
        "spec": {"containers": [{"name": "app", "image": "registry.example/reports:1"}]},
    }


def gates(pod: Object) -> list[str]:
    return [gate["name"] for gate in pod["spec"].get("schedulingGates", [])]


def waits(pod: Object) -> bool:
    """Whether our gate is still there."""
    return GATE in gates(pod)


def sidecar_of(pod: Object) -> Object:
    """The injected container."""
    found: Object = next(each for each in pod["spec"]["initContainers"] if each["name"] == SIDECAR)
    return found


def environ_of(pod: Object) -> dict[str, str]:
    """That of the injected container, as the kubelet would give it."""
    return {each["name"]: each["value"].replace("$$", "$") for each in sidecar_of(pod)["env"]}


def token_of(pod: Object) -> str:
    return environ_of(pod)[Variable.TOKEN]


def states(pod: Object, **states: Any) -> Object:
    """The status fields for a kubelet to say that containers are in these states, ours by the name of `sidecar`."""

    def status(name: str, state: str) -> Object:
        told = {"running": {"startedAt": "2024-01-01T00:00:00Z"}, "terminated": {"exitCode": 0}, "waiting": {}}[state]
        is_up = state == "running"
        return {
            "name": name,
            "image": "registry.example/reports:1",
            "imageID": "",
            "restartCount": 0,
            "ready": is_up,
            "started": is_up,
            "state": {state: told},
        }

    names = [each["name"] for each in pod["spec"]["containers"]]
    return {
        "initContainerStatuses": [status(SIDECAR, states["sidecar"])],
        "containerStatuses": [status(name, states.get(name, "waiting")) for name in names],
    }


# What the nodes have ---------------------------------------------------------------------------------------


def tokens_on(node: RedisNode, tokens: Sequence[str]) -> set[str]:
    """Which of these have a lease there, at one instant; none while the node is away."""
    if not tokens or not node.running:
        return set()
    with suppress(redis.RedisError), node.client() as client, client.pipeline(transaction=True) as asked:
        for token in tokens:
            asked.exists(Keys().lease(token))
        return {token for token, lives in zip(tokens, asked.execute(), strict=True) if lives}
    return set()


def held(nodes: Sequence[RedisNode], tokens: Sequence[str]) -> set[str]:
    """Which of these a majority of all nodes has a lease of.

    Nodes are read one after the other, and yet nobody is counted whose slot has gone to another meanwhile: of the two
    only one can have been on most of them when they were read.
    """
    on_each = [tokens_on(node, tokens) for node in nodes]
    return {token for token in tokens if sum(token in on for on in on_each) >= majority(len(nodes))}


def left_ms(node: RedisNode, token: str, *, reserved: bool = False) -> int:
    """How long the token's lease lives there, or its reservation; negative if there is none."""
    keys = Keys()
    with node.client() as client:
        return int(client.pttl(keys.reservation(token) if reserved else keys.lease(token)))
