"""A real API server: etcd and kube-apiserver on loopback, of which nobody else knows; needs no rights on this machine.

There is no kubelet, no scheduler and no controller: what becomes of a pod, says who created it.
"""

import base64
import http.client
import json
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import trustme
import yaml

from app.admission.annotations import GROUP
from tests.e2e.binaries import find
from tests.harness.waiting import free_port, wait_for
from tests.harness.webhook import ROOT, Client, pod_asking

T = TypeVar("T")
Object = dict[str, Any]

PROGRAMS = ("etcd", "kube-apiserver")
HOST = "127.0.0.1"
# Who may ask, by tokens that are their names: one who may do everything, and others who may do what `grant` says.
ADMIN, RECONCILER, INTERN = "admin", "reconciler", "intern"
# Which webhook a namespace has; in place of the label of the component `opt-in`.
LABEL = f"{GROUP}/asked"
MANIFEST = ROOT / "k8s/base/webhook/mutating-webhook-configuration.yaml"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
ROLES = "/apis/rbac.authorization.k8s.io/v1"
JSON, MERGE = "application/json", "application/merge-patch+json"
PATIENCE_SECONDS = 60


class ApiError(AssertionError):
    """The API server refused; the message is what a person would see."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class ControlPlane:
    """A running etcd and API server, the latter on the same port and with the same data over a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "ca.crt")
        issued = self.authority.issue_cert(HOST, key_type=trustme.KeyType.ECDSA)
        issued.private_key_pem.write_to_path(folder / "api.key")
        issued.cert_chain_pems[0].write_to_path(folder / "api.crt")
        trustme.CA(key_type=trustme.KeyType.ECDSA).private_key_pem.write_to_path(folder / "signer.key")
        users = {ADMIN: "system:masters", RECONCILER: "", INTERN: ""}
        (folder / "tokens.csv").write_text("".join(f'{name},{name},{name},"{of}"\n' for name, of in users.items()))
        self.port, self._etcd_port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._start_etcd()
        self.start()

    def _start_etcd(self) -> None:
        clients, peers = f"http://{HOST}:{self._etcd_port}", f"http://{HOST}:{free_port()}"
        self._start(
            "etcd",
            f"--data-dir={self._folder}/etcd",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        )

    def start(self) -> None:
        """Start the API server; it is ready later."""
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://{HOST}:{self._etcd_port}",
            f"--bind-address={HOST}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self._folder}/api.crt",
            f"--tls-private-key-file={self._folder}/api.key",
            f"--token-auth-file={self._folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._folder}/signer.key",
            f"--service-account-signing-key-file={self._folder}/signer.key",
        )

    def _start(self, name: str, *arguments: str) -> None:
        with self._log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen([find(name), *arguments], stdout=log, stderr=subprocess.STDOUT)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def await_ready(self) -> None:
        wait_for(self._is_ready, "the API server to be ready", PATIENCE_SECONDS)

    def _is_ready(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended:\n{self._log(name).read_text()[-2000:]}"
        with suppress(OSError, http.client.HTTPException), closing(Connection(self)) as connection:
            return connection.ask("GET", "/readyz")[0] == http.HTTPStatus.OK
        return False

    def stop(self) -> None:
        """kill -9 the API server; etcd goes on."""
        self._end("kube-apiserver")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Meanwhile connections to the API server are refused."""
        self.stop()
        try:
            yield
        finally:
            self.start()
            self.await_ready()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile the API server answers nobody, and its connections stay open."""
        self.processes["kube-apiserver"].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.processes["kube-apiserver"].send_signal(signal.SIGCONT)

    def compact(self) -> None:
        """Let etcd forget all that was before now: who asks from there on is told 410 Gone.

        An API server remembers some of it by itself, until it is restarted.
        """
        now = self._ask_etcd("range", {"key": base64.b64encode(b"\0").decode()})["header"]["revision"]
        self._ask_etcd("compaction", {"revision": now, "physical": True})

    def _ask_etcd(self, what: str, content: Object) -> Object:
        connection = http.client.HTTPConnection(HOST, self._etcd_port, timeout=PATIENCE_SECONDS)
        with closing(connection):
            connection.request("POST", f"/v3/kv/{what}", json.dumps(content))
            response = connection.getresponse()
            found: Object = json.loads(response.read())
        assert response.status == http.HTTPStatus.OK, found
        return found

    def close(self) -> None:
        for name in reversed(self.processes):
            self._end(name)

    def _end(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    # How it is asked

    @cached_property
    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def kubeconfig(self, user: str, port: int | None = None) -> Path:
        """A file by which this user's programs find the API server, or what listens on another port."""
        server = {"server": f"https://{HOST}:{port or self.port}", "certificate-authority": f"{self._folder}/ca.crt"}
        file = self._folder / f"{user}-{port or self.port}.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": server}],
            "users": [{"name": user, "user": {"token": user}}],
            "contexts": [{"name": user, "context": {"cluster": "cluster", "user": user}}],
            "current-context": user,
        }
        file.write_text(json.dumps(content))
        return file

    def ask(self, method: str, path: str, content: Object | None = None, kind: str = JSON) -> Object:
        """As an administrator, on a connection of its own. Raises ApiError."""
        with closing(Connection(self)) as connection:
            status, body = connection.exchange(request(method, path, content, kind))
        found: Object = json.loads(body)
        if status >= http.HTTPStatus.BAD_REQUEST:
            raise ApiError(status, found["message"])
        return found

    def grant(self, user: str, rules: Sequence[Mapping[str, Any]]) -> None:
        """Let the user do this in the whole cluster, and nothing else."""
        with suppress(ApiError):
            self.ask("DELETE", f"{ROLES}/clusterroles/{user}")
        self.ask("POST", f"{ROLES}/clusterroles", {"metadata": {"name": user}, "rules": list(rules)})
        group = "rbac.authorization.k8s.io"
        binding = {
            "metadata": {"name": user},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        }
        with suppress(ApiError):  # it is there, and knows the role by its name
            self.ask("POST", f"{ROLES}/clusterrolebindings", binding)

    def create_namespace(self, name: str, hook: str) -> "Namespace":
        """With the account that pods run as, and this in its LABEL."""
        self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": {LABEL: hook}}})
        self.ask("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
        return Namespace(self, name)

    @contextmanager
    def asking(self, hook: Client, name: str) -> Iterator[None]:
        """Meanwhile it asks the webhook about pods in namespaces whose LABEL says this name, of which it makes one."""
        namespace = self.create_namespace(name, name)
        self.ask("POST", HOOKS, configuration(name, hook))

        def is_asked() -> bool:
            pod = namespace.create(pod_asking(), query="?dryRun=All")
            return "initContainers" in pod["spec"]

        try:
            paced(is_asked, "the API server to ask the webhook")
            yield
        finally:
            self.ask("DELETE", f"{HOOKS}/{name}")


@contextmanager
def running_control_plane() -> Iterator[ControlPlane]:
    """One that is ready, and gone at the end. Raises MissingError, before anything is started."""
    for name in PROGRAMS:
        find(name)
    with tempfile.TemporaryDirectory() as folder, closing(ControlPlane(Path(folder))) as plane:
        plane.await_ready()
        yield plane


class Connection:
    """A connection to the API server, kept for one request after the other."""

    def __init__(self, server: ControlPlane) -> None:
        plain = socket.create_connection((HOST, server.port), timeout=PATIENCE_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = server.tls.wrap_socket(plain, server_hostname=HOST)

    def ask(self, method: str, path: str, content: Object | None = None) -> tuple[int, bytes]:
        """The status of the answer, and its body."""
        return self.exchange(request(method, path, content))

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        self._socket.sendall(request)
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        return response.status, response.read()

    def close(self) -> None:
        self._socket.close()


def request(method: str, path: str, content: Object | None = None, kind: str = JSON) -> bytes:
    """What an administrator sends for this."""
    body = json.dumps(content).encode() if content else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {ADMIN}\r\n"
    return f"{head}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def configuration(name: str, hook: Client) -> Object:
    """That of the manifests, for namespaces whose LABEL says this name."""
    found: Object = yaml.safe_load(MANIFEST.read_text())
    found["metadata"] = {"name": name}
    [webhook] = found["webhooks"]
    authority = base64.b64encode(hook.authority.cert_pem.bytes()).decode()
    webhook["clientConfig"] = {"url": f"https://{hook.host}:{hook.port}/mutate", "caBundle": authority}
    webhook["namespaceSelector"]["matchLabels"] = {LABEL: name}
    return found


def paced(condition: Callable[[], T], what: str, seconds: float = 30) -> T:
    """As wait_for, for what costs an API server its time to answer."""

    def slowed() -> T:
        value = condition()
        if not value:
            time.sleep(0.05)
        return value

    return wait_for(slowed, what, seconds)


class Namespace:
    """The pods of one namespace, their events, and a kubelet's word on them."""

    def __init__(self, plane: ControlPlane, name: str) -> None:
        self.plane, self.name = plane, name
        self.path = f"/api/v1/namespaces/{name}"

    def create(self, pod: Object, query: str = "") -> Object:
        """The pod as it was stored. Raises ApiError."""
        return self.plane.ask("POST", f"{self.path}/pods{query}", pod)

    def pod(self, name: str) -> Object:
        return self.plane.ask("GET", f"{self.path}/pods/{name}")

    def pods(self) -> list[Object]:
        """The oldest first, and of those of the same second the one with the least uid."""
        found = self.plane.ask("GET", f"{self.path}/pods")["items"]
        return sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["uid"]))

    def patch(self, name: str, change: Object) -> Object:
        """A JSON merge patch (RFC 7396)."""
        return self.plane.ask("PATCH", f"{self.path}/pods/{name}", change, MERGE)

    def set_status(self, name: str, **fields: Any) -> None:
        """What a kubelet says of the pod."""
        self.plane.ask("PATCH", f"{self.path}/pods/{name}/status", {"status": fields}, MERGE)

    def delete(self, name: str) -> None:
        """At once, as nobody has to be asked who runs it: `kubectl delete --force`."""
        self.plane.ask("DELETE", f"{self.path}/pods/{name}?gracePeriodSeconds=0")

    def delete_all(self) -> None:
        self.plane.ask("DELETE", f"{self.path}/pods?gracePeriodSeconds=0")

    def events(self, pod: str, reason: str | None = None) -> list[Object]:
        """What `kubectl describe` would show of the pod, the oldest first."""
        wanted = {"involvedObject.name": pod, **({"reason": reason} if reason else {})}
        selector = urlencode({"fieldSelector": ",".join(f"{name}={value}" for name, value in wanted.items())})
        found = self.plane.ask("GET", f"{self.path}/events?{selector}")["items"]
        return sorted(found, key=lambda event: event["metadata"]["creationTimestamp"])
