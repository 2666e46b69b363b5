"""The protocol: who is asked what, and what their answers decide, always by a majority of all nodes.

Written as generators, so that production and the tests run the same rules: a step is yielded, the answers are
sent in. Knows no Redis, no socket and no deadline: whoever drives it answers `Unheard` for a node that cannot
be reached, is passed over, or has used up the time. Nodes go by their number in the configured order.

The order of the nodes matters. The first that answers and has a record is the *sequencer* of an admission: it
picks the slot, the others are asked for just that one. So contenders queue up at one node and do not split the
vote, as they do in plain Redlock (https://redis.io/docs/latest/develop/use/patterns/distributed-locks/).
"""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

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
    Grant,
    Granted,
    Lease,
    Outcome,
    Record,
    Standing,
    Taken,
    Unavailable,
    Unheard,
    Unknown,
    Vacancies,
)
from sidecar.protocol import Renewal, majority, renewal

T = TypeVar("T")
Answers = Mapping[int, Answer]

# A try that found no majority is repeated after a random pause, of up to this long at first and doubled each
# time: contenders that hit upon each other drift apart.
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.2
TRIES = 10
# A slot that others said was taken is worth one more try, since a passing contender may have held it. After that
# they know better than the sequencer: it cannot be told what they know, or they cannot.
TRIES_BEFORE_DOUBTING = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """Send each node its command, all at once; answers may stop coming in once there are `enough`."""

    commands: Mapping[int, Command]
    enough: Callable[[Answers], bool]
    connects: bool = True  # False: on the connections that there are, so that nothing else is waited for


@dataclass(frozen=True, slots=True)
class Pause:
    """Let this much time pass."""

    seconds: float


Steps = Generator[Ask | Pause, Answers, T]


@dataclass(frozen=True, slots=True)
class _Try:
    """How one try ended: with an outcome, or without a majority for the slot that was picked."""

    outcome: Outcome | None
    answers: Answers

    @property
    def lacks_records(self) -> bool:
        return any(isinstance(answer, Unknown) for answer in self.answers.values())

    @property
    def doubters(self) -> set[int]:
        """The nodes that said that the slot was taken."""
        return {node for node, answer in self.answers.items() if isinstance(answer, Taken)}

    @property
    def is_final(self) -> bool:
        """Whether another try would be in vain. It would not if this one has just found out that a node is silent.

        Others may have been passed over that are back: they are looked for where there is no majority without.
        """
        unheard = {answer.asked for answer in self.answers.values() if isinstance(answer, Unheard)}
        return isinstance(self.outcome, Grant | Full) or (self.outcome is not None and unheard != {True, False})


def acquire(claim: Claim, nodes: int, tokens: Iterable[str], rng: Random, clock: Callable[[], float]) -> Steps[Outcome]:
    """Get a slot. Every try uses the next of `tokens`: a withdrawal of an earlier try that is late cannot touch it.

    Where a pod's token is decided already they are all that one. A late withdrawal may then end what was granted
    meanwhile, to us or to somebody else who asks for the same pod; but not once its sidecar has renewed, and before
    that its app does not run.

    `clock` gives monotonic seconds. Whatever is not granted has been withdrawn, on the nodes unheard as well.
    """
    order = list(range(nodes))
    # Of all tries: a node may refuse one command, and answer the one that the last try ends with.
    reasons: dict[int, str] = {}
    for tried, token in zip(range(TRIES), tokens, strict=False):
        ended = yield from _try(Acquire(claim, token, rng.randrange(claim.length)), order, nodes)
        reasons |= _reasons(ended.answers)
        if not isinstance(ended.outcome, Grant | Full):
            yield from _send(Withdraw(token), nodes)
        if ended.lacks_records or (ended.outcome is None and ended.doubters):
            yield from repair(claim.semaphore, nodes, clock)
        if ended.outcome and ended.is_final:
            return ended.outcome
        if ended.doubters and tried + 1 >= TRIES_BEFORE_DOUBTING:
            order = sorted(range(nodes), key=lambda node: node not in ended.doubters)
        yield Pause(rng.uniform(0, min(FIRST_PAUSE_SECONDS * 2**tried, LONGEST_PAUSE_SECONDS)))
    if ended.lacks_records:  # and whoever could tell them is away
        return Unavailable(f"fewer than {majority(nodes)} of {nodes} nodes know it", reasons)
    return ended.outcome or Unavailable("the nodes do not agree on a slot", reasons)


def _try(any_slot: Acquire, order: Sequence[int], nodes: int) -> Steps[_Try]:
    """One try with one token: the sequencer picks, the others confirm."""
    answers = yield from _ask_in_turn(any_slot, order, nodes)
    found = _nobody_knows(answers, nodes)
    if found:
        heard = _heard(answers)
        answers = {node: answer for node, answer in answers.items() if node not in heard}
        answers.update((yield from _ask_in_turn(replace(any_slot, found=True), heard, nodes)))
    for sequencer, pick in answers.items():
        if isinstance(pick, Full):
            return _Try(pick, answers)
        if isinstance(pick, Granted):
            exactly = Acquire(any_slot.claim, any_slot.token, slot=pick.slot, found=found)
            return (yield from _confirm(exactly, pick, sequencer, answers, nodes))
    return _Try(_no_majority(answers, nodes) if _is_out_of_reach(answers, nodes) else None, answers)


