"""What the server adds to gunicorn's sync worker: TLS that follows its files, and patience that costs nothing.

Knows sockets and certificates, nothing of admissions. A sync worker serves one request at a time, so a peer that is
silent, or slow, must not be able to keep it: its connection is parked until it has said all. So is one that has been
answered, as a TLS handshake costs more than an admission: what the peer asks next comes without one.
"""

import contextlib
import errno
import functools
import logging
import os
import re
import selectors
import socket
import ssl
import time
from pathlib import Path
from typing import Any, NamedTuple

from gunicorn.http import Request, get_parser
from gunicorn.http.errors import NoMoreData
from gunicorn.http.wsgi import create
from gunicorn.sock import ssl_wrap_socket
from gunicorn.workers.sync import SyncWorker

log = logging.getLogger(__name__)

# From being accepted to the last byte of the request. The API server sends all of it at once.
REQUEST_SECONDS = 3.0
# How long a worker waits in the midst of a request for more of it, which it does only if the end cannot be told.
LATE_SECONDS = 0.2
# How long a worker waits for room for the answer. There is: the buffers of a socket hold more than we ever say.
ANSWER_SECONDS = 1.0
# How long a connection is kept that asks nothing. The API server closes its own after 90 seconds: were we the first to
# do so, it might just be sending a review, which would fail (Go's http.Transport repeats no POST).
IDLE_SECONDS = 120.0
# When an answer is the last one on its connection: another certificate, worker or replica has its turn.
OLD_SECONDS = 60.0
# How long a peer may take to close the connection when it has been answered for the last time.
CLOSING_SECONDS = 2.0
# How long a worker that is told to stop goes on to serve those that have already connected, each with one last answer.
DRAIN_SECONDS = 5.0
# How often a worker looks whose time is over.
TICK_SECONDS = 0.5

# What a worker parks: half of the 1024 files that a process may usually open; two of the largest requests.
PARKED_CONNECTIONS = 500
PARKED_BYTES = 16 * 1024 * 1024
# What is longer is not taken in: it is served by its beginning, and answered that it is too long.
LARGEST_HEAD_BYTES = 64 * 1024
# The largest object that etcd takes is 1.5 MiB; a review holds it as JSON, and the API server's own limit is 3 MiB.
LARGEST_BODY_BYTES = 7 * 1024 * 1024
# All that a TLS record can hold: a rest would lie where no selector sees it.
RECORD_BYTES = 16 * 1024
# What is taken in from one peer before it is the turn of others, and of deadlines: the largest request, or very little.
RECORDS_AT_ONCE = 512

_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding|expect):[ \t]*([^\r\n]*)", re.IGNORECASE)


class RequestEnd(NamedTuple):
    """Where a request ends, in bytes, and whether it is certain that the next one begins there."""

    at: int
    is_certain: bool


def request_end(received: bytes | bytearray) -> RequestEnd | None:
    """The end of the request that begins so; None while that cannot be told.

    Anything but a plain head with at most one plain Content-Length ends with its head, or at once if the head is
    broken or too long: gunicorn and the application know what to answer. To be wrong costs LATE_SECONDS.
    """
    end = received.find(b"\r\n\r\n", 0, LARGEST_HEAD_BYTES)
    if end < 0:
        broken = received.count(b"\n") != received.count(b"\r\n")
        return RequestEnd(len(received), False) if broken or len(received) >= LARGEST_HEAD_BYTES else None
    head_length = end + len(b"\r\n\r\n")
    match _FRAMING.findall(received, 0, end):
        case []:
            return RequestEnd(head_length, True)
        case [(name, value)] if name.lower() == b"content-length" and re.fullmatch(rb"[0-9]{1,7}[ \t]*", value):
            if int(value) <= LARGEST_BODY_BYTES:
                return RequestEnd(head_length + int(value), True)
    return RequestEnd(head_length, False)


