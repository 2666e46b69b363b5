"""What the protocol costs by itself: `Semaphores` over real nodes, which are as durable as in production.

Round trips are counted. Times are ratios to a PING of the same nodes by the same code, taken right beside; a round
goes through all cases in random order, and told is the median of the rounds. Every slot has been held before, which is
how a record looks that has been in use, and which ones are held is random.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

from app.admission.holder import holder_of
from app.semaphore import quorum
from app.semaphore.commands import Command, Renew, Restore, Words
from app.semaphore.model import Answer, Claim, Full, Grant, Lease, Outcome, Record
from app.semaphore.semaphores import Semaphores
from sidecar.protocol import Keys
from tests.bench.report import Report
from tests.harness.nodes import HOOK_PASSWORD, HOOK_USER, RedisNode, redis_nodes
from tests.harness.semaphores import connected_to
from tests.harness.webhook import pod_asking

PART = "protocol"
NODES = (1, 3, 5)
USUAL_NODES = 3
LENGTHS = (1, 10, 100, 1_000, 10_000)
ROUNDS = 15
BATCH = 10
# Longer than it all takes, so that what is held stays so.
LIFE_MS = 600_000
# So long that it never counts, however busy the machine is.
PATIENCE_SECONDS = 10.0
HOLDER = holder_of(pod_asking(), since=1_750_000_000, expiration_seconds=60)


@dataclass(frozen=True, slots=True)
class Plain:
    """A command of Redis as it stands, whose reply does not matter."""

    given: Words

    def words(self, _keys: Keys, _sha: Mapping[str, str]) -> Words:
        return self.given

    def answer(self, _reply: Any) -> Answer:
        return True


PING, TIME = Plain(("PING",)), Plain(("TIME",))


class CountingSemaphores(Semaphores):
    """Counts its round trips: each time that something is sent to nodes, and an answer is waited for."""

    round_trips = 0

    def ask(self, command: Command) -> None:
        """All nodes at once, as the protocol does it, until all have answered."""
        commands = dict.fromkeys(range(len(self._nodes)), command)
        answers = self._ask(quorum.Ask(commands, lambda _: False), _deadline())
        assert all(isinstance(answer, int) for answer in answers.values()), answers

    def _ask(self, ask: quorum.Ask, deadline: float) -> Mapping[int, Answer]:
        self.round_trips += bool(ask.commands) and not ask.enough({})
        return super()._ask(ask, deadline)


@contextmanager
def counting_semaphores(
    nodes: Sequence[RedisNode], user: str, password: str, rng: Random
) -> Iterator[CountingSemaphores]:
    """Semaphores of one worker that logs in as this user."""
    connections = connected_to(nodes, PATIENCE_SECONDS, user, password)
    semaphores = CountingSemaphores(connections, patience_seconds=PATIENCE_SECONDS, rng=rng)
    try:
        yield semaphores
    finally:
        semaphores.close()


@dataclass(frozen=True, eq=False)
class Site:
    """Some nodes, semaphores on them with the rights of the webhook, and others that may do everything."""

    nodes: Sequence[RedisNode]
    webhook: CountingSemaphores
    tester: CountingSemaphores
    rng: Random

    @property
    def name(self) -> str:
        return f"{len(self.nodes)} node{'s' * (len(self.nodes) > 1)}"

    def commands(self) -> int:
        """How many the webhook has sent, as the nodes themselves counted: scripts and releases."""
        self.webhook.ask(TIME)  # behind what is still under way
        return sum(node.calls("evalsha", "unlink") for node in self.nodes)

    def token(self) -> str:
        return self.rng.randbytes(16).hex()


@dataclass(frozen=True)
class Case:
    """A semaphore of which so many slots are held."""

    site: Site
    length: int
    held: int
    fill: str

    @property
    def semaphore(self) -> str:
        return f"bench/{len(self.site.nodes)}-{self.length}-{self.held}"

    def __str__(self) -> str:
        return f"length {self.length:,}, {self.fill}"

    @property
    def is_full(self) -> bool:
        return self.held == self.length

    def prepare(self) -> list[str]:
        """Found it by an admission, then write its leases to the nodes; the tokens of all slots."""
        self.acquire(founder := self.site.token())
        self.release(founder)
        tokens = [self.site.token() for _ in range(self.length)]
        held = set(self.site.rng.sample(range(self.length), self.held))
        write(self.site.webhook, self.semaphore, tokens, held, recorded=True)
        return tokens

    def acquire(self, token: str) -> Outcome:
        return acquire(self.site.webhook, self.semaphore, self.length, token)

    def release(self, token: str) -> None:
        assert self.site.webhook.release(token, _deadline())

    def times(self, measure: Callable[[], object]) -> "Times":
        """Admissions and as many of these measures in turn, which leave it as full as it was."""
        measures, acquired, both = [], [], []
        for token in [self.site.token() for _ in range(BATCH)]:
            measures.append(seconds(measure))
            began = time.perf_counter()
            outcome = self.acquire(token)
            acquired.append(time.perf_counter() - began)
            assert isinstance(outcome, Full if self.is_full else Grant), outcome
            if not self.is_full:
                self.release(token)
            both.append(time.perf_counter() - began)
        unit = median(measures)
        return Times(unit, median(acquired) / unit, median(both) / unit)


@dataclass(frozen=True)
class Times:
    """Medians: of the measure in seconds, of an admission without and with its release in measures."""

    measure: float
    acquire: float
    both: float


def measure(report: Report) -> None:
    rng = Random(report.seed)
    with redis_nodes(max(NODES)) as running, ExitStack() as stack:
        sites = {}
        for count in NODES:
            nodes = running[:count]
            webhook = stack.enter_context(counting_semaphores(nodes, HOOK_USER, HOOK_PASSWORD, rng))
            tester = stack.enter_context(counting_semaphores(nodes, "tester", "tester", rng))
            sites[count] = Site(nodes, webhook, tester, rng)
        for site in sites.values():
            count_round_trips(report, site)
        measure_times(report, sites)


def count_round_trips(report: Report, site: Site) -> None:
    semaphore, first, second = f"bench/{len(site.nodes)}", site.token(), site.token()

    def counted(what: str, act: Callable[[], object], wanted: type, at_most: float | None = None) -> None:
        commands, site.webhook.round_trips = site.commands(), 0
        outcome = act()
        assert isinstance(outcome, wanted), outcome
        report.add(PART, f"{what}, {site.name}", site.webhook.round_trips, "round trips", at_most=at_most)
        report.add(PART, f"{what}, {site.name}", site.commands() - commands, "commands, as the nodes counted")

    counted("first admission ever", lambda: acquire(site.webhook, semaphore, 2, first), Grant)
    counted("admission", lambda: acquire(site.webhook, semaphore, 2, second), Grant, at_most=2)
    counted("refusal", lambda: acquire(site.webhook, semaphore, 2, site.token()), Full, at_most=1)
    counted("release", lambda: site.webhook.release(first, _deadline()), bool)
    with counting_semaphores(site.nodes, HOOK_USER, HOOK_PASSWORD, site.rng) as fresh:
        acquire(fresh, semaphore, 2, site.token())
        report.add(PART, f"a worker's first admission to it, {site.name}", fresh.round_trips, "round trips")


def measure_times(report: Report, sites: Mapping[int, Site]) -> None:
    usual = sites[USUAL_NODES]
    cases = [case for site in sites.values() for case in cases_on(site)]
    tokens = {case: case.prepare() for case in cases}
    named = {(case.length, case.fill): case for case in cases if case.site is usual}
    half_full, largest = named[100, "half full"], named[10_000, "full"]
    few, many = named[100, "a tenth free"], named[10_000, "a tenth free"]
    held = Renew(tokens[largest][0], LIFE_MS)

    def in_pings(case: Case) -> Times:
        return case.times(lambda: case.site.tester.ask(PING))

    rounds, in_writes, in_reads, unsynced = [], [], [], []
    for _ in range(report.times(ROUNDS)):
        rounds.append({case: in_pings(case) for case in usual.rng.sample(cases, len(cases))})
        in_writes.append(half_full.times(lambda: usual.webhook.ask(held)))
        in_reads.append(largest.times(lambda: read(largest, tokens[largest])))
        with without_sync(usual.nodes):
            unsynced.append(in_pings(half_full))

    def tell(what: str, values: Iterable[float], unit: str, at_most: float | None = None) -> None:
        report.add(PART, what, median(values), unit, at_most=at_most)

    pings = f"x a PING of {usual.name}"
    tell(f"PING of {usual.name}", (times[half_full].measure * 1e6 for times in rounds), "µs, this machine")
    for case in cases:
        what, unit = "refusal" if case.is_full else "acquire", f"x a PING of {case.site.name}"
        at_most = 4 if case is half_full else None
        tell(f"{what}, {case}", (times[case].acquire for times in rounds), unit, at_most)
        if not case.is_full:
            tell(f"acquire and release, {case}", (times[case].both for times in rounds), unit)
    tell(f"acquire, {half_full}", (times.acquire for times in in_writes), "x a write that they sync to disk", at_most=3)
    synced = (write.measure / times[half_full].measure for write, times in zip(in_writes, rounds, strict=True))
    tell("a write that they sync to disk", synced, pings)
    tell(f"acquire, {half_full}, if they did not sync", (times.acquire for times in unsynced), pings, at_most=4)
    grown = (times[many].acquire / times[few].acquire for times in rounds)
    tell(f"acquire, {many}", grown, f"x the same of length {few.length}", at_most=2)
    tell(f"refusal, {largest}", (times.acquire for times in in_reads), "x HGETALL, then MGET of its leases", at_most=4)


def cases_on(site: Site) -> Iterator[Case]:
    """Where two fills come to the same, the later name here says it."""
    is_usual = len(site.nodes) == USUAL_NODES
    for length in LENGTHS if is_usual else (100,):
        fills = {length // 2: "half full"}
        if is_usual:
            fills |= {length - length // 10: "a tenth free", length - 1: "all but one held", length: "full"}
        for held, fill in sorted((fills | {0: "empty"}).items()):
            yield Case(site, length, held, fill)


@contextmanager
def without_sync(nodes: Sequence[RedisNode]) -> Iterator[None]:
    """Meanwhile they answer before what they have written is on the disk: what is left is the protocol's own part."""
    set_sync(nodes, "no")
    yield
    set_sync(nodes, "always")


