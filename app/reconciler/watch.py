"""The pods as they are now, kept up to date by a thread that lists and watches; and what has just happened to them."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from app.reconciler.api import Api, Failures, reason_of
from app.reconciler.pods import Member, Stage

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0


@dataclass
class News:
    """What happened since somebody looked last."""

    semaphores: set[str] = field(default_factory=set)  # something happened to a pod of these
    gone: list[Member] = field(default_factory=list)  # they are no more, as the API server last told of them
    over: list[Member] = field(default_factory=list)  # they have just succeeded or failed


class Pods:
    """What is known of pods with our sidecar; threads share it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._members: dict[str, Member] = {}
        self._news = News()
        self._late: set[str] = set()
        self._is_stopped = False
        self.is_listed = False  # once and for all; before that nobody may take a pod for gone

    def members(self) -> list[Member]:
        with self._changed:
            return list(self._members.values())

    def get(self, uid: str) -> Member | None:
        with self._changed:
            return self._members.get(uid)

    def replace(self, members: dict[str, Member]) -> None:
        """All pods, as they were listed."""
        with self._changed:
            for uid in self._members.keys() - members.keys():
                self._put(uid, None)
            for uid, member in members.items():
                self._put(uid, member)
            self.is_listed = True
            self._changed.notify_all()

    def put(self, uid: str, member: Member | None) -> None:
        """One pod, which is gone if there is None."""
        with self._changed:
            self._put(uid, member)
            self._changed.notify_all()

    def _put(self, uid: str, member: Member | None) -> None:
        before = self._members.pop(uid, None)
        if member:
            self._members[uid] = member
        if before == member:
            return
        self._news.semaphores |= {each.semaphore for each in (before, member) if each}
        if before and not member:
            self._news.gone.append(before)
        elif member and member.stage in (Stage.STOPPED, Stage.OVER) and not (before and before.stage is member.stage):
            self._news.over.append(member)

    @property
    def late(self) -> frozenset[str]:
        """The uids of pods whose reservation ended before they started."""
        with self._changed:
            self._late &= self._members.keys()
            return frozenset(self._late)

    def note_late(self, member: Member, is_late: bool) -> None:
        with self._changed:
            if is_late and member.uid not in self._late:
                self._late.add(member.uid)
                self._news.semaphores.add(member.semaphore)
                self._changed.notify_all()
            elif not is_late:
                self._late.discard(member.uid)

    def news(self, seconds: float) -> News:
        """What happened since the last time; waits for it, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._news != News(), max(0.0, seconds))
            news, self._news = self._news, News()
            return news

    def wait_for_stop(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped, seconds)

    def stop(self) -> None:
        """Let nobody wait any more; also from a signal handler."""
        threading.Thread(target=self._stop).start()

    def _stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped


def keep_watching(api: Api, pods: Pods, on_error: Callable[[str], None]) -> None:
    """List and watch, and begin anew whatever happens: the API server goes away, forgets a version, or is silent.

    `on_error` is told of what kind it was.
    """
    pause, told = FIRST_PAUSE_SECONDS, ""
    while not pods.is_stopped:
        began = time.monotonic()
        try:
            listed, version = api.members()
            pods.replace(listed)
            for uid, kind, member in api.changes(version):
                pods.put(uid, None if kind == "DELETED" else member)
        except Failures as error:
            on_error("api")
            why = reason_of(error)
            if time.monotonic() - began > LONGEST_PAUSE_SECONDS:  # it went well until now
                pause, told = FIRST_PAUSE_SECONDS, ""
                log.info("watching pods anew: %s", why)
            elif why != told:
                told = why
                log.warning("cannot watch pods: %s", why)
        except Exception:
            on_error("internal")
            log.exception("watching pods failed")
        pods.wait_for_stop(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
