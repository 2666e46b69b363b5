"""Pods that wait for a slot instead of being refused: who is let in, when, and what they leave behind."""

import math
import signal
import statistics
import time
from datetime import datetime

import pytest

from tests.e2e.cluster import KubectlError, status_of
from tests.e2e.installation import NAMESPACE, RECONCILER, RECONCILERS, RECONCILING, SIDECAR
from tests.e2e.occupancy import watched
from tests.e2e.workloads import APP, annotations, deployment, pod, pod_spec, token_of

KEY = "reports-db"
# How long no reconciler runs.
AWAY_SECONDS = 60


def waiting(length=1, expiration=30, **more):
    """The annotations of a pod that waits; `more` are further ones, with _ for -."""
    return annotations(KEY, length, expiration, when_full="wait", **more)


def working(seconds):
    """The spec of a pod whose app is done after so long."""
    return pod_spec(f"sleep {seconds}", restartPolicy="Never")


def phases(tenant):
    """Name → phase."""
    return {each["metadata"]["name"]: each["status"]["phase"] for each in tenant.pods()}


def line_up(tenant, name, **more):
    """Create a pod that waits, `more` being as of `waiting`; what it is told of its place."""
    tenant.create(pod(name, asked=waiting(**more)))
    (told,) = tenant.cluster.wait_for(lambda: tenant.events("WaitingForSlot", name), f"{name} to be told that it waits")
    created = tenant.get("pod", name)
    assert created["status"]["phase"] == "Pending"
    # Of those that are created within a second any may be the first.
    later = datetime.fromisoformat(created["metadata"]["creationTimestamp"]).timestamp() + 1
    tenant.cluster.wait_for(lambda: time.time() >= later, "the next one to be younger")
    return told


def knowing(tenant, token):
    """How many nodes have anything of the token."""
    with tenant.installation.nodes() as nodes:
        return nodes.knowing(token)


# The queue ---------------------------------------------------------------------------------------------


class Queue:
    """Pods that were created while all slots were held, each of which works for a while and ends."""

    def __init__(self, tenant, count, length):
        self.tenant, self.length = tenant, length
        self.semaphore = f"{tenant.name}/{KEY}"
        asked = waiting(length)
        tenant.create(*(pod(f"waits-{number}", working(1 + number % 3), asked) for number in range(count)))
        pods = [each for each in tenant.pods() if each["metadata"]["name"].startswith("waits-")]
        pods.sort(key=lambda each: (each["metadata"]["creationTimestamp"], each["metadata"]["uid"]))
        self.names = {token_of(each): each["metadata"]["name"] for each in pods}  # in the order of the queue
        tenant.cluster.wait_for(self._is_known, "both reconcilers to know the whole queue")

    def _is_known(self):
        pages = self.tenant.installation.samples("at_least_semaphore_waiting_pods")
        return [page.get((self.semaphore,)) for page in pages] == [len(self.names)] * 2

    def let_in(self, occupancy):
        """Their names, in the order in which they got a slot; of several at once the order is that of the queue."""
        return [name for group in occupancy.arrivals() for token, name in self.names.items() if token in group]

    def wait_for_more(self, occupancy, count, seconds=60):
        """Until so many more have been let in."""
        enough = min(len(self.let_in(occupancy)) + count, len(self.names))
        self.tenant.cluster.wait_for(
            lambda: len(self.let_in(occupancy)) >= enough, f"{count} more pods to be let in", seconds
        )

    def are_done(self):
        found = phases(self.tenant)
        assert "Failed" not in found.values(), found
        return all(found[name] == "Succeeded" for name in self.names.values())


