"""Faults put into the protocol on purpose: the model has to find each, or it proves nothing.

`MUTANTS` lists them all: each is killed in every `make test`, by a history that test_stories.py tells, and some by
the search of test_model.py as well. `INDISTINGUISHABLE` lists the rules that no schedule can tell from their absence,
and why they stay.
"""

import functools
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from app.semaphore import quorum
from app.semaphore.commands import Acquire, Command, Release, Renew, Restore, Withdraw
from app.semaphore.model import Answer, Claim, Granted
from sidecar import protocol
from tests.model.node import Kept, Node
from tests.model.world import SEMAPHORE


@dataclass(frozen=True)
class Mutant:
    """A protocol with a fault: other words in a module, a node that misbehaves, or tokens used again."""

    name: str
    fault: str = ""  # in one sentence
    says: str = ""
    instead: str = ""
    where: ModuleType = quorum
    node: type[Node] = Node
    reuses_tokens: bool = False
    founds_anew: bool = False
    keeps_entries: bool = False

    def __str__(self) -> str:
        return self.name

    @functools.cache  # noqa: B019  there are two dozen of them
    def quorum(self) -> ModuleType:
        """The protocol's module, with the fault in it if it is there."""
        if not self.says:
            return quorum
        if self.where is quorum:
            return self._changed(quorum)
        faulty = self._changed(protocol)
        faulty.__dict__["Renewal"] = protocol.Renewal  # the same answers, given wrongly
        copy = _load(quorum, Path(str(quorum.__file__)).read_text())
        copy.__dict__["renewal"] = faulty.__dict__["renewal"]
        return copy

    def _changed(self, original: ModuleType) -> ModuleType:
        source = Path(str(original.__file__)).read_text()
        assert self.says in source, f"{self.name}: {original.__name__} does not say {self.says!r} any more"
        return _load(original, source.replace(self.says, self.instead))


def _load(original: ModuleType, source: str) -> ModuleType:
    module = ModuleType(f"{original.__name__}_mutant")
    module.__dict__.update(__package__=original.__package__, __file__=original.__file__)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, module.__name__, "exec"), module.__dict__)  # noqa: S102
    return module


# Nodes that misbehave ----------------------------------------------------------------------------------------


class VotesWithoutARecord(Node):
    def execute(self, command: Command) -> Answer:
        if isinstance(command, Acquire) and command.slot is not None:
            command = replace(command, found=True)
        return super().execute(command)


class CreatesAtRenewal(Node):
    def execute(self, command: Command) -> Answer:
        if isinstance(command, Renew) and not self.left_ms(command.token):
            self.leases[command.token] = (self.now_ms + command.lease_ms, "{}")
            return True
        return super().execute(command)


@dataclass
class ReleasesTheSlot(Node):
    given: dict[str, int] = field(default_factory=dict)

    def execute(self, command: Command) -> Answer:
        if isinstance(command, Release) and SEMAPHORE in self.records:
            slot = self.given.get(command.token, -1)
            return super().execute(Release(self.records[SEMAPHORE].slots.get(slot, command.token)))
        answer = super().execute(command)
        if isinstance(command, Acquire) and isinstance(answer, Granted):
            self.given[command.token] = answer.slot
        return answer


@dataclass
class CollectsAlone(Node):
    collected: bool = False

    def execute(self, command: Command) -> Answer:
        record = self.records.get(SEMAPHORE)
        if record and not any(self.left_ms(token) for token in record.slots.values()):
            del self.records[SEMAPHORE]
            self.collected = True
        return super().execute(command)

    def has_data(self, semaphore: str) -> bool:
        return self.collected or super().has_data(semaphore)


class WithdrawsTheRenewed(Node):
    def execute(self, command: Command) -> Answer:
        return super().execute(Release(command.token) if isinstance(command, Withdraw) else command)


class RestoresBesides(Node):
    def execute(self, command: Command) -> Answer:
        if isinstance(command, Restore):
            return self._restore_keeping(command)
        return super().execute(command)

    def _restore_keeping(self, command: Restore) -> Answer:
        before = dict(self._slots(command.semaphore))
        answer = super().execute(command)
        if command.semaphore in self.records:
            kept = self.records[command.semaphore].slots
            kept.update({slot: token for slot, token in before.items() if slot not in kept})
        return answer


class TakesAnotherSlot(Node):
    def execute(self, command: Command) -> Answer:
        if isinstance(command, Acquire):
            self.leases.pop(command.token, None)
        return super().execute(command)


class CountsBelowTheLengthOnly(Node):
    def _held_beyond(self, record: Kept, claim: Claim) -> int | None:
        return None


