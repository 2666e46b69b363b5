"""What pods are told, as events: `kubectl describe pod` shows them. Few at a time: the API server has more to do."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from app.reconciler.api import Api, Failures, reason_of
from app.reconciler.pods import Member, Stage

log = logging.getLogger(__name__)

EVENT_SECONDS = 0.1  # from one event to the next
MOST_PENDING = 1000
# Places change all the time; nobody is told of them while so many events are on their way.
MOST_PENDING_FOR_PLACES = 50
FIRST_PAUSE_SECONDS = 60.0  # between two events about the place of one pod; doubled each time
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass
class _Told:
    """What a pod was last told of its place, in monotonic seconds."""

    place: int
    again_at: float
    pause_seconds: float
    count: int


class Events:
    """Writes events by a thread of its own, which ends with the process; what is too much is left out."""

    def __init__(self, api: Api, on_error: Callable[[str], None]) -> None:
        """`on_error` is told of what kind it was."""
        self._api, self._on_error = api, on_error
        self._pending: queue.Queue[tuple[Member, str, str, str, int]] = queue.Queue(MOST_PENDING)
        self._told: dict[str, _Told] = {}
        threading.Thread(target=self._write, daemon=True, name="events").start()

    def tell_places(self, semaphore: str, waiting: Sequence[Member], unavailable: str) -> None:
        """Who waits behind how many; soon after it began to wait, then ever more seldom, if that has changed."""
        now = time.monotonic()
        for place, member in enumerate(waiting, start=1):
            told = self._told.get(member.uid) or _Told(0, now, FIRST_PAUSE_SECONDS, 0)
            if told.place == place or now < told.again_at or self._pending.qsize() >= MOST_PENDING_FOR_PLACES:
                continue
            pause = min(2 * told.pause_seconds, LONGEST_PAUSE_SECONDS)
            self._told[member.uid] = _Told(place, now + told.pause_seconds, pause, told.count + 1)
            why = f"it is unavailable: {unavailable}" if unavailable else _why(member)
            message = f"waits for a slot of {semaphore}: place {place} of {len(waiting)}; {why}"
            self._say(member, "Normal", "WaitingForSlot", message, told.count + 1)

    def tell_granted(self, member: Member, slot: int, waited_seconds: float) -> None:
        self._say(member, "Normal", "SlotGranted", f"slot {slot} of {member.semaphore}, after {waited_seconds:.0f} s")

    def tell_waited_too_long(self, member: Member) -> None:
        limit = member.request.max_wait_seconds if member.request else None
        message = (
            f"has waited for a slot of {member.semaphore} for more than its max-wait of {limit} s, and gets none any "
            "more; delete the pod, or raise its annotation max-wait or remove it"
        )
        self._say(member, "Warning", "WaitedTooLong", message)

    def tell_cannot_wait(self, member: Member) -> None:
        message = f"gets no slot of {member.semaphore} as long as its annotations say so: {member.problem}"
        self._say(member, "Warning", "CannotWait", message[:1000])

    def forget_all_but(self, uids: Collection[str]) -> None:
        """Pods that are gone are told nothing any more."""
        for uid in self._told.keys() - uids:  # in place: another thread may write meanwhile
            self._told.pop(uid, None)

    def _say(self, member: Member, kind: str, reason: str, message: str, count: int = 1) -> None:
        try:
            self._pending.put_nowait((member, kind, reason, message, count))
        except queue.Full:
            log.debug("too many events: %s", reason)

    def _write(self) -> None:
        while True:
            event = self._pending.get()
            try:
                self._api.tell(*event)
            except Failures as error:
                self._on_error("api")
                log.debug("cannot write an event: %s", reason_of(error))
            except Exception:
                self._on_error("internal")
                log.exception("an event was not written")
            time.sleep(EVENT_SECONDS)


def _why(member: Member) -> str:
    if not member.length:
        return "it is closed: its length is 0"
    if member.stage is Stage.STARTING:
        return "its reservation ended before it started"
    return f"all {member.length} slots are held" if member.length > 1 else "its slot is held"
