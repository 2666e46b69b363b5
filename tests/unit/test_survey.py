"""What is read of all nodes for people and metrics, page by page, and what a majority of them comes to."""

from typing import Any

import pytest

from app.semaphore import survey
from app.semaphore.commands import AskTime, AskVitals, ListNames, Survey
from app.semaphore.model import Answer, Lease, Names, Page, Record, Unheard, Unknown, Vitals
from app.semaphore.survey import Health, overview
from tests.unit.test_quorum import Play

SILENT = Unheard("no answer within 500 ms")
A, B = "batch/a", "batch/b"


def lease(token: str, left_ms: int = 60_000, unclaimed_ms: int = -2) -> Lease:
    return Lease(token, left_ms, unclaimed_ms, f"holder of {token}")


def record(*tokens: str | None, length: int = 3) -> Record:
    """A record with these tokens in slots 0, 1, …"""
    return Record(length, 60_000, {slot: lease(token) for slot, token in enumerate(tokens) if token})


# The names ----------------------------------------------------------------------------------------------


def test_names_are_asked_of_all_nodes_until_each_has_told_all():
    play = Play(survey.names(3))
    assert dict.fromkeys(range(3), ListNames(0)) == play.asked
    play.answer({0: Names(7, (A,)), 1: Names(0, (B,)), 2: Names(0, ())})
    assert {0: ListNames(7)} == play.asked
    play.answer({0: Names(0, ("batch/c",))})

    assert (frozenset([A, B, "batch/c"]), {}) == play.outcome


def test_a_node_that_falls_silent_while_it_lists_is_told_of():
    play = Play(survey.names(3))
    play.answer({0: Names(7, (A,)), 1: SILENT, 2: Names(0, ())})
    play.answer({0: Unheard("connection lost")})

    assert (frozenset([A]), {0: "connection lost", 1: SILENT.why}) == play.outcome


# The records --------------------------------------------------------------------------------------------


def test_no_semaphores_are_nothing_to_ask_for():
    assert ({0: {}, 1: {}, 2: {}}, {}) == Play(survey.read([], 3)).outcome


def test_nodes_go_on_each_from_where_it_stopped():
    play = Play(survey.read([A, B], 2), nodes=2)
    assert dict.fromkeys(range(2), Survey([A, B], 0)) == play.asked
    play.answer({0: Page((record("x"), record("y")), None), 1: Page((record("x"),), None)})
    assert {1: Survey([B], 0)} == play.asked
    play.answer({1: Page((Unknown(),), None)})

    expected = {0: {A: record("x"), B: record("y")}, 1: {A: record("x"), B: Unknown()}}
    assert (expected, {}) == play.outcome


def test_a_record_that_comes_in_parts_is_one():
    play = Play(survey.read([A, B], 1), nodes=1)
    play.answer({0: Page((Record(3, 9, {0: lease("x")}),), 1)})
    assert {0: Survey([A, B], 1)} == play.asked
    play.answer({0: Page((Record(3, 9, {1: lease("y")}),), 2)})
    assert {0: Survey([A, B], 2)} == play.asked
    play.answer({0: Page((Record(3, 9, {2: lease("z")}), record("b")), None)})

    assert ({0: {A: Record(3, 9, {0: lease("x"), 1: lease("y"), 2: lease("z")}), B: record("b")}}, {}) == play.outcome


def test_a_later_record_may_be_the_one_that_is_cut():
    play = Play(survey.read([A, B], 1), nodes=1)
    play.answer({0: Page((record("a"), Record(3, 9, {0: lease("x")})), 1)})
    assert {0: Survey([B], 1)} == play.asked
    play.answer({0: Page((Record(3, 9, {1: lease("y")}),), None)})

    assert ({0: {A: record("a"), B: Record(3, 9, {0: lease("x"), 1: lease("y")})}}, {}) == play.outcome


def test_a_record_that_is_gone_when_it_goes_on_is_none():
    play = Play(survey.read([A], 1), nodes=1)
    play.answer({0: Page((record("x"),), 1)})
    play.answer({0: Page((Unknown(),), None)})

    assert ({0: {A: Unknown()}}, {}) == play.outcome


def test_of_a_node_that_falls_silent_what_it_told_in_full_stays():
    play = Play(survey.read([A, B], 2), nodes=2)
    play.answer({0: Page((record("a"), record("b")), 1), 1: SILENT})
    assert {0: Survey([B], 1)} == play.asked
    play.answer({0: SILENT})

    assert ({0: {A: record("a")}, 1: {}}, {0: SILENT.why, 1: SILENT.why}) == play.outcome


def test_many_semaphores_are_asked_for_in_batches():
    semaphores = [f"batch/{number}" for number in range(survey.BATCH + 1)]
    play = Play(survey.read(semaphores, 1), nodes=1)

    assert {0: Survey(semaphores[:-1], 0)} == play.asked
    play.answer({0: Page((Unknown(),) * survey.BATCH, None)})
    assert {0: Survey(semaphores[-1:], 0)} == play.asked


# The overview -------------------------------------------------------------------------------------------


def test_what_a_majority_has_is_held_and_the_rest_is_unconfirmed():
    records = {0: {A: record("x", "y")}, 1: {A: record("x")}, 2: {A: record("x", None, "z")}}

    (state,) = overview([A], records, {}, 3).states

    assert [(0, "x", {0, 1, 2})] == [(slot.number, slot.lease.token, set(slot.nodes)) for slot in state.held]
    unconfirmed = [(slot.number, slot.lease.token, set(slot.nodes)) for slot in state.unconfirmed]
    assert [(1, "y", {0}), (2, "z", {2})] == unconfirmed


