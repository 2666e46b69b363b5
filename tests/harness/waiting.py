"""Waiting for a condition with a deadline, instead of sleeping for a fixed time; finding a free port."""

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Of these `free_port` gives. Kubernetes' node ports begin above them.
PORTS = range(20_000, 30_000)


def wait_for(condition: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Call `condition` until it gives something true, and return that; fail by saying `what` never came."""
    give_up = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up:
            raise AssertionError(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.01)


def free_port() -> int:
    """A port on loopback on which nobody listens, and which no other process that asks here has, until this one ends.

    Each is given once, as long as there are others.
    """
    file = locks()
    for port in islice(_ports(), len(PORTS)):
        with suppress(OSError), socket.socket() as probe:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@cache
def _ports() -> Iterator[int]:
    """Without end, and without those that the kernel gives to connections, unless it gives all of them."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return cycle([port for port in PORTS if not first <= port <= last] or PORTS)


@cache
def locks() -> int:
    """A file of this user's processes, which stays: to lock the byte of a number is to have what it stands for."""
    return os.open(Path(tempfile.gettempdir()) / f"alsph-locks-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)
