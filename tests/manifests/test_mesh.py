"""The component for Istio: what is inside the mesh, and how it reaches what is not."""

import pytest

from app.settings import Settings
from tests.manifests.objects import NAME, NAMESPACE, RECONCILER, ports
from tests.manifests.test_webhook import environ


def test_the_webhook_is_in_the_mesh_and_the_nodes_and_the_reconciler_are_not(dev):
    inside = {name: pod["metadata"]["labels"]["sidecar.istio.io/inject"] for name, pod in dev.pods.items()}

    assert {"webhook": "true", "redis": "false", "reconciler": "false"} == inside


def test_base_knows_of_no_mesh(base):
    assert not [each for each in base.objects if "istio.io" in each["apiVersion"]]
    assert not [pod for pod in base.pods.values() if "istio" in str(pod["metadata"])]


def test_only_those_without_an_identity_may_do_without(dev):
    """The API server on the one port, Prometheus on the other."""
    everybody, webhook = (dev.one("PeerAuthentication", name)["spec"] for name in ("default", "webhook"))

    assert {"mtls": {"mode": "STRICT"}} == everybody
    assert {"mode": "STRICT"} == webhook["mtls"]
    assert {str(port) for port in ports(dev.pods["webhook"]).values()} == set(webhook["portLevelMtls"])
    assert {"PERMISSIVE"} == {each["mode"] for each in webhook["portLevelMtls"].values()}


def test_prometheus_is_not_led_to_the_port_of_the_proxy(dev):
    assert "false" == dev.pods["webhook"]["metadata"]["annotations"]["prometheus.istio.io/merge-metrics"]


def test_connections_to_the_nodes_are_plain_for_all_namespaces(dev):
    """A Service of the cluster is otherwise tried with mTLS, and the nodes speak none."""
    rule = dev.one("DestinationRule", "redis")["spec"]
    service = dev.one("Service", "redis")

    assert f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local" == rule["host"]
    assert {"tls": {"mode": "DISABLE"}} == rule["trafficPolicy"]
    assert rule.get("exportTo", ["*"]) == ["*"]


def test_every_connection_goes_to_the_node_that_it_was_meant_for(dev):
    """With resolution DNS the mesh would tell the hosts apart by their port only, and lead all of them to one node."""
    entry = dev.one("ServiceEntry", "redis")["spec"]
    addresses = Settings.from_env(environ(dev)).redis_addresses

    assert [each.host for each in addresses] == entry["hosts"]
    assert {each.port for each in addresses} == {each["number"] for each in entry["ports"]}
    assert ["TCP"] == [each["protocol"] for each in entry["ports"]]
    assert ("NONE", "MESH_EXTERNAL") == (entry["resolution"], entry["location"])
    assert ["."] == entry["exportTo"], "other namespaces may have their own use of the port"


def test_the_webhook_gets_out_to_its_own_namespace_and_the_mesh_only(dev):
    sidecar = dev.one("Sidecar", "webhook")["spec"]

    assert "REGISTRY_ONLY" == sidecar["outboundTrafficPolicy"]["mode"]
    assert [{"hosts": ["./*", "istio-system/*"]}] == sidecar["egress"]


@pytest.mark.parametrize("name", [NAME, RECONCILER])
def test_every_replica_is_measured_once(dev, name):
    [endpoint] = dev.one("PodMonitor", name)["spec"]["podMetricsEndpoints"]

    assert "metrics" == endpoint["port"]
