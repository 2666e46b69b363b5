"""One AdmissionReview in, one answer out.

Knows the shapes of admission.k8s.io/v1, as documented at
https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
Knows nothing of semaphores, of our annotations or of HTTP: what the answer is, `Verdict` brings.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.admission.fields import Field, Malformed

__all__ = ["Malformed", "Reason", "Review", "Verdict", "parse_review", "respond"]

_API_VERSION = "admission.k8s.io/v1"
_KIND = "AdmissionReview"
_POD = ("", "v1", "Pod")
_MIRROR = "kubernetes.io/config.mirror"  # core/v1 MirrorPodAnnotationKey, set by the kubelet

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# The longest warning that Kubernetes asks for; clients may cut what is longer.
_WARNING_LENGTH = 120


@dataclass(frozen=True, slots=True)
class Review:
    """What the API server asks about one object.

    `uid` names the call, not the pod. `namespace` is the request's, since the object's own may be empty.
    `pod` is the core/v1 Pod that is about to be created, as decoded JSON in which every field that this
    package reads has the right type; None when the review is about anything else.
    """

    uid: str
    namespace: str
    dry_run: bool
    pod: Mapping[str, Any] | None

    @property
    def annotations(self) -> Mapping[str, str]:
        """The pod's annotations, empty when it has none."""
        metadata = (self.pod or {}).get("metadata") or {}
        return metadata.get("annotations") or {}

    @property
    def is_mirror(self) -> bool:
        """Whether the pod is the image of a static pod, which the kubelet runs whatever is answered."""
        return _MIRROR in self.annotations


class Reason(StrEnum):
    """Why a verdict is what it is, for logs and metrics."""

    NOT_ANNOTATED = "not_annotated"
    INVALID = "invalid"
    DRY_RUN = "dry_run"
    REINVOKED = "reinvoked"
    MIRROR = "mirror"
    GRANTED = "granted"
    FULL = "full"
    UNAVAILABLE = "unavailable"
    ADMITTED_WITHOUT_SLOT = "admitted_without_slot"
    SIDECAR_REMOVED = "sidecar_removed"  # or our scheduling gate: of a pod that asks for no slot
    WAITING = "waiting"
    CANNOT_WAIT = "cannot_wait"


# The status code of each denial and its name in the API (metav1.StatusReason).
_DENIALS = {
    Reason.INVALID: (400, "BadRequest"),
    Reason.FULL: (429, "TooManyRequests"),
    Reason.UNAVAILABLE: (503, "ServiceUnavailable"),
    Reason.CANNOT_WAIT: (400, "BadRequest"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one review. `code` is a denial's HTTP-like code, `patch` a JSON Patch as JSON text.

    `facts` are for our log only, by the names that they have there.
    """

    allowed: bool
    reason: Reason
    code: int | None
    message: str
    patch: str | None
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def allow(
        cls,
        reason: Reason,
        message: str = "",
        *,
        patch: str | None = None,
        warnings: tuple[str, ...] = (),
        **facts: Any,
    ) -> Verdict:
        """Let the pod in, changed by `patch` if there is one. The message is for our log only."""
        return cls(True, reason, None, message, patch, warnings, facts)

    @classmethod
    def deny(cls, reason: Reason, message: str, **facts: Any) -> Verdict:
        """Refuse the pod; its creator reads `message`. `reason` is INVALID, FULL, UNAVAILABLE or CANNOT_WAIT."""
        return cls(False, reason, _DENIALS[reason][0], message, None, facts=facts)


def parse_review(body: object) -> Review:
    """Read an AdmissionReview from decoded JSON.

    Checks the type of everything that this package reads from the review later. Raises Malformed, and
    nothing else, whatever `body` is. Anything but the creation of a pod gives a Review without a pod.
    """
    review = Field("", body)
    review.required(dict)
    review["apiVersion"].equal_to(_API_VERSION)
    review["kind"].equal_to(_KIND)
    request = review["request"]
    request.required(dict)
    creates_pod = _creates_pod(request)
    return Review(
        uid=_uid(request["uid"]),
        namespace=_namespace(request["namespace"], creates_pod),
        dry_run=request["dryRun"].optional(bool) or False,
        pod=_pod(request["object"]) if creates_pod else None,
    )


def _creates_pod(request: Field) -> bool:
    kind = request["kind"]
    kind.required(dict)
    found = tuple(kind[name].optional(str) or "" for name in ("group", "version", "kind"))
    operation = request["operation"].required(str)
    return found == _POD and operation == "CREATE" and not request["subResource"].optional(str)


def _uid(uid: Field) -> str:
    if not isinstance(uid.value, str) or not uid.value.isprintable() or not 1 <= len(uid.value) <= 253:
        raise uid.malformed("1 to 253 printable characters")
    return uid.value


def _namespace(namespace: Field, creates_pod: bool) -> str:
    if creates_pod:
        return namespace.matching(_DNS_LABEL, "a DNS label (lower-case letters, digits and -)")
    return namespace.optional(str) or ""  # what is not a pod may be outside of any namespace


def _pod(pod: Field) -> Mapping[str, Any]:
    found: Mapping[str, Any] = pod.required(dict)
    if pod["metadata"].optional(dict) is not None:
        _check_metadata(pod["metadata"])
    spec = pod["spec"].unquoted()  # it may hold passwords, as values of variables
    spec.required(dict)
    spec["containers"].required(list)
    for container in (*spec["containers"].items(), *spec["initContainers"].items()):
        _check_container(container)
    for gate in spec["schedulingGates"].items():
        gate.required(dict)
        gate["name"].required(str)
    spec["nodeName"].optional(str)
    return found


def _check_metadata(metadata: Field) -> None:
    for name in ("name", "generateName"):
        metadata[name].optional(str)
    for entry in (*metadata["annotations"].members(), *metadata["labels"].members()):
        entry.required(str)
    for owner in metadata["ownerReferences"].items():
        owner.required(dict)
        owner["kind"].required(str)
        owner["name"].required(str)
        owner["controller"].optional(bool)


def _check_container(container: Field) -> None:
    container.required(dict)
    container["name"].required(str)
    for variable in container["env"].items():
        variable.required(dict)
        variable["name"].required(str)


def respond(review: Review, verdict: Verdict) -> dict[str, Any]:
    """The AdmissionReview that carries the verdict back, ready for JSON."""
    response: dict[str, Any] = {"uid": review.uid, "allowed": verdict.allowed}
    if not verdict.allowed:
        response["status"] = _status(verdict)
    if verdict.patch is not None:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(verdict.patch.encode()).decode()
    if verdict.warnings:
        response["warnings"] = [warning[:_WARNING_LENGTH] for warning in verdict.warnings]
    return {"apiVersion": _API_VERSION, "kind": _KIND, "response": response}


def _status(verdict: Verdict) -> dict[str, Any]:
    # No details.retryAfterSeconds: the API server makes a Retry-After header of it, on which clients resend
    # the same request by themselves, up to ten times, and hold up their callers meanwhile.
    code, reason = _DENIALS[verdict.reason]
    return {"code": code, "reason": reason, "message": verdict.message}
