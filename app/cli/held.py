"""Slots and semaphores as the commands show them. Knows neither nodes nor options; instants come in as arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from app.admission.holder import Holder, read_holder
from app.cli.output import UNKNOWN, Cell, counted, duration, table
from app.logs import shortened
from app.semaphore.survey import Slot, State
from app.status import Status, status_of, summary_of

COLOURS = {Status.RESERVED: "yellow", Status.RUNNING: "green", Status.OVERDUE: "red"}
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Held:
    """A slot with who holds it, as far as is known; `now` is the wall clock, in seconds since the epoch."""

    semaphore: str
    slot: Slot
    is_confirmed: bool  # by a majority
    nodes: int  # in all
    now: float

    @cached_property
    def holder(self) -> Holder:
        return read_holder(self.slot.lease.holder)

    @property
    def status(self) -> Status:
        return status_of(self.slot, self.holder)

    @property
    def age_seconds(self) -> float | None:
        return None if self.holder.since is None else round(max(0.0, self.now - self.holder.since), 3)

    @property
    def left_seconds(self) -> float:
        return self.slot.lease.left_ms / 1000

    def cells(self) -> list[str | Cell]:
        """In the order of HEADERS, after the semaphore."""
        age = self.age_seconds
        status = self.status.value if self.is_confirmed else f"{self.status.value}, unconfirmed"
        return [
            str(self.slot.number),
            self.holder.owner or UNKNOWN,
            self.holder.pod or UNKNOWN,
            UNKNOWN if age is None else f"{duration(age)} ago",
            duration(self.left_seconds),
            Cell(status, COLOURS[self.status] if self.is_confirmed else "yellow"),
            f"{len(self.slot.nodes)} of {self.nodes}",
            shortened(self.slot.lease.token),
        ]

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return {
            "semaphore": self.semaphore,
            "slot": self.slot.number,
            "owner": self.holder.owner,
            "pod": self.holder.pod,
            "since_timestamp_seconds": self.holder.since,
            "age_seconds": self.age_seconds,
            "left_seconds": self.left_seconds,
            "status": self.status.value,
            "confirmed": self.is_confirmed,
            "nodes": len(self.slot.nodes),
            "token_hash": shortened(self.slot.lease.token),
        }


SEMAPHORE_HEADERS = ("SEMAPHORE", "LENGTH", "HELD", "RESERVED", "OVERDUE", "UNCONFIRMED", "OLDEST", "STATE", "RECORDS")
HEADERS = ("SLOT", "OWNER", "POD", "SINCE", "LEFT", "STATUS", "NODES", "TOKEN")


def held_in(state: State, nodes: int, now: float) -> list[Held]:
    """The slots of a semaphore, confirmed or not, by their numbers."""
    found = [Held(state.semaphore, slot, True, nodes, now) for slot in state.held]
    found += [Held(state.semaphore, slot, False, nodes, now) for slot in state.unconfirmed]
    return sorted(found, key=lambda held: held.slot.number)


def summary(state: State, now: float) -> dict[str, Any]:
    """A semaphore in numbers, by the names of its metrics."""
    found = summary_of(state)
    return {
        "semaphore": found.semaphore,
        "length": found.length,
        "held": found.held,
        "reserved": found.reserved,
        "overdue": found.overdue,
        "unconfirmed": found.unconfirmed,
        "oldest_reservation_age_seconds": found.oldest_reservation_age_seconds(now),
        "state": "full" if found.held >= found.length else "free",
        "records": state.records,
    }


def unreadable(semaphore: str) -> dict[str, Any]:
    """The same of a semaphore that no majority knows."""
    names = ("length", "held", "reserved", "overdue", "unconfirmed", "oldest_reservation_age_seconds")
    return {"semaphore": semaphore, **dict.fromkeys(names), "state": UNREADABLE, "records": None}


def headline(state: State) -> str:
    """Such as `batch/reports-db: 3 of 3 slots held, 1 unconfirmed`."""
    unconfirmed = f", {len(state.unconfirmed)} unconfirmed" if state.unconfirmed else ""
    return f"{state.semaphore}: {len(state.held)} of {counted(state.length, 'slot')} held{unconfirmed}"


def slots_table(found: Sequence[Held], *, with_semaphore: bool) -> str:
    """A table of slots."""
    if with_semaphore:
        return table(("SEMAPHORE", *HEADERS), [[each.semaphore, *each.cells()] for each in found])
    return table(HEADERS, [each.cells() for each in found])


def semaphore_cells(found: dict[str, Any], nodes: int) -> list[str | Cell]:
    """A summary in the order of SEMAPHORE_HEADERS."""
    numbers = [found[name] for name in ("length", "held", "reserved", "overdue", "unconfirmed")]
    oldest, records = found["oldest_reservation_age_seconds"], found["records"]
    return [
        found["semaphore"],
        *(UNKNOWN if number is None else str(number) for number in numbers),
        UNKNOWN if oldest is None else duration(oldest),
        Cell(found["state"], {"full": "yellow", "free": "green"}.get(found["state"], "red")),
        UNKNOWN if records is None else f"{records} of {nodes}",
    ]
