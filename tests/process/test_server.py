"""The real gunicorn against peers that are wrong, slow or silent, through rotation, signals and deaths."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import trustme
from cryptography import x509

from tests.harness.nodes import RedisNode, addresses
from tests.harness.waiting import free_port, wait_for
from tests.harness.webhook import ROOT, Webhook, environ_for, issue_certificate, pod_asking, review_of, running_webhook

JSON = {"Content-Type": "application/json"}


# What is no review ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{}", {}, 415, "Content-Type is ''"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "accepted is 'application/json'"),
        (b"", JSON, 400, "the body is not JSON"),
        (b"not json", JSON, 400, "the body is not JSON"),
        (b"\xff\xfe", JSON, 400, "the body is not JSON"),
        (b"[" * 100_000, JSON, 400, "the body is not JSON"),
        (b"[]", JSON, 400, "the body is [], accepted is an object"),
        (b"null", JSON, 400, "the body is missing"),
        (b"{}", JSON, 400, "apiVersion is missing, accepted is 'admission.k8s.io/v1'"),
        (b'{"apiVersion":"admission.k8s.io/v1beta1"}', JSON, 400, "apiVersion is 'admission.k8s.io/v1beta1'"),
        (b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}', JSON, 400, "request is missing"),
        (b" " * (7 * 1024 * 1024 + 1), JSON, 413, "exceeds"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else None,
)
def test_what_is_no_review_is_refused_with_the_reason(webhook: Webhook, body, headers, status, said):
    answered, text = webhook.request("POST", "/mutate", body, headers)

    assert (status, True) == (answered, said in json.loads(text)["error"]), text


@pytest.mark.parametrize("wrong", [None, 1, True, "text", [], ["text"], [[]], {}, {"a": 1}], ids=repr)
@pytest.mark.parametrize(
    "path",
    [
        ("request",),
        ("request", "uid"),
        ("request", "kind"),
        ("request", "kind", "kind"),
        ("request", "operation"),
        ("request", "subResource"),
        ("request", "namespace"),
        ("request", "dryRun"),
        ("request", "object"),
        ("request", "object", "metadata"),
        ("request", "object", "metadata", "annotations"),
        ("request", "object", "metadata", "labels"),
        ("request", "object", "metadata", "ownerReferences"),
        ("request", "object", "metadata", "generateName"),
        ("request", "object", "spec"),
        ("request", "object", "spec", "containers"),
        ("request", "object", "spec", "initContainers"),
    ],
    ids=".".join,
)
def test_a_field_of_any_wrong_type_is_answered_and_never_with_a_500(webhook: Webhook, path, wrong):
    review = review_of(pod_asking("wrong-types", length=10_000))
    at = review
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = wrong

    status, answer = webhook.post(review)

    assert status in (200, 400)
    assert (answer["response"]["uid"] == review["request"]["uid"]) if status == 200 else path[-1] in answer["error"]


def test_a_review_of_seven_mebibytes_is_taken(webhook: Webhook):
    body = json.dumps(review_of({"metadata": {}, "spec": {"containers": []}})).encode()

    assert 200 == webhook.request("POST", "/mutate", body.ljust(7 * 1024 * 1024), JSON)[0]


def test_other_paths_and_methods_are_no_errors_of_the_server(webhook: Webhook):
    for path, expected in (("/", 404), ("/mutate", 405)):
        status, body = webhook.get(path)
        assert expected == status
        assert ["error"] == list(json.loads(body))
    assert (200, b"ok\n") == webhook.get("/healthz")


# Slow and silent peers -----------------------------------------------------------------------------------


class Peer:
    """A client that keeps its connection, as the API server does."""

    def __init__(self, webhook: Webhook) -> None:
        self._plain = socket.create_connection(("127.0.0.1", webhook.port), timeout=30)
        self.socket = webhook.tls.wrap_socket(self._plain, server_hostname="localhost")
        self.socket.settimeout(30)

    def send(self, path: str = "/healthz", body: bytes = b"", method: str = "POST") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def answer(self) -> tuple[int, str, bytes]:
        """The status, the header `Connection` and the body of the next answer; ConnectionError if there is none."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        body = response.read()
        return response.status, response.headers["Connection"], body

    def get(self) -> tuple[int, str, bytes]:
        self.send(method="GET")
        return self.answer()

    def review(self, pod: dict[str, Any]) -> tuple[int, str, bool]:
        self.send("/mutate?timeout=10s", json.dumps(review_of(pod)).encode())
        status, connection, body = self.answer()
        return status, connection, json.loads(body)["response"]["allowed"]

    def is_closed(self) -> bool:
        """Whether the server ends the connection without a further word; waits for it."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.socket.close()


@contextmanager
def peers(webhook: Webhook, count: int, first_bytes: bytes = b"") -> Iterator[list[socket.socket]]:
    """TCP connections that have sent this much, and say no more."""
    connected = []
    try:
        for _ in range(count):
            peer = socket.create_connection(("127.0.0.1", webhook.port), timeout=30)
            connected.append(peer)
            peer.sendall(first_bytes)
        yield connected
    finally:
        for peer in connected:
            peer.close()


def client_hello(webhook: Webhook) -> bytes:
    """The first message of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        webhook.tls.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("first_bytes", ["nothing", "a byte", "a ClientHello"])
