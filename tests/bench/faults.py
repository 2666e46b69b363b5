"""`make bench`: what an admission takes while nodes are well, paused and down, as ratios within one run.

Reviews go to a real webhook over TLS, each on a connection of its own. Every condition is measured once with each
node, right after a measurement with all nodes well; the medians of these rounds are told.
"""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median, quantiles

from tests.harness.nodes import RedisNode, failing
from tests.harness.scene import Scene, scene
from tests.harness.waiting import wait_for
from tests.harness.webhook import pod_asking

CLIENTS = 4
REVIEWS = 400
REVIEWS_WITHOUT_MAJORITY = 40
# What the service has by default: a quarter of the budget of an admission.
PATIENCE_SECONDS = 0.5
PAUSED = (RedisNode.pause, RedisNode.resume)
DOWN = (RedisNode.kill, RedisNode.start)


@dataclass(frozen=True)
class Round:
    """What one batch of reviews took, in seconds, and how they were answered."""

    seconds: Sequence[float]
    codes: Counter[int | None]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def p99(self) -> float:
        """Without the one answer of each worker that waits for a node it did not know to be away."""
        late = [each for each in self.seconds if each < PATIENCE_SECONDS]
        return quantiles(late, n=100)[98]

    @property
    def waited(self) -> int:
        return sum(each >= PATIENCE_SECONDS for each in self.seconds)


def main() -> int:
    with scene() as running:
        keys = (f"key{number}" for number in itertools.count())
        measure(running, next(keys), REVIEWS)  # connections, scripts
        print(f"{REVIEWS} reviews by {CLIENTS} clients for each condition and node, two sync workers.")
        print("median and p99: ratios to those with all nodes well; p99 leaves out the answers that waited for a node")
        print(f"{'condition':<22}{'median':>8}{'p99':>8}{'waited':>13}{'longest':>10}  answers")
        for name, fault in (("one node paused", PAUSED), ("one node down", DOWN)):
            pairs = []
            for node in running.nodes:
                well = measure(running, next(keys), REVIEWS)
                with failing([node], *fault):
                    pairs.append((measure(running, next(keys), REVIEWS), well))
                await_well(running, next(keys))
            tell(name, pairs)
        tell_without_majority(running, keys)
    return 0


def measure(running: Scene, key: str, reviews: int) -> Round:
    """So many reviews for a semaphore of its own, in which there is room for all."""

    def ask(_: int) -> tuple[float, int | None]:
        began = time.perf_counter()
        answer = running.webhook.ask(pod_asking(key, reviews))
        return time.perf_counter() - began, 200 if answer.allowed else answer.code

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(ask, range(reviews)))
    return Round([seconds for seconds, _ in answers], Counter(code for _, code in answers))


def await_well(running: Scene, key: str) -> None:
    """Both workers use all nodes again."""

    def is_well() -> bool:
        answers = [running.webhook.ask(pod_asking(key, 10_000)) for _ in range(4)]
        tokens = [answer.env()["TOKEN"] for answer in answers if answer.allowed]
        return len(tokens) == 4 and all(holds(node, tokens) for node in running.nodes)

    wait_for(is_well, "all nodes to be used again")


def holds(node: RedisNode, tokens: Sequence[str]) -> bool:
    with node.client() as client:
        return int(client.exists(*(f"lease:{token}" for token in tokens))) == len(tokens)


def tell(name: str, pairs: Sequence[tuple[Round, Round]]) -> None:
    def ratio(of: Callable[[Round], float]) -> float:
        return median(of(hit) / of(well) for hit, well in pairs)

    waited = max(hit.waited for hit, _ in pairs)
    longest = max(max(hit.seconds) for hit, _ in pairs)
    codes = sum((hit.codes for hit, _ in pairs), Counter[int | None]())
    ratios = f"{ratio(lambda each: each.median):>7.2f}x{ratio(lambda each: each.p99):>7.2f}x"
    print(f"{name:<22}{ratios}{waited:>13}{longest:>8.2f} s  {dict(codes)}")


def tell_without_majority(running: Scene, keys: Iterator[str]) -> None:
    for name, fault in (("two nodes paused", PAUSED), ("two nodes down", DOWN)):
        with failing(running.nodes[:2], *fault):
            hit = measure(running, next(keys), REVIEWS_WITHOUT_MAJORITY)
        await_well(running, next(keys))
        print(f"{name:<22}{'':>8}{'':>8}{'':>13}{max(hit.seconds):>8.2f} s  {dict(hit.codes)}")


if __name__ == "__main__":
    sys.exit(main())
