"""A node in memory: the commands of app/semaphore/commands.py, executed on Python values.

Held to the Lua scripts by test_node.py. Knows no message and no fault: see world.py.
"""

from dataclasses import dataclass, field
from functools import singledispatchmethod

from app.semaphore.commands import Acquire, Command, Read, Release, Renew, Restore, Unclaimed
from app.semaphore.model import Answer, Full, Granted, Lease, Record, Taken, Unknown
from sidecar.protocol import LONGEST_LEASE_MS

SHOWN = 20


@dataclass
class _Kept:
    """A record: which token was last given a slot."""

    length: int = 0
    bound: int = 0
    slots: dict[int, str] = field(default_factory=dict)


@dataclass
class Node:
    """What one node remembers; `now_ms` is its clock, which callers set."""

    now_ms: int = 0
    records: dict[str, _Kept] = field(default_factory=dict)
    leases: dict[str, tuple[int, str]] = field(default_factory=dict)  # token -> end, holder
    reservations: dict[str, int] = field(default_factory=dict)  # token -> end

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

    @singledispatchmethod
    def _do(self, command: Command) -> Answer:
        raise NotImplementedError(command)

    @_do.register
    def _acquire(self, command: Acquire) -> Answer:
        claim, token = command.claim, command.token
        if claim.semaphore not in self.records and not command.found:
            return Unknown()
        record = self.records.get(claim.semaphore, _Kept())
        if self.left_ms(token):
            for slot, known in record.slots.items():
                if known == token:
                    return Granted(slot)
        held = self._held_beyond(record, claim.length)
        if held is not None and held >= claim.length:
            return self._full(record, claim.length, held) if command.slot is None else Taken()
        if command.slot is not None:
            return Taken() if self._is_held(record, command.slot) else self._grant(record, command, command.slot)
        order = [(command.start + at) % claim.length for at in range(claim.length)]
        free = (slot for slot in order if slot not in command.avoid and not self._is_held(record, slot))
        for slot in free:
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
    def _unclaimed(self, command: Unclaimed) -> Answer:
        record = self.records.get(command.semaphore, _Kept())
        if record.slots.get(command.slot) != command.token or not self.left_ms(command.token):
            return -2
        return self._unclaimed_ms(command.token)

    @_do.register
    def _read(self, command: Read) -> Answer:
        record = self.records.get(command.semaphore)
        if record is None:
            return Unknown()
        leases = {
            slot: Lease(token, self.left_ms(token), self._unclaimed_ms(token), self.leases[token][1])
            for slot, token in record.slots.items()
            if self.left_ms(token)
        }
        return Record(record.length, leases)

    @_do.register
    def _restore(self, command: Restore) -> Answer:
        if (command.semaphore in self.records) != command.recorded:
            return -1
        record = self.records.setdefault(command.semaphore, _Kept())
        written = 0
        for slot, lease in command.record.leases.items():
            held = slot in record.slots and self.left_ms(record.slots[slot])
            if not held and not self.left_ms(lease.token):
                record.slots[slot] = lease.token
                record.bound = max(record.bound, slot + 1)
                self.leases[lease.token] = (self.now_ms + lease.left_ms, lease.holder)
                if lease.unclaimed_ms > 0:
                    self.reservations[lease.token] = self.now_ms + lease.unclaimed_ms
                written += 1
        record.length = command.record.length
        return written

    def _grant(self, record: _Kept, command: Acquire, slot: int) -> Granted:
        self.records[command.claim.semaphore] = record
        end = self.now_ms + command.claim.reservation_ms
        record.slots[slot] = command.token
        record.length, record.bound = command.claim.length, max(record.bound, slot + 1)
        self.leases[command.token] = (end, command.claim.holder)
        self.reservations[command.token] = end
        return Granted(slot)

    def _is_held(self, record: _Kept, slot: int) -> bool:
        token = record.slots.get(slot)
        if token is None or not self.left_ms(token):
            return False
        end, holder = self.leases[token]
        self.leases[token] = (min(end, self.now_ms + LONGEST_LEASE_MS), holder)
        return True

    def _held_beyond(self, record: _Kept, length: int) -> int | None:
        if record.bound <= length:
            return None
        live = [slot for slot in record.slots if self._is_held(record, slot)]
        record.slots = {slot: token for slot, token in record.slots.items() if slot < length or slot in live}
        if any(slot >= length for slot in live):
            return len(live)
        record.bound = length
        return None

    def _full(self, record: _Kept, length: int, held: int) -> Full:
        shown = [record.slots[slot] for slot in range(min(length, SHOWN)) if slot in record.slots]
        return Full(held, tuple(self.leases[token][1] for token in shown if self.left_ms(token)))

    def _unclaimed_ms(self, token: str) -> int:
        end = self.reservations.get(token, 0)
        return end - self.now_ms if end > self.now_ms else -2
