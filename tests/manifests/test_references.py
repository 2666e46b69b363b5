"""What one object says of another is true: selectors, ports and names."""

import re

import pytest

from tests.manifests.objects import (
    NAME,
    NAMESPACE,
    RECONCILER,
    Object,
    Tree,
    containers,
    env,
    only_container,
    ports,
    title,
    walk,
)

WEBHOOK, REDIS, WAITING = {"webhook"}, {"redis"}, {"reconciler"}

# Whom every object selects that selects pods. What the tests of one tree do not have is left out there.
SELECTED = {
    f"Service/{NAME}": WEBHOOK,
    "Service/redis": REDIS,
    f"Deployment/{NAME}": WEBHOOK,
    "StatefulSet/redis": REDIS,
    f"PodDisruptionBudget/{NAME}": WEBHOOK,
    "PodDisruptionBudget/redis": REDIS,
    f"Deployment/{RECONCILER}": WAITING,
    f"PodDisruptionBudget/{RECONCILER}": WAITING,
    "NetworkPolicy/default-deny": WEBHOOK | REDIS | WAITING,
    "NetworkPolicy/webhook": WEBHOOK,
    "NetworkPolicy/redis": REDIS,
    "NetworkPolicy/webhook-to-istiod": WEBHOOK,
    "NetworkPolicy/reconciler": WAITING,
    "NetworkPolicy/redis-from-reconciler": REDIS,
    f"PodMonitor/{NAME}": WEBHOOK,
    f"PodMonitor/{RECONCILER}": WAITING,
    "PeerAuthentication/default": WEBHOOK | REDIS | WAITING,
    "PeerAuthentication/webhook": WEBHOOK,
    "Sidecar/webhook": WEBHOOK,
    "Telemetry/default": WEBHOOK | REDIS | WAITING,
}
OF_THE_COMPONENTS = {
    f"Deployment/{RECONCILER}",
    f"PodDisruptionBudget/{RECONCILER}",
    "NetworkPolicy/webhook-to-istiod",
    "NetworkPolicy/reconciler",
    "NetworkPolicy/redis-from-reconciler",
    f"PodMonitor/{NAME}",
    f"PodMonitor/{RECONCILER}",
    "PeerAuthentication/default",
    "PeerAuthentication/webhook",
    "Sidecar/webhook",
    "Telemetry/default",
}


def selector(found: Object) -> dict[str, str] | None:
    """The labels by which an object selects pods; none if it is of another kind."""
    spec = found.get("spec", {})
    match found["kind"]:
        case "Service":
            labels = spec["selector"]
        case "NetworkPolicy":
            labels = spec["podSelector"].get("matchLabels", {})
        case "Sidecar":
            labels = spec["workloadSelector"]["labels"]
        case "PeerAuthentication" | "Telemetry":  # all of the namespace, if they say nothing
            labels = spec.get("selector", {}).get("matchLabels", {})
        case "Deployment" | "StatefulSet" | "PodDisruptionBudget" | "PodMonitor":
            labels = spec["selector"]["matchLabels"]
        case _:
            return None
    return dict(labels)


def selected(tree: Tree) -> dict[str, set[str]]:
    labels = {title(each): selector(each) for each in tree.objects}
    return {name: tree.selected(found) for name, found in labels.items() if found is not None}


def test_every_selector_of_dev_selects_exactly_the_pods_it_is_meant_for(dev):
    assert selected(dev) == SELECTED


def test_every_selector_of_base_selects_exactly_the_pods_it_is_meant_for(base):
    assert selected(base) == {name: pods - WAITING for name, pods in SELECTED.items() if name not in OF_THE_COMPONENTS}


def test_a_selector_names_the_project_and_the_component_or_nothing(tree):
    """So that it selects no pod of anybody else's, should one come into the namespace."""
    ours = {"app.kubernetes.io/name", "app.kubernetes.io/component"}

    assert all(set(selector(each) or ours) == ours for each in tree.objects)


