"""What the nodes have, read all through now and then: what nobody needs is removed, what a node lacks is repaired.

Nothing here ends a lease that a sidecar has renewed: a pod that the API server does not know may still run.
"""

import logging
import time
from collections.abc import Callable

from app.logs import shortened
from app.reconciler.api import Api, Failures, reason_of
from app.reconciler.metrics import Metrics
from app.reconciler.pods import Member, Stage
from app.reconciler.watch import Pods
from app.semaphore.semaphores import Semaphores
from app.semaphore.survey import Overview, Slot
from sidecar.protocol import majority

log = logging.getLogger(__name__)

# All semaphores are read this often, and less often where that takes long: no more than this share of the time.
SURVEY_SECONDS = 10.0
SURVEY_SHARE = 0.05
READ_SECONDS = 20.0
# The API server gives a request up after this long: what was admitted and is no pod by then will be none.
GRACE_SECONDS = 60.0
COLLECT_SECONDS = 600.0
# A record that nobody has touched for so long is removed. Being there costs little, and founding anew is not free.
IDLE_SECONDS = 24 * 60 * 60


class Upkeep:
    """Sees to the nodes, turn by turn."""

    def __init__(
        self,
        api: Api,
        pods: Pods,
        semaphores: Semaphores,
        metrics: Metrics,
        *,
        nodes: int,
        budget_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`semaphores` must be others than those of another thread."""
        self._api, self._pods, self._semaphores, self._metrics = api, pods, semaphores, metrics
        self._nodes, self._budget_seconds, self._clock = nodes, budget_seconds, clock
        self._survey_at = self._collect_at = clock()
        self._orphans: dict[str, float] = {}  # tokens of reservations that no pod has: since when that is known

    def turn(self) -> None:
        """Whatever is due."""
        began = self._clock()
        if began >= self._survey_at:
            try:
                self._survey()
            finally:
                now = self._clock()
                self._survey_at = now + max(SURVEY_SECONDS, (now - began) / SURVEY_SHARE)

    def _deadline(self) -> float:
        return time.monotonic() + self._budget_seconds

    def _survey(self) -> None:
        overview = self._semaphores.overview(time.monotonic() + READ_SECONDS)
        if self._nodes - len(overview.unheard) < majority(self._nodes):
            self._metrics.pods_without_lease = None
            self._metrics.count_error("nodes")
            return
        # Read after the nodes: who was granted a slot before is among them by now, if ever.
        members = self._pods.members()
        self._count_without_lease(overview, members)
        self._withdraw_orphans(overview, members)
        self._repair(overview)
        if not overview.unheard and self._clock() >= self._collect_at:
            self._collect_at = self._clock() + COLLECT_SECONDS
            self._collect(overview)

    def _count_without_lease(self, overview: Overview, members: list[Member]) -> None:
        held = {slot.lease.token for state in overview.states for slot in state.held}
        running = [member for member in members if member.stage is Stage.RUNNING and not member.is_leaving]
        self._metrics.pods_without_lease = sum(
            member.token not in held for member in running if member.semaphore not in overview.unreadable
        )

    def _withdraw_orphans(self, overview: Overview, members: list[Member]) -> None:
        """End reservations whose pod never came to exist: somebody refused it after us, or the answer was lost."""
        known = {member.token for member in members}
        now = self._clock()
        unknown = {
            slot.lease.token: (state.semaphore, slot)
            for state in overview.states
            for slot in (*state.held, *state.unconfirmed)
            if slot.is_reserved and slot.lease.token not in known
        }
        self._orphans = {token: self._orphans.get(token, now) for token in unknown}
        due = {token for token, since in self._orphans.items() if now - since >= GRACE_SECONDS}
        by_namespace: dict[str, dict[str, tuple[str, Slot]]] = {}
        for token in due:
            namespace = unknown[token][0].partition("/")[0]
            by_namespace.setdefault(namespace, {})[token] = unknown[token]
        for namespace, orphans in by_namespace.items():
            self._withdraw_of(namespace, orphans)

    def _withdraw_of(self, namespace: str, orphans: dict[str, tuple[str, Slot]]) -> None:
        try:  # what we know of pods may be old
            known = self._api.tokens(namespace)
        except Failures as error:
            self._metrics.count_error("api")
            log.warning("cannot list the pods of namespace %s: %s", namespace, reason_of(error))
            return
        for token in orphans.keys() - known:
            semaphore, slot = orphans[token]
            self._semaphores.withdraw(token, self._deadline())
            facts = {"semaphore": semaphore, "slot": slot.number, "token": shortened(token)}
            log.info("withdrew a reservation whose pod does not exist", extra=facts)

    def _repair(self, overview: Overview) -> None:
        """What is away cannot be repaired, and is no reason to try."""
        heard = self._nodes - len(overview.unheard)
        lacking = [state.semaphore for state in overview.states if state.records < heard or any(state.lacking.values())]
        for semaphore in (*lacking, *(() if overview.unheard else overview.unreadable)):
            self._semaphores.repair(semaphore, self._deadline())

    def _collect(self, overview: Overview) -> None:
        idle = [state.semaphore for state in overview.states if not state.held and not state.unconfirmed]
        for semaphore in idle:
            if self._semaphores.collect(semaphore, IDLE_SECONDS, self._deadline()):
                log.info("removed an idle record", extra={"semaphore": semaphore})
