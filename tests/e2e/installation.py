"""The project, installed in a real cluster by `kubectl apply -k k8s/overlays/dev`, and what its nodes hold.

What differs from a cluster of one's own is listed in docs/end-to-end.md.
"""

import base64
import json
import re
import shutil
import signal
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import redis
import trustme
from prometheus_client.parser import text_string_to_metric_families
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.settings import DEFAULT_IMAGE
from sidecar.protocol import Keys, majority
from tests.e2e import binaries, images
from tests.e2e.cluster import NODE, PAUSE_IMAGE, Cluster, KubectlError, Object
from tests.harness.nodes import HOOK_USER
from tests.harness.semaphores import live_slots
from tests.harness.webhook import pod_asking

ROOT = Path(__file__).parents[2]
# What the manifests, the examples and the tests' own pods name; nothing is pulled, so others stand in for them.
REDIS_IMAGE = "docker.io/library/redis:7.4-bookworm"
APP_IMAGE = "docker.io/library/busybox:1.37"
NAMESPACE = "at-least-semaphore-pod-hook"
NAME = "at-least-semaphore-pod-hook"
RECONCILER = "at-least-semaphore-reconciler"
OVERLAY = "k8s/overlays/dev"
SIDECAR = "at-least-semaphore-sidecar"
NODES, REPLICAS = 3, 2
# Those of the pods, and the name of the third one's container.
REDIS, WEBHOOK = "app.kubernetes.io/component=redis", "app.kubernetes.io/component=webhook"
RECONCILERS, RECONCILING = "app.kubernetes.io/component=reconciler", "reconciler"


def pack_images(archive: Path) -> None:
    """Write the images that the cluster needs; build what programs and images are missing. Raises MissingError."""
    binaries.build_missing()
    stand_in = images.stand_in()
    packed = {DEFAULT_IMAGE: images.project_image(), REDIS_IMAGE: stand_in, APP_IMAGE: stand_in}
    images.archive({**packed, PAUSE_IMAGE: images.pause_image()}, archive)