def test_silent_peers_do_not_keep_the_workers(webhook: Webhook, key, first_bytes):
    """Four of them, two workers: without a deadline of its own for a peer nobody else would be served."""
    sent = {"nothing": b"", "a byte": b"\x16", "a ClientHello": client_hello(webhook)}[first_bytes]

    with peers(webhook, 4, sent):
        answer = webhook.ask(pod_asking(key))

    assert answer.allowed
    assert "Traceback" not in webhook.log()


def drip_until_cut_off(peer: ssl.SSLSocket, head: bytes, byte: bytes) -> None:
    """Send a head, then a byte at a time, each of which would begin a timeout of single reads anew."""
    peer.sendall(head)
    try:
        for _ in range(1000):
            peer.sendall(byte)
            time.sleep(0.02)
    except OSError:
        return
    raise AssertionError("1000 bytes, and still not cut off")


def test_a_peer_that_drips_its_head_is_cut_off(webhook: Webhook):
    with closing(Peer(webhook)) as peer:
        drip_until_cut_off(peer.socket, b"POST /mutate HTTP/1.1\r\nHost: localhost\r\nX: ", b"x")

    assert "too slow with its request" in webhook.log()


def test_a_peer_that_drips_its_body_is_cut_off_and_is_no_error_of_the_server(webhook: Webhook):
    head = b"POST /mutate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"

    with closing(Peer(webhook)) as peer:
        drip_until_cut_off(peer.socket, head, b" ")

    assert "Traceback" not in webhook.log()


