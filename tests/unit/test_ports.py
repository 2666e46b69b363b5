"""Ports that the tests' servers get, in as many processes as there are."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from tests.harness import waiting
from tests.harness.waiting import free_port

ROOT = Path(__file__).parents[2]
PROGRAM = "from tests.harness.waiting import free_port; print(*(free_port() for _ in range({})), flush=True); input()"


@contextmanager
def ports_of_a_process(count: int) -> Iterator[list[int]]:
    """What another process is given, which has them until the end of the block."""
    command = [sys.executable, "-c", PROGRAM.format(count)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield [int(port) for port in process.stdout.readline().split()]
        process.stdin.write("\n")


def test_no_port_is_given_twice_while_those_live_who_have_them():
    with ExitStack() as stack:
        given = [stack.enter_context(ports_of_a_process(50)) for _ in range(3)]
        given.append([free_port() for _ in range(50)])

        assert 200 == len({port for ports in given for port in ports})


def test_a_port_on_which_somebody_listens_is_not_given():
    with ports_of_a_process(1) as (first,):
        pass
    with socket.create_server(("127.0.0.1", first)), ports_of_a_process(1) as (second,):
        assert first != second


def test_a_port_comes_again_only_when_there_is_no_other(monkeypatch):
    two = [free_port(), free_port()]
    ports = cycle(two)
    monkeypatch.setattr(waiting, "_ports", lambda: ports)

    assert [*two, *two] == [free_port() for _ in range(4)]
    with (
        socket.create_server(("127.0.0.1", two[0])),
        socket.create_server(("127.0.0.1", two[1])),
        pytest.raises(AssertionError, match="no port is free"),
    ):
        free_port()


def test_no_port_is_one_that_the_kernel_gives_to_connections(monkeypatch):
    """Which it may do while a node is down that will want its own again."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    monkeypatch.setattr(waiting, "PORTS", range(first - 2, first + 2))
    ports = waiting._ports.__wrapped__()

    assert [first - 2, first - 1, first - 2] == [next(ports) for _ in range(3)]
