"""What is accepted as a review, what it is read as, and how a verdict goes back."""

import base64
import copy
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission.holder import holder_of
from app.admission.injection import (
    Sidecar,
    carried,
    container_name,
    gate_name,
    has_gate,
    has_sidecar,
    inject,
    remove,
)
from app.admission.review import Malformed, Reason, Review, Verdict, parse_review, respond
from sidecar.protocol import Mode

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "reports-7d9c-x2x4z",
        "generateName": "reports-7d9c-",
        "namespace": "somewhere-else",
        "annotations": {"team": "reports"},
        "labels": {"app": "reports"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "reports-7d9c", "controller": True}],
    },
    "spec": {
        "initContainers": [{"name": container_name(""), "env": [{"name": "TOKEN", "value": "a"}]}],
        "containers": [{"name": "app", "env": [{"name": "A", "value": "b"}]}],
        "schedulingGates": [{"name": gate_name("")}],
        "nodeName": "worker-1",
    },
}


def review_of(pod: object, **request: object) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "namespace": "batch",
            "dryRun": False,
            "object": pod,
            **request,
        },
    }


def places(value: object) -> list[tuple[str | int, ...]]:
    """The paths of everything inside a JSON value, itself included."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    if isinstance(value, list):
        inside = list(enumerate(value))
    return [(), *((key, *rest) for key, each in inside for rest in places(each))]


def with_changed(value: Any, place: tuple[str | int, ...], changed: object) -> Any:
    """A copy in which another value stands at `place`."""
    if not place:
        return changed
    new = copy.copy(value)
    new[place[0]] = with_changed(value[place[0]], place[1:], changed)
    return new


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SPOILT = st.builds(with_changed, st.just(review_of(POD)), st.sampled_from(places(review_of(POD))), JSON)


def test_a_pod_is_read_with_the_namespace_of_the_request():
    """The object's own namespace is often empty, and is whatever its creator wrote."""
    review = parse_review(review_of(POD))
    assert Review("705ab4f5-6393-11e8-b7cc-42010a800002", "batch", False, POD) == review
    assert {"team": "reports"} == review.annotations


def test_a_dry_run_is_told_apart():
    assert parse_review(review_of(POD, dryRun=True)).dry_run
    assert not parse_review(review_of(POD, dryRun=None)).dry_run


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"kind": {"group": "", "version": "v1", "kind": "Namespace"}, "namespace": None},
        {"kind": {"group": "metrics.k8s.io", "version": "v1", "kind": "Pod"}},
        {"operation": "UPDATE"},
        {"operation": "DELETE", "object": None},
        {"subResource": "ephemeralcontainers"},
    ],
    ids=str,
)
def test_all_but_the_creation_of_a_pod_is_a_review_without_one(request_):
    assert parse_review(review_of(POD, **request_)).pod is None
    assert {} == parse_review(review_of(POD, **request_)).annotations


@pytest.mark.parametrize("absent", [{}, {"annotations": None, "labels": None, "ownerReferences": None}, None])
def test_null_is_absent(absent):
    """Go's encoder writes null for what is empty, and reads it as absent."""
    empty = {"initContainers": None, "schedulingGates": None, "nodeName": None}
    pod = {"metadata": absent, "spec": {**empty, "containers": [{"name": "app", "env": None}]}}
    assert pod == parse_review(review_of(pod)).pod
    assert {} == parse_review(review_of(pod)).annotations


def test_a_mirror_pod_is_known_by_its_annotation_whatever_its_value():
    mirror = {**POD, "metadata": {"annotations": {"kubernetes.io/config.mirror": ""}}}
    assert parse_review(review_of(mirror)).is_mirror
    assert not parse_review(review_of(POD)).is_mirror


