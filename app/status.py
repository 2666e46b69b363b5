"""How holders and semaphores are doing, for metrics and the command line: what leases tell, and how they live."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from app.admission.holder import Holder, read_holder
from app.semaphore.survey import Slot, State


class Status(StrEnum):
    """Where a holder stands."""

    RESERVED = "reserved"  # admitted; no sidecar has renewed yet
    RUNNING = "running"
    OVERDUE = "overdue"  # renewed once, but not for more than half of its lease: its sidecar is gone or cut off


def status_of(slot: Slot, holder: Holder) -> Status:
    """The status of the slot's holder. Renewals come at a third of the lease, so one has failed when overdue."""
    if slot.is_reserved:
        return Status.RESERVED
    # Where nothing is known of the expiration nothing is overdue.
    return Status.OVERDUE if slot.lease.left_ms < (holder.expiration_seconds or 0) * 500 else Status.RUNNING


@dataclass(frozen=True, slots=True)
class Summary:
    """A semaphore in numbers, or several that are summed; the names are those of the metrics."""

    semaphore: str
    length: int
    held: int
    reserved: int
    overdue: int
    unconfirmed: int
    oldest_reservation_since: int | None  # seconds since the epoch

    def oldest_reservation_age_seconds(self, now: float) -> float | None:
        """By the wall clock; None while nothing is reserved."""
        since = self.oldest_reservation_since
        return None if since is None else max(0.0, now - since)


def summary_of(state: State) -> Summary:
    """One semaphore in numbers."""
    holders = [read_holder(slot.lease.holder) for slot in state.held]
    statuses = [status_of(slot, holder) for slot, holder in zip(state.held, holders, strict=True)]
    return Summary(
        semaphore=state.semaphore,
        length=state.length,
        held=len(state.held),
        reserved=statuses.count(Status.RESERVED),
        overdue=statuses.count(Status.OVERDUE),
        unconfirmed=len(state.unconfirmed),
        oldest_reservation_since=_oldest(
            holder.since for holder, status in zip(holders, statuses, strict=True) if status is Status.RESERVED
        ),
    )


def sum_of(summaries: Iterable[Summary], name: str) -> Summary:
    """All of them as one of this name."""
    all_of_them = list(summaries)
    return Summary(
        semaphore=name,
        length=sum(each.length for each in all_of_them),
        held=sum(each.held for each in all_of_them),
        reserved=sum(each.reserved for each in all_of_them),
        overdue=sum(each.overdue for each in all_of_them),
        unconfirmed=sum(each.unconfirmed for each in all_of_them),
        oldest_reservation_since=_oldest(each.oldest_reservation_since for each in all_of_them),
    )


def _oldest(instants: Iterable[int | None]) -> int | None:
    return min((instant for instant in instants if instant is not None), default=None)
