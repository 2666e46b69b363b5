"""The protocol, played step by step: who is asked what, and what the answers decide."""

import itertools
from collections.abc import Generator, Iterable, Mapping
from random import Random
from types import MappingProxyType
from typing import Any

import pytest

from app.semaphore import quorum
from app.semaphore.commands import (
    Acquire,
    Collect,
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
    Record,
    Standing,
    Taken,
    Unavailable,
    Unheard,
    Unknown,
    Vacancies,
)
from sidecar.protocol import Renewal, majority

SILENT = Unheard("no answer within 0.5 s")
PASSED_OVER = Unheard("connection refused", asked=False)
SIZES = pytest.mark.parametrize("nodes", [1, 3, 5])


class Play:
    """A generator of the protocol that waits for the answers to its latest step; `outcome` once it has ended."""

    def __init__(self, steps: Generator[Any, Any, Any], nodes: int = 3) -> None:
        self.nodes = range(nodes)
        self.step: Any = None
        self.outcome: Any = ...
        self._steps = steps
        self._go_on(None)

    def _go_on(self, answers: Mapping[int, Answer] | None) -> None:
        try:
            self.step = self._steps.send(answers)
        except StopIteration as end:
            self.step, self.outcome = None, end.value

    @property
    def asked(self) -> dict[int, Any]:
        assert isinstance(self.step, quorum.Ask), self.step or self.outcome
        return dict(self.step.commands)

    def answer(self, answers: Mapping[int, Answer]) -> None:
        assert set(answers) <= set(self.asked)
        self._go_on(answers)

    def answer_all(self, answer: Answer) -> None:
        self.answer(dict.fromkeys(self.asked, answer))

    def pass_withdrawals(self, attempt: str) -> None:
        """Whatever is not granted is withdrawn."""
        self.pass_releases(Withdraw(attempt))

    def pass_releases(self, release: Release) -> None:
        """It goes everywhere, and nobody waits for it."""
        assert dict.fromkeys(self.nodes, release) == self.asked
        assert self.step.enough({})
        self.answer_all(SILENT)

    def pass_pause(self) -> float:
        assert isinstance(self.step, quorum.Pause), self.step or self.outcome
        seconds = self.step.seconds
        self._go_on({})
        return seconds


class Admission(Play):
    """An admission with the tokens t0, t1, … for its tries."""

    def __init__(self, nodes: int = 3, length: int = 1) -> None:
        self.claim = Claim("batch/reports-db", length, 60_000, 60_000, "{}")
        self.starts = Random(0)  # the numbers that the admission draws
        tokens = (f"t{attempt}" for attempt in itertools.count())
        super().__init__(quorum.acquire(self.claim, nodes, tokens, Random(0), lambda: 0.0), nodes)

    @property
    def sequencer(self) -> int:
        """The one node that is asked for any slot."""
        (node,) = self.asked
        return node

    def any_slot(self, attempt: str = "t0", **more: Any) -> Acquire:
        return Acquire(self.claim, attempt, **more)

    def exactly(self, slot: int, attempt: str = "t0", **more: Any) -> Acquire:
        return Acquire(self.claim, attempt, slot=slot, **more)

    def fail(self, slot: int = 0, attempt: str = "t0") -> float:
        """A try that the first node asked grants and the others deny, and a repair that stops; gives the pause."""
        self.answer({self.sequencer: Granted(slot)})
        self.answer_all(Taken())
        self.pass_withdrawals(attempt)
        assert dict.fromkeys(self.nodes, Read("batch/reports-db")) == self.asked
        self.answer({node: record({0: f"of-{node}"}) for node in self.nodes})
        return self.pass_pause()


def lease(holder: str, left_ms: int = 30_000, unclaimed_ms: int = -2) -> Lease:
    return Lease(holder, left_ms, unclaimed_ms, "{}")


def record(holders: Mapping[int, str] = MappingProxyType({}), length: int = 3, longest_ms: int = 60_000) -> Record:
    """A record in which these tokens hold these slots."""
    return Record(length, longest_ms, {slot: lease(holder) for slot, holder in holders.items()})


