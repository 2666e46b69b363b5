"""Pods that have not started: their reservations last as long as they need."""

import math
import time

from app.reconciler.metrics import Metrics
from app.reconciler.pods import Member, Stage
from app.reconciler.watch import Pods
from app.semaphore.model import Standing
from app.semaphore.semaphores import Semaphores


class Reservations:
    """Sees to pods that have not started, turn by turn. Asks nobody but nodes, so that it comes in time."""

    def __init__(
        self,
        pods: Pods,
        semaphores: Semaphores,
        metrics: Metrics,
        *,
        reservation_seconds: int,
        budget_seconds: float,
    ) -> None:
        """`semaphores` must be others than those of another thread."""
        self._pods, self._semaphores, self._metrics = pods, semaphores, metrics
        self._reservation_seconds, self._budget_seconds = reservation_seconds, budget_seconds
        self._prolong_at = -math.inf

    def turn(self) -> None:
        """Whatever is due."""
        if time.monotonic() < self._prolong_at:
            return
        self._prolong_at = time.monotonic() + self._reservation_seconds / 3
        for member in self._pods.members():
            if member.stage is Stage.STARTING and not member.is_leaving:
                self._prolong(member)

    def _prolong(self, member: Member) -> None:
        deadline = time.monotonic() + self._budget_seconds
        standing = self._semaphores.prolong(member.token, self._reservation_seconds * 1000, deadline)
        if standing is Standing.UNKNOWN:
            self._metrics.count_error("nodes")
        elif member.request and (standing is Standing.LOST) is not (member.uid in self._pods.late):
            self._pods.note_late(member, standing is Standing.LOST)