def test_thirty_pods_get_three_slots_by_age_whatever_fails_meanwhile(tenant):
    """A reconciler, a node, the API server, and both reconcilers for a while."""
    installation, cluster = tenant.installation, tenant.cluster
    holders = [f"holds-{number}" for number in range(3)]
    tenant.create(*(pod(name, asked=annotations(KEY, length=3)) for name in holders))
    for name in holders:
        tenant.wait_ready(name)
    queue = Queue(tenant, count=30, length=3)

    since = {}  # what is the matter from when on
    with watched(installation, queue.semaphore) as occupancy:
        tenant.kubectl("delete", "pod", "--wait=false", *holders)
        queue.wait_for_more(occupancy, 3)
        since["all is well"] = time.monotonic()
        queue.wait_for_more(occupancy, 6)

        since["a reconciler was killed"] = time.monotonic()
        cluster.signal_container(installation.pods(RECONCILERS)[0], RECONCILING, signal.SIGKILL)
        queue.wait_for_more(occupancy, 3)
        since["a node is paused"] = time.monotonic()
        with installation.paused(0):
            queue.wait_for_more(occupancy, 3)
        since["the API server was killed"] = time.monotonic()
        with cluster.without_api_server():
            pass
        queue.wait_for_more(occupancy, 3)
        since["no reconciler runs for a while"] = time.monotonic()
        logs = installation.logs(RECONCILERS)
        try:
            installation.kubectl("scale", "-n", NAMESPACE, f"deployment/{RECONCILER}", "--replicas=0")
            gone = ("wait", "pods", "-n", NAMESPACE, "-l", RECONCILERS, "--for=delete", "--timeout=60s")
            installation.kubectl(*gone)
            before = queue.let_in(occupancy)
            time.sleep(AWAY_SECONDS)  # that this passes is what happens
            assert queue.let_in(occupancy) == before, "somebody else lets pods in"
            assert len(before) < len(queue.names), "there was nobody left to wait"
        finally:
            installation.kubectl("scale", "-n", NAMESPACE, f"deployment/{RECONCILER}", "--replicas=2")
            installation.wait_until_ready()
        cluster.wait_for(queue.are_done, "all of them to have run", 180)
        cluster.wait_for(lambda: not tenant.held(), "all slots to be free")

    print(f"{occupancy.looks} looks, at most {occupancy.most} of 3 slots held. From a slot's release to its next use:")
    for (name, began), ended in zip(since.items(), [*since.values(), math.inf][1:], strict=True):
        found = [after - freed for freed, after in occupancy.vacancies() if began <= freed < ended]
        if found:
            print(f"{name}: {len(found)} slots, median {statistics.median(found):.2f} s, maximum {max(found):.2f} s")
    for each in installation.pods(RECONCILERS):
        print(f"memory of a reconciler, KiB: {cluster.memory_of(each, RECONCILING)}")
    assert occupancy.most == 3
    assert queue.let_in(occupancy) == list(queue.names.values())
    logs += installation.logs(RECONCILERS)
    assert '"level": "error"' not in logs


# What pods come from ------------------------------------------------------------------------------------


def test_a_rollout_in_a_full_semaphore_completes_by_itself(tenant):
    """Each pod waits for the one that it replaces, and no controller tries again."""
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    status = ("rollout", "status", "deployment/rolling", "--timeout=120s")
    with watched(tenant.installation, f"{tenant.name}/{KEY}") as occupancy:
        tenant.create(deployment("rolling", 3, waiting(3, expiration=300), strategy=strategy))
        tenant.kubectl(*status)
        before = tenant.wait_held(3)
        tenant.kubectl("rollout", "restart", "deployment/rolling")
        tenant.kubectl(*status)
    after = tenant.held()
    assert {token_of(each) for each in tenant.running()} == after
    assert not before & after
    assert occupancy.most == 3
    assert tenant.events("WaitingForSlot"), "nobody had to wait"
    assert not tenant.events("FailedCreate")


def test_a_job_of_six_pods_at_once_completes_two_by_two(tenant):
    template = {"metadata": {"annotations": waiting(2, expiration=300)}, "spec": working(1)}
    spec = {"parallelism": 6, "completions": 6, "backoffLimit": 0, "template": template}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "batch"}, "spec": spec}
    with watched(tenant.installation, f"{tenant.name}/{KEY}") as occupancy:
        tenant.create(job)
        tenant.kubectl("wait", "job/batch", "--for=condition=complete", "--timeout=120s")
        tenant.cluster.wait_for(lambda: not tenant.held(), "both slots to be free")
    assert list(phases(tenant).values()) == ["Succeeded"] * 6
    assert occupancy.most == 2
    assert not tenant.events("FailedCreate")


# One pod ------------------------------------------------------------------------------------------------


