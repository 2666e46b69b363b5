"""`make bench-api-server`: what the webhook costs those who create pods through a real API server, as ratios.

Pods that do not ask for a slot must not notice that there is a webhook. Each round creates as many pods with the
webhook's configuration as without it, one after the other on a kept connection, in alternating order; the median of
the rounds' ratios is told. Beside it pods that ask for a slot, each in a semaphore of its own.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median, quantiles

from tests.e2e.cluster import Api, Object, cluster
from tests.e2e.installation import NAME, Installation, pack_images
from tests.e2e.workloads import annotations, pod, pod_spec, sidecar_of
from tests.harness.waiting import wait_for

ROUNDS = 20
PODS = 200
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


def measure(installation: Installation, api: Api) -> None:
    create(api, PODS, asks=False)  # connections, caches
    create(api, PODS, asks=True)
    plain, asking = [], []
    for number in range(ROUNDS):
        first = number % 2 == 0
        seconds = {}
        for configured in (first, not first):
            if configured:
                seconds[True], asked = create(api, PODS, asks=False), create(api, PODS, asks=True)
            else:
                with unconfigured(installation, api):
                    seconds[False] = create(api, PODS, asks=False)
        plain.append(seconds[False] / seconds[True])
        asking.append(seconds[False] / asked)
    print(f"{ROUNDS} rounds of {PODS} pods, created one after the other; as a share of those without any webhook")
    for name, ratios in (("pods that do not ask", plain), ("pods that ask", asking)):
        low, _, high = quantiles(ratios, n=4)
        print(f"{name:<22} median {median(ratios):.2f}, half of the rounds between {low:.2f} and {high:.2f}")


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
