"""The whole system under a seeded nemesis: real nodes, webhooks and sidecars, and everything that may befall them.

`make soak SECONDS=300 SEED=7` runs it; a history with a finding is saved, and can be checked again by
`python -m tests.faults.soak --check FILE`.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha1
from pathlib import Path
from random import Random
from typing import Any

from app.semaphore.commands import load_scripts
from sidecar.protocol import majority
from tests.faults.history import FOREVER, Disturbance, History, Pod, Step, Verdict, findings
from tests.harness.nodes import LIBFAKETIME, RedisNode, addresses, failing, redis_nodes
from tests.harness.proxy import Exchange, Fault, Proxy, proxy
from tests.harness.sidecars import Sidecar, sidecar
from tests.harness.waiting import wait_for
from tests.harness.webhook import Webhook, environ_for, pod_asking, read_answer, review_of

FOLDER = Path(__file__).parents[2] / "build" / "soak"
LEASE_SECONDS = 5
RESERVATION_SECONDS = 6
# By how much the same renewal may reach one node later than another.
SLACK_MS = 300
# As long as an API server waits for a webhook.
PATIENCE_SECONDS = 10
# A node has a quarter of it, which is more than a busy machine takes to let one answer that is well.
BUDGET_SECONDS = 6
CLIENTS = 10
WEBHOOKS = ("webhook 0", "webhook 1")
AUDIENCES = (*WEBHOOKS, "sidecar")
# Key → the lengths that pods bring.
SEMAPHORES = {"one": [1], "two": [2], "five": [5], "elastic": [2, 4]}
OUTCOMES = {429: "full", 503: "unavailable"}
SCRIPTS = {sha1(text.encode(), usedforsecurity=False).hexdigest(): name for name, text in load_scripts().items()}


class World:
    """Three nodes, two webhooks and a way to each node for everybody, which can be cut by itself."""

    def __init__(self, seed: int, stack: ExitStack) -> None:
        self.history = History(seed)
        self.stopping = threading.Event()
        self.nodes = stack.enter_context(redis_nodes(own_clock=LIBFAKETIME.exists()))
        self.ways: dict[str, list[Proxy]] = {
            audience: [
                stack.enter_context(proxy(node.address, self._tap(number, audience)))
                for number, node in enumerate(self.nodes)
            ]
            for audience in AUDIENCES
        }
        self.webhooks = {name: self._webhook(name) for name in WEBHOOKS}
        stack.callback(self._close_webhooks)

    def _webhook(self, name: str) -> Webhook:
        environ = environ_for(
            addresses(self.ways[name]),
            SIDECAR_REDIS_ADDRESSES=addresses(self.ways["sidecar"]),
            RESERVATION_SECONDS=str(RESERVATION_SECONDS),
            ADMISSION_BUDGET_SECONDS=str(BUDGET_SECONDS),
        )
        return Webhook(environ, patience_seconds=PATIENCE_SECONDS)

    def _close_webhooks(self) -> None:
        for webhook in self.webhooks.values():
            webhook.close()

    def replace_webhook(self, name: str) -> None:
        old, self.webhooks[name] = self.webhooks[name], self._webhook(name)
        old.close()

    @contextmanager
    def disturbed(self, what: str, **more: Any) -> Iterator[None]:
        """Record what is done meanwhile."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.history.disturbances.append(Disturbance(what, began, time.monotonic(), **more))

    def _tap(self, node: int, audience: str) -> Callable[[Exchange], None]:
        def tell(exchange: Exchange) -> None:
            try:
                self.history.steps.extend(steps_of(exchange, node, audience))
            except (ValueError, IndexError) as error:  # it would only end the connection, as if by the nemesis
                self.history.notes.append(f"not understood: {exchange}: {error}")

        return tell

    # What the nodes hold, looked at directly

    def lacking(self) -> set[tuple[int, str]]:
        """What a node lacks that a majority has: records, and leases, or the last renewal of one."""
        found = [self.lives_ms(node) for node in self.nodes]
        lacking = set()
        for key in set().union(*found):
            lives = [lives.get(key, 0) for lives in found]
            common = sorted(lives, reverse=True)[majority(len(lives)) - 1]
            lacking |= {(number, key) for number, life in enumerate(lives) if life + SLACK_MS < common}
        return lacking

    def lives_ms(self, node: RedisNode) -> dict[str, float]:
        """How long records and leases still last."""
        with node.client() as client:
            keys = [key for key in client.keys("*") if key.startswith(("slots:", "lease:"))]
            with client.pipeline() as batch:
                for key in keys:
                    batch.pttl(key)
                lives = batch.execute()
        return {key: FOREVER if life == -1 else life for key, life in zip(keys, lives, strict=True)}

    def keys(self, node: RedisNode) -> set[str]:
        with node.client() as client:
            return set(client.keys("*"))

    def leases(self, node: RedisNode) -> set[str]:
        return {key for key in self.keys(node) if not key.startswith("slots:")}

    def await_whole(self, seconds: float = 20.0) -> None:
        """Until no node lacks anything for longer than an admission takes; the admissions that go on repair it."""
        give_up = time.monotonic() + seconds
        before = lasting = self.lacking()
        while not self.stopping.wait(0.2):
            now = self.lacking()
            if not before & now:
                return
            before, lasting = now, lasting & now
            if lasting and time.monotonic() > give_up:
                self.history.notes.append(f"not repaired after {seconds:.0f} s: {lasting}")
                return


