"""Actors, nodes in memory and the network between them; whoever drives it chooses what happens to each message.

The protocol is production's own, `app.semaphore.quorum` (or a mutant of it, to see that a fault in it would be
found). Knows nothing of how choices are made: see test_model.py.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from types import ModuleType
from typing import Any

from app.semaphore.commands import Command, Release, Restore
from app.semaphore.model import Answer, Claim, Full, Grant, Outcome, Unheard
from sidecar.protocol import Renewal, majority
from tests.model.node import Node

SEMAPHORE = "batch/model"
RESERVATION_MS = 300
LEASE_MS = 100


class Fate(Enum):
    """What becomes of one request and its answer."""

    ANSWERED = "answered"
    REQUEST_LOST = "request lost"  # with its connection
    REPLY_LOST = "reply lost"  # with its connection, after execution
    LATE = "late"  # nobody waits any longer; it is executed some time, behind what was sent before


class BrokenPromise(AssertionError):  # noqa: N818  what it says is not an error of the test
    """A promise was broken."""


@dataclass
class Actor:
    """A process with connections of its own: a webhook's worker, or a sidecar."""

    nodes: int
    steps: Any = None  # the generator that is under way
    step: Any = None  # what it has asked for
    finish: Callable[[Any], None] = lambda _: None  # what to do with its result
    started_ms: int = 0
    tokens: set[str] = field(default_factory=set)
    unanswered: dict[int, deque[Command]] = field(default_factory=dict)  # node -> sent and not executed yet

    def __post_init__(self) -> None:
        self.unanswered = {node: deque() for node in range(self.nodes)}


@dataclass
class Holder:
    """A pod that was granted a slot, as it sees itself: from the grant until its release or its lease's end."""

    token: str
    length: int
    ends_ms: int
    sidecar: Actor
    released: bool = False


