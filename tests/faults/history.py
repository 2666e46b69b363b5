"""What happened in a soak, and what must not have: every check of a promise against a recorded history.

Pure: a history goes in, findings come out as sentences. Instants are seconds of time.monotonic().

A step's instant is not known exactly, a node carried it out between `sent` and `answered`. Whatever is held
against the system is computed from the end of that interval which speaks for it, so a finding is a finding.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from sidecar.protocol import majority

# A webhook may go on to pass over a node for so long after it is well, and a sidecar likewise.
RECOVERY_SECONDS = 4.0
# Redis counts milliseconds, and ends a lease with the first that has passed.
TICK_SECONDS = 0.005
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A review and its answer: granted, full, unavailable, or silent if none came."""

    webhook: str
    semaphore: str
    length: int
    asked: float
    answered: float
    outcome: str
    token: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What one node was told about one token: grant, renew, release or restore; or `full`, what it said of all.

    `done` is whether it did so, None if its answer was never seen. `life` is that of the lease, in seconds.
    """

    node: int
    user: str
    kind: str
    token: str
    sent: float
    answered: float
    done: bool | None
    life: float = 0.0
    semaphore: str = ""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What was done, to which nodes as seen by whom, or to which webhook. `whom`: audiences, `*` for all."""

    what: str
    began: float
    ended: float
    nodes: tuple[int, ...] = ()
    whom: tuple[str, ...] = ("*",)
    # How much longer leases may last on these nodes: their clock was set back.
    stretches: bool = False

    def concerns(self, whom: str) -> bool:
        return "*" in self.whom or whom in self.whom


@dataclass(frozen=True, slots=True)
class Pod:
    """The life of an admitted pod. `well`: its sidecar ran all the time, from within the reservation."""

    token: str
    semaphore: str
    began: float
    end_began: float  # from here on its sidecar may release
    ended: float
    fate: str
    well: bool
    complaints: tuple[str, ...] = ()  # what its sidecar said of a lease that ended or was lost


@dataclass
class History:
    """All of it, and what it takes to see it again."""

    seed: int
    nodes: int = 3
    verdicts: list[Verdict] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)  # node → keys that were there in the end
    notes: list[str] = field(default_factory=list)  # findings that were made on the way

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, file: Path) -> "History":
        read = json.loads(file.read_text())
        kinds = {"verdicts": Verdict, "steps": Step, "disturbances": Disturbance, "pods": Pod}
        for name, kind in kinds.items():
            read[name] = [
                kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in each.items()})
                for each in read[name]
            ]
        return cls(**read)


def findings(history: History) -> list[str]:
    """Everything in a history that breaks a promise; empty if it is as it must be."""
    checks = (
        never_more_than_length,
        a_free_slot_is_granted,
        what_nobody_got_is_released,
        an_answer_comes,
        nobody_ends_anothers_lease,
        nothing_prolongs_but_the_holder,
        a_kept_lease_is_kept,
        nothing_is_left,
    )
    return [*history.notes, *(finding for check in checks for finding in check(history))]


# Promise 1 ------------------------------------------------------------------------------------------------


def never_more_than_length(history: History) -> Iterator[str]:
    """At no instant more holders than the greatest length among them."""
    steps = _by_token(history)
    spans: dict[str, list[tuple[float, float, Verdict]]] = defaultdict(list)
    for verdict in history.verdicts:
        if verdict.outcome == "granted":
            for began, ended in held(verdict, steps.get(verdict.token, ()), history.nodes):
                spans[verdict.semaphore].append((began, ended, verdict))
    for semaphore, its_spans in spans.items():
        for began, _, _ in its_spans:
            holders = {each.token: each.length for start, end, each in its_spans if start <= began < end}
            if len(holders) > max(holders.values(), default=1):
                yield f"{semaphore}: {len(holders)} holders at {began:.3f} of length {holders}"


