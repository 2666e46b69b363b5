"""Histories told step by step: each breaks a promise where one rule of the protocol is missing, and none with it."""

from collections.abc import Callable
from random import Random

import pytest

from tests.model.mutants import (
    COLLECTING_ALONE,
    MAJORITY_OF_THE_HEARD,
    RENEWAL_KEPT_BY_A_MINORITY,
    REPAIRS_IN_SPITE_OF_A_CONFLICT,
    VOTES_WITHOUT_A_RECORD,
    Mutant,
)
from tests.model.world import Actor, BrokenPromise, Fate, Holder, World

WELL = [Fate.ANSWERED] * 3
ONLY_THE_FIRST = [Fate.ANSWERED, Fate.REQUEST_LOST, Fate.REQUEST_LOST]


class Play:
    """Three nodes that all have a record of a semaphore of length 1, whose slot is free."""

    def __init__(self, mutant: Mutant, seed: int) -> None:
        self.world = World(3, mutant.quorum(), mutant.node)
        self.world.rng = Random(seed)
        self.first = self.admit()[0]
        self.world.begin_release(self.first)
        self.finish(self.first.sidecar)

    def admit(self, fates: list[Fate] | None = None) -> list[Holder]:
        """An admission from beginning to end; who was admitted by it."""
        actor, before = self.world.webhook(), len(self.world.holders)
        self.world.begin_admission(actor, 1)
        self.finish(actor, fates)
        return self.world.holders[before:]

    def finish(self, actor: Actor, fates: list[Fate] | None = None) -> None:
        while actor.steps:
            self.world.advance(actor, fates or WELL)
        self.world.catch_up(actor)

    def renew(self, holder: Holder, fates: list[Fate] | None = None) -> None:
        self.world.begin_renewal(holder)
        self.finish(holder.sidecar, fates)

    def admit_while_the_first_node_is_away(self) -> Holder:
        """A holder that nodes 1 and 2 know, and node 0, which has an old record, does not."""
        self.world.down = {0}
        (holder,) = self.admit()
        self.world.down = set()
        return holder


def everybody_else_is_unheard(play: Play) -> None:
    play.admit_while_the_first_node_is_away()
    play.admit(ONLY_THE_FIRST)


def a_node_that_lost_its_data_is_asked_to_confirm(play: Play) -> None:
    play.admit_while_the_first_node_is_away()
    play.world.lose_data(1)
    play.world.down = {2}
    play.admit()


def a_repair_meets_an_admission_under_way(play: Play) -> None:
    play.admit_while_the_first_node_is_away()
    beginner = play.world.webhook()
    play.world.begin_admission(beginner, 1)
    play.world.advance(beginner, WELL)  # has the slot on node 0, and has not asked the others yet
    play.world.lose_data(2)
    repairer = play.world.webhook()
    play.world.begin_repair(repairer)
    play.finish(repairer)
    play.finish(beginner)


def a_renewal_reaches_one_node(play: Play) -> None:
    (holder,) = play.admit()
    play.renew(holder)
    play.world.tick(50)
    play.renew(holder, ONLY_THE_FIRST)
    play.world.tick(60)
    play.world.down = {0}
    play.admit()


def a_record_is_gone_on_a_node_that_was_away(play: Play) -> None:
    play.admit_while_the_first_node_is_away()
    play.renew(play.first)  # late, and in vain: an occasion for node 0 to collect
    play.world.lose_data(1)
    play.world.down = {2}
    play.admit()


STORIES: list[tuple[Mutant, Callable[[Play], None]]] = [
    (MAJORITY_OF_THE_HEARD, everybody_else_is_unheard),
    (VOTES_WITHOUT_A_RECORD, a_node_that_lost_its_data_is_asked_to_confirm),
    (REPAIRS_IN_SPITE_OF_A_CONFLICT, a_repair_meets_an_admission_under_way),
    (RENEWAL_KEPT_BY_A_MINORITY, a_renewal_reaches_one_node),
    (COLLECTING_ALONE, a_record_is_gone_on_a_node_that_was_away),
]
SEEDS = range(20)  # in which order nodes answer


@pytest.mark.parametrize(("mutant", "story"), STORIES, ids=lambda each: getattr(each, "__name__", str(each)))
def test_a_story_breaks_a_promise_only_where_the_rule_is_missing(mutant, story):
    broken = 0
    for seed in SEEDS:
        right = Play(Mutant("none"), seed)
        story(right)
        right.world.check_at_most()

        wrong = Play(mutant, seed)
        try:
            story(wrong)
            wrong.world.check_at_most()
        except BrokenPromise:
            broken += 1
    assert broken > 0
