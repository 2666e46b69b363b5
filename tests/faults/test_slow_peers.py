"""Crowds of peers that are silent, slow or do not go: reviews are answered meanwhile, and in the end they are gone."""

import json
import os
import signal
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from app.server import LARGEST_BODY_BYTES, PARKED_BYTES, PARKED_CONNECTIONS, REQUEST_SECONDS
from tests.harness.nodes import RedisNode, addresses, failing
from tests.harness.waiting import wait_for
from tests.harness.webhook import Webhook, environ_for, pod_asking, review_of, running_webhook
from tests.process.test_server import client_hello, established, kept, peers

API_SERVER_SECONDS = 10
HEAD = b"POST /mutate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@contextmanager
def unimpressed_webhook(nodes: list[RedisNode], workers: int = 2) -> Iterator[Webhook]:
    """One whose workers are the same afterwards, and whose log tells of no error of its own."""
    with running_webhook(environ_for(addresses(nodes)), workers=workers) as webhook:
        first = wait_for(lambda: len(webhook.workers()) == workers and webhook.workers(), "the workers")
        yield webhook
        assert first == webhook.workers()
        assert not [line for line in webhook.log_lines() if "exception" in line or line["level"] == "error"]


@pytest.fixture(scope="module")
def webhook(nodes: list[RedisNode]) -> Iterator[Webhook]:
    with unimpressed_webhook(nodes) as running:
        yield running


@pytest.fixture
def lone_webhook(nodes: list[RedisNode]) -> Iterator[Webhook]:
    """With a single worker, so that it is known who parks a connection."""
    with unimpressed_webhook(nodes, workers=1) as running:
        yield running


@contextmanager
def tls_peers(webhook: Webhook, count: int, first_bytes: bytes = b"") -> Iterator[list[ssl.SSLSocket]]:
    """The same as `peers`, over TLS."""
    with peers(webhook, count) as plain, ExitStack() as all_of_them:
        # An end that TLS does not tell of is an error.
        wrap = partial(webhook.tls.wrap_socket, server_hostname="localhost", suppress_ragged_eofs=False)
        wrapped = [wrap(peer) for peer in plain]
        for peer in wrapped:
            all_of_them.enter_context(peer)
            with suppress(OSError):  # it may have been cut off by now
                peer.sendall(first_bytes)
        yield wrapped


def assert_answered(webhook: Webhook) -> None:
    """A review, within the time that the API server waits."""
    asked = time.monotonic()
    assert webhook.ask(pod_asking(str(uuid.uuid4()))).allowed
    assert time.monotonic() - asked < API_SERVER_SECONDS


def read_to_the_end(peer: socket.socket) -> bytes:
    """What it is sent, until the other side closes."""
    said = b""
    with suppress(ConnectionError, ssl.SSLError):
        while data := peer.recv(65536):
            said += data
    return said


def is_cut_off(peer: socket.socket, byte: bytes = b"x") -> bool:
    """Nobody takes this byte any more."""
    try:
        peer.sendall(byte)
    except OSError:
        return True
    return False


def drip(dripping: list[ssl.SSLSocket], byte: bytes) -> None:
    """A byte now and then, each of which would begin a timeout of single reads anew, until all are cut off."""
    while dripping:
        dripping = [peer for peer in dripping if not is_cut_off(peer, byte)]
        time.sleep(0.02)


def test_silent_peers_and_half_done_handshakes(webhook: Webhook):
    with peers(webhook, 200) as silent, peers(webhook, 50, client_hello(webhook)) as half_done:
        for _ in range(10):
            assert_answered(webhook)

        for peer in silent + half_done:
            read_to_the_end(peer)
    assert "too slow with its handshake" in webhook.log()


