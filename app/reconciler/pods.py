"""What there is to know of a pod that has our sidecar, and in which order pods wait.

Knows the shape of a pod as the API server tells of it, decoded JSON. Knows neither the API server nor a node.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from app.admission import annotations
from app.admission.annotations import InvalidAnnotation, SlotRequest
from app.admission.holder import holder_of
from app.admission.injection import container_name, gate_name
from app.admission.seal import is_sealed
from app.semaphore.model import Claim
from sidecar.protocol import Variable

Object = Mapping[str, Any]

log = logging.getLogger(__name__)

MOST_TOLD = 1000  # pods without a seal of ours that the log names


class Stage(Enum):
    """How far a pod has come."""

    WAITING = "waiting"  # our scheduling gate holds it back
    STARTING = "starting"  # its sidecar has not started: no worker node, images to pull, or no lease
    RUNNING = "running"  # its sidecar has started
    ENDING = "ending"  # its sidecar has ended, if it is not about to start again
    STOPPED = "stopped"  # it has succeeded or failed, and not every container is known to have ended
    OVER = "over"  # the same, and every container has ended


@dataclass(frozen=True, slots=True)
class Member:
    """A pod with our sidecar, as its semaphore's reconciler needs to know it."""

    namespace: str
    name: str
    uid: str
    created: float  # seconds since the epoch, by the API server's clock
    stage: Stage
    is_leaving: bool  # somebody deletes it
    has_other_gates: bool
    is_marked: bool  # labelled as having waited too long
    semaphore: str  # what its sidecar was told; pods cannot change that
    token: str
    lease_seconds: int  # the same, for which it renews, whatever its annotation has become
    request: SlotRequest | None  # what its annotations ask for now; None: for nothing, or for what cannot be
    problem: str  # why there is no request
    identity: Object  # of its metadata what a lease tells of its holder

    @property
    def length(self) -> int:
        """Of its semaphore, as it asks now; 0 admits nobody."""
        return self.request.length if self.request else 0

    @property
    def order(self) -> tuple[float, str]:
        """Oldest first."""
        return self.created, self.uid

    def has_waited_too_long(self, now: float) -> bool:
        """Whether its `max-wait` has passed, at an instant in seconds since the epoch."""
        limit = self.request.max_wait_seconds if self.request else None
        return self.stage is Stage.WAITING and limit is not None and now - self.created >= limit

    def is_eligible(self, now: float) -> bool:
        """Whether a slot would let it in."""
        return (
            self.request is not None
            and not self.is_leaving
            and not (self.stage is Stage.WAITING and self.has_other_gates)
            and not self.has_waited_too_long(now)
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads pods, by the names that an installation gives to what is ours."""

    variant: str
    secrets: tuple[bytes, ...] = field(repr=False)  # under which the webhook seals what it tells sidecars
    _told: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def selector(self) -> str:
        """The label of pods that have our sidecar."""
        return f"{annotations.group(self.variant)}/holder"

    @property
    def mark(self) -> str:
        """The label of pods that have waited too long."""
        return f"{annotations.group(self.variant)}/waited-too-long"

    @property
    def gate(self) -> str:
        return gate_name(self.variant)

    def read(self, pod: Object) -> Member | None:
        """The pod, if it has a sidecar that the webhook made. It may be anything that its creator could make of it."""
        metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
        told = self._sidecar_env(spec)
        token, semaphore = told.get(Variable.TOKEN, ""), told.get(Variable.SEMAPHORE, "")
        # A copy of a sidecar, in another namespace, is not that namespace's.
        if not token or not semaphore.startswith(f"{metadata['namespace']}/"):
            return None
        if not self._is_ours(told):
            self._tell_of(metadata)
            return None
        gates = [gate["name"] for gate in spec.get("schedulingGates") or []]
        request, problem = self._request(metadata, semaphore)
        return Member(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            created=datetime.fromisoformat(metadata["creationTimestamp"]).timestamp(),
            stage=Stage.WAITING if self.gate in gates else _stage(status, container_name(self.variant)),
            is_leaving=bool(metadata.get("deletionTimestamp")),
            has_other_gates=any(gate != self.gate for gate in gates),
            is_marked=self.mark in (metadata.get("labels") or {}),
            semaphore=semaphore,
            token=token,
            lease_seconds=int(told[Variable.EXPIRATION]),
            request=request,
            problem=problem,
            identity={"name": metadata["name"], "ownerReferences": metadata.get("ownerReferences") or []},
        )

    def token(self, pod: Object) -> str:
        """What the pod's sidecar takes for its token, whoever made it; empty if there is none."""
        return self._sidecar_env(pod["spec"]).get(Variable.TOKEN, "")

    def _is_ours(self, told: Mapping[str, str]) -> bool:
        return is_sealed(
            told.get(Variable.SEAL, ""),
            self.secrets,
            semaphore=told[Variable.SEMAPHORE],
            token=told[Variable.TOKEN],
            expiration_seconds=told.get(Variable.EXPIRATION, ""),
        )

    def _tell_of(self, metadata: Object) -> None:
        """Once: it may be a forgery, or the webhook has another password."""
        if metadata["uid"] not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(metadata["uid"])
            pod = f"{metadata['namespace']}/{metadata['name']}"
            log.warning("pod %s gets no slot: its sidecar was not made by a webhook with this REDIS_PASSWORD", pod)

    def _sidecar_env(self, spec: Object) -> dict[str, str]:
        """What our container has in its environment."""
        ours = container_name(self.variant)
        containers = [*(spec.get("initContainers") or []), *spec["containers"]]
        env = next((each.get("env") or [] for each in containers if each["name"] == ours), [])
        return {each["name"]: each.get("value") or "" for each in env}

    def _request(self, metadata: Object, semaphore: str) -> tuple[SlotRequest | None, str]:
        group = annotations.group(self.variant)
        try:
            request = annotations.parse_slot_request(metadata.get("annotations") or {}, group)
        except InvalidAnnotation as error:
            return None, str(error)
        if request is None:
            return None, f"{group}/at-least-semaphore-pod is not 'true' any more"
        if f"{metadata['namespace']}/{request.key}" != semaphore:
            return None, f"{group}/key is {request.key!r}, which is not that of {semaphore}, which its sidecar keeps"
        return request, ""


def _stage(status: Object, ours: str) -> Stage:
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    if status.get("phase") in ("Succeeded", "Failed"):
        # Of a pod that its worker node has refused, or on one that is lost, nobody says what runs.
        return Stage.OVER if statuses and all(map(_has_ended, statuses)) else Stage.STOPPED
    sidecar = next((each for each in statuses if each["name"] == ours), None)
    if sidecar and _has_ended(sidecar):
        return Stage.ENDING
    return Stage.RUNNING if sidecar and sidecar.get("started") else Stage.STARTING


def _has_ended(container: Object) -> bool:
    return bool((container.get("state") or {}).get("terminated"))


def claim_of(member: Member, now: float, reservation_seconds: int) -> Claim:
    """What to ask the nodes for. Raises ValueError if the pod asks for nothing."""
    request = member.request
    if request is None:
        raise ValueError(member.problem)
    return Claim(
        semaphore=member.semaphore,
        length=request.length,
        reservation_ms=reservation_seconds * 1000,
        lease_ms=member.lease_seconds * 1000,
        holder=holder_of({"metadata": member.identity}, int(now), member.lease_seconds),
        reuses_token=True,
    )


def queues(members: Iterable[Member], now: float) -> dict[str, list[Member]]:
    """Who waits for a slot of which semaphore, oldest first, of those whom a slot would let in."""
    waiting: dict[str, list[Member]] = {}
    for member in sorted((each for each in members if each.is_eligible(now)), key=lambda each: each.order):
        waiting.setdefault(member.semaphore, []).append(member)
    return waiting