class World:
    """Everything, and the promises about it."""

    def __init__(self, count: int, quorum: ModuleType, node: type[Node] = Node) -> None:
        self.quorum = quorum
        self.nodes = [node() for _ in range(count)]
        self.webhooks: list[Actor] = []
        self.holders: list[Holder] = []
        self.down: set[int] = set()
        self.now_ms = 0
        self.rng = Random(0)
        self._names = itertools.count()
        self.reuse_tokens = False
        self.outcomes: list[Outcome] = []
        self.restored = False

    # What may happen -------------------------------------------------------------------------------------

    def webhook(self) -> Actor:
        actor = Actor(len(self.nodes))
        self.webhooks.append(actor)
        return actor

    def begin_admission(self, actor: Actor, length: int) -> None:
        claim = Claim(SEMAPHORE, length, RESERVATION_MS, "{}")
        tokens = self._tokens(actor)
        steps = self.quorum.acquire(claim, len(self.nodes), tokens, self.rng, lambda: self.now_ms / 1000)
        self._begin(actor, steps, lambda outcome: self._admitted(outcome, length, actor.started_ms))

    def begin_renewal(self, holder: Holder) -> None:
        """Also of a holder that has ended: a process that slept past its lease does not know."""
        actor = holder.sidecar
        # It may shorten what is left of a reservation, whether or not the answers are heard: sidecar.lease knows.
        holder.ends_ms = min(holder.ends_ms, self.now_ms + LEASE_MS)
        steps = self.quorum.renew(holder.token, LEASE_MS, len(self.nodes))
        self._begin(actor, steps, lambda outcome: self._renewed(holder, outcome, actor.started_ms))

    def begin_release(self, holder: Holder) -> None:
        holder.released = True
        self._begin(holder.sidecar, self.quorum.release(holder.token, len(self.nodes)), lambda _: None)

    def begin_repair(self, actor: Actor) -> None:
        steps = self.quorum.repair(SEMAPHORE, len(self.nodes), lambda: self.now_ms / 1000)
        self._begin(actor, steps, lambda _: None)

    def advance(self, actor: Actor, fates: Sequence[Fate]) -> None:
        """Carry out one step of an actor; `fates` are those of the messages to each node."""
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
        self._resume(actor, answers)

    def execute_late(self, actor: Actor, node: int) -> None:
        """One request that nobody waits for any more arrives."""
        if actor.unanswered[node] and node not in self.down:
            self._execute(actor, node, actor.unanswered[node].popleft())

    def catch_up(self, actor: Actor) -> None:
        """Whatever was late has arrived, and has been answered, before the actor does something new."""
        for node in range(len(self.nodes)):
            while actor.unanswered[node] and node not in self.down:
                self.execute_late(actor, node)

    def cut(self, actor: Actor, node: int) -> None:
        """The connection breaks with what was on it; releases are owed, and sent with the next one."""
        queue = actor.unanswered[node]
        actor.unanswered[node] = deque(command for command in queue if isinstance(command, Release))

    def lose_data(self, node: int) -> None:
        """A node comes back empty, if no other lacks data."""
        others = [each for number, each in enumerate(self.nodes) if number != node]
        if any(self.nodes[node].records) and all(other.has_data(SEMAPHORE) for other in others):
            self.nodes[node] = type(self.nodes[node])(now_ms=self.now_ms)

    def tick(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        for node in self.nodes:
            node.now_ms = self.now_ms

    # What must hold --------------------------------------------------------------------------------------

    def actors(self) -> list[Actor]:
        return [*self.webhooks, *(holder.sidecar for holder in self.holders)]

    def active(self) -> list[Holder]:
        return [holder for holder in self.holders if not holder.released and holder.ends_ms > self.now_ms]

    def check_at_most(self) -> None:
        """Promise 1, as the pods see it."""
        active = self.active()
        allowed = max((holder.length for holder in active), default=0)
        if len(active) > allowed:
            raise BrokenPromise(f"{len(active)} hold a slot of at most {allowed}: {active}")

    def check_at_least(self, length: int) -> None:
        """Promise 2, after quiet: nothing is left of what went before, and every slot is granted."""
        self._come_to_rest()
        self._check_nothing_is_left()
        self.tick(RESERVATION_MS + LEASE_MS)
        outcomes = [self._admit_in_peace(length) for _ in range(length + 1)]
        granted = sum(isinstance(outcome, Grant) for outcome in outcomes)
        if granted != length or not isinstance(outcomes[-1], Full):
            raise BrokenPromise(f"of {length} slots {granted} were granted after quiet: {outcomes}")

    def _check_nothing_is_left(self) -> None:
        """No lease of a try that came to nothing; a repair that ran beside its release may have brought it back."""
        if self.restored:
            return
        granted = {holder.token for holder in self.holders}
        left = {token for node in self.nodes for token in node.leases if node.left_ms(token)} - granted
        if left:
            raise BrokenPromise(f"the leases of {left} are left though nobody was granted them")

    # How -------------------------------------------------------------------------------------------------

    def _tokens(self, actor: Actor) -> Iterator[str]:
        name = next(self._names)
        for attempt in itertools.count():
            token = f"{name}" if self.reuse_tokens else f"{name}.{attempt}"
            actor.tokens.add(token)
            yield token

    def _begin(self, actor: Actor, steps: Any, finish: Callable[[Any], None]) -> None:
        actor.steps, actor.finish, actor.started_ms = steps, finish, self.now_ms
        actor.step = next(steps)

    def _resume(self, actor: Actor, answers: Mapping[int, Answer]) -> None:
        try:
            actor.step = actor.steps.send(answers)
        except StopIteration as end:
            actor.steps = actor.step = None
            actor.finish(end.value)

    def _exchange(self, actor: Actor, node: int, command: Command, fate: Fate) -> Answer:
        queue = actor.unanswered[node]
        if queue:  # an answer is overdue, so the node is passed over; a release goes behind what was sent before
            if isinstance(command, Release):
                queue.append(command)
            return Unheard("passed over", asked=False)
        if node in self.down or fate is Fate.LATE:
            queue.append(command)
            return Unheard("silent")
        if fate is Fate.REQUEST_LOST:
            if isinstance(command, Release):
                queue.append(command)
            return Unheard("connection lost")
        answer = self._execute(actor, node, command)
        return Unheard("connection lost") if fate is Fate.REPLY_LOST else answer

    def _execute(self, actor: Actor, node: int, command: Command) -> Answer:
        self.restored = self.restored or isinstance(command, Restore)
        before = {token for token in self.nodes[node].leases if self.nodes[node].left_ms(token)}
        answer = self.nodes[node].execute(command)
        after = {token for token in self.nodes[node].leases if self.nodes[node].left_ms(token)}
        if foreign := before - after - actor.tokens:
            raise BrokenPromise(f"node {node}: {command} ended the leases of {foreign}")
        return answer

    def _admitted(self, outcome: Outcome, length: int, started_ms: int) -> None:
        self.outcomes.append(outcome)
        if isinstance(outcome, Grant):
            sidecar = Actor(len(self.nodes), tokens={outcome.token})
            self.holders.append(Holder(outcome.token, length, started_ms + RESERVATION_MS, sidecar))

    def _renewed(self, holder: Holder, outcome: Renewal, started_ms: int) -> None:
        if outcome is Renewal.KEPT:
            holder.ends_ms = started_ms + LEASE_MS
        elif outcome is Renewal.LOST:
            holder.released = True

    def _come_to_rest(self) -> None:
        self.down.clear()
        answered = [Fate.ANSWERED] * len(self.nodes)
        for actor in self.actors():
            self.catch_up(actor)
            while actor.steps:
                self.advance(actor, answered)
            self.catch_up(actor)

    def _admit_in_peace(self, length: int) -> Outcome:
        actor = self.webhook()
        self.begin_admission(actor, length)
        while actor.steps:
            self.advance(actor, [Fate.ANSWERED] * len(self.nodes))
            self.catch_up(actor)
        return self.outcomes[-1]


def minority(count: int) -> int:
    """How many of so many nodes may be down at once."""
    return count - majority(count)
