"""The API server, as far as the reconciler needs it: pods with our sidecar, their gates, labels and events.

The only place that knows lightkube, which finds the API server and logs in. It costs little memory and disk, and is
kept up with every release of Kubernetes. What is asked, and how the answers are read, stands here: lightkube decodes
all of a pod, and one that it cannot decode ends the list or the watch of all.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
from lightkube import ApiError, KubeConfig
from lightkube.config.client_adapter import Client, ConnectionParams, verify_cluster
from lightkube.core.exceptions import ConfigError
from lightkube.models.meta_v1 import Status

from app.reconciler.pods import Member, Object, Reader

T = TypeVar("T")

COMPONENT = "at-least-semaphore-pod-hook"
PAGE = 500  # pods that are listed at once
# The API server ends a watch after this long, so that one that is quiet for longer is dead.
WATCH_SECONDS = 30
SILENCE_SECONDS = 40.0
# A watch that ends sooner is none: something on the way to the API server does not let it last.
SHORTEST_WATCH_SECONDS = 1.0
REQUEST_SECONDS = 10.0
MOST_LEFT_OUT = 1000  # pods that cannot be read of which it is said
_LONGEST_NAME = 253
_ALL_PODS = "api/v1/pods"
_JSON_PATCH, _MERGE_PATCH = "application/json-patch+json", "application/merge-patch+json"

# What may go wrong with a request: it is refused, or the API server is not there, or it answers with something else, or
# there is nothing to log in with: a file that is gone.
Failures = (httpx2.HTTPError, httpx2.InvalidURL, ConfigError, OSError, KeyError, TypeError, ValueError)


class CannotConnect(Exception):  # noqa: N818  it says what is wrong
    """There is no configuration by which to reach an API server."""


class Api:
    """A connection to the API server. Its methods raise `Failures`."""

    def __init__(self, reader: Reader, on_unreadable: Callable[[str], None]) -> None:
        """By the service account of the pod that this runs in or, elsewhere, by KUBECONFIG. Raises CannotConnect.

        A pod that cannot be read is left out, of which `on_unreadable` is told once.
        """
        self._reader, self._on_unreadable = reader, on_unreadable
        self._labels = f"{reader.selector}=true"
        self._left_out: set[str] = set()
        self._client = _connect()
        self.heard_at = float("-inf")  # when it last told of the pods that are watched, in monotonic seconds

    def close(self) -> None:
        self._client.close()

    def members(self, namespace: str = "*") -> tuple[dict[str, Member], str]:
        """All pods with our sidecar and label by their uids, and the version of the list."""
        found: dict[str, Member] = {}
        version = ""
        for page in self._pages(namespace, {"labelSelector": self._labels}):
            self._note()
            version = page.metadata.resource_version
            found |= {member.uid: member for pod in page.items if (member := self._told_by(self._reader.read, pod))}
        return found, version

    def tokens(self, namespace: str) -> set[str]:
        """Those of all pods with our sidecar, whoever made it, also of such as somebody took our label from."""
        pods = (pod for page in self._pages(namespace, {}) for pod in page.items)
        return {token for pod in pods if (token := self._told_by(self._reader.token, pod))}

    def changes(self, version: str) -> Iterator[tuple[str, str, Member | None]]:
        """What becomes of pods after that version, without end: uid, kind of change, the pod if it has our sidecar."""
        while True:
            began = time.monotonic()
            for kind, pod in self._watch(version):
                version = pod.metadata.resource_version
                yield pod.metadata.uid, kind, self._told_by(self._reader.read, pod)
            if time.monotonic() - began < SHORTEST_WATCH_SECONDS:
                raise httpx2.RemoteProtocolError("a watch ended as soon as it began")

    def member(self, namespace: str, name: str) -> Member | None:
        """One pod as it is now; None if it is gone, or has not our sidecar."""
        try:
            pod = _decoded(self._ask("GET", _path(namespace, "pods", name)), _Pod)
        except ApiError as error:
            if error.status.code == httpx2.codes.NOT_FOUND:
                return None
            raise
        return self._told_by(self._reader.read, pod)

    def lift_gate(self, member: Member) -> None:
        """Take our gate from the pod, if it is the very one and has no other gate."""
        gates = "/spec/schedulingGates"
        steps = [
            {"op": "test", "path": "/metadata/uid", "value": member.uid},
            {"op": "test", "path": gates, "value": [{"name": self._reader.gate}]},
            {"op": "remove", "path": gates},
        ]
        self._patch(_path(member.namespace, "pods", member.name), steps, _JSON_PATCH)

    def mark(self, member: Member, is_marked: bool) -> None:
        """Label the pod as one that has waited too long, or take the label away."""
        labels = {self._reader.mark: "true" if is_marked else None}
        change = {"metadata": {"uid": member.uid, "labels": labels}}
        self._patch(_path(member.namespace, "pods", member.name), change, _MERGE_PATCH)

    def tell(self, member: Member, kind: str, reason: str, message: str, count: int) -> None:
        """An event on the pod, for the `count`-th time."""
        name = event_name(member, reason)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": member.namespace,
            "name": member.name,
            "uid": member.uid,
        }
        event = {
            "metadata": {"name": name, "namespace": member.namespace},
            "involvedObject": pod,
            "type": kind,
            "reason": reason,
            "message": message,
            "count": count,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
        }
        try:
            self._ask("POST", _path(member.namespace, "events"), json=event)
        except ApiError as error:
            if error.status.code != httpx2.codes.CONFLICT:
                raise
            again = {"message": message, "count": count, "lastTimestamp": now}
            self._patch(_path(member.namespace, "events", name), again, _MERGE_PATCH)

    def _pages(self, namespace: str, selection: Mapping[str, str]) -> Iterator["_Page"]:
        """A list of pods, so many at a time."""
        path = _ALL_PODS if namespace == "*" else _path(namespace, "pods")
        params = {**selection, "limit": str(PAGE)}
        while True:
            page = _decoded(self._ask("GET", path, params=params), _Page)
            yield page
            if not page.metadata.continue_:
                return
            params["continue"] = page.metadata.continue_

    def _watch(self, version: str) -> Iterator[tuple[str, "_Pod"]]:
        """What becomes of pods after that version, until the API server ends it: kind of change, and pod."""
        params = {
            "watch": "true",
            "labelSelector": self._labels,
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = httpx2.Timeout(REQUEST_SECONDS, read=SILENCE_SECONDS)
        # However it ends, it gives its connection back.
        with self._client.stream("GET", _ALL_PODS, params=params, timeout=timeout) as response:
            _check(response)
            self._note()
            for line in _lines(response.iter_bytes()):
                event = _decoded(line, _Event)
                if event.type == "ERROR":
                    raise ApiError(status=msgspec.json.decode(event.object, type=Status))
                pod = _decoded(bytes(event.object), _Pod)
                self._note()
                yield event.type, pod

    def _patch(self, path: str, change: object, kind: str) -> None:
        self._ask("PATCH", path, json=change, headers={"Content-Type": kind})

    def _ask(self, method: str, path: str, **more: Any) -> bytes:
        """The body of the answer, which is no refusal."""
        response = self._client.request(method, path, **more)
        _check(response)
        return response.content

    def _note(self) -> None:
        self.heard_at = time.monotonic()

    def _told_by(self, read: Callable[[Object], T], pod: "_Pod") -> T | None:
        """What a reader makes of the pod, if it can."""
        try:
            return read(msgspec.to_builtins(pod))
        except Exception as error:  # noqa: BLE001  whatever its author has made of it, the others are read
            self._leave_out(pod.metadata, f"{type(error).__name__}: {error}")
            return None

    def _leave_out(self, pod: "_Metadata", why: str) -> None:
        if pod.uid not in self._left_out and len(self._left_out) < MOST_LEFT_OUT:
            self._left_out.add(pod.uid)
            self._on_unreadable(f"pod {pod.namespace}/{pod.name} cannot be read: {why}")


def event_name(member: Member, reason: str) -> str:
    """Of its own for each pod and reason, so that replicas write one event, not one each."""
    # A part of a name must end in a letter or digit, wherever it is cut off.
    start = member.name[: _LONGEST_NAME - 60].rstrip("-.")
    return f"{start}.{member.uid}.{reason.lower()}"


def reason_of(error: Exception) -> str:
    """What went wrong, for a log line."""
    if isinstance(error, ApiError):
        # Where it quotes a pod it ends: that has a token and a password.
        message = (error.status.message or "").partition("{")[0]
        return f"{error.status.code} {error.status.reason}: {message}"
    return str(error) or type(error).__name__


def _connect() -> httpx2.Client:
    try:
        config = KubeConfig.from_env().get()
        if config is None or config.user is None:
            raise ConfigError("its current context names no user")
        # A transport that is named is one without proxies, whatever the environment says of them.
        transport = httpx2.HTTPTransport(verify=verify_cluster(config.cluster, config.user, config.abs_file))
        return Client(config, ConnectionParams(timeout=httpx2.Timeout(REQUEST_SECONDS), transport=transport))
    except Exception as error:  # whatever stands in that file
        why = reason_of(error)
        raise CannotConnect(f"neither a service account nor KUBECONFIG leads to an API server: {why}") from error


def _path(namespace: str, *parts: str) -> str:
    return "/".join(("api/v1/namespaces", *(quote(part, safe="") for part in (namespace, *parts))))


def _check(response: httpx2.Response) -> None:
    """Raises ApiError if it is the API server that refuses, and HTTPError if it is something before it."""
    if response.is_error and response.headers.get("Content-Type") == "application/json":
        response.read()
        raise ApiError(request=response.request, response=response)
    response.raise_for_status()


# What is read of answers, and nothing else is kept --------------------------------------------------------------


class _Part(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Of an object; what is not named here is skipped."""


