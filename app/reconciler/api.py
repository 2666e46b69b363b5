"""The API server, as far as the reconciler needs it: pods with our sidecar, their gates, labels and events.

The only place that knows lightkube. It was chosen for what it costs (30 MB of memory and 4 MB of disk, where the
official client takes 65 and 126) and for being kept up with every release of Kubernetes.
"""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx2
import msgspec
from lightkube import ApiError, Client, KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.core.client import LabelValue
from lightkube.core.exceptions import ConfigError
from lightkube.models.core_v1 import EventSource, ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, Pod
from lightkube.types import PatchType

from app.reconciler.pods import Member, Reader

COMPONENT = "at-least-semaphore-pod-hook"
PAGE = 500  # pods that are listed at once
# The API server ends a watch after this long, so that one that is quiet for longer is dead.
WATCH_SECONDS = 30
SILENCE_SECONDS = 40.0
REQUEST_SECONDS = 10.0
_LONGEST_NAME = 253

# What may go wrong with a request: it is refused, or the API server is not there, or it answers with something else.
Failures = (ApiError, httpx2.HTTPError, msgspec.DecodeError, KeyError, TypeError, ValueError)


class CannotConnect(Exception):  # noqa: N818  it says what is wrong
    """There is no configuration by which to reach an API server."""


class Api:
    """A connection to the API server. Its methods raise `Failures`."""

    def __init__(self, reader: Reader) -> None:
        """By the service account of the pod that this runs in or, elsewhere, by KUBECONFIG. Raises CannotConnect."""
        self._reader = reader
        self._labels: dict[str, LabelValue] = {reader.selector: "true"}
        try:
            config = KubeConfig.from_env().get()
            if config is None or config.user is None:
                raise CannotConnect("KUBECONFIG: its current context names no user")
            transport = _Transport(verify=verify_cluster(config.cluster, config.user, config.abs_file))
            self._client = Client(config, timeout=httpx2.Timeout(REQUEST_SECONDS), transport=transport)
        except (ConfigError, OSError) as error:
            raise CannotConnect(f"neither a service account nor KUBECONFIG leads to an API server: {error}") from error
        self._transport = transport

    @property
    def heard_at(self) -> float:
        """When it last answered, in monotonic seconds."""
        return self._transport.heard_at

    def members(self, namespace: str = "*") -> tuple[dict[str, Member], str]:
        """All pods with our sidecar and label by their uids, and the version of the list."""
        listed = self._client.list(Pod, namespace=namespace, labels=self._labels, chunk_size=PAGE)
        found = {member.uid: member for pod in listed if (member := self._read(pod))}
        return found, listed.resourceVersion

    def tokens(self, namespace: str) -> set[str]:
        """Those of all pods with our sidecar, also of such as somebody took our label from."""
        listed = self._client.list(Pod, namespace=namespace, chunk_size=PAGE)
        return {member.token for pod in listed if (member := self._read(pod))}

    def changes(self, version: str) -> Iterator[tuple[str, str, Member | None]]:
        """What becomes of pods after that version, without end: uid, kind of change, the pod if it has our sidecar."""
        watch = self._client.watch(
            Pod, namespace="*", labels=self._labels, server_timeout=WATCH_SECONDS, resource_version=version
        )
        for kind, pod in watch:
            self._transport.note()
            yield str(pod.metadata.uid if pod.metadata else ""), kind, self._read(pod)

    def member(self, namespace: str, name: str) -> Member | None:
        """One pod as it is now; None if it is gone, or has not our sidecar."""
        try:
            return self._read(self._client.get(Pod, name, namespace=namespace))
        except ApiError as error:
            if error.status.code == httpx2.codes.NOT_FOUND:
                return None
            raise

    def lift_gate(self, member: Member) -> None:
        """Take our gate from the pod, if it is the very one and has no other gate."""
        gates = "/spec/schedulingGates"
        steps = [
            {"op": "test", "path": "/metadata/uid", "value": member.uid},
            {"op": "test", "path": gates, "value": [{"name": self._reader.gate}]},
            {"op": "remove", "path": gates},
        ]
        self._client.patch(Pod, member.name, steps, namespace=member.namespace, patch_type=PatchType.JSON)

    def mark(self, member: Member, is_marked: bool) -> None:
        """Label the pod as one that has waited too long, or take the label away."""
        labels = {self._reader.mark: "true" if is_marked else None}
        patch = {"metadata": {"uid": member.uid, "labels": labels}}
        self._client.patch(Pod, member.name, patch, namespace=member.namespace, patch_type=PatchType.MERGE)

    def tell(self, member: Member, kind: str, reason: str, message: str, count: int) -> None:
        """An event on the pod, for the `count`-th time."""
        # Of a name of its own, so that replicas write one event, not one each.
        name = f"{member.name[: _LONGEST_NAME - 60]}.{member.uid}.{reason.lower()}"
        now = datetime.now(UTC)
        pod = ObjectReference(apiVersion="v1", kind="Pod", namespace=member.namespace, name=member.name, uid=member.uid)
        event = Event(
            metadata=ObjectMeta(name=name, namespace=member.namespace),
            involvedObject=pod,
            type=kind,
            reason=reason,
            message=message,
            count=count,
            firstTimestamp=now,
            lastTimestamp=now,
            source=EventSource(component=COMPONENT),
            reportingComponent=COMPONENT,
        )
        try:
            self._client.create(event)
        except ApiError as error:
            if error.status.code != httpx2.codes.CONFLICT:
                raise
            again: Mapping[str, Any] = {
                "message": message,
                "count": count,
                "lastTimestamp": now.isoformat(timespec="seconds"),
            }
            self._client.patch(Event, name, dict(again), namespace=member.namespace, patch_type=PatchType.MERGE)

    def _read(self, pod: Pod) -> Member | None:
        return self._reader.read(msgspec.to_builtins(pod))


class _Transport(httpx2.HTTPTransport):
    """Notes when the API server was heard, and gives up a watch that is silent, for which lightkube has no limit."""

    heard_at = float("-inf")

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.params.get("watch") == "true":
            request.extensions["timeout"]["read"] = SILENCE_SECONDS
        response = super().handle_request(request)
        self.note()
        return response

    def note(self) -> None:
        self.heard_at = time.monotonic()


def reason_of(error: Exception) -> str:
    """What went wrong, for a log line."""
    if isinstance(error, ApiError):
        return f"{error.status.code} {error.status.reason}: {error.status.message}"
    return str(error) or type(error).__name__
