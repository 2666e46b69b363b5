"""What is to be applied to a cluster, as kubectl renders it, and ways to find one's way in it."""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.binaries import find

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "k8s" / "examples").glob("*.yaml"))
SCHEMAS = sorted((ROOT / "tests" / "manifests" / "schemas").glob("*.yaml"))

NAMESPACE = "at-least-semaphore-pod-hook"
NAME = "at-least-semaphore-pod-hook"
RECONCILER = "at-least-semaphore-reconciler"

Object = dict[str, Any]


def load(*files: Path) -> list[Object]:
    """The objects of plain YAML files."""
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


def with_component(component: str, folder: str, target: Path, *others: str, namespace: str = NAMESPACE) -> Path:
    """An overlay, in the folder `target`, that adds the component, then others, to what is in a folder below k8s."""
    resource, *added = (
        os.path.relpath(ROOT / "k8s" / each, target.resolve())
        for each in (folder, *(f"components/{name}" for name in (component, *others)))
    )
    overlay = {"namespace": namespace, "resources": [resource], "components": added}
    (target / "kustomization.yaml").write_text(json.dumps(overlay))
    return target


def render(folder: str | Path) -> "Tree":
    """What `kubectl kustomize` makes of a folder below k8s, or elsewhere. Raises MissingError without a kubectl."""
    command = [str(find("kubectl")), "kustomize", str(ROOT / "k8s" / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # deprecations are told there
    return Tree(list(yaml.safe_load_all(done.stdout)))


class Tree:
    """The objects that one folder renders to."""

    def __init__(self, objects: Iterable[Object]) -> None:
        self.objects = list(objects)

    def all(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] in kinds]

    def one(self, kind: str, name: str) -> Object:
        [found] = [each for each in self.all(kind) if each["metadata"]["name"] == name]
        return found

    def names(self, kind: str) -> set[str]:
        return {each["metadata"]["name"] for each in self.all(kind)}

    @property
    def webhook(self) -> Object:
        return self.one("Deployment", NAME)

    @property
    def redis(self) -> Object:
        return self.one("StatefulSet", "redis")

    @property
    def reconciler(self) -> Object:
        return self.one("Deployment", RECONCILER)

    @property
    def pods(self) -> dict[str, Object]:
        """The pod templates, by their component."""
        found = [pod_of(each) for each in self.objects if pod_of(each)]
        return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in found}

    def selected(self, labels: Mapping[str, str]) -> set[str]:
        """The components of those pods that have all of these labels."""
        return {
            name for name, pod in self.pods.items() if set(labels.items()) <= set(pod["metadata"]["labels"].items())
        }


def title(found: Object) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def pod_of(found: Object) -> Object:
    """The pod template of a workload; empty for anything else."""
    match found["kind"]:
        case "Deployment" | "StatefulSet" | "Job":
            return dict(found["spec"]["template"])
        case "CronJob":
            return dict(found["spec"]["jobTemplate"]["spec"]["template"])
        case _:
            return {}


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def only_container(pod: Object) -> Object:
    [container] = containers(pod)
    return container


def ports(pod: Object) -> dict[str, int]:
    """The named ports of a pod."""
    return {each["name"]: each["containerPort"] for container in containers(pod) for each in container["ports"]}


def env(pod: Object) -> dict[str, Object]:
    """The variables of a pod's only container, each as it is written there."""
    return {each["name"]: each for each in only_container(pod)["env"]}


def walk(value: Any) -> Iterator[Object]:
    """All mappings within, the outer ones first."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(each)


def quantity(text: str) -> int:
    """Bytes, of `64Mi` and the like."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(text[:-2]) * units[text[-2:]]