def held(granted: Verdict, steps: Sequence[Step], nodes: int) -> Iterator[tuple[float, float]]:
    """The spans in which the token surely held a lease: a majority had confirmed it for at least so long.

    A node that loses its data ends no span: the holder cannot know, and others must not get in.
    """
    given_back = min((step.sent for step in steps if step.kind == "release"), default=FOREVER)
    ends: dict[int, float] = {}
    known: list[tuple[float, float]] = [(granted.answered, -FOREVER)]  # instant, until when from then on
    for step in sorted(steps, key=lambda each: each.answered):
        if step.kind == "grant" and step.done and step.answered > ends.get(step.node, -FOREVER):
            ends[step.node] = step.sent + step.life
        elif step.kind == "renew" and step.done is not None:
            ends[step.node] = step.sent + step.life if step.done else -FOREVER
        else:
            continue
        until = sorted(ends.values(), reverse=True)[majority(nodes) - 1] if len(ends) >= majority(nodes) else -FOREVER
        if step.answered <= granted.answered:
            known = [(granted.answered, until)]
        else:
            known.append((step.answered, until))
    for (began, until), (following, _) in pairwise([*known, (FOREVER, 0.0)]):
        ended = min(until, following, given_back)
        if ended > began:
            yield began, ended


# Promise 2 ------------------------------------------------------------------------------------------------


def a_free_slot_is_granted(history: History) -> Iterator[str]:
    """Who is told that a semaphore is full is told so while as many tokens may hold a lease somewhere."""
    spans: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for token, steps in _by_token(history).items():
        semaphore = next((step.semaphore for step in steps if step.semaphore), "")
        began, ended = possible(steps, history)
        spans[semaphore].append((began, ended, token))
    for verdict in history.verdicts:
        if verdict.outcome == "full":
            holding = [
                each for each in spans[verdict.semaphore] if each[0] <= verdict.answered and each[1] >= verdict.asked
            ]
            if len(holding) < verdict.length:
                yield (
                    f"{verdict.semaphore}: said to be full at {verdict.asked:.3f} to {verdict.answered:.3f}, "
                    f"while {len(holding)} of {verdict.length} slots could be held, by {holding}"
                )


def what_nobody_got_is_released(history: History) -> Iterator[str]:
    """A try that failed leaves nothing behind, unless its webhook was hit or could not reach the node."""
    got = {verdict.token for verdict in history.verdicts}
    released = {(step.token, step.node) for step in history.steps if step.kind == "release"}
    for step in history.steps:
        if step.kind == "grant" and step.done and step.token not in got and (step.token, step.node) not in released:
            near = _near(history, step.sent, step.answered + RECOVERY_SECONDS)
            if not any(each.concerns(step.user) and (not each.nodes or step.node in each.nodes) for each in near):
                yield f"{step.semaphore}: granted on node {step.node} at {step.sent:.3f} for nobody, and not released"


def possible(steps: Sequence[Step], history: History) -> tuple[float, float]:
    """From when until when the token may at the most hold a lease on any node."""
    began = min((step.sent for step in steps if step.kind == "grant"), default=FOREVER)
    nodes = range(history.nodes)
    return began, max(_ends_on(node, steps, history) for node in nodes) + TICK_SECONDS


def _ends_on(node: int, steps: Sequence[Step], history: History) -> float:
    written = [step for step in _written(steps, history) if step.node == node]
    if not written:
        return -FOREVER
    end = max(step.answered + step.life for step in written)
    longest = max(step.life for step in written)
    for stretch in history.disturbances:
        if stretch.stretches and node in stretch.nodes and stretch.began < end:
            end = max(end, _looked_at(stretch, node, steps, history) + longest)
    last = max(step.answered for step in written)
    released = [step for step in steps if step.node == node and step.kind == "release" and step.done is not None]
    return min([end, *(step.answered for step in released if step.answered >= last)])


def _written(steps: Sequence[Step], history: History) -> list[Step]:
    """What may have given or prolonged a lease, with the instant at which it was done at the latest."""
    return [
        replace(step, answered=_latest(step, history))
        for step in steps
        if step.kind in ("grant", "renew", "restore") and step.done is not False
    ]


def _latest(step: Step, history: History) -> float:
    """When a node has carried out a step at the latest: one whose answer was not seen may wait out a disturbance."""
    if step.done is not None:
        return step.answered
    meanwhile = [
        each.ended
        for each in history.disturbances
        if step.node in each.nodes and each.ended >= step.sent and each.began <= step.answered
    ]
    return max([step.answered, *meanwhile]) + 1.0