def test_who_asks_why_a_pod_waits_is_told_and_the_pod_runs_when_its_turn_comes(tenant):
    errors = tenant.installation.samples("at_least_semaphore_reconcile_errors_total")
    tenant.create(pod("holds"))
    tenant.wait_ready("holds")
    first, second = (line_up(tenant, name) for name in ("waits", "waits-too"))
    assert first == f"waits for a slot of {tenant.name}/{KEY}: place 1 of 1; its slot is held"
    assert second == f"waits for a slot of {tenant.name}/{KEY}: place 2 of 2; its slot is held"
    assert "SchedulingGated" in tenant.kubectl("get", "pod", "waits")
    described = tenant.kubectl("describe", "pod", "waits")
    assert "WaitingForSlot" in described
    assert first in described

    tenant.kubectl("delete", "pod", "holds")
    running = tenant.wait_ready("waits")
    assert tenant.held() == {token_of(running)}
    granted = tenant.cluster.wait_for(lambda: tenant.events("SlotGranted", "waits"), "the grant to be an event")
    assert granted[0].startswith(f"slot 0 of {tenant.name}/{KEY}, after ")
    assert granted[0] in tenant.kubectl("describe", "pod", "waits")
    assert phases(tenant)["waits-too"] == "Pending"
    # Both write the same events, and all that either does its account may do.
    assert tenant.installation.samples("at_least_semaphore_reconcile_errors_total") == errors


def test_a_waiting_pod_that_is_deleted_leaves_nothing_behind(tenant):
    """Neither while it waits, nor between its slot and its start."""
    tenant.create(pod("holds"))
    tenant.wait_ready("holds")
    tokens = {}
    for name in ("waits", "is-let-in", "runs"):
        line_up(tenant, name, expiration=300)
        tokens[name] = token_of(tenant.get("pod", name))

    tenant.kubectl("delete", "pod", "waits")
    with tenant.cluster.cordoned():
        tenant.kubectl("delete", "pod", "holds")
        tenant.cluster.wait_for(lambda: tenant.held() == {tokens["is-let-in"]}, "the next one to have the slot")
        tenant.kubectl("delete", "pod", "is-let-in")
        tenant.cluster.wait_for(lambda: tenant.held() == {tokens["runs"]}, "the last one to have it")
    tenant.wait_ready("runs")
    assert knowing(tenant, tokens["waits"]) == 0
    assert knowing(tenant, tokens["is-let-in"]) == 0


def test_the_slot_of_a_pod_whose_app_and_sidecar_were_killed_goes_to_the_next_at_once(tenant):
    tenant.create(pod("struck", pod_spec(restartPolicy="Never"), waiting(expiration=300)))
    struck = tenant.wait_ready("struck")
    token = token_of(struck)
    line_up(tenant, "waits", expiration=300)
    pids = [tenant.cluster.pid_of(struck, name) for name in (APP, SIDECAR)]
    with tenant.installation.nodes() as nodes:
        tenant.cluster.machine.run("kill", "-KILL", *pids)
        assert nodes.left_ms(token) > 200_000

    tenant.wait_ready("waits")
    struck = tenant.get("pod", "struck")
    assert struck["status"]["phase"] == "Failed"
    ended = status_of(struck, SIDECAR)
    assert (ended["restartCount"], ended["state"]["terminated"]["exitCode"]) == (0, 128 + signal.SIGKILL)
    assert knowing(tenant, token) == 0


def test_a_waiting_pod_that_a_quota_refuses_takes_no_slot(tenant):
    """The webhook is asked before the quota, and asks no node."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one"}, "spec": {"hard": {"pods": "1"}}}
    tenant.create(quota)
    tenant.cluster.wait_for(lambda: "used" in tenant.get("resourcequota", "one")["status"], "the quota to be counted")
    tenant.create(pod("first", asked=waiting(3)))
    tenant.wait_ready("first")
    with (
        watched(tenant.installation, f"{tenant.name}/{KEY}") as occupancy,
        pytest.raises(KubectlError, match="exceeded quota"),
    ):
        tenant.create(pod("second", asked=waiting(3)))
    assert occupancy.most == 1
    tenant.kubectl("delete", "resourcequota", "one")
    tenant.create(pod("second", asked=waiting(3)))
    tenant.wait_ready("second")
    assert len(tenant.held()) == 2


def test_where_no_reconciler_is_said_to_run_nobody_is_let_wait(tenant):
    with tenant.installation.altered("WAITING_ALLOWED=false"):
        with pytest.raises(KubectlError, match=r"the pod cannot wait for a slot: no reconciler .* WAITING_ALLOWED"):
            tenant.create(pod("waits", asked=waiting()))
        assert not phases(tenant)
    tenant.create(pod("waits", asked=waiting()))
    tenant.wait_ready("waits")