def test_plain_http_on_the_tls_port_is_refused_and_no_error_of_the_server(webhook: Webhook, key):
    with peers(webhook, 1, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") as (peer,), suppress(ConnectionResetError):
        assert b"200" not in peer.recv(100)

    assert webhook.ask(pod_asking(key)).allowed
    assert "Traceback" not in webhook.log()


def test_tls_below_1_2_is_refused(webhook: Webhook):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.set_ciphers("ALL:@SECLEVEL=0")
    webhook.authority.configure_trust(old)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", webhook.port), timeout=30) as plain,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        old.wrap_socket(plain, server_hostname="localhost")


# Certificates --------------------------------------------------------------------------------------------


def serial_served(webhook: Webhook) -> int:
    with (
        socket.create_connection(("127.0.0.1", webhook.port), timeout=30) as plain,
        webhook.tls.wrap_socket(plain, server_hostname="localhost") as peer,
    ):
        certificate = peer.getpeercert(binary_form=True)
        assert certificate
        return x509.load_der_x509_certificate(certificate).serial_number


def serial_in_file(webhook: Webhook) -> int:
    return x509.load_pem_x509_certificate((webhook.folder / "tls.crt").read_bytes()).serial_number


def test_a_rotated_certificate_is_served_while_reviews_go_on(nodes: list[RedisNode], key):
    with running_webhook(environ_for(addresses(nodes))) as webhook:
        stop = threading.Event()

        def ask_on() -> int:
            answered = 0
            while not stop.is_set():
                assert webhook.ask(pod_asking(key, length=10_000)).allowed
                answered += 1
            return answered

        with ThreadPoolExecutor(1) as client:
            answered = client.submit(ask_on)
            for _ in range(3):
                before = serial_served(webhook)
                issue_certificate(webhook.folder, webhook.authority)
                assert before != serial_in_file(webhook)
                wait_for(lambda: serial_served(webhook) == serial_in_file(webhook), "the new certificate")
            stop.set()
            assert answered.result() > 0


def test_a_broken_certificate_is_told_of_and_the_last_good_one_goes_on_serving(nodes: list[RedisNode], key):
    with running_webhook(environ_for(addresses(nodes))) as webhook:
        good = serial_served(webhook)
        (webhook.folder / "tls.crt").write_text("broken")

        assert good == serial_served(webhook)
        assert webhook.ask(pod_asking(key)).allowed
        assert "tls.key are not PEM, or do not belong together" in webhook.log()
        assert "the last certificate goes on serving" in webhook.log()


def test_a_reload_with_a_broken_certificate_goes_on_serving(nodes: list[RedisNode], key):
    with running_webhook(environ_for(addresses(nodes))) as webhook:
        first = wait_for(lambda: set(webhook.workers()), "workers")
        (webhook.folder / "tls.crt").unlink()
        webhook.process.send_signal(signal.SIGHUP)

        wait_for(lambda: webhook.workers() and not first & set(webhook.workers()), "new workers")
        assert webhook.ask(pod_asking(key)).allowed


def test_a_certificate_in_a_mounted_secret_is_followed_through_its_link(tmp_path, nodes: list[RedisNode]):
    """The kubelet swaps one link for a folder; names, and with them the paths that are opened, stay."""
    authority = trustme.CA()
    for generation in ("1", "2"):
        (tmp_path / generation).mkdir()
        issue_certificate(tmp_path / generation, authority)
    (tmp_path / "..data").symlink_to("1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    with running_webhook(environ_for(addresses(nodes)), cert_dir=tmp_path, authority=authority) as webhook:
        before = serial_served(webhook)
        (tmp_path / "..fresh").symlink_to("2")
        (tmp_path / "..fresh").rename(tmp_path / "..data")

        wait_for(lambda: serial_served(webhook) != before, "the second generation")


# Kept connections ----------------------------------------------------------------------------------------


@contextmanager
def kept(webhook: Webhook, connections: int = 1) -> Iterator[list[Peer]]:
    """Peers that have been answered once, and may ask again."""
    with ExitStack() as stack:
        made = [stack.enter_context(closing(Peer(webhook))) for _ in range(connections)]
        assert [(200, "keep-alive", b"ok\n")] * connections == [peer.get() for peer in made]
        yield made


def test_a_connection_serves_one_review_after_the_other(webhook: Webhook, key):
    with kept(webhook) as (peer,):
        answers = [peer.review(pod_asking(key, length=3)) for _ in range(5)]

    assert [(200, "keep-alive", allowed) for allowed in (True, True, True, False, False)] == answers


def test_an_answer_that_says_what_is_wrong_keeps_the_connection(webhook: Webhook, key):
    with kept(webhook) as (peer,):
        peer.send("/mutate", b"{")
        assert (400, "keep-alive") == peer.answer()[:2]
        peer.send("/nowhere", b"a body that nobody reads " * 1000)
        assert (404, "keep-alive") == peer.answer()[:2]

        assert (200, "keep-alive", True) == peer.review(pod_asking(key))


def test_kept_connections_do_not_keep_the_workers(webhook: Webhook, key):
    with kept(webhook, 50) as many:
        assert webhook.ask(pod_asking(key)).allowed
        assert [(200, "keep-alive", b"ok\n")] * 50 == [peer.get() for peer in many]


def test_a_new_connection_is_served_while_kept_ones_keep_the_worker_busy(nodes: list[RedisNode], key):
    """One worker, and eight peers that ask again as soon as they are answered."""
    with (
        running_webhook(environ_for(addresses(nodes)), workers=1) as webhook,
        kept(webhook, 8) as busy,
        ThreadPoolExecutor(8) as clients,
    ):
        done, answered = Event(), Counter[Peer]()

        def hurry(peer: Peer) -> None:
            while not done.is_set():
                assert (200, "keep-alive", True) == peer.review(pod_asking(f"{key}-busy", length=10_000))
                answered[peer] += 1

        hurrying = [clients.submit(hurry, peer) for peer in busy]
        try:
            wait_for(lambda: all(answered[peer] > 10 for peer in busy), "all of them to be busy")
            assert webhook.ask(pod_asking(key)).allowed
        finally:
            done.set()
        for each in hurrying:
            each.result()


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2, id="the next request at once"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", id="close"),
        pytest.param(b"GET /healthz HTTP/1.0\r\n\r\n", id="HTTP/1.0"),
        pytest.param(
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="chunks"
        ),
        pytest.param(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n", id="too long"),
    ],
)
def test_a_connection_is_closed_where_it_is_not_certain_that_the_next_request_is_one(webhook: Webhook, requests):
    with closing(Peer(webhook)) as peer:
        peer.socket.sendall(requests)

        assert "close" == peer.answer()[1]
        assert peer.is_closed()


def test_a_peer_that_drips_its_second_request_is_cut_off(webhook: Webhook):
    with kept(webhook) as (peer,):
        drip_until_cut_off(peer.socket, b"GET /healthz HTTP/1.1\r\nX: ", b"x")


def test_a_connection_is_kept_that_was_opened_before_it_was_needed(nodes: list[RedisNode]):
    """Longer than a request may take: one that begins later is cut off meanwhile, by the same worker."""
    with (
        running_webhook(environ_for(addresses(nodes)), workers=1) as webhook,
        closing(Peer(webhook)) as early,
        closing(Peer(webhook)) as late,
    ):
        drip_until_cut_off(late.socket, b"GET /healthz HTTP/1.1\r\nX: ", b"x")

        assert (200, "keep-alive", b"ok\n") == early.get()


def test_an_old_connection_is_given_up_by_an_answer_and_an_idle_one_without_a_word(nodes: list[RedisNode]):
    environ = environ_for(addresses(nodes))
    with running_webhook(environ, app="tests.process.short_lived:app") as webhook, kept(webhook, 2) as (busy, idle):
        wait_for(lambda: busy.get() == (200, "close", b"ok\n"), "the last answer")

        assert busy.is_closed()
        assert idle.is_closed()
        assert "cut off" not in webhook.log()


def test_sigterm_lets_a_kept_connection_have_a_last_answer_and_closes_one_that_asks_nothing(
    nodes: list[RedisNode], key
):
    with running_webhook(environ_for(addresses(nodes)), workers=1) as webhook, kept(webhook, 2) as (asking, silent):
        webhook.process.send_signal(signal.SIGTERM)
        answer = (200, "keep-alive", True)
        while answer == (200, "keep-alive", True):  # the worker has not heard of it yet
            answer = asking.review(pod_asking(key, length=10_000))

        assert (200, "close", True) == answer
        assert asking.is_closed()
        assert silent.is_closed()
        assert 0 == webhook.process.wait(20)


# Signals and deaths --------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced(nodes: list[RedisNode], key):
    with running_webhook(environ_for(addresses(nodes))) as webhook:
        wait_for(lambda: len(webhook.workers()) == 2, "two workers")
        first = webhook.workers()
        for worker in first:
            os.kill(worker, signal.SIGKILL)

        wait_for(lambda: len(set(webhook.workers()) - set(first)) == 2, "two new workers")
        assert webhook.ask(pod_asking(key)).allowed
        # A scrape that comes upon the file of a worker that is just starting fails: the next one is well.
        wait_for(lambda: "at_least_semaphore_verdicts_total" in webhook.metrics(), "the metrics")


def test_sigterm_lets_who_has_connected_have_an_answer(nodes: list[RedisNode], key):
    """One worker, which is stopped while five reviews have arrived: all five are answered, then it ends."""
    with running_webhook(environ_for(addresses(nodes)), workers=1) as webhook, ThreadPoolExecutor(5) as clients:
        wait_for(webhook.workers, "a worker")
        webhook.ask(pod_asking(key, length=100))
        (worker,) = webhook.workers()
        os.kill(worker, signal.SIGSTOP)
        answers = [clients.submit(webhook.ask, pod_asking(key, length=100)) for _ in range(5)]
        wait_for(lambda: established(webhook.port) >= 5, "five connections")
        webhook.process.send_signal(signal.SIGTERM)
        os.kill(worker, signal.SIGCONT)

        assert [True] * 5 == [answer.result().allowed for answer in answers]
        assert 0 == webhook.process.wait(20)


def established(port: int) -> int:
    """Connections to a port of ours on which something has been sent and not been read yet."""
    with open("/proc/net/tcp") as table:  # noqa: PTH123
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(int(row[1].split(":")[1], 16) == port and int(row[4].split(":")[1], 16) > 0 for row in rows)


def test_metrics_of_an_earlier_run_are_not_counted_again(tmp_path, nodes: list[RedisNode], key):
    environ = environ_for(addresses(nodes), PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "metrics"))
    for _ in range(2):
        with running_webhook(environ) as webhook:
            webhook.ask(pod_asking(key))
            assert 'at_least_semaphore_verdicts_total{reason="granted"} 1.0' in webhook.metrics()


