"""Reviews, pods, annotations and bodies that nobody thought of.

The webhook is whole, with nodes at which nobody listens: what it says to a pod that asks is said without a slot.
"""

import base64
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonpatch
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import create_app
from app.admission.annotations import GROUP, InvalidAnnotation, SlotRequest, parse_slot_request
from app.admission.injection import Sidecar, carried, container_name, gate_name, has_sidecar, inject, remove
from app.admission.review import parse_review
from app.settings import Settings
from sidecar.protocol import Mode
from tests.harness.waiting import free_port
from tests.harness.webhook import pod_asking, review_of

NAME = container_name("")
GATE = gate_name("")
TOKEN = "0123456789abcdef" * 2
bounded = settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@pytest.fixture(scope="module")
def client() -> FlaskClient:
    """Of a webhook whose nodes refuse to be connected to."""
    nodes = ",".join(f"127.0.0.1:{free_port()}" for _ in range(3))
    environ = {"REDIS_ADDRESSES": nodes, "ADMISSION_BUDGET_SECONDS": "0.2"}
    return create_app(Settings.from_env(environ)).test_client()


# Texts in which half of a character may stand, as JSON can write it, and words that mean something here.
WORDS = ["", "true", "false", "CREATE", "Pod", "v1", "Always", NAME, "TOKEN", TOKEN, "0", "env", "name", "labels"]
TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(WORDS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def review(**request: Any) -> dict[str, Any]:
    """One in which everything that is read is there."""
    pod = pod_asking(when_unavailable="admit")
    pod["metadata"] |= {"name": "reports", "labels": {"app": "reports"}}
    sidecar = {"name": NAME, "restartPolicy": "Always", "env": [{"name": "TOKEN", "value": TOKEN}]}
    pod["spec"]["initContainers"] = [sidecar, {"name": "setup"}]
    pod["spec"]["containers"].append({"name": NAME, "env": [{"name": "A", "valueFrom": {}}]})
    return review_of(pod, uid="uid", subResource="", options={}, **request)


def places_in(value: Any) -> Iterator[tuple[Any, ...]]:
    """All places in a JSON value, by name or number from the outside in."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for at, each in inside:
        yield (at,)
        yield from ((at, *rest) for rest in places_in(each))


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A review in which up to three places hold something else, are gone, doubled or called otherwise."""
    body = review(dryRun=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(list(places_in(body))))
        holder = body
        for at in path:
            holder = holder[at]
        spoil(draw, holder, last)
    return body


def spoil(draw: st.DrawFn, holder: Any, at: Any) -> None:
    match draw(st.sampled_from(["other", "gone", "doubled", "renamed"])):
        case "gone":
            del holder[at]
        case "doubled" if isinstance(holder, list):
            holder.insert(at, copy.deepcopy(holder[at]))
        case "renamed" if isinstance(holder, dict):
            holder[draw(TEXT)] = holder.pop(at)
        case _:
            holder[at] = draw(VALUES)


def answer_to(client: FlaskClient, body: bytes, *, query: str = "", content_type: str = "application/json") -> Any:
    """The answer, which is a verdict or says what is wrong with the request."""
    response = client.post(f"/mutate{query}", data=body, content_type=content_type)
    answer = response.get_json()
    assert response.status_code in (200, 400, 413, 415), (response.status_code, answer)
    if response.status_code != 200:
        assert {"error"} == answer.keys()
        assert 0 < len(answer["error"]) < 1000
    else:
        assert_well_formed(answer)
    return answer


def assert_well_formed(answer: Any) -> None:
    """As the API server demands it: admission.k8s.io/v1."""
    response = answer.pop("response")
    assert {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"} == answer
    assert response.keys() <= {"uid", "allowed", "status", "patch", "patchType", "warnings"}
    assert isinstance(response["uid"], str)
    assert isinstance(response["allowed"], bool)
    assert ("status" in response) == (not response["allowed"])
    assert ("patch" in response) == ("patchType" in response)
    if not response["allowed"]:
        assert response["status"]["code"] in (400, 429, 503)
        assert response["status"]["message"].isprintable()
        assert "patch" not in response
    answer["response"] = response


@bounded
@given(body=spoilt())
def test_any_json_is_answered_and_a_patch_applies_to_the_pod_that_came(client, body):
    answer = answer_to(client, json.dumps(body).encode())

    if "patch" in answer.get("response", {}):
        request = body["request"]
        assert request["uid"] == answer["response"]["uid"]
        patch = json.loads(base64.b64decode(answer["response"]["patch"]))
        patched = jsonpatch.apply_patch(copy.deepcopy(request["object"]), patch)
        assert ours_in(patched) in ([], [("initContainers", 0)])


BODY = json.dumps(review(), ensure_ascii=False).encode()
PIECES = st.binary(max_size=8) | st.sampled_from(
    [
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"\\u",
        b"\\ud800",
        b",",
        b":",
        b"NaN",
        b"1e999",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\x00",
        b"-",
    ]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of a review, with some cut out and others put in."""
    body = BODY
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 40)))
        body = body[:start] + draw(PIECES) * draw(st.sampled_from([0, 1, 2, 2000])) + body[end:]
    return body


QUERIES = st.sampled_from(["", "?timeout=10s", "?timeout=0s", "?timeout=%ff%00", "?timeout"]) | st.from_regex(
    r"\A\?timeout=[0-9ms.hµ-]{0,20}\Z"
)
TYPES = st.just("application/json") | st.sampled_from(
    ["", "application/json; charset=utf-7", "application/json;", "text/plain", ";", "APPLICATION/JSON", "a/\x1b[2J"]
)


@bounded
@given(body=damaged() | st.binary(max_size=200) | st.just(BODY), query=QUERIES, content_type=TYPES)
def test_any_bytes_are_answered(client, body, query, content_type):
    answer_to(client, body, query=query, content_type=content_type)


# The patch -----------------------------------------------------------------------------------------------

EXTRAS = st.dictionaries(TEXT, VALUES, max_size=3)


def objects(fields: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """These fields, and any others that are not called alike."""
    known = st.fixed_dictionaries(fields, optional=optional)
    return st.builds(
        lambda extra, found: {**{k: v for k, v in extra.items() if k not in optional}, **found}, EXTRAS, known
    )


VARIABLES = objects({"name": TEXT}, {"value": VALUES, "valueFrom": VALUES})
CONTAINERS = st.lists(
    objects(
        {"name": st.just(NAME) | TEXT},
        {"restartPolicy": VALUES, "env": st.none() | st.lists(VARIABLES, max_size=3), "args": VALUES},
    ),
    max_size=4,
)
LABELS = st.dictionaries(TEXT | st.sampled_from([f"{GROUP}/holder", "a/b~c", "~1", "-", "0"]), TEXT, max_size=3)
OWNERS = st.lists(objects({"kind": TEXT, "name": TEXT}, {"controller": st.none() | st.booleans()}), max_size=2)
METADATA = objects(
    {},
    {
        "name": st.none() | TEXT,
        "generateName": st.none() | TEXT,
        "labels": st.none() | LABELS,
        "annotations": st.none() | LABELS,
        "ownerReferences": st.none() | OWNERS,
    },
)
PODS = objects(
    {
        "spec": objects(
            {"containers": CONTAINERS},
            {
                "initContainers": st.none() | CONTAINERS,
                "ephemeralContainers": CONTAINERS,
                "schedulingGates": st.none() | st.lists(objects({"name": TEXT}, {}), max_size=2),
                "nodeName": st.none() | TEXT,
            },
        )
    },
    {"metadata": st.none() | METADATA},
)


def ours_in(pod: Any) -> list[tuple[str, int]]:
    """Where containers of our name stand."""
    return [
        (where, at)
        for where in ("initContainers", "containers")
        for at, container in enumerate(pod["spec"].get(where) or [])
        if container["name"] == NAME
    ]


def rest_of(pod: Any) -> str:
    """All but our containers and our label, with what may be made for them gone when it is empty."""
    pod = copy.deepcopy(pod)
    for where in ("initContainers", "containers"):
        pod["spec"][where] = [each for each in pod["spec"].get(where) or [] if each["name"] != NAME]
    metadata = pod["metadata"] = pod.get("metadata") or {}
    metadata["labels"] = {
        name: text for name, text in (metadata.get("labels") or {}).items() if name != f"{GROUP}/holder"
    }
    return json.dumps(pod, sort_keys=True)  # NaN is no equal of itself


@bounded
@given(pod=PODS, mode=st.sampled_from(Mode))
def test_an_injection_applies_to_any_pod_and_changes_nothing_else(pod, mode):
    """What has passed the parser, that is; and one sidecar of ours is there in the end, in its place."""
    before = json.dumps(pod)
    parse_review(review_of(pod))
    sidecar = Sidecar("image", mode, "redis-0:6379", "user", "password", "", {}, {}, b"key")

    patch = inject(pod, sidecar, semaphore="batch/db", slot=7, token=TOKEN, expiration_seconds=60)
    patched = jsonpatch.apply_patch(pod, patch)

    assert before == json.dumps(pod)
    assert rest_of(pod) == rest_of(patched)
    last = len(patched["spec"]["containers"]) - 1
    assert [("initContainers", 0) if mode is Mode.NATIVE else ("containers", last)] == ours_in(patched)
    found = carried(patched, NAME)
    assert found is not None
    assert (TOKEN, "batch/db", 7) == (found.token, found.semaphore, found.slot)
    assert "true" == patched["metadata"]["labels"][f"{GROUP}/holder"]
    parse_review(review_of(patched))


@bounded
@given(pod=PODS)
def test_a_removal_applies_to_any_pod_and_changes_nothing_else(pod):
    patched = jsonpatch.apply_patch(pod, remove(pod, NAME, GATE))

    assert [] == ours_in(patched)
    assert not has_sidecar(patched, NAME)
    for where in ("initContainers", "containers"):
        left = [each for each in pod["spec"].pop(where, None) or [] if each["name"] != NAME]
        assert json.dumps(left) == json.dumps(patched["spec"].pop(where, None) or [])
    assert json.dumps(pod) == json.dumps(patched)


# Annotations ---------------------------------------------------------------------------------------------

# What the README says of each, told once more in another way.
ACCEPTED = {
    "at-least-semaphore-pod": lambda text: text in ("true", "false"),
    "key": lambda text: re.sub(r"[a-zA-Z0-9._/-]", "", text) == "" and 1 <= len(text) <= 253,
    "length": lambda text: text in map(str, range(10_001)),
    "expiration": lambda text: text in map(str, range(5, 86_401)),
    "when-unavailable": lambda text: text in ("deny", "admit"),
    "when-full": lambda text: text in ("deny", "wait"),
    "max-wait": lambda text: text in map(str, range(1, 2_592_001)),
}
VALUES_OF_OURS = TEXT | st.sampled_from(
    ["true", "deny", "admit", "wait", "a/b", "5", "10000", "86400", "05", "5\n", "٣", "k" * 254]
)


@bounded
@given(
    found=st.dictionaries(st.sampled_from([*ACCEPTED, "lenght", ""]) | TEXT, VALUES_OF_OURS, max_size=7),
    complete=st.booleans(),
)
def test_annotations_are_understood_or_each_that_is_wrong_is_named(found, complete):
    """Nothing but InvalidAnnotation is raised, and what is right is not blamed."""
    valid = {"at-least-semaphore-pod": "true", "key": "db", "length": "3", "expiration": "60"}
    found = {**(valid if complete else {}), **found}
    required = {"key", "length", "expiration"}
    wrong = {
        name for name in found if name not in ACCEPTED or not ACCEPTED[name](found[name])
    } | required - found.keys()
    if "max-wait" in found and found.get("when-full", "deny") == "deny":
        wrong.add("max-wait")
    if found.get("when-full") == "wait" and found.get("when-unavailable") == "admit":
        wrong.add("when-unavailable")
    asks = found.get("at-least-semaphore-pod", "false") != "false"
    try:
        request = parse_slot_request({f"{GROUP}/{name}": text for name, text in found.items()}, GROUP)
    except InvalidAnnotation as error:
        assert asks
        message = str(error)
        assert message.isprintable()
        for name in ACCEPTED:
            assert (name in wrong) == (f"{GROUP}/{name} is " in message), name
        unknown = len(wrong - ACCEPTED.keys())
        assert min(unknown, 5) == message.count(", but known are only ")
    else:
        assert isinstance(request, SlotRequest) == asks
        assert not asks or not wrong
