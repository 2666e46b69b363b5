"""How a holder is doing, for metrics and the command line: what a lease tells of it, read together with its life."""

from enum import StrEnum

from app.admission.holder import Holder
from app.semaphore.survey import Slot


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
