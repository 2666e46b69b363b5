"""The NetworkPolicies allow what docs/network.md lists, and nothing else."""

import re

import pytest
import yaml
from jsonpatch import JsonPatch

from app.admission.injection import Sidecar, inject
from sidecar.protocol import Mode
from tests.manifests.conftest import rendered
from tests.manifests.flows import Place, Port, allowed
from tests.manifests.objects import NAMESPACE, ROOT, Object, Tree, ports, walk, with_component

PAGE = (ROOT / "docs" / "network.md").read_text()

# Each port that anything listens on, here or elsewhere, and one that nothing should reach.
PORTS = [Port(53), Port(53, "UDP"), *map(Port, (80, 443, 6379, 6443, 8080, 9443, 15012))]

OUTSIDE = [
    Place("API server", address="192.0.2.10"),
    Place("internet", address="198.51.100.7"),
    Place("Prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
    Place("cluster DNS", "kube-system", {"k8s-app": "kube-dns"}),
    Place("another pod of kube-system", "kube-system", {"k8s-app": "metrics-server"}),
    Place("istiod", "istio-system", {"app": "istiod"}),
    Place("another pod of a tenant", "batch", {"app": "report"}),
    # Pods that look like ours, elsewhere.
    Place("a tenant's Redis", "batch", {"app.kubernetes.io/component": "redis"}),
    Place("a tenant's webhook", "batch", {"app.kubernetes.io/component": "webhook"}),
    Place("a tenant's reconciler", "batch", {"app.kubernetes.io/component": "reconciler"}),
]


def label_of_holders() -> dict[str, str]:
    """The labels of a pod that had none, once it is admitted."""
    sidecar = Sidecar("image", Mode.NATIVE, "redis:6379", None, None, "", {}, {}, b"")
    pod = {"spec": {"containers": [{"name": "app"}]}}
    patch = inject(pod, sidecar, semaphore="batch/key", slot=0, token="0" * 32, expiration_seconds=30)
    labels: dict[str, str] = JsonPatch.from_string(patch).apply(pod)["metadata"]["labels"]
    return labels


def places(tree: Tree) -> list[Place]:
    """All of the outside, a holder, and what is in our namespace."""
    names = {"redis": "Redis"}
    ours = [Place(names.get(name, name), NAMESPACE, pod["metadata"]["labels"]) for name, pod in tree.pods.items()]
    stray = Place("another pod of our namespace", NAMESPACE, {"app": "debug"})
    return [*OUTSIDE, Place("holder", "batch", label_of_holders()), *ours, stray]


def allowed_flows(tree: Tree) -> set[tuple[str, str, str]]:
    """Everything that may begin or end in our namespace; between others we have no say."""
    policies = tree.all("NetworkPolicy")
    return {
        (source.name, target.name, str(port))
        for source in places(tree)
        for target in places(tree)
        for port in PORTS
        if NAMESPACE in (source.namespace, target.namespace) and allowed(policies, source, target, port)
    }


def listed_flows(tree: Tree, *components: str) -> set[tuple[str, str, str]]:
    """The rows of the page's tables, the first and those of components.

    "anybody outside the namespace" stands for each of them.
    """
    found = re.findall(r"^(.*)\n\n\| from \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    (_, first), *others = found
    tables = {re.findall("component `(.+)`", before)[0]: table for before, table in others}
    assert {"istio", "waiting"} == set(tables)
    text = "".join([first, *(tables[each] for each in components)])
    rows = [[cell.strip() for cell in row.split("|")[1:4]] for row in text.splitlines()]
    anybody = [each.name for each in places(tree) if each.namespace != NAMESPACE]

    def meant(name: str) -> list[str]:
        return anybody if name == "anybody outside the namespace" else [name]

    return {(source, target, port) for left, right, port in rows for source in meant(left) for target in meant(right)}


def test_base_allows_what_the_page_lists(base):
    assert listed_flows(base) == allowed_flows(base)


def test_dev_allows_what_the_mesh_and_the_reconciler_need_besides(dev):
    assert listed_flows(dev, "istio", "waiting") == allowed_flows(dev)


@pytest.mark.parametrize("component", ["istio", "waiting"])
def test_a_component_alone_allows_what_it_needs(tmp_path, component):
    tree = rendered(with_component(component, "base", tmp_path))

    assert listed_flows(tree, component) == allowed_flows(tree)


def test_every_listed_place_is_one_that_is_tried(dev):
    known = {each.name for each in places(dev)}

    assert all({source, target} <= known for source, target, _ in listed_flows(dev, "istio", "waiting"))


def test_every_port_that_a_pod_listens_on_is_tried(tree):
    assert {number for pod in tree.pods.values() for number in ports(pod).values()} <= {port.number for port in PORTS}


def test_all_pods_of_the_namespace_are_denied_first(tree):
    denial = tree.one("NetworkPolicy", "default-deny")

    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} == denial["spec"]


def narrowed(tree: Tree, policy: str) -> list[Object]:
    """The policies, with the patch of the page for one of them put on by hand."""
    [patch] = [
        patch
        for each in blocks()
        if "patches:" in each
        for patch in yaml.safe_load(each)["patches"]
        if patch["target"] == {"kind": "NetworkPolicy", "name": policy}
    ]
    changes = JsonPatch(yaml.safe_load(patch["patch"]))
    return [changes.apply(each) if each["metadata"]["name"] == policy else each for each in tree.all("NetworkPolicy")]


def test_what_the_page_says_narrows_9443_to_the_api_server(base):
    policies = narrowed(base, "webhook")
    webhook = next(each for each in places(base) if each.name == "webhook")

    let_in = [each.name for each in places(base) if allowed(policies, each, webhook, Port(9443))]

    assert ["API server"] == let_in


def test_what_the_page_says_narrows_the_reconciler_to_the_api_server(dev):
    policies = narrowed(dev, "reconciler")
    reconciler = next(each for each in places(dev) if each.name == "reconciler")

    reached = {
        (each.name, port.number)
        for each in places(dev)
        for port in PORTS
        if port.number not in (53, 6379) and allowed(policies, reconciler, each, port)
    }

    assert {("API server", 443), ("API server", 6443)} == reached


def test_an_api_server_on_another_port_is_reached_when_that_is_added_as_the_page_says(dev):
    [told] = re.findall(r"^.*`- (\{op: add, .*\})`", PAGE, re.MULTILINE)
    added = JsonPatch([yaml.safe_load(told)])
    policies = [
        added.apply(each) if each["metadata"]["name"] == "reconciler" else each for each in dev.all("NetworkPolicy")
    ]
    reconciler = next(each for each in places(dev) if each.name == "reconciler")
    server = next(each for each in places(dev) if each.name == "API server")

    assert not allowed(dev.all("NetworkPolicy"), reconciler, server, Port(8443))
    assert allowed(policies, reconciler, server, Port(8443))


def test_what_the_page_gives_tenants_lets_holders_reach_nodes_and_names(base):
    """In a namespace that denies everything else."""
    given = yaml.safe_load(next(each for each in blocks() if "kind: NetworkPolicy\nmetadata" in each))
    denial = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    theirs = [{**each, "metadata": {"namespace": "batch"}} for each in (given, {"spec": denial})]
    holder = next(each for each in places(base) if each.name == "holder")

    reached = {
        (target.name, str(port))
        for target in places(base)
        for port in PORTS
        if target.namespace != "batch" and allowed([*base.all("NetworkPolicy"), *theirs], holder, target, port)
    }

    assert {("Redis", "6379/TCP"), ("cluster DNS", "53/UDP"), ("cluster DNS", "53/TCP")} == reached


def blocks() -> list[str]:
    found: list[str] = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return found


def test_the_label_of_holders_is_the_one_that_the_policy_looks_for(tree):
    peers = [each["matchLabels"] for each in walk(tree.one("NetworkPolicy", "redis")) if "matchLabels" in each]

    assert label_of_holders() in peers


@pytest.mark.parametrize(
    "rule",
    [
        {"ports": [{"port": 1, "endPort": 9}]},
        {"ports": [{"port": "https"}]},
        {"from": [{"namespaceSelector": {"matchExpressions": []}}]},
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": []}}]},
    ],
    ids=["a range", "a name", "expressions", "exceptions"],
)
def test_a_policy_that_says_what_is_not_evaluated_is_an_error(rule: Object):
    policy = {
        "metadata": {"namespace": "a"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [rule]},
    }

    with pytest.raises(ValueError, match=r"is not known here|by name"):
        allowed([policy], Place("b", "b"), Place("a", "a"), Port(1))
