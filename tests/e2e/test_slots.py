"""Pods of all kinds take slots, wait for them, run and give them back."""

import signal
import time
from contextlib import closing

from tests.e2e.cluster import NODE, status_of
from tests.e2e.installation import SIDECAR
from tests.e2e.workloads import (
    APP,
    STUBBORN,
    annotations,
    deployment,
    pod,
    pod_spec,
    sidecar_of,
    started_at,
    token_of,
)

EXAMPLES = "k8s/examples"


def test_of_the_two_example_deployments_three_pods_run_and_the_fourth_gets_the_slot_of_one_that_ends(tenant):
    tenant.installation.kubectl("apply", "-n", tenant.name, "-f", f"{EXAMPLES}/deployments.yaml")
    tenant.cluster.wait_for(lambda: len(tenant.running()) == 3, "three of four pods to run")
    first = {each["metadata"]["uid"] for each in tenant.running()}
    refused = tenant.cluster.wait_for(lambda: tenant.events("FailedCreate"), "the refusal to be an event")
    assert "3 of 3 slots held by ReplicaSet/" in refused[0]
    described = tenant.kubectl("describe", "replicasets")
    assert "3 of 3 slots held by ReplicaSet/" in described

    ended = tenant.running()[0]
    tenant.kubectl("delete", "pod", ended["metadata"]["name"])
    tenant.cluster.wait_for(
        lambda: len({each["metadata"]["uid"] for each in tenant.running()} - first) == 1,
        "another pod to run in the slot of the one that has ended",
        120,
    )
    assert len(tenant.running()) == 3
    assert len(tenant.held(annotated_key(ended))) == 3


def annotated_key(pod):
    return next(value for name, value in pod["metadata"]["annotations"].items() if name.endswith("/key"))


def test_the_app_ends_then_the_sidecar_releases_then_the_slot_is_free(tenant):
    tenant.create(pod("leaving", asked=annotations(expiration=3600)))
    tenant.wait_ready("leaving")
    with closing(tenant.follow("leaving", APP)) as app, closing(tenant.follow("leaving", SIDECAR)) as sidecar:
        app.instant_of("started")
        token = tenant.wait_held(1)
        tenant.kubectl("delete", "pod", "leaving", "--wait=false")
        ending = app.instant_of("ending")
        assert tenant.held() == token, "the slot was free while the app was still ending"
        ended = app.instant_of("ended")
        tenant.wait_held(0, seconds=10)
        free = time.time()
        given_back = sidecar.instant_of("the slot was given back")
    assert ending < ended < given_back < free


def test_a_grace_period_used_up_by_the_app_still_leaves_the_sidecar_its_release(tenant):
    tenant.create(pod("stubborn", pod_spec(STUBBORN, grace_seconds=3), annotations(expiration=3600)))
    tenant.wait_ready("stubborn")
    with closing(tenant.follow("stubborn", SIDECAR)) as sidecar:
        tenant.wait_held(1)
        tenant.kubectl("delete", "pod", "stubborn")
        sidecar.instant_of("the slot was given back")
    tenant.wait_held(0, seconds=5)


def test_no_app_starts_before_a_majority_has_renewed_its_lease(tenant):
    """Admitted while all is well; when the pod gets to its worker node, two of three nodes are silent."""
    with tenant.cluster.cordoned():
        tenant.create(pod("early", asked=annotations(expiration=60)))
        tenant.wait_held(1)
        with tenant.installation.paused(0, 1):
            tenant.kubectl("uncordon", NODE)
            tenant.cluster.wait_for(
                lambda: started_at(tenant.get("pod", "early"), SIDECAR), "the sidecar to be started"
            )
            with closing(tenant.follow("early", SIDECAR)) as sidecar:
                sidecar.instant_of("no majority of nodes answered")
                probes = tenant.cluster.wait_for(lambda: tenant.events("Unhealthy"), "the startup probe to fail")
                assert "no majority of nodes renewed the lease" in probes[0]
                # However often: a sidecar that is given up would end, and release its slot.
                tenant.cluster.wait_for(lambda: tenant.count_events("Unhealthy") > 3, "the probe to go on failing")
                early = tenant.get("pod", "early")
                assert status_of(early, APP)["state"].keys() == {"waiting"}
                assert status_of(early, SIDECAR)["restartCount"] == 0, "the sidecar was given up"
            resumed = time.time()
    tenant.wait_ready("early")
    with closing(tenant.follow("early", APP)) as app:
        assert app.instant_of("started") > resumed


