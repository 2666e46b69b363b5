"""Pods that wait in vain are told so: those whose annotations ask for no slot, and those that have waited too long."""

import logging
import time

from app.reconciler.api import Api, Failures, reason_of
from app.reconciler.events import Events
from app.reconciler.grants import Patience
from app.reconciler.metrics import Metrics
from app.reconciler.pods import Member, Stage
from app.reconciler.watch import Pods

log = logging.getLogger(__name__)


class Notices:
    """Sees to pods that wait, turn by turn. The API server may take its time: nothing else waits for it."""

    def __init__(self, api: Api, pods: Pods, events: Events, metrics: Metrics) -> None:
        self._api, self._pods, self._events, self._metrics = api, pods, events, metrics
        self._told: dict[str, str] = {}  # uid → what the pod was told of its annotations
        self._patience: dict[str, Patience] = {}  # of pods that could not be labelled, by uid

    def turn(self) -> None:
        """Tell whatever is new. A label that cannot be set ends the turn: maybe none can, and each try takes long."""
        members = {member.uid: member for member in self._pods.members()}
        self._events.forget_all_but(members.keys())
        self._told = {uid: problem for uid, problem in self._told.items() if uid in members}
        self._patience = {uid: patience for uid, patience in self._patience.items() if uid in members}
        for member in members.values():
            if not member.is_leaving and not self._see_to(member):
                return

    def _see_to(self, member: Member) -> bool:
        """Tell a pod that cannot be let in, and mark one that has waited too long; whether nothing was in vain."""
        if member.stage is Stage.WAITING and member.problem and self._told.get(member.uid) != member.problem:
            self._told[member.uid] = member.problem
            self._events.tell_cannot_wait(member)
        is_too_long = member.has_waited_too_long(time.time())
        patience = self._patience.get(member.uid)
        if is_too_long is member.is_marked or (patience and not patience.is_due(time.monotonic(), is_vacant=True)):
            return True
        is_marked = self._mark(member, is_too_long)
        if not is_marked:
            self._patience.setdefault(member.uid, Patience()).note(time.monotonic(), is_served=False)
        return is_marked

    def _mark(self, member: Member, is_too_long: bool) -> bool:
        try:
            self._api.mark(member, is_too_long)
        except Failures as error:
            self._metrics.count_error("api")
            log.warning("cannot label pod %s/%s: %s", member.namespace, member.name, reason_of(error))
            return False
        if is_too_long:
            self._events.tell_waited_too_long(member)
        return True
