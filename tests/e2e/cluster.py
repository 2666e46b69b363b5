"""A real cluster of one worker node, inside a machine of its own.

etcd, API server, controller manager, scheduler, kubelet, kube-proxy, containerd and CoreDNS, each with the rights it
has elsewhere. Knows Kubernetes; knows nothing of this project.
"""

import http.client
import ipaddress
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme

from tests.e2e.binaries import find
from tests.e2e.machine import Machine, Program, machine
from tests.harness.waiting import wait_for

NODE = "worker-0"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
# Debian's packages containerd, runc, containernetworking-plugins, iptables, conntrack, iproute2 and util-linux.
TOOLS = ("containerd", "ctr", "runc", "iptables", "conntrack", "ip", "unshare", "nsenter")
_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")
_PORT = 6443
# By token, name and group: what each of them may do, the API server knows by itself.
_USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
}

Object = dict[str, Any]


class Cluster:
    """A running cluster; `archives` are the images it has, as nothing can be pulled."""

    def __init__(self, machine: Machine, archives: Sequence[Path]) -> None:
        self.machine = machine
        self.folder = machine.folder
        self._authority = trustme.CA()
        self._write_identities()
        self._start_containerd()
        self._start("etcd", *self._etcd())
        self._import([*archives])
        self._start_api_server()
        self._start("kube-controller-manager", *self._controller_manager())
        self._start("kube-scheduler", *self._client("scheduler"), "--leader-elect=false")
        self.start_kubelet()
        self._start("kube-proxy", "--config", self._write("kube-proxy.json", self._proxy()))
        self._start_dns()
        wait_for(self._has_node, "the worker node to be ready", 60)

    # What tests do with it

    def kubectl(self, *arguments: str, text: str | None = None, folder: Path | None = None) -> str:
        """Run kubectl as a cluster's administrator; what it printed. Raises KubectlError."""
        done = subprocess.run(
            self.kubectl_command(*arguments), input=text, env=self.environ, cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            raise KubectlError(arguments, done.stdout, done.stderr)
        return done.stdout

    def kubectl_command(self, *arguments: str) -> list[str]:
        return [str(find("kubectl")), *arguments]

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which kubectl speaks to this cluster."""
        return {**os.environ, "KUBECONFIG": str(self.folder / "admin.kubeconfig"), "HOME": str(self.folder)}

    @contextmanager
    def running_kubectl(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """A kubectl that goes on meanwhile, with what it prints."""
        process = subprocess.Popen(
            self.kubectl_command(*arguments), env=self.environ, stdout=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def apply(self, *objects: Mapping[str, Any], options: Sequence[str] = ()) -> None:
        """Create or alter them by `kubectl apply`."""
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl(*options, "apply", "--filename=-", text=listed)

    def get(self, *arguments: str) -> Object:
        """`kubectl get`, decoded: one object, or a list by a kind alone."""
        found: Object = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return found

    def items(self, *arguments: str) -> list[Object]:
        """`kubectl get` of several."""
        return list(self.get(*arguments)["items"])

    @contextmanager
    def cordoned(self) -> Iterator[None]:
        """Meanwhile no pod gets to the worker node."""
        self.kubectl("cordon", NODE)
        try:
            yield
        finally:
            self.kubectl("uncordon", NODE)

    @contextmanager
    def without_api_server(self) -> Iterator[None]:
        """Meanwhile there is none: it is killed, and starts again with what etcd has."""
        self.api_server.kill(signal.SIGKILL)
        try:
            yield
        finally:
            self._start_api_server()

    def api(self) -> "Api":
        """A connection to the API server; close it after use."""
        return Api(self.machine.address, self.folder / "ca.crt", "admin")

    def pid_of(self, pod: Object, name: str) -> str:
        """The first process of a pod's container, by its number in the machine."""
        container = status_of(pod, name)["containerID"].removeprefix("containerd://")
        tasks = self.machine.run(*self.ctr("tasks", "list")).splitlines()
        return next(line.split()[1] for line in tasks if line.startswith(container))

    def signal_container(self, pod: Object, name: str, signum: signal.Signals) -> None:
        """Send a signal to the first process of a pod's container."""
        self.machine.run("kill", f"-{signum.name.removeprefix('SIG')}", self.pid_of(pod, name))

    def memory_of(self, pod: Object, name: str) -> dict[str, int]:
        """What the first process of a pod's container takes of the memory, in KiB, and what of that is its share."""
        folder = f"/proc/{self.pid_of(pod, name)}"
        lines = self.machine.run("cat", f"{folder}/status", f"{folder}/smaps_rollup").splitlines()
        fields = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
        return {field: int(fields[field]) for field in ("VmRSS", "Pss")}

    def start_kubelet(self) -> Program:
        self.kubelet = self._start("kubelet", *self._kubelet())
        return self.kubelet

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """As wait_for, at the pace of a cluster; fails at once when one of its programs has ended."""

        def checked() -> Any:
            for program in (self.containerd, self.kubelet):
                program.check()
            value = condition()
            if not value:
                time.sleep(0.2)
            return value

        return wait_for(checked, what, seconds)

    # How it is made

    def _start(self, name: str, *arguments: str | Path) -> Program:
        return self.machine.start(name, find(name), *arguments)

    def _start_api_server(self) -> None:
        self.api_server = self._start("kube-apiserver", *self._api_server())
        wait_for(self._is_ready, "the API server to be ready", 60)

    def _write(self, name: str, content: object) -> Path:
        file = self.folder / name
        file.write_text(json.dumps(content, indent=1))
        return file

    def _write_identities(self) -> None:
        """The certificate of the API server, the tokens of its users, and who signs service accounts' tokens."""
        first_service = str(next(ipaddress.ip_network(self.machine.service_network).hosts()))
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", self.machine.address, first_service)
        issued = self._authority.issue_cert(*names, key_type=trustme.KeyType.ECDSA)
        issued.private_key_pem.write_to_path(self.folder / "api.key")
        issued.cert_chain_pems[0].write_to_path(self.folder / "api.crt")
        self._authority.cert_pem.write_to_path(self.folder / "ca.crt")
        signer = trustme.CA(key_type=trustme.KeyType.ECDSA)
        signer.private_key_pem.write_to_path(self.folder / "service-accounts.key")
        tokens = [f'{token},{user},{user},"{group}"\n' for token, (user, group) in _USERS.items()]
        (self.folder / "tokens.csv").write_text("".join(tokens))
        for token in _USERS:
            self._write(f"{token}.kubeconfig", self._kubeconfig(token))

    def _kubeconfig(self, token: str) -> Object:
        server = {"server": f"https://{self.machine.address}:{_PORT}", "certificate-authority": f"{self.folder}/ca.crt"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": server}],
            "users": [{"name": token, "user": {"token": token}}],
            "contexts": [{"name": token, "context": {"cluster": "cluster", "user": token}}],
            "current-context": token,
        }

    def _client(self, token: str) -> list[str]:
        return [f"--kubeconfig={self.folder}/{token}.kubeconfig", f"--bind-address={self.machine.address}"]

    def _start_containerd(self) -> None:
        networks = self.folder / "networks"
        networks.mkdir()
        bridge = {
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": self.machine.pod_network}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": f"{self.folder}/addresses",
            },
        }
        self._write("networks/10-pods.conflist", {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]})
        plugins = next(each for each in _PLUGINS if Path(each).is_dir())
        (self.folder / "containerd.toml").write_text(f"""\
version = 2
root = "{self.folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # A machine that is itself a container may not lower it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
""")
        self.containerd = self.machine.start("containerd", "containerd", "--config", self.folder / "containerd.toml")
        wait_for(self._runs_containers, "containerd to answer", 30)

    def ctr(self, *arguments: str) -> list[str]:
        return ["ctr", "--address=/run/containerd.sock", "--namespace=k8s.io", *arguments]

    def _runs_containers(self) -> bool:
        self.containerd.check()
        tried = subprocess.run(self.machine.command(*self.ctr("version")), capture_output=True)
        return tried.returncode == 0

    def _import(self, archives: Sequence[Path]) -> None:
        for archive in archives:
            self.machine.run(*self.ctr("images", "import", str(archive)))

    def _etcd(self) -> list[str]:
        clients, peers = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        return [
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
        ]

    def _api_server(self) -> list[str]:
        return [
            "--etcd-servers=http://127.0.0.1:2379",
            f"--bind-address={self.machine.address}",
            f"--advertise-address={self.machine.address}",
            f"--secure-port={_PORT}",
            f"--tls-cert-file={self.folder}/api.crt",
            f"--tls-private-key-file={self.folder}/api.key",
            f"--token-auth-file={self.folder}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            f"--service-cluster-ip-range={self.machine.service_network}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.folder}/service-accounts.key",
            f"--service-account-signing-key-file={self.folder}/service-accounts.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
        ]

    def _controller_manager(self) -> list[str]:
        return [
            *self._client("controller-manager"),
            f"--service-account-private-key-file={self.folder}/service-accounts.key",
            f"--root-ca-file={self.folder}/ca.crt",
            f"--cert-dir={self.folder}/controller-manager",
            "--use-service-account-credentials",
            "--leader-elect=false",
        ]

    def _kubelet(self) -> list[str | Path]:
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.machine.address,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": "unix:///run/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.machine.cgroup}",
            "clusterDNS": [self.machine.address],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "podLogsDir": f"{self.folder}/pods",
            "syncFrequency": "10s",  # how soon a pod sees that its Secret has changed; a minute elsewhere
            "failSwapOn": False,
            "failCgroupV1": False,
            # How full the disk of this machine is should not matter.
            "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
        }
        return [
            "--config",
            self._write("kubelet.json", config),
            f"--kubeconfig={self.folder}/kubelet.kubeconfig",
            f"--root-dir={self.folder}/kubelet",
            f"--cert-dir={self.folder}/kubelet-certificates",
            f"--hostname-override={NODE}",
            f"--node-ip={self.machine.address}",
        ]

    def _proxy(self) -> Object:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "bindAddress": self.machine.address,
            "clientConnection": {"kubeconfig": f"{self.folder}/proxy.kubeconfig"},
            "clusterCIDR": self.machine.pod_network,
            "hostnameOverride": NODE,
            "conntrack": {"maxPerCore": 0},  # not a setting of one network
        }

    def _start_dns(self) -> None:
        """Beside the cluster instead of in it: the node's address is the one that pods ask."""
        (self.folder / "Corefile").write_text(f"""\
.:53 {{
  bind {self.machine.address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {self.folder}/admin.kubeconfig
  }}
}}
""")
        self._start("coredns", "-conf", self.folder / "Corefile")

    def _is_ready(self) -> bool:
        tried = subprocess.run(self.kubectl_command("get", "--raw=/readyz"), env=self.environ, capture_output=True)
        return tried.returncode == 0

    def _has_node(self) -> bool:
        self.kubelet.check()
        ready = '--output=jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
        # Pods can be created in a namespace once it has its service account.
        return "True" in self.kubectl("get", "nodes", ready) and bool(self.items("serviceaccounts"))


