"""The loop that lets waiting pods in: whose turn it is, a slot for its token, then its gate.

Two reconcilers do this side by side: a token that has a slot is given the same one again, and a gate is lifted once.
Neither needs to know of the other.

How a freed slot is noticed: by what the API server tells of its pod; or by asking one node, in one go, which of the
semaphores that somebody waits for have fewer leases than slots. That takes the node about a microsecond a slot, is done
a few times a second, and less often where it takes longer.
"""

import itertools
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from app.logs import shortened
from app.reconciler.api import Api, Failures, reason_of
from app.reconciler.events import Events
from app.reconciler.metrics import Metrics
from app.reconciler.pods import Member, Stage, claim_of, queues
from app.reconciler.watch import Pods
from app.semaphore.model import Full, Grant, Unavailable
from app.semaphore.semaphores import Semaphores

log = logging.getLogger(__name__)

POLL_SECONDS = 0.3
LONGEST_POLL_SECONDS = 5.0
POLL_SHARE = 0.05  # of the time, for looking
# A node may say for long that a semaphore is full, and be wrong: a lease was stretched. An admission mends that.
TRY_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
LIFTERS = 4  # gates that are lifted at once
# Slots that one semaphore is given in a turn of the loop, before it is the others' turn.
MOST_IN_A_TURN = 50
# So long a grant is good for lifting a gate, and so long a pod is left to the lifters, as a share of its reservation.
LIFT_SHARE = 1 / 3


@dataclass
class Patience:
    """When a semaphore is worth another try, in monotonic seconds."""

    tried_at: float = -math.inf
    not_before: float = -math.inf
    pause_seconds: float = FIRST_PAUSE_SECONDS

    def is_due(self, now: float, is_vacant: bool) -> bool:
        return now >= self.not_before and (is_vacant or now - self.tried_at >= TRY_SECONDS)

    def note(self, now: float, is_served: bool) -> None:
        """After a try: one in vain, though a slot seemed to be free, is repeated after a pause that grows."""
        self.tried_at = now
        self.not_before = now if is_served else now + self.pause_seconds
        self.pause_seconds = FIRST_PAUSE_SECONDS if is_served else min(2 * self.pause_seconds, LONGEST_PAUSE_SECONDS)


