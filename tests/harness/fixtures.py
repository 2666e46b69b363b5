"""Fixtures: nodes and a webhook for tests that leave them as they found them, each with a key of its own."""

from collections.abc import Iterator

import pytest

from tests.harness.nodes import RedisNode, addresses, redis_nodes
from tests.harness.webhook import Webhook, environ_for, running_webhook


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes() as running:
        yield running


@pytest.fixture(scope="module")
def webhook(nodes: list[RedisNode]) -> Iterator[Webhook]:
    with running_webhook(environ_for(addresses(nodes))) as running:
        yield running


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """The key of a semaphore that no other test uses."""
    return "".join(each if each.isalnum() else "." for each in request.node.name)[:200]