# An admission -------------------------------------------------------------------------------------------


def test_the_first_node_that_has_a_record_picks_the_slot_and_the_others_are_asked_for_just_that():
    admission = Admission(length=5)

    assert {0: admission.any_slot(start=admission.starts.randrange(5))} == admission.asked
    admission.answer({0: Granted(3)})
    assert {1: admission.exactly(3), 2: admission.exactly(3)} == admission.asked
    admission.answer({1: Granted(3)})

    assert Grant(3, "t0") == admission.outcome


def test_a_sequencer_that_is_full_ends_the_admission_after_one_round_trip():
    """The only refusal for want of slots: nobody else is asked, and nothing has to be released."""
    admission = Admission()
    admission.answer({0: Full(1, ("{}",), 0)})

    assert Full(1, ("{}",), 0) == admission.outcome


def test_a_node_without_a_record_abstains_as_sequencer_and_as_voter():
    admission = Admission(nodes=5)
    admission.answer({0: Unknown()})
    assert [1] == list(admission.asked)
    admission.answer({1: Granted(0)})

    assert dict.fromkeys([2, 3, 4], admission.exactly(0)) == admission.asked


def test_a_node_that_is_passed_over_is_asked_again_with_the_others():
    """It may have come back meanwhile, and asking a node that is passed over costs nothing."""
    admission = Admission()
    admission.answer({0: PASSED_OVER})
    admission.answer({1: Granted(0)})

    assert dict.fromkeys([0, 2], admission.exactly(0)) == admission.asked
    admission.answer({0: PASSED_OVER, 2: Granted(0)})
    assert Grant(0, "t0") == admission.outcome


@SIZES
def test_votes_are_a_majority_of_all_configured_nodes(nodes):
    """Whoever is silent counts as a node, too."""
    needed = majority(nodes) - 1
    for votes in range(nodes):
        admission = Admission(nodes)
        admission.answer({0: Granted(0)})
        others = list(admission.asked)
        admission.answer({node: Granted(0) if at < votes else SILENT for at, node in enumerate(others)})
        if votes >= needed:
            assert Grant(0, "t0") == admission.outcome
        else:
            admission.pass_withdrawals("t0")
            assert isinstance(admission.outcome, Unavailable)


def test_the_answers_suffice_as_soon_as_they_decide():
    admission = Admission(nodes=5)
    admission.answer({0: Granted(0)})
    enough = admission.step.enough

    assert not enough({})
    assert not enough({1: Granted(0)})
    assert enough({1: Granted(0), 2: Granted(0)})
    assert not enough({1: Taken(), 2: SILENT})
    assert enough({1: Taken(), 2: SILENT, 3: Unknown()})


def test_another_slot_than_the_one_picked_is_no_vote():
    admission = Admission(length=3)
    admission.answer({0: Granted(2)})
    admission.answer({1: Granted(1), 2: Granted(1)})

    admission.pass_withdrawals("t0")


def test_a_try_without_a_majority_is_released_everywhere_and_repeated_with_a_new_token():
    """A release that is late then cannot touch the next try; and the nodes unheard may have done their part."""
    admission = Admission()
    pause = admission.fail()

    assert 0 <= pause <= quorum.FIRST_PAUSE_SECONDS
    assert {0: admission.any_slot("t1")} == admission.asked


def test_pauses_between_tries_grow_up_to_a_limit():
    admission = Admission(length=100)
    pauses = [admission.fail(slot=tried, attempt=f"t{tried}") for tried in range(quorum.TRIES)]

    limits = [min(quorum.FIRST_PAUSE_SECONDS * 2**tried, quorum.LONGEST_PAUSE_SECONDS) for tried in range(quorum.TRIES)]
    assert all(0 <= pause <= limit for pause, limit in zip(pauses, limits, strict=True))
    assert max(pauses) > 10 * quorum.FIRST_PAUSE_SECONDS
    assert Unavailable("the nodes do not agree on a slot", {}) == admission.outcome


