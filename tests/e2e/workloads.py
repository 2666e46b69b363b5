"""What users create: pods that ask for slots, the controllers that own them, and what became of them."""

import subprocess
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sidecar.protocol import Variable
from tests.e2e.cluster import Cluster, Object, status_of
from tests.e2e.installation import APP_IMAGE, SIDECAR, Installation
from tests.harness.webhook import annotations_asking

APP = "app"
# Says when it starts, when it is asked to end, and when it has; the second takes it a second.
_APP = """\
trap 'echo ending; sleep 1; echo ended; exit 0' TERM
echo started
sleep infinity & wait
"""
# Takes no notice of being asked to end.
STUBBORN = "trap '' TERM; echo started; while :; do sleep 1; done"
_HARDENED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def annotations(key: str = "reports-db", length: int = 1, expiration: int = 30, **more: str) -> dict[str, str]:
    """Those of our group; `more` with _ for -."""
    return annotations_asking(key, length, expiration, **more)


def pod_spec(script: str = _APP, *, grace_seconds: int = 10, **more: Any) -> Object:
    """The spec of a pod with one app container that runs this script; `more` are further fields of it."""
    app = {
        "name": APP,
        "image": APP_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "securityContext": _HARDENED,
        "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"cpu": "500m", "memory": "32Mi"}},
    }
    return {"terminationGracePeriodSeconds": grace_seconds, "containers": [app], **more}


def pod(name: str, spec: Object | None = None, asked: Mapping[str, str] | None = None) -> Object:
    """A bare pod; it asks for a slot of length 1 unless `asked` says otherwise."""
    metadata = {"name": name, "annotations": annotations() if asked is None else asked}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec or pod_spec()}


def deployment(name: str, replicas: int, asked: Mapping[str, str], **spec: Any) -> Object:
    """A Deployment whose pods ask for slots; `spec` are further fields of its own."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels, "annotations": dict(asked)}, "spec": pod_spec()},
            **spec,
        },
    }


class Tenant:
    """A namespace, its pods, and the slots they hold."""

    def __init__(self, installation: Installation, name: str) -> None:
        self.installation, self.cluster, self.name = installation, installation.cluster, name

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return self.cluster.kubectl("--namespace", self.name, *arguments, text=text)

    def create(self, *objects: Object) -> None:
        """As a person would: by `kubectl apply`."""
        self.cluster.apply(*objects, options=("--namespace", self.name))

    def get(self, *arguments: str) -> Object:
        return self.cluster.get("--namespace", self.name, *arguments)

    def pods(self, *arguments: str) -> list[Object]:
        return self.cluster.items("--namespace", self.name, "pods", *arguments)

    def running(self) -> list[Object]:
        """The pods whose containers have all started, and that are not on their way out."""
        return [each for each in self.pods() if is_ready(each) and "deletionTimestamp" not in each["metadata"]]

    def wait_ready(self, name: str, seconds: float = 60) -> Object:
        """The pod, as soon as it is ready."""

        def found() -> Object | None:
            got = self.get("pod", name)
            return got if is_ready(got) else None

        got: Object = self.cluster.wait_for(found, f"the pod {name} to be ready", seconds)
        return got

    def held(self, key: str = "reports-db") -> set[str]:
        """The tokens that hold a slot of this namespace's semaphore."""
        with self.installation.nodes() as nodes:
            return nodes.held(f"{self.name}/{key}")

    def wait_held(self, count: int, key: str = "reports-db", seconds: float = 60) -> set[str]:
        """The tokens, as soon as there are so many."""
        held: set[str] = set()

        def as_many() -> bool:
            nonlocal held
            held = self.held(key)
            return len(held) == count

        self.cluster.wait_for(as_many, f"{count} slots of {self.name}/{key} to be held", seconds)
        return held

    def wait_renewed(self, token: str) -> None:
        """Until the token's lease has been renewed once more."""
        with self.installation.nodes() as nodes:
            left_ms = [nodes.left_ms(token)]

            def is_longer() -> bool:
                left_ms.append(nodes.left_ms(token))
                return left_ms[-1] > left_ms[-2]

            self.cluster.wait_for(is_longer, "the lease to be renewed", 30)

    def events(self, reason: str, name: str = "") -> list[str]:
        """What a person reads in `kubectl describe`, of all objects or of those of this name."""
        events = self._events(reason)
        return [each["message"] for each in events if name in ("", each["involvedObject"]["name"])]

    def count_events(self, reason: str) -> int:
        """How often that happened."""
        return sum(each.get("count") or 1 for each in self._events(reason))

    def _events(self, reason: str) -> list[Object]:
        return self.cluster.items("--namespace", self.name, "events", f"--field-selector=reason={reason}")

    def follow(self, pod_name: str, container: str) -> "Log":
        return Log(self.cluster, self.name, pod_name, container)


class Log:
    """What a container says, with the instant at which the node's runtime read it, until it has ended."""

    def __init__(self, cluster: Cluster, namespace: str, pod_name: str, container: str) -> None:
        self.name = f"{pod_name}/{container}"
        self._lines: list[str] = []
        self._cluster = cluster
        command = ("logs", "--follow", "--timestamps", f"--namespace={namespace}", pod_name, f"--container={container}")
        self._process = subprocess.Popen(
            cluster.kubectl_command(*command), env=cluster.environ, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            self._lines.extend(lines)

    def instant_of(self, part: str, seconds: float = 60) -> float:
        """When it first said this, in seconds since the epoch."""
        line = self._cluster.wait_for(
            lambda: next((line for line in list(self._lines) if part in line), None),
            f"{self.name} to say {part!r}",
            seconds,
        )
        return datetime.fromisoformat(line.split()[0][:26].rstrip("Z") + "+00:00").timestamp()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


def is_ready(pod: Object) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


def sidecar_of(pod: Object) -> Object | None:
    """The injected container."""
    spec = pod["spec"]
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    return next((each for each in containers if each["name"] == SIDECAR), None)


def token_of(pod: Object) -> str:
    """The token in the sidecar's environment."""
    sidecar = sidecar_of(pod)
    assert sidecar, f"the pod {pod['metadata']['name']} has no sidecar"
    return str(next(each["value"] for each in sidecar["env"] if each["name"] == Variable.TOKEN))


def started_at(pod: Object, container: str) -> str | None:
    """When it started, as text that can be compared; None when it has not."""
    started = status_of(pod, container).get("state", {}).get("running", {}).get("startedAt")
    return str(started) if started else None