def test_workers_count_together(webhook: Webhook, key):
    """However many workers there are, the page shows their sum."""

    before = webhook.verdicts()["granted"]
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda _: webhook.ask(pod_asking(key, length=100)), range(40)))

    assert before + 40 == webhook.verdicts()["granted"]


# Starting ------------------------------------------------------------------------------------------------


def start_in_vain(folder: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """gunicorn with a setting that it cannot start with: it ends with status 1, and leaves no temporary file."""
    environ = {
        "PATH": os.environ["PATH"],
        "CERT_DIR": str(folder),
        "BIND": f"127.0.0.1:{free_port()}",
        "TMPDIR": str(folder),
        **environ,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30
    )
    assert 1 == ended.returncode
    assert {"tls.crt", "tls.key"} == {file.name for file in folder.iterdir()}
    return ended


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("REDIS_ADDRESSES", "redis-0", "REDIS_ADDRESSES: 'redis-0' is not an address; write host:port"),
        ("REDIS_ADDRESSES", "a:1,b:2", "REDIS_ADDRESSES: 'a:1,b:2' has 2 addresses; give an odd number"),
        ("CERT_DIR", "/nowhere", "CERT_DIR: /nowhere/tls.crt is not there or cannot be read; mount the TLS Secret"),
        ("WEB_CONCURRENCY", "0", "WEB_CONCURRENCY: '0' is not accepted; write a number of workers from 1 to 1000"),
        ("SIDECAR_MODE", "daemon", "SIDECAR_MODE: 'daemon' is not a mode; write native, or container"),
        ("BIND", "9443", "BIND: '9443' is not where one can listen; write address:port"),
    ],
)
def test_gunicorn_does_not_start_with_a_wrong_setting_and_says_which(tmp_path, variable, value, said):
    issue_certificate(tmp_path, trustme.CA())

    ended = start_in_vain(tmp_path, **{variable: value})

    assert ended.stderr.startswith(f"cannot start: {said}"), ended.stderr
    assert "Traceback" not in ended.stderr


def test_gunicorn_does_not_start_on_a_taken_metrics_port_and_says_so(tmp_path):
    issue_certificate(tmp_path, trustme.CA())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = start_in_vain(tmp_path, METRICS_PORT=str(taken.getsockname()[1]))

    assert "cannot start: METRICS_PORT: cannot listen on 127.0.0.1" in ended.stderr


def test_the_systemd_unit_is_valid():
    """As far as systemd-analyze can tell, on a machine where the files it names are elsewhere."""
    try:
        verified = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(ROOT / "docs" / "at-least-semaphore-pod-hook.service")],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")

    complaints = [line for line in verified.stderr.splitlines() if "at-least-semaphore-pod-hook" in line]
    assert [] == [line for line in complaints if "is not executable: No such file or directory" not in line]