def test_a_job_runs_to_its_completion_and_its_slot_is_free(tenant):
    tenant.installation.kubectl("apply", "-n", tenant.name, "-f", f"{EXAMPLES}/job.yaml")
    tenant.kubectl("wait", "jobs", "--all", "--for=condition=Complete", "--timeout=120s")
    [done] = tenant.pods()
    assert sidecar_of(done), "it ran without a slot"
    tenant.wait_held(0, annotated_key(done), seconds=5)


def test_a_cron_job_ticks_and_its_pods_hold_a_slot(tenant):
    tenant.installation.kubectl("apply", "-n", tenant.name, "-f", f"{EXAMPLES}/cron-job.yaml")
    jobs = tenant.cluster.wait_for(lambda: tenant.cluster.items("-n", tenant.name, "jobs"), "the tick", 90)
    ticked = tenant.cluster.wait_for(tenant.pods, "the pod of the tick")[0]
    assert ticked["metadata"]["ownerReferences"][0]["name"] == jobs[0]["metadata"]["name"]
    tenant.wait_ready(ticked["metadata"]["name"])
    assert tenant.held(annotated_key(ticked)) == {token_of(ticked)}


def test_a_rollout_of_a_full_semaphore_goes_through_with_max_unavailable_one(tenant):
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    tenant.create(deployment("rolled", 2, annotations(length=2, expiration=3600), strategy=strategy))
    tenant.kubectl("rollout", "status", "deployment/rolled", "--timeout=60s")
    before = tenant.wait_held(2)
    tenant.kubectl("rollout", "restart", "deployment/rolled")
    tenant.kubectl("rollout", "status", "deployment/rolled", "--timeout=180s")
    assert not tenant.wait_held(2) & before


def test_a_drained_pod_gives_its_slot_to_its_successor(tenant):
    tenant.create(deployment("drained", 1, annotations(expiration=3600)))
    tenant.kubectl("rollout", "status", "deployment/drained", "--timeout=60s")
    before = tenant.wait_held(1)
    with tenant.cluster.cordoned():
        tenant.installation.kubectl(
            "drain", NODE, "--pod-selector=app=drained", "--delete-emptydir-data", "--timeout=60s"
        )
        # Refused while its predecessor was ending, its controller tries again, and holds the slot while it waits.
        tenant.cluster.wait_for(lambda: len(tenant.held() - before) == 1, "the successor to hold the slot", 90)
    tenant.kubectl("rollout", "status", "deployment/drained", "--timeout=60s")
    assert len(tenant.held()) == 1


def test_a_killed_sidecar_starts_again_alone_and_keeps_the_slot(tenant):
    tenant.create(pod("struck", asked=annotations(expiration=10)))
    before = tenant.wait_ready("struck")
    held = tenant.wait_held(1)
    tenant.cluster.signal_container(before, SIDECAR, signal.SIGKILL)
    tenant.cluster.wait_for(
        lambda: status_of(tenant.get("pod", "struck"), SIDECAR)["restartCount"] == 1, "the sidecar to be started again"
    )
    after = tenant.wait_ready("struck")
    assert status_of(after, APP)["containerID"] == status_of(before, APP)["containerID"], "the app was restarted"
    tenant.wait_renewed(token_of(after))
    assert tenant.held() == held


def test_a_kubelet_that_is_killed_and_started_again_changes_nothing(tenant):
    tenant.create(pod("unmoved", asked=annotations(expiration=10)))
    before = tenant.wait_ready("unmoved")
    held = tenant.wait_held(1)
    tenant.cluster.kubelet.kill(signal.SIGKILL)
    tenant.cluster.start_kubelet()
    tenant.create(pod("later", asked=annotations(key="another")))
    tenant.wait_ready("later")  # the kubelet is at work again
    after = tenant.wait_ready("unmoved")
    for container in (APP, SIDECAR):
        assert status_of(after, container)["containerID"] == status_of(before, container)["containerID"]
    tenant.wait_renewed(token_of(after))
    assert tenant.held() == held


def test_forty_pods_of_ten_replica_sets_are_all_admitted_at_once(tenant):
    """Nothing is refused while there is a free slot, however many ask at the same time."""
    wanted, sets = 40, 10
    with tenant.cluster.cordoned():
        began = time.monotonic()
        tenant.create(
            *(deployment(f"many-{number}", wanted // sets, annotations(length=wanted)) for number in range(sets))
        )
        tenant.cluster.wait_for(lambda: len(tenant.pods()) == wanted, f"{wanted} pods to be admitted", 5)
        print(f"{wanted} pods were admitted within {time.monotonic() - began:.1f} s")
        assert not tenant.events("FailedCreate")
        assert len(tenant.wait_held(wanted, seconds=5)) == wanted
