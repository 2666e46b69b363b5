"""The component that lets pods wait for a slot: the reconciler, what it may do, and that it agrees with the webhook."""

import copy
import shutil
from pathlib import Path
from unittest.mock import ANY

import pytest
import yaml

from app.settings import Settings, SettingsError
from tests.harness.reconciler import COMMAND, RULES
from tests.manifests.conftest import rendered
from tests.manifests.objects import (
    NAME,
    NAMESPACE,
    RECONCILER,
    ROOT,
    Object,
    Tree,
    env,
    only_container,
    ports,
    quantity,
    title,
    with_component,
)
from tests.manifests.schema import validate
from tests.manifests.test_webhook import LEFT_OPEN, environ, rendered_environ

# What the webhook is told and the reconciler is not: it serves no TLS, has no workers, and injects nothing.
OF_THE_WEBHOOK = {"CERT_DIR", "PROMETHEUS_MULTIPROC_DIR", "WEB_CONCURRENCY", "SIDECAR_IMAGE"}
ALLOWED = {"name": "WAITING_ALLOWED", "value": "true"}


@pytest.fixture
def alone(tmp_path) -> Tree:
    """The base with the component alone."""
    return rendered(with_component("waiting", "base", tmp_path))


@pytest.fixture(params=["alone", "dev"])
def waiting(request: pytest.FixtureRequest) -> Tree:
    """Both trees that have the component, one after the other."""
    found: Tree = request.getfixturevalue(request.param)
    return found


def kustomization() -> Object:
    """That of dev."""
    found: Object = yaml.safe_load((ROOT / "k8s" / "overlays" / "dev" / "kustomization.yaml").read_text())
    return found


def dev_altered(target: Path, **changes: object) -> Tree:
    """Dev with these fields in its kustomization.yaml."""
    copied = shutil.copytree(ROOT / "k8s", target / "k8s") / "overlays" / "dev"
    (copied / "kustomization.yaml").write_text(yaml.safe_dump({**kustomization(), **changes}))
    return rendered(copied)


def dev_without_component(target: Path) -> Tree:
    """Dev as it is when its one line is left out, and nothing else."""
    components = kustomization()["components"]
    return dev_altered(target, components=[each for each in components if not each.endswith("/waiting")])


def without_permission(tree: Tree) -> list[Object]:
    """The objects, without the variable by which the webhook lets pods wait."""
    rest = copy.deepcopy(tree)
    only_container(rest.pods["webhook"])["env"].remove(ALLOWED)
    return rest.objects


def test_it_adds_the_reconciler_and_tells_the_webhook_and_alters_nothing_else(base, alone):
    rest = without_permission(alone)
    added = [each for each in rest if each not in base.objects]

    assert [each for each in rest if each in base.objects] == base.objects
    assert [
        f"ClusterRole/{RECONCILER}",
        f"ClusterRoleBinding/{RECONCILER}",
        f"Deployment/{RECONCILER}",
        "NetworkPolicy/reconciler",
        "NetworkPolicy/redis-from-reconciler",
        f"PodDisruptionBudget/{RECONCILER}",
        f"ServiceAccount/{RECONCILER}",
    ] == sorted(map(title, added))
    for each in added:
        validate(each)


def test_without_it_dev_is_complete_and_the_webhook_lets_nobody_wait(dev, tmp_path):
    bare = dev_without_component(tmp_path)

    assert RECONCILER not in bare.names("Deployment")
    assert not bare.all("ClusterRole", "ClusterRoleBinding")
    assert "WAITING_ALLOWED" not in env(bare.pods["webhook"])
    assert [each for each in without_permission(dev) if each in bare.objects] == bare.objects


def test_with_it_the_webhook_lets_pods_wait(waiting, base):
    assert ALLOWED == env(waiting.pods["webhook"])["WAITING_ALLOWED"]
    assert Settings.from_env(environ(waiting)).waiting_allowed
    assert not Settings.from_env(environ(base)).waiting_allowed


@pytest.mark.parametrize("components", [("waiting", "istio"), ("istio", "waiting")], ids=" then ".join)
def test_it_is_outside_of_the_mesh_whichever_component_comes_first(tmp_path, components):
    first, second = components
    tree = rendered(with_component(first, "base", tmp_path, second))

    assert "false" == tree.pods["reconciler"]["metadata"]["labels"]["sidecar.istio.io/inject"]
    assert "true" == tree.pods["webhook"]["metadata"]["labels"]["sidecar.istio.io/inject"]


def test_it_needs_no_mesh(alone):
    assert not [each for each in alone.objects if "istio.io" in each["apiVersion"]]


