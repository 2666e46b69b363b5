"""A pod that passes through a second time, and a copy of it, which looks the same: decided by what real nodes say."""

import json
import time
from collections.abc import Iterator
from typing import Any

import jsonpatch
import pytest

from app import rules_of
from app.admission.injection import carried, container_name
from app.admission.review import Reason, Verdict, parse_review
from app.decision import REINVOCATION_SECONDS, decide
from app.semaphore.model import Standing
from app.semaphore.semaphores import Semaphores
from app.settings import Settings
from tests.harness.nodes import RedisNode, addresses, redis_nodes
from tests.harness.semaphores import semaphores_on, soon
from tests.harness.webhook import pod_asking, review_of

RESERVATION_SECONDS = 300


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes() as nodes:
        yield nodes


@pytest.fixture
def semaphores(nodes: list[RedisNode]) -> Iterator[Semaphores]:
    for node in nodes:
        with node.client() as client:
            client.flushall()
    with semaphores_on(nodes) as semaphores:
        yield semaphores


class Admissions:
    """Of pods that ask for the one slot there is."""

    def __init__(self, nodes: list[RedisNode], semaphores: Semaphores) -> None:
        self._semaphores, self._nodes = semaphores, nodes
        settings = {"REDIS_ADDRESSES": addresses(nodes), "RESERVATION_SECONDS": str(RESERVATION_SECONDS)}
        self._rules = rules_of(Settings.from_env(settings))
        self.pod = self._admitted(pod_asking(length=1))
        told = carried(self.pod, container_name(""))
        assert told
        self.token = told.token

    def ask(self, pod: Any) -> Verdict:
        return decide(self._semaphores, self._rules, parse_review(review_of(pod)), soon())

    def _admitted(self, pod: Any) -> Any:
        verdict = self.ask(pod)
        assert Reason.GRANTED is verdict.reason
        assert verdict.patch
        return jsonpatch.apply_patch(pod, json.loads(verdict.patch))

    def prolong(self) -> Standing:
        """As a reconciler does as long as the pod is starting."""
        return self._semaphores.prolong(self.token, RESERVATION_SECONDS * 1000, soon())

    def let_pass(self, seconds: int) -> None:
        """The grant is so long ago on all nodes, as far as they know."""
        instant = round((time.time() - seconds) * 1000)
        for node in self._nodes:
            with node.client() as client:
                client.set(f"reservation:{self.token}", instant, keepttl=True)


@pytest.fixture
def admissions(nodes: list[RedisNode], semaphores: Semaphores) -> Admissions:
    return Admissions(nodes, semaphores)


def test_a_pod_that_passes_through_a_second_time_is_left_as_it_is(admissions):
    verdict = admissions.ask(admissions.pod)

    assert (True, Reason.REINVOKED, None) == (verdict.allowed, verdict.reason, verdict.patch)


def test_so_is_one_whose_reservation_was_prolonged_meanwhile(admissions):
    assert Standing.RESERVED is admissions.prolong()

    assert Reason.REINVOKED is admissions.ask(admissions.pod).reason


def test_a_copy_of_a_pod_that_is_still_starting_needs_a_slot_of_its_own(admissions):
    """However often its reservation is prolonged: two pods would run in one slot."""
    admissions.let_pass(REINVOCATION_SECONDS + 1)
    assert Standing.RESERVED is admissions.prolong()

    assert Reason.FULL is admissions.ask(admissions.pod).reason


def test_what_is_left_of_a_reservation_says_nothing_of_its_age(nodes, admissions):
    """A reservation that is about to end may be a second old."""
    for node in nodes:
        with node.client() as client:
            client.pexpire(f"reservation:{admissions.token}", 30_000)

    assert Reason.REINVOKED is admissions.ask(admissions.pod).reason
