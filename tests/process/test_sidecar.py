"""Real sidecars against three real nodes that fail in every way a test can bring about."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from _queue import SimpleQueue
from _socket import getaddrinfo
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sidecar.keeper import Keeper
from sidecar.nodes import Answer, Node, Question
from sidecar.protocol import Renewal
from sidecar.settings import Settings
from tests.harness.nodes import SIDECAR_PASSWORD, SIDECAR_USER, RedisNode, addresses
from tests.harness.sidecars import ROOT, Sidecar, sidecar, with_interpreter
from tests.harness.waiting import free_port, wait_for
from tests.process.test_server import established

RUN = ["python", "-m", "sidecar"]
CHECK = [*RUN, "check"]
HELD = "the slot is held"
LOST = "the slot is lost"
NO_MAJORITY = "no majority of nodes answered"


class Slot:
    """What the nodes know of one token, looked at and meddled with by the test."""

    def __init__(self, nodes: list[RedisNode]) -> None:
        self.token = secrets.token_hex(16)
        self.nodes = nodes

    def grant(self, nodes: Sequence[RedisNode], lease_ms: int = 60_000) -> None:
        """As the webhook does it."""
        for node in nodes:
            with node.client() as client:
                client.set(f"lease:{self.token}", "{}", px=lease_ms)
                client.set(f"reservation:{self.token}", "1", px=lease_ms)

    def lease_ms(self, node: RedisNode) -> int:
        """What is left of the lease; negative if there is none."""
        with node.client() as client:
            return int(client.pttl(f"lease:{self.token}"))

    def shorten(self, node: RedisNode, lease_ms: int) -> None:
        with node.client() as client:
            assert client.pexpire(f"lease:{self.token}", lease_ms)

    def delete(self, nodes: Sequence[RedisNode]) -> None:
        for node in nodes:
            with node.client() as client:
                client.delete(f"lease:{self.token}")

    def leased(self, nodes: Sequence[RedisNode]) -> list[bool]:
        return [self.lease_ms(node) > 0 for node in nodes]

    def reserved(self, nodes: Sequence[RedisNode]) -> list[bool]:
        found = []
        for node in nodes:
            with node.client() as client:
                found.append(bool(client.exists(f"reservation:{self.token}")))
        return found

    def env(self, lease_seconds: int = 60, **changes: str) -> dict[str, str]:
        return {
            "SEMAPHORE": "batch/reports-db",
            "SLOT": "1",
            "TOKEN": self.token,
            "EXPIRATION_SECONDS": str(lease_seconds),
            "REDIS_ADDRESSES": addresses(self.nodes),
            "REDIS_USERNAME": SIDECAR_USER,
            "REDIS_PASSWORD": SIDECAR_PASSWORD,
            **changes,
        }


@pytest.fixture
def nodes(nodes: list[RedisNode]) -> list[RedisNode]:
    """The module's nodes: whatever the last test did to them, running, empty and with counts at zero."""
    for node in nodes:
        node.resume()
        if not node.running:
            node.start()
        with node.client() as client:
            client.flushall()
            client.config_resetstat()
    return nodes


@pytest.fixture
def slot(nodes: list[RedisNode]) -> Slot:
    """Granted on all nodes for ten minutes, so that every renewal shows by a shorter lease."""
    granted = Slot(nodes)
    granted.grant(nodes, lease_ms=600_000)
    return granted


@contextmanager
def started(slot: Slot, lease_seconds: int = 60, **changes: str) -> Iterator[Sidecar]:
    """A running sidecar. Whatever it said, the token was not part of it."""
    with sidecar(RUN, slot.env(lease_seconds, **changes)) as process:
        yield process
    assert slot.token not in process.output
    assert SIDECAR_PASSWORD not in process.output


@contextmanager
def keeping(slot: Slot, lease_seconds: int = 60, **changes: str) -> Iterator[Sidecar]:
    """A sidecar that has renewed on every node."""
    with started(slot, lease_seconds, **changes) as process:
        for node in slot.nodes:
            await_renewal(slot, node, below_ms=lease_seconds * 1000)
        process.wait_for(HELD)
        yield process


def await_renewal(slot: Slot, node: RedisNode, below_ms: int) -> None:
    """From the ten minutes of the fixture down to the sidecar's own lease."""
    wait_for(lambda: 0 < slot.lease_ms(node) <= below_ms, f"a renewal at {node.address}")


