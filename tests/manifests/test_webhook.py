"""The webhook's Deployment and its configuration say what the app expects and what the README promises."""

import base64
import dataclasses
import runpy

import pytest
import trustme
import yaml

from app.admission.annotations import GROUP
from app.admission.injection import container_name
from app.settings import DEFAULT_IMAGE, Settings, SettingsError
from sidecar.protocol import Address, majority
from tests.manifests.objects import NAME, NAMESPACE, ROOT, Tree, env, only_container, ports, quantity

LEFT_OPEN = "an overlay gives the addresses of the nodes"
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def environ(tree: Tree, component: str = "webhook") -> dict[str, str]:
    """The container's variables as the kubelet would set them; what the base leaves to overlays is made up."""
    given = rendered_environ(tree, component)
    return given | ({"REDIS_ADDRESSES": "redis-0:6379"} if given["REDIS_ADDRESSES"] == LEFT_OPEN else {})


def rendered_environ(tree: Tree, component: str = "webhook") -> dict[str, str]:
    """The same, but for the addresses, which are as they stand; passwords are made up where the tree has none."""
    stored = {
        key: base64.b64decode(value).decode() for each in tree.all("Secret") for key, value in each["data"].items()
    }
    passwords = {"hook-password": "one", "sidecar-password": "another", **stored}
    found = {}
    for name, each in env(tree.pods[component]).items():
        reference = each.get("valueFrom", {}).get("secretKeyRef", {})
        if not reference.get("optional") or reference["key"] in passwords:
            found[name] = passwords[reference["key"]] if reference else each["value"]
    return found


def test_every_variable_is_one_that_the_app_knows(tree):
    known = {each.name.upper() for each in dataclasses.fields(Settings)} | {METRICS_DIR}

    assert set(environ(tree)) <= known


def test_the_app_accepts_the_variables(tree):
    settings = Settings.from_env(environ(tree))

    assert ("hook", "sidecar") == (settings.redis_username, settings.sidecar_redis_username)
    assert settings.redis_password != settings.sidecar_redis_password
    assert settings.web_concurrency >= 2


def test_the_addresses_are_the_names_of_the_three_nodes(dev):
    replicas = dev.redis["spec"]["replicas"]
    domain = f"{dev.redis['spec']['serviceName']}.{NAMESPACE}.svc.cluster.local"
    settings = Settings.from_env(environ(dev))

    assert (3, 2) == (replicas, majority(replicas))
    assert (
        tuple(Address(f"{dev.redis['metadata']['name']}-{number}.{domain}", 6379) for number in range(replicas))
        == settings.redis_addresses
    )
    assert {6379} == set(ports(dev.pods["redis"]).values())


def test_base_leaves_the_addresses_to_overlays_and_does_not_start_without(base):
    with pytest.raises(SettingsError, match=f"REDIS_ADDRESSES: '{LEFT_OPEN}' is not an address"):
        Settings.from_env(rendered_environ(base))


def test_an_image_of_sidecars_that_was_not_copied_does_not_start(dev):
    """As when the patch is taken to another overlay without the replacement."""
    patch = yaml.safe_load((ROOT / "k8s" / "overlays" / "dev" / "webhook.yaml").read_text())
    [container] = patch["spec"]["template"]["spec"]["containers"]
    [image] = [each["value"] for each in container["env"] if each["name"] == "SIDECAR_IMAGE"]

    with pytest.raises(SettingsError, match="SIDECAR_IMAGE"):
        Settings.from_env({**environ(dev), "SIDECAR_IMAGE": image})


def test_the_ports_are_those_that_the_app_listens_on(tree):
    settings = Settings.from_env(environ(tree))

    assert {"https": int(settings.bind.rpartition(":")[2]), "metrics": settings.metrics_port} == ports(
        tree.pods["webhook"]
    )


def test_the_sidecar_is_of_the_same_image(tree):
    assert only_container(tree.pods["webhook"])["image"] == Settings.from_env(environ(tree)).sidecar_image


def test_the_image_is_the_one_that_the_app_takes_for_its_own(tree):
    assert DEFAULT_IMAGE == only_container(tree.pods["webhook"])["image"]


