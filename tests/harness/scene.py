"""The whole system on this machine: three nodes and a webhook, for the demo and for trying things by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.harness.nodes import RedisNode, addresses, redis_nodes
from tests.harness.webhook import Webhook, environ_for, running_webhook


@dataclass(frozen=True)
class Scene:
    """What runs."""

    nodes: list[RedisNode]
    webhook: Webhook


@contextmanager
def scene() -> Iterator[Scene]:
    """Three nodes and a webhook on free ports, gone at the end."""
    with redis_nodes(3) as nodes, running_webhook(environ_for(addresses(nodes))) as webhook:
        yield Scene(nodes, webhook)