class ForgetsTheBound(Node):
    def execute(self, command: Command) -> Answer:
        before = self.records.get(SEMAPHORE, Kept()).bound
        answer = super().execute(command)
        if isinstance(command, Restore) and SEMAPHORE in self.records:
            self.records[SEMAPHORE].bound = before
        return answer


class NeverCuts(Node):
    def _is_held(self, record: Kept, slot: int, longest_ms: int) -> bool:
        return bool(self.left_ms(record.slots.get(slot, "")))


class RestoresOverOthers(Node):
    def execute(self, command: Command) -> Answer:
        if isinstance(command, Restore) and SEMAPHORE in self.records:
            for slot in command.record.leases:
                self.records[SEMAPHORE].slots.pop(slot, None)
        return super().execute(command)


class RestoresUnasked(Node):
    def execute(self, command: Command) -> Answer:
        if isinstance(command, Restore):
            command = Restore(command.semaphore, command.semaphore in self.records, command.record)
        return super().execute(command)


# The faults --------------------------------------------------------------------------------------------------

MAJORITY_OF_THE_HEARD = Mutant(
    "majority-of-the-heard",
    "A slot is granted by a majority of the nodes that were heard instead of all that are configured.",
    "    if sum(answer == pick for answer in answers.values()) >= majority(nodes):",
    "    if sum(answer == pick for answer in answers.values()) >= majority(len(_heard(answers))):",
)
VOTES_WITHOUT_A_RECORD = Mutant(
    "votes-without-a-record",
    "A node that has no record of the semaphore confirms a slot instead of abstaining.",
    node=VotesWithoutARecord,
)
REPAIRS_IN_SPITE_OF_A_CONFLICT = Mutant(
    "repairs-in-spite-of-a-conflict",
    "A repair goes on where two nodes name different tokens for one slot.",
    "            if known.token != lease.token:\n                return None\n",
    "            if known.token != lease.token:\n                continue\n",
)
NO_RELEASE_TO_THE_UNHEARD = Mutant(
    "no-release-to-the-unheard",
    "A try that failed is released only on the nodes that were heard.",
    "            yield from _send(Withdraw(token), nodes)\n        if",
    "            yield Ask({node: Withdraw(token) for node in _heard(ended.answers)}, _at_once)\n        if",
)
RENEWAL_CREATES = Mutant(
    "renewal-creates", "A renewal of a lease that has ended makes a new one.", node=CreatesAtRenewal
)
RELEASE_NAMES_NO_TOKEN = Mutant(
    "release-names-no-token",
    "A release ends the lease on the slot that its sender had, whoever holds it now.",
    node=ReleasesTheSlot,
)
COLLECTING_ALONE = Mutant(
    "collecting-alone",
    "A node removes a record without a live lease, though other nodes keep theirs.",
    node=CollectsAlone,
)
SAME_TOKEN_AGAIN = Mutant(
    "same-token-again", "The next try of an admission uses the token of the one before.", reuses_tokens=True
)
RENEWAL_KEPT_BY_A_MINORITY = Mutant(
    "renewal-kept-by-a-minority",
    "A renewal counts as kept when any node has kept it.",
    "    if kept >= majority(nodes):",
    "    if kept:",
    where=protocol,
)
LOST_IS_NOT_ENDED = Mutant(
    "lost-is-not-ended",
    "A lease that a majority has lost is not released, and goes on being renewed where a minority has it.",
    "        yield from _send(Release(token), nodes)\n    return outcome",
    "        pass\n    return outcome",
)
SILENT_SEQUENCER_SPENDS_NO_TOKEN = Mutant(
    "silent-sequencer-spends-no-token",
    "After a sequencer that was asked and is silent the next one is asked with the same token.",
    "    return answer.asked if isinstance(answer, Unheard) else isinstance(answer, Granted | Full)",
    "    return isinstance(answer, Granted | Full)",
)
FOUNDS_THOUGH_KNOWN = Mutant(
    "founds-though-known",
    "A semaphore is founded when a majority does not know it, though a node was heard that does.",
    "    return unknown >= majority(nodes) and not any(_ends_search(answer) for answer in answers.values())",
    "    return unknown >= majority(nodes)",
)
FOUNDS_OVER_ANOTHER_CONNECTION = Mutant(
    "founds-over-another-connection",
    "A semaphore is founded on a node that was restarted after it had said that it does not know it.",
    founds_anew=True,
)
FOUNDS_BY_A_MINORITY = Mutant(
    "founds-by-a-minority",
    "A semaphore is founded when nobody was heard that knows it, though no majority was heard.",
    "    return unknown >= majority(nodes) and",
    "    return unknown > 0 and",
)
OTHERS_PICK_FOR_THEMSELVES = Mutant(
    "others-pick-for-themselves",
    "The others are asked for any slot from the sequencer's on, instead of exactly that one.",
    "token, slot=pick.slot, found=found)",
    "token, start=pick.slot, found=found)",
)
ALWAYS_THE_SAME_SEQUENCER = Mutant(
    "always-the-same-sequencer",
    "The first node in the order picks at every try, however often others know better.",
    "            order = sorted(range(nodes), key=lambda node: node not in ended.doubters)",
    "            pass",
)
REPAIRS_FROM_A_MINORITY = Mutant(
    "repairs-from-a-minority",
    "A repair writes what a minority of records says while a node that may know more is unheard.",
    "    if not records or (len(records) < majority(nodes) and len(records) + len(empty) < nodes):",
    "    if not records:",
)
RESTORED_LEASES_DO_NOT_AGE = Mutant(
    "restored-leases-do-not-age",
    "A repair writes the time that a lease had left when it was read, however long ago that was.",
    "    age_ms = round((clock() - asked) * 1000)",
    "    age_ms = 0",
)
RESTORES_OVER_OTHERS = Mutant(
    "restores-over-others",
    "A repair writes into a slot that another token has taken meanwhile.",
    node=RestoresOverOthers,
)
RESTORES_UNASKED = Mutant(
    "restores-unasked",
    "A repair writes what a record lacked to a node that has lost all of its record meanwhile.",
    node=RestoresUnasked,
)
TAKES_ANOTHER_SLOT = Mutant(
    "takes-another-slot",
    "A token that holds a slot on a node already is given another one there.",
    node=TakesAnotherSlot,
)
COUNTS_BELOW_THE_LENGTH_ONLY = Mutant(
    "counts-below-the-length-only",
    "After a length was reduced, leases at or past it do not count.",
    node=CountsBelowTheLengthOnly,
)
FORGETS_THE_BOUND = Mutant(
    "forgets-the-bound",
    "A repair does not raise `bound`, so that leases past a reduced length are not looked for.",
    node=ForgetsTheBound,
)
NEVER_CUTS = Mutant(
    "never-cuts",
    "A lease that has more left than any ever had, because somebody stretched it, is not cut down.",
    node=NeverCuts,
)
WITHDRAWS_THE_RENEWED = Mutant(
    "withdraws-the-renewed",
    "A withdrawal ends a lease that a sidecar has renewed.",
    node=WithdrawsTheRenewed,
)
KEEPS_ENTRIES = Mutant(
    "keeps-entries",
    "A token that is granted a slot once more keeps its entry for the one it had before.",
    keeps_entries=True,
)
RESTORES_BESIDES = Mutant(
    "restores-besides",
    "A repair that brings back the lease of a token leaves the token's entry for a slot that it had before.",
    node=RestoresBesides,
)

