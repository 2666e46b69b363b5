"""Semaphores on real nodes that die, stall, lose their data and refuse."""

import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from random import Random
from typing import Any

import pytest

from app.semaphore.model import Claim, Full, Grant, Outcome, Standing, Unavailable
from app.semaphore.semaphores import Semaphores
from sidecar.protocol import Address, Renewal, majority
from tests.harness.nodes import HOOK_USER, RedisNode, redis_nodes
from tests.harness.proxy import Fault, Proxy, proxy
from tests.harness.semaphores import (
    RECORD,
    SEMAPHORE,
    acquire,
    all_leases_on,
    claim_of,
    leases_on,
    semaphores_on,
    soon,
    tokens_of,
)
from tests.harness.waiting import wait_for

LIFE_MS = 60_000


@pytest.fixture(scope="module")
def clusters() -> Iterator[Callable[[int], list[RedisNode]]]:
    """Some nodes, all of them up and empty; the tests of this module share them."""
    with ExitStack() as stack:
        sizes: dict[int, list[RedisNode]] = {}

        def cluster(count: int) -> list[RedisNode]:
            if count not in sizes:
                sizes[count] = stack.enter_context(redis_nodes(count))
            with ThreadPoolExecutor() as side_by_side:
                list(side_by_side.map(mend, sizes[count]))
            return sizes[count]

        yield cluster


def mend(node: RedisNode) -> None:
    node.resume()
    if not node.running:
        node.start(empty=True)
    with node.client() as client:
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory", 0)
        client.acl_load()
        client.flushall()


@pytest.fixture
def nodes(clusters):
    return clusters(3)


@pytest.fixture
def semaphores(nodes):
    with semaphores_on(nodes) as semaphores:
        yield semaphores


def subsets(count: int) -> list[Any]:
    """Every set of so many nodes, from none to all."""
    sets = itertools.chain.from_iterable(itertools.combinations(range(count), size) for size in range(count + 1))
    return [pytest.param(count, each, id=f"{count}-without-{'-'.join(map(str, each)) or 'none'}") for each in sets]


def down(nodes: Sequence[RedisNode], numbers: Sequence[int]) -> list[RedisNode]:
    """Kill some nodes; gives those that live."""
    for number in numbers:
        nodes[number].kill()
    return [node for number, node in enumerate(nodes) if number not in numbers]


def await_nothing_on(nodes: Sequence[RedisNode]) -> None:
    wait_for(lambda: not any(all_leases_on(node) for node in nodes), "no lease to be left")


def other_claim() -> Claim:
    return Claim("batch/other", 1000, 60_000, 60_000, "{}")


def settle(nodes: Sequence[RedisNode]) -> None:
    """An admission ends with the majority; wait for the last node to have carried it out, too."""
    first = nodes[0]
    wait_for(lambda: all(leases_on(node) == leases_on(first) != {} for node in nodes), "the nodes to be of one mind")


def await_vote(semaphores: Any, node: RedisNode, length: int = 1000) -> None:
    """Admissions go on, and in the end the node takes part in them."""
    names = (f"vote{number}" for number in itertools.count())

    def votes() -> bool:
        granted = acquire(semaphores, next(names), length)
        voted = isinstance(granted, Grant) and granted.token in all_leases_on(node)
        if isinstance(granted, Grant) and not voted:
            semaphores.release(granted.token, soon())
        return voted

    wait_for(votes, f"{node.address} to vote")


def left_ms(node: RedisNode, holder: str) -> int:
    """What is left of a lease on the node, by its token."""
    with node.client() as client:
        return int(client.pttl(f"lease:{holder}"))


# Any nodes may be down ----------------------------------------------------------------------------------

EVERY_SUBSET = pytest.mark.parametrize(("count", "dead"), [*subsets(1), *subsets(3)])


@pytest.mark.parametrize(("count", "dead"), [*subsets(1), *subsets(3), *subsets(5)])
def test_a_slot_is_granted_exactly_when_a_majority_is_up(clusters, count, dead):
    """And where it is not, nothing stays behind on those that are up."""
    nodes = clusters(count)
    alive = down(nodes, dead)
    with semaphores_on(nodes) as semaphores:
        began = time.monotonic()
        outcome = acquire(semaphores, "a", 1)

        assert time.monotonic() - began < 3
        if len(alive) >= majority(count):
            assert Grant(0, "a.0") == outcome
            settle(alive)
            assert {0: "a.0"} == leases_on(alive[0])
        else:
            assert isinstance(outcome, Unavailable)
            assert f"fewer than {majority(count)} of {count} nodes answered" in outcome.why
            assert all(str(nodes[number].address) in outcome.why for number in outcome.unheard)
            await_nothing_on(alive)


@EVERY_SUBSET
def test_a_lease_is_kept_exactly_when_a_majority_is_up(clusters, count, dead):
    nodes = clusters(count)
    with semaphores_on(nodes) as semaphores:
        acquire(semaphores, "a", 1)
        alive = down(nodes, dead)
        expected = Renewal.KEPT if len(alive) >= majority(count) else Renewal.UNKNOWN

        assert expected is semaphores.renew("a.0", 2 * LIFE_MS, soon())
        wait_for(lambda: all(left_ms(node, "a.0") > LIFE_MS for node in alive), "the lease to be prolonged")