class _ListMetadata(_Part):
    resource_version: str
    continue_: str | None = msgspec.field(name="continue", default=None)


class _Metadata(_Part):
    name: str
    namespace: str
    uid: str
    resource_version: str
    creation_timestamp: str
    deletion_timestamp: Any = None
    labels: Any = None
    annotations: Any = None
    owner_references: Any = None


class _Container(_Part):
    name: str
    env: Any = None


class _Spec(_Part):
    containers: list[_Container]
    init_containers: list[_Container] | None = None
    scheduling_gates: Any = None


class _ContainerStatus(_Part):
    name: str
    started: Any = None
    state: Any = None


class _Status(_Part):
    phase: Any = None
    init_container_statuses: list[_ContainerStatus] | None = None
    container_statuses: list[_ContainerStatus] | None = None


class _Pod(_Part):
    metadata: _Metadata
    spec: _Spec
    status: _Status | None = None


class _Page(_Part):
    metadata: _ListMetadata
    items: list[_Pod]


class _Event(_Part):
    type: str
    object: msgspec.Raw


# Who may write a pod may also write its managed fields, the only part of it without a form that the API server checks:
# nested ten thousand deep, or with half of a character.
_MANAGED_FIELDS = b'"managedFields":['
_BRACKET_OR_STRING = re.compile(rb'[\[\]{}]|"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def _decoded(data: bytes, kind: type[T]) -> T:
    """An answer of the API server, or a part of it. Raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (RecursionError, msgspec.DecodeError):  # also what is skipped has to be well-formed
        return msgspec.json.decode(_without_managed_fields(data), type=kind)


def _without_managed_fields(data: bytes) -> bytes:
    """The same JSON, however deep they are. Within a string it would be written in another way: with \\"."""
    kept, at = [], 0
    while (start := data.find(_MANAGED_FIELDS, at)) >= 0:
        kept.append(data[at:start] + _MANAGED_FIELDS + b"]")
        at = _end_of_array(data, start + len(_MANAGED_FIELDS) - 1)
    return b"".join((*kept, data[at:]))


def _end_of_array(data: bytes, start: int) -> int:
    """Where the array that begins there has ended."""
    depth = 0
    for found in _BRACKET_OR_STRING.finditer(data, start):
        match found[0]:
            case b"[" | b"{":
                depth += 1
            case b"]" | b"}":
                depth -= 1
        if not depth:
            return found.end()
    return len(data)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Those that are complete. What ends a line in a text, such as U+0085, is nothing special in JSON."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
