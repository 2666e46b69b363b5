"""Who holds a slot: the text kept in the lease, and the phrase that people read when a semaphore is full.

Knows neither Redis nor the clock: leases and instants come in as arguments.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The longest name that Kubernetes gives to anything.
_TEXT_LENGTH = 253
_SHOWN_OWNERS = 5
_UNKNOWN = "unknown"


def holder_of(pod: Mapping[str, Any], since: int, expiration_seconds: int) -> str:
    """Compact JSON about the pod: `owner` as Kind/name (absent if none), `pod`, `since` (unix seconds), `expiration`.

    A pod's name is not known yet under generateName, which then stands for it with a `*` at its end. `pod`
    is the pod of a parsed Review.
    """
    owner = owner_of(pod.get("metadata") or {})
    holder = {"owner": owner[:_TEXT_LENGTH]} if owner else {}
    known = {**holder, "pod": pod_name(pod), "since": since, "expiration": expiration_seconds}
    return json.dumps(known, separators=(",", ":"))


def pod_name(pod: Mapping[str, Any]) -> str:
    """The pod's name or, as long as it has none, what it will begin with and a `*`; at most 253 characters."""
    metadata = pod.get("metadata") or {}
    return str(metadata.get("name") or f"{metadata.get('generateName') or ''}*")[:_TEXT_LENGTH]


def owner_of(metadata: Mapping[str, Any]) -> str:
    """The controller, of which there is one at most (metav1.OwnerReference), else the first owner, else empty."""
    references = metadata.get("ownerReferences") or []
    if not references:
        return ""
    owner = next((each for each in references if each.get("controller")), references[0])
    return f"{owner['kind']}/{owner['name']}"


def describe(held: int, length: int, holders: Sequence[str], unstarted: int) -> str:
    """How full a semaphore is and by whom, such as `3 of 3 slots held by Job/nightly (2), Pod/shell (1)`.

    `holders` are texts as written by `holder_of`, possibly fewer than `held`, possibly anything else. Owners
    are ordered by slots, then by name; what is beyond the fifth or not known of counts as `and N more`. How many
    of the holders are `unstarted` comes last: these wait for a machine, or somebody else has refused them after us.
    """
    owners = Counter(read_holder(holder).name for holder in holders)
    shown = sorted(owners.items(), key=lambda owner: (-owner[1], owner[0]))[:_SHOWN_OWNERS]
    phrase = f"{held} of {length} slots held"
    if held > length:
        phrase += " (under a greater length)"
    if shown:
        phrase += " by " + ", ".join(f"{name} ({count})" for name, count in shown)
    more = held - sum(count for _, count in shown)
    if shown and more > 0:
        phrase += f" and {more} more"
    return phrase + _not_started(held, len(holders), unstarted)


def _not_started(held: int, seen: int, unstarted: int) -> str:
    if not unstarted:
        return ""
    if unstarted == held:
        return "; none of them has started"
    return f"; {unstarted} of {'them' if seen == held else f'the first {seen}'} not started"


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lease tells of the pod behind it; None is not known."""

    owner: str | None  # Kind/name
    pod: str | None
    since: int | None  # seconds since the epoch
    expiration_seconds: int | None

    @property
    def name(self) -> str:
        """The owner, or the pod itself where nobody owns it."""
        return self.owner or (f"Pod/{self.pod}" if self.pod else _UNKNOWN)


def read_holder(text: str) -> Holder:
    """Read what `holder_of` wrote. Whatever else stands there is not known: nothing may fail over it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        found = {}
    return Holder(
        owner=_text(found.get("owner")),
        pod=_text(found.get("pod")),
        since=_number(found.get("since")),
        expiration_seconds=_number(found.get("expiration")),
    )


def _text(value: object) -> str | None:
    return _printable(value) if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    # JSON's numbers have no end; from 2^53 on they are no instants that anything can be done with.
    return value if type(value) is int and 0 <= value < 2**53 else None


def _printable(text: str) -> str:
    """Whoever may create pods chooses these texts, and they end on other people's terminals."""
    return "".join(each if each.isprintable() else "?" for each in text[:_TEXT_LENGTH])