def set_sync(nodes: Sequence[RedisNode], when: str) -> None:
    for node in nodes:
        with node.client() as client:
            client.config_set("appendfsync", when)


def read(case: Case, tokens: Sequence[str]) -> None:
    """All that the nodes know of it, in two steps."""
    case.site.tester.ask(Plain(("HGETALL", Keys().record(case.semaphore))))
    case.site.tester.ask(Plain(("MGET", *map(Keys().lease, tokens))))


def acquire(semaphores: Semaphores, semaphore: str, length: int, token: str) -> Outcome:
    """One admission with one try."""
    return semaphores.acquire(Claim(semaphore, length, LIFE_MS, LIFE_MS, HOLDER), [token], _deadline())


def write(
    semaphores: CountingSemaphores, semaphore: str, tokens: Sequence[str], held: set[int], *, recorded: bool = False
) -> None:
    """The slots of these tokens, as a repair writes them to all nodes, which have a record before if it is `recorded`.

    Leases of slots that are not `held` end at once.
    """
    leases = {slot: Lease(token, LIFE_MS if slot in held else 1, 0, HOLDER) for slot, token in enumerate(tokens)}
    semaphores.ask(Restore(semaphore, recorded, Record(len(tokens), LIFE_MS, leases)))


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _deadline() -> float:
    return time.monotonic() + PATIENCE_SECONDS
