"""Webhooks that die, sleep, are cut off or have no disk, and webhooks whose nodes go: real ones, on real nodes.

What a single node's fault does is in test_nodes.py, what peers and certificates do in tests/process/test_server.py.
"""

import os
import shutil
import signal
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.harness.nodes import RedisNode, addresses, redis_nodes
from tests.harness.proxy import Fault, Proxy, proxy
from tests.harness.semaphores import acquire, all_leases_on, semaphores_on, soon
from tests.harness.waiting import wait_for
from tests.harness.webhook import Answer, Webhook, environ_for, pod_asking, review_of, running_webhook

# The shortest that is accepted, and so the longest that a slot is lost to a pod that never was.
RESERVATION_SECONDS = 5
# A node has a quarter of it, within which a test finds the time to kill or to stop the one who waits.
LONG_BUDGET_SECONDS = 20
API_SERVERS_PATIENCE_SECONDS = 3.0


@pytest.fixture
def ways(nodes: list[RedisNode]) -> Iterator[list[Proxy]]:
    """To nodes that hold nothing."""
    for node in nodes:
        with node.client() as client:
            client.flushall()
    with ExitStack() as stack:
        yield [stack.enter_context(proxy(node.address)) for node in nodes]


@contextmanager
def one_worker(
    ways: Sequence[Proxy], nodes: Sequence[RedisNode], reservation_seconds: int = RESERVATION_SECONDS
) -> Iterator[Webhook]:
    """A webhook with one worker, connected to all nodes, which have a record of the semaphore and no lease."""
    environ = environ_for(
        addresses(ways),
        RESERVATION_SECONDS=str(reservation_seconds),
        ADMISSION_BUDGET_SECONDS=str(LONG_BUDGET_SECONDS),
    )
    with running_webhook(environ, workers=1) as webhook:
        token = webhook.ask(pod_asking(length=1)).env()["TOKEN"]
        await_lease(token, nodes)
        with semaphores_on(nodes) as pods:
            assert pods.release(token, soon())
        yield webhook


def await_lease(token: str, nodes: Sequence[RedisNode]) -> None:
    wait_for(lambda: all(token in all_leases_on(node) for node in nodes), "the lease on every node")


def await_grant(nodes: Sequence[RedisNode]) -> str:
    """The one token that there is, once all of `nodes` hold it."""
    (token,) = wait_for(lambda: all_leases_on(nodes[-1]), "a grant")
    await_lease(token, nodes)
    return str(token)


# A webhook that ends or sleeps in the middle ------------------------------------------------------------


def test_a_worker_that_is_killed_between_grant_and_answer_leaves_a_slot_that_frees_itself(nodes, ways):
    """And which a repeat of the review, to whichever worker, finds until then."""
    pod, lost = pod_asking(length=1), review_of(pod_asking(length=1))
    with one_worker(ways, nodes) as webhook, ThreadPoolExecutor(1) as api_server:
        for way in ways[1:]:
            way.fault = Fault.HOLD
        answer = api_server.submit(webhook.post, lost)
        token = await_grant(nodes)
        os.kill(webhook.workers()[0], signal.SIGKILL)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            answer.result()
        for way in ways:
            way.fault = Fault.NONE

        assert 429 == webhook.ask(pod).code
        found = webhook.ask(lost["request"]["object"], uid=lost["request"]["uid"])
        assert token == found.env()["TOKEN"]
        wait_for(lambda: webhook.ask(pod).allowed, "the slot to be free", RESERVATION_SECONDS + 1)


def test_a_worker_that_sleeps_longer_than_the_api_server_waits_grants_what_a_repeat_finds(nodes, ways):
    """Its votes are in when it wakes; the slot waits for a pod that nobody makes, and ends by itself."""
    pod, slept = pod_asking(length=1), review_of(pod_asking(length=1))
    with one_worker(ways, nodes) as webhook, ThreadPoolExecutor(1) as api_server:
        webhook.patience_seconds = 2
        for way in ways[1:]:
            way.fault = Fault.HOLD
        answer = api_server.submit(webhook.post, slept, timeout="2s")
        token = await_grant(nodes)
        (worker,) = webhook.workers()
        os.kill(worker, signal.SIGSTOP)
        for way in ways:
            way.fault = Fault.NONE
        with pytest.raises(TimeoutError):
            answer.result()
        os.kill(worker, signal.SIGCONT)
        webhook.patience_seconds = 30

        assert 429 == webhook.ask(pod).code
        found = webhook.ask(slept["request"]["object"], uid=slept["request"]["uid"])
        assert token == found.env()["TOKEN"]
        wait_for(lambda: webhook.ask(pod).allowed, "the slot to be free", RESERVATION_SECONDS + 1)


