"""The one use case: what becomes of a pod.

Knows the rules of an admission. Knows neither HTTP nor Redis: the review comes parsed, the semaphores are asked.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.admission import annotations, holder, injection
from app.admission.annotations import InvalidAnnotation, SlotRequest, WhenFull, WhenUnavailable
from app.admission.injection import Carried, Pod, Sidecar
from app.admission.review import Reason, Review, Verdict
from app.admission.seal import signed
from app.logs import shortened
from app.semaphore.model import Claim, Full, Grant, Outcome, Unavailable
from app.semaphore.semaphores import Semaphores

# The API server gives up a request after this long (its --request-timeout), so what was granted earlier is not the
# reinvocation of an admission but a copy of its pod, which needs a slot of its own.
REINVOCATION_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all admissions of this installation."""

    sidecar: Sidecar
    reservation_seconds: int
    # Whether a reconciler runs, which gives slots to the pods that wait.
    waiting_allowed: bool
    wall_clock: Callable[[], float] = time.time

    @property
    def group(self) -> str:
        return annotations.group(self.sidecar.variant)

    @property
    def container_name(self) -> str:
        return injection.container_name(self.sidecar.variant)

    @property
    def gate_name(self) -> str:
        return injection.gate_name(self.sidecar.variant)


def decide(semaphores: Semaphores, rules: Rules, review: Review, deadline: float) -> Verdict:
    """Decide about a pod that is about to be created; `deadline` is in monotonic seconds."""
    if review.pod is None:
        return Verdict.allow(Reason.NOT_ANNOTATED)
    if review.is_mirror:  # the kubelet runs it whatever is said
        return Verdict.allow(Reason.MIRROR)
    try:
        request = annotations.parse_slot_request(review.annotations, rules.group)
    except InvalidAnnotation as error:
        return Verdict.deny(Reason.INVALID, str(error))
    if request is None:
        return _leave_alone(review.pod, rules)
    semaphore = f"{review.namespace}/{request.key}"
    if request.when_full is WhenFull.WAIT:
        return _wait(review, review.pod, request, rules, semaphore)
    if request.length == 0:
        return Verdict.deny(Reason.FULL, f"semaphore {semaphore} is closed: its length is 0", semaphore=semaphore)
    if review.dry_run:
        patch = _patch(review.pod, request, rules, semaphore, slot=0, token=secrets.token_hex(16))
        return Verdict.allow(Reason.DRY_RUN, patch=patch, semaphore=semaphore)
    carried = injection.carried(review.pod, rules.container_name)
    is_gated = injection.has_gate(review.pod, rules.gate_name)  # and would be for ever, if it were left as it is
    if carried and not is_gated and _is_reinvocation(carried, semaphore, semaphores, deadline):
        return Verdict.allow(Reason.REINVOKED, semaphore=semaphore)
    claim = Claim(
        semaphore=semaphore,
        length=request.length,
        reservation_ms=rules.reservation_seconds * 1000,
        lease_ms=request.expiration_seconds * 1000,
        holder=holder.holder_of(review.pod, int(rules.wall_clock()), request.expiration_seconds),
    )
    outcome = semaphores.acquire(claim, tokens(review.uid, semaphore, rules.sidecar.secret), deadline)
    return _verdict(outcome, review.pod, request, rules, semaphore)


def tokens(review_uid: str, semaphore: str, secret: bytes) -> Iterator[str]:
    """The tokens for the tries of one admission: the same review leads to the same, nobody else can guess them.

    A review that the API server repeats so finds the slot it took before, if the first try had granted it.
    """
    for attempt in itertools.count():
        yield signed(secret, review_uid, semaphore, attempt)


def _leave_alone(pod: Pod, rules: Rules) -> Verdict:
    """A pod that asks for no slot.

    A sidecar of ours in it is a copy, and would renew another pod's lease; a gate of ours nobody would lift.
    """
    patch = _removal(pod, rules)
    return Verdict.allow(Reason.SIDECAR_REMOVED if patch else Reason.NOT_ANNOTATED, patch=patch)


def _removal(pod: Pod, rules: Rules) -> str | None:
    """The patch that takes our sidecar and our gate out of the pod; None if there is neither in it."""
    if injection.has_sidecar(pod, rules.container_name) or injection.has_gate(pod, rules.gate_name):
        return injection.remove(pod, rules.container_name, rules.gate_name)
    return None