def test_what_a_node_said_in_any_try_is_told_in_the_end():
    """It may refuse to write, and answer what is only read, with which the last try may end."""
    admission = Admission(length=100)
    admission.answer({0: Unheard("NOPERM")})
    admission.pass_withdrawals("t0")
    admission.pass_pause()
    for tried in range(1, quorum.TRIES):
        admission.fail(slot=tried, attempt=f"t{tried}")

    assert Unavailable("the nodes do not agree on a slot", {0: "NOPERM"}) == admission.outcome


def test_from_the_third_try_on_a_node_picks_that_said_that_the_slot_was_taken():
    """It knows what the others cannot be told of, as where a replica is cut off from one of them."""
    admission = Admission(length=5)
    sequencers = []
    for tried, doubter in enumerate([2, 1, 2, 0]):
        sequencers.append(admission.sequencer)
        admission.answer({admission.sequencer: Granted(tried)})
        admission.answer({node: Taken() if node == doubter else SILENT for node in admission.asked})
        admission.pass_withdrawals(f"t{tried}")
        admission.answer_all(SILENT)
        admission.pass_pause()

    assert [0, 0, 1, 2] == sequencers
    assert 0 == admission.sequencer


def test_a_slot_that_only_lacks_votes_makes_nobody_else_pick():
    admission = Admission(length=5)
    for tried in range(3):
        admission.answer({0: Granted(tried)})
        admission.answer({1: Unknown(), 2: SILENT})
        admission.pass_withdrawals(f"t{tried}")
        admission.answer({0: record(), 1: Unknown(), 2: SILENT})
        admission.pass_pause()

    assert 0 == admission.sequencer


def test_where_nobody_can_be_told_of_the_semaphore_it_is_said_why():
    admission = Admission()
    for tried in range(quorum.TRIES):
        admission.answer({0: Granted(0)})
        admission.answer({1: Unknown(), 2: PASSED_OVER})
        admission.pass_withdrawals(f"t{tried}")
        admission.answer({0: record(), 1: Unknown(), 2: PASSED_OVER})
        admission.pass_pause()

    assert Unavailable("fewer than 2 of 3 nodes know it", {2: PASSED_OVER.why}) == admission.outcome


def test_each_try_starts_at_another_random_slot():
    admission = Admission(length=10_000)
    starts = []
    for tried in range(4):
        starts.append(admission.asked[admission.sequencer].start)
        admission.fail(tried, f"t{tried}")

    assert all(0 <= start < 10_000 for start in starts)
    assert len(set(starts)) == 4


# Nodes that are silent ----------------------------------------------------------------------------------


def test_a_silent_node_spends_the_token():
    """It may yet grant a slot of its own choosing; the token would hold that one besides the one of the others."""
    admission = Admission(length=2)
    admission.answer({0: SILENT})
    admission.pass_withdrawals("t0")
    admission.pass_pause()

    assert {0: "t1"} == {node: command.token for node, command in admission.asked.items()}
    admission.answer({0: PASSED_OVER})
    admission.answer({1: Granted(1)})
    admission.answer({0: PASSED_OVER, 2: Granted(1)})
    assert Grant(1, "t1") == admission.outcome


def test_a_refusal_after_a_silent_node_leaves_nothing_with_that_node():
    admission = Admission()
    admission.answer({0: SILENT})
    admission.pass_withdrawals("t0")
    admission.pass_pause()
    admission.answer({0: PASSED_OVER})
    admission.answer({1: Full(1, (), 0)})

    assert Full(1, (), 0) == admission.outcome


@SIZES
def test_without_a_majority_that_answers_the_semaphore_is_unavailable(nodes):
    """Said as soon as it is certain, with the causes; no node is asked in vain."""
    admission = Admission(nodes)
    lost = nodes - majority(nodes) + 1
    for node in range(lost):
        assert [node] == list(admission.asked)
        admission.answer({node: PASSED_OVER})
    admission.pass_withdrawals("t0")

    expected = f"fewer than {majority(nodes)} of {nodes} nodes answered"
    assert Unavailable(expected, dict.fromkeys(range(lost), PASSED_OVER.why)) == admission.outcome