def await_longer(slot: Slot, nodes: Sequence[RedisNode]) -> None:
    """Wait until the lease's rest has gone up on each of `nodes`."""
    rests = [slot.lease_ms(node) for node in nodes]
    risen: set[int] = set()

    def all_risen() -> bool:
        for number, node in enumerate(nodes):
            before, rests[number] = rests[number], slot.lease_ms(node)
            if rests[number] > before:
                risen.add(number)
        return len(risen) == len(nodes)

    wait_for(all_risen, "one more renewal")


def others(nodes: list[RedisNode], without: int) -> list[RedisNode]:
    return [node for number, node in enumerate(nodes) if number != without]


def finished(env: Mapping[str, str], command: Sequence[str] = CHECK) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        with_interpreter(command),
        env={"PATH": os.environ["PATH"], **env},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )


# Renewing


def test_the_first_renewal_comes_at_once_and_claims_the_reservation(slot, nodes):
    """A lease of an hour would otherwise be renewed after twenty minutes."""
    with keeping(slot, lease_seconds=300) as process:
        wait_for(lambda: not any(slot.reserved(nodes)), "the reservation's end on every node")
        record = process.wait_for(HELD)
        assert ("info", "batch/reports-db", 1) == (record["level"], record["semaphore"], record["slot"])
        assert 299 <= record["lease_lasts_seconds"] <= 300


def test_a_lease_of_five_seconds_outlives_two_expirations(slot, nodes):
    with keeping(slot, lease_seconds=5) as process:
        for _ in range(7):
            await_longer(slot, nodes[:1])
        assert [True, True, True] == slot.leased(nodes)
        assert [1, 1, 1] == [node.calls("unlink") for node in nodes], "a reservation is removed once"
        assert 1 == len(process.lines), process.output


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.parametrize("down", range(3))
def test_one_node_down_does_not_stop_renewals(slot, nodes, fault, down):
    with keeping(slot, lease_seconds=5) as process:
        getattr(nodes[down], fault)()
        await_longer(slot, others(nodes, down))
        await_longer(slot, others(nodes, down))
        assert not process.said(NO_MAJORITY)


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_sidecar_starts_with_one_node_down(slot, nodes, fault):
    getattr(nodes[0], fault)()
    with started(slot) as process:
        process.wait_for(HELD)
        for node in nodes[1:]:
            await_renewal(slot, node, below_ms=60_000)


def test_a_restarted_node_is_connected_anew(slot, nodes):
    with keeping(slot, lease_seconds=5):
        nodes[1].restart()
        await_longer(slot, [nodes[1]])


def test_a_node_that_was_paused_is_renewed_again(slot, nodes):
    with keeping(slot, lease_seconds=5):
        nodes[1].pause()
        await_longer(slot, others(nodes, 1))
        nodes[1].resume()
        await_longer(slot, [nodes[1]])


@pytest.mark.parametrize(("fault", "repair"), [("kill", "start"), ("pause", "resume")])
def test_a_lease_survives_all_nodes_being_down_for_less_than_a_lease(slot, nodes, fault, repair):
    with keeping(slot, lease_seconds=10) as process:
        for node in nodes:
            getattr(node, fault)()
        warning = process.wait_for(NO_MAJORITY)
        assert {str(node.address) for node in nodes} == set(warning["failed"])
        assert all(warning["failed"].values())
        assert 0 < warning["lease_lasts_seconds"] < 10
        for node in nodes:
            getattr(node, repair)()
        process.wait_for("renewed again")
        await_longer(slot, nodes)
        assert not process.said(LOST)


def test_a_lease_that_could_not_be_renewed_is_told_to_have_ended_and_then_to_be_lost(slot, nodes):
    with keeping(slot, lease_seconds=5) as process:
        for node in nodes:
            node.pause()
        ended = process.wait_for("the lease has ended without being renewed")
        assert ended["lease_lasts_seconds"] <= 0
        for node in nodes:
            node.resume()
        process.wait_for(LOST)
        assert 1 == len(process.said("has ended"))


def test_a_node_is_found_by_its_name(slot, nodes):
    names = ",".join(f"localhost:{node.address.port}" for node in nodes)
    with keeping(slot, REDIS_ADDRESSES=names) as process:
        assert 0 == process.terminate()


def test_a_variant_is_part_of_every_key(slot, nodes):
    """The users of this test's nodes may touch no key with a prefix, so nothing may be renewed."""
    with started(slot, VARIANT="blue") as process:
        failed = process.wait_for(NO_MAJORITY)["failed"]
        assert all("NOPERM" in why for why in failed.values())
        assert all(slot.lease_ms(node) > 60_000 for node in nodes)