def _wait(review: Review, pod: Pod, request: SlotRequest, rules: Rules, semaphore: str) -> Verdict:
    """A pod that waits for its slot is created whatever is held, so that no node is asked."""
    if why := _why_not_wait(pod, rules):
        message = (
            f"semaphore {semaphore}: the pod cannot wait for a slot: {why}, or set {rules.group}/when-full to deny"
        )
        return Verdict.deny(Reason.CANNOT_WAIT, message, semaphore=semaphore)
    if review.dry_run:
        patch = _patch(pod, request, rules, semaphore, slot=None, token=secrets.token_hex(16))
        return Verdict.allow(Reason.DRY_RUN, patch=patch, semaphore=semaphore)
    token = next(tokens(review.uid, semaphore, rules.sidecar.secret))
    is_gated = injection.has_gate(pod, rules.gate_name)
    if is_gated and injection.carried(pod, rules.container_name) == Carried(token, semaphore, slot=None):
        return Verdict.allow(Reason.REINVOKED, semaphore=semaphore)
    message = f"semaphore {semaphore}: waits for a slot"
    patch = _patch(pod, request, rules, semaphore, slot=None, token=token)
    return Verdict.allow(Reason.WAITING, message, patch=patch, semaphore=semaphore, token=shortened(token))


def _why_not_wait(pod: Pod, rules: Rules) -> str | None:
    """Why the pod cannot wait, and what to do; None if it can."""
    if pod["spec"].get("nodeName"):
        return "with spec.nodeName no scheduler is asked, so no gate can hold it back; use a nodeSelector instead"
    if not rules.waiting_allowed:
        return (
            "no reconciler is there to give it one later; install the component waiting, which sets WAITING_ALLOWED "
            "to true"
        )
    return None


def _is_reinvocation(carried: Carried, semaphore: str, semaphores: Semaphores, deadline: float) -> bool:
    """Whether the pod has just been given this very slot, and only passes through a second time."""
    if carried.semaphore != semaphore or carried.slot is None:
        return False
    return semaphores.is_recent(semaphore, carried.slot, carried.token, REINVOCATION_SECONDS * 1000, deadline)


def _verdict(outcome: Outcome, pod: Pod, request: SlotRequest, rules: Rules, semaphore: str) -> Verdict:
    match outcome:
        case Grant(slot, token):
            message = f"semaphore {semaphore}: slot {slot} of {request.length}"
            patch = _patch(pod, request, rules, semaphore, slot=slot, token=token)
            # A token is a capability: of it the log has as much as tells one from the other.
            return Verdict.allow(
                Reason.GRANTED, message, patch=patch, semaphore=semaphore, slot=slot, token=shortened(token)
            )
        case Full():
            told = holder.describe(outcome.held, request.length, outcome.holders, outcome.unstarted)
            full = f"semaphore {semaphore} is full: {told}; more: at-least-semaphore holders {semaphore}"
            return Verdict.deny(Reason.FULL, full, semaphore=semaphore, held=outcome.held, length=request.length)
        case Unavailable(why):
            return _unavailable(pod, request, rules, semaphore, why)


def _unavailable(pod: Pod, request: SlotRequest, rules: Rules, semaphore: str, why: str) -> Verdict:
    message = f"semaphore {semaphore} is unavailable: {why}"
    if request.when_unavailable is WhenUnavailable.DENY:
        return Verdict.deny(Reason.UNAVAILABLE, message, semaphore=semaphore)
    warnings = ("admitted without a slot: no majority of the semaphore's Redis nodes answered",)
    # A sidecar that came with the pod is none of ours to trust: it would keep another pod's slot alive.
    patch = _removal(pod, rules)
    return Verdict.allow(Reason.ADMITTED_WITHOUT_SLOT, message, patch=patch, warnings=warnings, semaphore=semaphore)


def _patch(pod: Pod, request: SlotRequest, rules: Rules, semaphore: str, *, slot: int | None, token: str) -> str:
    return injection.inject(
        pod,
        rules.sidecar,
        semaphore=semaphore,
        slot=slot,
        token=token,
        expiration_seconds=request.expiration_seconds,
    )