class Installation:
    """The webhook and its nodes in a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        # Only what they look like: nobody acts on objects of these kinds.
        self.kubectl("apply", "--filename=tests/manifests/schemas")
        self.kubectl("wait", "--for=condition=Established", "customresourcedefinitions", "--all")
        cluster.apply(*(self._volume(number) for number in range(NODES)))
        self.install()
        self.rotate_certificate()
        self._publish_authority()
        self.wait_until_ready()

    def kubectl(self, *arguments: str) -> str:
        """kubectl in the folder of the project, as its README says it."""
        return self.cluster.kubectl(*arguments, folder=ROOT)

    def install(self) -> None:
        """As the README says."""
        self.kubectl("apply", "-k", OVERLAY)

    def wait_until_ready(self) -> None:
        """Until everything runs as it was asked for, and what ran before is gone."""
        for workload in ("statefulset/redis", f"deployment/{NAME}", f"deployment/{RECONCILER}"):
            self.kubectl("rollout", "status", "-n", NAMESPACE, workload, "--timeout=120s")
        for selector in (WEBHOOK, RECONCILERS):
            self.cluster.wait_for(partial(self._are_just_as_many, selector), "just so many pods as were asked for")
        # The proxy of a Service hears of its endpoints later than we do, after a failed try by up to 30 s.
        self.cluster.wait_for(self._is_proxied, "the Service to lead to just these webhooks")
        self.cluster.wait_for(self.is_asked, "the API server to reach a webhook")

    def _are_just_as_many(self, selector: str) -> bool:
        return len(self.pods(selector)) == REPLICAS

    def _is_proxied(self) -> bool:
        """Whether kube-proxy sends who asks for the webhook to all of them, and nowhere else."""
        rules = self.cluster.machine.run("iptables-save", "-t", "nat")
        led_to = re.findall(rf'"{NAMESPACE}/{NAME}:https".* --to-destination ([0-9.]+):', rules)
        return sorted(led_to) == sorted(each["status"].get("podIP", "") for each in self.pods(WEBHOOK))

    def is_asked(self, namespace: str = "default") -> bool:
        """Whether the API server asks a webhook about a pod of this namespace, and gets its answer."""
        create = ("create", "-n", namespace, "--dry-run=server", "--output=json", "--filename=-")
        with suppress(KubectlError):
            return SIDECAR in self.cluster.kubectl(*create, text=json.dumps(pod_asking()))
        return False

    def pods(self, selector: str) -> list[Object]:
        """The pods with these labels, those on their way out as well."""
        return self.cluster.items("pods", "-n", NAMESPACE, f"--selector={selector}")

    @contextmanager
    def altered(self, *variables: str) -> Iterator[None]:
        """Meanwhile the webhook has these variables, `NAME=value`, besides its own or in place of them."""
        (webhook,) = self.cluster.get("deployment", NAME, "-n", NAMESPACE)["spec"]["template"]["spec"]["containers"]
        own = {each["name"]: each.get("value") for each in webhook["env"]}
        self.kubectl("set", "env", "-n", NAMESPACE, f"deployment/{NAME}", *variables)
        self.wait_until_ready()
        try:
            yield
        finally:
            names = [each.partition("=")[0] for each in variables]
            before = [f"{name}={own[name]}" if name in own else f"{name}-" for name in names]
            self.kubectl("set", "env", "-n", NAMESPACE, f"deployment/{NAME}", *before)
            self.wait_until_ready()

    def webhooks(self) -> list[str]:
        """The names of the pods that serve the webhook."""
        return [each["metadata"]["name"] for each in self.pods(WEBHOOK)]

    def logs(self, selector: str) -> str:
        """All that the pods with these labels have said."""
        return self.kubectl("logs", "-n", NAMESPACE, "-l", selector, "--tail=-1")

    def pages(self, selector: str) -> list[str]:
        """The metrics of each of the pods with these labels."""
        found = []
        for each in self.pods(selector):
            with urllib.request.urlopen(f"http://{each['status']['podIP']}:8080/metrics", timeout=30) as answer:
                found.append(answer.read().decode())
        return found

    def samples(self, name: str) -> list[dict[tuple[str, ...], float]]:
        """What each reconciler's page has of this name: the values of the labels → the sample."""
        return [samples_of(page, name) for page in self.pages(RECONCILERS)]

    # In the stead of cert-manager

    def rotate_certificate(self) -> str:
        """Put a new certificate of the same authority where cert-manager would; the certificate as PEM."""
        service = f"{NAME}.{NAMESPACE}.svc"
        issued = self._authority.issue_cert(service, f"{service}.cluster.local", key_type=trustme.KeyType.ECDSA)
        certificate = issued.cert_chain_pems[0].bytes()
        data = {
            "tls.crt": certificate,
            "tls.key": issued.private_key_pem.bytes(),
            "ca.crt": self._authority.cert_pem.bytes(),
        }
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {"name": f"{NAME}-tls", "namespace": NAMESPACE},
                "data": {name: base64.b64encode(content).decode() for name, content in data.items()},
            }
        )
        return certificate.decode()

    def _publish_authority(self) -> None:
        bundle = base64.b64encode(self._authority.cert_pem.bytes()).decode()
        patch = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]
        self.kubectl("patch", "mutatingwebhookconfiguration", NAME, "--type=json", f"--patch={json.dumps(patch)}")

    # In the stead of a provisioner of volumes

    def _folder(self, number: int) -> Path:
        return self.cluster.folder / "volumes" / str(number)

    def _volume(self, number: int) -> Object:
        folder = self._folder(number)
        folder.mkdir(parents=True)
        on_our_node = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"data-{number}"},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "local": {"path": str(folder)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [on_our_node]}},
            },
        }

    def empty_volume(self, number: int) -> None:
        """Remove what the Redis pod of this number has stored; it must not be running."""
        claim = self.cluster.get("persistentvolumeclaim", "-n", NAMESPACE, f"data-redis-{number}")
        folder = self._folder(int(claim["spec"]["volumeName"].removeprefix("data-")))
        for each in folder.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()

    # What the nodes hold

    def _password(self) -> str:
        """What the nodes know the webhook by."""
        nodes = self.cluster.get("statefulset", "redis", "-n", NAMESPACE)
        variables = nodes["spec"]["template"]["spec"]["containers"][0]["env"]
        reference = next(each["valueFrom"]["secretKeyRef"] for each in variables if each["name"] == "HOOK_PASSWORD")
        secret = self.cluster.get("secret", reference["name"], "-n", NAMESPACE)
        return base64.b64decode(secret["data"][reference["key"]]).decode()

    @contextmanager
    def nodes(self, patience_seconds: float = 5) -> Iterator["Nodes"]:
        """All three nodes, which must be running, as the webhook's user sees them; from outside of the cluster."""
        addresses = [each["status"]["podIP"] for each in self.pods(REDIS)]
        password = self._password()
        clients = [
            redis.Redis(
                each,
                username=HOOK_USER,
                password=password,
                decode_responses=True,
                socket_timeout=patience_seconds,
                retry=Retry(NoBackoff(), 0),
            )
            for each in addresses
        ]
        try:
            yield Nodes(clients)
        finally:
            for client in clients:
                client.close()

    @contextmanager
    def paused(self, *numbers: int) -> Iterator[None]:
        """Meanwhile these nodes are silent: SIGSTOP."""
        pods = [self.cluster.get("pod", "-n", NAMESPACE, f"redis-{number}") for number in numbers]
        for pod in pods:
            self.cluster.signal_container(pod, "redis", signal.SIGSTOP)
        try:
            yield
        finally:
            for pod in pods:
                self.cluster.signal_container(pod, "redis", signal.SIGCONT)


