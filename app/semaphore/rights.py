"""What a user may do on a node, found out without changing anything there; and how the node is set up.

Knows Redis, as node.py does, for a look from outside: nothing here takes part in an admission.

A node looks at a user's rights before it carries a command out. So each right is tried by a command that then does
nothing: on keys that nobody has, on a condition that is not met, or with arguments that are refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from app.semaphore.commands import Words, read_info
from app.semaphore.model import Fault
from app.semaphore.node import cause, is_refusal
from sidecar.protocol import Address, Keys

# No semaphore is called so, as it has no namespace, and no token is.
_NOBODY = "check"


class Failed(Exception):  # noqa: N818  it says what became of an attempt
    """The node could not be asked, or refused: `why` is for people."""

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault
        self.why = why


@dataclass(frozen=True, slots=True)
class Trial:
    """A command by which a right is tried."""

    right: str  # as an ACL names it
    words: Words
    refusal: str = ""  # part of the error by which a node refuses the arguments to whoever has the right


def hook_trials(keys: Keys) -> tuple[Trial, ...]:
    """What the webhook's user must be able to do, by the order of its ACL line in the README."""
    record, lease, reservation = keys.record(_NOBODY), keys.lease(_NOBODY), keys.reservation(_NOBODY)
    return (
        Trial("time", ("TIME",)),
        # A script's keys are read and written; there is none of this digest.
        Trial("evalsha", ("EVALSHA", "0" * 40, 3, record, lease, reservation), "No matching script"),
        Trial("script|load", ("SCRIPT", "LOAD", "="), "compiling script"),
        Trial("exists", ("EXISTS", record)),
        Trial("get", ("GET", lease)),
        Trial("set", ("SET", lease, "", "XX", "PX", 1)),
        Trial("mget", ("MGET", lease, reservation)),
        Trial("hget", ("HGET", record, "length")),
        Trial("hset", ("HSET", record, "length", 0, "odd"), "wrong number of arguments"),
        Trial("hdel", ("HDEL", record, "length")),
        Trial("hmget", ("HMGET", record, "length")),
        Trial("hgetall", ("HGETALL", record)),
        Trial("pttl", ("PTTL", lease)),
        Trial("pexpire", ("PEXPIRE", lease, 1)),
        Trial("unlink", ("UNLINK", lease, reservation)),
        Trial("scan", ("SCAN", 0, "MATCH", record, "COUNT", 1)),
        Trial("info", ("INFO", "stats")),
        Trial("config|get", ("CONFIG", "GET", "appendonly")),
    )


def sidecar_trials(keys: Keys) -> tuple[Trial, ...]:
    """What the sidecars' user must be able to do."""
    lease, reservation = keys.lease(_NOBODY), keys.reservation(_NOBODY)
    return (
        Trial("pexpire", ("PEXPIRE", lease, 1)),
        Trial("unlink", ("UNLINK", lease, reservation)),
    )


def excess_trials(keys: Keys) -> tuple[Trial, ...]:
    """What the sidecars' user should not be able to do: by each of these a tenant reaches for others' slots."""
    record, lease = keys.record(_NOBODY), keys.lease(_NOBODY)
    return (
        Trial("get", ("GET", lease)),
        Trial("set", ("SET", lease, "", "XX", "PX", 1)),
        Trial("scan", ("SCAN", 0, "MATCH", record, "COUNT", 1)),
        Trial("hgetall", ("HGETALL", record)),
        Trial("unlink of records", ("UNLINK", record)),
        Trial("eval", ("EVAL", "=", 0), "compiling script"),
        Trial("config|get", ("CONFIG", "GET", "maxclients")),
    )


class Probe:
    """A connection to one node as one user."""

    def __init__(self, address: Address, username: str | None, password: str | None, patience_seconds: float) -> None:
        """Connects and logs in. Raises Failed: with Fault.ERROR if the node answered, and refused."""
        self._connection = redis.Connection(
            host=address.host,
            port=address.port,
            username=username,
            password=password,
            protocol=2,
            socket_timeout=patience_seconds,
            socket_connect_timeout=patience_seconds,
            driver_info=None,
        )
        try:
            self._connection.connect()
        except (redis.RedisError, OSError) as error:
            self.close()
            raise _failed(error) from error

    def close(self) -> None:
        self._connection.disconnect()

    def lacking(self, trials: Iterable[Trial]) -> Mapping[str, str]:
        """The rights that the user has not, and what the node said. Raises Failed if it cannot be asked."""
        found = {trial.right: self._refusal(trial) for trial in trials}
        return {right: why for right, why in found.items() if why is not None}

    def info(self, section: str) -> Mapping[str, str]:
        """One section of what the node tells of itself (https://redis.io/docs/latest/commands/info/). Raises Failed."""
        return read_info(self._ask("INFO", section))

    def config(self, *names: str) -> Mapping[str, str]:
        """How the node is set up, by the names of its settings. Raises Failed."""
        reply = [each.decode(errors="replace") for each in self._ask("CONFIG", "GET", *names)]
        return dict(zip(reply[::2], reply[1::2], strict=True))

    def _refusal(self, trial: Trial) -> str | None:
        try:
            self._ask(*trial.words)
        except Failed as failed:
            if failed.fault is not Fault.ERROR:
                raise
            has_right = trial.refusal and trial.refusal in failed.why
            return None if has_right else failed.why
        return None

    def _ask(self, *words: str | int) -> Any:
        try:
            self._connection.send_command(*words)
            return self._connection.read_response()
        except (redis.RedisError, OSError) as error:
            raise _failed(error) from error


def _failed(error: Exception) -> Failed:
    if is_refusal(error):
        return Failed(Fault.ERROR, cause(error))
    if isinstance(error, redis.TimeoutError):
        return Failed(Fault.TIMEOUT, "no answer in time")
    return Failed(Fault.CONNECTION, cause(error))
