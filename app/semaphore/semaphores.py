"""All semaphores kept on some nodes: drives the protocol over real connections, under a deadline.

Knows sockets and time, decides nothing: see quorum.py.
"""

import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from app.semaphore import quorum, survey
from app.semaphore.commands import Acquire, Command, Release, Restore, Withdraw
from app.semaphore.model import Answer, Claim, Outcome, Record, Standing, Unavailable, Unheard, Unknown
from app.semaphore.node import Node
from app.semaphore.survey import Health, Overview
from sidecar.protocol import Address, Renewal, majority

T = TypeVar("T")

# How many names of semaphores a worker remembers.
REMEMBERED = 10_000
# So many are read before whoever asked for all is told how far that has come.
READ_AT_ONCE = 1000


class Semaphores:
    """The semaphores on `nodes`. A deadline is an instant of `time.monotonic()`."""

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        patience_seconds: float,
        rng: Random | None = None,
        on_repair: Callable[[Address], None] = lambda _: None,
    ) -> None:
        self._nodes = nodes
        self._on_repair = on_repair
        self._patience_seconds = patience_seconds
        self._rng = rng or Random()
        # Semaphores that were asked for, and those of which a node may lack something: it may have missed a grant,
        # or come back empty. A lease that only a bare majority knows is lost with the next node that fails.
        self._seen = _Remembered()
        self._behind = _Remembered()
        self._connections = [0 for _ in nodes]

    def acquire(self, claim: Claim, tokens: Iterable[str], deadline: float) -> Outcome:
        """Get a slot; each try uses up one of `tokens`. What is not granted is withdrawn before this returns."""
        steps = quorum.acquire(claim, len(self._nodes), tokens, self._rng, time.monotonic)
        outcome = self._drive(steps, deadline)
        if claim.semaphore not in self._seen:  # what its nodes lack another worker may have known, which is gone
            self._seen.add(claim.semaphore)
            self._behind.add(claim.semaphore)
        self._catch_up(claim.semaphore, deadline)
        return self._named(outcome) if isinstance(outcome, Unavailable) else outcome

    def renew(self, token: str, lease_ms: int, deadline: float) -> Renewal:
        """Prolong a lease by its token."""
        return self._drive(quorum.renew(token, lease_ms, len(self._nodes)), deadline)

    def release(self, token: str, deadline: float) -> bool:
        """End a lease by its token; whether a majority has answered."""
        return self._drive(quorum.release(Release(token), len(self._nodes)), deadline)

    def withdraw(self, token: str, deadline: float) -> bool:
        """End a lease by its token if no sidecar has renewed it yet; whether a majority has answered."""
        return self._drive(quorum.release(Withdraw(token), len(self._nodes)), deadline)

    def prolong(self, token: str, reservation_ms: int, deadline: float) -> Standing:
        """Give the token's reservation so much time from now; how it stands."""
        return self._drive(quorum.prolong(token, reservation_ms, len(self._nodes)), deadline)

    def vacant(self, lengths: Mapping[str, int], deadline: float) -> frozenset[str] | None:
        """Which of these semaphores may have a slot to give, a hint; None if no node answered."""
        return self._drive(quorum.vacant(lengths, len(self._nodes)), deadline)

    def collect(self, semaphore: str, idle_seconds: int, deadline: float) -> bool:
        """Remove the record of a semaphore that nobody has used for so long; whether all nodes agreed."""
        return self._drive(quorum.collect(semaphore, idle_seconds, len(self._nodes)), deadline)

    def repair(self, semaphore: str, deadline: float) -> bool:
        """Bring nodes up to date that lack the semaphore's record or leases in it; whether no node is left out."""
        return self._drive(quorum.repair(semaphore, len(self._nodes), time.monotonic), deadline)

    def is_recent(self, semaphore: str, slot: int, token: str, within_ms: int, deadline: float) -> bool:
        """Whether an admission was granted the slot for the token within so long, and no sidecar has renewed since."""
        return self._drive(quorum.recent(semaphore, slot, token, within_ms, len(self._nodes)), deadline)

    def health(self, deadline: float) -> Mapping[Address, Health]:
        """How each node is, one after the other."""
        # Once for all of them: what it takes is no part of how long a node takes to answer.
        self._connect(min(time.monotonic() + self._patience_seconds, deadline))
        return {
            node.address: self._drive(survey.health(number, time.monotonic, time.time), deadline)
            for number, node in enumerate(self._nodes)
        }

    def overview(
        self, deadline: float, only: str | None = None, on_read: Callable[[int, int], None] = lambda *_: None
    ) -> Overview:
        """Who holds what, of all semaphores or of one; `on_read` is told how many of how many have been read."""
        unheard: dict[int, str] = {}
        if only is None:
            found, unheard_of_all = self._drive(survey.names(len(self._nodes)), deadline)
            unheard.update(unheard_of_all)
            if len(self._nodes) - len(unheard) < majority(len(self._nodes)):
                return Overview((), (), {}, unheard)
        else:
            found = frozenset([only])
        semaphores = sorted(found)
        records: dict[int, dict[str, Record | Unknown]] = {number: {} for number in range(len(self._nodes))}
        for at in range(0, len(semaphores), READ_AT_ONCE):
            some = semaphores[at : at + READ_AT_ONCE]
            read, silent = self._drive(survey.read(some, len(self._nodes)), deadline)
            for number, of_node in read.items():
                records[number].update(of_node)
            unheard.update(silent)
            on_read(at + len(some), len(semaphores))
        return survey.overview(semaphores, records, unheard, len(self._nodes))

    def close(self) -> None:
        for node in self._nodes:
            node.close()

    def _catch_up(self, semaphore: str, deadline: float) -> None:
        """Once all nodes are well again, tell them what they lack: of this semaphore or else of another one."""
        connections = [node.connections for node in self._nodes]
        if connections != self._connections:
            self._connections = connections
            for seen in self._seen:
                self._behind.add(seen)
        if not self._behind or any(node.is_passed_over for node in self._nodes):
            return
        behind = semaphore if semaphore in self._behind else next(iter(self._behind))
        self._behind.discard(behind)
        if not self.repair(behind, deadline):
            self._behind.add(behind)  # last of all: one that cannot be repaired must not keep others from it

    def _note(self, command: Command, answer: Answer) -> None:
        """Remember what a node missed: it was not asked, gave no answer, or has no record to write it in."""
        if isinstance(command, Acquire) and isinstance(answer, Unheard | Unknown):
            self._behind.add(command.claim.semaphore)

    def _drive(self, steps: quorum.Steps[T], deadline: float) -> T:
        answers: Mapping[int, Answer] = {}
        try:
            step = next(steps)
            while True:
                if isinstance(step, quorum.Pause):
                    time.sleep(max(0.0, min(step.seconds, deadline - time.monotonic())))
                else:
                    answers = self._ask(step, deadline)
                step = steps.send(answers)
        except StopIteration as end:
            result: T = end.value
            return result

    def _ask(self, ask: quorum.Ask, deadline: float) -> Mapping[int, Answer]:
        """Send to all, then read, and stop as soon as the answers suffice or the nodes' patience is used up."""
        if ask.connects:
            self._connect(min(time.monotonic() + self._patience_seconds, deadline))
        until = min(time.monotonic() + self._patience_seconds, deadline)
        answers: dict[int, Answer] = {}
        awaited: dict[int, Command] = {}
        in_time = time.monotonic() < until
        for number, command in ask.commands.items():
            if not in_time and not isinstance(command, Release):
                answers[number] = Unheard("no time left", asked=False)
            elif unheard := self._nodes[number].send(command):
                answers[number] = unheard
            else:
                awaited[number] = command
        while awaited and not ask.enough(answers):
            heard = self._hear(awaited, until)
            answers.update(heard or {number: self._silent(until, deadline) for number in awaited})
            awaited = {number: command for number, command in awaited.items() if number not in answers}
        for number, answer in answers.items():
            command = ask.commands[number]
            if isinstance(answer, Unheard):
                self._note(command, answer)
            elif isinstance(command, Restore) and isinstance(answer, int) and answer >= 0:
                self._on_repair(self._nodes[number].address)
        return answers

    def _connect(self, until: float) -> None:
        """See to connections. Failed nodes are waited for only where there is no majority without them."""
        for node in self._nodes:
            self._prepare(node)
        for node in self._nodes:
            node.wait_until_connected(until)
        well = sum(not node.is_passed_over for node in self._nodes)
        if well < majority(len(self._nodes)):
            for node in self._nodes:
                self._prepare(node, at_once=True)
            for node in self._nodes:
                node.wait_until_connected(until, at_once=True)

    def _prepare(self, node: Node, *, at_once: bool = False) -> None:
        for command, answer in node.prepare(at_once=at_once):
            self._note(command, answer)

    def _hear(self, awaited: Mapping[int, Command], until: float) -> dict[int, Answer]:
        """The next answers to what is awaited, nothing if the time is over. Answers to earlier commands come late."""
        poll = select.poll()
        numbers = {self._nodes[number].fileno(): number for number in awaited}
        for descriptor in numbers:
            poll.register(descriptor, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            ready = [numbers[descriptor] for descriptor, _ in poll.poll(left * 1000)]
            heard: dict[int, Answer] = {}
            for number in ready:
                for command, answer in self._nodes[number].receive():
                    if command is awaited[number]:
                        heard[number] = answer
                    else:
                        self._note(command, answer)
            if heard:
                return heard
        return {}

    def _silent(self, until: float, deadline: float) -> Unheard:
        return Unheard(
            "no time left" if until >= deadline else f"no answer within {self._patience_seconds * 1000:.0f} ms"
        )

    def _named(self, unavailable: Unavailable) -> Unavailable:
        """With the addresses of the nodes instead of their numbers."""
        causes = "; ".join(f"{self._nodes[number].address}: {why}" for number, why in unavailable.unheard.items())
        return replace(unavailable, why=f"{unavailable.why} ({causes})") if causes else unavailable


class _Remembered:
    """Names in the order in which they came; the oldest is forgotten when there are too many."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        if name not in self._names and len(self._names) >= REMEMBERED:
            del self._names[next(iter(self._names))]
        self._names[name] = None

    def discard(self, name: str) -> None:
        self._names.pop(name, None)