def steps_of(exchange: Exchange, node: int, user: str) -> Iterator[Step]:
    """What an exchange did to tokens."""
    words = [word.decode(errors="replace") for word in exchange.words]
    seen, reply = exchange.seen, exchange.reply

    def step(kind: str, token: str, done: bool, life_ms: str = "0", semaphore: str = "") -> Step:
        is_done = None if not seen else False if isinstance(reply, Exception) else done
        at = (exchange.sent, exchange.answered)
        return Step(node, user, kind, token, *at, is_done, int(life_ms) / 1000, semaphore)

    match words:
        case ["PEXPIRE", key, life_ms]:
            yield step("renew", key.removeprefix("lease:"), reply == 1, life_ms)
        case ["UNLINK", key, *_] if key.startswith("lease:"):
            yield step("release", key.removeprefix("lease:"), reply != 0)
        case ["EVALSHA", sha, "2", key, _] if SCRIPTS.get(sha) == "withdraw":
            yield step("release", key.removeprefix("lease:"), reply != 0)
        case ["EVALSHA", sha, "3", record, _, _, token, _, life_ms, *_] if SCRIPTS.get(sha) == "acquire":
            said = reply[0] if isinstance(reply, list) else b""
            kind = "full" if said == b"FULL" else "grant"
            yield step(kind, token, said == b"GRANTED", life_ms, record.removeprefix("slots:"))
        case ["EVALSHA", sha, "1", record, _, _, _, _, _, *entries] if SCRIPTS.get(sha) == "restore":
            for at in range(0, len(entries), 5):
                written = isinstance(reply, int) and reply > 0
                yield step("restore", entries[at + 1], written, entries[at + 2], record.removeprefix("slots:"))


# Pods -----------------------------------------------------------------------------------------------------


def ask(world: World, name: str, key: str, length: int) -> Verdict:
    """One review as an API server sends it; the verdict with the environment of the sidecar as its message."""
    pod = pod_asking(key, length, LEASE_SECONDS, owner=f"Job/{key}")
    asked = time.monotonic()
    try:
        status, answer = world.webhooks[name].post(review_of(pod, namespace="soak"))
        read = read_answer(answer, pod)
    except (OSError, ValueError) as error:  # ValueError: half an answer
        outcome, token, message = "silent", "", repr(error)
    else:
        outcome = "granted" if read.allowed else OUTCOMES.get(read.code or status, str(read.code))
        token = read.env()["TOKEN"] if read.allowed else ""
        message = json.dumps(read.env()) if read.allowed else read.message
    verdict = Verdict(name, f"soak/{key}", length, asked, time.monotonic(), outcome, token, message)
    world.history.verdicts.append(verdict)
    return verdict


def clients(world: World, rng: Random) -> None:
    """Pods come and go, one after the other, until the world stops."""
    while not world.stopping.is_set():
        key = rng.choice(list(SEMAPHORES))
        verdict = ask(world, rng.choice(WEBHOOKS), key, rng.choice(SEMAPHORES[key]))
        if verdict.outcome == "granted":
            live(world, verdict, rng)
        else:
            world.stopping.wait(rng.uniform(0.01, 0.15))


def live(world: World, admitted: Verdict, rng: Random) -> None:
    """The life of one pod, from its admission to its end, which comes in one of several ways."""
    began = time.monotonic()
    fate = rng.choices(
        ["ends", "is killed", "sleeps", "never starts", "starts late", "ends twice"], [10, 3, 2, 2, 1, 2]
    )[0]
    life = rng.choice([rng.uniform(0.1, 2), rng.uniform(2, 8)])
    if fate == "never starts":
        pod = Pod(admitted.token, admitted.semaphore, began, began + RESERVATION_SECONDS, began, fate, well=False)
        world.history.pods.append(pod)
        return
    if fate == "starts late":
        world.stopping.wait(RESERVATION_SECONDS + rng.uniform(-1, 2))
    env = json.loads(admitted.message)
    with sidecar(["python", "-m", "sidecar"], env) as process:
        world.stopping.wait(life)
        if fate == "sleeps":
            process.send(signal.SIGSTOP)
            time.sleep(LEASE_SECONDS + rng.uniform(-1, 2))
            process.send(signal.SIGCONT)
            world.stopping.wait(rng.uniform(0, 1))
        end_began = time.monotonic()
        if fate != "is killed":
            process.terminate()
        complaints = complaints_of(process)
    if fate == "ends twice":
        # The pod's network comes to life once more, long after: it knows nothing but its own token.
        world.stopping.wait(rng.uniform(0, 4))
        with sidecar(["python", "-m", "sidecar"], env) as again:
            again.terminate()
    well = fate not in ("sleeps", "starts late")
    pod = Pod(
        admitted.token, admitted.semaphore, began, end_began, time.monotonic(), fate, well=well, complaints=complaints
    )
    world.history.pods.append(pod)


