"""Whole pods, before and after: each file in `cases/` is one behaviour, told by its `describes`.

A case gives `pod`, and either `out`, the pod that comes out, or `error`, the exact message. `variant`, `mode`,
`username` and `password` are settings of the installation. In `out`, THE SIDECAR stands for the container that
`plain_pod.yaml` and `container_mode.yaml` spell out, THE WAITING SIDECAR for that of `waiting_pod.yaml`;
`THE SIDECAR: {…}` for one that differs in the given fields.
"""

from pathlib import Path
from typing import Any

import jsonpatch
import pytest
import yaml

from app.admission.annotations import InvalidAnnotation, WhenFull, group, parse_slot_request
from app.admission.injection import Sidecar, container_name, gate_name, inject, remove
from app.admission.review import Malformed, parse_review
from app.settings import Settings
from sidecar.protocol import Mode

DEFAULTS = Settings.from_env({})
CASES = Path(__file__).parent / "cases"
PLACEHOLDER = "THE SIDECAR"


def load(name: str) -> dict[str, Any]:
    case: dict[str, Any] = yaml.safe_load((CASES / f"{name}.yaml").read_text())
    return case


SPELLED_OUT = {
    "native": load("plain_pod")["out"]["spec"]["initContainers"][0],
    "container": load("container_mode")["out"]["spec"]["containers"][-1],
}
WAITING = load("waiting_pod")["out"]["spec"]["initContainers"][0]


def filled_in(container: Any, mode: str) -> Any:
    """The container that is meant, where the placeholder stands for it."""
    if container == PLACEHOLDER:
        return SPELLED_OUT[mode]
    if container == "THE WAITING SIDECAR":
        return WAITING
    return {**SPELLED_OUT[mode], **container[PLACEHOLDER]} if PLACEHOLDER in container else container


def expected(case: dict[str, Any]) -> Any:
    spec = case["out"]["spec"]
    lists = {where: spec[where] for where in ("initContainers", "containers") if where in spec}
    mode = case.get("mode", "native")
    filled = {where: [filled_in(each, mode) for each in containers] for where, containers in lists.items()}
    return {**case["out"], "spec": {**spec, **filled}}


def read(pod: Any) -> Any:
    request = {
        "uid": "1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": "batch",
        "object": pod,
    }
    return parse_review({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})


def patch_of(case: dict[str, Any]) -> str:
    """The patch when the pod is granted slot 2 for what it asks or waits, or of a removal when it asks for nothing."""
    review, variant = read(case["pod"]), case.get("variant", "")
    request = parse_slot_request(review.annotations, group(variant))
    if request is None:
        return remove(review.pod, container_name(variant), gate_name(variant))
    return inject(
        review.pod,
        Sidecar(
            image="registry.example/at-least-semaphore-pod-hook:1",
            mode=Mode(case.get("mode", "native")),
            redis_addresses="redis-0:6379,redis-1:6379,redis-2:6379",
            redis_username=case.get("username"),
            redis_password=case.get("password"),
            variant=variant,
            requests=DEFAULTS.sidecar_requests,
            limits=DEFAULTS.sidecar_limits,
            secret=b"known to webhook and reconciler",
        ),
        semaphore=f"{review.namespace}/{request.key}",
        slot=None if request.when_full is WhenFull.WAIT else 2,
        token="0123456789abcdef" * 2,
        expiration_seconds=request.expiration_seconds,
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.yaml")))
def test_a_pod_comes_out_as_its_case_says(name):
    case = load(name)
    if "error" not in case:
        assert expected(case) == jsonpatch.apply_patch(case["pod"], patch_of(case))
        return
    with pytest.raises((InvalidAnnotation, Malformed)) as error:
        patch_of(case)
    assert case["error"] == str(error.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.yaml")))
def test_every_case_says_what_it_shows(name):
    case = load(name)
    assert case.keys() <= {"describes", "variant", "mode", "username", "password", "pod", "out", "error"}
    assert case["describes"].endswith(".")
    assert len({"out", "error"} & case.keys()) == 1