def test_a_worker_that_wakes_too_late_to_finish_an_admission_gives_back_what_it_took(nodes, ways):
    """No majority had granted the slot yet, and nobody waits for the answer any more."""
    with one_worker(ways, nodes, reservation_seconds=300) as webhook, ThreadPoolExecutor(1) as api_server:
        webhook.patience_seconds = 1
        ways[0].fault = Fault.HOLD
        answer = api_server.submit(webhook.post, review_of(pod_asking(length=1)), timeout="1s")
        token = await_grant(nodes[:1])
        (worker,) = webhook.workers()
        os.kill(worker, signal.SIGSTOP)
        ways[0].fault = Fault.NONE
        with pytest.raises(TimeoutError):
            answer.result()
        assert token in all_leases_on(nodes[0])
        os.kill(worker, signal.SIGCONT)

        wait_for(lambda: not any(token in all_leases_on(node) for node in nodes), "the release")
        webhook.patience_seconds = 30
        assert webhook.ask(pod_asking(length=1)).allowed


# Nodes that go while admissions come ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def hurried(nodes: list[RedisNode]) -> Iterator[tuple[Webhook, list[Proxy]]]:
    """A webhook with little time, and its ways to the nodes."""
    with ExitStack() as stack:
        ways = [stack.enter_context(proxy(node.address)) for node in nodes]
        environ = environ_for(addresses(ways), ADMISSION_BUDGET_SECONDS="0.6")
        yield stack.enter_context(running_webhook(environ, patience_seconds=API_SERVERS_PATIENCE_SECONDS)), ways


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE], ids=lambda fault: fault.name)
def test_with_two_nodes_out_of_reach_every_answer_is_there_in_time_and_is_a_denial(hurried, fault):
    webhook, ways = hurried
    pod = pod_asking(fault.name, length=1000)
    wait_for(lambda: webhook.ask(pod).allowed, "an admission by all nodes")
    for way in ways[1:]:
        way.fault = fault
    denied = [webhook.ask(pod) for _ in range(4)]
    for way in ways[1:]:
        way.fault = Fault.NONE

    assert [503] * 4 == [answer.code for answer in denied]
    assert all("fewer than 2 of 3 nodes answered" in answer.message for answer in denied)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_of_100_admissions_and_releases_none_fails_though_a_node_is_killed_in_between(number):
    """The only slot goes from hand to hand, so that every release counts as well."""
    with (
        redis_nodes() as nodes,
        running_webhook(environ_for(addresses(nodes))) as webhook,
        semaphores_on(nodes) as pods,
    ):
        alive = nodes
        for turn in range(100):
            if turn == 50:
                nodes[number].kill()
                alive = [node for node in nodes if node.running]
            answer = webhook.ask(pod_asking(length=1))
            assert answer.allowed, (turn, answer.message)
            token = answer.env()["TOKEN"]
            # No pod is so fast that it ends before the last node has carried out its admission.
            await_lease(token, alive)
            assert pods.release(token, soon())


def test_replicas_that_see_different_majorities_admit_the_length_together(nodes, ways):
    """One cannot reach the first node, the other not the last: nobody is refused but for the semaphore being full.

    All nodes know the semaphore. One that only two of them knew could be told to the third by nobody.
    """
    with semaphores_on(nodes) as semaphores:
        assert semaphores.release(acquire(semaphores, "first", 30).token, soon())
    with ExitStack() as stack:
        replicas = []
        for cut_off in (0, 2):
            own = [stack.enter_context(proxy(node.address)) for node in nodes]
            own[cut_off].fault = Fault.REFUSE
            replicas.append(stack.enter_context(running_webhook(environ_for(addresses(own)))))

        def ask(number: int) -> Answer:
            return replicas[number % 2].ask(pod_asking(length=30))

        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(ask, range(40)))

    assert Counter({True: 30, False: 10}) == Counter(answer.allowed for answer in answers)
    assert {429} == {answer.code for answer in answers if not answer.allowed}
    assert 30 == len({answer.env()["SLOT"] for answer in answers if answer.allowed})


# No disk for the metrics ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one mebibyte."""
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed (Debian: apt-get install mount)")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount a file system: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    assert 0 == os.statvfs(disk).f_bavail


@contextmanager
def counting_on(disk: Path, nodes: Sequence[RedisNode]) -> Iterator[Webhook]:
    """A webhook whose one worker keeps its counts there."""
    environ = environ_for(addresses(nodes), PROMETHEUS_MULTIPROC_DIR=str(disk / "metrics"))
    with running_webhook(environ, workers=1, patience_seconds=API_SERVERS_PATIENCE_SECONDS) as webhook:
        yield webhook


def test_a_worker_admits_though_its_first_counts_come_when_the_disk_is_full(nodes, small_disk):
    with counting_on(small_disk, nodes) as webhook:
        workers = wait_for(webhook.workers, "a worker")
        fill(small_disk)

        assert all(webhook.ask(pod_asking("full-disk", length=100)).allowed for _ in range(3))
        assert 404 == webhook.get("/other")[0]
        assert workers == webhook.workers()


def test_a_worker_starts_and_admits_though_the_disk_of_its_metrics_is_full(nodes, small_disk):
    with counting_on(small_disk, nodes) as webhook:
        (first,) = wait_for(webhook.workers, "a worker")
        assert webhook.ask(pod_asking("full-disk", length=100)).allowed
        fill(small_disk)
        os.kill(first, signal.SIGKILL)

        assert all(webhook.ask(pod_asking("full-disk", length=100)).allowed for _ in range(3))
        assert "at_least_semaphore_verdicts_total" in webhook.metrics()
