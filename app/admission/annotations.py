"""The annotations by which a pod asks for a slot: what each means and what it accepts.

Knows neither where the annotations come from nor what a slot is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.admission.fields import shown
from sidecar.protocol import LONGEST_LEASE_SECONDS, SHORTEST_LEASE_SECONDS

GROUP = "at-least-semaphore-pod-hook.kaidotio.github.io"
GREATEST_LENGTH = 10_000
LONGEST_WAIT_SECONDS = 30 * 24 * 60 * 60


def group(variant: str) -> str:
    """The prefix of our annotations and labels, one of its own for each installation that has a variant."""
    return f"{variant}.{GROUP}" if variant else GROUP


class InvalidAnnotation(ValueError):  # noqa: N818  says what is wrong, as Malformed does
    """What a pod asks for cannot be understood; the message is for people and lists every problem."""


class WhenUnavailable(StrEnum):
    """What becomes of the pod when no majority of nodes answers."""

    DENY = "deny"
    ADMIT = "admit"  # without a slot and without a sidecar


class WhenFull(StrEnum):
    """What becomes of the pod while no slot is free."""

    DENY = "deny"
    WAIT = "wait"  # it is created, and a scheduling gate holds it back until it has a slot


@dataclass(frozen=True, slots=True)
class SlotRequest:
    """What a pod asks for: a slot of the semaphore `<namespace>/<key>`."""

    key: str
    length: int
    expiration_seconds: int
    when_unavailable: WhenUnavailable
    when_full: WhenFull = WhenFull.DENY
    max_wait_seconds: int | None = None  # from the pod's creation on; None: without end


@dataclass(frozen=True, slots=True)
class _Annotation:
    """One annotation, required if it is not optional and has no default.

    `read` raises ValueError on what it does not accept.
    """

    name: str
    meaning: str
    accepted: str
    read: Callable[[str], Any]
    default: str | None = None
    is_optional: bool = False  # None where it is absent


def _marker(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _key(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,253}", text):
        raise ValueError
    return text


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        # int() takes more than digits: signs, spaces, underscores, other scripts; and is slow on very many.
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return read


_MARKER = _Annotation(
    "at-least-semaphore-pod",
    meaning="whether the pod asks for a slot; all others count only if it does",
    accepted="'true' or 'false'",
    read=_marker,
    default="false",
)

# By the field of SlotRequest that each one fills.
_ANNOTATIONS = {
    "key": _Annotation(
        "key",
        meaning="the name of the semaphore within the pod's namespace",
        accepted="1 to 253 letters, digits, '.', '_', '-' and '/'",
        read=_key,
    ),
    "length": _Annotation(
        "length",
        meaning="how many pods may hold the semaphore at once; 0 admits nobody, for maintenance",
        accepted=f"a whole number from 0 to {GREATEST_LENGTH}",
        read=_whole_number(0, GREATEST_LENGTH),
    ),
    "expiration_seconds": _Annotation(
        "expiration",
        meaning="how long the slot stays taken after its last renewal",
        accepted=f"whole seconds from {SHORTEST_LEASE_SECONDS} to {LONGEST_LEASE_SECONDS}",
        read=_whole_number(SHORTEST_LEASE_SECONDS, LONGEST_LEASE_SECONDS),
    ),
    "when_unavailable": _Annotation(
        "when-unavailable",
        meaning="what becomes of the pod when no majority of nodes answers",
        accepted="'deny' or 'admit'",
        read=WhenUnavailable,
        default=WhenUnavailable.DENY.value,
    ),
    "when_full": _Annotation(
        "when-full",
        meaning="what becomes of the pod while no slot is free",
        accepted="'deny' or 'wait'",
        read=WhenFull,
        default=WhenFull.DENY.value,
    ),
    "max_wait_seconds": _Annotation(
        "max-wait",
        meaning="how long after its creation a pod that waits may still get a slot",
        accepted=f"whole seconds from 1 to {LONGEST_WAIT_SECONDS}",
        read=_whole_number(1, LONGEST_WAIT_SECONDS),
        is_optional=True,
    ),
}

_KNOWN = [_MARKER.name, *(annotation.name for annotation in _ANNOTATIONS.values())]
_SHOWN_UNKNOWN = 5


def parse_slot_request(annotations: Mapping[str, str], group: str) -> SlotRequest | None:
    """What a pod with these annotations asks for; None if it asks for nothing.

    Raises InvalidAnnotation with all problems at once, an unknown annotation of `group` among them: a
    misspelt one must not be ignored silently.
    """
    problems: list[str] = []
    asks = _read(_MARKER, annotations, group, problems)
    if asks is False:
        return None
    values = {field: _read(annotation, annotations, group, problems) for field, annotation in _ANNOTATIONS.items()}
    problems += [*_conflicts(values, annotations, group), *_unknown(annotations, group)]
    if problems:
        raise InvalidAnnotation("; ".join(problems))
    return SlotRequest(**values)


def _read(annotation: _Annotation, annotations: Mapping[str, str], group: str, problems: list[str]) -> Any:
    """The annotation's value; None, and a problem more, if it has none that is accepted."""
    name = f"{group}/{annotation.name}"
    text = annotations.get(name, annotation.default)
    if text is None:
        if not annotation.is_optional:
            problems.append(f"{name} is missing ({annotation.meaning}), accepted is {annotation.accepted}")
        return None
    try:
        return annotation.read(text)
    except ValueError:
        problems.append(f"{name} is {shown(text)}, accepted is {annotation.accepted}")
        return None


def _conflicts(values: Mapping[str, Any], annotations: Mapping[str, str], group: str) -> Iterator[str]:
    """The problems of annotations that do not go together."""
    waits = f"{group}/when-full: wait"
    max_wait = annotations.get(f"{group}/max-wait")
    if max_wait is not None and values["when_full"] is WhenFull.DENY:
        yield f"{group}/max-wait is {shown(max_wait)}, accepted only with {waits}"
    if values["when_unavailable"] is WhenUnavailable.ADMIT and values["when_full"] is WhenFull.WAIT:
        yield (
            f"{group}/when-unavailable is 'admit', accepted with {waits} is only 'deny', "
            "since such a pod waits until the nodes are back"
        )


def _unknown(annotations: Mapping[str, str], group: str) -> list[str]:
    ours = sorted(name.removeprefix(f"{group}/") for name in annotations if name.startswith(f"{group}/"))
    unknown = [name for name in ours if name not in _KNOWN]
    # Names have not been validated yet: they may be as long as the request, and hold anything.
    listed = [
        f"{group}/{shown(name)[1:-1]} is {shown(annotations[f'{group}/{name}'])}, "
        f"but known are only {', '.join(_KNOWN)}"
        for name in unknown[:_SHOWN_UNKNOWN]
    ]
    more = len(unknown) - len(listed)
    return [*listed, f"and {more} more unknown annotations"] if more else listed
