"""The pods that a file of Kubernetes objects makes, and what in it looks as if they were to ask for a slot, but don't.

Knows the shapes of objects, neither files nor nodes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml

# As much as the webhook takes of a review, in a container that serves besides.
LARGEST_BYTES = 1024 * 1024
MOST_ALIASES = 20

MARKER = "at-least-semaphore-pod"
HOLDER = "holder"  # the label that admitted pods carry
WAITED_TOO_LONG = "waited-too-long"  # the label of those whose max-wait is over

# Where each kind has the template of its pods (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/).
TEMPLATES = {
    "Pod": (),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    **dict.fromkeys(
        ("DaemonSet", "Deployment", "Job", "ReplicaSet", "ReplicationController", "StatefulSet"), ("spec", "template")
    ),
}


class Unreadable(ValueError):  # noqa: N818  it says what is wrong
    """The text holds no Kubernetes objects; the message is for people."""


@dataclass(frozen=True, slots=True)
class Source:
    """An object that makes pods."""

    kind: str
    name: str
    namespace: str | None
    pod: Any  # as the API server would get it, unchecked
    around: Mapping[str, Mapping[str, Any]]  # path in the object → annotations there that are not the pod's

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}"


def sources_in(text: bytes) -> list[Source]:
    """What makes pods in YAML or JSON, in several documents and lists. Raises Unreadable."""
    if len(text) > LARGEST_BYTES:
        raise Unreadable(f"it has {len(text)} bytes, and {LARGEST_BYTES} are accepted")
    try:
        _refuse_bombs(text)
        documents = list(yaml.safe_load_all(text))
        return [_source(each) for document in documents for each in _objects(document) if each["kind"] in TEMPLATES]
    except yaml.YAMLError as error:
        raise Unreadable(f"it is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error
    except Unreadable:
        raise
    except (ArithmeticError, AttributeError, LookupError, ValueError) as error:  # a date that is none, for one
        raise Unreadable(f"it holds a value that YAML cannot make sense of: {error}") from error


def _refuse_bombs(text: bytes) -> None:
    """A few hundred bytes of aliases of aliases come to gigabytes."""
    aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
    if aliases > MOST_ALIASES:
        raise Unreadable(f"it has {aliases} YAML aliases, and {MOST_ALIASES} are accepted")


def _objects(document: Any) -> Iterator[Mapping[str, Any]]:
    if document is None:  # nothing between two `---`
        return
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise Unreadable("it holds something that is no Kubernetes object: a kind is missing")
    if document["kind"].endswith("List") and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _objects(item)
    else:
        yield document


def _source(found: Mapping[str, Any]) -> Source:
    kind = found["kind"]
    around: dict[str, Mapping[str, Any]] = {}
    pod: Any = found
    path: list[str] = []
    for name in TEMPLATES[kind]:
        around[".".join([*path, "metadata.annotations"])] = _texts(pod, "annotations")
        pod = pod.get(name) if isinstance(pod, dict) else None
        path.append(name)
    metadata = _mapping(found, "metadata")
    namespace = metadata.get("namespace")
    return Source(
        kind=kind,
        name=_name(metadata),
        namespace=namespace if isinstance(namespace, str) and namespace else None,
        pod=pod,
        around={where: texts for where, texts in around.items() if texts},
    )


def _name(metadata: Mapping[str, Any]) -> str:
    name, prefix = metadata.get("name"), metadata.get("generateName")
    return name if isinstance(name, str) and name else f"{prefix if isinstance(prefix, str) else ''}*"


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _texts(thing: Any, name: str) -> Mapping[str, Any]:
    """Annotations or labels of an object or a template, as far as their names are texts."""
    return {key: value for key, value in _mapping(_mapping(thing, "metadata"), name).items() if isinstance(key, str)}


def mistakes(source: Source, group: str) -> list[str]:
    """What would run the pod unguarded without a word; `group` is the prefix of our annotations."""
    annotations = _texts(source.pod, "annotations")
    return [
        *_misplaced(source, group),
        *_labelled(_texts(source.pod, "labels"), group),
        *_unmarked(annotations, group),
        *_foreign(annotations, group),
    ]


def _ours(texts: Mapping[str, Any], group: str) -> list[str]:
    return sorted(name.removeprefix(f"{group}/") for name in texts if name.startswith(f"{group}/"))


def _misplaced(source: Source, group: str) -> Iterator[str]:
    right = ".".join([*TEMPLATES[source.kind], "metadata.annotations"])
    for where, texts in source.around.items():
        if ours := _ours(texts, group):
            yield f"{group}/{', '.join(ours)} stand in {where}, where they do not count; move them to {right}"


def _labelled(labels: Mapping[str, Any], group: str) -> Iterator[str]:
    if ours := [name for name in _ours(labels, group) if name not in (HOLDER, WAITED_TOO_LONG)]:
        yield f"{group}/{', '.join(ours)} stand among the labels, where they do not count; make annotations of them"


def _unmarked(annotations: Mapping[str, Any], group: str) -> Iterator[str]:
    others = [name for name in _ours(annotations, group) if name != MARKER]
    marker = annotations.get(f"{group}/{MARKER}")
    if not others or marker not in (None, "false"):
        return
    if marker == "false":
        yield f"{group}/{MARKER} is 'false', so {', '.join(others)} do not count"
        return
    misspelt = get_close_matches(MARKER, others, 1, 0.8)
    instead = f" (is {misspelt[0]} a misspelling of it?)" if misspelt else ""
    yield f'{group}/{MARKER}: "true" is missing{instead}, so {", ".join(others)} do not count'


def _foreign(annotations: Mapping[str, Any], group: str) -> Iterator[str]:
    groups = sorted({name.partition("/")[0] for name in annotations if "/" in name} - {group})
    for similar in get_close_matches(group, groups, 5, 0.8):
        yield f"annotations of {similar} are not those of this installation, whose are {group}: they do not count"
