"""What can be asked of one node, and how its reply reads. Every command is atomic there.

Knows the wire form of requests and replies, not how they travel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from app.semaphore.model import (
    Answer,
    Claim,
    Full,
    Granted,
    Lease,
    Names,
    Page,
    Record,
    Standing,
    Taken,
    Unknown,
    Vacancies,
    Vitals,
)
from sidecar.protocol import Keys

Words = tuple[str | int, ...]

# So many a node looks at in one go for a survey or for vacancies: a few milliseconds, in which nobody else is served.
SURVEYED_SLOTS = 1000


def load_scripts() -> dict[str, str]:
    """The Lua sources by name, from the files beside this module."""
    folder = resources.files(__package__) / "scripts"
    return {
        file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }


class Command(Protocol):
    """One request to one node."""

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        """The Redis command; `sha` gives the digest of each loaded script."""

    def answer(self, reply: Any) -> Answer:
        """What the node's reply means."""


@dataclass(frozen=True, slots=True)
class Acquire:
    """Take a slot for the token: any free one from `start` on, or exactly `slot`."""

    claim: Claim
    token: str
    start: int = 0
    slot: int | None = None
    found: bool = False  # make a record where there is none, instead of answering Unknown

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        claim, token = self.claim, self.token
        return (
            *("EVALSHA", sha["acquire"], 3),
            *(keys.record(claim.semaphore), keys.lease(token), keys.reservation(token)),
            *(token, claim.length, claim.reservation_ms, claim.holder, claim.longest_ms, int(self.found)),
            *(-1 if self.slot is None else self.slot, self.start, int(claim.reuses_token)),
        )

    def answer(self, reply: Any) -> Answer:
        kind, *rest = reply
        match kind:
            case b"GRANTED":
                return Granted(rest[0])
            case b"FULL":
                return Full(rest[0], tuple(holder.decode(errors="replace") for holder in rest[2:]), rest[1])
            case b"TAKEN":
                return Taken()
            case _:
                return Unknown()


@dataclass(frozen=True, slots=True)
class Renew:
    """Prolong the token's lease to `lease_ms` from now; answers whether it was still alive."""

    token: str
    lease_ms: int

    def words(self, keys: Keys, _sha: Mapping[str, str]) -> Words:
        return ("PEXPIRE", keys.lease(self.token), self.lease_ms)

    def answer(self, reply: Any) -> Answer:
        return bool(reply)


@dataclass(frozen=True, slots=True)
class Release:
    """End the token's lease; answers whether there was one. The entry in the record stays, and is dead."""

    token: str

    def words(self, keys: Keys, _sha: Mapping[str, str]) -> Words:
        return ("UNLINK", keys.lease(self.token), keys.reservation(self.token))

    def answer(self, reply: Any) -> Answer:
        return bool(reply)


@dataclass(frozen=True, slots=True)
class Withdraw(Release):
    """The same, but only while the lease is a mere reservation: one that a sidecar has renewed stays."""

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        return ("EVALSHA", sha["withdraw"], 2, keys.lease(self.token), keys.reservation(self.token))


@dataclass(frozen=True, slots=True)
class Prolong:
    """Give the token's reservation `reservation_ms` from now; answers how it stands."""

    token: str
    reservation_ms: int

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        names = (keys.lease(self.token), keys.reservation(self.token))
        return ("EVALSHA", sha["prolong"], 2, *names, self.reservation_ms)

    def answer(self, reply: Any) -> Answer:
        return (Standing.LOST, Standing.RESERVED, Standing.CLAIMED)[reply]


@dataclass(frozen=True, slots=True)
class Vacant:
    """Which of some semaphores, each with the length that is asked for, may have a slot to give.

    The node looks at a bounded number of slots, and takes the rest for free: so no more semaphores at once than that,
    and no greater lengths, unless it is one semaphore.
    """

    lengths: Mapping[str, int]

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        records = [keys.record(semaphore) for semaphore in self.lengths]
        lengths = self.lengths.values()
        return ("EVALSHA", sha["vacant"], len(records), *records, keys.lease(""), SURVEYED_SLOTS, *lengths)

    def answer(self, reply: Any) -> Answer:
        semaphores = list(self.lengths)
        return Vacancies(frozenset(semaphores[number - 1] for number in reply))


@dataclass(frozen=True, slots=True)
class Collect:
    """Whether the record can go, being untouched for `idle_seconds` and without leases; `removing`: and remove it."""

    semaphore: str
    idle_seconds: int
    removing: bool

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        record = keys.record(self.semaphore)
        return ("EVALSHA", sha["collect"], 1, record, keys.lease(""), self.idle_seconds, int(self.removing))

    def answer(self, reply: Any) -> Answer:
        return bool(reply)