class Connection(ssl.SSLSocket):
    """The server's side of a TLS connection: takes in a request without waiting, and then gives it to gunicorn."""

    # Set by the worker, as a TLS socket has no constructor of its own.
    listener: socket.socket
    address: Any
    received: bytearray
    answer: bytearray
    deadline: float  # while parked, by the worker's clock
    old: float  # by the usual one: a worker that is busy has the more reason to share
    is_idle: bool  # parked as one that asks nothing
    late: float  # while served

    may_be_kept: bool  # what comes next is another request

    _end: RequestEnd | None = None

    @property
    def answered(self) -> bool:
        """Nothing more is said. (Nor to a peer that was gone before it was accepted.)"""
        return self._sslobj is None  # type: ignore[attr-defined]

    @property
    def asks_nothing(self) -> bool:
        """The handshake is done, and nothing of a request has come: Go opens connections that it may need later."""
        return self.version() is not None and not self.received

    def read_on(self) -> bool:
        """Take in what there is, and say whether the request is complete. Raises OSError if the peer is gone."""
        for _ in range(RECORDS_AT_ONCE):
            try:
                data = super().recv(RECORD_BYTES)  # the first ones make the handshake
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                return False
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the peer has closed the connection")
            if self.answered:
                continue
            self.received += data
            # Only these can end a head; to look for its end costs more the longer it has become.
            if self._end is None and (b"\n" in data or len(self.received) >= LARGEST_HEAD_BYTES):
                self._end = request_end(self.received)
            if self._end is not None and len(self.received) >= self._end.at:
                self.may_be_kept = self._end == (len(self.received), True)
                return True
        return False

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """For gunicorn: what has been taken in, and then what comes until it is late."""
        if self.answered:
            return super().recv(buflen, flags)
        if self.received:
            data = bytes(self.received[:buflen])
            del self.received[:buflen]
            return data
        self.may_be_kept = False
        seconds_left = self.late - time.monotonic()
        if seconds_left > 0:
            self.settimeout(seconds_left)
            with contextlib.suppress(TimeoutError):
                return super().recv(buflen, flags)
        log.info("cut off a peer that was too slow with its request")
        raise ConnectionResetError(errno.ECONNRESET, "the peer was too slow with its request")

    def sendall(self, data: Any, flags: int = 0) -> None:
        """For gunicorn: a part of the answer. All of it goes out at once, in one record."""
        self.answer += data

    def reply(self) -> None:
        """Send the answer; what the peer says next is another request. Raises OSError if it is gone."""
        self.settimeout(ANSWER_SECONDS)
        super().sendall(self.answer)
        self.setblocking(False)
        self.received.clear()
        self.answer.clear()
        self._end = None

    def finish(self) -> None:
        """Tell the peer that this was all, without waiting for it to say the same. Raises OSError if it is gone."""
        with contextlib.suppress(OSError, ValueError):  # SSLWantReadError: it has not said the same
            self.unwrap()
        self.shutdown(socket.SHUT_WR)


class CertificateError(Exception):
    """There is no certificate to serve with; the message names the files and what is wrong with them."""


class TlsContext:
    """The TLS context made of two files, and made anew when they change: cert-manager rotates them.

    While the files cannot be used the last good context goes on serving.
    """

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._files = (cert_file, key_file)
        self._seen: tuple[object, ...] = ()
        self._context: ssl.SSLContext | None = None
        self.served_pem = b""  # the certificate of the context, with its chain

    def current(self) -> ssl.SSLContext:
        """The context for the next connection. Raises CertificateError if there has never been a usable one."""
        state = tuple(_state(file) for file in self._files)
        if state != self._seen or self._context is None:
            self._seen = state
            try:
                self._context = self._load()
            except CertificateError as error:
                if self._context is None:
                    raise
                log.error("%s; the last certificate goes on serving", error)
            else:
                log.info("serving the certificate in %s", self._files[0])
        return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = Connection
        context.num_tickets = 0  # the API server resumes no session, and making a ticket costs part of a handshake
        for file in self._files:
            if not os.access(file, os.R_OK):
                raise CertificateError(f"{file} is not there or cannot be read")
        try:
            context.load_cert_chain(*self._files)
        except OSError as error:  # ssl.SSLError is one
            cert_file, key_file = self._files
            wrong = f"{cert_file} and {key_file} are not PEM, or do not belong together"
            raise CertificateError(f"{wrong} ({error})") from error
        self.served_pem = self._files[0].read_bytes()
        return context


@functools.cache
def tls_context(cert_file: Path, key_file: Path) -> TlsContext:
    """The one context of a process, which outlives its configuration being read once more on SIGHUP."""
    return TlsContext(cert_file, key_file)


