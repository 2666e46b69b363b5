"""The patches of admission: where our container comes to stand, what it claims, what they leave alone.

Whole pods, before and after, are in `cases/`.
"""

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission.annotations import group
from app.admission.injection import (
    Carried,
    Sidecar,
    carried,
    container_name,
    gate_name,
    has_gate,
    has_sidecar,
    inject,
    remove,
)
from sidecar.protocol import Mode, Variable

NAME = container_name("")
LABEL = f"{group('')}/holder"
GATE = gate_name("")
TOKEN = "0123456789abcdef" * 2
ADDRESSES = "redis-0.redis:6379,redis-1.redis:6379,redis-2.redis:6379"


def shared(mode: Mode = Mode.NATIVE, *, username: str | None = None, password: str | None = None) -> Sidecar:
    return Sidecar("registry.example/hook:1", mode, ADDRESSES, username, password, "", {}, {}, b"key")


def pod_of(containers: list[Any], inits: list[Any] | None = None) -> dict[str, Any]:
    return {"metadata": {}, "spec": {"containers": containers, "initContainers": inits}}


def patch_for(pod: Any, sidecar: Sidecar, slot: int | None = 2) -> str:
    return inject(pod, sidecar, semaphore="batch/reports-db", slot=slot, token=TOKEN, expiration_seconds=60)


def injected(pod: Any, sidecar: Sidecar, slot: int | None = 2) -> Any:
    return jsonpatch.apply_patch(pod, patch_for(pod, sidecar, slot))


def gates(pod: Any) -> list[str]:
    return [gate["name"] for gate in pod["spec"].get("schedulingGates") or []]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


# What the API server may hand over: containers of any names, ours among them, in either list.
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from([NAME, "app", "setup", container_name("blue")])},
        optional={
            "restartPolicy": st.just("Always"),
            "env": st.none() | st.lists(st.fixed_dictionaries({"name": st.sampled_from(["TOKEN", "SLOT"])})),
        },
    ),
    max_size=5,
)
LABELS = st.dictionaries(st.sampled_from([LABEL, "app", "a/b~c"]), st.text(max_size=5))
GATES = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from([GATE, "kueue.x-k8s.io/admission", gate_name("blue")])})
)
PODS = st.fixed_dictionaries(
    {
        "spec": st.fixed_dictionaries(
            {"containers": CONTAINERS},
            optional={"initContainers": st.none() | CONTAINERS, "schedulingGates": st.none() | GATES},
        )
    },
    optional={"metadata": st.none() | st.fixed_dictionaries({}, optional={"labels": st.none() | LABELS})},
)
SLOTS = st.sampled_from([2, None])  # None: the pod waits for one


def without_ours(pod: dict[str, Any]) -> Any:
    """The pod with all that is ours taken away, and null, absent and empty made one."""
    bare = copy.deepcopy(pod)
    for where in ("containers", "initContainers"):
        bare["spec"][where] = [each for each in bare["spec"].get(where) or [] if each["name"] != NAME]
    bare["spec"]["schedulingGates"] = [gate for gate in gates(bare) if gate != GATE]
    labels = (bare.get("metadata") or {}).get("labels") or {}
    bare["metadata"] = {"labels": {name: text for name, text in labels.items() if name != LABEL}}
    return bare


@given(PODS, st.sampled_from(Mode), SLOTS)
def test_an_injection_applies_to_its_pod_and_touches_nothing_else(pod, mode, slot):
    """Afterwards there is one container of our name, and it is the one that carries the token."""
    after = injected(pod, shared(mode), slot)
    assert without_ours(pod) == without_ours(after)
    assert Carried(TOKEN, "batch/reports-db", slot) == carried(after, NAME)
    assert "true" == after["metadata"]["labels"][LABEL]


@given(PODS, SLOTS)
def test_a_pod_has_our_gate_once_if_it_waits_and_else_not_at_all(pod, slot):
    """Nobody would lift that of a pod that does not wait."""
    after = injected(pod, shared(), slot)
    assert (0 if slot is not None else 1) == gates(after).count(GATE)
    assert has_gate(after, GATE) == (slot is None)