def test_the_metrics_have_a_folder_in_memory_with_room_for_all_workers(tree):
    """A megabyte for each worker, and as much for four that died before it; within the container's memory."""
    pod = tree.pods["webhook"]
    [mount] = [each for each in only_container(pod)["volumeMounts"] if each["mountPath"] == environ(tree)[METRICS_DIR]]
    [volume] = [each for each in pod["spec"]["volumes"] if each["name"] == mount["name"]]
    room = quantity(volume["emptyDir"]["sizeLimit"])

    assert "Memory" == volume["emptyDir"]["medium"]
    assert 5 * int(environ(tree)["WEB_CONCURRENCY"]) * 2**20 <= room
    assert 4 * room < quantity(only_container(pod)["resources"]["limits"]["memory"])


@pytest.fixture
def graceful_timeout(tree: Tree, tmp_path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What gunicorn.conf.py makes of the container's variables, with a certificate that is really there."""
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    for name, value in {**environ(tree), "CERT_DIR": str(tmp_path), METRICS_DIR: str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return int(runpy.run_path(str(ROOT / "gunicorn.conf.py"))["graceful_timeout"])


def test_a_pod_that_ends_is_forgotten_first_and_has_time_to_finish(tree, graceful_timeout):
    pause = only_container(tree.pods["webhook"])["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert pause >= 5
    assert tree.pods["webhook"]["spec"]["terminationGracePeriodSeconds"] >= pause + graceful_timeout + 2


def test_probes_ask_over_tls_for_pages_that_the_app_has(tree):
    container = only_container(tree.pods["webhook"])
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}

    assert {"/readyz", "/healthz"} == {each["path"] for each in probes.values()}
    assert {"HTTPS"} == {each["scheme"] for each in probes.values()}


def test_a_probe_outlasts_an_admission_that_is_before_it(tree):
    container = only_container(tree.pods["webhook"])
    budget = Settings.from_env(environ(tree)).admission_budget_seconds

    assert all(container[name]["timeoutSeconds"] > 2 * budget for name in ("readinessProbe", "livenessProbe"))


def test_two_replicas_come_and_go_one_by_one(tree):
    spec = tree.webhook["spec"]

    assert 2 == spec["replicas"]
    assert {"maxUnavailable": 0, "maxSurge": 1} == spec["strategy"]["rollingUpdate"]
    assert 1 == tree.one("PodDisruptionBudget", NAME)["spec"]["maxUnavailable"]


def test_the_webhook_is_asked_about_pods_that_are_created_and_nothing_else(tree):
    [webhook] = tree.one("MutatingWebhookConfiguration", NAME)["webhooks"]
    [rule] = webhook["rules"]

    assert {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]} == {
        name: value for name, value in rule.items() if name != "scope"
    }
    assert ["v1"] == webhook["admissionReviewVersions"]
    assert "/mutate" == webhook["clientConfig"]["service"]["path"]
    # A dry run takes no slot, and a second look at the same pod would find nothing new.
    assert ("NoneOnDryRun", "Never") == (webhook["sideEffects"], webhook["reinvocationPolicy"])


def test_the_condition_names_what_the_app_looks_for(tree):
    [webhook] = tree.one("MutatingWebhookConfiguration", NAME)["webhooks"]
    [condition] = webhook["matchConditions"]

    assert f"'{GROUP}/at-least-semaphore-pod' in object.metadata.annotations" in condition["expression"]
    assert 2 == condition["expression"].count(f"c.name == '{container_name('')}'")


def test_the_system_and_the_cluster_start_without_the_webhook(tree):
    [webhook] = tree.one("MutatingWebhookConfiguration", NAME)["webhooks"]
    [excluded] = webhook["namespaceSelector"]["matchExpressions"]

    assert ("kubernetes.io/metadata.name", "NotIn") == (excluded["key"], excluded["operator"])
    assert {NAMESPACE, "kube-system"} == set(excluded["values"])


def test_the_api_server_waits_longer_than_an_admission_may_take(tree):
    [webhook] = tree.one("MutatingWebhookConfiguration", NAME)["webhooks"]

    assert "Fail" == webhook["failurePolicy"]
    assert webhook["timeoutSeconds"] >= 2 * Settings.from_env(environ(tree)).admission_budget_seconds


def test_a_webhook_beside_another_is_better_than_one_that_is_pending(tree):
    [spread] = tree.pods["webhook"]["spec"]["topologySpreadConstraints"]

    assert ("kubernetes.io/hostname", "ScheduleAnyway") == (spread["topologyKey"], spread["whenUnsatisfiable"])
    assert ["pod-template-hash"] == spread["matchLabelKeys"]
