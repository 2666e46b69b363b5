"""`make bench-api-server`: what the webhook costs those who create pods through a real API server, as ratios.

Pods that do not ask for a slot must not notice that there is a webhook. Each round creates as many pods with the
webhook's configuration as without it, one after the other on a kept connection, in alternating order; the median of
the rounds' ratios is told. Beside it pods that ask for a slot, each in a semaphore of its own.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

from tests.e2e.cluster import Api, Object, cluster
from tests.e2e.installation import NAME, Installation, pack_images
from tests.e2e.workloads import annotations, pod, pod_spec, sidecar_of
from tests.harness.waiting import wait_for

ROUNDS = 40
PODS = 100
NAMESPACE = "measured"
_names = count()


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "images.tar")
        pack_images(archive)
        with cluster([archive]) as running:
            installation = Installation(running)
            installation.kubectl("create", "namespace", NAMESPACE)
            api = running.api()
            try:
                measure(installation, api)
            finally:
                api.close()
    return 0


@dataclass
class Round:
    """The seconds that it took to create the pods of one round."""

    without: float = 0
    plain: float = 0
    asking: float = 0


def measure(installation: Installation, api: Api) -> None:
    create(api, PODS, asks=False)  # connections, caches
    create(api, PODS, asks=True)
    rounds = []
    for number in range(ROUNDS):
        rounds.append(Round())
        for configured in (True, False) if number % 2 else (False, True):
            if configured:
                rounds[-1].plain = create(api, PODS, asks=False)
                rounds[-1].asking = create(api, PODS, asks=True)
            else:
                with unconfigured(installation, api):
                    rounds[-1].without = create(api, PODS, asks=False)
    print(f"{ROUNDS} rounds of {PODS} pods, created one after the other; as a share of the rate without any webhook")
    print(f"{'':<22}{'median':>8}{'fastest':>9}")
    tell("pods that do not ask", rounds, lambda each: each.plain)
    tell("pods that ask", rounds, lambda each: each.asking)


def tell(name: str, rounds: Sequence[Round], seconds: Callable[[Round], float]) -> None:
    middle = median(each.without / seconds(each) for each in rounds)
    fastest = min(each.without for each in rounds) / min(map(seconds, rounds))
    print(f"{name:<22}{middle:>8.2f}{fastest:>9.2f}")


@contextmanager
def unconfigured(installation: Installation, api: Api) -> Iterator[None]:
    """Meanwhile the API server knows of no webhook."""
    configuration = installation.cluster.get("mutatingwebhookconfiguration", NAME)
    for name in ("uid", "resourceVersion", "creationTimestamp", "generation"):
        del configuration["metadata"][name]
    installation.kubectl("delete", "mutatingwebhookconfiguration", NAME)
    wait_for(lambda: not is_asked(api), "the API server to forget the webhook")
    yield
    installation.cluster.kubectl("create", "--filename=-", text=json.dumps(configuration))
    wait_for(lambda: is_asked(api), "the API server to know the webhook")


def is_asked(api: Api) -> bool:
    """Whether the API server asks the webhook about a pod that asks for a slot."""
    status, answer = api.create_pod(NAMESPACE, a_pod(asks=True), "?dryRun=All")
    assert status == 201, answer
    return sidecar_of(answer) is not None


def create(api: Api, pods: int, *, asks: bool) -> float:
    """The seconds that it takes to create so many."""
    wanted = [a_pod(asks=asks) for _ in range(pods)]
    began = time.monotonic()
    for each in wanted:
        status, answer = api.create_pod(NAMESPACE, each)
        assert status == 201, answer
    return time.monotonic() - began


def a_pod(*, asks: bool) -> Object:
    """A pod that nobody schedules, so that it costs nothing once it is created."""
    name = f"pod-{next(_names)}"
    return pod(name, pod_spec(schedulerName="nobody"), annotations(key=name) if asks else {})


if __name__ == "__main__":
    sys.exit(main())
