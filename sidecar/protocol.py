"""What the webhook and the sidecar agree on: keys, variables and the rule of the majority.

Knows no socket and no clock. It imports almost nothing, because every admitted pod pays for what the
sidecar imports.
"""

import re
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import NamedTuple

SHORTEST_LEASE_SECONDS = 5
# A lease may last a day at most. No Redis ACL bounds a time to live, so the acquire script cuts down
# whatever somebody stretched further.
LONGEST_LEASE_SECONDS = 24 * 60 * 60


class Variable:
    """Environment variables that the webhook writes into the injected container."""

    SEMAPHORE = "SEMAPHORE"  # <namespace>/<key>, for the log
    # Its number, for the log and for recognizing a reinvocation. Absent in a pod that waits for its slot, whose number
    # is not known yet when the pod is created.
    SLOT = "SLOT"
    TOKEN = "TOKEN"  # noqa: S105  the name of the variable, not a token
    EXPIRATION = "EXPIRATION_SECONDS"  # the lease: what every renewal asks for
    SEAL = "SEAL"  # for the reconciler: that the webhook has written these
    REDIS_ADDRESSES = "REDIS_ADDRESSES"
    REDIS_USERNAME = "REDIS_USERNAME"
    REDIS_PASSWORD = "REDIS_PASSWORD"  # noqa: S105  the same
    VARIANT = "VARIANT"
    MODE = "SIDECAR_MODE"


class Mode(StrEnum):
    """How the sidecar stands in the pod."""

    # An init container with restartPolicy Always (Kubernetes 1.29 and later): it starts before and ends
    # after the app containers, so its SIGTERM means that the app has ended.
    NATIVE = "native"
    # One container among others: its SIGTERM comes together with the app's, which may go on running for the
    # rest of its grace period.
    CONTAINER = "container"


class Keys(NamedTuple):
    """Names of the three families of keys on a node; `variant` tells installations apart."""

    variant: str = ""

    def record(self, semaphore: str) -> str:
        return self._prefixed(f"slots:{semaphore}")

    def lease(self, token: str) -> str:
        return self._prefixed(f"lease:{token}")

    def reservation(self, token: str) -> str:
        return self._prefixed(f"reservation:{token}")

    def _prefixed(self, key: str) -> str:
        return f"{self.variant}:{key}" if self.variant else key


class Address(NamedTuple):
    """Where a node listens. The name is resolved anew at every connection: a restarted pod has moved."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Read `host:port` pairs, comma separated; an IPv6 address stands in brackets.

    Raises ValueError with what is wrong and what to write; the caller adds the variable's name.
    """
    addresses = tuple(_parse_address(part.strip()) for part in text.split(","))
    if len(set(addresses)) < len(addresses):
        raise ValueError(f"{text!r} names an address twice; every node counts once")
    if len(addresses) % 2 == 0:
        raise ValueError(f"{text!r} has {len(addresses)} addresses; give an odd number, usually 3")
    return addresses


def _parse_address(text: str) -> Address:
    name = r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?"
    found = re.fullmatch(rf"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|({name})):([0-9]{{1,5}})", text)
    if not found or not 1 <= int(found[3]) <= 65535:
        # What stands before an @ may be a password.
        shown = f"…@{text.rpartition('@')[2]}" if "@" in text else text
        raise ValueError(f"{shown!r} is not an address; write host:port, separated by commas")
    return Address(found[1] or found[2], int(found[3]))


def majority(nodes: int) -> int:
    """How many nodes are more than half of all `nodes` that are configured, reachable or not."""
    return nodes // 2 + 1


class Renewal(Enum):
    """What the answers of the nodes to one round of renewals mean."""

    KEPT = "kept"
    LOST = "lost"
    UNKNOWN = "unknown"  # too few answers to say either


def renewal(answers: Mapping[int, bool], nodes: int) -> Renewal:
    """Judge the answers heard so far: node → whether the lease was still alive there and was prolonged."""
    kept = sum(answers.values())
    if kept >= majority(nodes):
        return Renewal.KEPT
    if len(answers) - kept >= majority(nodes):
        return Renewal.LOST
    return Renewal.UNKNOWN