def test_a_majority_that_falls_silent_while_confirming_makes_it_unavailable():
    admission = Admission()
    admission.answer({0: Granted(0)})
    admission.answer({1: SILENT, 2: SILENT})
    admission.pass_withdrawals("t0")

    assert Unavailable("fewer than 2 of 3 nodes answered", {1: SILENT.why, 2: SILENT.why}) == admission.outcome


def test_who_finds_a_node_silent_tries_again_with_those_that_were_passed_over():
    """They may be back, and are waited for where there is no majority without them."""
    admission = Admission()
    admission.answer({0: Granted(0)})
    admission.answer({1: PASSED_OVER, 2: SILENT})
    admission.pass_withdrawals("t0")
    admission.pass_pause()

    admission.answer({0: Granted(0)})
    admission.answer({1: PASSED_OVER, 2: PASSED_OVER})
    admission.pass_withdrawals("t1")
    assert isinstance(admission.outcome, Unavailable)


# A new semaphore ----------------------------------------------------------------------------------------


@SIZES
def test_a_semaphore_that_no_node_knows_is_founded(nodes):
    admission = Admission(nodes)
    for _ in range(nodes):
        assert not any(command.found for command in admission.asked.values())
        admission.answer_all(Unknown())

    assert {0: admission.any_slot(found=True)} == admission.asked
    admission.answer({0: Granted(0)})
    assert {node: admission.exactly(0, found=True) for node in range(1, nodes)} == admission.asked
    admission.answer_all(Granted(0))
    assert Grant(0, "t0") == admission.outcome


def test_founding_needs_a_majority_that_knows_nothing():
    admission = Admission(nodes=5)
    for node in range(5):
        admission.answer({node: PASSED_OVER if node in (1, 3) else Unknown()})

    assert {0: admission.any_slot(found=True)} == admission.asked


def test_a_majority_that_knows_nothing_founds_nothing_where_anybody_has_a_record():
    """Two nodes of three that lost their data must not outvote the one that remembers."""
    admission = Admission()
    admission.answer({0: Unknown()})
    admission.answer({1: Unknown()})
    admission.answer({2: Granted(0)})
    assert {} == admission.asked
    admission.answer({})

    admission.pass_withdrawals("t0")
    assert dict.fromkeys(range(3), Read("batch/reports-db")) == admission.asked


def test_one_node_that_knows_nothing_founds_nothing_where_no_majority_answers():
    admission = Admission()
    admission.answer({0: Unknown()})
    admission.answer({1: PASSED_OVER})
    admission.answer({2: PASSED_OVER})

    admission.pass_withdrawals("t0")


def test_a_node_that_does_not_answer_whether_it_has_a_record_delays_the_founding():
    admission = Admission()
    admission.answer({0: Unknown()})
    admission.answer({1: Unknown()})
    admission.answer({2: SILENT})

    admission.pass_withdrawals("t0")


def test_a_founder_that_was_overtaken_takes_what_is_left():
    """Two webhooks found at the same node one after the other: to the second, it has a record."""
    admission = Admission(length=2)
    for node in range(3):
        admission.answer({node: Unknown()})
    admission.answer({0: Full(2, (), 0)})

    assert Full(2, (), 0) == admission.outcome


def test_a_founder_that_falls_silent_spends_the_token():
    admission = Admission()
    for node in range(3):
        admission.answer({node: Unknown()})
    admission.answer({0: SILENT})

    admission.pass_withdrawals("t0")


# Repair within an admission -----------------------------------------------------------------------------


def test_a_grant_is_followed_by_the_repair_of_those_that_abstained():
    admission = Admission()
    admission.answer({0: Granted(0)})
    admission.answer({1: Unknown(), 2: Granted(0)})

    assert dict.fromkeys(range(3), Read("batch/reports-db")) == admission.asked
    held = record({0: "t0"})
    admission.answer({0: held, 1: Unknown(), 2: held})
    assert {1: Restore("batch/reports-db", False, held)} == admission.asked
    admission.answer_all(1)
    assert Grant(0, "t0") == admission.outcome


def test_a_refusal_is_followed_by_the_repair_of_those_that_abstained():
    admission = Admission()
    admission.answer({0: Unknown()})
    admission.answer({1: Full(1, (), 0)})

    assert dict.fromkeys(range(3), Read("batch/reports-db")) == admission.asked


