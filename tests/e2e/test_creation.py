"""What becomes of a pod between its creator, the API server and the webhook."""

import json
from contextlib import closing

import pytest

from app.admission.annotations import GROUP
from tests.e2e.cluster import KubectlError, status_of
from tests.e2e.installation import SIDECAR, WEBHOOK
from tests.e2e.workloads import APP, STUBBORN, annotations, deployment, pod, pod_spec, sidecar_of, token_of

FORGED_TOKEN = "0123456789abcdef" * 2


def test_a_dry_run_of_the_server_shows_the_sidecar_and_takes_no_slot(tenant):
    shown = tenant.kubectl(
        "apply", "--dry-run=server", "--output=json", "--filename=-", text=json.dumps(pod("supposed"))
    )
    assert sidecar_of(json.loads(shown))
    assert not tenant.pods()
    # Of length 1: were a slot taken, this one would be refused.
    tenant.create(pod("real"))
    tenant.wait_held(1)


def test_whoever_creates_a_bare_pod_too_many_reads_why_it_is_refused(tenant):
    tenant.create(pod("first"))
    with pytest.raises(KubectlError) as refused:
        tenant.create(pod("second"))
    assert f"semaphore {tenant.name}/reports-db is full: 1 of 1 slots held by Pod/first (1)" in refused.value.message


def test_whoever_misspells_an_annotation_reads_which_and_what_is_known(tenant):
    asked = {**annotations(), f"{GROUP}/lenght": "3"}
    with pytest.raises(KubectlError, match="lenght is '3', but known are only"):
        tenant.create(pod("misspelt", asked=asked))


def test_a_pod_that_does_not_ask_is_none_of_our_business(tenant):
    tenant.create(pod("plain", asked={}))
    tenant.create(pod("asking"))
    assert sidecar_of(tenant.get("pod", "plain")) is None
    log = tenant.installation.logs(WEBHOOK)
    told = [line for line in log.splitlines() if f'"namespace": "{tenant.name}"' in line]
    assert [json.loads(line)["pod"] for line in told] == ["asking"], "the API server asked the webhook about it"


def test_a_forged_sidecar_is_replaced_and_frees_nobody(tenant):
    """Carries a container of our name that claims another pod's slot, with a token that is not its own."""
    tenant.create(pod("honest"))
    held = tenant.wait_held(1)
    honest = tenant.get("pod", "honest")
    # Without the mount of a volume that the other pod does not have.
    stolen = {name: value for name, value in (sidecar_of(honest) or {}).items() if name != "volumeMounts"}
    forged = pod("forged", pod_spec(initContainers=[stolen]), annotations(key="other"))
    tenant.create(forged)
    token = token_of(tenant.get("pod", "forged"))
    assert token != token_of(honest)
    assert tenant.held("other") == {token}
    tenant.wait_ready("forged")
    tenant.kubectl("delete", "pod", "forged")
    tenant.wait_held(0, "other")
    assert tenant.held() == held


def test_a_forged_sidecar_of_a_pod_that_does_not_ask_is_removed(tenant):
    environ = [{"name": "TOKEN", "value": FORGED_TOKEN}]
    sidecar = {"name": SIDECAR, "image": "registry.example/mine:1", "restartPolicy": "Always", "env": environ}
    tenant.create(pod("forged", pod_spec(initContainers=[sidecar]), {}))
    assert sidecar_of(tenant.get("pod", "forged")) is None


def test_a_debug_copy_runs_without_a_sidecar_and_the_slot_stays_with_its_pod(tenant):
    tenant.create(pod("studied"))
    tenant.wait_ready("studied")
    held = tenant.wait_held(1)
    debug = ("debug", "studied", "--profile=general", f"--container={APP}")
    tenant.kubectl(*debug, "--copy-to=copy", "--", "sh", "-c", "exec sleep infinity")
    copied = tenant.wait_ready("copy")
    assert sidecar_of(copied) is None
    assert tenant.held() == held
    # One that keeps the annotations asks for a slot of its own.
    with pytest.raises(KubectlError, match="is full: 1 of 1 slots held by Pod/studied"):
        tenant.kubectl(*debug, "--copy-to=second", "--keep-annotations", "--", "sh", "-c", "exec sleep infinity")
    assert tenant.held() == held