def test_a_lookup_that_hangs_delays_no_other_node_and_is_made_up_for_later(slot, nodes, monkeypatch):
    """Of what was asked meanwhile only the newest is worth sending."""
    found = threading.Event()

    def hang(host: bytes, *arguments: Any) -> list[Any]:
        if host == b"hangs.invalid":
            assert found.wait(20)
        return getaddrinfo(b"127.0.0.1", *arguments)

    monkeypatch.setattr("sidecar.nodes.getaddrinfo", hang)
    listed = addresses(nodes[:2]) + f",hangs.invalid:{nodes[2].address.port}"
    keeper = Keeper(Settings.from_env(slot.env(REDIS_ADDRESSES=listed)))
    assert [Renewal.KEPT] * 4 == [keeper.renew_once() for _ in range(4)]
    assert 0 == nodes[2].calls("pexpire")
    found.set()
    nodes[0].kill()
    assert Renewal.KEPT is keeper.renew_once()
    # The first was under way, the last one counts; one to spare, should the thread catch up in between.
    assert nodes[2].calls("pexpire") in (2, 3)


def test_a_name_is_tried_with_all_its_addresses(slot, nodes, monkeypatch):
    """Nobody listens on the first one."""

    def both(host: bytes, *arguments: Any) -> list[Any]:
        return [*getaddrinfo(b"127.0.0.2", *arguments), *getaddrinfo(b"127.0.0.1", *arguments)]

    monkeypatch.setattr("sidecar.nodes.getaddrinfo", both)
    assert Renewal.KEPT is Keeper(Settings.from_env(slot.env())).renew_once()


def test_a_reply_that_came_too_late_is_not_taken_for_the_next(slot, nodes):
    answers: SimpleQueue[Answer | None] = SimpleQueue()
    node = Node(0, nodes[0].address, (SIDECAR_USER, SIDECAR_PASSWORD), 0.5, answers)
    renew, remove_nothing = ("PEXPIRE", f"lease:{slot.token}", 60_000), ("UNLINK", "lease:nobody")
    node.ask(Question(1, [renew]))
    assert Answer(1, 0, [1]) == answers.get(timeout=10)
    nodes[0].pause()
    node.ask(Question(2, [renew]))
    assert Answer(2, 0, [], "no whole reply within 0.5 s") == answers.get(timeout=10)
    nodes[0].resume()
    node.ask(Question(3, [remove_nothing]))
    assert Answer(3, 0, [0]) == answers.get(timeout=10)


# Losing


def test_a_lost_lease_is_told_once_released_and_never_created(slot, nodes):
    with keeping(slot, lease_seconds=5) as process:
        slot.delete(nodes[:2])
        error = process.wait_for(LOST)
        assert "error" == error["level"]
        assert "delete this pod" in error["message"]
        wait_for(lambda: slot.lease_ms(nodes[2]) < 0, "the release of what was left")
        asked = nodes[2].calls("pexpire")
        wait_for(lambda: nodes[2].calls("pexpire") >= asked + 2, "two more rounds")
        assert [False, False, False] == slot.leased(nodes)
        assert 1 == len(process.said(LOST))
        assert process.running


def test_a_lease_granted_anew_is_kept_again(slot, nodes):
    with keeping(slot, lease_seconds=5) as process:
        slot.delete(nodes[:2])
        process.wait_for(LOST)
        wait_for(lambda: slot.lease_ms(nodes[2]) < 0, "the release of what was left")
        slot.grant(nodes, lease_ms=60_000)
        process.wait_for("granted anew")
        wait_for(lambda: not any(slot.reserved(nodes)), "the new reservation's end")
        await_longer(slot, nodes)


def test_one_node_that_lost_its_data_does_not_lose_the_slot(slot, nodes):
    with keeping(slot, lease_seconds=5) as process:
        nodes[0].restart(empty=True)
        await_longer(slot, nodes[1:])
        await_longer(slot, nodes[1:])
        assert not process.said(LOST)
        assert [False, True, True] == slot.leased(nodes)


