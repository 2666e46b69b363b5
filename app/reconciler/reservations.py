"""Pods that have not started: their reservations last as long as they need, and those who wait in vain are told so."""

import logging
import math
import time

from app.reconciler.api import Api, Failures, reason_of
from app.reconciler.events import Events
from app.reconciler.metrics import Metrics
from app.reconciler.pods import Member, Stage
from app.reconciler.watch import Pods
from app.semaphore.model import Standing
from app.semaphore.semaphores import Semaphores

log = logging.getLogger(__name__)


class Reservations:
    """Sees to pods that have not started, turn by turn."""

    def __init__(
        self,
        api: Api,
        pods: Pods,
        semaphores: Semaphores,
        events: Events,
        metrics: Metrics,
        *,
        reservation_seconds: int,
        budget_seconds: float,
    ) -> None:
        """`semaphores` must be others than those of another thread."""
        self._api, self._pods, self._semaphores = api, pods, semaphores
        self._events, self._metrics = events, metrics
        self._reservation_seconds, self._budget_seconds = reservation_seconds, budget_seconds
        self._prolong_at = -math.inf
        self._told: dict[str, str] = {}  # uid → what the pod was told of its annotations

    def turn(self) -> None:
        """Whatever is due."""
        members = self._pods.members()
        self._forget_all_but({member.uid for member in members})
        for member in members:
            if not member.is_leaving:
                self._see_to(member)
        if time.monotonic() >= self._prolong_at:
            self._prolong_at = time.monotonic() + self._reservation_seconds / 3
            for member in members:
                if member.stage is Stage.STARTING and not member.is_leaving:
                    self._prolong(member)

    def _forget_all_but(self, uids: set[str]) -> None:
        self._events.forget_all_but(uids)
        self._told = {uid: problem for uid, problem in self._told.items() if uid in uids}

    def _see_to(self, member: Member) -> None:
        """Tell a pod that cannot be let in, and mark one that has waited too long."""
        if member.stage is Stage.WAITING and member.problem and self._told.get(member.uid) != member.problem:
            self._told[member.uid] = member.problem
            self._events.tell_cannot_wait(member)
        is_too_long = member.has_waited_too_long(time.time())
        if is_too_long is not member.is_marked:
            self._mark(member, is_too_long)

    def _mark(self, member: Member, is_too_long: bool) -> None:
        try:
            self._api.mark(member, is_too_long)
        except Failures as error:
            self._metrics.count_error("api")
            log.warning("cannot label pod %s/%s: %s", member.namespace, member.name, reason_of(error))
        else:
            if is_too_long:
                self._events.tell_waited_too_long(member)

    def _prolong(self, member: Member) -> None:
        deadline = time.monotonic() + self._budget_seconds
        standing = self._semaphores.prolong(member.token, self._reservation_seconds * 1000, deadline)
        if standing is Standing.UNKNOWN:
            self._metrics.count_error("nodes")
        elif member.request and (standing is Standing.LOST) is not (member.uid in self._pods.late):
            self._pods.note_late(member, standing is Standing.LOST)
