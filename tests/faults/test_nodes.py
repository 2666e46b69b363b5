"""Nodes that fail in every way there is, seen by real webhooks and real sidecars.

The same faults one level below, for every number of nodes and with more ways to come back, are in
tests/integration/test_semaphores.py.
"""

import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from app.semaphore.model import Grant
from tests.harness.nodes import HOOK_USER, LIBFAKETIME, SIDECAR_USER, RedisNode, addresses, redis_nodes
from tests.harness.proxy import Fault, Proxy, proxy
from tests.harness.semaphores import SEMAPHORE, all_leases_on, claim_of, semaphores_on, soon, tokens_of
from tests.harness.sidecars import ROOT, sidecar
from tests.harness.waiting import wait_for
from tests.harness.webhook import Answer, Webhook, environ_for, pod_asking, running_webhook

LEASE_SECONDS = 5
# An answer that is half a second late is later than a node's share of it.
BUDGET_SECONDS = 1.4
HELD, LOST, GIVEN_BACK = "the slot is held", "the slot is lost", "the slot was given back"
SILENCE, ENDED = "no majority of nodes answered", "the lease has ended without being renewed"
NUMBERS = pytest.mark.parametrize("number", [0, 1, 2])


@dataclass(frozen=True)
class World:
    """A webhook whose ways to the nodes, and its pods', can be made to fail."""

    nodes: Sequence[RedisNode]
    ways: Sequence[Proxy]
    webhook: Webhook

    def mend(self) -> None:
        for node, way in zip(self.nodes, self.ways, strict=True):
            way.fault = Fault.NONE
            node.resume()
            if not node.running:
                node.start()
            with node.client() as client:
                client.replicaof("NO", "ONE")
                client.config_set("maxmemory", 0)
                client.acl_load()

    def ask(self, length: int, key: str = "reports-db") -> Answer:
        return self.webhook.ask(pod_asking(key, length, LEASE_SECONDS))


@contextmanager
def running_world(**of_nodes: Any) -> Iterator[World]:
    with ExitStack() as stack:
        nodes = stack.enter_context(redis_nodes(**of_nodes))
        ways = [stack.enter_context(proxy(node.address)) for node in nodes]
        environ = environ_for(addresses(ways), ADMISSION_BUDGET_SECONDS=str(BUDGET_SECONDS))
        # One worker: what a test has seen it do, it does. Several would each have an opinion of every node.
        yield World(nodes, ways, stack.enter_context(running_webhook(environ, workers=1)))


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    with running_world() as running:
        yield running


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """Everything is well, no slot is held, and the webhook has connections to all nodes."""
    yield from well(shared_world)


def well(world: World) -> Iterator[World]:
    for node in world.nodes:
        with node.client() as client:
            client.flushall()
    pods = itertools.count()
    wait_for(lambda: is_known_to_all(world, world.ask(1000, f"well-{next(pods)}")), "all nodes to be used")
    yield world
    world.mend()


def is_known_to_all(world: World, pod: Answer) -> bool:
    return pod.allowed and all(pod.env()["TOKEN"] in all_leases_on(node) for node in world.nodes)


def running_in(pod: Answer) -> Any:
    """The sidecar of an admitted pod."""
    return sidecar(pod.container()["command"], pod.env())


def passes_its_check(pod: Answer) -> bool:
    """Whether the startupProbe finds that a majority renews the lease."""
    command = [sys.executable, "-m", "sidecar", "check"]
    return not subprocess.run(command, env=pod.env(), cwd=ROOT, timeout=20, check=False).returncode


# One node ------------------------------------------------------------------------------------------------


def killed(world: World, number: int) -> None:
    world.nodes[number].kill()


def paused(world: World, number: int) -> None:
    world.nodes[number].pause()


def read_only(world: World, number: int) -> None:
    with world.nodes[number].client() as client:
        client.replicaof("127.0.0.1", "1")


def out_of_memory(world: World, number: int) -> None:
    with world.nodes[number].client() as client:
        client.config_set("maxmemory", 1)


def without_permission(world: World, number: int) -> None:
    with world.nodes[number].client() as client:
        client.execute_command("ACL", "SETUSER", HOOK_USER, "-hset")
        client.execute_command("ACL", "SETUSER", SIDECAR_USER, "-pexpire", "-unlink")


def with_another_password(world: World, number: int) -> None:
    """Whoever is connected stays so until the connection ends."""
    with world.nodes[number].client() as client:
        for user in (HOOK_USER, SIDECAR_USER):
            client.execute_command("ACL", "SETUSER", user, "resetpass", ">changed")
            client.client_kill_filter(user=user)


def on_its_way(fault: Fault) -> Callable[[World, int], None]:
    def befall(world: World, number: int) -> None:
        world.ways[number].fault = fault

    befall.__name__ = fault.name.lower()
    return befall


