"""What the sidecar is told by its environment, read once and checked.

Knows the variables of `protocol.Variable`. Knows nothing of what is done with them. Neither the token nor the
password ever stands in a message.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from sidecar.protocol import (
    LONGEST_LEASE_SECONDS,
    SHORTEST_LEASE_SECONDS,
    Address,
    Mode,
    Variable,
    parse_addresses,
)


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it, its value and the remedy."""


class Settings(NamedTuple):
    """Everything the sidecar knows of its pod's slot and of the nodes."""

    semaphore: str
    slot: int | None  # None: the pod waited for it, so it was not known yet when the pod was created
    token: str
    lease_seconds: int
    addresses: tuple[Address, ...]
    login: tuple[str, ...]  # what follows AUTH: nothing, a password, or a user and a password
    variant: str
    mode: Mode

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises SettingsError. An empty variable counts as a missing one."""
        return cls(
            semaphore=_required(environ, Variable.SEMAPHORE),
            slot=_slot(environ.get(Variable.SLOT, "")),
            token=_token(_required(environ, Variable.TOKEN)),
            lease_seconds=_lease_seconds(_required(environ, Variable.EXPIRATION)),
            addresses=_addresses(_required(environ, Variable.REDIS_ADDRESSES)),
            login=_login(environ.get(Variable.REDIS_USERNAME, ""), environ.get(Variable.REDIS_PASSWORD, "")),
            variant=environ.get(Variable.VARIANT, ""),
            mode=_mode(environ.get(Variable.MODE) or Mode.NATIVE.value),
        )


def _required(environ: Mapping[str, str], variable: str) -> str:
    value = environ.get(variable)
    if not value:
        raise SettingsError(f"{variable}: not set; the webhook writes it into the container it injects")
    return value


def _slot(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise SettingsError(f"{Variable.SLOT}: {text!r} is not a slot; write its number, 0 or more")
    return int(text)


def _token(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32,}", text):
        raise SettingsError(
            f"{Variable.TOKEN}: its value, not shown here, is not a token; "
            "write the 32 hexadecimal digits that the webhook gave out"
        )
    return text


def _lease_seconds(text: str) -> int:
    seconds = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not SHORTEST_LEASE_SECONDS <= seconds <= LONGEST_LEASE_SECONDS:
        raise SettingsError(
            f"{Variable.EXPIRATION}: {text!r} is not a lease; "
            f"write whole seconds from {SHORTEST_LEASE_SECONDS} to {LONGEST_LEASE_SECONDS}"
        )
    return seconds


def _addresses(text: str) -> tuple[Address, ...]:
    try:
        return parse_addresses(text)
    except ValueError as error:
        raise SettingsError(f"{Variable.REDIS_ADDRESSES}: {error}") from None


def _login(username: str, password: str) -> tuple[str, ...]:
    """A password alone is the default user's: https://redis.io/docs/latest/commands/auth/."""
    if username and not password:
        raise SettingsError(
            f"{Variable.REDIS_USERNAME}: {username!r} has no password; set {Variable.REDIS_PASSWORD} as well"
        )
    return tuple(part for part in (username, password) if part)


def _mode(text: str) -> Mode:
    try:
        return Mode(text)
    except ValueError:
        accepted = " or ".join(mode.value for mode in Mode)
        raise SettingsError(f"{Variable.MODE}: {text!r} is not a mode; write {accepted}") from None
