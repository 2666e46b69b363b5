"""Which connections NetworkPolicies allow between given places, after what the Kubernetes documentation says of them.

A place is a pod or an address outside the cluster's pods. Raises ValueError where a policy says what is not known here.
https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.manifests.objects import Object


@dataclass(frozen=True)
class Place:
    """One end of a connection. Without a namespace it is an address, and no selector finds it."""

    name: str
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "192.0.2.1"


@dataclass(frozen=True)
class Port:
    number: int
    protocol: str = "TCP"

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


def allowed(policies: Iterable[Object], source: Place, target: Place, port: Port) -> bool:
    """Whether neither end's policies keep the connection from coming about."""
    policies = list(policies)
    return _open(policies, "Egress", source, target, port) and _open(policies, "Ingress", target, source, port)


def _open(policies: list[Object], direction: str, place: Place, other: Place, port: Port) -> bool:
    """Whether a place that policies isolate in this direction has one that lets the other through."""
    isolating = [
        each
        for each in policies
        if each["metadata"]["namespace"] == place.namespace
        and direction in each["spec"]["policyTypes"]
        and _selects(each["spec"]["podSelector"], place.labels)
    ]
    peers = {"Egress": "to", "Ingress": "from"}[direction]
    rules = [rule for each in isolating for rule in each["spec"].get(direction.lower(), [])]
    return not isolating or any(_lets_through(rule, peers, other, port, place.namespace) for rule in rules)


def _lets_through(rule: Object, peers: str, other: Place, port: Port, home: str | None) -> bool:
    _only(rule, "ports", peers)
    # No list, and an empty one, mean anything.
    meant_port = not rule.get("ports") or any(_is_port(each, port) for each in rule["ports"])
    meant_peer = not rule.get(peers) or any(_is_peer(each, other, home) for each in rule[peers])
    return meant_port and meant_peer


def _is_port(found: Object, port: Port) -> bool:
    _only(found, "port", "protocol")
    if not isinstance(found["port"], int):
        raise ValueError(f"a port by name: {found}")
    return Port(found["port"], found.get("protocol", "TCP")) == port


def _is_peer(peer: Object, other: Place, home: str | None) -> bool:
    _only(peer, "ipBlock", "namespaceSelector", "podSelector")
    if "ipBlock" in peer:
        return _within(peer["ipBlock"], other)
    if other.namespace is None:
        return False
    if "namespaceSelector" not in peer:
        return other.namespace == home and _selects(peer["podSelector"], other.labels)
    namespace = {"kubernetes.io/metadata.name": other.namespace}
    return _selects(peer["namespaceSelector"], namespace) and _selects(peer.get("podSelector", {}), other.labels)


def _within(block: Object, other: Place) -> bool:
    _only(block, "cidr")
    # A pod's address is nothing that a policy should name; only places outside are looked for.
    return other.namespace is None and ip_address(other.address) in ip_network(block["cidr"])


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """An empty selector means all."""
    _only(selector, "matchLabels")
    return set(selector.get("matchLabels", {}).items()) <= set(labels.items())


def _only(found: Mapping[str, Any], *known: str) -> None:
    unknown = set(found) - set(known)
    if unknown:
        raise ValueError(f"{sorted(unknown)} is not known here: {found}")