def test_a_slot_that_changes_hands_may_have_two_tokens():
    records = {0: {A: record("new")}, 1: {A: record("new")}, 2: {A: record("old")}}

    (state,) = overview([A], records, {}, 3).states

    assert ["new"] == [slot.lease.token for slot in state.held]
    assert ["old"] == [slot.lease.token for slot in state.unconfirmed]


def test_a_majority_is_one_of_all_nodes_not_of_those_that_were_heard():
    records: dict[int, dict[str, Any]] = {0: {A: record("x", "y")}, 1: {A: record("x")}, 2: {}}

    (state,) = overview([A], records, {2: "down"}, 3).states

    assert ["x"] == [slot.lease.token for slot in state.held]
    assert ["y"] == [slot.lease.token for slot in state.unconfirmed]


@pytest.mark.parametrize(
    ("left_ms", "until"), [((50, 40, 30), 40), ((50, 40), 40), ((50, 1, 49), 49)], ids=["of three", "of two", "mixed"]
)
def test_a_slot_is_held_for_as_long_as_a_majority_has_it(left_ms, until):
    records = {node: {A: Record(3, 90, {0: lease("x", left)})} for node, left in enumerate(left_ms)}

    (state,) = overview([A], records, {}, 3).states

    assert until == state.held[0].lease.left_ms


def test_a_pod_has_started_once_any_node_has_heard_of_its_sidecar():
    reserved, running = lease("x", unclaimed_ms=5), lease("x", unclaimed_ms=-2)
    for leases, expected in (((reserved,) * 3, True), ((reserved, running, reserved), False)):
        records = {node: {A: Record(3, 90, {0: each})} for node, each in enumerate(leases)}

        (state,) = overview([A], records, {}, 3).states

        assert expected == state.held[0].is_reserved


def test_the_length_is_that_of_most_nodes():
    records = {0: {A: record("x", length=3)}, 1: {A: record("x", length=5)}, 2: {A: record("x", length=5)}}

    assert 5 == overview([A], records, {}, 3).states[0].length


def test_what_a_node_lacks_of_the_held_leases_is_counted_where_it_was_heard():
    """One without the record lacks them all; one that is silent nobody knows about."""
    records: dict[int, dict[str, Any]] = {
        0: {A: record("x", "y", "z")},
        1: {A: record("x", "y", "z")},
        2: {A: record("x", "y")},
        3: {A: Unknown()},
        4: {},
    }
    records[2][A].leases[2] = lease("other")

    (state,) = overview([A], {**records, 2: {A: record("x", "y", "z")}}, {4: "down"}, 5).states
    assert {0: 0, 1: 0, 2: 0, 3: 3} == state.lacking
    assert 3 == state.records

    state = overview([A], {**records, 4: {A: record("z", "y", "z")}}, {}, 5).states[0]
    assert {0: 0, 1: 0, 2: 1, 3: 3, 4: 1} == state.lacking


def test_a_semaphore_that_no_majority_has_a_record_of_cannot_be_read():
    """Two nodes that lost their data must not say that nobody holds anything."""
    records: dict[int, dict[str, Any]] = {0: {A: record("x")}, 1: {A: Unknown()}, 2: {A: Unknown()}}
    assert ((), (A,)) == (overview([A], records, {}, 3).states, overview([A], records, {}, 3).unreadable)

    silent: dict[int, dict[str, Any]] = {0: {A: record("x")}, 1: {}, 2: {}}
    assert (A,) == overview([A], silent, {1: "down", 2: "down"}, 3).unreadable


def test_a_semaphore_that_nobody_has_heard_of_is_none():
    records: dict[int, dict[str, Any]] = {0: {A: Unknown()}, 1: {A: Unknown()}, 2: {}}
    found = overview([A], records, {2: "down"}, 3)

    assert ((), ()) == (found.states, found.unreadable)


def test_leases_are_counted_on_nodes_that_told_of_all():
    records: dict[int, dict[str, Any]] = {
        0: {A: record("x", "y"), B: Unknown()},
        1: {A: record("x"), B: record("z")},
        2: {A: record("x")},
    }

    assert {0: 2, 1: 2} == overview([A, B], records, {2: "fell silent"}, 3).leases


# The health of a node -----------------------------------------------------------------------------------


def health(*answers: Answer, monotonic: list[float], wall: float) -> Any:
    play = Play(survey.health(1, iter(monotonic).__next__, lambda: wall))
    asked = []
    for answer in answers:
        asked.append(play.asked)
        assert not play.step.connects  # what connecting takes, to this node or others, is no part of the round trip
        play.answer({1: answer})
    return asked, play.outcome


def test_the_clock_of_a_node_is_compared_half_way():
    asked, found = health(1000.35, Vitals(7), monotonic=[50.0, 50.2], wall=1000.0)

    assert [{1: AskTime()}, {1: AskVitals()}] == asked
    assert (None, Vitals(7)) == (found.fault, found.vitals)
    assert pytest.approx((0.2, 0.25)) == (found.round_trip_seconds, found.clock_offset_seconds)


def test_of_a_silent_node_nothing_is_known():
    assert Health(SILENT.why) == health(SILENT, monotonic=[0.0, 0.5], wall=1000.0)[1]


def test_a_node_that_does_not_say_what_it_counts_is_well_all_the_same():
    found = health(1000.0, Unheard("NOPERM"), monotonic=[0.0, 0.0], wall=1000.0)[1]

    assert Health(None, 0.0, 0.0, None) == found