class Grants:
    """Gives slots to the pods that wait."""

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
        self._api, self._pods, self._semaphores = api, pods, semaphores
        self._events, self._metrics = events, metrics
        self._reservation_seconds, self._budget_seconds = reservation_seconds, budget_seconds
        self._lifters = ThreadPoolExecutor(LIFTERS, thread_name_prefix="lift")
        # Pods that have a slot, by uid: until when their gate is left to the lifters, who change it too.
        self._lifting: dict[str, float] = {}
        self._in_vain: dict[str, Patience] = {}  # of gates that could not be lifted, by the pods' uids
        self._patience: dict[str, Patience] = {}
        self._unavailable: dict[str, str] = {}  # what the log has of semaphores that no slot can be had of
        self._poll_at = -math.inf
        self.turned_at = time.monotonic()  # when the loop last went on

    def run(self) -> None:
        """Until the pods are stopped."""
        while not self._pods.is_stopped:
            try:
                self._turn()
            except Exception:
                log.exception("a turn of the loop failed")
                self._metrics.count_error("internal")
                self._poll_at = time.monotonic() + LONGEST_PAUSE_SECONDS
        self._lifters.shutdown(wait=False, cancel_futures=True)

    def _turn(self) -> None:
        news = self._pods.news(self._poll_at - time.monotonic())
        began = self.turned_at = time.monotonic()
        self._end([*news.gone, *news.over])
        waiting = queues(self._waiting(began), time.time())
        self._patience = {name: self._patience.get(name, Patience()) for name in waiting}
        self._unavailable = {name: why for name, why in self._unavailable.items() if name in waiting}
        for name in news.semaphores & waiting.keys():
            self._patience[name].not_before = -math.inf
        if began < self._poll_at:
            self._serve({name: queue for name, queue in waiting.items() if name in news.semaphores})
        else:
            took = self._serve(waiting)
            pause = min(max(POLL_SECONDS, took / POLL_SHARE), LONGEST_POLL_SECONDS)
            self._poll_at = time.monotonic() + pause

    def _waiting(self, now: float) -> Iterable[Member]:
        """Those who need a slot, and have none that we know of."""
        members = self._pods.members()
        gated = {member.uid for member in members if member.stage is Stage.WAITING}
        for known in (self._lifting, self._in_vain):
            for uid in known.keys() - gated:
                known.pop(uid, None)
        late = self._pods.late
        for member in members:
            is_gated = member.stage is Stage.WAITING and self._lifting.get(member.uid, -math.inf) <= now
            if is_gated or (member.stage is Stage.STARTING and member.uid in late):
                yield member

    def _end(self, members: Sequence[Member]) -> None:
        """What renews its lease may still run; only of a pod that is over it is known that nothing does."""
        for member in members:
            self.turned_at = time.monotonic()
            end = self._semaphores.release if member.stage is Stage.OVER else self._semaphores.withdraw
            try:
                end(member.token, self.turned_at + self._budget_seconds)
            except Exception:  # what happened to the others is told only once
                log.exception("a slot was not given back", extra=_facts(member))
                self._metrics.count_error("internal")

    def _serve(self, waiting: Mapping[str, Sequence[Member]]) -> float:
        """Give slots to whom they are free for; how long it took to look which are, in seconds."""
        lengths = {name: max(member.length for member in queue) for name, queue in waiting.items()}
        # What is closed to all who wait is never vacant.
        wanted = {name: length for name, length in lengths.items() if length}
        began = time.monotonic()
        vacant = self._semaphores.vacant(wanted, began + self._budget_seconds) if wanted else frozenset()
        took = time.monotonic() - began
        if vacant is None:
            self._metrics.count_error("nodes")
            vacant = frozenset()
        for name, queue in waiting.items():
            self.turned_at = time.monotonic()
            if self._patience[name].is_due(self.turned_at, name in vacant):
                left = self._let_in(name, queue)
                self._patience[name].note(time.monotonic(), len(left) < len(queue))
                queue = left
            self._events.tell_places(name, queue, self._unavailable.get(name, ""))
            if self._pods.is_stopped:
                break
        return took

    def _let_in(self, semaphore: str, queue: Sequence[Member]) -> list[Member]:
        """Who of the queue has to wait on.

        Each is measured by the length that it brings: who is refused holds up nobody who brings a greater one. After
        some it is the turn of the other semaphores, and this one's again when that of all has come.
        """
        left, full_at, tries = [], 0, 0
        for at, member in enumerate(queue):
            if member.length <= full_at:
                left.append(member)
                continue
            if tries == MOST_IN_A_TURN or self._pods.is_stopped:
                return [*left, *queue[at:]]
            tries += 1
            self.turned_at = time.monotonic()
            claim = claim_of(member, time.time(), self._reservation_seconds)
            deadline = self.turned_at + self._budget_seconds
            match self._semaphores.acquire(claim, itertools.repeat(member.token), deadline):
                case Grant(slot):
                    self._granted(member, slot)
                case Full():
                    left.append(member)
                    full_at = member.length
                case Unavailable(why):
                    self._metrics.count_error("nodes")
                    self._tell_unavailable(semaphore, why)
                    return [*left, *queue[at:]]
        self._tell_unavailable(semaphore, "")
        return left

    def _tell_unavailable(self, semaphore: str, why: str) -> None:
        """Once, as long as it stays the same."""
        if self._unavailable.get(semaphore, "") == why:
            return
        if why:
            self._unavailable[semaphore] = why
            log.warning("semaphore %s is unavailable: %s", semaphore, why, extra={"semaphore": semaphore})
        else:
            del self._unavailable[semaphore]
            log.info("semaphore %s is available again", semaphore, extra={"semaphore": semaphore})

    def _granted(self, member: Member, slot: int) -> None:
        if member.stage is Stage.WAITING:
            until = time.monotonic() + self._reservation_seconds * LIFT_SHARE
            self._lifting[member.uid] = until
            self._lifters.submit(self._lift, member, slot, until)
        else:
            self._pods.note_late(member, is_late=False)
            log.info("its reservation had ended, and it has a slot again", extra=_facts(member, slot))

    def _lift(self, member: Member, slot: int, until: float) -> None:
        """By a thread of its own: the next pod need not wait for the API server.

        What has waited for its turn for so long that the reservation may lapse is left to the loop, which asks for the
        slot once more.
        """
        if time.monotonic() >= until:
            return
        try:
            self._lift_now(member, slot)
        except Exception:
            log.exception("a gate was not lifted", extra=_facts(member, slot))
            self._metrics.count_error("internal")

    def _lift_now(self, member: Member, slot: int) -> None:
        try:
            self._api.lift_gate(member)
        except Failures as error:
            self._look_after(member, error)
            return
        waited = max(0.0, time.time() - member.created)
        self._metrics.observe_wait(waited)
        self._events.tell_granted(member, slot, waited)
        log.info("let in", extra={**_facts(member, slot), "slot_wait_seconds": round(waited, 3)})

    def _look_after(self, member: Member, error: Exception) -> None:
        """Whether the gate is still to be lifted: somebody else may have done so, or the pod is gone."""
        try:
            present = self._api.member(member.namespace, member.name)
        except Failures:
            present = member
        if present is None or present.uid != member.uid or present.is_leaving or present.stage is Stage.OVER:
            self._pods.put(member.uid, None)  # what it was granted is withdrawn
        elif present.stage is Stage.WAITING and not present.has_other_gates:
            self._metrics.count_error("api")
            if member.uid not in self._in_vain:
                log.warning("cannot lift the gate of a pod: %s", reason_of(error), extra=_facts(member))
            patience = self._in_vain.setdefault(member.uid, Patience())
            patience.note(time.monotonic(), is_served=False)
            self._lifting[member.uid] = patience.not_before


def _facts(member: Member, slot: int | None = None) -> Mapping[str, object]:
    """Fields of a log line, named as the webhook's."""
    facts = {
        "namespace": member.namespace,
        "pod": member.name,
        "semaphore": member.semaphore,
        "token": shortened(member.token),
    }
    return facts if slot is None else {**facts, "slot": slot}
