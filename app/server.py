"""What the server adds to gunicorn's sync worker: TLS that follows its files, and deadlines for slow peers.

Knows sockets and certificates, nothing of admissions. A sync worker serves one connection at a time, so a peer
that is silent, or sends a byte now and then, must not be able to keep it.
"""

import contextlib
import errno
import functools
import logging
import os
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gunicorn.workers.sync import SyncWorker

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 1.0
# From the first byte of the handshake to the last of the request. The API server sends all of it at once.
REQUEST_SECONDS = 3.0
# How long a worker that is told to stop goes on to serve those that have already connected.
DRAIN_SECONDS = 5.0


class DeadlineSocket(ssl.SSLSocket):
    """The server's side of a TLS connection, with one deadline for all that the peer has to send.

    A timeout of each operation would not do: it starts anew with every byte. A peer that is too slow is cut off,
    and for gunicorn it looks like one that has reset the connection, which it knows to expect.
    """

    _deadline = 0.0

    def do_handshake(self, block: bool = False) -> None:
        self._deadline = time.monotonic() + REQUEST_SECONDS
        self.settimeout(HANDSHAKE_SECONDS)  # OpenSSL's loop is under it as a whole
        try:
            super().do_handshake(block)
        except TimeoutError as error:
            raise self._cut_off("handshake") from error
        self.settimeout(REQUEST_SECONDS)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        if self._sslobj is None:  # type: ignore[attr-defined]  # answered: gunicorn waits for the peer to close
            return super().recv(buflen, flags)
        self.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            return super().recv(buflen, flags)
        except TimeoutError as error:
            raise self._cut_off("request") from error

    def sendall(self, data: "ReadableBuffer", flags: int = 0) -> None:
        # What was left for the request must not bound the answer.
        self.settimeout(REQUEST_SECONDS)
        super().sendall(data, flags)

    def _cut_off(self, stage: str) -> ConnectionResetError:
        log.info("cut off a peer that was too slow with its %s", stage)
        # Not closed yet: gunicorn does that, and would take an answer to a closed socket for an error of ours.
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)
        return ConnectionResetError(errno.ECONNRESET, f"the peer was too slow with its {stage}")


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
        context.sslsocket_class = DeadlineSocket
        for file in self._files:
            if not os.access(file, os.R_OK):
                raise CertificateError(f"{file} is not there or cannot be read")
        try:
            context.load_cert_chain(*self._files)
        except OSError as error:  # ssl.SSLError is one
            cert_file, key_file = self._files
            wrong = f"{cert_file} and {key_file} are not PEM, or do not belong together"
            raise CertificateError(f"{wrong} ({error})") from error
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


def defer_accept(listener: socket.socket) -> None:
    """Do not wake a worker for a connection before its peer has sent something."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(REQUEST_SECONDS))


class Worker(SyncWorker):  # type: ignore[misc]
    """gunicorn's sync worker, which also serves who had connected before it was told to stop."""

    def run(self) -> None:
        super().run()
        give_up = time.monotonic() + DRAIN_SECONDS
        for listener in self.sockets:
            self._drain(listener, give_up)

    def _drain(self, listener: socket.socket, give_up: float) -> None:
        while time.monotonic() < give_up:
            try:
                self.accept(listener)
            except BlockingIOError:  # nobody is left
                return
            except ConnectionError:  # the peer is gone
                continue
