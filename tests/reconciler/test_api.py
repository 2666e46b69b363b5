"""What a real API server tells of pods whose author means ill, and what becomes of those of others."""

import sys
from collections.abc import Iterator

import pytest

from app.admission.annotations import GROUP
from tests.harness.control_plane import INTERN, Object, paced
from tests.harness.nodes import SIDECAR_PASSWORD
from tests.harness.reconciler import RULES, Reconciler, token_of, waiting_pod
from tests.reconciler.forgeries import HOLDER


@pytest.fixture(autouse=True)
def _reads_deep_json() -> Iterator[None]:
    """This process, too, has to read what it has made."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(before)


def managed(fields: object, time: str = "2026-11-24T10:00:00Z") -> Object:
    entry = {"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1"}
    return {"managedFields": [{**entry, "time": time, "fieldsV1": fields}]}


def nested(depth: int) -> Object:
    found: Object = {}
    for _ in range(depth):
        found = {"f:a": found}
    return found


STRANGE = {
    "deep": managed(nested(1500)),
    "as deep as can be": managed(nested(9900)),
    "half a character": managed({"f:\ud800": {}}),
    "a year too early": managed({"f:metadata": {"f:labels": {}}}, "0000-06-01T00:00:00Z"),
    "the end of a line": {"annotations": {"note": "a\x85b\u2028c"}},
}
# The API server takes it, and then neither changes the pod nor reads what it has written itself.
FOREVER = managed({"f:metadata": {"f:labels": {}}}, "9999-12-31T23:59:59-23:59")


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_a_pod_that_its_author_made_strange_is_let_in_and_so_are_those_of_others(site, strange):
    """By one that runs, which is told of it, and by one that has just started, which lists it."""
    tenant = site.another("tenant")
    running = site.start()
    tenant.create(waiting_pod("before"))
    site.await_let_in("before", tenant)
    tenant.create(waiting_pod("strange"))
    tenant.patch("strange", {"metadata": strange})
    site.create("watched")
    site.await_granted("watched")
    assert 0 == running.terminate()
    assert running.said("let in")
    assert not running.said("watching pods")
    assert not running.said("cannot watch")

    started = site.start()
    tenant.delete("before")
    site.await_let_in("strange", tenant)
    site.create("listed", key="another")
    site.await_granted("watched", "listed")
    assert (200, {("api",): 0, ("internal",): 0}) == (started.get("/healthz")[0], failures(started))


def failures(process: Reconciler) -> dict[tuple[str, ...], float]:
    found = process.samples("reconcile_errors_total")
    return {kind: count for kind, count in found.items() if kind != ("nodes",)}


def test_a_pod_that_nobody_can_change_keeps_nobody_waiting_but_itself_and_its_secrets_are_not_told(site):
    tenant = site.another("tenant")
    running = site.start()
    token = token_of(tenant.create(waiting_pod("strange", length=0)))
    tenant.patch("strange", {"metadata": {**FOREVER, "annotations": {f"{GROUP}/length": "1"}}})
    running.wait_for("cannot lift the gate")
    site.create("watched")
    site.await_granted("watched")
    started = site.start()
    site.create("listed", key="another")
    site.await_granted("watched", "listed")

    for process in (running, started):
        assert 0 == process.terminate()
        assert not process.said("cannot watch")
        assert not any(secret in process.output for secret in (token, SIDECAR_PASSWORD))


@pytest.mark.parametrize("strange", [STRANGE["deep"], FOREVER], ids=["deep", "a year too late"])
def test_a_pod_that_the_webhook_never_saw_may_be_as_strange(site, elsewhere, strange):
    """Made with our label where nobody asks us."""
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "strange", "labels": dict(HOLDER)},
        "spec": {"containers": [{"name": "a", "image": "x"}]},
    }
    process = site.start()
    elsewhere.create(pod)
    elsewhere.patch("strange", {"metadata": strange})
    site.create("watched")
    site.await_granted("watched")
    assert {("api",): 0, ("internal",): 0} == failures(process)


def test_an_event_is_written_for_a_pod_wherever_its_name_is_cut_off(site):
    names = [f"{'a' * 192}-{'b' * 60}", f"{'a' * 190}.b-{'c' * 60}"]
    for name in names:
        site.create(name, key=f"key-{len(name)}{name[191]}")
    site.start()

    for name in names:
        assert "slot 0" in site.await_event(name, "SlotGranted")


def test_a_watch_that_is_forbidden_is_seen_to_be_old(site, plane):
    """Whatever else is asked for, and answered, meanwhile: pods may still be listed and changed."""
    plane.grant(INTERN, RULES)
    process = site.start(plane.kubeconfig(INTERN))

    def age() -> float:
        return float(process.samples("watch_age_seconds")[()])

    paced(lambda: age() < 5, "pods to be heard of")
    may = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "patch"]}, RULES[1]]
    plane.grant(INTERN, may)

    paced(lambda: age() > 35, "the watch to be old", 90)
    assert 200 == process.get("/healthz")[0]
    plane.grant(INTERN, RULES)
    paced(lambda: age() < 5, "pods to be heard of again")


def test_without_a_thread_that_watches_it_is_not_well(site, monkeypatch):
    """However that has ended: what runs it starts it anew."""
    program = "import app.reconciler.__main__ as it; it.keep_watching = lambda *_: None; it.main()"
    monkeypatch.setattr("tests.harness.reconciler.COMMAND", ("python", "-c", program))
    process = site.launch()

    process.wait_for("started")
    assert 503 == process.get("/healthz")[0]
    assert process.running
