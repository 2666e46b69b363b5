"""The tokens of an admission, and what becomes of a pod that waits or need not be there for a slot.

All other verdicts are tried with real reviews in tests/process.
"""

import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import jsonpatch
import pytest

from app import rules_of, semaphores_on
from app.admission.injection import carried, container_name, gate_name, has_gate, has_sidecar
from app.admission.review import Reason, Verdict, parse_review
from app.decision import decide, tokens
from app.settings import Settings
from tests.harness.webhook import pod_asking, review_of

Decide = Callable[..., Verdict]


def first(count: int, uid: str = "uid", semaphore: str = "batch/db", secret: bytes = b"secret") -> list[str]:
    return list(itertools.islice(tokens(uid, semaphore, secret), count))


def test_a_token_is_128_bits_in_hex():
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in first(5))


def test_every_try_has_a_token_of_its_own():
    assert 100 == len(set(first(100)))


def test_the_same_review_has_the_same_tokens_on_every_replica():
    assert first(5) == first(5)


def test_another_review_semaphore_or_secret_has_other_tokens():
    others = [first(5, uid="other"), first(5, semaphore="batch/other"), first(5, secret=b"other")]

    assert 20 == len({token for each in [first(5), *others] for token in each})


def test_texts_that_run_into_each_other_have_different_tokens():
    assert first(1, uid="ab", semaphore="c") != first(1, uid="a", semaphore="bc")


# Pods that wait -------------------------------------------------------------------------------------------

NAME, GATE = container_name(""), gate_name("")
OTHER_GATE = "kueue.x-k8s.io/admission"


