"""The command that tells nodes what they lack."""

import pytest

from tests.harness.cli import environ_of, run, run_json
from tests.harness.nodes import failing, redis_nodes
from tests.harness.semaphores import SEMAPHORE, acquire, all_leases_on, leases_on, semaphores_on
from tests.harness.waiting import wait_for


@pytest.fixture
def nodes():
    with redis_nodes() as running:
        yield running


def fill(nodes) -> None:
    """Two slots, which all nodes know."""
    with semaphores_on(nodes) as semaphores:
        for name in "ab":
            acquire(semaphores, name, 3)
        wait_for(lambda: all(2 == len(all_leases_on(node)) for node in nodes), "all nodes to have the leases")


def test_a_node_that_lost_its_data_is_told_what_it_lacks(nodes):
    fill(nodes)
    nodes[1].restart(empty=True)

    ended = run(environ_of(nodes), "repair")

    assert (0, "looked at 1 semaphore: 2 leases missing before, 0 now\n") == (ended.returncode, ended.stdout)
    assert leases_on(nodes[0]) == leases_on(nodes[1])


def test_two_nodes_that_lost_their_data_are_told_as_well_if_one_has_it(nodes):
    """No majority can read such a semaphore, and yet nothing is hidden as all answer."""
    fill(nodes)
    for node in nodes[1:]:
        node.restart(empty=True)

    assert 0 == run(environ_of(nodes), "repair").returncode
    assert leases_on(nodes[0]) == leases_on(nodes[1]) == leases_on(nodes[2])


def test_one_semaphore_is_repaired_alone(nodes):
    fill(nodes)
    nodes[1].restart(empty=True)

    expected = {
        "semaphores": 1,
        "leases_missing_before": 2,
        "leases_missing": 0,
        "not_repaired": [],
        "nodes_unheard": {},
    }
    assert expected == run_json(environ_of(nodes), "repair", SEMAPHORE)


def test_while_a_node_is_away_it_is_said_that_it_may_lack_something(nodes):
    fill(nodes)
    with failing([nodes[2]], type(nodes[2]).kill, type(nodes[2]).start):
        ended = run(environ_of(nodes), "repair")

    assert 1 == ended.returncode
    assert "0 now, on the nodes that answered; 1 node did not\n" in ended.stdout
    assert f"{SEMAPHORE}: some node may still lack something; try again when all answer" in ended.stderr
    assert 1 == ended.stderr.count(f"node {nodes[2].address} was not heard: ")


def test_of_a_semaphore_that_nobody_knows_it_says_so(nodes):
    ended = run(environ_of(nodes), "repair", "batch/none")

    assert 1 == ended.returncode
    assert "there is no semaphore batch/none" in ended.stderr
