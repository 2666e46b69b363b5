"""The reconciler as a process: settings, rights, its page, and how it ends."""

import json
import secrets
import subprocess
from pathlib import Path

import pytest

from app.admission.annotations import GROUP
from tests.e2e.binaries import MissingError, build_missing, find
from tests.harness.control_plane import INTERN, RECONCILER, paced
from tests.harness.nodes import RedisNode, addresses
from tests.harness.reconciler import RULES, SIDECAR, Reconciler, gates
from tests.harness.waiting import free_port
from tests.harness.webhook import environ_for
from tests.reconciler.forgeries import forged
from tests.reconciler.site import KEY


def errors(process: Reconciler, kind: str) -> float:
    return process.samples("reconcile_errors_total").get((kind,), 0)


# Settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RESERVATION_SECONDS", "soon"),
        ("REDIS_ADDRESSES", "redis-0:6379,redis-1:6379"),
        ("METRICS_PORT", "http"),
        ("VARIANT", "Blue!"),
        ("KUBECONFIG", "/nonexistent/kubeconfig"),
    ],
)
def test_a_setting_that_is_wrong_is_named_and_nothing_starts(site, variable, value):
    process = site.launch(**{variable: value})

    assert 1 == process.ended()
    assert "cannot start: " in process.output
    assert variable in process.output
    assert "Traceback" not in process.output


def test_outside_of_a_cluster_it_says_what_it_lacks(site):
    process = site.launch(KUBECONFIG="")

    assert 1 == process.ended()
    assert "cannot start: " in process.output
    assert "KUBECONFIG" in process.output
    assert "Traceback" not in process.output


def test_a_port_that_is_taken_is_named(site):
    first = site.start()
    second = site.launch(METRICS_PORT=str(first.port))

    assert 1 == second.ended()
    assert "cannot start: " in second.output
    assert str(first.port) in second.output


# The API server and its rights ----------------------------------------------------------------------------


def test_while_no_api_server_can_be_reached_it_says_so_and_keeps_trying(site, plane):
    process = site.launch(plane.kubeconfig(RECONCILER, free_port()))
    paced(lambda: errors_so_far(process) >= 3, "three errors to be counted", 60)

    assert 200 == process.get("/healthz")[0]
    assert 200 != process.get("/readyz")[0]
    assert process.running
    assert any("refused" in line.lower() for line in process.lines), process.output


def errors_so_far(process: Reconciler) -> float:
    """Those of the API server; none while the page is not served."""
    try:
        return errors(process, "api")
    except OSError:
        return 0


def test_it_is_ready_once_the_api_server_is_there(site, plane):
    queue = site.create_many(1)
    with plane.stopped():
        process = site.launch()
        paced(lambda: errors_so_far(process) >= 1, "an error to be counted")
        assert 200 != process.get("/readyz")[0]

    process.await_ready()
    site.await_granted(*queue)


def test_what_it_may_not_do_it_says_and_it_does_all_else(site, plane):
    """Pods may be read but not changed: none is let in, until the rights are there."""
    plane.grant(INTERN, [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}])
    queue = site.create_many(2)
    process = site.start(plane.kubeconfig(INTERN))
    paced(lambda: errors(process, "api") >= 1, "an error to be counted")
    assert any("forbidden" in line.lower() for line in process.lines), process.output
    assert [] == site.granted()
    assert 200 == process.get("/healthz")[0]
    plane.grant(INTERN, RULES)

    site.await_granted(queue[0], seconds=60)


def test_who_may_not_even_list_pods_is_told_so(site, plane):
    plane.grant(INTERN, [])
    process = site.launch(plane.kubeconfig(INTERN))
    paced(lambda: errors_so_far(process) >= 2, "errors to be counted", 60)

    assert any("forbidden" in line.lower() for line in process.lines), process.output
    assert 200 != process.get("/readyz")[0]
    plane.grant(INTERN, RULES)
    process.await_ready()


def test_without_the_right_to_write_events_pods_are_let_in_all_the_same(site, plane):
    plane.grant(INTERN, [rule for rule in RULES if "pods" in rule["resources"]])
    queue = site.create_many(3)
    site.start(plane.kubeconfig(INTERN))
    site.await_granted(queue[0])
    site.pods.delete(queue[0])

    site.await_granted(queue[1])


def test_a_node_that_refuses_the_login_is_told_of(site, nodes):
    environ = environ_for(addresses(nodes), REDIS_PASSWORD="mistaken")
    process = site.start(**environ)
    site.create("waits")
    paced(lambda: errors(process, "nodes") >= 1, "an error to be counted")

    assert any("invalid username-password pair" in line for line in process.lines), process.output
    assert not any("mistaken" in line for line in process.lines)
    assert [] == site.granted()


# Its page and its log -----------------------------------------------------------------------------------


