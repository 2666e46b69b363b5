"""What is added to an admitted pod and taken from one that was not: JSON Patches (RFC 6902) as text.

Knows the shape of a pod, our container, label and scheduling gate. Knows neither how a slot is granted nor whether it
still is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonpatch import JsonPatch
from jsonpointer import escape

from app.admission.annotations import group
from app.admission.seal import seal_of
from sidecar.protocol import Mode, Variable

Pod = Mapping[str, Any]
Operation = dict[str, Any]

_COMMAND = ["python", "-m", "sidecar"]
_USER = 65532  # "nonroot" of distroless images; any other than root would do
_CONTAINER_LISTS = ("initContainers", "containers")
_GATE_LISTS = ("schedulingGates",)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What all sidecars of an installation share. A variant is empty or a DNS label of at most 20 characters."""

    image: str
    mode: Mode
    redis_addresses: str
    redis_username: str | None
    redis_password: str | None = field(repr=False)
    variant: str
    requests: Mapping[str, str]  # resources by their names, as of a container
    limits: Mapping[str, str]
    # Under which tokens and seals are made. Known to all replicas, so that each makes the same tokens of one review, to
    # reconcilers, who know seals by it, and to nobody else.
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Carried:
    """What a sidecar that is already in the pod claims to hold; whether it is true, only the nodes know."""

    token: str
    semaphore: str
    slot: int | None  # None: the pod waits, or waited, for it


def container_name(variant: str) -> str:
    """The name of our container. With the longest variant it has 47 of the 63 characters a name may have."""
    return f"{variant}-at-least-semaphore-sidecar" if variant else "at-least-semaphore-sidecar"


def gate_name(variant: str) -> str:
    """The scheduling gate of a pod that waits: no scheduler looks at the pod as long as it has one.

    See https://kubernetes.io/docs/concepts/scheduling-eviction/pod-scheduling-readiness/.
    """
    return f"{group(variant)}/slot"


def has_gate(pod: Pod, gate: str) -> bool:
    """Whether the pod has a scheduling gate of that name."""
    return bool(_positions(pod, gate, _GATE_LISTS))


def has_sidecar(pod: Pod, name: str) -> bool:
    """Whether any container or init container of the pod bears our name."""
    return bool(_positions(pod, name))


def carried(pod: Pod, name: str) -> Carried | None:
    """What the one sidecar of the pod claims.

    None unless there is exactly one, where `inject` would have put it, with plain values that can be ours.
    """
    positions = _positions(pod, name)
    if len(positions) != 1:
        return None
    where, index = positions[0]
    container = pod["spec"][where][index]
    if where == "initContainers" and (index > 0 or container.get("restartPolicy") != "Always"):
        return None
    # Of a variable that is named twice the last counts, for the kubelet as here.
    return _claim({each["name"]: each.get("value") for each in container.get("env") or []})


def _claim(env: Mapping[str, object]) -> Carried | None:
    token, semaphore = (env.get(name) for name in (Variable.TOKEN, Variable.SEMAPHORE))
    if not (isinstance(token, str) and isinstance(semaphore, str)) or not re.fullmatch(r"[0-9a-f]{32}", token):
        return None
    if Variable.SLOT not in env:
        return Carried(token, semaphore, None)
    slot = env[Variable.SLOT]
    if not isinstance(slot, str) or not re.fullmatch(r"0|[1-9][0-9]{0,3}", slot):
        return None
    return Carried(token, semaphore, int(slot))


def inject(pod: Pod, sidecar: Sidecar, *, semaphore: str, slot: int | None, token: str, expiration_seconds: int) -> str:
    """The patch that gives the pod our container and label, in place of any container that bears its name.

    A pod without a slot waits for one, and has our scheduling gate afterwards; a pod with a slot has not.
    """
    name, gate = container_name(sidecar.variant), gate_name(sidecar.variant)
    expiration = str(expiration_seconds)
    claim = {
        Variable.SEMAPHORE: semaphore,
        **({} if slot is None else {Variable.SLOT: str(slot)}),
        Variable.TOKEN: token,
        Variable.EXPIRATION: expiration,
        Variable.SEAL: seal_of(sidecar.secret, semaphore=semaphore, token=token, expiration_seconds=expiration),
    }
    return _text(
        [
            *_removals(pod, name, gate),
            _add_container(pod, sidecar, _container(sidecar, claim)),
            _add_label(pod, f"{group(sidecar.variant)}/holder"),
            *([_add_gate(pod, gate)] if slot is None else []),
        ]
    )


