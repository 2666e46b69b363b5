"""Who holds what, and how nodes are, read of real nodes that come and go."""

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from app.semaphore.semaphores import READ_AT_ONCE
from sidecar.protocol import Address
from tests.harness.nodes import LIBFAKETIME, RedisNode, failing, redis_nodes
from tests.harness.semaphores import SEMAPHORE, acquire, put_records, semaphores_on, soon, tokens_of
from tests.harness.waiting import wait_for


@pytest.fixture(scope="module")
def three() -> Iterator[list[RedisNode]]:
    with redis_nodes() as nodes:
        yield nodes


@pytest.fixture
def nodes(three: list[RedisNode]) -> list[RedisNode]:
    for node in three:
        with node.client() as client:
            client.flushall()
    return three


def token_of(name: str) -> str:
    """Of the first try."""
    return next(tokens_of(name))


def test_what_was_granted_is_seen_and_what_was_released_is_not(nodes):
    with semaphores_on(nodes) as semaphores:
        for name in "abc":
            acquire(semaphores, name, 3)
        semaphores.release(token_of("b"), soon())
        semaphores.renew(token_of("c"), 60_000, soon())

        found = semaphores.overview(soon())

    (state,) = found.states
    assert (SEMAPHORE, 3, 3) == (state.semaphore, state.length, state.records)
    assert {token_of("a"), token_of("c")} == {slot.lease.token for slot in state.held}
    assert {0: 2, 1: 2, 2: 2} == found.leases
    assert ({}, ()) == (found.unheard, found.unreadable)


def test_one_semaphore_is_read_alone(nodes):
    put_records(nodes, ["batch/a", "batch/b"])
    with semaphores_on(nodes) as semaphores:
        assert ["batch/b"] == [state.semaphore for state in semaphores.overview(soon(), only="batch/b").states]
        none = semaphores.overview(soon(), only="batch/none")
        assert ((), ()) == (none.states, none.unreadable)


def test_all_of_very_many_are_read_and_it_is_told_how_far_that_has_come(nodes):
    expected = sorted(f"batch/{number}" for number in range(READ_AT_ONCE * 2 + 1))
    put_records(nodes, expected)
    told: list[tuple[int, int]] = []
    with semaphores_on(nodes, patience_seconds=10) as semaphores:
        found = semaphores.overview(time.monotonic() + 20, on_read=lambda *counts: told.append(counts))

    assert expected == [state.semaphore for state in found.states]
    assert [(1000, 2001), (2000, 2001), (2001, 2001)] == told


@pytest.mark.parametrize(
    ("begin", "end", "why"),
    [(RedisNode.kill, RedisNode.start, "refused"), (RedisNode.pause, RedisNode.resume, "no answer within 500 ms")],
    ids=["killed", "paused"],
)
@pytest.mark.parametrize("number", range(3))
def test_with_one_node_away_the_others_tell_and_it_is_said_which_one_does_not(nodes, number, begin, end, why):
    with semaphores_on(nodes) as semaphores:
        acquire(semaphores, "a", 3)
        with failing([nodes[number]], begin, end):
            found = semaphores.overview(soon())
            health = semaphores.health(soon())

    assert [2] == [len(slot.nodes) for state in found.states for slot in state.held]
    assert [number] == list(found.unheard)
    assert why in found.unheard[number]
    assert [nodes[number].address] == [address for address, each in health.items() if each.fault]
    assert all(each.vitals and each.round_trip_seconds for each in health.values() if not each.fault)


@pytest.mark.parametrize(
    ("begin", "end"), [(RedisNode.kill, RedisNode.start), (RedisNode.pause, RedisNode.resume)], ids=["killed", "paused"]
)
def test_with_two_nodes_away_nothing_is_said_of_semaphores(nodes, begin, end):
    with semaphores_on(nodes) as semaphores:
        acquire(semaphores, "a", 3)
        with failing(nodes[:2], begin, end):
            found = semaphores.overview(soon())

    assert ((), (), {}) == (found.states, found.unreadable, found.leases)
    assert {0, 1} == set(found.unheard)


def test_a_node_that_lost_its_data_lacks_leases_until_it_is_repaired(nodes):
    with semaphores_on(nodes) as semaphores:
        acquire(semaphores, "a", 3)
        nodes[1].restart(empty=True)
        wait_for(lambda: not semaphores.overview(soon()).unheard, "the node to be heard again")
        assert [{0: 0, 1: 1, 2: 0}] == [state.lacking for state in semaphores.overview(soon()).states]

        semaphores.repair(SEMAPHORE, soon())
        assert [{0: 0, 1: 0, 2: 0}] == [state.lacking for state in semaphores.overview(soon()).states]


def test_after_the_deadline_nothing_is_asked(nodes):
    with semaphores_on(nodes) as semaphores:
        acquire(semaphores, "a", 3)
        found = semaphores.overview(time.monotonic() - 1)

    assert ((), {0, 1, 2}) == (found.states, set(found.unheard))


@pytest.mark.skipif(not LIBFAKETIME.exists(), reason=f"{LIBFAKETIME} is not there (Debian's libfaketime)")
def test_the_clock_of_a_node_is_seen_to_be_ahead():
    with redis_nodes(1, own_clock=True) as (node,), semaphores_on([node]) as semaphores:
        node.set_clock(100)
        health = semaphores.health(soon())[node.address]

    assert health.clock_offset_seconds is not None
    assert 99 < health.clock_offset_seconds < 101


@pytest.mark.parametrize("said", [b"+OK", b"$-1", b"*0", b":1", b"*1\r\n$1\r\nx"], ids=repr)
def test_a_peer_that_is_no_node_is_heard_no_more_and_the_others_tell(nodes, said):
    """As where an address leads to something else: it takes the login, and everything that is said to it."""
    with saying(said) as stranger, semaphores_on([*nodes[:2], stranger]) as semaphores:
        acquire(semaphores, "a", 3)
        found = semaphores.overview(soon())
        health = semaphores.health(soon())

    assert [{0, 1}] == [set(slot.nodes) for state in found.states for slot in state.held]
    assert [None, None] == [health[node.address].fault for node in nodes[:2]]


@contextmanager
def saying(text: bytes) -> Iterator[Any]:
    """A server that answers each command with the same."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"+OK\r\n")  # the login
            while self.connection.recv(65536):
                self.wfile.write(text + b"\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(address=Address(*server.server_address))
        server.shutdown()
