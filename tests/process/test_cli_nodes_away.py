"""The command line while nodes are killed or paused: what a majority knows is told, and without one nothing is."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from app.logs import shortened
from app.semaphore.model import Grant
from tests.harness.cli import environ_of, run, run_json
from tests.harness.nodes import RedisNode, failing
from tests.harness.semaphores import claim_of, semaphores_on, soon
from tests.harness.waiting import free_port, wait_for
from tests.harness.webhook import pod_asking

Away = Callable[[Sequence[RedisNode]], AbstractContextManager[None]]

HOUR_MS = 3_600_000
TOKENS = ("a" * 32, "b" * 32)


@pytest.fixture(params=["killed", "paused"])
def away(request) -> Away:
    """Lets nodes be away for a while."""
    begin, end = {
        "killed": (RedisNode.kill, RedisNode.start),
        "paused": (RedisNode.pause, RedisNode.resume),
    }[request.param]
    return lambda nodes: failing(nodes, begin, end)


@pytest.fixture
def semaphore(nodes, key) -> Iterator[str]:
    """One of length 3 with two slots that are held, of which all nodes know."""
    name = f"batch/{key}"
    with semaphores_on(nodes) as semaphores:
        for token in TOKENS:
            claim = replace(claim_of(3, reservation_ms=HOUR_MS, holder=json.dumps({"owner": "Job/x"})), semaphore=name)
            assert isinstance(semaphores.acquire(claim, [token], soon()), Grant)

        def are_everywhere() -> bool:
            (state,) = semaphores.overview(soon(), only=name).states
            return [len(nodes)] * 2 == [len(slot.nodes) for slot in state.held]

        wait_for(are_everywhere, "all nodes to have the leases")
        yield name
        for token in TOKENS:
            semaphores.release(token, soon())


def asking(semaphore: str, **more: Any) -> str:
    return json.dumps(pod_asking(semaphore.partition("/")[2], 2, **more))


def test_with_one_node_away_the_others_tell_who_holds_what(nodes, semaphore, away: Away):
    with away(nodes[:1]):
        ended = run(environ_of(nodes), "holders", semaphore)
        told = run_json(environ_of(nodes), "semaphores")

    assert 0 == ended.returncode
    assert f"{semaphore}: 2 of 3 slots held\n" in ended.stdout
    assert 2 == ended.stdout.count("2 of 3  ")
    assert ended.stderr.startswith(f"node {nodes[0].address} was not heard: ")
    assert [str(nodes[0].address)] == list(told["nodes_unheard"])
    assert [(2, 2)] == [
        (each["held"], each["records"]) for each in told["semaphores"] if each["semaphore"] == semaphore
    ]


def test_with_one_node_away_the_others_are_well(nodes, semaphore, away: Away):
    with away(nodes[1:2]):
        ended = run(environ_of(nodes), "nodes", "-o", "json")

    found = json.loads(ended.stdout)["nodes"]
    assert 0 == ended.returncode
    assert [True, False, True] == [each["node_up"] for each in found]
    assert found[1].pop("fault")
    assert {None, False, str(nodes[1].address)} == set(found[1].values())


def test_with_one_node_away_a_pod_gets_in_or_is_refused_as_ever(nodes, semaphore, away: Away):
    with away(nodes[2:]):
        refused = run(environ_of(nodes), "explain", "-", "-n", "batch", stdin=asking(semaphore))

    assert 1 == refused.returncode
    assert f"semaphore {semaphore} is full: 2 of 2 slots held by Job/x (2)" in refused.stdout


def test_with_one_node_away_a_slot_is_released_and_who_could_not_be_told_is_named(nodes, semaphore, away: Away):
    with away(nodes[:1]):
        ended = run(environ_of(nodes), "release", TOKENS[0], "--yes")
        left = run_json(environ_of(nodes), "holders", semaphore)["holders"]

    assert 0 == ended.returncode
    assert ended.stdout.startswith("released; slot ")
    assert f"node {nodes[0].address} could not be told" in ended.stderr
    assert [shortened(TOKENS[1])] == [each["token_hash"] for each in left]


@pytest.mark.parametrize("command", [["holders"], ["semaphores"], ["release", TOKENS[0], "--yes"]])
def test_without_a_majority_nothing_is_told_and_nothing_released(nodes, semaphore, away: Away, command):
    with away(nodes[1:]):
        ended = run(environ_of(nodes), *command, "-o", "json")

    assert (1, "") == (ended.returncode, ended.stdout)
    assert "Error: fewer than 2 of 3 nodes answered, so it is not known who holds what\n" in ended.stderr
    assert [f"node {node.address} was not heard" for node in nodes[1:]] == [
        line.partition(":")[0] + ":" + line.split(":")[1] for line in ended.stderr.splitlines()[:-1]
    ]
    assert 2 == len(run_json(environ_of(nodes), "holders", semaphore)["holders"])


def test_who_has_forgotten_the_variables_reads_which_node_was_asked():
    ended = run({"PATH": os.environ["PATH"], "REDIS_ADDRESSES": f"127.0.0.1:{free_port()}"}, "holders")

    assert (1, "") == (ended.returncode, ended.stdout)
    assert re.search(r"Error: the only node in REDIS_ADDRESSES, 127\.0\.0\.1:\d+, did not answer, so", ended.stderr)


def test_without_a_majority_a_semaphore_is_not_said_not_to_exist(nodes, away: Away, key):
    with away(nodes[:2]):
        ended = run(environ_of(nodes), "holders", f"batch/{key}")

    assert (1, "") == (ended.returncode, ended.stdout)
    assert "there is no semaphore" not in ended.stderr
    assert "fewer than 2 of 3 nodes answered" in ended.stderr


def test_without_a_majority_the_nodes_are_told_and_that_this_is_bad(nodes, semaphore, away: Away):
    with away(nodes[:2]):
        ended = run(environ_of(nodes), "nodes", "-o", "json")

    found = json.loads(ended.stdout)["nodes"]
    assert 1 == ended.returncode
    assert [False, False, True] == [each["node_up"] for each in found]
    assert [None, None, None] == [each["node_leases_missing"] for each in found]
    assert "fewer than 2 of 3 nodes answered" in ended.stderr


def test_without_a_majority_a_pod_is_refused_unless_it_says_otherwise(nodes, semaphore, away: Away):
    with away(nodes[:2]):
        denied = run(environ_of(nodes), "explain", "-", stdin=asking(semaphore))
        admitted = run(environ_of(nodes), "explain", "-", stdin=asking(semaphore, when_unavailable="admit"))

    assert 1 == denied.returncode
    assert "would be refused (unavailable)\n" in denied.stdout
    assert "when-unavailable is deny" in denied.stdout
    assert 0 == admitted.returncode
    assert "would be admitted without a slot\n" in admitted.stdout
    assert "when-unavailable is admit" in admitted.stdout


def test_with_all_nodes_away_that_is_all_there_is_to_say(nodes, away: Away):
    with away(nodes):
        ended = {command: run(environ_of(nodes), command) for command in ("holders", "semaphores", "nodes", "check")}

    assert {1} == {each.returncode for each in ended.values()}
    assert ["", ""] == [ended[command].stdout for command in ("holders", "semaphores")]
    assert 3 == ended["check"].stdout.count("cannot be reached")
