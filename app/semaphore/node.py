"""One Redis node: its connection, what it still owes an answer to, and whether it is worth waiting for.

Knows nothing of majorities. Nobody waits for a node twice: one that failed, or has not answered within its
`patience`, is passed over until it is found to be well again, and that is found out beside the admissions: a thread
tries to connect until it succeeds, an overdue answer is looked for when somebody comes by.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha1

import redis

from app.semaphore.commands import LOOKING, Acquire, Command, Release
from app.semaphore.model import Answer, Fault, Unheard, Unknown
from sidecar.protocol import Address, Keys

log = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0
# How long a failed node is left alone before it is tried again.
PROBE_SECONDS = 0.5
# An answer this late will not come: its connection leads nowhere, since a restarted pod has a new address.
GIVE_UP_SECONDS = 3.0
# Releases kept for a node without a connection. Those beyond it end with their leases.
OWED_RELEASES = 1000


class Node:
    """A connection to one node that sends commands at once and gives back the answers as they come."""

    def __init__(
        self,
        address: Address,
        *,
        keys: Keys,
        scripts: Mapping[str, str],
        patience_seconds: float,
        username: str | None = None,
        password: str | None = None,
        on_fault: Callable[[Address, Fault], None] = lambda *_: None,
    ) -> None:
        """`on_fault` is told whenever the node begins to be passed over."""
        self.address = address
        self._on_fault = on_fault
        self._keys = keys
        self._scripts = scripts
        # Redis addresses a script by its SHA-1, which guards nothing here.
        self._sha = {name: sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in scripts.items()}
        self._patience_seconds = patience_seconds
        self._username, self._password = username, password
        self._connection: redis.Connection | None = None
        self._attempt: _Attempt | None = None
        self._pending: deque[tuple[Command, float]] = deque()
        self._lost: list[tuple[Command, Answer]] = []
        self._unknown: set[str] = set()  # semaphores of which it has said, on this connection, that it has no record
        self._owed: deque[Release] = deque()
        self._fault: str | None = None
        self._retry_at = 0.0
        self.connections = 0  # made so far: with a new one it may have come back without its data

    @property
    def is_passed_over(self) -> bool:
        return self._fault is not None

    def prepare(self, *, at_once: bool = False) -> list[tuple[Command, Answer]]:
        """See how things stand: take a connection that was made, drop a dead one, start to connect anew.

        A failed node is left alone for a while, unless it is needed `at_once`. Gives answers that came late.
        """
        now = time.monotonic()
        self._adopt()
        late = self.receive()
        may_retry = at_once or now >= self._retry_at
        if self._connection and not self._is_overdue(now) and may_retry:
            self._set_fault(None)
            if not self._pending:
                self._notice_close()
        if not self._connection and not self._attempt:
            self._attempt = _Attempt(self._connect)
        elif self._attempt and at_once:
            self._attempt.try_at_once()
        return late

    def wait_until_connected(self, until: float, *, at_once: bool = False) -> None:
        """Wait for a connection that is being made; for one to a failed node only if it is needed `at_once`."""
        if self._attempt and (at_once or self._fault is None):
            if not self._attempt.wait(until - time.monotonic()):
                self._set_fault("it takes too long to connect", Fault.TIMEOUT)
            self._adopt()

    def send(self, command: Command) -> Unheard | None:
        """Send a command whose answer is to be looked for, or say why there will be none.

        A release goes to a node that is passed over as well, behind what was sent before; without a connection
        it is sent as soon as there is one.
        """
        unheard = Unheard(self._fault or "not connected", asked=False)
        if isinstance(command, Acquire) and command.found and command.claim.semaphore not in self._unknown:
            # It has been restarted since it said so, and may have lost what was granted meanwhile.
            return Unheard("connected anew while the semaphore was founded", asked=False)
        if self._connection and (self._fault is None or isinstance(command, Release)):
            lost = self._transmit(self._connection, command)
            if lost is None:
                return None if self._fault is None else unheard
            unheard = lost
        if isinstance(command, Release):
            self._owe(command)
        return unheard

    def receive(self) -> list[tuple[Command, Answer]]:
        """The answers that have come in, oldest first, without waiting; `Unheard` for those that never will."""
        answers = list(self._receive())
        lost, self._lost = self._lost, []
        return [*answers, *lost]

    def fileno(self) -> int:
        """The connection's file descriptor, to poll for answers; only while there is one."""
        # redis-py has no public name for it.
        socket = self._connection._get_socket() if self._connection else None
        if socket is None:
            raise RuntimeError(f"node {self.address} is not connected")
        return socket.fileno()

    def close(self) -> None:
        self._drop("closed")
        if self._attempt:
            self._attempt.end()

    def _receive(self) -> Iterator[tuple[Command, Answer]]:
        while self._pending and self._connection:
            try:
                reply = self._connection.read_response(timeout=0, disconnect_on_error=False)
            except redis.TimeoutError:
                return
            except redis.exceptions.NoScriptError as error:  # somebody flushed them: loaded with the next connection
                self._drop(cause(error))
            except redis.ResponseError as error:
                command, _ = self._pending.popleft()
                yield command, Unheard(cause(error)) if isinstance(command, LOOKING) else self._refused(error)
            except (redis.RedisError, OSError) as error:
                self._drop(cause(error))
            else:
                command, _ = self._pending[0]
                try:
                    answer = command.answer(reply)
                except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                    # Not a node, or one that is out of step: what it says next would mean nothing either.
                    self._drop("it answered something that means nothing")
                    return
                self._pending.popleft()
                if isinstance(command, Acquire):
                    remember = self._unknown.add if isinstance(answer, Unknown) else self._unknown.discard
                    remember(command.claim.semaphore)
                yield command, answer

    def _refused(self, error: redis.ResponseError) -> Unheard:
        """The node answered with an error (read-only, out of memory, no permission): it is of no use for now."""
        self._set_fault(cause(error), Fault.ERROR)
        self._retry_at = time.monotonic() + PROBE_SECONDS
        return Unheard(cause(error))

    def _transmit(self, connection: redis.Connection, command: Command) -> Unheard | None:
        try:
            connection.send_command(*command.words(self._keys, self._sha))
        except (redis.RedisError, OSError) as error:
            self._drop(cause(error))
            return Unheard(f"connection lost: {cause(error)}")
        self._pending.append((command, time.monotonic()))
        return None

    def _is_overdue(self, now: float) -> bool:
        """Whether an answer is waited for in vain."""
        age_seconds = now - self._pending[0][1] if self._pending else 0.0
        if age_seconds >= GIVE_UP_SECONDS:
            self._drop("no answer came")
        elif age_seconds >= self._patience_seconds:
            self._set_fault(f"no answer within {self._patience_seconds * 1000:.0f} ms", Fault.TIMEOUT)
        return age_seconds >= self._patience_seconds

    def _notice_close(self) -> None:
        """Find out that an idle connection was closed before a request is lost on it."""
        try:
            if self._connection:
                self._connection.can_read(0)
        except redis.ConnectionError as error:
            self._drop(cause(error))

    def _adopt(self) -> None:
        """Take the connection that was made, if one was."""
        if not self._attempt:
            return
        if not self._attempt.connection:
            if self._attempt.error:
                self._set_fault(*self._attempt.error)
            return
        self._connection, self._attempt = self._attempt.connection, None
        self.connections += 1
        self._set_fault(None)
        while self._owed and self._connection and self._transmit(self._connection, self._owed[0]) is None:
            self._owed.popleft()

    def _drop(self, why: str) -> None:
        """The connection is of no use any more, and no answer will come to what was sent on it."""
        if self._connection:
            self._connection.disconnect()
        self._connection = None
        # They may not have arrived; done twice they do no harm.
        for command, _ in self._pending:
            if isinstance(command, Release):
                self._owe(command)
        self._lost += [(command, Unheard(f"connection lost: {why}")) for command, _ in self._pending]
        self._unknown.clear()
        self._pending.clear()

    def _owe(self, release: Release) -> None:
        """Remember what is to be released; the oldest come first, for what they release may have arrived."""
        if len(self._owed) < OWED_RELEASES:
            self._owed.append(release)

    def _set_fault(self, fault: str | None, kind: Fault = Fault.CONNECTION) -> None:
        node = str(self.address)
        if fault and not self._fault:
            log.warning("node %s is passed over: %s", node, fault, extra={"node": node, "kind": kind.value})
            self._on_fault(self.address, kind)
        elif self._fault and not fault:
            log.info("node %s answers again", node, extra={"node": node})
        self._fault = fault

    def _connect(self) -> redis.Connection:
        connection = redis.Connection(
            host=self.address.host,
            port=self.address.port,
            username=self._username,
            password=self._password,
            protocol=2,
            socket_timeout=CONNECT_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            driver_info=None,  # no CLIENT SETINFO: the hook's user may not, and need not
        )
        try:
            connection.connect()
            for text in self._scripts.values():
                connection.send_command("SCRIPT", "LOAD", text)
            for _ in self._scripts:
                connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        return connection