@given(PODS, st.sampled_from(Mode), SLOTS)
def test_a_second_injection_replaces_the_first(pod, mode, slot):
    once = injected(pod, shared(mode), slot)
    assert once == injected(once, shared(mode), slot)


@given(PODS)
def test_a_removal_applies_to_its_pod_and_takes_only_what_bears_our_name(pod):
    after = jsonpatch.apply_patch(pod, remove(pod, NAME, GATE))
    assert not has_sidecar(after, NAME)
    assert not has_gate(after, GATE)
    assert without_ours(pod) == without_ours(after)
    assert pod.get("metadata") == after.get("metadata")


@pytest.mark.parametrize("slot", [2, None], ids=["with a slot", "waiting"])
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("inits", [None, [], [{"name": "setup"}]])
def test_on_a_plain_pod_there_are_only_additions(mode, inits, slot):
    pod = pod_of([{"name": "app"}], inits)
    assert {"add"} == {operation["op"] for operation in json.loads(patch_for(pod, shared(mode), slot))}


def test_a_sidecar_whose_pod_waits_is_told_no_slot():
    """Whatever it might say would be wrong by the time it starts."""
    container = injected(pod_of([{"name": "app"}]), shared(), slot=None)["spec"]["initContainers"][0]
    assert Variable.SLOT not in environment(container)


def test_a_native_sidecar_stands_first_of_all():
    """It starts before and ends after every container that may use what the semaphore guards."""
    inits = injected(pod_of([{"name": "app"}], [{"name": "setup"}]), shared())["spec"]["initContainers"]
    assert [NAME, "setup"] == [each["name"] for each in inits]
    assert "Always" == inits[0]["restartPolicy"]


def test_a_plain_container_has_neither_probe_nor_restart_policy():
    """Kubernetes refuses restartPolicy on a plain container, and a startup probe there holds nobody back."""
    container = injected(pod_of([{"name": "app"}]), shared(Mode.CONTAINER))["spec"]["containers"][-1]
    assert NAME == container["name"]
    assert not {"startupProbe", "restartPolicy"} & container.keys()


def test_the_kubelet_never_gives_up_on_a_sidecar_that_waits():
    """It would send SIGTERM, on which the slot is given back."""
    probe = injected(pod_of([{"name": "app"}]), shared())["spec"]["initContainers"][0]["startupProbe"]
    years = probe["failureThreshold"] * probe["periodSeconds"] / (365 * 24 * 3600)
    assert years > 50
    assert probe["failureThreshold"] < 2**31, "it is an int32 in the API"


def test_every_variable_of_the_protocol_reaches_the_sidecar():
    sidecar = Sidecar("image", Mode.NATIVE, ADDRESSES, "sidecar", "secret", "blue", {}, {}, b"key")
    container = injected(pod_of([{"name": "app"}]), sidecar)["spec"]["initContainers"][0]
    variables = {text for name, text in vars(Variable).items() if not name.startswith("_")}
    assert variables == environment(container).keys()


def test_what_is_not_set_is_not_written():
    container = injected(pod_of([{"name": "app"}]), shared())["spec"]["initContainers"][0]
    assert not {Variable.REDIS_USERNAME, Variable.REDIS_PASSWORD, Variable.VARIANT} & environment(container).keys()


def test_a_password_reaches_the_sidecar_as_it_is():
    """The kubelet expands $(NAME) in values and reads $$ as $."""
    sidecar = shared(password="a$(SLOT)$$b$")
    container = injected(pod_of([{"name": "app"}]), sidecar)["spec"]["initContainers"][0]
    assert "a$$(SLOT)$$$$b$$" == environment(container)[Variable.REDIS_PASSWORD]


def test_a_password_stays_out_of_what_is_logged():
    assert "secret" not in repr(shared(password="secret"))