@pytest.fixture
def decided() -> Iterator[Decide]:
    """Decides about a pod with nodes that listen, and fails in the end if any of them was connected to."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        addresses = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in listeners)

        def decided(pod: Any, *, waiting_allowed: bool = True, **request: Any) -> Verdict:
            settings = Settings.from_env(
                {"REDIS_ADDRESSES": addresses, "WAITING_ALLOWED": "true" if waiting_allowed else "false"}
            )
            semaphores = semaphores_on(settings)
            stack.callback(semaphores.close)
            review = parse_review(review_of(pod, **request))
            return decide(semaphores, rules_of(settings), review, time.monotonic() + 5)

        yield decided
        for each in listeners:
            each.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.accept()


def waiting(**spec: Any) -> dict[str, Any]:
    """A pod that asks to wait, with this in its spec besides."""
    pod = pod_asking(when_full="wait")
    return {**pod, "spec": {**pod["spec"], **spec}}


def patched(pod: Any, verdict: Verdict) -> Any:
    assert verdict.patch
    return jsonpatch.apply_patch(pod, json.loads(verdict.patch))


def token_of(pod: Any) -> str:
    """That of a pod that waits: with our gate, and a sidecar in its place that knows no slot."""
    found = carried(pod, NAME)
    assert found
    assert ("batch/reports-db", None) == (found.semaphore, found.slot)
    assert has_gate(pod, GATE)
    return found.token


def test_a_pod_that_waits_is_admitted_with_a_gate_and_a_token_and_no_node_is_asked(decided):
    verdict = decided(waiting(), uid="once")

    assert (True, Reason.WAITING) == (verdict.allowed, verdict.reason)
    assert "semaphore batch/reports-db: waits for a slot" == verdict.message
    assert next(tokens("once", "batch/reports-db", b"")) == token_of(patched(waiting(), verdict))


def test_the_log_has_of_the_token_of_a_pod_that_waits_no_more_than_a_hash(decided):
    verdict = decided(waiting())

    token = token_of(patched(waiting(), verdict))
    assert token not in json.dumps(dict(verdict.facts))
    assert token not in verdict.message


def test_the_same_review_of_a_pod_that_waits_has_the_same_answer(decided):
    assert decided(waiting(), uid="once") == decided(waiting(), uid="once")


def test_a_pod_that_waits_and_passes_through_again_stays_as_it_is(decided):
    admitted = patched(waiting(), decided(waiting(), uid="once"))

    verdict = decided(admitted, uid="once")

    assert (True, Reason.REINVOKED, None) == (verdict.allowed, verdict.reason, verdict.patch)


def test_a_copy_of_a_pod_that_waits_has_a_token_of_its_own(decided):
    admitted = patched(waiting(), decided(waiting()))

    verdict = decided(admitted)

    assert Reason.WAITING is verdict.reason
    assert token_of(admitted) != token_of(patched(admitted, verdict))


@pytest.mark.parametrize("lost", ["the gate", "the sidecar", "the token", "its place", "no slot"])
def test_a_pod_that_passes_through_again_with_less_than_it_was_given_is_given_it_again(decided, lost):
    admitted = patched(waiting(), decided(waiting(), uid="once"))
    changed = json.loads(json.dumps(admitted))
    inits = changed["spec"]["initContainers"]
    match lost:
        case "the gate":
            changed["spec"]["schedulingGates"] = [{"name": OTHER_GATE}]
        case "the sidecar":
            inits.clear()
        case "the token":
            inits[0]["env"].append({"name": "TOKEN", "value": "f" * 32})
        case "its place":
            inits.insert(0, {"name": "first"})
        case "no slot":
            inits[0]["env"].append({"name": "SLOT", "value": "0"})

    verdict = decided(changed, uid="once")

    assert Reason.WAITING is verdict.reason
    assert token_of(admitted) == token_of(patched(changed, verdict))


def test_another_semaphore_is_another_token_also_when_a_pod_passes_through_again(decided):
    admitted = patched(waiting(), decided(waiting(), uid="once"))

    assert Reason.WAITING is decided(admitted, uid="once", namespace="other").reason


def test_a_dry_run_of_a_pod_that_waits_has_the_patch_and_nobodys_token(decided):
    verdicts = [decided(waiting(), uid="once", dryRun=True) for _ in range(2)]

    assert [Reason.DRY_RUN] * 2 == [verdict.reason for verdict in verdicts]
    found = {token_of(patched(waiting(), verdict)) for verdict in verdicts}
    assert 3 == len({*found, next(tokens("once", "batch/reports-db", b""))})


def test_a_closed_semaphore_is_waited_for_like_any_other(decided):
    assert Reason.WAITING is decided(pod_asking(length=0, when_full="wait")).reason


@pytest.mark.parametrize("dry_run", [False, True], ids=["for real", "dry run"])
@pytest.mark.parametrize(
    ("spec", "allowed", "why", "remedy"),
    [
        ({"nodeName": "worker-1"}, True, "with spec.nodeName no scheduler is asked", "use a nodeSelector instead"),
        ({"nodeName": "worker-1"}, False, "with spec.nodeName no scheduler is asked", "use a nodeSelector instead"),
        ({}, False, "no reconciler is there", "install the component waiting, which sets WAITING_ALLOWED to true"),
    ],
    ids=["bound to a worker node", "both", "no reconciler"],
)
def test_a_pod_that_cannot_wait_is_refused_and_told_what_to_do(decided, spec, allowed, why, remedy, dry_run):
    verdict = decided(waiting(**spec), waiting_allowed=allowed, dryRun=dry_run)

    assert (False, Reason.CANNOT_WAIT, 400) == (verdict.allowed, verdict.reason, verdict.code)
    assert verdict.message.startswith(f"semaphore batch/reports-db: the pod cannot wait for a slot: {why}")
    assert remedy in verdict.message
    assert verdict.message.endswith(f"or set {GATE.removesuffix('slot')}when-full to deny")


@pytest.mark.parametrize("name", [None, ""])
def test_a_pod_without_a_worker_node_can_wait_however_that_is_written(decided, name):
    assert Reason.WAITING is decided(waiting(nodeName=name)).reason


def test_a_mirror_pod_that_says_it_waits_is_left_alone(decided):
    pod = waiting(nodeName="worker-1")
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "hash"

    assert (Reason.MIRROR, None) == (decided(pod).reason, decided(pod).patch)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_pod_that_asks_for_no_slot_loses_our_gate_which_nobody_would_lift(decided, allowed):
    pod = waiting(schedulingGates=[{"name": OTHER_GATE}, {"name": GATE}])
    del pod["metadata"]["annotations"]

    verdict = decided(pod, waiting_allowed=allowed)

    assert (True, Reason.SIDECAR_REMOVED) == (verdict.allowed, verdict.reason)
    assert [{"name": OTHER_GATE}] == patched(pod, verdict)["spec"]["schedulingGates"]


def test_a_pod_that_waited_and_asks_no_more_loses_our_gate_and_our_sidecar(decided):
    pod = patched(waiting(), decided(waiting()))
    del pod["metadata"]["annotations"]

    left = patched(pod, decided(pod))

    assert not has_gate(left, GATE)
    assert not has_sidecar(left, NAME)


def test_a_pod_that_does_not_wait_loses_our_gate_in_a_dry_run_as_well(decided):
    pod = {**waiting(schedulingGates=[{"name": GATE}]), "metadata": pod_asking()["metadata"]}

    assert not has_gate(patched(pod, decided(pod, dryRun=True)), GATE)