# Ending


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_slot_back_and_no_other(slot, nodes, signum):
    other = Slot(nodes)
    other.grant(nodes)
    with keeping(slot) as process:
        slot.grant(nodes)  # with a reservation once more, as a repair might bring it back
        process.send(signum)
        assert 0 == process.ended()
        assert [False, False, False] == slot.leased(nodes)
        assert [False, False, False] == slot.reserved(nodes)
        assert [True, True, True] == other.leased(nodes)
        assert [True, True, True] == other.reserved(nodes)
        assert 1 == len(process.said("the slot was given back"))


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.parametrize("down", range(3))
def test_the_slot_is_given_back_with_one_node_down(slot, nodes, down, fault):
    with keeping(slot) as process:
        getattr(nodes[down], fault)()
        assert 0 == process.terminate()
        assert [False, False] == slot.leased(others(nodes, down))
        assert [str(nodes[down].address)] == list(process.said("the slot was given back")[0]["failed"])


def test_who_has_lost_its_slot_does_not_say_that_it_gave_one_back_though_a_node_is_down(slot, nodes):
    with keeping(slot) as process:
        nodes[0].kill()
        slot.delete(nodes[1:])
        assert 0 == process.terminate()
        assert [str(nodes[0].address)] == list(process.said("there was no lease left to give back")[0]["failed"])
        assert not process.said("the slot was given back")


def test_the_slot_is_given_back_at_nodes_that_were_restarted_since_the_last_renewal(slot, nodes):
    """Every connection is stale; each is made anew within the release."""
    with keeping(slot) as process:
        for node in nodes:
            node.restart()
        assert 0 == process.terminate()
        assert [False, False, False] == slot.leased(nodes)


def test_a_release_is_tried_at_a_node_that_was_never_reached(slot, nodes):
    nodes[0].kill()
    with started(slot) as process:
        process.wait_for(HELD)
        nodes[0].start()
        assert slot.lease_ms(nodes[0]) > 60_000
        assert 0 == process.terminate()
        assert [False, False, False] == slot.leased(nodes)


@pytest.mark.parametrize("mode", ["native", "container"])
def test_a_sidecar_ends_though_all_nodes_hang_and_signals_repeat(slot, nodes, mode):
    with keeping(slot, SIDECAR_MODE=mode) as process:
        for node in nodes:
            node.pause()
        for signum in (signal.SIGINT, signal.SIGTERM):
            process.send(signum)

        def ended_by_one_more() -> bool:
            process.send(signal.SIGTERM)
            return not process.running

        wait_for(ended_by_one_more, "its end")
        assert 0 == process.ended()
        assert 1 == len(process.said("free"))


def test_a_signal_interrupts_a_round_that_waits_for_nodes(slot, nodes):
    """It would go on for hours: nodes are waited for for the longer of two times, in place of the shorter."""
    program = "import sys; from sidecar import __main__, keeper; keeper.min = max; sys.exit(__main__.main([]))"
    for node in nodes:
        node.pause()
    with sidecar(["python", "-c", program], slot.env(lease_seconds=86_400)) as process:
        wait_for(lambda: all(established(node.address.port) for node in nodes), "the first round")
        assert 0 == process.terminate()


def test_a_plain_container_renews_once_more_and_leaves_the_lease(slot, nodes):
    """Its SIGTERM comes together with the app's, which may run on."""
    with keeping(slot, SIDECAR_MODE="container") as process:
        for node in nodes:
            slot.shorten(node, 30_000)
        assert 0 == process.terminate()
        assert all(slot.lease_ms(node) > 30_000 for node in nodes)
        assert not process.said("given back")