# Repair -------------------------------------------------------------------------------------------------


def repaired(answers: Mapping[int, Answer], instants: Iterable[float] = (0.0, 0.0)) -> dict[int, Any]:
    """What a repair writes, given what the nodes answer when they are read."""
    play = Play(quorum.repair("batch/reports-db", len(answers), iter(instants).__next__), len(answers))
    assert dict.fromkeys(play.nodes, Read("batch/reports-db")) == play.asked
    play.answer(answers)
    if play.step is None:
        return {}
    written = play.asked
    play.answer_all(0)
    assert play.step is None
    return written


@pytest.mark.parametrize(("last", "is_whole"), [(Unknown(), True), (SILENT, False)])
def test_where_no_node_has_a_record_none_lacks_one(last, is_whole):
    play = Play(quorum.repair("batch/reports-db", 3, lambda: 0.0))
    play.answer({0: Unknown(), 1: Unknown(), 2: last})

    assert is_whole is play.outcome


def test_a_repair_writes_the_union_to_a_node_without_a_record():
    """Also what only one node has: it may be all that is left of a majority."""
    answers: dict[int, Answer] = {
        0: record({0: "a", 1: "b"}, length=3, longest_ms=90_000),
        1: Unknown(),
        2: record({0: "a", 4: "c"}, length=5),
    }

    union = record({0: "a", 1: "b", 4: "c"}, length=5, longest_ms=90_000)
    assert {1: Restore("batch/reports-db", False, union)} == repaired(answers)


def test_a_repair_takes_the_longest_of_what_is_left_of_a_lease():
    shorter, longer = Record(1, 60_000, {0: lease("a", 5000)}), Record(1, 60_000, {0: lease("a", 9000)})

    written = repaired({0: shorter, 1: Unknown(), 2: longer})
    assert {1: Restore("batch/reports-db", False, longer)} == written


def test_two_nodes_that_name_different_tokens_for_a_slot_stop_a_repair():
    """An admission is under way, or one of the leases will end: it is left to a later admission."""
    answers: dict[int, Answer] = {0: record({0: "a", 1: "b"}), 1: Unknown(), 2: record({0: "x", 1: "b"})}

    assert {} == repaired(answers)


def test_a_repair_adds_what_a_majority_holds_and_a_node_lacks():
    answers: dict[int, Answer] = {0: record({0: "a", 1: "b"}), 1: record({0: "a", 2: "c"}), 2: record()}

    written = repaired(answers)
    assert {2: Restore("batch/reports-db", True, record({0: "a"}))} == written


def test_a_repair_adds_to_each_node_what_that_node_lacks():
    answers = {
        0: record({0: "a", 1: "b"}),
        1: record({1: "b", 2: "c"}),
        2: record({2: "c", 0: "a"}),
    }

    assert {
        0: Restore("batch/reports-db", True, record({2: "c"})),
        1: Restore("batch/reports-db", True, record({0: "a"})),
        2: Restore("batch/reports-db", True, record({1: "b"})),
    } == repaired(answers)


def test_nothing_is_written_where_nothing_is_lacking():
    assert {} == repaired(dict.fromkeys(range(3), record({0: "a"})))


@pytest.mark.parametrize(
    ("answers", "is_sure"),
    [
        ([record(), record(), Unknown()], True),
        ([record(), Unknown(), Unknown()], True),  # nobody else can know more
        ([record(), Unknown(), PASSED_OVER], False),  # the third may hold what the first has not seen
        ([record(), PASSED_OVER, PASSED_OVER], False),
        ([Unknown(), Unknown(), Unknown()], False),
        ([Unknown(), Unknown(), PASSED_OVER], False),
        ([record(), record(), record(), Unknown(), PASSED_OVER], True),
        ([record(), record(), Unknown(), Unknown(), Unknown()], True),
        ([record(), record(), Unknown(), Unknown(), PASSED_OVER], False),
        ([record()], True),
        ([Unknown()], False),
    ],
)
def test_a_repair_needs_a_majority_of_records_or_the_answers_of_all(answers, is_sure):
    written = repaired(dict(enumerate(answers)))

    empty = [node for node, answer in enumerate(answers) if answer == Unknown()]
    assert (empty if is_sure else []) == list(written)