def test_pods_keep_apart_from_their_own_kind(tree):
    spreads = [
        (name, [each["matchLabels"] for each in walk(pod["spec"]) if "matchLabels" in each])
        for name, pod in tree.pods.items()
    ]

    assert all(labels and {name} == tree.selected(labels[0]) for name, labels in spreads)


def test_everything_bears_the_name_of_the_project(tree):
    found = [*tree.objects, *tree.pods.values(), *tree.redis["spec"]["volumeClaimTemplates"]]

    assert all(each["metadata"]["labels"]["app.kubernetes.io/name"] == NAME for each in found)


def test_everything_is_in_the_namespace_but_for_what_has_none(tree):
    without = {title(each) for each in tree.objects if each["metadata"].get("namespace") != NAMESPACE}
    rights = {title(each) for each in tree.all("ClusterRole", "ClusterRoleBinding")}

    assert {f"Namespace/{NAMESPACE}", f"MutatingWebhookConfiguration/{NAME}"} | rights == without


def test_services_lead_to_ports_of_their_pods_under_the_same_name(tree):
    for service in tree.all("Service"):
        [component] = tree.selected(service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert port["targetPort"] == port["name"]
            assert port["port"] == ports(tree.pods[component])[port["name"]]


def test_policies_name_ports_that_their_pods_listen_on(tree):
    for policy in tree.all("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for component in tree.selected(selector(policy) or {}):
                assert {each["port"] for each in rule["ports"]} <= set(ports(tree.pods[component]).values())


def test_probes_ask_a_port_that_the_pod_has(tree):
    asked = {"webhook": {"https"}, "reconciler": {"metrics"}}
    for name in set(asked) & set(tree.pods):
        probed = {each["httpGet"]["port"] for each in walk(tree.pods[name]) if "httpGet" in each}
        assert asked[name] == probed
        assert probed <= set(ports(tree.pods[name]))


@pytest.mark.parametrize(("component", "monitor"), [("webhook", NAME), ("reconciler", RECONCILER)])
def test_prometheus_is_led_to_the_metrics(dev, component, monitor):
    annotations = dev.pods[component]["metadata"]["annotations"]
    [endpoint] = dev.one("PodMonitor", monitor)["spec"]["podMetricsEndpoints"]

    assert str(ports(dev.pods[component])["metrics"]) == annotations["prometheus.io/port"]
    assert "true" == annotations["prometheus.io/scrape"]
    assert "metrics" == endpoint["port"]
    assert "/metrics" == annotations["prometheus.io/path"] == endpoint["path"]


def test_the_api_server_is_led_to_the_service(tree):
    [webhook] = tree.one("MutatingWebhookConfiguration", NAME)["webhooks"]
    called = webhook["clientConfig"]["service"]
    service = tree.one("Service", called["name"])

    assert service["metadata"]["namespace"] == called["namespace"]
    assert called["port"] in [each["port"] for each in service["spec"]["ports"] if each["name"] == "https"]


def test_workloads_find_their_accounts_and_the_headless_service(tree):
    accounts = {pod["spec"]["serviceAccountName"] for pod in tree.pods.values()}
    service = tree.one("Service", tree.redis["spec"]["serviceName"])

    assert tree.names("ServiceAccount") == accounts
    assert "None" == service["spec"]["clusterIP"]


def test_every_mount_has_its_volume_and_every_volume_is_mounted(tree):
    claims = {each["metadata"]["name"] for each in tree.redis["spec"]["volumeClaimTemplates"]}
    for name, pod in tree.pods.items():
        volumes = {each["name"] for each in pod["spec"].get("volumes", [])} | (claims if name == "redis" else set())
        mounts = [each for container in containers(pod) for each in container.get("volumeMounts", [])]
        assert volumes == {each["name"] for each in mounts}


def test_config_maps_of_pods_are_there(tree):
    used = {each["configMap"]["name"] for each in walk(tree.redis) if "configMap" in each}
    # Which no pod of ours mounts.
    dashboards = {each["metadata"]["name"] for each in tree.all("ConfigMap") if is_dashboard(each)}

    assert tree.names("ConfigMap") - dashboards == used


def is_dashboard(found: Object) -> bool:
    """Whether Grafana's sidecar collects it."""
    return bool(found["metadata"]["labels"].get("grafana_dashboard") == "1")


def secret_keys(tree: Tree) -> set[tuple[str, str]]:
    """Secret and key of all variables that come from a Secret, but for those that it need not have."""
    references = [each["secretKeyRef"] for pod in tree.pods.values() for each in walk(pod) if "secretKeyRef" in each]
    return {(each["name"], each["key"]) for each in references if not each.get("optional")}


def test_base_asks_for_one_secret_that_is_not_its_own(base):
    assert not base.all("Secret")
    assert {("redis-credentials", "hook-password"), ("redis-credentials", "sidecar-password")} == secret_keys(base)


def test_dev_brings_that_secret_under_a_name_that_changes_with_it(dev):
    [secret] = dev.all("Secret")

    assert re.fullmatch(r"redis-credentials-[a-z0-9]{10}", secret["metadata"]["name"])
    assert {(secret["metadata"]["name"], key) for key in secret["data"]} == secret_keys(dev)


def test_both_sides_of_a_password_read_the_same_key(tree):
    def key(component: str, variable: str) -> Object:
        reference: Object = env(tree.pods[component])[variable]["valueFrom"]["secretKeyRef"]
        return reference

    for client in set(tree.pods) - REDIS:
        assert key(client, "REDIS_PASSWORD") == key("redis", "HOOK_PASSWORD")
        assert key(client, "SIDECAR_REDIS_PASSWORD") == key("redis", "SIDECAR_PASSWORD")


def test_the_mounted_certificate_is_the_issued_one_which_the_api_server_trusts(tree):
    container = only_container(tree.pods["webhook"])
    [mount] = [
        each
        for each in container["volumeMounts"]
        if each["mountPath"] == env(tree.pods["webhook"])["CERT_DIR"]["value"]
    ]
    [volume] = [each for each in tree.pods["webhook"]["spec"]["volumes"] if each["name"] == mount["name"]]
    [serving] = [
        each for each in tree.all("Certificate") if each["spec"]["secretName"] == volume["secret"]["secretName"]
    ]
    injected = tree.one("MutatingWebhookConfiguration", NAME)["metadata"]["annotations"][
        "cert-manager.io/inject-ca-from"
    ]

    assert f"{serving['metadata']['namespace']}/{serving['metadata']['name']}" == injected
    assert "subPath" not in mount, "it would never see another certificate"
    assert 0o440 == volume["secret"]["defaultMode"]


def test_the_chain_of_issuers_ends_in_one_that_signs_itself(tree):
    serving = tree.one("Certificate", NAME)["spec"]
    issuer = tree.one("Issuer", serving["issuerRef"]["name"])["spec"]
    authority = tree.one("Certificate", "ca")["spec"]

    assert authority["isCA"]
    assert not serving.get("isCA")
    assert authority["secretName"] == issuer["ca"]["secretName"]
    assert {"selfSigned": {}} == tree.one("Issuer", authority["issuerRef"]["name"])["spec"]
    assert {"Issuer"} == {each["spec"]["issuerRef"]["kind"] for each in tree.all("Certificate")}
    assert hours(authority["duration"]) > 10 * hours(serving["duration"]) > 10 * hours(serving["renewBefore"])


def hours(text: str) -> int:
    return int(text.removesuffix("h"))


def test_the_certificate_names_the_service_as_the_api_server_calls_it(tree):
    [webhook] = tree.one("MutatingWebhookConfiguration", NAME)["webhooks"]
    called = webhook["clientConfig"]["service"]
    name = f"{called['name']}.{called['namespace']}.svc"

    assert [name, f"{name}.cluster.local"] == tree.one("Certificate", NAME)["spec"]["dnsNames"]
