"""`make bench-api-server`: what the webhook costs those who create pods through a real API server, as ratios.

Each round creates as many pods without the webhook's configuration as with it, and as many that ask for a slot, each in
a semaphore of its own; in random order, one after the other on a kept connection. Told are the medians of the rounds'
ratios, of the time that it took and of the CPU time that the API server spent, which other load disturbs less.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from itertools import count
from pathlib import Path
from random import Random
from statistics import median

from tests.e2e.cluster import Api, Object, cluster
from tests.e2e.installation import NAME, Installation, pack_images
from tests.e2e.workloads import annotations, pod, pod_spec, sidecar_of
from tests.harness.waiting import wait_for

ROUNDS = 25
PODS = 100
SEED = 1
SETTLE_SECONDS = 1.0
NAMESPACE = "measured"
_names = count()


class Case(StrEnum):
    """What is created, and under which configuration."""

    WITHOUT = "without any webhook"
    PLAIN = "pods that do not ask"
    ASKING = "pods that ask"

    @property
    def is_configured(self) -> bool:
        return self is not Case.WITHOUT


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
    rng = Random(SEED)
    rounds = []
    for _ in range(ROUNDS):
        seconds = {}
        for case in rng.sample(list(Case), len(Case)):
            with nullcontext() if case.is_configured else unconfigured(installation, api):
                # Not to be measured: what the API server does about a new configuration, and the nodes about slots.
                time.sleep(SETTLE_SECONDS)
                create(api, PODS // 5, case)
                before = cpu_seconds(installation)
                taken = create(api, PODS, case)
                seconds[case] = (taken, cpu_seconds(installation) - before)
        rounds.append(seconds)
    print(f"{ROUNDS} rounds of {PODS} pods, seed {SEED}; without any webhook, as a share of what it takes with it:")
    print(f"{'':<22}{'time':>6}{'CPU of the API server':>24}")
    for case in (Case.PLAIN, Case.ASKING):
        wall, cpu = (median(each[Case.WITHOUT][which] / each[case][which] for each in rounds) for which in (0, 1))
        print(f"{case:<22}{wall:>6.2f}{cpu:>24.2f}")


def cpu_seconds(installation: Installation) -> float:
    """What the API server has spent so far: proc(5)."""
    server = next(each for each in installation.cluster.machine.programs if each.name == "kube-apiserver")
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    status, answer = api.create_pod(NAMESPACE, a_pod(Case.ASKING), "?dryRun=All")
    assert status == 201, answer
    return sidecar_of(answer) is not None


def create(api: Api, pods: int, case: Case) -> float:
    """The seconds that it takes to create so many."""
    wanted = [a_pod(case) for _ in range(pods)]
    began = time.monotonic()
    for each in wanted:
        status, answer = api.create_pod(NAMESPACE, each)
        assert status == 201, answer
    return time.monotonic() - began


def a_pod(case: Case) -> Object:
    """A pod that nobody schedules, so that it costs nothing once it is created."""
    name = f"pod-{next(_names)}"
    return pod(name, pod_spec(schedulerName="nobody"), annotations(key=name) if case is Case.ASKING else {})


if __name__ == "__main__":
    sys.exit(main())