class Nodes:
    """What the nodes hold."""

    def __init__(self, clients: Sequence["redis.Redis"]) -> None:
        self._clients = clients

    def tokens(self, semaphore: str, number: int) -> dict[int, str]:
        """The live slots on one node, slot to token."""
        return live_slots(self._clients[number], Keys().record(semaphore))

    def leased(self, number: int, tokens: Collection[str]) -> set[str]:
        """Which of these have a lease on one node."""
        with self._clients[number].pipeline(transaction=False) as asked:
            for token in tokens:
                asked.exists(Keys().lease(token))
            return {token for token, lives in zip(tokens, asked.execute(), strict=True) if lives}

    def reserved(self, token: str) -> bool:
        """Whether the token's slot is still unclaimed on a majority of nodes."""
        return sum(bool(client.exists(Keys().reservation(token))) for client in self._clients) >= majority(NODES)

    def knowing(self, token: str) -> int:
        """How many nodes have a lease or a reservation of the token."""
        keys = (Keys().lease(token), Keys().reservation(token))
        return sum(bool(client.exists(*keys)) for client in self._clients)

    def left_ms(self, token: str) -> int:
        """How long a majority of nodes still has the token's lease; negative where it has none."""
        left: list[Any] = sorted((client.pttl(Keys().lease(token)) for client in self._clients), reverse=True)
        return int(left[majority(NODES) - 1])

    def held(self, semaphore: str) -> set[str]:
        """The tokens that hold a slot on a majority of nodes."""
        counted = Counter(
            token for number in range(len(self._clients)) for token in self.tokens(semaphore, number).values()
        )
        return {token for token, count in counted.items() if count >= majority(len(self._clients))}


def samples_of(page: str, name: str) -> dict[tuple[str, ...], float]:
    """What a page of metrics has of this name: the values of the labels → the sample."""
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {tuple(one.labels.values()): one.value for one in samples if one.name == name}
