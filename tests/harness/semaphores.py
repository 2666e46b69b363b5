"""Semaphores on given nodes, as the webhook builds them, and what these nodes hold in the end."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, Protocol

import redis

from app.semaphore.commands import load_scripts
from app.semaphore.model import Claim
from app.semaphore.node import Node
from app.semaphore.semaphores import Semaphores
from sidecar.protocol import Address, Keys
from tests.harness.nodes import HOOK_PASSWORD, HOOK_USER, RedisNode

SEMAPHORE = "batch/reports-db"
RECORD = Keys().record(SEMAPHORE)
PATIENCE_SECONDS = 0.5
BUDGET_SECONDS = 2.0


class HasAddress(Protocol):
    """Anything that listens where a node could."""

    @property
    def address(self) -> Address: ...


def connected_to(nodes: Sequence[HasAddress], patience_seconds: float, user: str, password: str) -> list[Node]:
    """What semaphores are made of: the nodes as this user sees them, on connections of its own."""
    scripts = load_scripts()
    return [
        Node(
            node.address,
            keys=Keys(),
            scripts=scripts,
            patience_seconds=patience_seconds,
            username=user,
            password=password,
        )
        for node in nodes
    ]


@contextmanager
def semaphores_on(
    nodes: Sequence[HasAddress],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    password: str = HOOK_PASSWORD,
    rng: Random | None = None,
) -> Iterator[Semaphores]:
    """Semaphores on `nodes` in this order; every use is another webhook with connections of its own."""
    connections = connected_to(nodes, patience_seconds, HOOK_USER, password)
    semaphores = Semaphores(connections, patience_seconds=patience_seconds, rng=rng)
    try:
        yield semaphores
    finally:
        semaphores.close()


def claim_of(length: int, *, reservation_ms: int = 60_000, lease_ms: int = 60_000, holder: str = "{}") -> Claim:
    return Claim(SEMAPHORE, length, reservation_ms, lease_ms, holder)


def tokens_of(name: str) -> Iterator[str]:
    """The tokens for the tries of one admission: name.0, name.1, …"""
    return (f"{name}.{attempt}" for attempt in itertools.count())


def acquire(semaphores: Semaphores, name: str, length: int, budget_seconds: float = BUDGET_SECONDS) -> Any:
    """One admission, for a holder of this name; its outcome, in which a test may look for what it expects."""
    return semaphores.acquire(claim_of(length, holder=name), tokens_of(name), time.monotonic() + budget_seconds)


def soon() -> float:
    """A deadline that leaves an admission's usual time."""
    return time.monotonic() + BUDGET_SECONDS


def put_records(nodes: Sequence[RedisNode], semaphores: Iterable[str]) -> None:
    """Records of semaphores that nobody holds, on all nodes, all at once."""
    names = list(semaphores)
    for node in nodes:
        with node.client() as client, client.pipeline(transaction=False) as batch:
            for name in names:
                batch.hset(Keys().record(name), mapping={"length": 1, "bound": 1, "longest": 1})
            batch.execute()


def leases_on(node: RedisNode) -> dict[int, str]:
    """The live slots on one node: slot → token."""
    with node.client() as client:
        return live_slots(client, RECORD)


def live_slots(client: "redis.Redis", record: str) -> dict[int, str]:
    """What the node of this connection has of a record: slot → token, as far as the token's lease lives there."""
    entries: Any = client.hgetall(record)
    return {
        int(slot): token for slot, token in entries.items() if slot.isdecimal() and client.exists(Keys().lease(token))
    }


def all_leases_on(node: RedisNode) -> set[str]:
    """Every token with a lease on the node, whether or not a record names it."""
    with node.client() as client:
        return {key.removeprefix("lease:") for key in client.scan_iter("lease:*")}
