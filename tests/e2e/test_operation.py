"""What an operator does with the installation, and what happens to it, while pods come and go."""

import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.request

import pytest

from app.admission.annotations import GROUP
from tests.e2e.cluster import NODE, KubectlError
from tests.e2e.installation import NAME, NAMESPACE, NODES, REDIS, ROOT, WEBHOOK, samples_of
from tests.e2e.workloads import annotations, pod, pod_spec, sidecar_of, token_of
from tests.harness.waiting import free_port
from tests.manifests.objects import with_component


def test_the_overlay_runs_as_it_is_rendered(installation):
    workloads = installation.cluster.items("pods", "-n", NAMESPACE)
    by_component = sorted(each["metadata"]["labels"]["app.kubernetes.io/component"] for each in workloads)
    assert by_component == ["reconciler"] * 2 + ["redis"] * 3 + ["webhook"] * 2
    restarted = {
        one["metadata"]["name"]: each.get("lastState")
        for one in workloads
        for each in one["status"]["containerStatuses"]
        if each["restartCount"]
    }
    assert not restarted


def test_the_logs_of_the_webhook_and_of_the_nodes_are_read_by_their_labels(tenant):
    tenant.create(pod("logged"))
    everything = tenant.installation.logs(f"app.kubernetes.io/name={NAME}")
    assert f'"namespace": "{tenant.name}"' in everything
    nodes = tenant.installation.logs(REDIS)
    assert nodes.count("Ready to accept connections") == 3
    assert tenant.name not in nodes


def test_the_command_line_tells_in_the_webhooks_container_who_holds_what_and_that_all_is_well(tenant):
    """By the alias of the README."""
    (alias,) = re.findall(r"^alias at-least-semaphore='kubectl (.*)'$", (ROOT / "README.md").read_text(), re.MULTILINE)

    def at_least_semaphore(*arguments, text=None):
        return tenant.cluster.kubectl(*alias.split(), *arguments, text=text)

    tenant.create(pod("held", asked=annotations(key="seen", length=1)))
    tenant.wait_ready("held")

    told = at_least_semaphore("holders", f"{tenant.name}/seen")
    assert f"{tenant.name}/seen: 1 of 1 slot held" in told
    assert re.search(r"^0 +- +held +.* running +3 of 3 ", told, re.MULTILINE)
    assert f"{tenant.name}/seen" in at_least_semaphore("semaphores")
    assert 3 == len(re.findall(r"^redis-\d\.redis\..*:6379 +up ", at_least_semaphore("nodes"), re.MULTILINE))
    checked = at_least_semaphore("check")
    assert "FAIL" not in checked
    assert "warn" not in checked
    asking = json.dumps(pod("late", asked=annotations(key="seen", length=1)))
    with pytest.raises(KubectlError, match="would be refused"):
        at_least_semaphore("explain", "-n", tenant.name, "-", text=asking)


def test_the_metrics_are_scraped_through_a_forwarded_port(tenant):
    """kubectl forwards to one of the webhooks, and the API server asks any of them."""
    # 8080 here may be somebody else's.
    port = free_port()
    command = ("port-forward", "-n", NAMESPACE, f"svc/{NAME}", f"{port}:8080")
    with tenant.cluster.running_kubectl(*command) as forward:
        assert forward.stdout is not None
        assert "Forwarding from" in forward.stdout.readline()
        before = sum(granted_by_each(tenant.installation))
        tenant.create(pod("counted"))

        by_each = granted_by_each(tenant.installation)
        assert sum(by_each) > before
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            page = answer.read().decode()
        assert granted(page) in by_each
        assert "at_least_semaphore_build_info" in page
        # Only one that has been asked anything has these.
        assert any("flask_http_request_total" in each for each in tenant.installation.pages(WEBHOOK))


def granted_by_each(installation):
    return [granted(page) for page in installation.pages(WEBHOOK)]


def granted(page):
    return samples_of(page, "at_least_semaphore_verdicts_total").get(("granted",), 0)


def test_who_would_evict_two_nodes_at_once_is_kept_from_it(tenant):
    """A drain of the only worker node: one Redis pod goes, its budget holds the others, and pods are admitted on."""
    drain = ("drain", NODE, f"--pod-selector={REDIS}", "--delete-emptydir-data")
    try:
        with pytest.raises(KubectlError, match="violate the pod's disruption budget"):
            tenant.installation.kubectl(*drain, "--timeout=10s")
        ready = tenant.cluster.get("statefulset", "redis", "-n", NAMESPACE)["status"]["readyReplicas"]
        assert ready == 2
        tenant.create(pod("meanwhile"))
    finally:
        tenant.kubectl("uncordon", NODE)
        tenant.installation.wait_until_ready()
    tenant.wait_ready("meanwhile")


