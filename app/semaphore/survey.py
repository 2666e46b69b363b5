"""What all nodes together know: who holds which slot of which semaphore, and how each node is.

For people and metrics, which decide nothing by it: it is read node by node, not at one instant. Generators as in
quorum.py, driven by the same driver, and pure functions of what they bring.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from app.semaphore.commands import SURVEYED_SLOTS, AskTime, AskVitals, Command, ListNames, Survey
from app.semaphore.model import Answer, Lease, Names, Page, Record, Unheard, Unknown, Vitals
from app.semaphore.quorum import Ask, Steps, wait_for_all
from sidecar.protocol import majority

# How many semaphores a node is asked for at once: as many as it looks at slots. Where it is far away few asks do.
BATCH = SURVEYED_SLOTS

# What each node that was heard has of each semaphore: number of the node → semaphore → its record, or none.
Records = Mapping[int, Mapping[str, Record | Unknown]]


@dataclass(frozen=True, slots=True)
class Health:
    """How one node is; what it did not say is None."""

    fault: str | None  # why it gave no answer
    round_trip_seconds: float | None = None
    clock_offset_seconds: float | None = None  # its clock less ours
    vitals: Vitals | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot with a lease on some nodes; its time left is that on a majority of all nodes, where they are so many."""

    number: int
    lease: Lease
    nodes: frozenset[int]  # which have the lease

    @property
    def is_reserved(self) -> bool:
        """Admitted, but its sidecar has not renewed yet."""
        return self.lease.unclaimed_ms > 0


@dataclass(frozen=True, slots=True)
class State:
    """A semaphore by a majority of the nodes."""

    semaphore: str
    length: int  # by which a slot was last granted
    held: tuple[Slot, ...]  # by a majority
    unconfirmed: tuple[Slot, ...]  # on some node, but no majority: being granted, released or lost
    records: int  # how many nodes have a record
    lacking: Mapping[int, int]  # number of the node that was heard → how many of the held leases it lacks


@dataclass(frozen=True, slots=True)
class Overview:
    """All semaphores, as far as a majority of records tells of them."""

    states: tuple[State, ...]  # by name
    unreadable: tuple[str, ...]  # known to some node, but to no majority of those that were heard
    leases: Mapping[int, int]  # number of the node → live leases on it; nodes that were heard in full only
    unheard: Mapping[int, str]  # number of the node → why it was not heard in full


def health(node: int, monotonic: Callable[[], float], wall_clock: Callable[[], float]) -> Steps[Health]:
    """Ask one node how it is, on the connection that there is; both clocks give seconds."""
    sent = monotonic()
    asked_at = wall_clock()
    answer = yield _of(node, AskTime())
    round_trip = monotonic() - sent
    if isinstance(answer[node], Unheard):
        return Health(_why(answer[node]))
    # It looked at its clock half-way, as far as anybody can tell.
    offset = float(answer[node]) - (asked_at + round_trip / 2)  # type: ignore[arg-type]
    vitals = (yield _of(node, AskVitals()))[node]
    return Health(None, round_trip, offset, vitals if isinstance(vitals, Vitals) else None)


def names(nodes: int) -> Steps[tuple[frozenset[str], Mapping[int, str]]]:
    """All semaphores that any node has a record of, and why nodes could not be heard in full."""
    found: set[str] = set()
    unheard: dict[int, str] = {}
    cursors = dict.fromkeys(range(nodes), 0)
    while cursors:
        answers = yield Ask({node: ListNames(cursor) for node, cursor in cursors.items()}, wait_for_all)
        cursors = {}
        for node, answer in answers.items():
            if isinstance(answer, Names):
                found.update(answer.semaphores)
                if answer.cursor:
                    cursors[node] = answer.cursor
            else:
                unheard[node] = _why(answer)
    return frozenset(found), unheard


def read(semaphores: Sequence[str], nodes: int) -> Steps[tuple[Records, Mapping[int, str]]]:
    """What the nodes have of these semaphores, and why one did not tell of all of them."""
    readings = {node: _Reading(semaphores) for node in range(nodes)}
    unheard: dict[int, str] = {}
    while asked := {node: reading for node, reading in readings.items() if reading.next and node not in unheard}:
        answers = yield Ask({node: reading.command() for node, reading in asked.items()}, wait_for_all)
        for node, answer in answers.items():
            if isinstance(answer, Page):
                readings[node].take(answer)
            else:
                unheard[node] = _why(answer)
    return {node: reading.records for node, reading in readings.items()}, unheard