@dataclass(frozen=True, slots=True)
class Recent:
    """Whether an admission was granted the slot for the token within so long, and no sidecar has renewed since."""

    semaphore: str
    slot: int
    token: str
    within_ms: int

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        token = self.token
        names = (keys.record(self.semaphore), keys.lease(token), keys.reservation(token))
        return ("EVALSHA", sha["recent"], 3, *names, token, self.slot, self.within_ms)

    def answer(self, reply: Any) -> Answer:
        return bool(reply)


@dataclass(frozen=True, slots=True)
class Read:
    """The record of a semaphore with its live leases."""

    semaphore: str

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        return ("EVALSHA", sha["read"], 1, keys.record(self.semaphore), keys.lease(""), keys.reservation(""))

    def answer(self, reply: Any) -> Answer:
        if reply is None:
            return Unknown()
        return _record(reply)


@dataclass(frozen=True, slots=True)
class Restore:
    """Write leases that the node lacks, where their slots are free; `recorded`: it has a record already."""

    semaphore: str
    recorded: bool
    record: Record

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        entries: list[str | int] = []
        for slot, lease in self.record.leases.items():
            entries += (slot, lease.token, lease.left_ms, lease.unclaimed_ms, lease.holder)
        return (
            *("EVALSHA", sha["restore"], 1, keys.record(self.semaphore)),
            *(keys.lease(""), keys.reservation(""), int(self.recorded)),
            *(self.record.length, self.record.longest_ms, *entries),
        )

    def answer(self, reply: Any) -> Answer:
        return int(reply)


@dataclass(frozen=True, slots=True)
class ListNames:
    """Some of the semaphores that the node has a record of; from cursor 0 until the answer's is 0 again."""

    cursor: int

    def words(self, keys: Keys, _sha: Mapping[str, str]) -> Words:
        return ("SCAN", self.cursor, "MATCH", keys.record("*"), "COUNT", 1000, "TYPE", "hash")

    def answer(self, reply: Any) -> Answer:
        cursor, found = reply
        # No variant, and no name of a semaphore, has a colon.
        return Names(int(cursor), tuple(key.decode(errors="replace").rpartition(":")[2] for key in found))


@dataclass(frozen=True, slots=True)
class Survey:
    """Records of some semaphores, as many as a node can tell of without keeping others waiting."""

    semaphores: Sequence[str]
    start: int  # the first slot to look at in the first of them

    def words(self, keys: Keys, sha: Mapping[str, str]) -> Words:
        records = [keys.record(semaphore) for semaphore in self.semaphores]
        prefixes = (keys.lease(""), keys.reservation(""))
        return ("EVALSHA", sha["survey"], len(records), *records, *prefixes, self.start, SURVEYED_SLOTS)

    def answer(self, reply: Any) -> Answer:
        next_slot, first, *others = reply
        records = [first, *others]
        found = tuple(Unknown() if record is None else _record(record) for record in records)
        return Page(found, None if next_slot < 0 else next_slot)


@dataclass(frozen=True, slots=True)
class AskTime:
    """The node's clock, in seconds since the epoch."""

    def words(self, _keys: Keys, _sha: Mapping[str, str]) -> Words:
        return ("TIME",)

    def answer(self, reply: Any) -> Answer:
        seconds, microseconds = reply
        return int(seconds) + int(microseconds) / 1e6


@dataclass(frozen=True, slots=True)
class AskVitals:
    """What the node counts by itself (https://redis.io/docs/latest/commands/info/)."""

    def words(self, _keys: Keys, _sha: Mapping[str, str]) -> Words:
        return ("INFO", "stats")

    def answer(self, reply: Any) -> Answer:
        return Vitals(int(read_info(reply)["expired_keys"]))


# They look, and decide nothing: a node that refuses one of them may be well for all that admissions ask.
LOOKING = (Vacant, ListNames, Survey, AskTime, AskVitals)


def read_info(reply: bytes) -> dict[str, str]:
    """What INFO has answered, by its names."""
    text = reply.decode(errors="replace")
    return dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)


def _record(reply: Sequence[Any]) -> Record:
    length, longest_ms, *rest = reply
    return Record(length, longest_ms, dict(map(_slot_and_lease, _fives(rest))))


def _fives(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[at : at + 5] for at in range(0, len(values), 5)]


def _slot_and_lease(entry: Sequence[Any]) -> tuple[int, Lease]:
    slot, token, left_ms, unclaimed_ms, holder = entry
    return slot, Lease(token.decode(), left_ms, unclaimed_ms, holder.decode(errors="replace"))