def complaints_of(process: Sidecar) -> tuple[str, ...]:
    said = [*process.said("the slot is lost"), *process.said("the lease has ended")]
    return tuple(record["message"] for record in said)


# The nemesis ----------------------------------------------------------------------------------------------


def strike_nodes(world: World, rng: Random) -> None:
    """One node after the other fails in some way; the next only once nothing is lacking."""
    strikes = [restart, empty, pause, cut, split, black_out]
    if LIBFAKETIME.exists():
        strikes.append(step_clock)
    while not world.stopping.wait(rng.uniform(0.1, 1.0)):
        rng.choice(strikes)(world, rng)
        world.await_whole()


def restart(world: World, rng: Random) -> None:
    number, seconds = rng.randrange(3), rng.uniform(0, 4)
    fail(world, "killed, and back with its data", [number], seconds, RedisNode.kill, RedisNode.start)


def empty(world: World, rng: Random) -> None:
    number = rng.randrange(3)
    with world.disturbed("killed, and back empty", nodes=(number,)):
        world.nodes[number].restart(empty=True)


def pause(world: World, rng: Random) -> None:
    number, seconds = rng.randrange(3), rng.choice([rng.uniform(0.05, 1), rng.uniform(1, 7)])
    fail(world, "paused", [number], seconds, RedisNode.pause, RedisNode.resume)


def black_out(world: World, rng: Random) -> None:
    """Two nodes or all, for less than a lease or for more; none loses what it had confirmed."""
    numbers, seconds = rng.sample(range(3), rng.choice([2, 3])), rng.uniform(0.5, LEASE_SECONDS + 3)
    if rng.random() < 0.5:
        fail(world, "several killed", numbers, seconds, RedisNode.kill, RedisNode.start)
    else:
        fail(world, "several paused", numbers, seconds, RedisNode.pause, RedisNode.resume)


def fail(
    world: World,
    what: str,
    numbers: Sequence[int],
    seconds: float,
    begin: Callable[[RedisNode], None],
    end: Callable[[RedisNode], None],
) -> None:
    """For so long some nodes are not there, and then they are, with their data."""
    with world.disturbed(what, nodes=tuple(numbers)), failing([world.nodes[each] for each in numbers], begin, end):
        time.sleep(seconds)


def cut(world: World, rng: Random) -> None:
    """Something is wrong with the way of some to one node."""
    number, seconds = rng.randrange(3), rng.uniform(0.2, 5)
    fault = rng.choice([fault for fault in Fault if fault is not Fault.NONE])
    whom = tuple(rng.sample(AUDIENCES, rng.randint(1, len(AUDIENCES))))
    with world.disturbed(fault, nodes=(number,), whom=whom):
        block([world.ways[audience][number] for audience in whom], fault, seconds)


def split(world: World, rng: Random) -> None:
    """Each sees another majority."""
    numbers, seconds = rng.sample(range(3), 3), rng.uniform(0.5, 4)
    fault = rng.choice([Fault.REFUSE, Fault.HANG, Fault.LOSE_ANSWERS])
    cut_off = dict(zip(AUDIENCES, numbers, strict=True))
    with ExitStack() as stack:
        for audience, number in cut_off.items():
            stack.enter_context(world.disturbed(f"split: {fault}", nodes=(number,), whom=(audience,)))
        block([world.ways[audience][number] for audience, number in cut_off.items()], fault, seconds)


def block(ways: Sequence[Proxy], fault: Fault, seconds: float) -> None:
    for way in ways:
        way.fault = fault
    time.sleep(seconds)
    for way in ways:
        way.fault = Fault.NONE


def step_clock(world: World, rng: Random) -> None:
    """From here on the node's clock is another one; what was granted before lacks there, or ends before its time."""
    number, offset = rng.randrange(3), rng.choice([-1, 1]) * rng.choice([1.0, 30.0, 3600.0])
    with world.disturbed(f"clock {offset:+.0f} s", nodes=(number,), stretches=True):
        world.nodes[number].set_clock(offset)
    world.stopping.wait(RESERVATION_SECONDS)