class Api:
    """A connection to the API server that is kept, for what kubectl would be too slow."""

    def __init__(self, address: str, authority: Path, token: str) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        self._connection = http.client.HTTPSConnection(address, _PORT, context=context, timeout=60)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def create_pod(self, namespace: str, pod: Object, query: str = "") -> tuple[int, Object]:
        """The status of the answer and what it says; nothing is sent again by itself."""
        body = json.dumps(pod).encode()
        self._connection.request("POST", f"/api/v1/namespaces/{namespace}/pods{query}", body, self._headers)
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def close(self) -> None:
        self._connection.close()


def status_of(pod: Object, container: str) -> Object:
    """What the kubelet says of one container."""
    statuses = [*pod["status"].get("initContainerStatuses", []), *pod["status"].get("containerStatuses", [])]
    return next((each for each in statuses if each["name"] == container), {})


class KubectlError(AssertionError):
    """kubectl failed; `message` is what a person saw."""

    def __init__(self, arguments: Sequence[str], printed: str, message: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)}: {message}{printed}")
        self.message = message


@contextmanager
def cluster(archives: Sequence[Path]) -> Iterator[Cluster]:
    """A cluster that is gone at the end."""
    with machine() as made:
        running = Cluster(made, archives)
        try:
            yield running
        finally:
            # Asked to end, it would wait for those who watch it from pods, which end with the machine.
            running.api_server.kill(signal.SIGKILL)