NODES = [killed, paused, read_only, out_of_memory, without_permission, with_another_password]
WAYS = [on_its_way(fault) for fault in Fault if fault is not Fault.NONE]


@pytest.mark.parametrize("number", [0, 2], ids=["the-first", "another"])
@pytest.mark.parametrize("befall", [*NODES, *WAYS], ids=lambda befall: befall.__name__)
def test_with_one_node_failing_pods_get_keep_and_give_back_their_slots(world, befall, number):
    """Two slots, and each of three pods is told exactly what it would be told otherwise."""
    befall(world, number)

    first, second, refused = (world.ask(2) for _ in range(3))
    assert [True, True, False] == [pod.allowed for pod in (first, second, refused)], [first.message, second.message]
    assert "is full: 2 of 2 slots held" in refused.message
    with running_in(first) as process:
        process.wait_for(HELD)
        assert 0 == process.terminate()
        assert process.said(GIVEN_BACK)
    assert world.ask(2).allowed
    assert 429 == world.ask(2).code


def say(node: RedisNode, *lines: str) -> str:
    """What the node answers at once, to the last line; a client would try again until it has loaded its data."""
    with (
        suppress(ConnectionError),
        socket.create_connection(node.address, timeout=20) as connection,
        connection.makefile() as answers,
    ):
        connection.sendall("".join(f"{line}\r\n" for line in lines).encode())
        return [answers.readline() for _ in lines][-1]
    return ""


def is_loading(node: RedisNode) -> bool:
    return say(node, "AUTH tester tester", "PING").startswith("-LOADING")


@NUMBERS
def test_a_node_that_is_loading_its_data_is_passed_over_and_used_again_when_it_is_done(world, number):
    """It answers, and it does so with an error."""
    node = world.nodes[number]
    with node.client() as client, client.pipeline(transaction=False) as lines:
        for line in range(40_000):
            lines.set(f"other:{line}", "")
        lines.execute()
    node.kill()
    with ThreadPoolExecutor(1) as beside:
        started = beside.submit(node.start, load_delay_microseconds=100)
        try:
            wait_for(lambda: is_loading(node), "the node to load")
            pods = [world.ask(2) for _ in range(3)]
            assert is_loading(node)
        finally:
            say(node, "AUTH tester tester", "CONFIG SET key-load-delay 0")
            started.result()

    assert [True, True, False] == [pod.allowed for pod in pods]
    wait_for(lambda: is_known_to_all(world, world.ask(1000, "after")), "the node to be used again")


@pytest.mark.parametrize("fault", ["killed", "paused"])
@NUMBERS
def test_one_node_after_another_may_fail_and_no_admission_does(world, fault, number):
    """The first is back, and nobody has asked for a slot since."""
    other = (number + 1) % 3
    assert world.ask(3).allowed
    world.nodes[number].kill()
    assert world.ask(3).allowed
    world.nodes[number].start()
    {"killed": killed, "paused": paused}[fault](world, other)

    pod = world.ask(3)
    assert pod.allowed, pod.message


# Nodes that lose their data ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_nodes_that_lose_their_data_one_after_the_other_lose_no_slot_if_repaired_between(world, order):
    """An admission repairs; in the end none of the nodes has what it had at first."""
    pods = [world.ask(3) for _ in range(2)]
    kept = {pod.env()["TOKEN"] for pod in pods}
    with semaphores_on(world.nodes) as others:
        for number in order:
            world.nodes[number].restart(empty=True)

            def is_repaired() -> bool:
                passing = world.ask(3)
                assert passing.allowed, passing.message
                others.release(passing.env()["TOKEN"], soon())
                return kept <= all_leases_on(world.nodes[number])  # noqa: B023

            wait_for(is_repaired, "the repair")

    assert [True, True] == [passes_its_check(pod) for pod in pods]
    assert [200, 429] == [world.ask(3).code or 200 for _ in range(2)]


def test_two_nodes_that_lose_their_data_without_a_repair_let_in_the_length_once_more_at_most(world):
    """While the third, which knows better, is away: nobody who can be heard knows the semaphore.

    More than is promised for. The pods of before are told at their next renewal, so that no more than the length
    go on; and when the third node is back it is outvoted.
    """
    before = [world.ask(2) for _ in range(2)]
    with running_in(before[0]) as first, running_in(before[1]) as second:
        for process in (first, second):
            process.wait_for(HELD)
        world.nodes[2].pause()
        for number in (0, 1):
            world.nodes[number].restart(empty=True)

        after = [world.ask(2) for _ in range(5)]
        assert [True, True, False, False, False] == [pod.allowed for pod in after]
        for process in (first, second):
            process.wait_for(LOST)
        world.nodes[2].resume()
        wait_for(lambda: not {pod.env()["TOKEN"] for pod in before} & all_leases_on(world.nodes[2]), "the releases")
        assert [True, True] == [passes_its_check(pod) for pod in after[:2]]
        assert 429 == world.ask(2).code


