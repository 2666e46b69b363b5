"""Faults put into the protocol on purpose: the model has to find each, or it proves nothing."""

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from app.semaphore import quorum
from app.semaphore.commands import Acquire, Command, Release, Renew
from app.semaphore.model import Answer, Granted
from tests.model.node import Node
from tests.model.world import SEMAPHORE

SOURCE = Path(quorum.__file__).read_text()


@dataclass(frozen=True)
class Mutant:
    """A protocol with a fault: other words in quorum.py, a node that misbehaves, or tokens used again."""

    name: str
    says: str = ""
    instead: str = ""
    node: type[Node] = Node
    reuses_tokens: bool = False

    def __str__(self) -> str:
        return self.name

    @functools.cache  # noqa: B019  there are a dozen of them
    def quorum(self) -> ModuleType:
        """The protocol's module, with the fault in it if it is there."""
        if not self.says:
            return quorum
        assert self.says in SOURCE, f"{self.name}: quorum.py does not say {self.says!r} any more"
        module = ModuleType(f"{quorum.__name__}_mutant")
        module.__dict__.update(__package__=quorum.__package__, __file__=quorum.__file__)
        sys.modules[module.__name__] = module  # dataclasses look their module up
        exec(compile(SOURCE.replace(self.says, self.instead), self.name, "exec"), module.__dict__)  # noqa: S102
        return module


class CreatesAtRenewal(Node):
    """A renewal of a lease that has ended makes a new one."""

    def execute(self, command: Command) -> Answer:
        if isinstance(command, Renew) and not self.left_ms(command.token):
            self.leases[command.token] = (self.now_ms + command.lease_ms, "{}")
            return True
        return super().execute(command)


@dataclass
class ReleasesTheSlot(Node):
    """A release ends the lease on the slot that its sender had, whoever holds it now."""

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
    """A record without a live lease is removed, though other nodes keep theirs."""

    collected: bool = False

    def execute(self, command: Command) -> Answer:
        record = self.records.get(SEMAPHORE)
        if record and not any(self.left_ms(token) for token in record.slots.values()):
            del self.records[SEMAPHORE]
            self.collected = True
        return super().execute(command)

    def has_data(self, semaphore: str) -> bool:
        return self.collected or super().has_data(semaphore)


MAJORITY_OF_THE_HEARD = Mutant(
    "a majority of the nodes that were heard",
    "    if sum(answer == pick for answer in answers.values()) >= majority(nodes):",
    "    if sum(answer == pick for answer in answers.values()) >= majority(len(_heard(answers))):",
)
VOTES_WITHOUT_A_RECORD = Mutant(
    "a node without a record votes", "slot=pick.slot, found=found)", "slot=pick.slot, found=True)"
)
REPAIRS_IN_SPITE_OF_A_CONFLICT = Mutant(
    "repair in spite of a conflict",
    "            if known.token != lease.token:\n                return None\n",
    "            if known.token != lease.token:\n                continue\n",
)
NO_RELEASE_TO_THE_UNHEARD = Mutant(
    "no release to nodes that were not heard",
    "            yield from _send_release(token, nodes)\n",
    "            yield Ask({node: Release(token) for node in _heard(ended.answers)}, _at_once)\n",
)
RENEWAL_CREATES = Mutant("a renewal that creates", node=CreatesAtRenewal)
RELEASE_NAMES_NO_TOKEN = Mutant("a release that does not name the token", node=ReleasesTheSlot)
COLLECTING_ALONE = Mutant("collecting on one node alone", node=CollectsAlone)
SAME_TOKEN_AGAIN = Mutant("the same token for every try", reuses_tokens=True)
RENEWAL_KEPT_BY_A_MINORITY = Mutant(
    "a renewal kept by a minority",
    "        return renewal({",
    "        return Renewal.KEPT if any(_heard(answers).values()) else renewal({",
)
SILENT_SEQUENCER_SPENDS_NO_TOKEN = Mutant(
    "a silent sequencer does not spend the token",
    "    return answer.asked if isinstance(answer, Unheard) else isinstance(answer, Granted | Full)",
    "    return isinstance(answer, Granted | Full)",
)

# By how many histories it takes to come upon them.
OFTEN_FOUND = [
    NO_RELEASE_TO_THE_UNHEARD,
    RENEWAL_CREATES,
    RELEASE_NAMES_NO_TOKEN,
    SILENT_SEQUENCER_SPENDS_NO_TOKEN,
]
SELDOM_FOUND = [MAJORITY_OF_THE_HEARD, VOTES_WITHOUT_A_RECORD, SAME_TOKEN_AGAIN]
