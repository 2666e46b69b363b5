"""The promises, under whatever the network and the nodes may do: Hypothesis chooses, and shrinks what it finds.

`make model` tries 10,000 histories, and the faults that are found only by so many; `make test` a few hundred.
"""

import os
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.model.mutants import OFTEN_FOUND, SELDOM_FOUND, Mutant
from tests.model.world import Actor, BrokenPromise, Fate, World, minority

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "300"))
THOROUGH = EXAMPLES >= 10_000
MUTANT_EXAMPLES = 30_000 if THOROUGH else 10_000
WEBHOOKS = 3
ALL_ANSWERED = [Fate.ANSWERED] * 5


def astray(rng: Random) -> list[Fate]:
    """Fates of five messages: most arrive, for a history in which nearly all are lost tries little."""
    some = rng.sample(range(5), 2)
    return [rng.choice(list(Fate)) if node in some else Fate.ANSWERED for node in range(5)]


# Drawn whole from a list, which is several times as fast as one by one.
FATES = st.just(ALL_ANSWERED) | st.sampled_from([astray(Random(number)) for number in range(200)])
TAKES_MS = st.sampled_from([0, 0, 0, 20])  # until the answers of a step are there


class Histories(RuleBasedStateMachine):
    """Webhooks, sidecars and nodes of one semaphore."""

    mutant = Mutant("none")

    @initialize(count=st.sampled_from([3, 3, 5]), length=st.integers(1, 2), seed=st.integers(0, 2**32))
    def begin(self, count: int, length: int, seed: int) -> None:
        self.world = World(count, self.mutant.quorum(), self.mutant.node, seed)
        self.world.reuse_tokens, self.world.founds_anew = self.mutant.reuses_tokens, self.mutant.founds_anew
        self.world.keeps_entries = self.mutant.keeps_entries
        self.count, self.length = count, length
        for _ in range(WEBHOOKS):
            self.world.webhook()

    def _busy(self) -> list[Actor]:
        return [actor for actor in self.world.actors() if actor.steps]

    @rule(number=st.integers(0, WEBHOOKS - 1), fates=st.lists(FATES, max_size=12), at_rest=st.booleans())
    def admit(self, number: int, fates: list[list[Fate]], at_rest: bool) -> None:
        """An admission begins, or goes on, for some steps or to its end."""
        actor = self.world.webhooks[number]
        if not actor.steps:
            self.world.catch_up(actor)
            self.world.begin_admission(actor, self.length)
        for each in fates:
            if actor.steps:
                self.world.advance(actor, each)
        while at_rest and actor.steps:
            self.world.advance(actor, ALL_ANSWERED)

    @precondition(lambda self: self._busy())
    @rule(actor=st.integers(0, 5), fates=FATES, takes_ms=TAKES_MS)
    def go_on(self, actor: int, fates: list[Fate], takes_ms: int) -> None:
        """One step of anybody."""
        busy = self._busy()
        self.world.advance(busy[actor % len(busy)], fates, takes_ms)

    @precondition(lambda self: self.world.holders)
    @rule(holder=st.integers(0, 3), what=st.sampled_from(["renew", "renew", "release"]), fates=FATES)
    def hold(self, holder: int, what: str, fates: list[Fate]) -> None:
        """A sidecar renews or releases; also one that slept past the end of its lease, or does it twice."""
        holders = self.world.holders
        chosen = holders[-1 - min(holder, len(holders) - 1)]  # mostly one of the last
        if not chosen.sidecar.steps:
            begin = self.world.begin_renewal if what == "renew" else self.world.begin_release
            begin(chosen)
            self.world.advance(chosen.sidecar, fates)

    @rule(node=st.integers(0, 4))
    def arrive_late(self, node: int) -> None:
        """What was sent to a node and not waited for reaches it."""
        for actor in self.world.actors():
            while actor.unanswered.get(node) and node not in self.world.down:
                self.world.execute_late(actor, node)

    @rule(number=st.integers(0, WEBHOOKS - 1), node=st.integers(0, 4))
    def cut(self, number: int, node: int) -> None:
        self.world.cut(self.world.webhooks[number], node % self.count)

    @rule(node=st.integers(0, 4))
    def go_down_or_come_back(self, node: int) -> None:
        node %= self.count
        if node in self.world.down:
            self.world.down.remove(node)
        elif len(self.world.down) < minority(self.count):
            self.world.down.add(node)

    @rule(number=st.integers(0, WEBHOOKS - 1), fates=FATES, takes_ms=TAKES_MS, at_rest=st.booleans())
    def repair(self, number: int, fates: list[Fate], takes_ms: int, at_rest: bool) -> None:
        """A webhook tells nodes what they missed: it does so whenever they are well again."""
        actor = self.world.webhooks[number]
        if not actor.steps:
            self.world.catch_up(actor)
            self.world.begin_repair(actor)
            self.world.advance(actor, fates, takes_ms)
        while at_rest and actor.steps:
            self.world.advance(actor, ALL_ANSWERED)

    @rule()
    def wait(self) -> None:
        """A pod is created that waits."""
        self.world.begin_waiting(self.length)

    @precondition(lambda self: self.world.waiting())
    @rule(
        number=st.integers(0, WEBHOOKS - 1),
        pod=st.integers(0, 2),
        what=st.sampled_from(["grant", "grant", "grant", "withdraw"]),
        fates=st.lists(FATES, max_size=6),
        at_rest=st.booleans(),
    )
    def let_in(self, number: int, pod: int, what: str, fates: list[list[Fate]], at_rest: bool) -> None:
        """Somebody asks for the slot of a pod that waits, or withdraws it; others may be about to, or have done so."""
        actor, pods = self.world.webhooks[number], self.world.waiting()
        if not actor.steps:
            self.world.catch_up(actor)
            begin = self.world.begin_grant if what == "grant" else self.world.begin_withdrawal
            begin(actor, pods[-1 - min(pod, len(pods) - 1)])
        for each in fates:
            if actor.steps:
                self.world.advance(actor, each)
        while at_rest and actor.steps:
            self.world.advance(actor, ALL_ANSWERED)

    @precondition(lambda self: any(not review.waits for review in self.world.reviews))
    @rule(number=st.integers(0, WEBHOOKS - 1), review=st.integers(0, 2), fates=FATES)
    def repeat(self, number: int, review: int, fates: list[Fate]) -> None:
        """The same review once more, whatever became of it: granted, refused, unavailable or lost half way."""
        actor = self.world.webhooks[number]
        reviews = [each for each in self.world.reviews if not each.waits]
        again = reviews[-1 - min(review, len(reviews) - 1)]
        if not actor.steps:
            self.world.catch_up(actor)
            if self.world.may_repeat(again, actor):
                self.world.begin_review(actor, again)
                self.world.advance(actor, fates)

    @precondition(lambda self: any(actor.steps for actor in self.world.webhooks))
    @rule(number=st.integers(0, WEBHOOKS - 1))
    def die(self, number: int) -> None:
        """A worker is gone, between any two steps."""
        self.world.die(self.world.webhooks[number])

    @precondition(lambda self: self.world.strays)
    @rule(stray=st.integers(0, 5), arrives=st.booleans())
    def settle(self, stray: int, arrives: bool) -> None:
        """What was on a broken connection arrives out of turn, or never."""
        strays = self.world.strays
        self.world.settle(strays[stray % len(strays)], arrives=arrives)

    @rule(node=st.integers(0, 4))
    def lose_data(self, node: int) -> None:
        self.world.lose_data(node % self.count)

    @rule(length=st.integers(1, 3))
    def change_length(self, length: int) -> None:
        self.length = length

    @rule(milliseconds=st.sampled_from([10, 50, 50, 100, 300]))
    def tick(self, milliseconds: int) -> None:
        self.world.tick(milliseconds)

    @rule(node=st.integers(0, 4))
    def lag(self, node: int) -> None:
        self.world.lag(node % self.count, 10)

    @invariant()
    def at_most(self) -> None:
        if hasattr(self, "world"):
            self.world.check_at_most()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.check_at_least(self.length)


def run(machine: type[RuleBasedStateMachine], examples: int, **more: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            **more,
        ),
    )


def test_no_history_breaks_a_promise():
    run(Histories, EXAMPLES)


@pytest.mark.parametrize("mutant", [*OFTEN_FOUND, *(SELDOM_FOUND if THOROUGH else [])], ids=str)
def test_a_fault_that_is_put_in_is_found(mutant):
    machine = type("WithAFault", (Histories,), {"mutant": mutant})

    with pytest.raises(BrokenPromise):
        run(machine, MUTANT_EXAMPLES, phases=[Phase.generate], database=None, derandomize=True)