def _confirm(exactly: Acquire, pick: Granted, sequencer: int, answers: Answers, nodes: int) -> Steps[_Try]:
    """Ask the others for the slot that the sequencer picked; those that said they have no record abstain."""
    others = {node for node in range(nodes) if node != sequencer and not isinstance(answers.get(node), Unknown)}

    def is_decided(heard: Answers) -> bool:
        votes = 1 + sum(answer == pick for answer in heard.values())
        return votes >= majority(nodes) or votes + len(others) - len(heard) < majority(nodes)

    confirmed = yield Ask({node: exactly for node in others}, is_decided)
    answers = {**answers, **confirmed}
    if sum(answer == pick for answer in answers.values()) >= majority(nodes):
        return _Try(Grant(pick.slot, exactly.token), answers)
    undecided = len(_heard(answers)) >= majority(nodes)
    return _Try(None if undecided else _no_majority(answers, nodes), answers)


def _ask_in_turn(command: Acquire, order: Iterable[int], nodes: int) -> Steps[dict[int, Answer]]:
    """Ask one node after the other until one has a record, or a majority can no longer be had.

    A node that was asked and is silent spends the token: it may yet give it a slot of its own choosing, where the
    token, were it granted another slot by the others, would hold both. The next try passes that node over.
    """
    answers: dict[int, Answer] = {}
    for node in order:
        answers.update((yield Ask({node: command}, wait_for_all)))
        if _ends_search(answers[node]) or _is_out_of_reach(answers, nodes):
            break
    return answers


def _ends_search(answer: Answer) -> bool:
    return answer.asked if isinstance(answer, Unheard) else isinstance(answer, Granted | Full)


def _is_out_of_reach(answers: Answers, nodes: int) -> bool:
    """Whether so many nodes gave no usable answer that the others are no majority."""
    return len(answers) - len(_heard(answers)) > nodes - majority(nodes)


def _nobody_knows(answers: Answers, nodes: int) -> bool:
    """Whether the semaphore is new: a majority says so, and nobody says otherwise or may yet."""
    unknown = sum(isinstance(answer, Unknown) for answer in answers.values())
    return unknown >= majority(nodes) and not any(_ends_search(answer) for answer in answers.values())


def _no_majority(answers: Answers, nodes: int) -> Unavailable:
    return Unavailable(f"fewer than {majority(nodes)} of {nodes} nodes answered", _reasons(answers))


def _reasons(answers: Answers) -> dict[int, str]:
    """Why nodes gave no answer."""
    return {node: answer.why for node, answer in answers.items() if isinstance(answer, Unheard)}


def _send(release: Release, nodes: int) -> Steps[None]:
    """Release everywhere without waiting: a connection keeps the order."""
    yield Ask({node: release for node in range(nodes)}, _at_once)


def release(release: Release, nodes: int) -> Steps[bool]:
    """End a lease on all nodes; whether a majority has answered."""
    answers = yield Ask({node: release for node in range(nodes)}, wait_for_all)
    return len(_heard(answers)) >= majority(nodes)


def renew(token: str, lease_ms: int, nodes: int) -> Steps[Renewal]:
    """Prolong the lease of `token` on all nodes; one that a majority has lost is ended on the others too."""

    def judge(answers: Answers) -> Renewal:
        return renewal({node: bool(answer) for node, answer in _heard(answers).items()}, nodes)

    answers = yield Ask(
        {node: Renew(token, lease_ms) for node in range(nodes)},
        lambda heard: judge(heard) is not Renewal.UNKNOWN,
    )
    outcome = judge(answers)
    if outcome is Renewal.LOST:
        yield from _send(Release(token), nodes)
    return outcome


def prolong(token: str, reservation_ms: int, nodes: int) -> Steps[Standing]:
    """Give a reservation more time on all nodes, and say how it stands.

    A sidecar that any node has heard of has started. Where a majority answers, and no majority has the reservation, it
    is lost: silent nodes may have it too, but may be so for long, and all the while a minority would keep it without
    its being of use. Whoever asks for the slot again, with the same token, finds it or is granted it.
    """
    answers = yield Ask({node: Prolong(token, reservation_ms) for node in range(nodes)}, wait_for_all)
    said = Counter(answer for answer in answers.values() if isinstance(answer, Standing))
    if said.total() < majority(nodes):
        return Standing.UNKNOWN
    if said[Standing.LOST] >= majority(nodes):
        return Standing.LOST
    if said[Standing.CLAIMED]:
        return Standing.CLAIMED
    return Standing.RESERVED if said[Standing.RESERVED] >= majority(nodes) else Standing.LOST


