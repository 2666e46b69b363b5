"""One question to all nodes and what their answers say together."""

import pytest
from hiredis import ReplyError

from sidecar.nodes import Answer, explain
from sidecar.protocol import Renewal
from sidecar.rounds import Round

NODES = 3
REFUSED = ReplyError("NOPERM")


def heard(*replies: list[object] | None) -> Round:
    """A round with these replies, node by node; None for a failure."""
    present = Round(7, NODES)
    for node, each in enumerate(replies):
        present.take(Answer(7, node, each) if each else Answer(7, node, [], "connection refused"))
    return present


@pytest.mark.parametrize("number", [6, 8])
def test_an_answer_to_another_round_is_not_counted(number):
    """A node that hung may answer an earlier round while the next one waits."""
    present = heard([1])
    present.take(Answer(number, 1, [1]))
    present.take(Answer(number, 2, [], "timed out"))
    assert (present.renewal(), present.failures) == (Renewal.UNKNOWN, {})


@pytest.mark.parametrize(
    ("replies", "decided"),
    [
        ([[1, 1]], False),
        ([[1, 1], [0, 1]], True),
        ([[1], [0]], False),
        ([[0], [0]], True),
        ([[1], None], False),
        ([[1], None, None], True),
        ([None, None], False),
    ],
)
def test_a_round_ends_as_soon_as_its_answers_decide(replies, decided):
    assert decided is heard(*replies).decided()


@pytest.mark.parametrize("reply", [REFUSED, b"OK", None, [1]])
def test_a_reply_that_is_no_number_is_no_vote(reply):
    present = Round(7, NODES)
    for node in range(NODES):
        present.take(Answer(7, node, [1, reply]))
    assert (Renewal.UNKNOWN, {0, 1, 2}) == (present.renewal(), set(present.failures))


def test_a_refused_reply_is_told_as_the_reason():
    present = Round(7, NODES)
    present.take(Answer(7, 1, [1, ReplyError("NOPERM User sidecar has no permissions")]))
    assert present.failures == {1: "replied NOPERM User sidecar has no permissions"}


@pytest.mark.parametrize(
    ("before", "replies", "expected"),
    [
        (set(), [[1, 1], [0, 1], [1, 1]], {0, 1, 2}),
        (set(), [[1, 1], [1, 0], None], {0}),  # only where the lease still stands
        (set(), [[REFUSED, 1]], set()),
        ({0, 1, 2}, [[1], None], {0, 1, 2}),  # silence changes nothing
        ({0, 1, 2}, [[1], [0], [1]], {0, 2}),  # a repair may bring the reservation back
    ],
)
def test_a_reservation_counts_as_removed_where_a_kept_lease_said_so(before, replies, expected):
    assert expected == heard(*replies).claimed(before)


def test_a_node_lacks_the_lease_that_says_so_and_no_silent_one():
    """Elsewhere a lost lease is released: there it may have been granted anew meanwhile."""
    assert {1} == heard([1, 1], [1, 0], None).lacking()


def test_a_release_claims_nothing():
    """Its only reply counts keys: 1 is not a prolonged lease."""
    assert set() == heard([1], [2], [1]).claimed(set())


def test_a_reason_never_repeats_the_commands_arguments():
    error = ReplyError("ERR unknown command 'PEXPIRE', with args beginning with: 'lease:0123' '60000' ")
    assert explain(error) == "ERR unknown command 'PEXPIRE'"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (TimeoutError("timed out"), "timed out"),
        (OSError(), "OSError"),
    ],
)
def test_a_reason_is_short(error, expected):
    assert expected == explain(error)