REQUEST_ERRORS = [
    (("uid",), None, "request.uid is missing, accepted is 1 to 253 printable characters"),
    (("uid",), "", "request.uid is '', accepted is 1 to 253 printable characters"),
    (("uid",), "a\nb", r"request.uid is 'a\nb', accepted is 1 to 253 printable characters"),
    (("dryRun",), "yes", "request.dryRun is 'yes', accepted is true or false"),
    (("kind",), "Pod", "request.kind is 'Pod', accepted is an object"),
    (("operation",), 1, "request.operation is 1, accepted is a string"),
    (
        ("namespace",),
        "a/b",
        "request.namespace is 'a/b', accepted is a DNS label (lower-case letters, digits and -)",
    ),
    (
        ("namespace",),
        "a" * 64,
        f"request.namespace is '{'a' * 64}', accepted is a DNS label (lower-case letters, digits and -)",
    ),
    (("object",), None, "request.object is missing, accepted is an object"),
    (("object", "metadata"), [], "request.object.metadata is [], accepted is an object"),
    (("object", "metadata", "name"), 7, "request.object.metadata.name is 7, accepted is a string"),
    (
        ("object", "metadata", "annotations"),
        {"a\n": 1},
        r"request.object.metadata.annotations['a\n'] is 1, accepted is a string",
    ),
    (("object", "metadata", "labels"), "x", "request.object.metadata.labels is 'x', accepted is an object"),
    (
        ("object", "metadata", "ownerReferences"),
        [{"kind": "Job"}],
        "request.object.metadata.ownerReferences[0].name is missing, accepted is a string",
    ),
    (
        ("object", "metadata", "ownerReferences"),
        [{"kind": None, "name": "nightly"}],
        "request.object.metadata.ownerReferences[0].kind is missing, accepted is a string",
    ),
    (
        ("object", "metadata", "ownerReferences", 0, "controller"),
        "no",
        "request.object.metadata.ownerReferences[0].controller is 'no', accepted is true or false",
    ),
    (("object", "spec"), None, "request.object.spec is missing, accepted is an object"),
    (("object", "spec", "containers"), None, "request.object.spec.containers is missing, accepted is a list"),
    (
        ("object", "spec", "containers"),
        [{"name": "app"}, {}],
        "request.object.spec.containers[1].name is missing, accepted is a string",
    ),
    (
        ("object", "spec", "initContainers"),
        {"name": "setup"},
        "request.object.spec.initContainers is an object, accepted is a list",
    ),
    (
        ("object", "spec", "containers", 0, "env"),
        ["PASSWORD=b"],  # what stands in a spec is not quoted
        "request.object.spec.containers[0].env[0] is a string, accepted is an object",
    ),
    (
        ("object", "spec", "containers", 0, "env"),
        [{"name": 1.5}],
        "request.object.spec.containers[0].env[0].name is a number, accepted is a string",
    ),
    (
        ("object", "spec", "schedulingGates"),
        {"name": "a"},
        "request.object.spec.schedulingGates is an object, accepted is a list",
    ),
    (
        ("object", "spec", "schedulingGates", 0),
        "a",
        "request.object.spec.schedulingGates[0] is a string, accepted is an object",
    ),
    (
        ("object", "spec", "schedulingGates"),
        [{"name": "a"}, {}],
        "request.object.spec.schedulingGates[1].name is missing, accepted is a string",
    ),
    (("object", "spec", "nodeName"), 1, "request.object.spec.nodeName is a number, accepted is a string"),
]


@pytest.mark.parametrize(("place", "value", "message"), REQUEST_ERRORS, ids=[str(each[0]) for each in REQUEST_ERRORS])
def test_what_cannot_be_answered_is_malformed_and_the_message_names_the_field(place, value, message):
    with pytest.raises(Malformed) as error:
        parse_review(with_changed(review_of(POD), ("request", *place), value))
    assert message == str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "the body is missing, accepted is an object"),
        ([], "the body is [], accepted is an object"),
        ({}, "apiVersion is missing, accepted is 'admission.k8s.io/v1'"),
        (
            {**review_of(POD), "apiVersion": "admission.k8s.io/v1beta1"},
            "apiVersion is 'admission.k8s.io/v1beta1', accepted is 'admission.k8s.io/v1'",
        ),
        ({**review_of(POD), "kind": "Pod"}, "kind is 'Pod', accepted is 'AdmissionReview'"),
        ({**review_of(POD), "request": None}, "request is missing, accepted is an object"),
    ],
)
def test_only_an_admission_review_of_version_1_is_accepted(body, message):
    with pytest.raises(Malformed) as error:
        parse_review(body)
    assert message == str(error.value)