@pytest.mark.parametrize(
    ("crowd", "first_bytes", "byte"),
    [
        (50, HEAD + b"X: ", b"x"),
        (50, HEAD + b"Content-Length: 9999\r\n\r\n", b" "),
        # Where these end, gunicorn finds out, which waits for each of them for a moment.
        (20, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (20, HEAD + b"Expect: 100-continue\r\nContent-Length: 9999\r\n\r\n", b" "),
        (20, HEAD + b"Content-Length: %d\r\n\r\n" % (LARGEST_BODY_BYTES + 1), b" "),
    ],
    ids=["head", "body", "chunks", "expect", "too long"],
)
def test_peers_that_drip(lone_webhook: Webhook, crowd, first_bytes, byte):
    with tls_peers(lone_webhook, crowd, first_bytes) as dripping, ThreadPoolExecutor(1) as elsewhere:
        dripped = elsewhere.submit(drip, dripping, byte)
        assert_answered(lone_webhook)
        while not dripped.done():
            assert_answered(lone_webhook)

        dripped.result()


def test_peers_that_send_a_head_in_very_small_records(lone_webhook: Webhook):
    """All of it at once: what costs the worker most for what they pay."""
    with peers(lone_webhook, 6) as sending, ThreadPoolExecutor(6) as elsewhere:
        heads = [head_in_small_records(lone_webhook, peer, 60_000) for peer in sending]
        sent = [elsewhere.submit(send_if_taken, peer, head) for peer, head in zip(sending, heads, strict=True)]
        assert_answered(lone_webhook)

        for each in sent:
            each.result()


def head_in_small_records(webhook: Webhook, peer: socket.socket, count: int) -> bytes:
    """The beginning of a request, a byte in each TLS record, after a handshake over the peer's connection."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = webhook.tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            peer.sendall(outgoing.read())
            incoming.write(peer.recv(65536))
    tls.write(b"GET /healthz HTTP/1.1\r\nX: ")
    for _ in range(count):
        tls.write(b"x")
    return outgoing.read()


def send_if_taken(peer: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # it may have been cut off by then
        peer.sendall(data)


def test_peers_that_are_answered_and_do_not_close(lone_webhook: Webhook):
    with tls_peers(lone_webhook, 50, HEALTH) as staying:
        assert_answered(lone_webhook)
        for peer in staying:
            assert b"\r\n\r\nok\n" in read_to_the_end(peer)
        assert_answered(lone_webhook)

        wait_for(lambda: all([is_cut_off(peer) for peer in staying]), "the end of all connections")


def test_an_answer_ends_with_tls_s_word_for_it(webhook: Webhook):
    """So nobody on the way can have cut it short."""
    with tls_peers(webhook, 1, HEALTH) as (peer,):
        while peer.recv(65536):
            pass


def test_a_request_is_served_that_is_there_as_soon_as_its_connection(webhook: Webhook):
    """A peer that is faster than the worker: one accepting turn sees the handshake's end and the request."""
    for _ in range(100):
        with tls_peers(webhook, 1, HEALTH) as (peer,):
            assert b"ok\n" in read_to_the_end(peer)


# Bounds --------------------------------------------------------------------------------------------------


def test_with_too_many_connections_the_oldest_is_cut_off(lone_webhook: Webhook):
    with peers(lone_webhook, PARKED_CONNECTIONS + 1, b"\x16") as crowd:
        wait_for(lambda: "to make room, in its handshake" in lone_webhook.log(), "one that is cut off")

        assert b"" == read_to_the_end(crowd[0])
        assert_answered(lone_webhook)
        assert len([line for line in lone_webhook.log().splitlines() if "to make room" in line]) < 10


def test_with_too_many_bytes_the_oldest_is_cut_off(lone_webhook: Webhook):
    """Each of them is a request that would be taken, but for its last byte."""
    crowd = PARKED_BYTES // LARGEST_BODY_BYTES + 1
    request = HEAD + b"Content-Length: %d\r\n\r\n" % LARGEST_BODY_BYTES + b" " * (LARGEST_BODY_BYTES - 1)

    with peers(lone_webhook, 1, b"\x16") as (small,), tls_peers(lone_webhook, crowd, request) as large:
        wait_for(lambda: "to make room, in its request" in lone_webhook.log(), "one that is cut off")

        assert_answered(lone_webhook)
        assert is_cut_off(large[0]) or is_cut_off(large[0])
        assert not is_cut_off(small)  # it would not have made room
        assert "to make room, in its handshake" not in lone_webhook.log()


def test_who_has_just_spoken_is_heard_before_it_makes_room(nodes: list[RedisNode], lone_webhook: Webhook):
    """The oldest of as many as there is room for asks while another one is served, which takes its time."""
    (worker,) = lone_webhook.workers()
    with ExitStack() as stack:
        (oldest,) = stack.enter_context(kept(lone_webhook))
        stack.enter_context(tls_peers(lone_webhook, PARKED_CONNECTIONS - 2))
        (slow,) = stack.enter_context(kept(lone_webhook))
        wait_for(lambda: parked(lone_webhook) == PARKED_CONNECTIONS, "all connections")
        stack.enter_context(failing(nodes, RedisNode.pause, RedisNode.resume))
        os.kill(worker, signal.SIGSTOP)
        try:
            slow.send("/mutate?timeout=10s", json.dumps(review_of(pod_asking("room"))).encode())
            stack.enter_context(peers(lone_webhook, 1, b"\x16"))
        finally:
            os.kill(worker, signal.SIGCONT)
        wait_for(lambda: any(established(node.address.port) for node in nodes), "a worker that waits for a node")
        oldest.send(method="GET")

        assert (200, "keep-alive", b"ok\n") == oldest.answer()


# Patience ------------------------------------------------------------------------------------------------


def test_who_has_sent_all_before_a_busy_worker_looks_again_is_answered(lone_webhook: Webhook):
    (worker,) = lone_webhook.workers()
    with tls_peers(lone_webhook, 2, HEALTH[:-1]) as (late, silent):
        wait_for(lambda: parked(lone_webhook) == 2, "two connections")
        os.kill(worker, signal.SIGSTOP)
        try:
            late.sendall(HEALTH[-1:])
            time.sleep(REQUEST_SECONDS)  # both are overdue
        finally:
            os.kill(worker, signal.SIGCONT)

        assert b"ok\n" in read_to_the_end(late)
        assert b"" == read_to_the_end(silent)


def parked(webhook: Webhook) -> int:
    """How many connections to it a worker has accepted, and nobody has closed."""
    held = {str(file.readlink()) for pid in webhook.workers() for file in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port, established = f":{webhook.port:04X}", "01"
    return sum(row[1].endswith(port) and row[3] == established and f"socket:[{row[9]}]" in held for row in rows)


def test_time_stands_still_for_a_peer_while_the_worker_serves_another(nodes: list[RedisNode]):
    """Its handshake needs the worker again after its deadline, through no fault of its own."""
    environ = environ_for(addresses(nodes), ADMISSION_BUDGET_SECONDS=str(4 * (REQUEST_SECONDS + 1)))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with running_webhook(environ, workers=1) as webhook, peers(webhook, 1) as (peer,), ThreadPoolExecutor(1) as other:
        tls = webhook.tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        peer.sendall(outgoing.read(1))
        wait_for(lambda: parked(webhook) == 1, "the connection")
        for node in nodes:
            node.pause()
        try:
            asked = other.submit(webhook.ask, pod_asking("patience"))
            wait_for(lambda: any(established(node.address.port) for node in nodes), "a worker that waits for a node")
            peer.sendall(outgoing.read())
            assert 503 == asked.result().code
        finally:
            for node in nodes:
                node.resume()

        while True:
            try:
                incoming.write(peer.recv(65536))
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.sendall(outgoing.read())
        tls.write(HEALTH)
        peer.sendall(outgoing.read())
        incoming.write(read_to_the_end(peer))
        assert tls.read(65536).startswith(b"HTTP/1.1 200 OK")


def test_sigterm_lets_who_has_begun_a_request_end_it(nodes: list[RedisNode]):
    """The worker that has nothing to finish ends before, which shows that both have been told."""
    with running_webhook(environ_for(addresses(nodes))) as webhook, tls_peers(webhook, 1, HEALTH[:-1]) as (peer,):
        wait_for(lambda: len(webhook.workers()) == 2 and parked(webhook) == 1, "a connection")
        webhook.process.send_signal(signal.SIGTERM)
        wait_for(lambda: len(webhook.workers()) == 1, "the end of the other worker")

        peer.sendall(HEALTH[-1:])

        assert b"ok\n" in read_to_the_end(peer)
        assert 0 == webhook.process.wait(20)