def test_a_node_that_lost_its_volume_is_repaired_and_every_slot_kept(tenant):
    asked = annotations(length=3)
    for number in range(2):
        tenant.create(pod(f"kept-{number}", asked=asked))
        tenant.wait_ready(f"kept-{number}")
    held = tenant.wait_held(2)
    with tenant.cluster.cordoned():
        tenant.installation.kubectl("delete", "pod", "redis-1", "-n", NAMESPACE)
        tenant.installation.empty_volume(1)
    tenant.installation.wait_until_ready()
    assert tenant.held() == held
    # The next admission repairs it.
    tenant.create(pod("third", asked=asked))
    everybody = tenant.wait_held(3)
    with tenant.installation.nodes() as nodes:
        tenant.cluster.wait_for(
            lambda: set(nodes.tokens(f"{tenant.name}/reports-db", 1).values()) == everybody,
            "the emptied node to know every slot",
        )
    assert held < everybody
    with pytest.raises(KubectlError, match="is full: 3 of 3"):
        tenant.create(pod("fourth", asked=asked))


def test_nodes_that_are_all_killed_at_once_have_forgotten_nothing_when_they_are_back(tenant):
    """As in a power cut: their volumes stay."""
    asked = annotations(expiration=600)
    tenant.create(pod("kept", asked=asked))
    tenant.wait_ready("kept")
    held = tenant.wait_held(1)
    names = [each["metadata"]["name"] for each in tenant.installation.pods(REDIS)]
    tenant.installation.kubectl("delete", "pods", "-n", NAMESPACE, "--force", "--grace-period=0", *names)
    tenant.installation.wait_until_ready()
    with tenant.installation.nodes() as nodes:
        for number in range(NODES):
            assert set(nodes.tokens(f"{tenant.name}/reports-db", number).values()) == held
    with pytest.raises(KubectlError, match="is full: 1 of 1"):
        tenant.create(pod("too-many", asked=asked))


def test_passwords_are_changed_in_the_three_steps_of_the_readme_and_no_slot_is_lost(tenant, tmp_path):
    overlay = Overlay(tmp_path)
    old = {"hook-password": "known-to-everybody-hook", "sidecar-password": "known-to-everybody-sidecar"}
    new = {"hook-password": "another", "sidecar-password": "and another"}
    tenant.create(pod("before", asked=annotations(key="before", expiration=10)))
    before = tenant.wait_ready("before")
    held = tenant.wait_held(1, "before")

    try:
        overlay.apply(tenant, old | also(new))
        overlay.apply(tenant, new | also(old))
        tenant.wait_renewed(token_of(before))
        assert tenant.held("before") == held, "the nodes refused the sidecar's password"
        tenant.create(pod("amid", asked=annotations(key="amid", expiration=10)))
        amid = tenant.wait_ready("amid")
        overlay.apply(tenant, new)
        tenant.wait_renewed(token_of(amid))
        tenant.create(pod("after", asked=annotations(key="after")))
        tenant.wait_ready("after")
    finally:
        overlay.apply(tenant, old)
        tenant.installation.install()


def also(passwords):
    return {f"{name}-also": password for name, password in passwords.items()}


class Overlay:
    """A copy of the overlay whose passwords change; its nodes are restarted without a minute between two of them."""

    def __init__(self, folder):
        self.folder = folder / "k8s"
        shutil.copytree(ROOT / "k8s", self.folder)
        nodes = self.folder / "base" / "redis" / "stateful-set.yaml"
        nodes.write_text(nodes.read_text().replace("minReadySeconds: 60", "minReadySeconds: 1"))

    def apply(self, tenant, passwords):
        lines = [f"{name}={password}\n" for name, password in passwords.items()]
        (self.folder / "overlays" / "dev" / "redis-credentials.env").write_text("".join(lines))
        tenant.installation.kubectl("apply", "-k", str(self.folder / "overlays" / "dev"))
        tenant.installation.wait_until_ready()


class Load:
    """Pods created one after the other, each in a semaphore of its own; none of them ever runs."""

    def __init__(self, tenant):
        self.tenant = tenant
        self.created, self.failures = 0, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._create)
        self._api = tenant.cluster.api()

    def _create(self):
        try:
            self._create_all()
        except Exception as error:  # noqa: BLE001  it would end unseen
            self.failures.append(repr(error))

    def _create_all(self):
        nowhere = pod_spec(nodeSelector={"kubernetes.io/hostname": "nowhere"})
        while not self._stop.is_set() and self.created < 5000:
            name = f"load-{self.created}"
            status, answer = self._api.create_pod(self.tenant.name, pod(name, nowhere, annotations(key=name)))
            if status != 201:
                self.failures.append(answer.get("message", answer))
            self.created += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._api.close()

    def wait_for_more(self, count=20):
        """Until so many more have been created."""
        enough = self.created + count
        self.tenant.cluster.wait_for(
            lambda: self.failures or self.created >= enough, f"{count} more pods to be created"
        )
        assert not self.failures