def _looked_at(stretch: Disturbance, node: int, steps: Sequence[Step], history: History) -> float:
    """When a lease that a clock has stretched was cut down at the latest: by the next `full` that the node said."""
    semaphore = next((step.semaphore for step in steps if step.semaphore), "")
    return min(
        (
            step.answered
            for step in history.steps
            if (step.kind, step.node, step.semaphore) == ("full", node, semaphore) and step.sent > stretch.ended
        ),
        default=FOREVER,
    )


# Promise 6 ------------------------------------------------------------------------------------------------


def an_answer_comes(history: History) -> Iterator[str]:
    """No majority is said to be missing while there is one, and only a webhook that is hit gives no answer."""
    for verdict in history.verdicts:
        when = f"{verdict.asked:.3f} to {verdict.answered:.3f}"
        reason = f"{verdict.semaphore}: {verdict.outcome} at {when}, {verdict.message!r}"
        near = [each for each in _near(history, verdict.asked, verdict.answered) if each.concerns(verdict.webhook)]
        hit = any(not each.nodes for each in near)
        away = {node for each in near for node in each.nodes}
        if verdict.outcome == "unavailable" and not hit and len(away) < majority(history.nodes):
            yield f"{reason}, though only {sorted(away)} were away"
        if verdict.outcome not in ("granted", "full", "unavailable") and not hit:
            yield f"{reason}, though {verdict.webhook} was well"


# Promise 3 ------------------------------------------------------------------------------------------------


def nobody_ends_anothers_lease(history: History) -> Iterator[str]:
    """A lease that was granted is released by its own sidecar alone, when its pod ends or the lease was lost."""
    pods = {pod.token: pod for pod in history.pods}
    lost = {step.token for step in history.steps if step.kind == "renew" and step.done is False}
    for step in history.steps:
        pod = pods.get(step.token)
        if step.kind != "release" or not step.done or pod is None:
            continue
        if step.user != "sidecar":
            yield f"{pod.semaphore}: {step.user} released the lease of a pod at {step.sent:.3f}"
        elif step.answered < pod.end_began and step.token not in lost:
            yield f"{pod.semaphore}: released at {step.sent:.3f}, while the pod ran until {pod.end_began:.3f}"


def nothing_prolongs_but_the_holder(history: History) -> Iterator[str]:
    """A repair gives a lease no longer life than it had."""
    stretched = min((each.began for each in history.disturbances if each.stretches), default=FOREVER)
    for steps in _by_token(history).values():
        given = [step for step in _written(steps, history) if step.kind != "restore"]
        for step in steps:
            if step.kind == "restore" and step.done:
                before = [each for each in given if each.sent <= step.answered]
                # A clock that was set back lets one node tell of a longer rest, up to a whole lease.
                starts = [step.answered if step.answered > stretched else each.answered for each in before]
                end = max(at + each.life for at, each in zip(starts, before, strict=True))
                if step.sent + step.life > end + TICK_SECONDS:
                    yield f"a repair at {step.sent:.3f} prolonged a lease from {end:.3f} to {step.sent + step.life:.3f}"


def a_kept_lease_is_kept(history: History) -> Iterator[str]:
    """A sidecar that runs keeps its lease, as long as a majority of nodes is there."""
    for pod in history.pods:
        near = _near(history, pod.began - RECOVERY_SECONDS, pod.ended)
        away = {node for each in near for node in each.nodes}
        if pod.well and pod.complaints and len(away) < majority(history.nodes):
            when = f"{pod.began:.3f} to {pod.ended:.3f}"
            yield f"{pod.semaphore}: lost at {when}, {pod.complaints}, though only {away} were away"


def nothing_is_left(history: History) -> Iterator[str]:
    """After quiet there are records, and nothing else."""
    for node, keys in history.left.items():
        if others := [key for key in keys if not key.startswith("slots:")]:
            yield f"node {node}: left after quiet: {others}"


def _near(history: History, began: float, ended: float) -> list[Disturbance]:
    """What was disturbed meanwhile, or shortly before."""
    return [each for each in history.disturbances if each.began <= ended and each.ended + RECOVERY_SECONDS >= began]


def _by_token(history: History) -> Mapping[str, Sequence[Step]]:
    grouped: dict[str, list[Step]] = defaultdict(list)
    for step in history.steps:
        grouped[step.token].append(step)
    return grouped
