"""Pods that wait for a slot, as `holders` shows them: with their place, by what the API server knows."""

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from app.admission.holder import owner_of
from app.cli.output import UNKNOWN, Cell, duration, table, tell
from app.logs import shortened
from app.reconciler.api import Api, reason_of
from app.reconciler.pods import Member, Reader, Stage, queues
from app.settings import Settings

HEADERS = ("PLACE", "OWNER", "POD", "SINCE", "STATUS", "TOKEN")


@dataclass(frozen=True, slots=True)
class Waiter:
    """A pod behind our scheduling gate."""

    member: Member
    place: int | None  # None: a slot would not let it in
    now: float  # seconds since the epoch

    @property
    def status(self) -> str:
        if self.place is not None:
            return "waiting" if self.member.length else "waiting, closed"
        if self.member.is_leaving:
            return "ending"
        if self.member.request is None:
            return "cannot wait"
        return "waited too long" if self.member.has_waited_too_long(self.now) else "has other gates"

    @property
    def age_seconds(self) -> float:
        return round(max(0.0, self.now - self.member.created), 3)

    def cells(self) -> list[str | Cell]:
        """In the order of HEADERS."""
        return [
            UNKNOWN if self.place is None else str(self.place),
            owner_of(self.member.identity) or UNKNOWN,
            self.member.name,
            f"{duration(self.age_seconds)} ago",
            Cell(self.status, None if self.status == "waiting" else "yellow"),
            shortened(self.member.token),
        ]

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return {
            "semaphore": self.member.semaphore,
            "place": self.place,
            "owner": owner_of(self.member.identity) or None,
            "pod": self.member.name,
            "since_timestamp_seconds": int(self.member.created),
            "age_seconds": self.age_seconds,
            "status": self.status,
            "token_hash": shortened(self.member.token),
        }


def read_waiters(settings: Settings, only: str | None) -> list[Waiter] | None:
    """Who waits, of all semaphores or of one, by their places; None, and says why, if that cannot be known here."""
    if not settings.waiting_allowed:
        return []
    try:
        with closing(Api(Reader(settings.variant, settings.secrets), lambda why: tell(f"not shown: {why}"))) as api:
            found, _ = api.members(only.partition("/")[0] if only else "*")
    except Exception as error:  # noqa: BLE001  whatever it is, what the nodes know is shown all the same
        tell(f"pods that wait are not shown: {reason_of(error)}; run this where the reconciler runs")
        return None
    return placed((member for member in found.values() if only in (None, member.semaphore)), time.time())


def placed(members: Iterable[Member], now: float) -> list[Waiter]:
    """Those behind our gate, by semaphore and place; behind them those whom a slot would not let in."""
    gated = [member for member in members if member.stage is Stage.WAITING]
    places = {member.uid: place for queue in queues(gated, now).values() for place, member in enumerate(queue, start=1)}
    waiters = [Waiter(member, places.get(member.uid), now) for member in gated]
    return sorted(
        waiters, key=lambda each: (each.member.semaphore, each.place is None, each.place or 0, each.member.order)
    )


def waiters_table(found: Sequence[Waiter], *, with_semaphore: bool) -> str:
    """A table of pods that wait."""
    if with_semaphore:
        return table(("SEMAPHORE", *HEADERS), [[each.member.semaphore, *each.cells()] for each in found])
    return table(HEADERS, [each.cells() for each in found])