def test_what_is_quoted_is_bounded_in_length_and_depth():
    """Whoever sends the body chooses what is quoted from it."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for uid in ("x" * 1_000_000, deep, {str(n): "y" * 1000 for n in range(1000)}):
        with pytest.raises(Malformed) as error:
            parse_review(review_of(POD, uid=uid))
        assert len(str(error.value)) < 600


@given(JSON | SPOILT)
def test_any_json_is_malformed_or_a_review_that_the_whole_package_can_read(body):
    """What has passed is not looked at with suspicion anywhere else."""
    try:
        review = parse_review(body)
    except Malformed:
        return
    assert isinstance(review.is_mirror, bool)
    if review.pod is not None:
        read_all_of(review.pod)


def read_all_of(pod: Any) -> None:
    name = container_name("")
    assert holder_of(pod, 0, 60)
    assert has_sidecar(pod, name) or carried(pod, name) is None
    assert remove(pod, name, gate_name(""))
    assert has_gate(pod, gate_name("")) in (True, False)
    for mode, slot in itertools.product(Mode, (0, None)):
        shared = Sidecar("image", mode, "redis-0:6379", None, None, "", {}, {}, b"")
        assert inject(pod, shared, semaphore="batch/a", slot=slot, token="0" * 32, expiration_seconds=60)


REVIEW = Review("42", "batch", False, POD)


def test_an_allowed_pod_is_answered_by_its_uid():
    expected = {"uid": "42", "allowed": True}
    assert expected == respond(REVIEW, Verdict.allow(Reason.NOT_ANNOTATED))["response"]


def test_the_answer_is_an_admission_review_of_the_same_version():
    answer = respond(REVIEW, Verdict.allow(Reason.NOT_ANNOTATED))
    assert ("admission.k8s.io/v1", "AdmissionReview") == (answer["apiVersion"], answer["kind"])


def test_a_patch_travels_in_base64():
    patch = '[{"op": "remove", "path": "/spec/containers/1"}]'
    response = respond(REVIEW, Verdict.allow(Reason.SIDECAR_REMOVED, patch=patch))["response"]
    assert "JSONPatch" == response["patchType"]
    assert patch == base64.b64decode(response["patch"]).decode()


@pytest.mark.parametrize(
    ("reason", "code", "name"),
    [
        (Reason.INVALID, 400, "BadRequest"),
        (Reason.FULL, 429, "TooManyRequests"),
        (Reason.UNAVAILABLE, 503, "ServiceUnavailable"),
        (Reason.CANNOT_WAIT, 400, "BadRequest"),
    ],
)
def test_a_denial_has_a_code_and_never_tells_when_to_retry(reason, code, name):
    """With a time to retry after, clients would resend by themselves."""
    verdict = Verdict.deny(reason, "no")
    response = respond(REVIEW, verdict)["response"]
    assert code == verdict.code
    assert {"code": code, "reason": name, "message": "no"} == response["status"]
    assert not response["allowed"]
    assert "patch" not in response


def test_warnings_are_cut_to_what_kubernetes_asks_for():
    verdict = Verdict.allow(Reason.ADMITTED_WITHOUT_SLOT, warnings=("a" * 121, "b"))
    assert ["a" * 120, "b"] == respond(REVIEW, verdict)["response"]["warnings"]


def test_a_reason_reads_as_its_value_in_logs_and_labels():
    assert '"admitted_without_slot"' == json.dumps(Reason.ADMITTED_WITHOUT_SLOT)
    assert "full" == f"{Reason.FULL}"
