"""`make demo`: the main job from beginning to end, on real nodes, a real webhook and real sidecars.

Prints each step. Ends with status 0 only if every step went as told.
"""

import os
import sys
import time
from contextlib import ExitStack
from typing import Any

from tests.harness.nodes import RedisNode
from tests.harness.scene import Scene, scene
from tests.harness.sidecars import sidecar
from tests.harness.waiting import wait_for
from tests.harness.webhook import Answer, pod_asking

LENGTH = 3
LEASE_SECONDS = 6


def main() -> int:
    started = time.monotonic()
    pids: list[int] = []
    try:
        with scene() as running, ExitStack() as sidecars:
            play(running, sidecars, pids)
    except (AssertionError, OSError) as error:
        say(f"THE DEMO FAILED: {error}")
        return 1
    left = [pid for pid in pids if is_running(pid)]
    if left:
        say(f"THE DEMO FAILED: processes {left} are still running")
        return 1
    say(f"\nAll of it went as told, in {time.monotonic() - started:.0f} s. Nothing is left running.")
    return 0


def play(running: Scene, sidecars: ExitStack, pids: list[int]) -> None:
    """The story, step by step."""
    nodes, webhook = running.nodes, running.webhook
    pids += [webhook.process.pid, *webhook.workers(), *(node.pid for node in nodes)]
    step("Three Redis nodes and the webhook, under gunicorn with TLS, are running")
    for node in nodes:
        tell(f"node on {node.address}")
    tell(f"webhook on https://127.0.0.1:{webhook.port}, metrics on http://127.0.0.1:{webhook.metrics_port}/metrics")

    step(f"Two Deployments of two replicas share the semaphore batch/reports-db of length {LENGTH}")
    admitted = [ask(running, owner) for owner in ("reports-7d9c", "reports-7d9c", "ledger-5b8f")]
    for answer in admitted:
        expect(answer.allowed, f"admitted to slot {answer.env()['SLOT']}, with a sidecar")
    expect(len({answer.env()["SLOT"] for answer in admitted}) == LENGTH, "each has a slot of its own")
    refused = ask(running, "ledger-5b8f")
    expect(refused.code == 429, f"the fourth is refused: {refused.message}")
    expect("reports-7d9c (2)" in refused.message and "ledger-5b8f (1)" in refused.message, "by name of the holders")

    step("The injected sidecars start, by the commands and variables of the patched pods")
    started = [sidecars.enter_context(sidecar(answer.container()["command"], answer.env())) for answer in admitted]
    pids += [process.pid for process in started]
    for answer, process in zip(admitted, started, strict=True):
        said = process.wait_for("renewed")
        expect(probe(answer) == 0, f"slot {answer.env()['SLOT']}: {said['message']}; the startup probe passes")

    step("One Redis node is killed")
    nodes[0].kill()
    before = lives_ms(nodes[1:], admitted)
    wait_for(lambda: prolonged(before, lives_ms(nodes[1:], admitted)), "renewals on the nodes that are left")
    tell("ok  every sidecar has renewed its lease on the two that are left")
    expect(ask(running, "ledger-5b8f").code == 429, "admissions go on: the fourth pod is still refused as one too many")

    step("One pod ends: its sidecar gets SIGTERM, as from the kubelet after the app")
    expect(started[0].terminate() == 0, f"{started[0].said('given back')[0]['message']}; exit status 0")
    fourth = ask(running, "ledger-5b8f")
    expect(fourth.allowed, f"the fourth pod is admitted at once, to slot {fourth.env()['SLOT']}")

    step("A dry run")
    known = keys(nodes[1:])
    expect(ask(running, "reports-7d9c", key="another", dryRun=True).allowed, "is answered with the pod it would get")
    expect(keys(nodes[1:]) == known, "and changes nothing on the nodes")

    step("What Prometheus reads")
    page = webhook.metrics()
    for reason, count in (("granted", 4), ("full", 2), ("dry_run", 1)):
        line = f'at_least_semaphore_verdicts_total{{reason="{reason}"}} {float(count)}'
        expect(line in page.splitlines(), line)


def ask(running: Scene, owner: str, key: str = "reports-db", **request: Any) -> Answer:
    return running.webhook.ask(pod_asking(key, LENGTH, LEASE_SECONDS, owner=f"ReplicaSet/{owner}"), **request)


def probe(answer: Answer) -> int:
    """Run the startup probe as the kubelet does."""
    with sidecar(answer.container()["startupProbe"]["exec"]["command"], answer.env()) as process:
        return process.ended()


def lives_ms(nodes: list[RedisNode], admitted: list[Answer]) -> list[int]:
    """How long each lease still lasts on each node."""
    lives = []
    for node in nodes:
        with node.client() as client:
            lives += [client.pttl(f"lease:{answer.env()['TOKEN']}") for answer in admitted]
    return lives


def prolonged(before: list[int], after: list[int]) -> bool:
    """Whether every lease lasts longer than before: nothing but a renewal does that."""
    return all(later > earlier for earlier, later in zip(before, after, strict=True))


def keys(nodes: list[RedisNode]) -> list[set[str]]:
    found = []
    for node in nodes:
        with node.client() as client:
            found.append(set(client.keys("*")))
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def step(text: str) -> None:
    say(f"\n== {text}")


def tell(text: str) -> None:
    say(f"   {text}")


def expect(condition: bool, text: str) -> None:
    """Tell what happened, or fail where it did not."""
    assert condition, f"not as told: {text}"
    tell(f"ok  {text}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