class _Reading:
    """How far one node has told of some semaphores."""

    def __init__(self, semaphores: Sequence[str]) -> None:
        self._semaphores = semaphores
        self._at = 0
        self._part: Record | None = None  # of the first of the next ones
        self._start = 0
        self.records: dict[str, Record | Unknown] = {}

    @property
    def next(self) -> Sequence[str]:
        return self._semaphores[self._at : self._at + BATCH]

    def command(self) -> Command:
        return Survey(self.next, self._start)

    def take(self, page: Page) -> None:
        """Go on behind what has come, which is one record or a part of it at least."""
        first, *others = page.records
        records = [_joined(self._part, first), *others]
        last = records[-1]
        self._start = page.next_slot or 0
        self._part = last if page.next_slot is not None and isinstance(last, Record) else None
        complete = records[:-1] if self._part else records
        self.records.update(zip(self.next, complete, strict=False))
        self._at += len(complete)


def _joined(part: Record | None, rest: Record | Unknown) -> Record | Unknown:
    """A record that came in parts; one that vanished in between is none."""
    if part and isinstance(rest, Record):
        return replace(rest, leases={**part.leases, **rest.leases})
    return rest


def overview(semaphores: Sequence[str], records: Records, unheard: Mapping[int, str], nodes: int) -> Overview:
    """What the records of the nodes that were heard come to."""
    known = {name: _of_semaphore(name, records) for name in sorted(semaphores)}
    readable = {name for name, of_nodes in known.items() if len(_kept(of_nodes)) >= majority(nodes)}
    missing = {name for name, of_nodes in known.items() if not _kept(of_nodes) and len(of_nodes) >= majority(nodes)}
    return Overview(
        states=tuple(_state(name, known[name], nodes) for name in known if name in readable),
        unreadable=tuple(name for name in known if name not in readable and name not in missing),
        leases={
            node: sum(_leases(record) for record in of_node.values())
            for node, of_node in records.items()
            if node not in unheard
        },
        unheard=unheard,
    )


def _of_semaphore(name: str, records: Records) -> dict[int, Record | Unknown]:
    return {node: of_node[name] for node, of_node in records.items() if name in of_node}


def _kept(of_nodes: Mapping[int, Record | Unknown]) -> dict[int, Record]:
    return {node: record for node, record in of_nodes.items() if isinstance(record, Record)}


def _leases(record: Record | Unknown) -> int:
    return len(record.leases) if isinstance(record, Record) else 0


def _state(name: str, of_nodes: Mapping[int, Record | Unknown], nodes: int) -> State:
    records = _kept(of_nodes)
    slots = sorted(_slots(records, nodes), key=lambda slot: slot.number)
    held = tuple(slot for slot in slots if len(slot.nodes) >= majority(nodes))
    lengths = Counter(record.length for record in records.values())
    return State(
        semaphore=name,
        length=lengths.most_common(1)[0][0],
        held=held,
        unconfirmed=tuple(slot for slot in slots if len(slot.nodes) < majority(nodes)),
        records=len(records),
        lacking={node: sum(node not in slot.nodes for slot in held) for node in of_nodes},
    )


def _slots(records: Mapping[int, Record], nodes: int) -> Iterator[Slot]:
    """Each token that has a slot on any node. One slot may have two while it changes hands."""
    copies: dict[tuple[int, str], dict[int, Lease]] = {}
    for node, record in records.items():
        for number, lease in record.leases.items():
            copies.setdefault((number, lease.token), {})[node] = lease
    for (number, _), of_nodes in copies.items():
        leases = sorted(of_nodes.values(), key=lambda lease: lease.left_ms, reverse=True)
        # Until then a majority has it; and a sidecar that any node has heard of has started.
        decisive = leases[min(len(leases), majority(nodes)) - 1]
        unclaimed_ms = min(lease.unclaimed_ms for lease in leases)
        yield Slot(number, replace(decisive, unclaimed_ms=unclaimed_ms), frozenset(of_nodes))


def _of(node: int, command: Command) -> Ask:
    return Ask({node: command}, wait_for_all, connects=False)


def _why(answer: Answer) -> str:
    return answer.why if isinstance(answer, Unheard) else "an answer of another kind"