def test_a_restored_lease_does_not_outlive_the_one_it_was_read_from():
    """Whatever time the reading took is taken off, and what ended meanwhile is left out."""
    known = Record(3, 60_000, {0: lease("a", 5000, 4000), 1: lease("b", 1500, -2), 2: lease("c", 1400, 1400)})
    written = repaired({0: known, 1: known, 2: Unknown()}, instants=(10.0, 11.45))

    assert {0: lease("a", 3550, 2550), 1: lease("b", 50, -1452)} == dict(written[2].record.leases)


# Renewal and release ------------------------------------------------------------------------------------


@SIZES
def test_a_lease_is_kept_when_a_majority_has_prolonged_it(nodes):
    play = Play(quorum.renew("a", 30_000, nodes))
    assert dict.fromkeys(range(nodes), Renew("a", 30_000)) == play.asked
    kept = dict.fromkeys(range(majority(nodes)), True)
    assert play.step.enough(kept)
    assert not play.step.enough(dict.fromkeys(range(majority(nodes) - 1), True))
    play.answer(kept)

    assert Renewal.KEPT is play.outcome


@SIZES
def test_a_lease_that_a_majority_has_lost_is_ended_on_the_others_too(nodes):
    play = Play(quorum.renew("a", 30_000, nodes), nodes)
    play.answer({node: node >= majority(nodes) for node in range(nodes)})
    play.pass_releases(Release("a"))

    assert Renewal.LOST is play.outcome


@pytest.mark.parametrize(
    "answers",
    [
        {0: True, 1: False, 2: SILENT},
        {0: True, 1: PASSED_OVER, 2: PASSED_OVER},
        {0: False, 1: SILENT, 2: SILENT},
        {0: SILENT, 1: SILENT, 2: SILENT},
    ],
)
def test_too_few_answers_to_a_renewal_say_neither(answers):
    """And release nothing: the lease may well live."""
    play = Play(quorum.renew("a", 30_000, 3))
    assert not play.step.enough(answers)
    play.answer(answers)

    assert Renewal.UNKNOWN is play.outcome


@pytest.mark.parametrize(("heard", "expected"), [(3, True), (2, True), (1, False), (0, False)])
def test_a_release_goes_to_all_nodes_and_says_whether_a_majority_has_answered(heard, expected):
    play = Play(quorum.release(Release("a"), 3))
    assert dict.fromkeys(range(3), Release("a")) == play.asked
    assert not play.step.enough({0: True, 1: True})
    play.answer({node: False if node < heard else SILENT for node in range(3)})

    assert expected is play.outcome


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([Standing.RESERVED] * 3, Standing.RESERVED),
        ([Standing.RESERVED, Standing.RESERVED, Standing.LOST], Standing.RESERVED),
        ([Standing.RESERVED, Standing.CLAIMED, SILENT], Standing.CLAIMED),
        ([Standing.RESERVED, Standing.LOST, Standing.LOST], Standing.LOST),
        ([SILENT, Standing.LOST, Standing.LOST], Standing.LOST),
        ([Standing.RESERVED, Standing.LOST, SILENT], Standing.LOST),
        ([Standing.CLAIMED, Standing.LOST, SILENT], Standing.CLAIMED),
        ([Standing.CLAIMED, Standing.LOST, Standing.LOST], Standing.LOST),
        ([Standing.RESERVED, PASSED_OVER, SILENT], Standing.UNKNOWN),
        ([Standing.CLAIMED, PASSED_OVER, SILENT], Standing.UNKNOWN),
        ([Standing.LOST, PASSED_OVER, SILENT], Standing.UNKNOWN),
        ([SILENT] * 3, Standing.UNKNOWN),
    ],
)
def test_how_a_reservation_stands_a_majority_says(answers, expected):
    play = Play(quorum.prolong("a", 9000, 3))
    assert dict.fromkeys(range(3), Prolong("a", 9000)) == play.asked
    assert not play.step.enough({0: Standing.RESERVED, 1: Standing.RESERVED})
    play.answer(dict(enumerate(answers)))

    assert expected is play.outcome


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([Standing.RESERVED] * 2 + [Standing.LOST] * 2 + [SILENT], Standing.LOST),
        ([Standing.RESERVED] * 3 + [Standing.LOST] * 2, Standing.RESERVED),
        ([Standing.CLAIMED] + [Standing.LOST] * 2 + [SILENT] * 2, Standing.CLAIMED),
        ([Standing.RESERVED] * 2 + [SILENT] * 3, Standing.UNKNOWN),
    ],
)
def test_what_no_majority_has_is_lost_if_a_majority_answers(answers, expected):
    """Whoever is silent may have it, but is of no use: else it would be waited for as long as that node is away."""
    play = Play(quorum.prolong("a", 9000, 5), nodes=5)
    play.answer(dict(enumerate(answers)))

    assert expected is play.outcome