def strike_webhooks(world: World, rng: Random) -> None:
    """Workers die and sleep, webhooks are replaced."""
    strikes = [kill_worker, stop_worker, replace]
    while not world.stopping.wait(rng.uniform(1.0, 6.0)):
        rng.choice(strikes)(world, rng.choice(WEBHOOKS), rng)


def kill_worker(world: World, name: str, rng: Random) -> None:
    with world.disturbed("worker killed", whom=(name,)):
        victim = rng.choice(world.webhooks[name].workers())
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(set(world.webhooks[name].workers()) - {victim}) == 2, "another worker")


def stop_worker(world: World, name: str, rng: Random) -> None:
    """Asleep, sometimes for longer than an API server waits, with whatever it was about to do."""
    with world.disturbed("worker asleep", whom=(name,)):
        victim = rng.choice(world.webhooks[name].workers())
        seconds = rng.choice([rng.uniform(0.1, 3), PATIENCE_SECONDS + 1])
        with suppress(ProcessLookupError):  # gunicorn may have replaced it
            os.kill(victim, signal.SIGSTOP)
            world.stopping.wait(seconds)
            os.kill(victim, signal.SIGCONT)


def replace(world: World, name: str, rng: Random) -> None:
    with world.disturbed("replaced", whom=(name,)):
        if rng.random() < 0.5:
            webhook = world.webhooks[name]
            for pid in [webhook.process.pid, *webhook.workers()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        world.replace_webhook(name)


# From beginning to end ------------------------------------------------------------------------------------


def run(seconds: float, seed: int) -> History:
    """A soak of so many seconds, and the quiet after it."""
    with ExitStack() as stack:
        world = World(seed, stack)
        failures: list[BaseException] = []

        def played(part: Callable[..., None], name: str) -> threading.Thread:
            def play() -> None:
                try:
                    part(world, Random(f"{seed}/{name}"))
                except BaseException as error:  # noqa: BLE001  raised again below
                    failures.append(error)
                    world.stopping.set()

            thread = threading.Thread(target=play)
            thread.start()
            return thread

        parts = [played(clients, f"client {number}") for number in range(CLIENTS)]
        parts += [played(strike_nodes, "nodes"), played(strike_webhooks, "webhooks")]
        world.stopping.wait(seconds)
        world.stopping.set()
        for part in parts:
            part.join()
        if failures:
            raise failures[0]
        settle(world)
        return world.history


def settle(world: World) -> None:
    """Quiet: every lease ends, nothing is left but records, and each semaphore is filled to its length again."""
    stretched = {number for each in world.history.disturbances if each.stretches for number in each.nodes}
    await_end_of_leases(world, [node for number, node in enumerate(world.nodes) if number not in stretched])
    # Where a clock was set back a lease may last until an admission to its slot looks at it, and cuts it down. The
    # first node that has some refuses, and so keeps the others from being asked, until its own have ended.
    for _ in range(2 * len(stretched)):
        if any(world.leases(node) for node in world.nodes):
            for key, lengths in SEMAPHORES.items():
                for _ in range(max(lengths)):
                    ask(world, WEBHOOKS[0], key, max(lengths))
            await_end_of_leases(world, world.nodes)
    world.history.left = {str(number): sorted(world.keys(node)) for number, node in enumerate(world.nodes)}
    for key, lengths in SEMAPHORES.items():
        outcomes = [ask(world, WEBHOOKS[1], key, max(lengths)).outcome for _ in range(max(lengths) + 1)]
        if outcomes != ["granted"] * max(lengths) + ["full"]:
            world.history.notes.append(f"after quiet {key} of length {max(lengths)} answered {outcomes}")


def await_end_of_leases(world: World, nodes: Sequence[RedisNode]) -> None:
    """As long as they may last; what is there after that is left."""
    give_up = time.monotonic() + RESERVATION_SECONDS + 3
    while time.monotonic() < give_up and any(world.leases(node) for node in nodes):
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--check", type=Path, metavar="FILE", help="check a saved history instead")
    options = parser.parse_args()
    history = History.load(options.check) if options.check else run(options.seconds, options.seed)
    return report(history)


def report(history: History) -> int:
    outcomes = Counter(verdict.outcome for verdict in history.verdicts)
    print(f"seed {history.seed}: {len(history.pods)} pods, {len(history.steps)} steps, verdicts {dict(outcomes)}")
    for what, count in Counter(str(each.what) for each in history.disturbances).most_common():
        print(f"  {count:>4} x {what}")
    if not LIBFAKETIME.exists():
        print(f"  no clock was set: {LIBFAKETIME} is not there, Debian has it in libfaketime")
    found = findings(history)
    for finding in found:
        print(f"  FINDING: {finding}")
    if found:
        file = FOLDER / f"seed-{history.seed}.json"
        history.save(file)
        print(f"  saved; check it again by: python -m tests.faults.soak --check {file}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
