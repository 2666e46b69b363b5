"""Sidecars that die, sleep or speak too late, of pods that a real webhook has admitted.

What a sidecar does by itself, and with nodes that fail, is in tests/process/test_sidecar.py and test_nodes.py.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness.nodes import RedisNode
from tests.harness.semaphores import all_leases_on
from tests.harness.sidecars import Sidecar, sidecar
from tests.harness.waiting import wait_for
from tests.harness.webhook import Answer, Webhook, pod_asking

LEASE_SECONDS = 5
HELD, LOST, GIVEN_BACK = "the slot is held", "the slot is lost", "the slot was given back"


@pytest.fixture
def webhook(webhook: Webhook, nodes: list[RedisNode]) -> Webhook:
    """It runs on, and its nodes hold nothing."""
    for node in nodes:
        with node.client() as client:
            client.flushall()
    return webhook


def ask(webhook: Webhook) -> Answer:
    """For the one slot there is."""
    return webhook.ask(pod_asking(length=1, expiration=LEASE_SECONDS))


def ask_when_free(webhook: Webhook, nodes: list[RedisNode]) -> Answer:
    """For a lease on every node: they do not end it at the same instant, and two are enough for a grant."""
    wait_for(lambda: not any(all_leases_on(node) for node in nodes), "the end of the lease on every node")
    answer = ask(webhook)
    assert answer.allowed, answer.message
    return answer


@contextmanager
def running_in(pod: Answer, nodes: list[RedisNode]) -> Iterator[Sidecar]:
    """The sidecar of an admitted pod, which has renewed on every node: a reservation may last for longer."""
    with sidecar(pod.container()["command"], pod.env()) as process:
        wait_for(lambda: all(0 < left_ms(pod, node) <= LEASE_SECONDS * 1000 for node in nodes), "the first renewal")
        process.wait_for(HELD)
        yield process


def left_ms(pod: Answer, node: RedisNode) -> int:
    with node.client() as client:
        return int(client.pttl(f"lease:{token_of(pod)}"))


def token_of(pod: Answer) -> str:
    return pod.env()["TOKEN"]


def test_a_killed_sidecar_keeps_its_slot_for_one_lease_and_no_longer(webhook, nodes):
    pod = ask(webhook)
    with running_in(pod, nodes) as process:
        process.send(signal.SIGKILL)
        process.ended()

        assert 429 == ask(webhook).code
        wait_for(lambda: ask(webhook).allowed, "the slot to be free", LEASE_SECONDS + 1)


def test_a_sidecar_that_slept_past_its_lease_says_so_and_leaves_the_slot_to_its_new_holder(webhook, nodes):
    slept = ask(webhook)
    with running_in(slept, nodes) as sleeper:
        sleeper.send(signal.SIGSTOP)
        pod = ask_when_free(webhook, nodes)
        with running_in(pod, nodes) as keeper:
            sleeper.send(signal.SIGCONT)

            assert "error" == sleeper.wait_for(LOST)["level"]
            assert sleeper.running
            assert 0 == sleeper.terminate()
            assert sleeper.said("there was no lease left to give back")
            assert [{token_of(pod)}] * 3 == [all_leases_on(node) for node in nodes]
            assert 0 == keeper.terminate()
            assert keeper.said(GIVEN_BACK)
    assert [set()] * 3 == [all_leases_on(node) for node in nodes]


def test_a_release_that_comes_after_the_slot_was_given_to_another_frees_nothing(webhook, nodes):
    """Asleep as it was told to end: it releases on waking up, before it has heard that its lease is gone."""
    slept = ask(webhook)
    with running_in(slept, nodes) as sleeper:
        sleeper.send(signal.SIGSTOP)
        sleeper.send(signal.SIGTERM)
        pod = ask_when_free(webhook, nodes)
        with running_in(pod, nodes):
            sleeper.send(signal.SIGCONT)

            assert 0 == sleeper.ended()
            assert [{token_of(pod)}] * 3 == [all_leases_on(node) for node in nodes]
            assert 429 == ask(webhook).code


def test_a_release_that_comes_twice_frees_nothing(webhook, nodes):
    """A pod's sidecar is started once more after its end, when the slot is another's."""
    first = ask(webhook)
    with running_in(first, nodes) as process:
        assert 0 == process.terminate()
        assert process.said(GIVEN_BACK)
    pod = ask(webhook)
    with running_in(pod, nodes), sidecar(first.container()["command"], first.env()) as again:
        again.wait_for(LOST)
        assert 0 == again.terminate()

        assert [{token_of(pod)}] * 3 == [all_leases_on(node) for node in nodes]
        assert 429 == ask(webhook).code