# All nodes -----------------------------------------------------------------------------------------------


def black_out(world: World) -> None:
    for node in world.nodes:
        node.kill()


@contextmanager
def two_pods_run(world: World) -> Iterator[tuple[Any, Any]]:
    """The sidecars of two pods that have the two slots, which all nodes keep for a lease: a reservation is longer."""
    pods = [world.ask(2) for _ in range(2)]
    with running_in(pods[0]) as first, running_in(pods[1]) as second:
        wait_for(lambda: all(map(is_renewed, itertools.product(pods, world.nodes))), "the first renewals")
        for process in (first, second):
            process.wait_for(HELD)
        yield first, second


def is_renewed(pod_and_node: tuple[Answer, RedisNode]) -> bool:
    pod, node = pod_and_node
    with node.client() as client:
        return 0 < int(client.pttl(f"lease:{pod.env()['TOKEN']}")) <= LEASE_SECONDS * 1000


def test_all_nodes_down_for_less_than_a_lease_cost_no_pod_its_slot(world):
    with two_pods_run(world) as sidecars:
        black_out(world)
        assert 503 == world.ask(2).code
        for process in sidecars:
            process.wait_for(SILENCE)
        for node in world.nodes:
            node.start()
        refused = world.ask(2)

        assert "is full: 2 of 2" in refused.message
        for process in sidecars:
            assert 0 == process.terminate()
            assert process.said(GIVEN_BACK)
            assert not process.said(LOST)
            assert not process.said(ENDED)
    assert [200, 200, 429] == [world.ask(2).code or 200 for _ in range(3)]


def test_all_nodes_down_for_more_than_a_lease_free_all_slots_and_the_sidecars_say_so(world):
    with two_pods_run(world) as sidecars:
        black_out(world)
        for process in sidecars:
            assert "error" == process.wait_for(ENDED)["level"]
        for node in world.nodes:
            node.start()
        pods = [world.ask(2) for _ in range(3)]

        assert [True, True, False] == [pod.allowed for pod in pods]
        for process in sidecars:
            process.wait_for(LOST)
            assert 0 == process.terminate()
        assert [True, True] == [passes_its_check(pod) for pod in pods[:2]]


# Clocks --------------------------------------------------------------------------------------------------

HOUR = 3600
STEPS = pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["an-hour-forward", "an-hour-back"])


@pytest.fixture(scope="module")
def clocked_world() -> Iterator[World]:
    if not LIBFAKETIME.exists():
        pytest.skip("libfaketime is not installed (Debian: apt-get install libfaketime)")
    with running_world(own_clock=True) as running:
        yield running


@pytest.fixture
def clocks(clocked_world: World) -> Iterator[World]:
    """A world whose nodes have clocks of their own, all of them right."""
    for node in clocked_world.nodes:
        node.set_clock(0)
    yield from well(clocked_world)


@NUMBERS
@STEPS
def test_a_clock_that_steps_on_one_node_costs_no_pod_its_slot_and_lets_nobody_else_in(clocks, step, number):
    with two_pods_run(clocks) as sidecars:
        clocks.nodes[number].set_clock(step)

        assert [429] * 3 == [clocks.ask(2).code for _ in range(3)]
        await_renewals(clocks.nodes[(number + 1) % 3])
        assert [429] * 3 == [clocks.ask(2).code for _ in range(3)]
        for process in sidecars:
            assert 0 == process.terminate()
            assert process.said(GIVEN_BACK)
            assert not process.said(LOST)
    assert [200, 200, 429] == [clocks.ask(2).code or 200 for _ in range(3)]


def await_renewals(node: RedisNode) -> None:
    """Two of them."""
    before = node.calls("pexpire")
    wait_for(lambda: node.calls("pexpire") >= before + 2, "renewals")


LEASE_MS = 1500


@NUMBERS
@STEPS
def test_a_clock_that_steps_on_one_node_keeps_no_slot_of_a_pod_that_is_gone(clocks, step, number):
    """It is free one lease after the next refused admission looked at it. (A lease shorter than a pod may ask for.)"""
    claim = claim_of(1, reservation_ms=LEASE_MS, lease_ms=LEASE_MS)
    pods = itertools.count()
    with semaphores_on(clocks.nodes) as semaphores:

        def is_granted() -> bool:
            return isinstance(semaphores.acquire(claim, tokens_of(f"pod{next(pods)}"), soon()), Grant)

        assert is_granted()
        wait_for(lambda: all(all_leases_on(node) for node in clocks.nodes), "the grant on every node")
        clocks.nodes[number].set_clock(step)

        wait_for(is_granted, f"a slot of {SEMAPHORE}", LEASE_MS / 1000 + 1)
