"""What the metrics page takes: with many semaphores, with a long one, and with a node away."""

from collections.abc import Sequence
from random import Random
from statistics import median

from sidecar.protocol import Keys
from tests.bench.protocol import seconds
from tests.bench.report import Report
from tests.harness.nodes import RedisNode, addresses, redis_nodes
from tests.harness.webhook import Webhook, environ_for, running_webhook

PART = "scrapes"
PAGES = 5
HOLDER = '{"owner":"ReplicaSet/reports-7d9c","pod":"reports-7d9c-*","since":1750000000,"expiration":60}'


def measure(report: Report) -> None:
    rng = Random(report.seed)
    with redis_nodes() as nodes, running_webhook(environ_for(addresses(nodes))) as webhook:
        one = page_seconds(nodes, webhook, 1, 3, rng)
        many = page_seconds(nodes, webhook, 1000, 3, rng)
        report.add(PART, "a page with 1,000 semaphores of length 3", many, "seconds, this machine", at_most=1)
        report.add(PART, "a page with 1,000 semaphores of length 3", many / one, "x with one")
        report.add(PART, "a page with 1,000 semaphores of length 3", len(webhook.metrics()) / 1000, "kB")
        nodes[0].pause()
        report.add(PART, "the first page after a node was paused", seconds(webhook.metrics), "seconds, this machine")
        report.add(PART, "the next page", seconds(webhook.metrics) / many, "x with all nodes")
        nodes[0].resume()
        long = page_seconds(nodes, webhook, 1, 10_000, rng)
        report.add(PART, "a page with one semaphore of length 10,000", long / many, "x 1,000 of length 3")


def page_seconds(nodes: Sequence[RedisNode], webhook: Webhook, semaphores: int, length: int, rng: Random) -> float:
    """How long a page takes while so many semaphores are full; the median of some."""
    tokens = [[rng.randbytes(16).hex() for _ in range(length)] for _ in range(semaphores)]
    for node in nodes:
        with node.client() as client, client.pipeline(transaction=False) as batch:
            client.flushall()
            for number, of_one in enumerate(tokens):
                slots = {str(slot): token for slot, token in enumerate(of_one)}
                known = {"length": length, "bound": length, "longest": 60_000}
                batch.hset(Keys().record(f"bench/{number}"), mapping={**known, **slots})
                for token in of_one:
                    batch.set(Keys().lease(token), HOLDER, px=60_000)
            batch.execute()
    found = webhook.samples("at_least_semaphore_held")
    assert (semaphores, {float(length)}) == (len(found), set(found.values()))
    return median(seconds(webhook.metrics) for _ in range(PAGES))
