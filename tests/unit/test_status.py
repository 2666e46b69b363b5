"""How a holder is doing."""

import pytest

from app.admission.holder import Holder
from app.semaphore.model import Lease
from app.semaphore.survey import Slot
from app.status import Status, status_of


def slot(left_ms: int, unclaimed_ms: int = -2) -> Slot:
    return Slot(0, Lease("t", left_ms, unclaimed_ms, ""), frozenset([0, 1]))


def holder(expiration_seconds: int | None) -> Holder:
    return Holder("Job/a", "a", 0, expiration_seconds)


@pytest.mark.parametrize(
    ("left_ms", "unclaimed_ms", "expected"),
    [
        (60_000, -2, Status.RUNNING),
        (30_000, -2, Status.RUNNING),
        (29_999, -2, Status.OVERDUE),
        (29_999, 1, Status.RESERVED),
        (29_999, 0, Status.OVERDUE),
    ],
)
def test_half_of_the_lease_without_a_renewal_is_overdue(left_ms, unclaimed_ms, expected):
    """A renewal is due at a third of it. A reservation is not renewed, whatever its life."""
    assert expected is status_of(slot(left_ms, unclaimed_ms), holder(60))


def test_nobody_is_overdue_of_whose_lease_nothing_is_known():
    assert Status.RUNNING is status_of(slot(1), holder(None))