def test_under_load_both_webhook_pods_can_be_replaced_and_the_certificate_rotated(tenant):
    with Load(tenant) as load:
        load.wait_for_more()
        # One after the other, as a rollout does it.
        tenant.installation.kubectl("rollout", "restart", "-n", NAMESPACE, f"deployment/{NAME}")
        tenant.installation.wait_until_ready()
        load.wait_for_more()
        # And as an eviction does it.
        for name in tenant.installation.webhooks():
            tenant.installation.kubectl("delete", "pod", name, "-n", NAMESPACE)
            tenant.installation.wait_until_ready()
        load.wait_for_more()
        fresh = tenant.installation.rotate_certificate()
        for name in tenant.installation.webhooks():
            address = tenant.cluster.get("pod", name, "-n", NAMESPACE)["status"]["podIP"]
            tenant.cluster.wait_for(
                lambda address=address: served_certificate(address) == fresh, "the new certificate to be served", 120
            )
        load.wait_for_more()
    print(f"{load.created} pods were created meanwhile")
    assert not load.failures


def served_certificate(address):
    """What the webhook at this address shows as its certificate."""
    with socket.create_connection((address, 9443), 10) as plain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain) as tls:
            return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"")


def test_with_the_webhook_gone_pods_that_ask_are_refused_and_others_are_not_touched(tenant):
    try:
        tenant.installation.kubectl("scale", "-n", NAMESPACE, f"deployment/{NAME}", "--replicas=0")
        tenant.installation.kubectl("wait", "pods", "-n", NAMESPACE, "-l", WEBHOOK, "--for=delete", "--timeout=60s")
        tenant.create(pod("plain", asked={}))
        with pytest.raises(KubectlError, match="failed calling webhook"):
            tenant.create(pod("asking"))
    finally:
        tenant.installation.kubectl("scale", "-n", NAMESPACE, f"deployment/{NAME}", "--replicas=2")
        tenant.installation.wait_until_ready()
    tenant.create(pod("asking"))


def test_with_the_component_opt_in_only_labelled_namespaces_are_asked_about(tenant, tmp_path):
    installation = tenant.installation
    try:
        installation.kubectl("apply", "-k", str(with_component("opt-in", "overlays/dev", tmp_path)))
        tenant.cluster.wait_for(lambda: not installation.is_asked(tenant.name), "the API server to look for the label")
        tenant.create(pod("before"))
        before = tenant.get("pod", "before")
        assert sidecar_of(before) is None
        assert "labels" not in before["metadata"]
        assert not tenant.held()

        installation.kubectl("label", "namespace", tenant.name, f"{GROUP}/enabled=true")
        tenant.cluster.wait_for(lambda: installation.is_asked(tenant.name), "the API server to see the label")
        tenant.create(pod("after"))
        assert tenant.held() == {token_of(tenant.wait_ready("after"))}
    finally:
        installation.install()
        installation.wait_until_ready()


# A kind, the annotations of an object of it, those of its pods, and what who applies it is warned of, if anything.
WARNINGS: tuple[tuple[str, dict[str, str], dict[str, str], str | None], ...] = (
    ("Deployment", {}, annotations(), None),
    ("Deployment", {}, {}, None),
    ("Deployment", annotations(), {}, "do not count on a Deployment itself"),
    ("StatefulSet", {}, {f"{GROUP}/at-least-semaphor-pod": "true"}, "the pods will run without a slot"),
    ("DaemonSet", {}, {"other/key": "value"}, None),
    ("Job", {}, {f"{GROUP}/key": "x"}, "the pods will run without a slot"),
    ("CronJob", annotations(), annotations(), "do not count on a CronJob itself"),
    ("CronJob", {}, {f"{GROUP}/key": "x"}, "the pods will run without a slot"),
    ("CronJob", {}, annotations(), None),
)


def test_who_applies_annotations_that_do_not_count_is_warned_and_nobody_else(tenant):
    command = tenant.cluster.kubectl_command("apply", "--dry-run=server", "-n", tenant.name, "-f", "-")
    for kind, above, in_template, warned in WARNINGS:
        applied = json.dumps(workload(kind, above, in_template))
        done = subprocess.run(command, input=applied, env=tenant.cluster.environ, capture_output=True, text=True)
        assert 0 == done.returncode, done.stderr
        assert (warned in done.stderr) if warned else ("Warning" not in done.stderr), (kind, done.stderr)


def workload(kind, above, in_template):
    """Something that makes pods, with these annotations of its own and of its pods."""
    labels = {"app": "warned"}
    template = {"metadata": {"labels": labels, "annotations": in_template}, "spec": pod_spec()}
    metadata = {"name": "warned", "annotations": above}
    if "Job" not in kind:
        spec = {"selector": {"matchLabels": labels}, "template": template}
        return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec}
    template["spec"]["restartPolicy"] = "Never"
    job = {"template": template, "suspend": True}
    of_kind = {"schedule": "@yearly", "jobTemplate": {"spec": job}} if kind == "CronJob" else job
    return {"apiVersion": "batch/v1", "kind": kind, "metadata": metadata, "spec": of_kind}
