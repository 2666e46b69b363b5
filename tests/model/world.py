"""Actors, nodes in memory and the network between them; whoever drives it chooses what happens to each message.

The protocol is production's own, `app.semaphore.quorum` (or a mutant of it, to see that a fault in it would be
found). Holders renew and release by its generators too, which judge by the rule that the sidecar uses,
`sidecar.protocol.renewal`. Knows nothing of how choices are made: see test_model.py.

Does not happen here, because a promise does not hold there; test_stories.py tells what comes of the first:

- a review is repeated at another worker while releases of the first time are on their way;
- a clock runs fast. Clocks may differ, and fall behind by a little.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from types import ModuleType
from typing import Any

from app.semaphore.commands import Acquire, Command, Release, Renew, Restore, Withdraw
from app.semaphore.model import Answer, Claim, Full, Grant, Granted, Outcome, Unheard, Unknown
from sidecar.protocol import Renewal, majority
from tests.model.node import Node

SEMAPHORE = "batch/model"
RESERVATION_MS = 300
LEASE_MS = 100
MOST_LAG_MS = 30
ALL_ENDED_AFTER_MS = RESERVATION_MS + LEASE_MS + MOST_LAG_MS


class Fate(Enum):
    """What becomes of one request and its answer."""

    ANSWERED = "answered"
    REQUEST_LOST = "request lost"  # with its connection
    REPLY_LOST = "reply lost"  # with its connection, after execution
    LATE = "late"  # nobody waits any longer; it is executed some time, behind what was sent before
    NOT_SENT = "not sent"  # the node is passed over, or the time is up; a release is sent later


class BrokenPromise(AssertionError):  # noqa: N818  what it says is not an error of the test
    """A promise was broken."""


@dataclass
class Review:
    """What an API server asks; when it asks the same again, the same tokens are derived."""

    name: str
    length: int
    times: int = 0
    waits: bool = False

    @property
    def token(self) -> str:
        """That of a pod that waits."""
        return f"{self.name}."


@dataclass
class Actor:
    """A process with connections of its own: a webhook's worker, or a sidecar."""

    nodes: int
    owes: bool = True  # a worker sends a lost release again and keeps the order; a sidecar does neither
    steps: Any = None  # the generator that is under way
    step: Any = None  # what it has asked for
    finish: Callable[[Any], None] = lambda _: None  # what to do with its result
    review: Review | None = None
    started_ms: int = 0
    stepped_ms: int = 0  # when it made up its mind what to ask for
    tokens: set[str] = field(default_factory=set)
    unanswered: dict[int, deque[Command]] = field(default_factory=dict)  # node -> sent and not executed yet
    unknown: set[int] = field(default_factory=set)  # nodes that have said so on the connection of now
    held_everywhere: set[str] = field(default_factory=set)  # when it began
    upheavals: int = 0  # when it began

    def __post_init__(self) -> None:
        self.unanswered = {node: deque() for node in range(self.nodes)}


@dataclass
class Holder:
    """A pod that was granted a slot, as it sees itself: from the grant until its release or its lease's end."""

    token: str
    length: int
    ends_ms: int
    sidecar: Actor
    review: Review
    claimed: bool = False  # its sidecar has begun
    released: bool = False
    lost: bool = False  # a majority said so; its sidecar tries on


