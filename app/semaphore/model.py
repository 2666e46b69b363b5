"""Values of the semaphore: what is wanted, what a node answers, what comes of it.

Knows no Redis and decides nothing. "No" and "don't know" are different types throughout.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum


@dataclass(frozen=True, slots=True)
class Claim:
    """What an admission wants: a slot of `semaphore` (`<namespace>/<key>`), of which there are `length`."""

    semaphore: str
    length: int
    reservation_ms: int  # life of the lease until the sidecar's first renewal
    lease_ms: int  # and from each renewal on
    holder: str  # JSON text for people, see app.admission.holder
    reuses_token: bool = False  # the token may have had another slot before, as that of a pod that waits

    @property
    def longest_ms(self) -> int:
        """More than this its lease never has left."""
        return max(self.reservation_ms, self.lease_ms)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of a token to its slot, as one node sees it."""

    token: str
    left_ms: int
    unclaimed_ms: int  # rest of the reservation; below 1 once a sidecar has renewed
    holder: str


# What a node answers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """The token has this slot on the node, by this request or an earlier one."""

    slot: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Another token holds the slot on the node."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The node has no record of the semaphore: it is new, or the node lost its data. The node abstains."""


@dataclass(frozen=True, slots=True)
class Record:
    """The live slots of a semaphore on a node, the length last asked for and the longest life that a lease has."""

    length: int
    longest_ms: int
    leases: Mapping[int, Lease]


@dataclass(frozen=True, slots=True)
class Unheard:
    """No usable answer: the node may or may not have done it, so a release goes there too."""

    why: str
    asked: bool = True  # False: nothing was sent, so nothing can come of it later


class Standing(Enum):
    """What has become of a token's lease, on a node or by a majority."""

    RESERVED = "reserved"  # no sidecar has renewed it yet
    CLAIMED = "claimed"  # one has
    LOST = "lost"  # there is none
    UNKNOWN = "unknown"  # too few nodes answered to say


@dataclass(frozen=True, slots=True)
class Vacancies:
    """Those of the semaphores asked for that may have a slot to give."""

    semaphores: frozenset[str]


class Fault(StrEnum):
    """Why a node is passed over."""

    TIMEOUT = "timeout"  # it did not answer, or could not be connected to, in time
    CONNECTION = "connection"  # there is none, or it was lost
    ERROR = "error"  # it answered with an error


@dataclass(frozen=True, slots=True)
class Names:
    """Some of the semaphores that a node has a record of; `cursor` is 0 once these were the last."""

    cursor: int
    semaphores: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What a node knows of the first of some semaphores; the last goes on at `next_slot`, if there is one."""

    records: tuple[Record | Unknown, ...]
    next_slot: int | None


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a node counts since it was started."""

    expired_keys: int  # leases and reservations that ended by themselves: nobody gave them back


# What comes of it ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """A majority of the nodes holds the slot for the token."""

    slot: int
    token: str


@dataclass(frozen=True, slots=True)
class Full:
    """No slot is free: as a node's answer, and as the outcome.

    `holders` are a sample of the `held`, `unstarted` of which are mere reservations.
    """

    held: int
    holders: tuple[str, ...]
    unstarted: int


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No majority answered, or none agreed, before the deadline. Whatever was taken has been released."""

    why: str
    unheard: Mapping[int, str]  # number of the node → why it gave no usable answer


Reading = Record | Names | Page | Vitals | Standing | Vacancies
Answer = Granted | Taken | Full | Unknown | Reading | Unheard | bool | int | float
Outcome = Grant | Full | Unavailable
