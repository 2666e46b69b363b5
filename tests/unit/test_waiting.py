"""Who waits for a slot, in which order, and when it is worth to ask for one."""

from typing import Any

import pytest

from app.admission.annotations import GROUP
from app.admission.seal import seal_of
from app.cli.waiters import placed
from app.reconciler.grants import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, TRY_SECONDS, Patience
from app.reconciler.pods import Member, Reader, Stage, claim_of, queues
from tests.harness.stored import CREATED, CREATED_AT, GATE, OURS, SECRET, TOKEN, stored_pod

ENDED = {"terminated": {"exitCode": 0}}
READER = Reader("", (b"another", SECRET))


def read(*arguments: Any, **options: Any) -> Member:
    member = READER.read(stored_pod(*arguments, **options))
    assert member
    return member


def ended(phase: str, *states: dict[str, Any]) -> dict[str, Any]:
    """The status of a pod with our sidecar and an app."""
    sidecar, app = states
    return {
        "phase": phase,
        "initContainerStatuses": [{"name": OURS, "started": False, "state": sidecar}],
        "containerStatuses": [{"name": "app", "state": app}],
    }


# What a pod is ------------------------------------------------------------------------------------------


def test_a_pod_that_waits_is_read_with_all_that_is_asked_for_it():
    owner = {"kind": "Job", "name": "nightly", "controller": True}
    member = read(metadata={"ownerReferences": [owner]}, max_wait="600")

    assert (Stage.WAITING, CREATED_AT, TOKEN, 3) == (member.stage, member.created, member.token, member.length)
    assert (member.is_leaving, member.has_other_gates, member.is_marked) == (False, False, False)
    claim = claim_of(member, 5.5, 300)
    assert ("batch/reports-db", 3, 300_000, 60_000) == (
        claim.semaphore,
        claim.length,
        claim.reservation_ms,
        claim.lease_ms,
    )
    assert claim.reuses_token
    assert '{"owner":"Job/nightly","pod":"worker","since":5,"expiration":60}' == claim.holder


@pytest.mark.parametrize(
    ("status", "gates", "stage"),
    [
        ({"phase": "Pending"}, (GATE,), Stage.WAITING),
        ({"phase": "Pending"}, (), Stage.STARTING),
        ({"phase": "Pending", "initContainerStatuses": [{"name": OURS, "started": False}]}, (), Stage.STARTING),
        ({"phase": "Pending", "initContainerStatuses": [{"name": OURS, "started": True}]}, (), Stage.RUNNING),
        ({"phase": "Running", "containerStatuses": [{"name": OURS, "started": True}]}, (), Stage.RUNNING),
        (ended("Succeeded", ENDED, ENDED), (), Stage.OVER),
        (ended("Failed", ENDED, ENDED), (), Stage.OVER),
        (ended("Failed", ENDED, {"running": {}}), (), Stage.STOPPED),
        (ended("Failed", {"running": {}}, ENDED), (), Stage.STOPPED),
        (ended("Running", ENDED, ENDED), (), Stage.ENDING),
        (ended("Running", {"waiting": {}}, {"running": {}}), (), Stage.STARTING),  # about to start again
        ({"phase": "Failed"}, (), Stage.STOPPED),  # of a worker node that is lost nobody knows what it still runs
    ],
)
def test_how_far_a_pod_has_come_its_status_says(status, gates, stage):
    assert stage is read(status=status, gates=gates).stage


@pytest.mark.parametrize(
    "other",
    [
        stored_pod(seal=""),
        stored_pod(seal="0" * 32),
        stored_pod(seal="\ud800"),
        stored_pod(seal=seal_of(SECRET, semaphore="batch/reports-db", token=TOKEN, expiration_seconds="61")),
        stored_pod(seal=seal_of(SECRET, semaphore="batch/other", token=TOKEN, expiration_seconds="60")),
        stored_pod(seal=seal_of(SECRET, semaphore="batch/reports-db", token=TOKEN[::-1], expiration_seconds="60")),
        stored_pod(seal=seal_of(b"a guess", semaphore="batch/reports-db", token=TOKEN, expiration_seconds="60")),
        stored_pod(token=""),
        stored_pod(semaphore="somebody-elses/reports-db"),
        stored_pod(semaphore="batch"),
        {**stored_pod(), "spec": {"containers": [{"name": "app"}], "schedulingGates": [GATE]}},
        {**stored_pod(), "spec": {"containers": [{"name": OURS, "env": [{"name": "TOKEN", "valueFrom": {}}]}]}},
    ],
    ids=[
        "no seal",
        "any seal",
        "no text",
        "for another lease",
        "for another semaphore",
        "for another token",
        "by somebody else",
        "no token",
        "another namespace",
        "no key",
        "no sidecar",
        "token from elsewhere",
    ],
)
def test_what_the_webhook_cannot_have_made_is_none_of_ours(other):
    assert READER.read(other) is None


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"length": "many"}, "length is 'many'"),
        ({"key": "another"}, "key is 'another'"),
        ({"at_least_semaphore_pod": "false"}, "not 'true' any more"),
        ({"when_full": "deny", "max_wait": "5"}, "max-wait is '5'"),
    ],
)
def test_a_pod_whose_annotations_were_changed_for_the_worse_gets_nothing_and_is_told_why(asked, problem):
    member = read(**asked)

    assert problem in member.problem
    assert (0, False) == (member.length, member.is_eligible(CREATED_AT))
    with pytest.raises(ValueError, match="is"):
        claim_of(member, 0, 300)


