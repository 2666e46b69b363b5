"""The one use case: what becomes of a pod.

Knows the rules of an admission. Knows neither HTTP nor Redis: the review comes parsed, the semaphores are asked.
"""

import hashlib
import hmac
import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from app.admission import annotations, holder, injection
from app.admission.annotations import InvalidAnnotation, SlotRequest, WhenUnavailable
from app.admission.injection import Carried, Pod, Sidecar
from app.admission.review import Reason, Review, Verdict
from app.logs import shortened
from app.semaphore.model import Claim, Full, Grant, Outcome, Unavailable
from app.semaphore.semaphores import Semaphores

# The API server gives up a request after this long (its --request-timeout), so a reservation that is older is
# not the reinvocation of an admission but a copy of its pod, which needs a slot of its own.
REINVOCATION_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all admissions of this installation."""

    sidecar: Sidecar
    reservation_seconds: int
    # Known to all replicas, so that each makes the same tokens of one review, and to nobody else.
    secret: bytes = field(repr=False)
    wall_clock: Callable[[], float] = time.time

    @property
    def group(self) -> str:
        return annotations.group(self.sidecar.variant)

    @property
    def container_name(self) -> str:
        return injection.container_name(self.sidecar.variant)


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
    if request.length == 0:
        return Verdict.deny(Reason.FULL, f"semaphore {semaphore} is closed: its length is 0", semaphore=semaphore)
    if review.dry_run:
        patch = _patch(review.pod, request, rules, Grant(0, secrets.token_hex(16)), semaphore)
        return Verdict.allow(Reason.DRY_RUN, patch=patch, semaphore=semaphore)
    carried = injection.carried(review.pod, rules.container_name)
    if carried and _is_reinvocation(carried, semaphore, semaphores, rules, deadline):
        return Verdict.allow(Reason.REINVOKED, semaphore=semaphore)
    claim = Claim(
        semaphore=semaphore,
        length=request.length,
        reservation_ms=rules.reservation_seconds * 1000,
        lease_ms=request.expiration_seconds * 1000,
        holder=holder.holder_of(review.pod, int(rules.wall_clock()), request.expiration_seconds),
    )
    outcome = semaphores.acquire(claim, tokens(review.uid, semaphore, rules.secret), deadline)
    return _verdict(outcome, review.pod, request, rules, semaphore)


def tokens(review_uid: str, semaphore: str, secret: bytes) -> Iterator[str]:
    """The tokens for the tries of one admission: the same review leads to the same, nobody else can guess them.

    A review that the API server repeats so finds the slot it took before, if the first try had granted it.
    """
    for attempt in itertools.count():
        name = json.dumps([review_uid, semaphore, attempt]).encode()
        yield hmac.new(secret, name, hashlib.sha256).hexdigest()[:32]


def _leave_alone(pod: Pod, rules: Rules) -> Verdict:
    """A pod that asks for no slot; a sidecar of ours in it is a copy, and would renew another pod's lease."""
    patch = _removal(pod, rules)
    return Verdict.allow(Reason.SIDECAR_REMOVED if patch else Reason.NOT_ANNOTATED, patch=patch)


def _removal(pod: Pod, rules: Rules) -> str | None:
    """The patch that takes our sidecar out of the pod; None if there is none in it."""
    return injection.remove(pod, rules.container_name) if injection.has_sidecar(pod, rules.container_name) else None


def _is_reinvocation(carried: Carried, semaphore: str, semaphores: Semaphores, rules: Rules, deadline: float) -> bool:
    """Whether the pod has just been given this very slot, and only passes through a second time."""
    if carried.semaphore != semaphore:
        return False
    left_ms = semaphores.unclaimed_ms(semaphore, carried.slot, carried.token, deadline)
    return left_ms is not None and left_ms > max(0, rules.reservation_seconds - REINVOCATION_SECONDS) * 1000


def _verdict(outcome: Outcome, pod: Pod, request: SlotRequest, rules: Rules, semaphore: str) -> Verdict:
    match outcome:
        case Grant(slot, token):
            message = f"semaphore {semaphore}: slot {slot} of {request.length}"
            patch = _patch(pod, request, rules, outcome, semaphore)
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


def _patch(pod: Pod, request: SlotRequest, rules: Rules, grant: Grant, semaphore: str) -> str:
    return injection.inject(
        pod,
        rules.sidecar,
        semaphore=semaphore,
        slot=grant.slot,
        token=grant.token,
        expiration_seconds=request.expiration_seconds,
    )
