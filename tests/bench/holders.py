"""What those who hold slots cost: a pod its sidecar, and the nodes ten thousand leases.

Sidecars are real processes with the shortest lease, so that there are many renewals to count; a renewal takes a sidecar
and its nodes the same whatever the lease.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from compileall import compile_dir
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import redis

from sidecar.lease import Lease
from sidecar.protocol import SHORTEST_LEASE_SECONDS, Keys, Renewal, Variable
from tests.bench.protocol import CountingSemaphores, counting_semaphores, seconds, write
from tests.bench.report import Report
from tests.harness.nodes import (
    HOOK_PASSWORD,
    HOOK_USER,
    SIDECAR_PASSWORD,
    SIDECAR_USER,
    RedisNode,
    addresses,
    redis_nodes,
)
from tests.harness.sidecars import Sidecar, sidecar
from tests.harness.webhook import ROOT

PART = "holders"
SIDECARS = 10
RENEWALS = 12
HOLDERS = 10_000
LEASE_SECONDS = 60
LOAD_SECONDS = 10
CONNECTIONS = 1_000
# After a client has been idle for two seconds a node takes its buffers back.
SETTLE_SECONDS = 4.0
# With -S the packages without the hooks of an editable install, as in the image.
PYTHON = {"PYTHONPATH": next(path for path in sys.path if path.endswith("site-packages"))}


@dataclass(frozen=True)
class Spent:
    """What sidecars have caused so far: CPU seconds of their own, commands at all nodes together."""

    cpu_seconds: float
    commands: int


def measure(report: Report) -> None:
    rng = Random(report.seed)
    with redis_nodes() as nodes, counting_semaphores(nodes, HOOK_USER, HOOK_PASSWORD, rng) as semaphores:
        measure_sidecars(report, nodes, semaphores, rng)
        measure_memory(report, nodes, semaphores, rng)
        measure_load(report, nodes, semaphores, rng)


def measure_sidecars(report: Report, nodes: Sequence[RedisNode], semaphores: CountingSemaphores, rng: Random) -> None:
    tokens = grant(semaphores, "bench/sidecars", SIDECARS, rng)
    turns = report.times(RENEWALS)
    compile_dir(ROOT / "sidecar", quiet=1)  # as in the image: to compile takes memory
    with ExitStack() as stack:
        clients = [stack.enter_context(node.client()) for node in nodes]
        sidecars, to_first, bare, importing = [], [], [], []
        for token in tokens:
            bare.append(seconds(lambda: python("pass")))
            importing.append(seconds(lambda: python("import redis")))
            began = time.time()
            sidecars.append(stack.enter_context(sidecar(["python", "-S", "-m", "sidecar"], environ(nodes, token))))
            renewed = datetime.fromisoformat(sidecars[-1].wait_for("the slot is held")["time"])
            to_first.append(renewed.timestamp() - began)
        before = spent(sidecars, clients)
        time.sleep(turns * renewal_seconds(SHORTEST_LEASE_SECONDS))
        after = spent(sidecars, clients)
        resident = max(each.resident_kilobytes for each in sidecars) / 1000
        lost = [each.output for each in sidecars if each.said("lost") or not each.running]
        assert not lost, lost

    def tell(what: str, value: float, unit: str, at_most: float | None = None) -> None:
        report.add(PART, what, value, unit, at_most=at_most)

    renewals, first = SIDECARS * turns, "sidecar, start to first renewal"
    commands = (after.commands - before.commands) / len(nodes) / renewals
    one = (after.cpu_seconds - before.cpu_seconds) / renewals
    an_hour = one * 3600 / renewal_seconds(LEASE_SECONDS)
    rate = commands * HOLDERS / renewal_seconds(LEASE_SECONDS)
    tell(f"sidecar, memory after {turns} renewals, largest of {SIDECARS}", resident, "MB", 12)
    tell(first, median(to_first), "seconds, this machine")
    tell(first, median(to_first) / median(bare), "x python -c pass")
    tell(first, median(to_first) / median(importing), "x python -c 'import redis'")
    tell(f"sidecar, one renewal, from {renewals}", one * 1e6, "µs of CPU, this machine")
    tell(f"sidecar, {LEASE_SECONDS} s lease, as scaled from these", an_hour, "CPU s an hour, this machine")
    tell("one renewal", commands, "commands to each node, by its count")
    tell(
        f"{HOLDERS:,} holders, {LEASE_SECONDS} s lease, as scaled from these", rate, "commands a second to a node", 1000
    )


def measure_memory(report: Report, nodes: Sequence[RedisNode], semaphores: CountingSemaphores, rng: Random) -> None:
    for length, count in ((1, HOLDERS), (HOLDERS, 1)):
        for node in nodes:
            with node.client() as client:
                client.flushall()
        before = [data_bytes(node) for node in nodes]
        for number in range(count):
            grant(semaphores, f"bench/{length}-{number}", length, rng)
        grown = max(data_bytes(node) - was for node, was in zip(nodes, before, strict=True)) / 1e6
        what = f"{HOLDERS:,} leases, in {count:,} semaphore{'s' * (count > 1)} of length {length:,}"
        report.add(PART, what, grown, "MB on each node", at_most=20)
    before_clients = client_bytes(nodes[0])
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(idle_sidecar(nodes[0]))
        time.sleep(SETTLE_SECONDS)
        each = (client_bytes(nodes[0]) - before_clients) / CONNECTIONS
    what = f"{HOLDERS:,} connections of sidecars, from {CONNECTIONS:,}"
    report.add(PART, what, each * HOLDERS / 1e6, "MB on each node")


def measure_load(report: Report, nodes: Sequence[RedisNode], semaphores: CountingSemaphores, rng: Random) -> None:
    """Evenly, and one after the other: together they would share a sync to disk."""
    tokens = grant(semaphores, "bench/load", HOLDERS, rng)
    rate = HOLDERS / renewal_seconds(LEASE_SECONDS)
    load_seconds = report.times(LOAD_SECONDS)
    renewals = int(rate * load_seconds)
    before = [cpu_seconds(node) for node in nodes]
    began = time.monotonic()
    for number, token in enumerate(rng.sample(tokens, renewals)):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        kept = semaphores.renew(token, LEASE_SECONDS * 1000, time.monotonic() + LEASE_SECONDS)
        assert kept is Renewal.KEPT
    share = max(cpu_seconds(node) - was for node, was in zip(nodes, before, strict=True)) / load_seconds
    what = f"{HOLDERS:,} holders, {LEASE_SECONDS} s lease, from {renewals:,} renewals"
    report.add(PART, what, share * 100, "% of a core to a node, this machine")


def grant(semaphores: CountingSemaphores, semaphore: str, length: int, rng: Random) -> list[str]:
    """All slots of a new semaphore to tokens that have renewed since."""
    tokens = [rng.randbytes(16).hex() for _ in range(length)]
    write(semaphores, semaphore, tokens, set(range(length)))
    return tokens


def renewal_seconds(lease_seconds: float) -> float:
    """How often a sidecar renews while all is well, by its own code."""
    lease = Lease(lease_seconds, now=0)
    lease.judge(Renewal.KEPT, asked_at=0, now=0)
    return lease.next_round(asked_at=0, now=0)


def environ(nodes: Sequence[RedisNode], token: str) -> dict[str, str]:
    return {
        **PYTHON,
        Variable.SEMAPHORE: "bench/sidecars",
        Variable.SLOT: "0",
        Variable.TOKEN: token,
        Variable.EXPIRATION: str(SHORTEST_LEASE_SECONDS),
        Variable.REDIS_ADDRESSES: addresses(nodes),
        Variable.REDIS_USERNAME: SIDECAR_USER,
        Variable.REDIS_PASSWORD: SIDECAR_PASSWORD,
    }


def python(program: str) -> None:
    subprocess.run([sys.executable, "-S", "-c", program], env=PYTHON, check=True)


def spent(sidecars: Sequence[Sidecar], clients: Sequence["redis.Redis"]) -> Spent:
    """The kernel counts each thread by itself, in nanoseconds; the nodes count what we ask them as well."""
    threads = [thread for each in sidecars for thread in Path(f"/proc/{each.pid}/task").iterdir()]
    nanoseconds = sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)
    stats: list[dict[str, Any]] = [client.info("commandstats") for client in clients]
    commands = sum(each["calls"] for node in stats for name, each in node.items() if name != "cmdstat_info")
    return Spent(nanoseconds / 1e9, commands)


def data_bytes(node: RedisNode) -> int:
    """What it uses, but for buffers of its clients."""
    with node.client() as client:
        memory: dict[str, int] = client.info("memory")
    return memory["used_memory"] - memory["mem_clients_normal"]


def client_bytes(node: RedisNode) -> int:
    with node.client() as client:
        return int(client.info("memory")["mem_clients_normal"])


def cpu_seconds(node: RedisNode) -> float:
    with node.client() as client:
        spent: dict[str, float] = client.info("cpu")
    return spent["used_cpu_sys"] + spent["used_cpu_user"]


def idle_sidecar(node: RedisNode) -> socket.socket:
    """A connection as a sidecar has it between two renewals."""
    connection = socket.create_connection(node.address)
    for command in (f"AUTH {SIDECAR_USER} {SIDECAR_PASSWORD}", f"PEXPIRE {Keys().lease('none')} 1"):
        connection.sendall(f"{command}\r\n".encode())
        connection.recv(100)
    return connection