def remove(pod: Pod, name: str, gate: str) -> str:
    """The patch that takes every container of our name, and our scheduling gate, away and leaves all else as it is."""
    return _text(_removals(pod, name, gate))


def _text(operations: list[Operation]) -> str:
    return JsonPatch(operations).to_string()


def _positions(pod: Pod, name: str, lists: Sequence[str] = _CONTAINER_LISTS) -> list[tuple[str, int]]:
    """In which of these lists of the spec, and where in it, something bears that name."""
    return [
        (where, index)
        for where in lists
        for index, each in enumerate(pod["spec"].get(where) or [])
        if each["name"] == name
    ]


def _removals(pod: Pod, name: str, gate: str) -> list[Operation]:
    ours = [*_positions(pod, name), *_positions(pod, gate, _GATE_LISTS)]
    # From the back, for each removal moves up what stands behind it.
    return [{"op": "remove", "path": f"/spec/{where}/{index}"} for where, index in reversed(ours)]


def _add_container(pod: Pod, sidecar: Sidecar, container: Mapping[str, Any]) -> Operation:
    if sidecar.mode is Mode.CONTAINER:
        return {"op": "add", "path": "/spec/containers/-", "value": container}
    # First of all: it starts before, and ends after, whatever may use what the semaphore guards.
    if pod["spec"].get("initContainers") is None:
        return {"op": "add", "path": "/spec/initContainers", "value": [container]}
    return {"op": "add", "path": "/spec/initContainers/0", "value": container}


def _add_gate(pod: Pod, gate: str) -> Operation:
    if pod["spec"].get("schedulingGates") is None:
        return {"op": "add", "path": "/spec/schedulingGates", "value": [{"name": gate}]}
    return {"op": "add", "path": "/spec/schedulingGates/-", "value": {"name": gate}}


def _add_label(pod: Pod, label: str) -> Operation:
    """The label that the NetworkPolicy of the Redis nodes looks for."""
    metadata = pod.get("metadata")
    if metadata is None:
        return {"op": "add", "path": "/metadata", "value": {"labels": {label: "true"}}}
    if metadata.get("labels") is None:
        return {"op": "add", "path": "/metadata/labels", "value": {label: "true"}}
    return {"op": "add", "path": f"/metadata/labels/{escape(label)}", "value": "true"}


def _container(sidecar: Sidecar, claim: Mapping[str, str]) -> dict[str, Any]:
    container = {
        "name": container_name(sidecar.variant),
        "image": sidecar.image,
        "imagePullPolicy": "IfNotPresent",
        "command": _COMMAND,
        "env": _env({**claim, **_shared(sidecar)}),
        "resources": {"requests": dict(sidecar.requests), "limits": dict(sidecar.limits)},
        "securityContext": _security_context(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if sidecar.mode is Mode.NATIVE:
        container |= {"restartPolicy": "Always", "startupProbe": _startup_probe()}
    return container


def _shared(sidecar: Sidecar) -> dict[str, str]:
    optional = {
        Variable.REDIS_USERNAME: sidecar.redis_username,
        Variable.REDIS_PASSWORD: sidecar.redis_password,
        Variable.VARIANT: sidecar.variant,
    }
    return {
        Variable.REDIS_ADDRESSES: sidecar.redis_addresses,
        Variable.MODE: sidecar.mode.value,
        **{name: value for name, value in optional.items() if value},
    }


def _env(values: Mapping[str, str]) -> list[dict[str, str]]:
    # The kubelet expands $(NAME) in values and reads $$ as $ (core/v1 EnvVar): a password may hold either.
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]


def _security_context() -> dict[str, Any]:
    """What Pod Security `restricted` wants (https://kubernetes.io/docs/concepts/security/pod-security-standards/)."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _startup_probe() -> dict[str, Any]:
    """Passes once a majority has renewed the lease; until then no container after ours starts."""
    return {
        "exec": {"command": [*_COMMAND, "check"]},
        "periodSeconds": 1,
        "timeoutSeconds": 5,
        # The largest there is (int32). The kubelet kills a container whose startup probe has failed that
        # often, and on SIGTERM the sidecar gives up the slot: waiting must never end like that.
        "failureThreshold": 2**31 - 1,
    }