def test_who_waits_asks_the_first_node_that_answers():
    play = Play(quorum.vacant({"a/a": 1, "a/b": 2}, 3))
    assert {0: Vacant({"a/a": 1, "a/b": 2})} == play.asked
    play.answer_all(PASSED_OVER)
    assert [1] == list(play.asked)
    play.answer_all(Vacancies(frozenset(["a/b"])))

    assert {"a/b"} == play.outcome


def test_where_no_node_answers_it_is_not_known_who_may_be_let_in():
    play = Play(quorum.vacant({"a/a": 1}, 3))
    for node in range(3):
        assert [node] == list(play.asked)
        play.answer_all(SILENT)

    assert play.outcome is None


def test_no_more_semaphores_are_asked_for_at_once_than_a_node_can_look_at():
    play = Play(quorum.vacant({"a/a": 600, "a/b": 400, "a/c": 1, "a/d": 5000}, 3))
    asked = []
    while play.step:
        asked.append(play.asked[0].lengths)
        play.answer_all(Vacancies(frozenset(asked[-1])))

    assert [{"a/a": 600, "a/b": 400}, {"a/c": 1}, {"a/d": 5000}] == asked
    assert {"a/a", "a/b", "a/c", "a/d"} == play.outcome


def test_semaphores_of_no_length_are_not_asked_for_without_end_either():
    """A look at a record is not for nothing."""
    play = Play(quorum.vacant({f"a/{number}": 0 for number in range(2500)}, 3))
    asked = []
    while play.step:
        asked.append(len(play.asked[0].lengths))
        play.answer_all(Vacancies(frozenset()))

    assert [1000, 1000, 500] == asked


def test_a_record_is_removed_once_all_nodes_have_said_that_it_can_go():
    play = Play(quorum.collect("a/a", 60, 3))
    assert dict.fromkeys(range(3), Collect("a/a", 60, removing=False)) == play.asked
    play.answer_all(True)
    assert dict.fromkeys(range(3), Collect("a/a", 60, removing=True)) == play.asked
    play.answer_all(True)

    assert play.outcome is True


@pytest.mark.parametrize("other", [False, SILENT, PASSED_OVER])
def test_a_record_stays_where_one_node_does_not_say_that_it_can_go(other):
    play = Play(quorum.collect("a/a", 60, 3))
    play.answer({0: True, 1: True, 2: other})

    assert play.outcome is False


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([True, True, True], True),
        ([True, False, True], True),
        ([True, True, SILENT], True),
        ([True, False, False], False),
        ([True, False, SILENT], False),
        ([True, SILENT, PASSED_OVER], False),
        ([False, False, SILENT], False),
    ],
)
def test_a_grant_is_recent_if_a_majority_says_so(answers, expected):
    play = Play(quorum.recent("batch/reports-db", 1, "a", 9000, 3))
    assert dict.fromkeys(range(3), Recent("batch/reports-db", 1, "a", 9000)) == play.asked
    assert play.step.enough({0: True, 1: SILENT, 2: True})
    assert not play.step.enough({0: True, 1: False})
    play.answer(dict(enumerate(answers)))

    assert expected is play.outcome