def test_a_lease_is_as_long_as_its_sidecar_takes_it_for_whatever_its_annotation_has_become():
    """Else it would be cut down to less than the sidecar renews it for."""
    claim = claim_of(read(expiration="5"), 0, 300)

    assert 60_000 == claim.lease_ms
    assert '"expiration":60}' in claim.holder


def test_with_a_variant_all_that_is_ours_has_its_name():
    reader = Reader("blue", (SECRET,))
    assert reader.read(stored_pod()) is None

    assert [f"blue.{GROUP}/{name}" for name in ("holder", "waited-too-long", "slot")] == [
        reader.selector,
        reader.mark,
        reader.gate,
    ]


# Whose turn it is ---------------------------------------------------------------------------------------


def test_the_oldest_comes_first_and_of_those_of_one_second_the_first_by_uid():
    members = [
        read("b"),
        read("youngest", created="2026-11-24T10:00:02Z"),
        read("a"),
        read("oldest", created="2026-11-24T09:59:59Z"),
        read("elsewhere", semaphore="batch/other", key="other"),
    ]

    found = {name: [each.name for each in queue] for name, queue in queues(members, CREATED_AT).items()}
    assert {"batch/reports-db": ["oldest", "a", "b", "youngest"], "batch/other": ["elsewhere"]} == found


@pytest.mark.parametrize(
    "options",
    [
        {"gates": ({"name": "kueue.x-k8s.io/admission"}, GATE)},
        {"metadata": {"deletionTimestamp": CREATED}},
        {"length": "none"},
        {"max_wait": "10"},
    ],
    ids=["another gate", "deleted", "invalid", "waited too long"],
)
def test_whom_a_slot_would_not_let_in_holds_up_nobody(options):
    members = [read("first", **options), read("second")]

    (queue,) = queues(members, CREATED_AT + 10).values()
    assert ["second"] == [member.name for member in queue]
    assert [("second", 1), ("first", None)] == [
        (waiter.member.name, waiter.place) for waiter in placed(members, CREATED_AT + 10)
    ]


def test_a_pod_waits_until_its_max_wait_has_passed():
    member = read(max_wait="10")

    assert [False, True] == [member.has_waited_too_long(CREATED_AT + after) for after in (9.9, 10)]
    assert not read().has_waited_too_long(CREATED_AT + 10**9)
    assert not read(max_wait="10", gates=()).has_waited_too_long(CREATED_AT + 11)


def test_why_a_pod_has_no_place_is_said():
    now = CREATED_AT + 10
    members = [
        read("closed", length="0"),
        read("gated", gates=(GATE, {"name": "other"})),
        read("invalid", length=""),
        read("late", max_wait="10"),
        read("leaving", metadata={"deletionTimestamp": CREATED}),
        read("started", gates=()),
    ]

    assert {
        "closed": "waiting, closed",
        "gated": "has other gates",
        "invalid": "cannot wait",
        "late": "waited too long",
        "leaving": "ending",
    } == {waiter.member.name: waiter.status for waiter in placed(members, now)}


# When it is worth to ask --------------------------------------------------------------------------------


def test_a_semaphore_that_seems_full_is_tried_all_the_same_now_and_then():
    patience = Patience()
    assert patience.is_due(0, is_vacant=False)
    patience.note(0, is_served=True)

    assert not patience.is_due(TRY_SECONDS - 1, is_vacant=False)
    assert patience.is_due(TRY_SECONDS, is_vacant=False)
    assert patience.is_due(0, is_vacant=True)


def test_tries_in_vain_come_ever_more_seldom_until_one_is_not():
    patience, now, pauses = Patience(), 0.0, []
    for _ in range(8):
        patience.note(now, is_served=False)
        pauses.append(patience.not_before - now)
        assert not patience.is_due(patience.not_before - 0.01, is_vacant=True)
        now = patience.not_before
        assert patience.is_due(now, is_vacant=True)

    assert FIRST_PAUSE_SECONDS == pauses[0]
    assert sorted(pauses) == pauses
    assert LONGEST_PAUSE_SECONDS == pauses[-1]
    patience.note(now, is_served=True)
    assert patience.is_due(now, is_vacant=True)
    patience.note(now, is_served=False)
    assert FIRST_PAUSE_SECONDS == patience.not_before - now