class _Attempt(threading.Thread):
    """Tries to connect, beside the admissions, again and again until it succeeds."""

    def __init__(self, connect: Callable[[], redis.Connection]) -> None:
        super().__init__(daemon=True, name="connect")
        self._connect = connect
        self._tried, self._hurry, self._ends = threading.Event(), threading.Event(), False
        self.connection: redis.Connection | None = None
        self.error: tuple[str, Fault] | None = None
        self.start()

    def run(self) -> None:
        while not self._ends and not self.connection:
            self._hurry.clear()
            try:
                self.connection = self._connect()
            except Exception as error:  # noqa: BLE001  whatever a strange peer says, this thread must go on
                self.error = (cause(error), Fault.ERROR if is_refusal(error) else Fault.CONNECTION)
            self._tried.set()
            if not self.connection:
                self._hurry.wait(PROBE_SECONDS)
        if self._ends and self.connection:
            self.connection.disconnect()

    def try_at_once(self) -> None:
        self._tried.clear()
        if self.connection:  # made just now
            self._tried.set()
        self._hurry.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end of a try; whether there was one."""
        return self._tried.wait(max(0.0, seconds))

    def end(self) -> None:
        self._ends = True
        self._hurry.set()


def is_refusal(error: Exception) -> bool:
    """Whether the node has answered, if with an error."""
    return isinstance(error, redis.ResponseError | redis.AuthenticationError)


def cause(error: Exception) -> str:
    """What the operating system said, where redis-py wraps it into a sentence with the address.

    A node that does not know a command repeats what came with it: the password, or a token.
    """
    inner = error.__context__
    return inner.strerror if isinstance(inner, OSError) and inner.strerror else str(error).partition(", with args")[0]
