"""The node in memory answers as the Lua scripts do."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.semaphore.commands import (
    Acquire,
    Collect,
    Command,
    Prolong,
    Read,
    Recent,
    Release,
    Renew,
    Restore,
    Vacant,
    Withdraw,
    load_scripts,
)
from app.semaphore.model import Answer, Claim, Lease, Record
from sidecar.protocol import Keys
from tests.harness.nodes import RedisNode
from tests.model.node import Node

MINUTE_MS = 60_000
# Few of each, so that they meet often.
SEMAPHORES = st.sampled_from(["a/a", "a/a", "a/a", "a/b"])
TOKENS = st.sampled_from([letter * 32 for letter in "012345"])
SLOTS = st.integers(0, 3)
# Also one that no lease may have, as a tenant may ask for.
LIVES_MS = st.sampled_from([5 * MINUTE_MS, 60 * MINUTE_MS, 24 * 60 * MINUTE_MS])
CLAIMS = st.builds(
    Claim,
    SEMAPHORES,
    st.integers(1, 4),
    st.sampled_from([5 * MINUTE_MS, 10 * MINUTE_MS]),
    st.sampled_from([5 * MINUTE_MS, 60 * MINUTE_MS]),
    st.sampled_from("xyz"),
    st.booleans(),
)
# Also as far past all lengths as a look for vacancies goes, and one further.
FAR_SLOTS = st.sampled_from([999, 1000])
LEASES = st.builds(Lease, TOKENS, LIVES_MS, st.sampled_from([0, 5 * MINUTE_MS]), st.just("r"))
RECORDS = st.builds(
    Record,
    st.integers(1, 4),
    st.sampled_from([5 * MINUTE_MS, 60 * MINUTE_MS]),
    st.dictionaries(SLOTS | FAR_SLOTS, LEASES),
)
ANY_SLOT = st.builds(Acquire, CLAIMS, TOKENS, start=SLOTS, found=st.just(True))
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    ANY_SLOT,
    ANY_SLOT,
    st.builds(Acquire, CLAIMS, TOKENS, slot=SLOTS, found=st.booleans()),
    st.builds(Renew, TOKENS, LIVES_MS),
    st.builds(Release, TOKENS),
    st.builds(Withdraw, TOKENS),
    st.builds(Prolong, TOKENS, LIVES_MS),
    st.builds(Vacant, st.dictionaries(SEMAPHORES, st.integers(0, 5), min_size=1)),
    st.builds(Collect, SEMAPHORES, st.sampled_from([0, 86_400]), st.booleans()),
    st.builds(Recent, SEMAPHORES, SLOTS, TOKENS, st.sampled_from([-1, 60 * MINUTE_MS])),
    st.builds(Read, SEMAPHORES),
    st.builds(Restore, SEMAPHORES, st.booleans(), RECORDS),
)


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    node = RedisNode()
    connection = redis.Redis("127.0.0.1", node.address.port, username="tester", password="tester")
    try:
        yield connection
    finally:
        connection.close()
        node.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=st.lists(COMMANDS, min_size=20, max_size=60))
def test_the_node_in_memory_answers_as_the_scripts_do(client: redis.Redis, commands: list[Command]):
    client.flushall()
    sha = {name: client.script_load(text) for name, text in load_scripts().items()}
    in_memory = Node()
    for command in commands:
        if isinstance(command, Acquire) and command.slot is not None and command.slot >= command.claim.length:
            continue  # nobody asks for that
        expected = command.answer(client.execute_command(*command.words(Keys(), sha)))
        assert in_minutes(expected) == in_minutes(in_memory.execute(command)), command


def in_minutes(answer: Answer) -> Answer:
    """With times to the minute: the scripts' clock goes on between two commands."""
    if isinstance(answer, Record):
        leases = {
            slot: replace(lease, left_ms=minutes(lease.left_ms), unclaimed_ms=minutes(lease.unclaimed_ms))
            for slot, lease in answer.leases.items()
        }
        return replace(answer, leases=leases)
    return minutes(answer) if isinstance(answer, int) and answer > MINUTE_MS else answer


def minutes(milliseconds: int) -> int:
    return (max(0, milliseconds) + MINUTE_MS // 2) // MINUTE_MS
