"""The nodes, each asked by a thread of its own: RESP over plain sockets.

Knows commands, replies and patience. Knows nothing of leases and majorities, and never raises into the
caller: whatever goes wrong at a node is an answer with a failure.
"""

import os
import time

# The C parts of queue, socket and threading: the modules around them cost 0.7 MB in every admitted pod.
from _queue import SimpleQueue
from _socket import (
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    getaddrinfo,
    socket,
)
from _thread import start_new_thread
from collections.abc import Sequence
from typing import Any, NamedTuple

from hiredis import HiredisError, Reader, ReplyError, pack_command

from sidecar.protocol import Address

Command = tuple[str | int, ...]

# A peer that vanished without a word is noticed within a minute, not at the next renewal.
OPTIONS = (
    (IPPROTO_TCP, TCP_NODELAY, 1),
    (SOL_SOCKET, SO_KEEPALIVE, 1),
    (IPPROTO_TCP, TCP_KEEPIDLE, 30),
    (IPPROTO_TCP, TCP_KEEPINTVL, 10),
    (IPPROTO_TCP, TCP_KEEPCNT, 3),
)


class Question(NamedTuple):
    """Commands for one node; the round's number comes back with the answer."""

    round: int
    commands: Sequence[Command]


class Answer(NamedTuple):
    """One reply per command, errors among them; or no reply at all and why."""

    round: int
    node: int
    replies: list[Any]
    failure: str = ""


class Node:
    """One node and the thread that talks to it: what hangs there delays nobody else."""

    def __init__(
        self,
        number: int,
        address: Address,
        login: Command,
        patience_seconds: float,
        answers: "SimpleQueue[Answer | None]",
    ) -> None:
        self._number = number
        self._address = address
        self._login = login
        self._patience_seconds = patience_seconds
        self._answers = answers
        self._questions: SimpleQueue[Question] = SimpleQueue()
        self._connection: Connection | None = None
        start_new_thread(self._serve, ())

    def ask(self, question: Question) -> None:
        """Return at once; the answer comes by the queue, unless a newer question overtakes this one."""
        self._questions.put(question)

    def _serve(self) -> None:
        while True:
            self._answers.put(self._answer(self._newest_question()))

    def _newest_question(self) -> Question:
        """While the thread hung in a lookup or a read, questions may have piled up."""
        question = self._questions.get()
        while not self._questions.empty():
            question = self._questions.get()
        return question

    def _answer(self, question: Question) -> Answer:
        try:
            return Answer(question.round, self._number, self._replies(question.commands))
        except (OSError, ValueError, HiredisError) as error:
            # Late replies must not be taken for those of the next question.
            self._disconnect()
            return Answer(question.round, self._number, [], explain(error))

    def _replies(self, commands: Sequence[Command]) -> list[Any]:
        if self._connection:
            try:
                return self._connection.ask(commands)
            except ConnectionError:  # closed since the last round, as by a restart: once more, anew
                self._disconnect()
        return self._connect().ask(commands)

    def _connect(self) -> "Connection":
        self._connection = Connection(connect(self._address, self._patience_seconds), self._patience_seconds)
        if self._login:
            (reply,) = self._connection.ask([("AUTH", *self._login)])
            if isinstance(reply, ReplyError):
                raise reply
        return self._connection

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


class Connection:
    """One connection, in step: useless once an exchange has failed half way."""

    def __init__(self, connected: socket, patience_seconds: float) -> None:
        self._socket = connected
        self._patience_seconds = patience_seconds
        self._reader = Reader(notEnoughData=...)

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send all, then read all, within one patience however the bytes drip in."""
        # The stub of pack_command takes a tuple of one only.
        packed = b"".join(pack_command(command) for command in commands)  # type: ignore[arg-type]
        deadline = time.monotonic() + self._patience_seconds
        try:
            self._socket.settimeout(self._patience_seconds)
            self._socket.sendall(packed)
            return [self._reply(deadline) for _ in commands]
        except TimeoutError:
            raise TimeoutError(f"no whole reply within {self._patience_seconds:g} s") from None

    def _reply(self, deadline: float) -> Any:
        while (reply := self._reader.gets()) is ...:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            self._socket.settimeout(remaining)
            received = self._socket.recv(4096)
            if not received:
                raise ConnectionResetError("the node closed the connection")
            self._reader.feed(received)
        return reply

    def close(self) -> None:
        self._socket.close()


def connect(address: Address, patience_seconds: float) -> socket:
    """Resolve the name and try what it stands for, in turn. Raises OSError.

    Nothing bounds a lookup, so patience begins after it: where a lookup always takes seconds, as with a dead
    first name server, the connection still comes about for the next round.
    """
    # As bytes: for a str, getaddrinfo loads the idna codec, 0.9 MB.
    found = getaddrinfo(os.fsencode(address.host), address.port, 0, SOCK_STREAM)
    failure: OSError = OSError("the name stands for no address")
    for family, kind, protocol, _, where in found:
        candidate = socket(family, kind, protocol)
        try:
            candidate.settimeout(patience_seconds / len(found))
            for option in OPTIONS:
                candidate.setsockopt(*option)
            candidate.connect(where)
            return candidate
        except OSError as error:
            candidate.close()
            failure = error
    raise failure


def explain(problem: object) -> str:
    """An exception or a reply that was not expected, for the log.

    Up to the first comma only: what follows it in "ERR unknown command" repeats the arguments, the token
    among them.
    """
    text = (isinstance(problem, OSError) and problem.strerror) or str(problem)
    return text.partition(",")[0] or type(problem).__name__