@EVERY_SUBSET
def test_a_release_reaches_all_that_are_up_and_says_whether_they_are_a_majority(clusters, count, dead):
    nodes = clusters(count)
    with semaphores_on(nodes) as semaphores:
        acquire(semaphores, "a", 1)
        alive = down(nodes, dead)

        assert (len(alive) >= majority(count)) is semaphores.release("a.0", soon())
        await_nothing_on(alive)


@pytest.mark.parametrize(("count", "stalled"), subsets(3))
@pytest.mark.parametrize("connected", [False, True])
def test_nodes_that_stall_are_as_good_as_dead(clusters, count, stalled, connected):
    """Whether the webhook was connected before or not; and what they did late is undone."""
    nodes = clusters(count)
    with semaphores_on(nodes, patience_seconds=0.2) as semaphores:
        if connected:
            acquire(semaphores, "before", 2)
            semaphores.release("before.0", soon())
        for number in stalled:
            nodes[number].pause()
        outcome = acquire(semaphores, "a", 2, budget_seconds=1.5)
        for number in stalled:
            nodes[number].resume()

        if len(stalled) <= 1:
            assert isinstance(outcome, Grant)
            held = {outcome.slot: outcome.token}
            alive = [node for number, node in enumerate(nodes) if number not in stalled]
            settle(alive)
            assert held == leases_on(alive[0])
            wait_for(lambda: all(leases_on(node) in ({}, held) for node in nodes), "the late node to agree")
        else:
            assert isinstance(outcome, Unavailable)
            await_nothing_on(nodes)


@pytest.mark.parametrize("stalled", [(1, 2), (0, 2)])
def test_an_admission_that_runs_out_of_time_releases_nevertheless(nodes, stalled):
    with semaphores_on(nodes, patience_seconds=5.0) as semaphores:
        acquire(semaphores, "before", 3)
        settle(nodes)
        semaphores.release("before.0", soon())
        for number in stalled:
            nodes[number].pause()
        assert isinstance(acquire(semaphores, "a", 3, budget_seconds=0.2), Unavailable)
        for number in stalled:
            nodes[number].resume()

        await_nothing_on(nodes)


# Contenders ---------------------------------------------------------------------------------------------


def contend(addresses: Sequence[Address], orders: "Connection[Any, Any]") -> None:
    """A webhook process: takes orders (name, length, when to start), gives back outcomes."""
    listening = [Listening(address) for address in addresses]
    with semaphores_on(listening, rng=Random()) as semaphores:
        for name, length, start in iter(orders.recv, None):
            time.sleep(max(0.0, start - time.monotonic()))
            orders.send(acquire(semaphores, name, length, budget_seconds=10))


class Listening:
    """The address of a node of another process."""

    def __init__(self, address: Address) -> None:
        self.address = address


