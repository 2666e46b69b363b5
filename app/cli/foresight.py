"""What an admission would come to, by what is known of its semaphore. Asks nobody."""

from app.admission import holder
from app.admission.annotations import SlotRequest, WhenFull, WhenUnavailable
from app.admission.review import Reason, Verdict
from app.cli.output import counted
from app.semaphore.survey import Overview
from sidecar.protocol import majority


def foresee(request: SlotRequest, semaphore: str, overview: Overview, nodes: int) -> Verdict | None:
    """What an admission would come to, by what is known of its semaphore, of `nodes` nodes in all.

    None if that cannot be told: a minority knows the semaphore though all were heard, which an admission mends first.
    """
    if not request.length:
        return _waiting(semaphore, "it is closed: its length is 0")
    few = f"fewer than {majority(nodes)} of {nodes} nodes"
    if nodes - len(overview.unheard) < majority(nodes):
        return _unavailable(request, semaphore, f"{few} answered")
    if semaphore in overview.unreadable:
        if not overview.unheard and request.when_full is WhenFull.DENY:
            return None
        return _unavailable(request, semaphore, f"{few} know it")
    held = [slot for state in overview.states for slot in state.held]
    holders = [slot.lease.holder for slot in held]
    told = holder.describe(len(held), request.length, holders, sum(slot.is_reserved for slot in held))
    is_free = len(held) < request.length
    if request.when_full is WhenFull.WAIT:
        return _waiting(semaphore, f"{told}, so one is free: it is next if no older pod waits" if is_free else told)
    if is_free:
        free = f"{len(held)} of {counted(request.length, 'slot')} held, so one is free"
        return Verdict.allow(Reason.GRANTED, f"semaphore {semaphore}: {free}")
    return Verdict.deny(Reason.FULL, f"semaphore {semaphore} is full: {told}")


def _unavailable(request: SlotRequest, semaphore: str, why: str) -> Verdict:
    if request.when_full is WhenFull.WAIT:
        return _waiting(semaphore, f"how many are held is not known, since {why}")
    name = f"when-unavailable is {request.when_unavailable.value}"
    message = f"semaphore {semaphore} is unavailable: {why}; {name}, so it"
    if request.when_unavailable is WhenUnavailable.DENY:
        return Verdict.deny(Reason.UNAVAILABLE, f"{message} is refused until a majority answers")
    return Verdict.allow(Reason.ADMITTED_WITHOUT_SLOT, f"{message} runs without a slot")


def _waiting(semaphore: str, told: str) -> Verdict:
    """A pod that waits is admitted whatever is held, and however many nodes answer."""
    return Verdict.allow(Reason.WAITING, f"semaphore {semaphore}: waits for a slot; {told}")


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