def test_names_fit_with_the_longest_variant():
    """Kubernetes limits container names to 63 characters."""
    assert len(container_name("v" * 20)) <= 63
    assert "blue-at-least-semaphore-sidecar" == container_name("blue")


def test_the_gate_is_a_name_that_kubernetes_accepts():
    """A qualified name: a DNS subdomain of at most 253 characters and a part of at most 63 behind a slash."""
    assert f"{group('')}/slot" == gate_name("")
    assert f"blue.{group('')}/slot" == gate_name("blue")
    assert len(gate_name("v" * 20).partition("/")[0]) <= 253


CLAIM = {"TOKEN": TOKEN, "SEMAPHORE": "batch/reports-db", "SLOT": "2"}


def claiming(**changed: object) -> dict[str, Any]:
    """A native sidecar of our name whose claim is changed in some variables."""
    env = [{"name": name, "value": value} for name, value in {**CLAIM, **changed}.items()]
    return {"name": NAME, "restartPolicy": "Always", "env": env}


def test_a_sidecar_in_its_place_makes_a_claim():
    assert Carried(TOKEN, "batch/reports-db", 2) == carried(pod_of([], [claiming()]), NAME)
    assert Carried(TOKEN, "batch/reports-db", 2) == carried(pod_of([{"name": "app"}, claiming()]), NAME)


def test_a_sidecar_without_a_slot_makes_the_claim_of_one_that_waits():
    waiting = claiming()
    waiting["env"] = [each for each in waiting["env"] if each["name"] != "SLOT"]
    assert Carried(TOKEN, "batch/reports-db", None) == carried(pod_of([], [waiting]), NAME)


@pytest.mark.parametrize(
    "pod",
    [
        pod_of([{"name": "app"}]),
        pod_of([claiming()], [claiming()]),
        pod_of([], [claiming(), claiming()]),
        pod_of([], [{"name": "setup"}, claiming()]),
        pod_of([], [{**claiming(), "restartPolicy": None}]),
        pod_of([], [{"name": NAME, "restartPolicy": "Always", "env": None}]),
        pod_of([], [{**claiming(), "name": container_name("blue")}]),
    ],
    ids=["none", "in both lists", "two", "not the first", "an ordinary init", "no env", "another variant's"],
)
def test_without_exactly_one_sidecar_in_its_place_there_is_no_claim(pod):
    assert carried(pod, NAME) is None


@pytest.mark.parametrize(
    "changed",
    [
        *({"TOKEN": text} for text in ("", TOKEN[1:], TOKEN + "0", TOKEN.upper(), TOKEN + "\n", "*" * 32, None)),
        *({"SLOT": text} for text in ("", "-1", "01", "1.0", "10000", "9" * 10_000, "2\n", 2, None)),
        *({"SEMAPHORE": text} for text in (None, ["batch/reports-db"])),
    ],
    ids=lambda changed: ascii(changed)[:40],
)
def test_a_claim_with_a_value_that_cannot_be_ours_is_none(changed):
    """A value is absent, here None, where the variable has a valueFrom."""
    assert carried(pod_of([], [claiming(**changed)]), NAME) is None


def test_of_a_variable_named_twice_the_last_counts():
    """As in the container that the kubelet starts."""
    twice = claiming()
    twice["env"] = [{"name": "TOKEN", "value": "f" * 32}, *twice["env"]]
    assert Carried(TOKEN, "batch/reports-db", 2) == carried(pod_of([], [twice]), NAME)


def test_the_sidecar_has_the_resources_that_it_is_given():
    shared = Sidecar("image", Mode.NATIVE, ADDRESSES, None, None, "", {"cpu": "1m"}, {"memory": "99Mi"}, b"key")
    patch = inject({"spec": {"containers": []}}, shared, semaphore="a/b", slot=0, token="0" * 32, expiration_seconds=60)

    (container,) = jsonpatch.apply_patch({"spec": {"containers": []}}, patch)["spec"]["initContainers"]
    assert {"requests": {"cpu": "1m"}, "limits": {"memory": "99Mi"}} == container["resources"]
