"""A node in memory: the commands of app/semaphore/commands.py, executed on Python values.

Held to the Lua scripts by test_node.py. Knows no message and no fault: see world.py.
"""

from dataclasses import dataclass, field
from functools import singledispatchmethod

from app.semaphore.commands import (
    SURVEYED_SLOTS,
    Acquire,
    Collect,
    Command,
    Prolong,
    Read,
    Recent,
    Release,
    Renew,
    Restore,
    Vacant,
    Withdraw,
)
from app.semaphore.model import (
    Answer,
    Claim,
    Full,
    Granted,
    Lease,
    Record,
    Standing,
    Taken,
    Unknown,
    Vacancies,
)

SHOWN = 20


@dataclass
class Kept:
    """A record: which token was last given a slot."""

    length: int = 0
    bound: int = 0
    longest_ms: int = 0
    touched_ms: int = 0
    slots: dict[int, str] = field(default_factory=dict)


@dataclass
class Node:
    """What one node remembers; `now_ms` is its clock, which callers set."""

    now_ms: int = 0
    records: dict[str, Kept] = field(default_factory=dict)
    leases: dict[str, tuple[int, str]] = field(default_factory=dict)  # token -> end, holder
    reservations: dict[str, int] = field(default_factory=dict)  # token -> end
    granted: dict[str, int] = field(default_factory=dict)  # token with a reservation -> when an admission got it

    def execute(self, command: Command) -> Answer:
        """Do what the command says, at once and as a whole, and answer."""
        return self._do(command)

    def has_data(self, semaphore: str) -> bool:
        """Whether the node has not lost what it knew of the semaphore."""
        return semaphore in self.records

    def left_ms(self, token: str) -> int:
        """How long the token's lease still lasts; 0 if there is none."""
        end, _ = self.leases.get(token, (0, ""))
        return max(0, end - self.now_ms)

    def live_tokens(self) -> set[str]:
        return {token for token in self.leases if self.left_ms(token)}

    @singledispatchmethod
    def _do(self, command: Command) -> Answer:
        raise NotImplementedError(command)

    @_do.register
    def _acquire(self, command: Acquire) -> Answer:
        claim, token = command.claim, command.token
        if claim.semaphore not in self.records and not command.found:
            return Unknown()
        record = self.records.get(claim.semaphore, Kept())
        before = self._slot_held(record, token)
        if before is not None:
            if claim.reuses_token and self._prolong(Prolong(token, claim.reservation_ms)) is Standing.RESERVED:
                record.longest_ms, record.touched_ms = max(record.longest_ms, claim.longest_ms), self.now_ms
            return Granted(before)
        if self.left_ms(token):
            return Full(0, (), 0) if command.slot is None else Taken()
        held = self._held_beyond(record, claim)
        if held is not None and held >= claim.length:
            return self._full(record, claim.length, held) if command.slot is None else Taken()
        if command.slot is not None:
            held_by_other = self._is_held(record, command.slot, claim.longest_ms)
            return Taken() if held_by_other else self._grant(record, command, command.slot)
        order = [(command.start + at) % claim.length for at in range(claim.length)]
        for slot in order:
            if not self._is_held(record, slot, claim.longest_ms):
                return self._grant(record, command, slot)
        return self._full(record, claim.length, claim.length)

    @_do.register
    def _renew(self, command: Renew) -> Answer:
        if not self.left_ms(command.token):
            return False
        self.leases[command.token] = (self.now_ms + command.lease_ms, self.leases[command.token][1])
        return True

    @_do.register
    def _release(self, command: Release) -> Answer:
        lived = bool(self.left_ms(command.token))
        reserved = self._unclaimed_ms(command.token) > 0
        self.leases.pop(command.token, None)
        self.reservations.pop(command.token, None)
        return lived or reserved

    @_do.register
    def _withdraw(self, command: Withdraw) -> Answer:
        return self._unclaimed_ms(command.token) > 0 and self._release(command)

    @_do.register
    def _prolong(self, command: Prolong) -> Answer:
        token = command.token
        if not self.left_ms(token):
            return Standing.LOST
        if self._unclaimed_ms(token) <= 0:
            return Standing.CLAIMED
        end = self.now_ms + command.reservation_ms
        self.reservations[token], self.leases[token] = end, (end, self.leases[token][1])
        return Standing.RESERVED

    @_do.register
    def _vacant(self, command: Vacant) -> Answer:
        spare = SURVEYED_SLOTS - sum(command.lengths.values())
        found = set()
        for semaphore, length in command.lengths.items():
            looked, held = self._look_at(self.records.get(semaphore, Kept()), length, spare)
            spare -= max(0, looked - length)
            if held < length:
                found.add(semaphore)
        return Vacancies(frozenset(found))

    @_do.register
    def _collect(self, command: Collect) -> Answer:
        record = self.records.get(command.semaphore)
        if record is None:
            return True
        idle_ms = self.now_ms - record.touched_ms
        if idle_ms < command.idle_seconds * 1000 or any(map(self.left_ms, record.slots.values())):
            return False
        if command.removing:
            del self.records[command.semaphore]
        return True

    @_do.register
    def _recent(self, command: Recent) -> Answer:
        token, record = command.token, self.records.get(command.semaphore, Kept())
        if record.slots.get(command.slot) != token or not self.left_ms(token) or self._unclaimed_ms(token) <= 0:
            return False
        return token in self.granted and self.now_ms - self.granted[token] <= command.within_ms

    @_do.register
    def _read(self, command: Read) -> Answer:
        record = self.records.get(command.semaphore)
        if record is None:
            return Unknown()
        leases = {
            slot: Lease(
                token,
                min(self.left_ms(token), record.longest_ms),
                min(self._unclaimed_ms(token), record.longest_ms),
                self.leases[token][1],
            )
            for slot, token in record.slots.items()
            if self.left_ms(token)
        }
        return Record(record.length, record.longest_ms, leases)

    @_do.register
    def _restore(self, command: Restore) -> Answer:
        if (command.semaphore in self.records) != command.recorded:
            return -1
        record = self.records.setdefault(command.semaphore, Kept())
        for lease in command.record.leases.values():
            if not self.left_ms(lease.token):
                self._forget_entries(record, lease.token)
        written = 0
        for slot, lease in command.record.leases.items():
            held = slot in record.slots and self.left_ms(record.slots[slot])
            if not held and not self.left_ms(lease.token):
                record.slots[slot] = lease.token
                record.bound = max(record.bound, slot + 1)
                self.leases[lease.token] = (self.now_ms + lease.left_ms, lease.holder)
                if lease.unclaimed_ms > 0:
                    self.reservations[lease.token] = self.now_ms + lease.unclaimed_ms
                    self.granted.pop(lease.token, None)
                written += 1
        record.touched_ms = self.now_ms
        record.length = command.record.length
        record.longest_ms = max(record.longest_ms, command.record.longest_ms)
        return written

    def _grant(self, record: Kept, command: Acquire, slot: int) -> Granted:
        self.records[command.claim.semaphore] = record
        end = self.now_ms + command.claim.reservation_ms
        record.touched_ms = self.now_ms
        self.granted[command.token] = self.now_ms
        if command.claim.reuses_token:
            self._forget_entries(record, command.token)
            del self.granted[command.token]
        record.slots[slot] = command.token
        record.length, record.bound = command.claim.length, max(record.bound, slot + 1)
        record.longest_ms = max(record.longest_ms, command.claim.longest_ms)
        self.leases[command.token] = (end, command.claim.holder)
        self.reservations[command.token] = end
        return Granted(slot)

    def _look_at(self, record: Kept, length: int, spare: int) -> tuple[int, int]:
        """At its length's slots, and so many more, until that many are held; how many it looked at, and are held."""
        looked = held = 0
        if record.bound >= length:
            while held < length and looked < min(record.bound, length + max(0, spare)):
                held += bool(self.left_ms(record.slots.get(looked, "")))
                looked += 1
        return looked, held

    def _slots(self, semaphore: str) -> dict[int, str]:
        return self.records.get(semaphore, Kept()).slots

    def _forget_entries(self, record: Kept, token: str) -> None:
        record.slots = {slot: other for slot, other in record.slots.items() if other != token}

    def _slot_held(self, record: Kept, token: str) -> int | None:
        slots = (slot for slot, known in record.slots.items() if known == token)
        return next(slots, None) if self.left_ms(token) else None

    def _is_held(self, record: Kept, slot: int, longest_ms: int) -> bool:
        token = record.slots.get(slot)
        if token is None or not self.left_ms(token):
            return False
        end, holder = self.leases[token]
        latest = self.now_ms + max(record.longest_ms, longest_ms)
        if end > latest:
            self.leases[token] = (latest, holder)
            self.reservations[token] = min(self.reservations.get(token, 0), latest)
        return True

    def _held_beyond(self, record: Kept, claim: Claim) -> int | None:
        length = claim.length
        if record.bound <= length:
            return None
        live = [slot for slot in record.slots if self._is_held(record, slot, claim.longest_ms)]
        record.slots = {slot: token for slot, token in record.slots.items() if slot < length or slot in live}
        if any(slot >= length for slot in live):
            return len(live)
        record.bound = length
        return None

    def _full(self, record: Kept, length: int, held: int) -> Full:
        shown = [record.slots[slot] for slot in range(min(max(length, record.bound), SHOWN)) if slot in record.slots]
        live = [token for token in shown if self.left_ms(token)]
        unstarted = sum(self._unclaimed_ms(token) > 0 for token in live)
        return Full(held, tuple(self.leases[token][1] for token in live), unstarted)

    def _unclaimed_ms(self, token: str) -> int:
        end = self.reservations.get(token, 0)
        return end - self.now_ms if end > self.now_ms else -2
