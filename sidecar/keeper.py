"""The loop: renews the lease round by round, tells what changes, and gives the slot back at the end.

Knows rounds, signals and the clock. Knows no socket, and never creates a lease: lost is lost until somebody
else grants it anew.
"""

import signal
import time
from _queue import Empty, SimpleQueue
from _thread import start_new_thread
from collections.abc import Callable, Collection

from sidecar.lease import Lease, State
from sidecar.log import log
from sidecar.nodes import Answer, Command, Node, Question
from sidecar.protocol import Keys, Mode, Renewal, majority
from sidecar.rounds import Round
from sidecar.settings import Settings

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# The kubelet may kill a sidecar right after its SIGTERM, so there is no time for more.
LAST_ROUND_SECONDS = 1.0
# A node that gives up together with the round shall still be heard saying why.
GRACE_SECONDS = 0.1


class Keeper:
    """Keeps one lease on all nodes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = False
        self._inbox: SimpleQueue[Answer | None] = SimpleQueue()  # None: a signal asks to stop
        # A node that hangs is given up early enough for more rounds within the lease.
        self._patience_seconds = min(2.0, settings.lease_seconds / 5)
        self._nodes = [
            Node(number, address, settings.login, self._patience_seconds, self._inbox)
            for number, address in enumerate(settings.addresses)
        ]
        self._round = Round(0, len(self._nodes))
        self._claimed: set[int] = set()  # nodes where the reservation has been removed
        keys = Keys(settings.variant)
        self._lease_key = keys.lease(settings.token)
        self._reservation_key = keys.reservation(settings.token)

    def keep(self) -> None:
        """Renew until SIGTERM or SIGINT, which all threads must have blocked, then end as the mode demands."""
        start_new_thread(self._await_signal, ())
        lease = Lease(self._settings.lease_seconds, time.monotonic())
        while not self._stopping:
            asked_at = time.monotonic()
            self._prolong()
            self._listen(self._round_ends(), lambda: self._stopping or self._round.decided())
            if not self._stopping:
                self._judge(lease, asked_at)
                self._listen(lease.next_round(asked_at, time.monotonic()), lambda: self._stopping)
        self._end()

    def renew_once(self) -> Renewal:
        """One round, as the startupProbe does it."""
        self._prolong()
        self._listen(self._round_ends(), self._round.decided)
        return self._round.renewal()

    def failures(self) -> dict[str, str]:
        """Why nodes did not answer the last round, by address."""
        return {
            str(address): self._round.failures.get(node, "no answer in time")
            for node, address in enumerate(self._settings.addresses)
            if node not in self._round.replies
        }

    def _await_signal(self) -> None:
        """For a thread that does nothing else: a handler would not end a wait that begins just after its signal came.

        A second signal changes nothing, and stays blocked.
        """
        signal.sigwait(SIGNALS)
        self._inbox.put(None)

    def _prolong(self) -> None:
        """Ask for a whole lease from now, having removed the reservation where it may still stand.

        In this order: who withdraws reservations then comes either before, and the lease is gone as the renewal says,
        or in vain.
        """
        prolong: Command = ("PEXPIRE", self._lease_key, self._settings.lease_seconds * 1000)
        claim: Command = ("UNLINK", self._reservation_key)
        self._claimed = self._round.claimed(self._claimed)
        self._ask([[prolong] if node in self._claimed else [claim, prolong] for node in range(len(self._nodes))])

    def _release(self, lacking: Collection[int] = ()) -> None:
        """Remove lease and reservation, at silent nodes too; a later grant is claimed anew."""
        release: Command = ("UNLINK", self._lease_key, self._reservation_key)
        self._ask([[] if node in lacking else [release] for node in range(len(self._nodes))])
        self._claimed.clear()

    def _ask(self, commands: list[list[Command]]) -> None:
        self._round = Round(self._round.number + 1, len(self._nodes))
        for node, its_commands in zip(self._nodes, commands, strict=True):
            if its_commands:
                node.ask(Question(self._round.number, its_commands))

    def _round_ends(self) -> float:
        return time.monotonic() + self._patience_seconds + GRACE_SECONDS

    def _listen(self, until: float, enough: Callable[[], bool]) -> None:
        """Take in answers and signals until that instant, or until there are enough of them."""
        while not enough() and (remaining := until - time.monotonic()) > 0:
            try:
                heard = self._inbox.get(timeout=remaining)
            except Empty:
                return
            if heard is None:
                self._stopping = True
            else:
                self._round.take(heard)

    def _judge(self, lease: Lease, asked_at: float) -> None:
        now = time.monotonic()
        outcome = self._round.renewal()
        if event := lease.judge(outcome, asked_at, now):
            left = {} if lease.state is State.LOST else {"lease_lasts_seconds": round(lease.deadline - now, 1)}
            self._log(event.level, event.message, **left, **self._failed())
        if outcome is Renewal.LOST:
            # Only where the lease is left: what a reconciler grants anew just now it grants on the others.
            self._release(self._round.lacking())

    def _failed(self) -> dict[str, object]:
        """For the log; a round that was decided early says nothing of those it did not wait for."""
        return {"failed": self.failures()} if self._round.renewal() is Renewal.UNKNOWN else {}

    def _end(self) -> None:
        if self._settings.mode is Mode.NATIVE:
            self._give_back()
        else:
            self._stay_held()

    def _give_back(self) -> None:
        self._release()
        self._listen(time.monotonic() + LAST_ROUND_SECONDS, self._round.complete)
        failed = {"failed": self.failures()} if self.failures() else {}
        if len(self._round.replies) < majority(len(self._nodes)):
            self._log("warning", "the slot is free only when its lease ends: no majority of nodes answered", **failed)
        elif any(replies[0] for replies in self._round.replies.values()):
            self._log("info", "the slot was given back", **failed)
        else:
            self._log("info", "ending; there was no lease left to give back", **failed)

    def _stay_held(self) -> None:
        """The app got its SIGTERM together with this process and may use up the pod's grace period."""
        self._prolong()
        self._listen(time.monotonic() + LAST_ROUND_SECONDS, self._round.complete)
        self._log("info", "ending; the app may still run, so the slot is free one lease later", **self._failed())

    def _log(self, level: str, message: str, **fields: object) -> None:
        slot = {} if self._settings.slot is None else {"slot": self._settings.slot}
        log(level, message, semaphore=self._settings.semaphore, **slot, **fields)
