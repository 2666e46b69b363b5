"""What the sidecar knows and says of its lease, given the outcomes of rounds."""

import pytest

from sidecar.lease import Lease, State
from sidecar.protocol import Renewal

KEPT, LOST, UNKNOWN = Renewal.KEPT, Renewal.LOST, Renewal.UNKNOWN


def told(lease: Lease, *rounds: tuple[Renewal, float, float]) -> list[str | None]:
    """Judge (outcome, asked at, judged at) in turn; the level of what was said each time, or None."""
    events = [lease.judge(outcome, asked_at, now) for outcome, asked_at, now in rounds]
    return [event.level if event else None for event in events]


def after(*outcomes: Renewal, seconds: float = 60.0) -> Lease:
    """A lease that saw these outcomes at its very start."""
    lease = Lease(seconds, now=0.0)
    told(lease, *[(outcome, 0.0, 0.0) for outcome in outcomes])
    return lease


def test_a_kept_lease_lasts_from_before_the_renewal_was_sent():
    """Answers may take long; a node counts from when it was asked."""
    lease = Lease(60.0, now=100.0)
    told(lease, (KEPT, 110.0, 112.0))
    assert lease.deadline == 170.0


@pytest.mark.parametrize("outcome", [LOST, UNKNOWN])
def test_a_lease_that_was_not_kept_lasts_no_longer(outcome):
    lease = Lease(60.0, now=100.0)
    told(lease, (KEPT, 110.0, 110.0), (outcome, 130.0, 131.0))
    assert lease.deadline == 170.0


def test_only_changes_are_told():
    rounds = [(outcome, 0.0, 0.0) for outcome in (KEPT, KEPT, UNKNOWN, UNKNOWN, KEPT, KEPT, LOST, LOST, KEPT)]
    expected = ["info", None, "warning", None, "info", None, "error", None, "info"]
    assert expected == told(Lease(60.0, now=0.0), *rounds)


def test_the_end_of_a_lease_that_could_not_be_renewed_is_told_once():
    lease = Lease(60.0, now=0.0)
    rounds = [(KEPT, 0.0, 0.0), (UNKNOWN, 59.0, 59.9), (UNKNOWN, 60.0, 60.0), (UNKNOWN, 61.0, 61.0)]
    assert told(lease, *rounds) == ["info", "warning", "error", None]
    assert State.ENDED is lease.state


def test_a_lease_never_renewed_by_this_process_ends_one_lease_after_its_start_at_the_latest():
    """A sidecar that was restarted does not know when its predecessor renewed last."""
    assert told(Lease(60.0, now=100.0), (UNKNOWN, 100.0, 101.0), (UNKNOWN, 159.0, 160.0)) == ["warning", "error"]


@pytest.mark.parametrize("outcomes", [[KEPT, LOST], [LOST], [UNKNOWN, LOST]])
def test_silence_does_not_make_a_lost_lease_less_lost(outcomes):
    lease = after(*outcomes)
    assert told(lease, (UNKNOWN, 1.0, 2.0), (UNKNOWN, 100.0, 100.0)) == [None, None]
    assert State.LOST is lease.state


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([], "the lease was renewed, the slot is held"),
        ([UNKNOWN], "renewed again"),
        ([KEPT, UNKNOWN], "renewed again"),
        ([LOST], "granted anew"),
    ],
)
def test_a_kept_lease_is_told_in_the_light_of_what_was_before(before, message):
    event = after(*before).judge(KEPT, 0.0, 0.0)
    assert event is not None
    assert message in event.message


@pytest.mark.parametrize(
    ("outcomes", "seconds", "expected"),
    [
        ([KEPT], 60.0, 1020.0),  # a third of the lease from before sending
        ([KEPT], 5.0, 1000.0 + 5 / 3),
        ([KEPT], 86400.0, 1000.0 + 28800),
        ([UNKNOWN], 5.0, 1002.5),  # a tenth of the lease after the round
        ([UNKNOWN], 86400.0, 1003.0),  # a second at most
        ([KEPT, UNKNOWN], 60.0, 1003.0),
        ([LOST], 6.0, 1004.0),  # calmly
        ([LOST], 86400.0, 1012.0),
        ([LOST, UNKNOWN], 60.0, 1012.0),
    ],
)
def test_the_rhythm_follows_the_state(outcomes, seconds, expected):
    """Asked at 1000 s, judged at 1002 s."""
    assert pytest.approx(expected) == after(*outcomes, seconds=seconds).next_round(1000.0, 1002.0)
