"""What is known of the lease: until when it lasts, when to renew it next, and what there is to say.

Knows the outcomes of rounds. Knows no node and no clock: callers pass monotonic instants in.
"""

from enum import Enum
from typing import NamedTuple

from sidecar.protocol import Renewal


class State(Enum):
    """How the lease stands after the last round."""

    NEW = "new"  # no round has been judged yet
    KEPT = "kept"
    UNSURE = "unsure"  # the last rounds reached no majority, the lease still lasts
    ENDED = "ended"  # the same, and the lease's end has passed
    LOST = "lost"  # a majority of nodes says that there is no such lease


class Event(NamedTuple):
    """A change of state, as the log shall tell it."""

    level: str
    message: str


KEPT_AFTER = {
    State.NEW: "the lease was renewed, the slot is held",
    State.UNSURE: "the lease was renewed again",
    State.ENDED: "the lease was renewed again, the slot is held",
    State.LOST: "the lease was granted anew and is kept again",
}
EVENTS = {
    State.UNSURE: Event("warning", "no majority of nodes answered, the lease was not renewed; trying again"),
    State.ENDED: Event(
        "error",
        "the lease has ended without being renewed, another pod may hold the slot; "
        "trying on, but see to the nodes, or delete this pod so that a new one asks for a slot",
    ),
    State.LOST: Event(
        "error",
        "the slot is lost, a majority of nodes has no such lease; delete this pod so that a new one asks for a slot",
    ),
}


class Lease:
    """The lease as the sidecar sees it, never longer than the nodes do."""

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds = seconds
        self.state = State.NEW
        # Whoever granted or renewed it before this process started did so before now.
        self.deadline = now + seconds

    def judge(self, outcome: Renewal, asked_at: float, now: float) -> Event | None:
        """Take in a round that was sent at `asked_at`; what there is to say if that changed the state.

        A node counts the lease from when the renewal reached it, so counting from before sending is safe.
        """
        if outcome is Renewal.KEPT:
            self.deadline = asked_at + self.seconds
        before, self.state = self.state, self._state_after(outcome, now)
        if self.state is before:
            return None
        return Event("info", KEPT_AFTER[before]) if self.state is State.KEPT else EVENTS[self.state]

    def _state_after(self, outcome: Renewal, now: float) -> State:
        if outcome is Renewal.KEPT:
            return State.KEPT
        if outcome is Renewal.LOST or self.state is State.LOST:
            return State.LOST
        return State.UNSURE if now < self.deadline else State.ENDED

    def next_round(self, asked_at: float, now: float) -> float:
        """The instant of the next renewal: two may fail before a lease that was kept ends."""
        if self.state is State.KEPT:
            return asked_at + self.seconds / 3
        if self.state is State.LOST:
            return now + min(10.0, self.seconds / 3)
        return now + min(1.0, self.seconds / 10)