def vacant(lengths: Mapping[str, int], nodes: int) -> Steps[frozenset[str] | None]:
    """Which of these semaphores may have a slot to give, by the first node that answers; None: nobody does.

    A hint, by which somebody who waits knows when to ask: as long as the first node says full, so does an admission.
    """
    found: set[str] = set()
    for some in _batches(lengths):
        for node in range(nodes):
            answer = (yield Ask({node: Vacant(some)}, wait_for_all))[node]
            if isinstance(answer, Vacancies):
                found |= answer.semaphores
                break
        else:
            return None
    return frozenset(found)


def _batches(lengths: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """As many semaphores at once as a node can look at without keeping others waiting, one at least.

    By their lengths, as it looks at that many slots of each in any case: a full one that it could not look at would
    seem vacant, and cost an admission in vain. However short, each costs a look at its record.
    """
    batch: dict[str, int] = {}
    looks = 0
    for semaphore, length in lengths.items():
        looks += max(1, length)
        if batch and looks > SURVEYED_SLOTS:
            yield batch
            batch, looks = {}, max(1, length)
        batch[semaphore] = length
    if batch:
        yield batch


def collect(semaphore: str, idle_seconds: int, nodes: int) -> Steps[bool]:
    """Remove the record of a semaphore that nobody uses any more, if all nodes say so; whether they did.

    All: a record that is missing on one node is a vote lost there. Each looks once more as it removes, so a slot that
    is granted meanwhile keeps the record where it was granted, from where it is repaired.
    """
    for removing in (False, True):
        command = Collect(semaphore, idle_seconds, removing)
        answers = yield Ask({node: command for node in range(nodes)}, wait_for_all)
        if not all(answer is True for answer in answers.values()):
            return False
    return True


def recent(semaphore: str, slot: int, token: str, within_ms: int, nodes: int) -> Steps[bool]:
    """Whether a majority says that an admission was granted the slot for the token within so long, and no sidecar runs.

    Not if it cannot be said: whoever asks takes another slot then.
    """

    def is_confirmed(heard: Answers) -> bool:
        return sum(answer is True for answer in heard.values()) >= majority(nodes)

    answers = yield Ask({node: Recent(semaphore, slot, token, within_ms) for node in range(nodes)}, is_confirmed)
    return is_confirmed(answers)


def repair(semaphore: str, nodes: int, clock: Callable[[], float]) -> Steps[bool]:
    """Bring nodes up to date that lack the record of a semaphore, or leases in it; whether no node is left out.

    Does nothing where it cannot be sure: too few records, or two nodes that name different tokens for a slot
    (an admission is under way, or one of the leases will end).
    """
    asked = clock()
    answers = yield Ask({node: Read(semaphore) for node in range(nodes)}, wait_for_all)
    records = {node: answer for node, answer in answers.items() if isinstance(answer, Record)}
    empty = [node for node, answer in answers.items() if isinstance(answer, Unknown)]
    if not records or (len(records) < majority(nodes) and len(records) + len(empty) < nodes):
        return len(empty) == nodes  # nobody lacks what nobody has
    union = _union(records.values())
    if union is None:
        return False
    common = _held_by_majority(union, records.values(), nodes)
    age_ms = round((clock() - asked) * 1000)
    restored = yield Ask(
        {
            **{node: Restore(semaphore, False, _aged(union, age_ms)) for node in empty},
            **{
                node: Restore(semaphore, True, _aged(lacking, age_ms))
                for node, record in records.items()
                if (lacking := _without(common, record)).leases
            },
        },
        wait_for_all,
    )
    return len(records) + len(empty) == nodes and len(_heard(restored)) == len(restored)


def _union(records: Collection[Record]) -> Record | None:
    """All leases that any of the records has, each with the longest life; None if two contradict each other."""
    leases: dict[int, Lease] = {}
    for record in records:
        for slot, lease in record.leases.items():
            known = leases.get(slot, lease)
            if known.token != lease.token:
                return None
            leases[slot] = max(known, lease, key=lambda one: one.left_ms)
    return Record(max(record.length for record in records), max(record.longest_ms for record in records), leases)


def _held_by_majority(union: Record, records: Collection[Record], nodes: int) -> Record:
    held = Counter(slot for record in records for slot in record.leases)
    return replace(union, leases={slot: union.leases[slot] for slot in union.leases if held[slot] >= majority(nodes)})


def _without(common: Record, record: Record) -> Record:
    """What `record` lacks of `common`."""
    return replace(common, leases={slot: each for slot, each in common.leases.items() if slot not in record.leases})


def _aged(record: Record, age_ms: int) -> Record:
    """The record after `age_ms`: a restored lease must not outlive the one it was read from."""
    leases = {
        slot: replace(lease, left_ms=lease.left_ms - age_ms, unclaimed_ms=lease.unclaimed_ms - age_ms)
        for slot, lease in record.leases.items()
        if lease.left_ms > age_ms
    }
    return replace(record, leases=leases)


def _heard(answers: Answers) -> dict[int, Answer]:
    return {node: answer for node, answer in answers.items() if not isinstance(answer, Unheard)}


def wait_for_all(_: Answers) -> bool:
    """Every answer counts: wait for all of them."""
    return False


def _at_once(_: Answers) -> bool:
    """No answer is needed: send, and go on."""
    return True