MUTANTS = [each for each in list(globals().values()) if isinstance(each, Mutant)]

# Found by the search too: these within some hundred histories in every `make test`, the others in `make model`.
OFTEN_FOUND = [
    NO_RELEASE_TO_THE_UNHEARD,
    RENEWAL_CREATES,
    RELEASE_NAMES_NO_TOKEN,
    SAME_TOKEN_AGAIN,
    SILENT_SEQUENCER_SPENDS_NO_TOKEN,
    OTHERS_PICK_FOR_THEMSELVES,
]
SELDOM_FOUND = [
    MAJORITY_OF_THE_HEARD,
    LOST_IS_NOT_ENDED,
    RESTORED_LEASES_DO_NOT_AGE,
    COUNTS_BELOW_THE_LENGTH_ONLY,
    WITHDRAWS_THE_RENEWED,
]

INDISTINGUISHABLE = {
    "the sequencer is the first in the configured order": "Any order is as safe: a slot needs a majority all the "
    "same. A common one makes contenders queue up at one node; in different orders they split the vote, and all "
    "spend their tries.",
    "FULL from the sequencer ends the admission": "Asking on would be as safe. It would cost a refused pod one more "
    "round trip for each node, and refusals are what comes in numbers.",
    "a node that said UNKNOWN is not asked to confirm": "It would say UNKNOWN again, or be repaired meanwhile and "
    "confirm rightly: one message saved, no promise.",
    "a node with a record is only told leases that a majority holds": "A lease that fewer hold is that of a try under "
    "way or of a release half done. Telling it to all would hold its slot on more nodes until it ends, which "
    "no promise forbids: it costs slots for as long as a reservation.",
    "answers are awaited only until they decide": "More answers change no outcome; it saves the wait for a slow node.",
    "the pause between two tries": "Schedules pause as they like. It makes contenders that collide drift apart.",
    "`touched`": "Only the removal of idle records reads it, a day later: no schedule here lasts as long.",
}