def test_a_change_of_the_annotations_changes_nothing_for_a_pod_that_runs(tenant):
    tenant.create(pod("settled"))
    tenant.wait_ready("settled")
    held = tenant.wait_held(1)
    tenant.kubectl("annotate", "--overwrite", "pod", "settled", f"{GROUP}/key=elsewhere", f"{GROUP}/length=7")
    assert tenant.held() == held
    assert not tenant.held("elsewhere")


def test_a_change_of_a_templates_annotations_moves_its_pods_to_the_other_semaphore(tenant):
    tenant.create(deployment("moving", 1, annotations(expiration=3600)))
    tenant.wait_held(1)
    tenant.create(deployment("moving", 1, annotations(key="other", expiration=3600)))
    tenant.kubectl("rollout", "status", "deployment/moving", "--timeout=60s")
    tenant.wait_held(1, "other")
    tenant.wait_held(0, seconds=10)


def test_a_namespace_with_restricted_pod_security_takes_admitted_pods(tenant):
    tenant.kubectl("label", "namespace", tenant.name, "pod-security.kubernetes.io/enforce=restricted")
    plainly_not = pod("unrestricted", pod_spec(hostNetwork=True), {})

    def is_enforced():
        try:
            tenant.kubectl("create", "--dry-run=server", "--filename=-", text=json.dumps(plainly_not))
        except KubectlError as error:
            return "violates PodSecurity" in error.message

    tenant.cluster.wait_for(is_enforced, "the API server to enforce what the namespace asks for")
    tenant.create(pod("restricted"))
    assert sidecar_of(tenant.wait_ready("restricted"))


def test_the_slot_of_a_pod_that_a_quota_refuses_afterwards_is_free_after_its_reservation(tenant):
    seconds = 5
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    tenant.create(quota)
    tenant.cluster.wait_for(lambda: "used" in tenant.get("resourcequota", "none")["status"], "the quota to be counted")
    with tenant.installation.altered(f"RESERVATION_SECONDS={seconds}"):
        with pytest.raises(KubectlError, match="exceeded quota"):
            tenant.create(pod("refused"))
        assert len(tenant.held()) == 1, "the webhook was not asked before the quota"
        tenant.wait_held(0, seconds=seconds + 1)
        tenant.kubectl("delete", "resourcequota", "none")
        tenant.create(pod("next"))


def test_as_a_plain_container_the_sidecar_leaves_the_slot_to_the_app_until_it_has_ended(tenant):
    """SIDECAR_MODE=container, for Kubernetes before 1.29: app and sidecar are asked to end at once."""
    with tenant.installation.altered("SIDECAR_MODE=container"):
        tenant.create(pod("old", pod_spec(STUBBORN, grace_seconds=5), annotations(expiration=3600)))
        running = tenant.wait_ready("old")
    assert [each["name"] for each in running["spec"]["containers"]] == [APP, SIDECAR]
    held = tenant.wait_held(1)
    with tenant.installation.nodes() as nodes:
        tenant.cluster.wait_for(lambda: not nodes.reserved(token_of(running)), "the sidecar to have renewed the lease")
    with closing(tenant.follow("old", SIDECAR)) as sidecar:
        tenant.kubectl("delete", "pod", "old", "--wait=false")
        sidecar.instant_of("ending; the app may still run")
        assert tenant.held() == held, "the slot was free while the app was still running"
    # Long before the lease ends: the reconciler sees that all containers have ended.
    tenant.wait_held(0)


def test_a_pod_that_waits_for_its_worker_node_holds_its_slot(tenant):
    with tenant.cluster.cordoned():
        tenant.create(pod("waiting"))
        assert tenant.get("pod", "waiting")["status"]["phase"] == "Pending"
        assert len(tenant.held()) == 1
        with pytest.raises(KubectlError, match="is full: 1 of 1"):
            tenant.create(pod("refused"))
    tenant.wait_ready("waiting")
    assert status_of(tenant.get("pod", "waiting"), SIDECAR)["started"]