@pytest.fixture(scope="module")
def contenders(clusters):
    """Sixteen webhook processes on the same three nodes."""
    spawn = multiprocessing.get_context("spawn")
    addresses = [node.address for node in clusters(3)]
    pipes, processes = [], []
    for _ in range(16):
        ours, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=contend, args=(addresses, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    yield pipes
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join(20)
        pipe.close()


def outcomes_of(pipes: Sequence[Any], length: int, *, round_: int = 0) -> list[Outcome]:
    """All ask at the same instant."""
    start = time.monotonic() + 0.05
    for number, pipe in enumerate(pipes):
        pipe.send((f"c{number}r{round_}", length, start))
    return [pipe.recv() for pipe in pipes]


@pytest.mark.parametrize("count", [2, 4, 8, 16])
@pytest.mark.parametrize("free", [1, 2, -1, 0, 5], ids=["one-slot", "two", "one-too-few", "as-many", "five-more"])
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
def test_of_many_contenders_exactly_as_many_get_in_as_there_are_slots(nodes, contenders, count, free, is_new):
    """All others are told that it is full; nobody is turned away for any other reason."""
    length = free if free in (1, 2) else count + free
    if not is_new:
        with semaphores_on(nodes) as semaphores:
            acquire(semaphores, "before", length)
            semaphores.release("before.0", soon())
    outcomes = outcomes_of(contenders[:count], length)

    granted = [outcome for outcome in outcomes if isinstance(outcome, Grant)]
    assert min(count, length) == len(granted), outcomes
    assert [] == [outcome for outcome in outcomes if not isinstance(outcome, Grant | Full)]
    assert len(granted) == len({grant.slot for grant in granted})
    held = [leases_on(node) for node in nodes]
    for grant in granted:
        assert majority(3) <= sum(leases.get(grant.slot) == grant.token for leases in held)


def test_contenders_fill_what_is_freed_round_after_round(nodes, contenders):
    with semaphores_on(nodes) as semaphores:
        for round_ in range(5):
            outcomes = outcomes_of(contenders, 5, round_=round_)
            granted = [outcome for outcome in outcomes if isinstance(outcome, Grant)]
            assert (5, 11) == (len(granted), sum(isinstance(outcome, Full) for outcome in outcomes)), outcomes
            assert all(semaphores.release(grant.token, soon()) for grant in granted)


# One after the other ------------------------------------------------------------------------------------


def test_the_same_token_twice_takes_one_slot(nodes, semaphores):
    """Also when another replica of the webhook is asked."""
    first = acquire(semaphores, "a", 10)
    with semaphores_on(nodes) as replica:
        assert [first] * 3 == [acquire(semaphores, "a", 10), acquire(replica, "a", 10), acquire(replica, "a", 10)]

    settle(nodes)
    assert {first.slot: "a.0"} == leases_on(nodes[0])


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_the_same_token_twice_takes_one_slot_though_a_node_was_lost_between(nodes, semaphores, dead):
    first = acquire(semaphores, "a", 10)
    settle(nodes)
    nodes[dead].kill()

    assert first == acquire(semaphores, "a", 10)


def test_a_full_semaphore_names_its_holders_until_one_is_released(nodes, semaphores):
    for name in "abc":
        acquire(semaphores, name, 3)
    refused = acquire(semaphores, "d", 3)
    assert (3, {"a", "b", "c"}) == (refused.held, set(refused.holders))

    semaphores.release("b.0", soon())
    assert isinstance(acquire(semaphores, "d", 3), Grant)


def test_a_length_may_be_lowered_and_raised(nodes, semaphores):
    for name in "abcd":
        acquire(semaphores, name, 4)
    assert 4 == acquire(semaphores, "late", 2).held
    for name, held in [("a", 3), ("c", 2)]:
        semaphores.release(f"{name}.0", soon())
        assert held == acquire(semaphores, "late", 2).held
    assert isinstance(acquire(semaphores, "e", 3), Grant)
    assert 3 == acquire(semaphores, "late", 3).held
    assert {0, 1, 2, 3, 4} == {slot for slot in leases_on(nodes[0])} | {
        acquire(semaphores, name, 5).slot for name in "fg"
    }
    assert 5 == acquire(semaphores, "late", 5).held


def test_a_slot_is_free_again_when_its_lease_has_ended(nodes, semaphores):
    claim = claim_of(1, reservation_ms=200)
    semaphores.acquire(claim, iter(["a"]), soon())
    await_nothing_on(nodes)

    assert Grant(0, "b.0") == acquire(semaphores, "b", 1)


def test_a_lease_that_a_majority_lost_is_ended_on_the_last_node_too(nodes, semaphores):
    acquire(semaphores, "a", 1)
    settle(nodes)
    for node in nodes[1:]:
        with node.client() as client:
            client.delete("lease:a.0")

    assert Renewal.LOST is semaphores.renew("a.0", LIFE_MS, soon())
    await_nothing_on(nodes)


def test_an_unknown_token_may_be_released_and_is_not_renewed(nodes, semaphores):
    acquire(semaphores, "a", 1)

    assert semaphores.release("stranger", soon())
    assert Renewal.LOST is semaphores.renew("stranger", LIFE_MS, soon())
    settle(nodes)
    assert {0: "a.0"} == leases_on(nodes[0])


def test_a_grant_is_recent_as_long_as_a_majority_says_so(nodes, semaphores):
    grant = acquire(semaphores, "a", 3)
    settle(nodes)
    asked = (SEMAPHORE, grant.slot, grant.token, LIFE_MS)

    assert semaphores.is_recent(*asked, soon())
    down(nodes, [0])
    assert semaphores.is_recent(*asked, soon())
    with nodes[1].client() as client:  # as a sidecar does it
        client.delete("reservation:a.0")
    assert not semaphores.is_recent(*asked, soon())


def test_a_grant_that_only_a_minority_can_tell_of_is_not_recent(nodes, semaphores):
    grant = acquire(semaphores, "a", 3)
    settle(nodes)
    down(nodes, [0, 1])

    assert not semaphores.is_recent(SEMAPHORE, grant.slot, grant.token, LIFE_MS, soon())


# Nodes that lost data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_node_that_lost_its_data_abstains_until_it_is_repaired_and_then_votes(nodes, semaphores, lost):
    for name in "ab":
        acquire(semaphores, name, 3)
        settle(nodes)
    other, third = (number for number in range(3) if number != lost)
    nodes[lost].restart(empty=True)
    nodes[other].kill()
    assert isinstance(acquire(semaphores, "c", 3), Unavailable)
    assert {} == leases_on(nodes[lost])

    nodes[other].start()
    wait_for(lambda: isinstance(acquire(semaphores, "d", 3), Grant), "the other node to be heard again")
    wait_for(lambda: leases_on(nodes[third]) == leases_on(nodes[lost]), "the repair")
    nodes[other].kill()
    assert 3 == acquire(semaphores, "e", 3).held
    semaphores.release("a.0", soon())
    assert isinstance(acquire(semaphores, "f", 3), Grant)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_next_admission_repairs_a_node_even_if_it_is_refused(nodes, semaphores, lost):
    acquire(semaphores, "a", 1)
    settle(nodes)
    nodes[lost].restart(empty=True)
    refused = [acquire(semaphores, "b", 1) for _ in range(2)]

    assert [Full(1, ("a",), 1)] * 2 == refused
    assert {0: "a.0"} == leases_on(nodes[lost])
    assert 0 < left_ms(nodes[lost], "a.0") <= LIFE_MS
    with nodes[lost].client() as client:
        assert 0 < client.pttl("reservation:a.0") <= LIFE_MS


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_worker_that_is_new_repairs_what_it_is_asked_for_even_if_it_refuses(nodes, semaphores, lost):
    """Who knew that the node had come back empty is gone."""
    acquire(semaphores, "a", 1)
    settle(nodes)
    nodes[lost].restart(empty=True)
    with semaphores_on(nodes) as successor:
        assert isinstance(successor.acquire(other_claim(), tokens_of("other"), soon()), Grant)
        assert isinstance(acquire(successor, "b", 1), Full)

    assert {0: "a.0"} == leases_on(nodes[lost])


def test_one_semaphore_that_cannot_be_repaired_keeps_no_other_from_it(nodes, semaphores):
    """A conflict that lasts: two nodes name different tokens for a slot."""
    acquire(semaphores, "a", 3)
    settle(nodes)
    for number, node in enumerate(nodes[:2]):
        with node.client() as client:
            client.hset("slots:batch/torn", mapping={"0": f"torn{number}", "length": "1", "longest": "60000"})
            client.set(f"lease:torn{number}", "{}", px=60_000)
    torn = Claim("batch/torn", 1, 60_000, 60_000, "{}")
    assert isinstance(semaphores.acquire(torn, tokens_of("t"), soon()), Full)
    nodes[2].restart(empty=True)
    for name in "bcdef":
        assert isinstance(semaphores.acquire(other_claim(), tokens_of(name), soon()), Grant)

    assert "a.0" in leases_on(nodes[2]).values()


def test_a_majority_that_lost_its_data_does_not_let_anybody_in_past_the_length(nodes, semaphores):
    """More was lost than is promised for, but the node that remembers is not outvoted."""
    for name in "ab":
        acquire(semaphores, name, 2)
        settle(nodes)
    for node in nodes[1:]:
        node.restart(empty=True)

    for name in "cdef":
        assert isinstance(acquire(semaphores, name, 2), Full | Unavailable)
    semaphores.repair(SEMAPHORE, soon())
    assert [{"a.0", "b.0"}] * 3 == [set(leases_on(node).values()) for node in nodes]


def test_a_first_node_that_comes_back_with_an_old_record_is_repaired_by_the_next_admission(nodes, semaphores):
    acquire(semaphores, "old", 3)
    settle(nodes)
    nodes[0].kill()
    for name in "ab":
        acquire(semaphores, name, 3)
    nodes[0].start()
    assert 1 == len(leases_on(nodes[0]))

    def is_full() -> bool:
        outcome = acquire(semaphores, "late", 3)
        assert isinstance(outcome, Full)
        return leases_on(nodes[0]) == leases_on(nodes[1])

    wait_for(is_full, "the first node to know as much as the others")


def test_a_repair_gives_a_node_with_an_old_record_the_leases_that_it_lacks(nodes, semaphores):
    acquire(semaphores, "ended", 3)
    settle(nodes)
    nodes[2].kill()
    semaphores.release("ended.0", soon())
    for name in "ab":
        acquire(semaphores, name, 3)
    nodes[2].start()

    def agrees() -> bool:
        semaphores.repair(SEMAPHORE, soon())
        return set(leases_on(nodes[2]).values()) >= {"a.0", "b.0"}

    # The lease that ended meanwhile is ended there too, by the release that could not be sent.
    wait_for(agrees, "the repair")
    assert leases_on(nodes[0]) == leases_on(nodes[2])


@pytest.mark.parametrize("away", [0, 1, 2])
def test_a_node_that_was_away_is_told_what_it_missed_by_the_next_admission_to_anything(nodes, semaphores, away):
    """A lease that only a bare majority knows is lost with the next node that fails, though that is only one."""
    acquire(semaphores, "before", 5)
    settle(nodes)
    nodes[away].kill()
    missed = acquire(semaphores, "meanwhile", 5)
    nodes[away].start()

    def ask_for_another() -> bool:
        semaphores.acquire(other_claim(), tokens_of(f"other.{time.monotonic()}"), soon())
        return bool(leases_on(nodes[away]).get(missed.slot) == missed.token)

    wait_for(ask_for_another, "the lease on the node that was away")
    nodes[(away + 1) % 3].kill()
    assert Renewal.KEPT is semaphores.renew(missed.token, 60_000, soon())


def test_a_node_whose_answer_never_came_is_told_what_it_may_have_missed(nodes, semaphores):
    """The admission had its majority and did not wait; the answer was lost together with the node."""
    acquire(semaphores, "before", 5)
    settle(nodes)
    nodes[2].pause()
    missed = acquire(semaphores, "meanwhile", 5)
    nodes[2].restart()

    def ask_again() -> bool:
        acquire(semaphores, f"another.{time.monotonic()}", 1000)
        return bool(leases_on(nodes[2]).get(missed.slot) == missed.token)

    wait_for(ask_again, "the lease on the node that never got the request")


def test_a_repair_prolongs_nothing(nodes, semaphores):
    semaphores.acquire(claim_of(1, reservation_ms=5000), iter(["a"]), soon())
    settle(nodes)
    nodes[1].restart(empty=True)
    semaphores.repair(SEMAPHORE, soon())

    assert {0: "a"} == leases_on(nodes[1])
    assert 0 < left_ms(nodes[1], "a") <= left_ms(nodes[0], "a") + 100


def test_two_nodes_that_name_different_tokens_for_a_slot_stop_a_repair(nodes, semaphores):
    acquire(semaphores, "a", 1)
    settle(nodes)
    with nodes[1].client() as client:
        client.hset(RECORD, "0", "x")
        client.set("lease:x", "{}", px=LIFE_MS)
    nodes[2].restart(empty=True)
    semaphores.repair(SEMAPHORE, soon())
    with nodes[2].client() as client:
        assert [] == client.keys()

    with nodes[1].client() as client:
        client.delete("lease:x")
    semaphores.repair(SEMAPHORE, soon())
    assert {0: "a.0"} == leases_on(nodes[2])


# Nodes that stall, go and come back ---------------------------------------------------------------------


@pytest.mark.parametrize("paused", [0, 1, 2])
def test_only_the_first_admission_waits_for_a_node_that_stalls(nodes, paused):
    """The following have less time than the node's patience, and nothing is asked of the node."""
    with semaphores_on(nodes, patience_seconds=1.0) as semaphores:
        acquire(semaphores, "before", 100)
        settle(nodes)
        before = nodes[paused].calls("evalsha")
        nodes[paused].pause()
        assert isinstance(acquire(semaphores, "first", 100), Grant)
        # A node that only confirms is not waited for: two others are a majority.
        if paused != 0:
            semaphores.release("nobody", soon())
        for number in range(5):
            assert Grant is type(acquire(semaphores, f"next{number}", 100, budget_seconds=0.8))
        nodes[paused].resume()

        # A try that a silent sequencer has spent is withdrawn, behind it on the same connection.
        sent = 2 if paused == 0 else 1
        wait_for(lambda: nodes[paused].calls("evalsha") - before >= sent, "what was sent to arrive")
        assert sent == nodes[paused].calls("evalsha") - before


@pytest.mark.parametrize("paused", [0, 1, 2])
def test_the_very_first_admission_of_a_webhook_is_granted_though_a_node_stalls(nodes, semaphores, paused):
    """Waiting for a connection that does not come must not use up the time of those that are there."""
    acquire(semaphores, "before", 3)
    nodes[paused].pause()
    with semaphores_on(nodes) as another:
        assert isinstance(acquire(another, "a", 3), Grant)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("fault", ["paused", "killed"])
def test_a_node_that_comes_back_is_used_again(nodes, semaphores, number, fault):
    acquire(semaphores, "before", 1000)
    settle(nodes)
    nodes[number].pause() if fault == "paused" else nodes[number].kill()
    for name in "abc":
        assert isinstance(acquire(semaphores, name, 1000), Grant)
    nodes[number].resume() if fault == "paused" else nodes[number].start()

    await_vote(semaphores, nodes[number])


def test_as_soon_as_the_nodes_are_back_the_next_admission_is_granted(nodes, semaphores):
    """No time is waited out first: there is no majority without those that failed."""
    acquire(semaphores, "before", 3)
    settle(nodes)
    down(nodes, [0, 1, 2])
    for name in "abc":
        assert isinstance(acquire(semaphores, name, 3), Unavailable)
    for node in nodes:
        node.start()

    assert isinstance(acquire(semaphores, "d", 3), Grant)


@pytest.mark.parametrize("back", [0, 1, 2])
def test_one_node_back_is_enough_when_it_makes_the_majority(nodes, semaphores, back):
    acquire(semaphores, "before", 3)
    settle(nodes)
    down(nodes, [back, (back + 1) % 3])
    assert isinstance(acquire(semaphores, "a", 3), Unavailable)
    nodes[back].start()

    assert isinstance(acquire(semaphores, "b", 3), Grant)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_connection_that_a_restart_has_closed_costs_no_vote(nodes, semaphores, number):
    acquire(semaphores, "before", 3)
    settle(nodes)
    nodes[number].restart()
    grant = acquire(semaphores, "a", 3)

    assert "a.0" == grant.token
    wait_for(lambda: grant.token in all_leases_on(nodes[number]), "the vote of the restarted node")


def test_a_release_that_could_not_be_sent_is_sent_when_the_node_is_back(nodes, semaphores):
    acquire(semaphores, "a", 3)
    acquire(semaphores, "b", 3)
    settle(nodes)
    nodes[2].kill()
    assert semaphores.release("a.0", soon())
    nodes[2].start()
    assert {"a.0", "b.0"} == all_leases_on(nodes[2])

    def is_sent() -> bool:
        semaphores.renew("b.0", LIFE_MS, soon())
        return all_leases_on(nodes[2]) == {"b.0"}

    wait_for(is_sent, "the release to arrive")


def test_a_release_that_is_owed_outlives_a_connection_that_is_gone_at_once(nodes, semaphores):
    """Nobody was there to send it while the node was back for a moment."""
    for name in "abcdez":
        acquire(semaphores, name, 6)
    settle(nodes)
    nodes[2].kill()
    for name in "abcde":
        assert semaphores.release(f"{name}.0", soon())
    nodes[2].start()
    with nodes[2].client() as client:
        wait_for(lambda: any(each["user"] == HOOK_USER for each in client.client_list()), "a connection")
    nodes[2].restart()

    def is_sent() -> bool:
        semaphores.renew("z.0", LIFE_MS, soon())
        return all_leases_on(nodes[2]) == {"z.0"}

    wait_for(is_sent, "the release to arrive")


class AtSlot0(Random):
    """Chance that begins every admission at the same slot."""

    def randrange(self, *_: Any) -> int:
        return 0


def test_an_admission_that_a_stalled_node_carries_out_late_takes_no_second_slot(nodes):
    """It would pick a slot by its own view, which lacks what was granted without it, and two slots were gone."""
    with semaphores_on(nodes, rng=AtSlot0()) as semaphores, semaphores_on(nodes, rng=AtSlot0()) as other:
        acquire(semaphores, "before", 2)
        semaphores.release("before.0", soon())
        other.release("nobody", soon())
        nodes[0].pause()
        other.release("nobody", soon())  # waits for it, and so notices
        assert 0 == acquire(other, "other", 2).slot
        grant = acquire(semaphores, "a", 2)
        assert 1 == grant.slot
        nodes[0].resume()
        other.release("other.0", soon())

        await_vote(semaphores, nodes[0], 2)
        assert 2 == len(leases_on(nodes[1]))
        assert leases_on(nodes[0]).get(1) in (None, grant.token)
        assert grant.token != leases_on(nodes[0]).get(0)


# Nodes that answer with an error ------------------------------------------------------------------------


def _readonly(client: Any) -> None:
    client.replicaof("127.0.0.1", "1")


def _out_of_memory(client: Any) -> None:
    client.config_set("maxmemory", 1)


def _no_permission(client: Any) -> None:
    client.execute_command("ACL", "SETUSER", HOOK_USER, "-hset")


def _no_script(client: Any) -> None:
    client.script_flush()


ERRORS = pytest.mark.parametrize("fault", [_readonly, _out_of_memory, _no_permission, _no_script])


@ERRORS
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_node_that_refuses_is_passed_over_and_used_again_when_it_is_well(nodes, semaphores, number, fault):
    acquire(semaphores, "before", 1000)
    with nodes[number].client() as client:
        fault(client)
    for name in "abcde":
        assert isinstance(acquire(semaphores, name, 1000), Grant)
    with nodes[number].client() as client:
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory", 0)
        client.acl_load()

    await_vote(semaphores, nodes[number])


@pytest.mark.parametrize(
    ("fault", "why"), [(_readonly, "read only"), (_out_of_memory, "maxmemory"), (_no_permission, "permission")]
)
def test_a_majority_that_refuses_is_unavailable_and_says_why(nodes, semaphores, fault, why):
    for node in nodes[1:]:
        with node.client() as client:
            fault(client)
    outcome = acquire(semaphores, "a", 3)

    assert isinstance(outcome, Unavailable)
    assert why in outcome.why
    await_nothing_on(nodes)


def test_scripts_that_were_flushed_everywhere_are_back_for_the_next_admission(nodes, semaphores):
    acquire(semaphores, "before", 3)
    for node in nodes:
        with node.client() as client:
            client.script_flush()
    acquire(semaphores, "a", 3)

    assert isinstance(acquire(semaphores, "b", 3), Grant)


def test_a_wrong_password_is_unavailable_and_says_why(nodes):
    with semaphores_on(nodes, password="wrong") as semaphores:
        outcome = acquire(semaphores, "a", 3)

    assert isinstance(outcome, Unavailable)
    assert "invalid username-password pair" in outcome.why


def test_one_node_with_another_password_is_passed_over(nodes):
    with nodes[0].client() as client:
        client.execute_command("ACL", "SETUSER", HOOK_USER, "resetpass", ">changed")
    with semaphores_on(nodes) as semaphores:
        assert isinstance(acquire(semaphores, "a", 3), Grant)


# Connections that are odd -------------------------------------------------------------------------------


@contextmanager
def proxied(nodes: Sequence[RedisNode], numbers: Sequence[int], **more: Any) -> Iterator[Any]:
    """Semaphores that reach some of the nodes through proxies: (semaphores, ways)."""
    with ExitStack() as stack:
        ways = {number: stack.enter_context(proxy(nodes[number].address)) for number in numbers}
        mixed = [ways.get(number, node) for number, node in enumerate(nodes)]
        yield stack.enter_context(semaphores_on(mixed, **more)), list(ways.values())


def mend_all(ways: Sequence[Proxy]) -> None:
    for way in ways:
        way.fault = Fault.NONE


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("connected", [True, False])
def test_a_node_that_answers_byte_by_byte_is_passed_over(nodes, number, connected):
    """Every byte is an event, and none of them wins it more time."""
    with proxied(nodes, [number], patience_seconds=0.2) as (semaphores, [way]):
        if connected:
            acquire(semaphores, "before", 10)
        way.fault = Fault.DRIP
        for name in "abc":
            assert isinstance(acquire(semaphores, name, 10, budget_seconds=1.0), Grant)
        way.fault = Fault.NONE

        await_vote(semaphores, nodes[number])


def test_two_nodes_that_answer_byte_by_byte_are_unavailable_in_time(nodes):
    with proxied(nodes, [1, 2], patience_seconds=0.2) as (semaphores, ways):
        acquire(semaphores, "before", 10)
        for way in ways:
            way.fault = Fault.DRIP
        began = time.monotonic()
        outcome = acquire(semaphores, "a", 10, budget_seconds=0.5)

        assert isinstance(outcome, Unavailable)
        assert time.monotonic() - began < 2


def test_a_late_answer_is_not_taken_for_the_answer_to_a_later_command(nodes):
    """The answers to a renewal that was kept arrive first when another, of a lease that is lost, waits for its own."""
    with proxied(nodes, [1, 2], patience_seconds=5.0) as (semaphores, ways):
        grant = acquire(semaphores, "a", 3)
        settle(nodes)
        for way in ways:
            way.fault = Fault.HOLD
        assert Renewal.UNKNOWN is semaphores.renew(grant.token, LIFE_MS, time.monotonic() + 0.1)
        late = threading.Timer(0.2, mend_all, [ways])
        late.start()

        assert Renewal.LOST is semaphores.renew("stranger", LIFE_MS, time.monotonic() + 4)
        late.join()
        assert Renewal.KEPT is semaphores.renew(grant.token, LIFE_MS, soon())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_node_whose_answer_is_lost_holds_no_slot_that_nobody_was_granted(nodes, number):
    with proxied(nodes, [number]) as (semaphores, [way]):
        acquire(semaphores, "before", 2)
        semaphores.release("before.0", soon())
        way.fault = Fault.LOSE_ANSWERS
        grant = acquire(semaphores, "a", 2)
        way.fault = Fault.NONE
        assert isinstance(grant, Grant)

        def agrees() -> bool:
            semaphores.renew(grant.token, LIFE_MS, soon())
            return leases_on(nodes[number]) in ({}, {grant.slot: grant.token})

        wait_for(agrees, "the node to agree with the others")
        assert isinstance(acquire(semaphores, "b", 2), Grant)


def test_a_release_that_was_lost_with_its_connection_is_sent_again(nodes):
    with proxied(nodes, [2]) as (semaphores, [way]):
        grant = acquire(semaphores, "a", 3)
        settle(nodes)
        way.fault = Fault.LOSE_REQUESTS
        assert semaphores.release(grant.token, soon())
        way.fault = Fault.NONE
        assert {grant.token} == all_leases_on(nodes[2])

        def is_sent() -> bool:
            semaphores.renew("stranger", LIFE_MS, soon())
            return not all_leases_on(nodes[2])

        wait_for(is_sent, "the release to arrive")


# What a reconciler asks for -----------------------------------------------------------------------------


def wait_in_line(semaphores: Semaphores, token: str, length: int = 1, reservation_ms: int = LIFE_MS) -> Outcome:
    """Ask for a slot with the one token that a pod has."""
    claim = Claim(SEMAPHORE, length, reservation_ms, LIFE_MS, "{}", reuses_token=True)
    return semaphores.acquire(claim, itertools.repeat(token), soon())


def test_whoever_asks_with_the_same_token_gets_the_same_slot(nodes):
    with semaphores_on(nodes) as one, semaphores_on(nodes) as other:
        granted = {wait_in_line(each, "a" * 32, length=9) for each in (one, other, one)}

    assert [Grant] == [type(each) for each in granted]
    assert [1, 1, 1] == [len(leases_on(node)) for node in nodes]


def test_who_asks_again_for_a_reservation_has_it_for_as_long_again(nodes):
    with semaphores_on(nodes) as semaphores:
        wait_in_line(semaphores, "a" * 32, reservation_ms=5000)
        settle(nodes)
        assert Grant(0, "a" * 32) == wait_in_line(semaphores, "a" * 32)

        wait_for(lambda: all(left_ms(node, "a" * 32) > 5000 for node in nodes), "the reservation to be renewed")


def test_a_reservation_is_withdrawn_and_a_renewed_lease_is_not(nodes):
    with semaphores_on(nodes) as semaphores:
        wait_in_line(semaphores, "a" * 32)
        assert semaphores.withdraw("a" * 32, soon())
        assert isinstance(wait_in_line(semaphores, "b" * 32), Grant)
        for node in nodes:
            with node.client() as client:  # as a sidecar does it
                client.unlink(f"reservation:{'b' * 32}")
        assert semaphores.withdraw("b" * 32, soon())
        assert isinstance(wait_in_line(semaphores, "a" * 32), Full)


def test_a_withdrawal_reaches_a_node_that_was_away(nodes):
    with semaphores_on(nodes) as semaphores:
        wait_in_line(semaphores, "a" * 32)
        nodes[1].pause()
        assert semaphores.withdraw("a" * 32, soon())
        nodes[1].resume()

        wait_for(lambda: not leases_on(nodes[1]), "the withdrawal to arrive")


def test_how_a_reservation_stands_and_that_it_lasts_longer(nodes):
    token = "a" * 32
    with semaphores_on(nodes) as semaphores:
        assert Standing.LOST is semaphores.prolong(token, LIFE_MS, soon())
        wait_in_line(semaphores, token)
        assert Standing.RESERVED is semaphores.prolong(token, 10 * LIFE_MS, soon())
        for node in nodes:
            with node.client() as client:
                assert client.pexpiretime(f"lease:{token}") == client.pexpiretime(f"reservation:{token}")
                assert client.pttl(f"lease:{token}") > 9 * LIFE_MS
        nodes[0].pause()
        assert Standing.RESERVED is semaphores.prolong(token, LIFE_MS, soon())
        nodes[1].pause()
        assert Standing.UNKNOWN is semaphores.prolong(token, LIFE_MS, soon())
        nodes[0].resume()
        nodes[1].resume()


def test_what_one_node_has_left_while_another_is_away_is_lost_and_granted_again(nodes):
    """The second node was away when it was granted, and the third, which has it too, is away now."""
    token = "a" * 32
    with semaphores_on(nodes) as semaphores:
        wait_in_line(semaphores, "b" * 32, length=2)
        settle(nodes)
        nodes[1].kill()
        granted = wait_in_line(semaphores, token, length=2)
        assert isinstance(granted, Grant)
        nodes[2].kill()
        nodes[1].start()

        wait_for(lambda: semaphores.prolong(token, LIFE_MS, soon()) is Standing.LOST, "it to be known as lost")
        assert granted == wait_in_line(semaphores, token, length=2)
        assert Standing.RESERVED is semaphores.prolong(token, LIFE_MS, soon())


def test_a_lease_that_a_sidecar_has_renewed_is_not_prolonged(nodes):
    token = "a" * 32
    with semaphores_on(nodes) as semaphores:
        wait_in_line(semaphores, token)
        with nodes[2].client() as client:
            client.unlink(f"reservation:{token}")
            client.pexpire(f"lease:{token}", 5000)
            assert Standing.CLAIMED is semaphores.prolong(token, 10 * LIFE_MS, soon())
            assert client.pttl(f"lease:{token}") <= 5000


@pytest.mark.parametrize("away", [None, 0])
def test_which_semaphores_have_room_is_known_without_taking_any(nodes, away):
    with semaphores_on(nodes) as semaphores:
        wait_in_line(semaphores, "a" * 32)
        if away is not None:
            nodes[away].kill()
        asked = {SEMAPHORE: 1, "batch/unheard-of": 1, "batch/closed": 0}
        assert frozenset({"batch/unheard-of"}) == semaphores.vacant(asked, soon())
        assert frozenset({SEMAPHORE}) == semaphores.vacant({SEMAPHORE: 2}, soon())
        semaphores.release("a" * 32, soon())
        assert frozenset({SEMAPHORE}) == semaphores.vacant({SEMAPHORE: 1}, soon())


def test_room_is_found_past_a_reduced_length_and_among_thousands(nodes):
    with semaphores_on(nodes) as semaphores:
        tokens = [f"{number:032x}" for number in range(2100)]
        for node in nodes:
            with node.client() as client, client.pipeline(transaction=False) as batch:
                batch.hset(RECORD, mapping={str(slot): token for slot, token in enumerate(tokens)} | {"bound": 2100})
                for token in tokens:
                    batch.set(f"lease:{token}", "{}", px=LIFE_MS)
                batch.execute()
        assert not semaphores.vacant({SEMAPHORE: 2100}, soon())
        assert not semaphores.vacant({SEMAPHORE: 2}, soon())
        assert frozenset({SEMAPHORE}) == semaphores.vacant({SEMAPHORE: 2101}, soon())
        semaphores.release(tokens[1500], soon())
        assert frozenset({SEMAPHORE}) == semaphores.vacant({SEMAPHORE: 2100}, soon())


def test_where_no_node_answers_nobody_knows_of_room(nodes):
    with semaphores_on(nodes) as semaphores:
        for node in nodes:
            node.kill()

        assert semaphores.vacant({SEMAPHORE: 1}, soon()) is None


def touch(nodes: Sequence[RedisNode], seconds_ago: int) -> None:
    for node in nodes:
        with node.client() as client:
            client.hset(RECORD, "touched", int(time.time()) - seconds_ago)


def records_of(nodes: Sequence[RedisNode]) -> list[int]:
    found = []
    for node in nodes:
        with node.client() as client:
            found.append(client.exists(RECORD))
    return found


def test_a_record_that_nobody_uses_is_removed_everywhere(nodes):
    with semaphores_on(nodes) as semaphores:
        wait_in_line(semaphores, "a" * 32)
        semaphores.release("a" * 32, soon())
        touch(nodes, seconds_ago=59)
        assert not semaphores.collect(SEMAPHORE, 60, soon())
        assert [1, 1, 1] == records_of(nodes)
        touch(nodes, seconds_ago=61)
        assert semaphores.collect(SEMAPHORE, 60, soon())

    assert [0, 0, 0] == records_of(nodes)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("what", ["holds a lease", "was touched", "is away"])
def test_a_record_stays_on_all_nodes_as_long_as_one_of_them_has_a_reason(nodes, number, what):
    with semaphores_on(nodes) as semaphores:
        wait_in_line(semaphores, "a" * 32)
        others = [node for node in nodes if node is not nodes[number]]
        for node in others if what == "holds a lease" else nodes:
            with node.client() as client:
                client.unlink(f"lease:{'a' * 32}")
        touch(others if what == "was touched" else nodes, seconds_ago=61)
        if what == "is away":
            nodes[number].pause()
        assert not semaphores.collect(SEMAPHORE, 60, soon())
        nodes[number].resume()

    assert [1, 1, 1] == records_of(nodes)
