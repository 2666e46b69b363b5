"""What an admission would come to, by what is known of its semaphore. Asks nobody."""

from app.admission import holder
from app.admission.annotations import SlotRequest, WhenUnavailable
from app.admission.review import Reason, Verdict
from app.cli.output import counted
from app.semaphore.survey import Overview
from sidecar.protocol import majority


def foresee(request: SlotRequest, semaphore: str, overview: Overview, nodes: int) -> Verdict | None:
    """What an admission would come to, by what is known of its semaphore, of `nodes` nodes in all.

    None if that cannot be told: a minority knows the semaphore though all were heard, which an admission mends first.
    """
    few = f"fewer than {majority(nodes)} of {nodes} nodes"
    if nodes - len(overview.unheard) < majority(nodes):
        return _unavailable(request, f"semaphore {semaphore} is unavailable: {few} answered")
    if semaphore in overview.unreadable:
        if not overview.unheard:
            return None
        return _unavailable(request, f"semaphore {semaphore} is unavailable: {few} know it")
    held = [slot for state in overview.states for slot in state.held]
    if len(held) < request.length:
        told = f"{len(held)} of {counted(request.length, 'slot')} held, so one is free"
        return Verdict.allow(Reason.GRANTED, f"semaphore {semaphore}: {told}")
    holders = [slot.lease.holder for slot in held]
    told = holder.describe(len(held), request.length, holders, sum(slot.is_reserved for slot in held))
    return Verdict.deny(Reason.FULL, f"semaphore {semaphore} is full: {told}")


def _unavailable(request: SlotRequest, why: str) -> Verdict:
    name = f"when-unavailable is {request.when_unavailable.value}"
    if request.when_unavailable is WhenUnavailable.DENY:
        return Verdict.deny(Reason.UNAVAILABLE, f"{why}; {name}, so it is refused until a majority answers")
    return Verdict.allow(Reason.ADMITTED_WITHOUT_SLOT, f"{why}; {name}, so it runs without a slot")


def caveats(request: SlotRequest, overview: Overview) -> list[str]:
    """What of the semaphore may be of interest, whatever becomes of the pod."""
    found = []
    for state in overview.states:
        if state.length != request.length:
            found.append(
                f"it asks with length {request.length}, the last pod that was admitted did with {state.length}: "
                "each is measured by its own, so all pods of a semaphore should bring the same"
            )
        if state.unconfirmed:
            found.append(
                f"{counted(len(state.unconfirmed), 'slot')} more on some node, but on no majority: "
                "until that is settled, a free slot may not be found at once"
            )
    return found