def test_it_is_told_what_the_webhook_is_told(waiting):
    """And, besides, the password before or after, under which nothing is made, but pods are known."""
    theirs = {name: each for name, each in env(waiting.pods["webhook"]).items() if name not in OF_THE_WEBHOOK}
    ours = env(waiting.pods["reconciler"])
    also = ours.pop("REDIS_PASSWORD_ALSO")

    assert theirs == ours
    assert {"secretKeyRef": {"name": ANY, "key": "hook-password-also", "optional": True}} == also["valueFrom"]


def test_what_the_webhook_is_told_is_copied_as_dev_says_it(tmp_path):
    """The addresses by dev itself, a VARIANT by a replacement such as its comment speaks of."""

    def variable(container: str) -> str:
        return f"spec.template.spec.containers.[name={container}].env.[name=VARIANT].value"

    copied = {
        "select": {"kind": "Deployment", "name": RECONCILER},
        "fieldPaths": [variable("reconciler")],
        "options": {"create": True},
    }
    replacement = {
        "source": {"kind": "Deployment", "name": NAME, "fieldPath": variable("webhook")},
        "targets": [copied],
    }
    told = [{"name": "REDIS_ADDRESSES", "value": "elsewhere:1"}, {"name": "VARIANT", "value": "blue"}]
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {"template": {"spec": {"containers": [{"name": "webhook", "env": told}]}}},
    }
    dev = kustomization()

    tree = dev_altered(
        tmp_path,
        patches=[*dev["patches"], {"patch": yaml.safe_dump(patch)}],
        replacements=[*dev["replacements"], replacement],
    )

    found = environ(tree, "reconciler")
    assert ("elsewhere:1", "blue") == (found["REDIS_ADDRESSES"], found["VARIANT"])


def test_the_app_accepts_the_variables(waiting):
    settings = Settings.from_env(environ(waiting, "reconciler"))

    assert ("hook", "sidecar") == (settings.redis_username, settings.sidecar_redis_username)
    assert {"metrics": settings.metrics_port} == ports(waiting.pods["reconciler"])


def test_it_does_not_start_without_an_overlay_that_gives_the_addresses(alone):
    with pytest.raises(SettingsError, match=f"REDIS_ADDRESSES: '{LEFT_OPEN}' is not an address"):
        Settings.from_env(rendered_environ(alone, "reconciler"))


def test_it_is_the_reconciler_of_the_image_that_the_webhook_has(waiting):
    container = only_container(waiting.pods["reconciler"])

    assert list(COMMAND) == container["command"]
    assert only_container(waiting.pods["webhook"])["image"] == container["image"]


def test_it_may_do_what_it_must_and_nothing_else(waiting):
    """In all namespaces. What the tests of the reconciler let it do is the same."""
    role = waiting.one("ClusterRole", RECONCILER)

    assert [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    ] == role["rules"]
    assert list(RULES) == role["rules"]
    assert "aggregationRule" not in role


@pytest.mark.parametrize("namespace", [NAMESPACE, "elsewhere"])
def test_its_own_account_may_do_so_whatever_the_namespace_is_called(tmp_path, namespace):
    tree = rendered(with_component("waiting", "base", tmp_path, namespace=namespace))
    binding = tree.one("ClusterRoleBinding", RECONCILER)
    account = tree.one("ServiceAccount", RECONCILER)["metadata"]

    assert [{"kind": "ServiceAccount", "name": account["name"], "namespace": namespace}] == binding["subjects"]
    assert {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": RECONCILER} == binding["roleRef"]
    assert account["name"] == tree.pods["reconciler"]["spec"]["serviceAccountName"]
    assert account["namespace"] == tree.reconciler["metadata"]["namespace"] == namespace


def test_probes_ask_for_its_pages(waiting):
    container = only_container(waiting.pods["reconciler"])
    probes = {name: container[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")}

    assert {"readinessProbe": "/readyz", "livenessProbe": "/healthz"} == {
        name: each["path"] for name, each in probes.items()
    }
    assert {"metrics"} == {each["port"] for each in probes.values()}


def test_two_replicas_come_and_go_one_by_one(waiting):
    spec = waiting.reconciler["spec"]

    assert 2 == spec["replicas"]
    assert {"maxUnavailable": 0, "maxSurge": 1} == spec["strategy"]["rollingUpdate"]
    assert 1 == waiting.one("PodDisruptionBudget", RECONCILER)["spec"]["maxUnavailable"]


def test_a_reconciler_beside_another_is_better_than_one_that_is_pending(waiting):
    [spread] = waiting.pods["reconciler"]["spec"]["topologySpreadConstraints"]

    assert ("kubernetes.io/hostname", "ScheduleAnyway") == (spread["topologyKey"], spread["whenUnsatisfiable"])
    assert ["pod-template-hash"] == spread["matchLabelKeys"]


def test_it_asks_for_little_and_has_room_for_more(waiting):
    resources = only_container(waiting.pods["reconciler"])["resources"]

    assert quantity(resources["requests"]["memory"]) <= quantity("64Mi")
    assert quantity(resources["limits"]["memory"]) >= 150_000_000