def test_the_first_process_of_a_container_gets_its_signals(slot, nodes):
    """The kernel drops a signal for process 1 unless it is handled: pid_namespaces(7)."""
    command = ["unshare", "--pid", "--fork", "--kill-child", *with_interpreter(RUN)]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed (Debian: apt-get install util-linux)")
    if subprocess.run(["unshare", "--pid", "--fork", "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("this machine lets nobody make a PID namespace")
    with sidecar(command, slot.env()) as process:
        process.wait_for(HELD)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert 0 == process.ended()
        assert [False, False, False] == slot.leased(nodes)


# Starting


def test_a_check_passes_when_a_majority_renews(slot, nodes):
    nodes[0].kill()
    assert (0, "") == outcome(finished(slot.env()))
    assert all(0 < slot.lease_ms(node) <= 60_000 for node in nodes[1:])


def test_a_check_fails_without_a_lease_and_creates_none(slot, nodes):
    slot.delete(nodes[:2])
    status, said = outcome(finished(slot.env()))
    assert (1, "sidecar: a majority of nodes has no lease of this pod\n") == (status, said)
    assert [False, False, True] == slot.leased(nodes)


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_check_fails_without_a_majority_and_says_why(slot, nodes, fault):
    for node in nodes[:2]:
        getattr(node, fault)()
    status, said = outcome(finished(slot.env()))
    assert 1 == status
    assert 1 == said.count("\n")
    assert all(str(node.address) in said for node in nodes[:2])
    assert str(nodes[2].address) not in said


def test_a_check_names_a_wrong_password_without_showing_it(slot):
    status, said = outcome(finished(slot.env(REDIS_PASSWORD="not-the-password")))
    assert 1 == status
    assert "WRONGPASS" in said
    assert "not-the-password" not in said


@pytest.mark.parametrize("command", [RUN, CHECK])
def test_wrong_settings_are_told_on_one_line(slot, command):
    status, said = outcome(finished(slot.env(EXPIRATION_SECONDS="4"), command))
    assert 2 == status
    assert "sidecar: EXPIRATION_SECONDS: '4' is not a lease; write whole seconds from 5 to 86400\n" == said


def test_unknown_arguments_are_answered_by_the_usage(slot):
    assert (2, "usage: python -m sidecar [check]\n") == outcome(finished(slot.env(), [*RUN, "help"]))


def outcome(process: "subprocess.CompletedProcess[str]") -> tuple[int, str]:
    return process.returncode, process.stderr


# Strange peers


def say_nothing(_: socket.socket, closing_time: threading.Event) -> None:
    closing_time.wait()


def hang_up(connection: socket.socket, closing_time: threading.Event) -> None:
    connection.recv(4096)


def drip(connection: socket.socket, closing_time: threading.Event) -> None:
    """A reply without end, slow but steady."""
    connection.sendall(b"$1000000\r\n")
    while not closing_time.wait(0.02):
        connection.sendall(b"x")


def talk_nonsense(connection: socket.socket, closing_time: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    closing_time.wait()


def repeat_the_token(connection: socket.socket, closing_time: threading.Event) -> None:
    """As Redis does for a command it does not know."""
    while received := connection.recv(4096):
        text = received.replace(b"\r\n", b" ")
        connection.sendall(b"-ERR unknown command 'X', with args beginning with: " + text + b"\r\n")


PEERS = [say_nothing, hang_up, drip, talk_nonsense, repeat_the_token]


@contextmanager
def peer(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that is no node; gives its address."""
    closing_time = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behave(connection, closing_time)

    def accept() -> None:
        with suppress(OSError):
            while not closing_time.is_set():
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        closing_time.set()
        listening.shutdown(socket.SHUT_RDWR)


@contextmanager
def deaf() -> Iterator[str]:
    """A listener whose queue is full: to connect to it hangs."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("strange", [*(partial(peer, each) for each in PEERS), deaf], ids=lambda _: "")
def test_a_strange_peer_in_place_of_a_node_delays_nobody(slot, nodes, strange, place):
    with strange() as address:
        two = others(nodes, place)
        mixed = [str(node.address) for node in two]
        mixed.insert(place, address)
        with started(slot, lease_seconds=5, REDIS_ADDRESSES=",".join(mixed)) as process:
            process.wait_for(HELD)
            for node in two:
                await_renewal(slot, node, below_ms=5_000)
            await_longer(slot, two)
            assert not process.said(NO_MAJORITY)
            assert 0 == process.terminate()
            assert [False, False] == slot.leased(two)


@pytest.mark.parametrize(
    ("strange", "why"),
    [
        (partial(peer, say_nothing), "no whole reply within 1 s"),
        (partial(peer, hang_up), "the node closed the connection"),
        (partial(peer, drip), "no whole reply within 1 s"),
        (partial(peer, talk_nonsense), "Protocol error"),
        (partial(peer, repeat_the_token), "ERR unknown command"),
        (deaf, "timed out"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_wrong_with_a_peer_is_told(slot, strange, why):
    """The other two nodes refuse connections, so there is no majority and the reasons are told."""
    with strange() as address:
        dead = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        env = slot.env(lease_seconds=5, REDIS_ADDRESSES=",".join([address, *dead]))
        status, said = outcome(finished(env))
    assert 1 == status
    assert f"{address}: {why}" in said
    assert f"{dead[0]}: Connection refused" in said
    assert slot.token not in said


# Costing


def test_a_sidecar_stays_within_twelve_megabytes(slot):
    """With the packages but without the hooks of an editable install, which cost 1 MB: as in the image."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    with sidecar(["python", "-S", "-m", "sidecar"], {**slot.env(), "PYTHONPATH": packages}) as process:
        process.wait_for(HELD)
        assert process.resident_kilobytes <= 12_000