class World:
    """Everything, and the promises about it."""

    def __init__(self, count: int, quorum: ModuleType, node: type[Node] = Node, seed: int = 0) -> None:
        self.quorum = quorum
        self.rng = Random(seed)
        # Clocks that show different times, which must not matter, and may fall behind a little.
        self.ahead_ms = [self.rng.randrange(1000) for _ in range(count)]
        self.lags_ms = [0] * count
        self.nodes = [node(now_ms=ahead) for ahead in self.ahead_ms]
        self.webhooks: list[Actor] = []
        self.reviews: list[Review] = []
        self.holders: list[Holder] = []
        self.strays: list[tuple[Actor, int, Command]] = []  # on connections that nobody listens to any more
        self.down: set[int] = set()
        self.lacking: set[int] = set()  # nodes that have lost data, or missed a founding, until they are repaired
        self.now_ms = 0
        self.reuse_tokens = False
        self.founds_anew = False
        self.keeps_entries = False
        self.outcomes: list[Outcome] = []
        self.losses = 0  # how often a node has lost its data
        self.upheavals = 0  # how often leases have come or gone otherwise than by their tokens
        self.excused: set[str] = set()  # tokens whose leases may be left though nobody was granted them
        self.latest_end_ms: dict[str, int] = {}  # of each token's leases, but for restored ones

    # What may happen -------------------------------------------------------------------------------------

    def webhook(self) -> Actor:
        actor = Actor(len(self.nodes))
        self.webhooks.append(actor)
        return actor

    def begin_admission(self, actor: Actor, length: int) -> Review:
        review = Review(str(len(self.reviews)), length)
        self.reviews.append(review)
        self.begin_review(actor, review)
        return review

    def begin_review(self, actor: Actor, review: Review) -> None:
        review.times += 1
        # No pod has come of what was granted before: the answer was lost.
        self.excused |= {holder.token for holder in self.holders if holder.review is review}
        self.holders = [holder for holder in self.holders if holder.review is not review]
        actor.review = review
        actor.held_everywhere = {holder.token for holder in self.active() if self._is_everywhere(holder.token)}
        actor.upheavals = self.upheavals
        claim = Claim(SEMAPHORE, review.length, RESERVATION_MS, LEASE_MS, "{}")
        tokens = self._tokens(actor, review)
        steps = self.quorum.acquire(claim, len(self.nodes), tokens, self.rng, self._clock)
        self._begin(actor, steps, lambda outcome: self._admitted(actor, review, outcome))

    def may_repeat(self, review: Review, actor: Actor) -> bool:
        """Whether the API server may ask again: nobody is about to answer, and no pod has come of it.

        A release that is on its way from elsewhere would end the lease that the second time takes.
        """
        if any(each.steps and each.review is review for each in self.webhooks):
            return False
        if any(holder.claimed for holder in self.holders if holder.review is review):
            return False
        elsewhere = [command for _, _, command in self.strays]
        for each in self.webhooks:
            if each is not actor:
                elsewhere += itertools.chain(*each.unanswered.values())
        return not any(self._is_of(command.token, review) for command in elsewhere if isinstance(command, Release))

    def begin_renewal(self, holder: Holder) -> None:
        """Also of a holder that has ended: a process that slept past its lease does not know."""
        actor = holder.sidecar
        holder.claimed = True
        # It may shorten what is left of a reservation, whether or not the answers are heard: sidecar.lease knows.
        holder.ends_ms = min(holder.ends_ms, self.now_ms + LEASE_MS)
        steps = self.quorum.renew(holder.token, LEASE_MS, len(self.nodes))
        self._begin(actor, steps, lambda outcome: self._renewed(holder, outcome, actor.started_ms))

    def stretch(self, holder: Holder, lease_ms: int) -> None:
        """A tenant uses the credentials in its pod."""
        holder.claimed = True
        for node in range(len(self.nodes)):
            self._execute(holder.sidecar, node, Renew(holder.token, lease_ms))

    def begin_release(self, holder: Holder) -> None:
        holder.claimed = holder.released = True
        self._begin(holder.sidecar, self.quorum.release(Release(holder.token), len(self.nodes)), lambda _: None)

    def begin_waiting(self, length: int) -> Review:
        """A pod that waits is created."""
        review = Review(str(len(self.reviews)), length, waits=True)
        self.reviews.append(review)
        self.excused.add(review.token)
        return review

    def waiting(self) -> list[Review]:
        return [review for review in self.reviews if review.waits]

    def begin_grant(self, actor: Actor, review: Review) -> None:
        """Somebody asks for the slot of a pod that waits, whoever else may be about to."""
        actor.review = None
        actor.tokens.add(review.token)
        claim = Claim(SEMAPHORE, review.length, RESERVATION_MS, LEASE_MS, "{}", reuses_token=not self.keeps_entries)
        tokens = itertools.repeat(review.token)
        steps = self.quorum.acquire(claim, len(self.nodes), tokens, self.rng, self._clock)
        self._begin(actor, steps, lambda outcome: self._let_in(review, outcome))

    def begin_withdrawal(self, actor: Actor, review: Review) -> None:
        """Somebody takes a pod that waits for one that will never start."""
        actor.review = None
        actor.tokens.add(review.token)
        self._begin(actor, self.quorum.release(Withdraw(review.token), len(self.nodes)), lambda _: None)

    def begin_repair(self, actor: Actor) -> None:
        actor.review, losses, lacking = None, self.losses, set(self.lacking)

        def finish(is_whole: bool) -> None:
            if is_whole and self.losses == losses:
                self.lacking -= lacking

        self._begin(actor, self.quorum.repair(SEMAPHORE, len(self.nodes), self._clock), finish)

    def advance(self, actor: Actor, fates: Sequence[Fate], takes_ms: int = 0) -> None:
        """Carry out one step of an actor. `fates` are those of its messages by node; the answers take so long."""
        if isinstance(actor.step, self.quorum.Pause):
            self._resume(actor, {})
            return
        answers: dict[int, Answer] = {}
        asked = list(actor.step.commands.items())
        self.rng.shuffle(asked)  # in which order they answer
        for node, command in asked:
            enough = actor.step.enough(answers)
            answer = self._exchange(actor, node, command, fates[node])
            if not enough:
                answers[node] = answer
        self.tick(takes_ms)
        self._resume(actor, answers)

    def execute_late(self, actor: Actor, node: int) -> None:
        """One request that nobody waits for any more arrives."""
        if actor.unanswered[node] and node not in self.down:
            self._execute(actor, node, actor.unanswered[node].popleft(), in_time=False)

    def catch_up(self, actor: Actor) -> None:
        """Whatever was late has arrived, and has been answered, before the actor does something new."""
        for node in range(len(self.nodes)):
            while actor.unanswered[node] and node not in self.down:
                self.execute_late(actor, node)

    def cut(self, actor: Actor, node: int) -> None:
        """The connection breaks with what was on it; releases are owed, and sent with the next one."""
        queue = actor.unanswered[node]
        self.strays += [(actor, node, command) for command in queue]
        actor.unanswered[node] = deque(command for command in queue if isinstance(command, Release))
        actor.unknown.discard(node)

    def settle(self, stray: tuple[Actor, int, Command], *, arrives: bool) -> None:
        """What was on a connection that has broken arrives after all, even behind what was sent later; or never."""
        actor, node, command = stray
        if arrives and node in self.down:
            return
        self.strays.remove(stray)
        if arrives:
            if isinstance(command, Acquire):
                self.excused.add(command.token)
            self._execute(actor, node, command, in_time=False)

    def die(self, actor: Actor) -> Actor:
        """A worker dies, and another takes its place: what was sent may arrive, what was owed is forgotten."""
        self.excused |= actor.tokens
        self.strays += [(actor, node, command) for node, sent in actor.unanswered.items() for command in sent]
        self.webhooks[self.webhooks.index(actor)] = successor = Actor(len(self.nodes))
        return successor

    def lose_data(self, node: int) -> None:
        """A node comes back empty, if no other lacks data."""
        if not self._live_tokens():
            self.lacking.clear()
        others = [number for number in range(len(self.nodes)) if number != node]
        if not self.nodes[node].records:
            return
        if all(self.nodes[other].has_data(SEMAPHORE) and other not in self.lacking for other in others):
            self.forget(node)

    def forget(self, node: int) -> None:
        """The same, whatever the others know. All its connections break."""
        self.losses += 1
        self.upheavals += 1
        self.lacking.add(node)
        self.nodes[node] = type(self.nodes[node])(now_ms=self.nodes[node].now_ms)
        for actor in self.actors():
            self.cut(actor, node)
        self.strays = [stray for stray in self.strays if stray[1] != node]

    def tick(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        for node, ahead, lag in zip(self.nodes, self.ahead_ms, self.lags_ms, strict=True):
            node.now_ms = self.now_ms + ahead - lag

    def lag(self, node: int, milliseconds: int) -> None:
        """Time passes and one clock stands still for it, so that leases end there later than elsewhere."""
        self.lags_ms[node] = min(self.lags_ms[node] + milliseconds, MOST_LAG_MS)
        self.tick(milliseconds)
        for token in self.nodes[node].leases:
            self._note_end(token, node)

    # What must hold --------------------------------------------------------------------------------------

    def actors(self) -> list[Actor]:
        return [*self.webhooks, *(holder.sidecar for holder in self.holders)]

    def active(self) -> list[Holder]:
        return [
            holder
            for holder in self.holders
            if not holder.released and not holder.lost and holder.ends_ms > self.now_ms
        ]

    def check_at_most(self) -> None:
        """Promise 1, as the pods see it."""
        active = self.active()
        allowed = max((holder.length for holder in active), default=0)
        if len(active) > allowed:
            raise BrokenPromise(f"{len(active)} hold a slot of at most {allowed}: {_named(active)}")

    def check_at_least(self, length: int) -> None:
        """Promise 2, after quiet: every slot that no living pod holds is granted, and no more; then all of them."""
        self._come_to_rest()
        self._check_nothing_is_left()
        survivors = self._keep_alive()
        # A token that was derived twice may hold two slots, see test_stories.py.
        if all(review.times == 1 or review.waits for review in self.reviews):
            self._check_granted(length, max(0, length - len(survivors)))
        self.tick(ALL_ENDED_AFTER_MS)
        self._check_granted(length, length)

    def _check_granted(self, length: int, free: int) -> None:
        outcomes = [self._admit_in_peace(length) for _ in range(free + 1)]
        granted = sum(isinstance(outcome, Grant) for outcome in outcomes)
        if granted != free or not isinstance(outcomes[-1], Full):
            raise BrokenPromise(f"of {free} slots that were free {granted} were granted: {outcomes}")

    def _check_nothing_is_left(self) -> None:
        """No lease of a try that came to nothing; a repair that ran beside its release may have brought it back."""
        granted = {holder.token for holder in self.holders}
        left = self._live_tokens() - granted - self.excused
        if left:
            raise BrokenPromise(f"the leases of {left} are left though nobody was granted them")

    def _check_length(self, actor: Actor, grant: Grant, length: int) -> None:
        """A new length holds for whoever comes after it, as far as all nodes know all leases."""
        if actor.upheavals != self.upheavals:
            return
        others = actor.held_everywhere & {holder.token for holder in self.active()} - {grant.token}
        known = {token for token in others if self._is_everywhere(token)}
        if len(known) >= length:
            raise BrokenPromise(f"{grant.token} was granted one of {length} slots beside {known}")

    # How -------------------------------------------------------------------------------------------------

    def _clock(self) -> float:
        return self.now_ms / 1000

    def _tokens(self, actor: Actor, review: Review) -> Iterator[str]:
        for attempt in itertools.count():
            token = review.token if self.reuse_tokens else f"{review.name}.{attempt}"
            actor.tokens.add(token)
            yield token

    def _is_of(self, token: str, review: Review) -> bool:
        return token.startswith(f"{review.name}.")

    def _begin(self, actor: Actor, steps: Any, finish: Callable[[Any], None]) -> None:
        actor.steps, actor.finish, actor.started_ms = steps, finish, self.now_ms
        actor.stepped_ms = self.now_ms
        actor.step = next(steps)

    def _resume(self, actor: Actor, answers: Mapping[int, Answer]) -> None:
        actor.stepped_ms = self.now_ms
        try:
            actor.step = actor.steps.send(answers)
        except StopIteration as end:
            actor.steps = actor.step = None
            actor.finish(end.value)

    def _exchange(self, actor: Actor, node: int, command: Command, fate: Fate) -> Answer:
        if not actor.owes:
            return self._exchange_once(actor, node, command, fate)
        queue, owed = actor.unanswered[node], isinstance(command, Release)
        if isinstance(command, Acquire) and command.found and node not in actor.unknown and not self.founds_anew:
            return Unheard("connected anew", asked=False)
        if queue or fate is Fate.NOT_SENT:  # a release goes behind what was sent before
            if owed:
                queue.append(command)
            return Unheard("passed over", asked=False)
        if node in self.down or fate is Fate.LATE:
            queue.append(command)
            return Unheard("silent")
        answer = Unheard("connection lost") if fate is Fate.REQUEST_LOST else self._execute(actor, node, command)
        if isinstance(answer, Unknown) and isinstance(command, Acquire):
            actor.unknown.add(node)
        if fate is Fate.ANSWERED:
            return answer
        if owed:
            queue.append(command)
        return Unheard("connection lost")

    def _exchange_once(self, actor: Actor, node: int, command: Command, fate: Fate) -> Answer:
        """A sidecar drops a connection whose answer is overdue: the request may overtake, or be overtaken."""
        if node in self.down or fate is Fate.LATE:
            self.strays.append((actor, node, command))
            return Unheard("silent")
        if fate in (Fate.REQUEST_LOST, Fate.NOT_SENT):
            return Unheard("connection lost")
        answer = self._execute(actor, node, command)
        return answer if fate is Fate.ANSWERED else Unheard("connection lost")

    def _execute(self, actor: Actor, node: int, command: Command, *, in_time: bool = True) -> Answer:
        there = self.nodes[node]
        before, was_new = there.live_tokens(), SEMAPHORE not in there.records
        elsewhere = self._live_tokens()
        if isinstance(command, Renew):  # a sidecar removes the reservation first
            there.reservations.pop(command.token, None)
        answer = there.execute(command)
        if foreign := before - there.live_tokens() - actor.tokens:
            raise BrokenPromise(f"node {node}: {command} ended the leases of {foreign}")
        match command:
            case Acquire(token=token) if isinstance(answer, Granted):
                self._note_end(token, node)
                if was_new and elsewhere - {token}:
                    self.lacking.add(node)
            case Renew(token=token) if answer:
                self._note_end(token, node)
            case Restore():
                self._restored(node, command, self.now_ms - actor.stepped_ms if in_time else None)
        return answer

    def _restored(self, node: int, command: Restore, took_ms: int | None) -> None:
        self.upheavals += 1
        if not command.recorded:
            self.lacking.discard(node)
        for lease in command.record.leases.values():
            self.excused.add(lease.token)
            ends_ms = self.now_ms + self.nodes[node].left_ms(lease.token)
            # Promise 2: no lease outlives what its holder was given, but by as long as the request took.
            if took_ms is not None and ends_ms > self.latest_end_ms[lease.token] + took_ms:
                raise BrokenPromise(f"node {node}: the lease of {lease.token} was prolonged by a repair")
            self._note_end(lease.token, node)

    def _note_end(self, token: str, node: int) -> None:
        ends_ms = self.now_ms + self.nodes[node].left_ms(token)
        self.latest_end_ms[token] = max(self.latest_end_ms.get(token, 0), ends_ms)

    def _live_tokens(self) -> set[str]:
        return set().union(*(node.live_tokens() for node in self.nodes))

    def _is_everywhere(self, token: str) -> bool:
        return all(node.left_ms(token) for node in self.nodes)

    def _admitted(self, actor: Actor, review: Review, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if not isinstance(outcome, Grant):
            return
        ends_ms = actor.started_ms + RESERVATION_MS
        if review.times > 1:  # the lease may be older
            left = sorted((node.left_ms(outcome.token) for node in self.nodes), reverse=True)
            ends_ms = self.now_ms + left[majority(len(self.nodes)) - 1]
        else:
            self._check_length(actor, outcome, review.length)
        sidecar = Actor(len(self.nodes), owes=False, tokens={outcome.token})
        self.holders.append(Holder(outcome.token, review.length, ends_ms, sidecar, review))

    def _let_in(self, review: Review, outcome: Outcome) -> None:
        if isinstance(outcome, Grant) and not any(holder.review is review for holder in self.holders):
            sidecar = Actor(len(self.nodes), owes=False, tokens={outcome.token})
            self.holders.append(Holder(outcome.token, review.length, 0, sidecar, review))

    def _renewed(self, holder: Holder, outcome: Renewal, started_ms: int) -> None:
        if outcome is Renewal.LOST:
            holder.lost = True
        elif outcome is Renewal.KEPT:
            holder.ends_ms = started_ms + LEASE_MS
            # A repair may have brought it back, unless its own release is still to arrive.
            holder.lost &= any(command == Release(holder.token) for _, _, command in self.strays)

    def _come_to_rest(self) -> None:
        self.down.clear()
        for actor in self.actors():
            self.catch_up(actor)
            self._end(actor)
        for stray in list(self.strays):
            self.settle(stray, arrives=self.rng.random() < 0.5)

    def _keep_alive(self) -> list[Holder]:
        """For as long as any lease may last, only those who hold one renew it, and those who lost it try to."""
        living = [*self.active(), *(holder for holder in self.holders if holder.lost and not holder.released)]
        for _ in range(0, ALL_ENDED_AFTER_MS, LEASE_MS // 2):
            self.tick(LEASE_MS // 2)
            for holder in living:
                self.begin_renewal(holder)
                self._end(holder.sidecar)
        return [holder for holder in living if not holder.lost]

    def _end(self, actor: Actor) -> None:
        while actor.steps:
            self.advance(actor, [Fate.ANSWERED] * len(self.nodes))
            self.catch_up(actor)

    def _admit_in_peace(self, length: int) -> Outcome:
        actor = self.webhook()
        self.begin_admission(actor, length)
        self._end(actor)
        return self.outcomes[-1]


def minority(count: int) -> int:
    """How many of so many nodes may be down at once."""
    return count - majority(count)


def _named(holders: Sequence[Holder]) -> str:
    return ", ".join(f"{holder.token} until {holder.ends_ms} ms" for holder in holders)