def test_the_page_says_who_waits_and_for_how_long(site):
    queue = site.create_many(3, length=1)
    process = site.start()
    site.create("closed", key="closed", length=0)
    site.await_granted(queue[0])

    def waiting() -> dict[str, float]:
        return {semaphore: value for (semaphore,), value in process.samples("waiting_pods").items() if value}

    expected = {site.semaphore(): 2, site.semaphore("closed"): 1}
    paced(lambda: expected.items() <= waiting().items(), "the page to count who waits")
    oldest = process.samples("oldest_wait_seconds")
    assert set(expected) <= {semaphore for (semaphore,) in oldest}
    assert all(value >= 0 for value in oldest.values())
    paced(lambda: process.samples("slot_wait_seconds_count")[()] == 1, "the wait to be counted")
    assert process.samples("slot_wait_seconds_sum")[()] >= 0
    paced(lambda: process.samples("pods_without_lease") == {(): 0}, "the nodes to be read")
    assert process.samples("watch_age_seconds")[()] < 60
    assert [1] == list(process.samples("build_info").values())
    assert {"api", "nodes", "internal"} == {kind for (kind,) in process.samples("reconcile_errors_total")}

    for name in queue:
        site.pods.delete(name)
    paced(lambda: site.semaphore() not in waiting(), "nobody to wait")


def test_what_has_no_series_of_its_own_is_summed(site):
    process = site.start(METRICS_SEMAPHORES="1")
    for key in ("one", "two", "three"):
        site.create(f"{key}-pod", key=key, length=0)

    def waiting() -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = process.samples("waiting_pods")
        return found

    paced(lambda: waiting().get(("other",)) == 2, "the others to be summed")
    assert 2 == len(waiting())
    assert 3 == sum(waiting().values())


def test_pods_whose_lease_is_lost_are_counted(site, nodes):
    """Their apps run, and nobody else knows: what a person has to look at."""
    process = site.start()
    site.create("lost", expiration=5)
    site.await_granted("lost")
    site.run("lost")
    paced(lambda: process.samples("pods_without_lease") == {(): 0}, "the pod to be known to have its lease")
    token = site.token("lost")
    for node in nodes:
        with node.client() as client:
            client.unlink(f"lease:{token}")

    paced(lambda: process.samples("pods_without_lease") == {(): 1}, "the pod to be counted", 60)
    site.say("lost", "Succeeded", sidecar="terminated", app="terminated")
    paced(lambda: process.samples("pods_without_lease") == {(): 0}, "the pod to have ended", 60)


def test_the_page_is_as_prometheus_would_have_it(site):
    try:
        build_missing("promtool")
        promtool: Path = find("promtool")
    except MissingError as error:
        pytest.skip(str(error))
    queue = site.create_many(2)
    process = site.start()
    site.await_granted(queue[0])
    page = process.metrics()
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True)

    assert "" == checked.stdout + checked.stderr
    assert page.count("# HELP at_least_semaphore_") == page.count("# TYPE at_least_semaphore_") >= 6


def test_every_line_of_the_log_is_an_object_and_no_token_is_in_any(site):
    queue = site.create_many(3)
    process = site.start()
    site.await_granted(queue[0])
    tokens = [site.token(name) for name in queue]
    site.pods.delete(queue[0])
    site.await_granted(queue[1])
    assert 0 == process.terminate()

    assert process.lines
    for line in process.lines:
        assert {"time", "level", "message"} <= set(json.loads(line))
        assert not any(token in line for token in tokens)


def test_each_variant_sees_to_its_own_pods(site, elsewhere, nodes):
    """Two installations on the same nodes, each with names of its own for everything.

    The second one's user may use any: which, stands in the manifests of each installation.
    """
    token = secrets.token_hex(16)
    pod = json.dumps(forged("theirs", f"{elsewhere.name}/{KEY}", token, "tester"))
    elsewhere.create(json.loads(pod.replace(GROUP, f"blue.{GROUP}").replace(SIDECAR, f"blue-{SIDECAR}")))
    site.create("ours")

    def is_let_in() -> bool:
        return not gates(elsewhere.pod("theirs"))

    site.start()
    site.await_granted("ours")
    site.await_turns()
    assert not is_let_in()
    blue = site.start(VARIANT="blue", REDIS_USERNAME="tester", REDIS_PASSWORD="tester")
    paced(is_let_in, "the pod of the variant to be let in")
    assert {f"blue:lease:{token}"} == {key for key in keys_on(nodes[0]) if token in key and "lease" in key}
    assert not any(token in key for key in keys_on(nodes[0]) if not key.startswith("blue:"))
    assert {} == blue.samples("waiting_pods")


def keys_on(node: RedisNode) -> list[str]:
    with node.client() as client:
        return list(client.scan_iter("*"))