def _state(file: Path) -> tuple[int, int, int] | None:
    """What changes when the file does, also when it is a link to another one as in a mounted Secret."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


class Worker(SyncWorker):  # type: ignore[misc]
    """gunicorn's sync worker, but only a request that is complete occupies it.

    A connection is parked before that, and after the answer until the next request or until the peer closes: it costs
    a file and what has come.
    """

    def run(self) -> None:
        """Serve until told to stop, and after that who had connected before."""
        self._parked: dict[Connection, None] = {}  # the oldest first
        self._spent_serving = 0.0
        with selectors.DefaultSelector() as self._selector:
            self._selector.register(self.PIPE[0], selectors.EVENT_READ)  # signals write to it
            for listener in self.sockets:
                listener.setblocking(False)
                self._selector.register(listener, selectors.EVENT_READ)
            while self.alive and self.is_parent_alive():
                self._turn(TICK_SECONDS if self._parked else self.timeout or TICK_SECONDS)
            give_up = time.monotonic() + DRAIN_SECONDS
            while time.monotonic() < give_up and (self._turn(TICK_SECONDS if self._parked else 0) or self._parked):
                pass
            self._turn(0)  # what was said during the last one, which may have been long

    def _turn(self, wait_seconds: float) -> bool:
        """Do what there is to do, after waiting for it; say whether there was something.

        Requests that are complete come first, and one new connection last: another worker may be free to take it.
        """
        self.notify()
        now = self._now()  # whose time is over now can still have sent what is found then
        ready = [key.fileobj for key, _ in self._selector.select(wait_seconds)]
        for connection in ready:
            if isinstance(connection, Connection):
                self._listen(connection)
        if self.PIPE[0] in ready:
            os.read(self.PIPE[0], 4096)
        for listener in self.sockets:
            if listener in ready:
                self.accept(listener)
        self._cut_off(now)
        return bool(ready)

    def _now(self) -> float:
        """A clock that stands still while a request is served, as nobody looks then at what others send."""
        return time.monotonic() - self._spent_serving

    def accept(self, listener: socket.socket) -> None:
        """Park one new connection."""
        try:
            plain, address = listener.accept()
            plain.setblocking(False)
            connection = ssl_wrap_socket(plain, self.cfg)
        except OSError:  # another worker was faster, or the peer is gone again
            return
        connection.listener, connection.address = listener, address
        connection.received, connection.answer = bytearray(), bytearray()
        connection.is_idle, connection.old = False, time.monotonic() + OLD_SECONDS
        self._park(connection, REQUEST_SECONDS)
        self._selector.register(connection, selectors.EVENT_READ)
        self._listen(connection)  # its peer has sent something, else TCP_DEFER_ACCEPT would hold it back

    def _park(self, connection: Connection, seconds: float) -> None:
        """Give it so much time, as the youngest."""
        connection.deadline = self._now() + seconds
        self._parked.pop(connection, None)
        self._parked[connection] = None

    def _listen(self, connection: Connection) -> None:
        """Read on without waiting, and serve the request if it is complete."""
        try:
            if connection.read_on():
                self._serve(connection)
            elif connection.is_idle != connection.asks_nothing:
                connection.is_idle = connection.asks_nothing
                self._park(connection, IDLE_SECONDS if connection.is_idle else REQUEST_SECONDS)
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                log.warning("refused a connection of %s: %s", connection.address[0], error)
            self._close(connection)

    def _serve(self, connection: Connection) -> None:
        """As gunicorn's `handle`, which would wait for the peer to close the connection."""
        self.notify()
        started = time.monotonic()
        connection.late = started + LATE_SECONDS
        connection.is_idle = False
        request = None
        try:
            request = next(get_parser(self.cfg, connection, connection.address))
            connection.is_idle = self._answer(connection, request)
        except (NoMoreData, StopIteration, ConnectionError, TimeoutError, ssl.SSLError) as error:
            log.debug("a peer is gone: %s", error)
            connection.answer.clear()
        except (Exception, SystemExit) as error:  # noqa: BLE001  it is logged there, and answered
            connection.answer.clear()
            self.handle_error(request, connection, connection.address, error)
        try:
            connection.reply()
        finally:
            self._spent_serving += time.monotonic() - started
        if connection.is_idle:
            self._park(connection, IDLE_SECONDS)
        else:
            connection.finish()
            self._park(connection, CLOSING_SECONDS)

    def _answer(self, connection: Connection, request: Request) -> bool:
        """As gunicorn's `handle_request`, which closes every connection; say whether this one is kept."""
        server = connection.listener.getsockname()
        response, environ = create(request, connection, connection.address, server, self.cfg)
        if not (self.alive and connection.may_be_kept and time.monotonic() < connection.old):
            response.force_close()
        chunks = self.wsgi(environ, response.start_response)
        try:
            for chunk in chunks:
                response.write(chunk)
            response.close()
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        return not response.should_close()

    def _cut_off(self, now: float) -> None:
        """Close the connections whose time is over and, where there is too much to keep, the oldest."""
        held = 0
        for count, connection in enumerate(list(reversed(self._parked)), 1):
            held += len(connection.received)
            too_slow = connection.deadline <= now
            if too_slow or count > PARKED_CONNECTIONS or (connection.received and held > PARKED_BYTES):
                if connection.is_idle and self._speaks(connection):
                    continue
                if not (connection.answered or connection.is_idle):
                    why = "that was too slow with its" if too_slow else "to make room, in its"
                    log.info("cut off a peer %s %s", why, "request" if connection.version() else "handshake")
                self._close(connection)

    def _speaks(self, connection: Connection) -> bool:
        """Whether an idle one has said something, or ended, while others were served; it is listened to once more."""
        deadline = connection.deadline
        self._listen(connection)
        return connection not in self._parked or connection.deadline != deadline

    def _close(self, connection: Connection) -> None:
        del self._parked[connection]
        self._selector.unregister(connection)
        connection.close()
