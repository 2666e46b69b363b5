"""The real webhook: gunicorn over TLS with a throw-away certificate, and a client that asks as an API server does."""

import base64
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonpatch
import trustme
from prometheus_client.parser import text_string_to_metric_families

from app.admission.annotations import GROUP
from tests.harness.nodes import HOOK_PASSWORD, HOOK_USER, SIDECAR_PASSWORD, SIDECAR_USER
from tests.harness.waiting import free_port, wait_for

ROOT = Path(__file__).parents[2]


def issue_certificate(folder: Path, authority: trustme.CA, not_after: datetime | None = None) -> None:
    """Write `tls.crt` and `tls.key` as cert-manager does: the new files come into place at once, by a rename."""
    issued = authority.issue_cert("localhost", "127.0.0.1", not_after=not_after, key_type=trustme.KeyType.ECDSA)
    for name, pem in (("tls.key", issued.private_key_pem), ("tls.crt", issued.cert_chain_pems[0])):
        fresh = folder / f".{name}"
        pem.write_to_path(fresh)
        fresh.rename(folder / name)


@dataclass(frozen=True)
class Answer:
    """The response of an AdmissionReview, and the pod as the API server would store it."""

    allowed: bool
    code: int | None
    message: str
    warnings: list[str]
    pod: dict[str, Any]

    def container(self, name: str = "at-least-semaphore-sidecar") -> dict[str, Any]:
        """The injected container."""
        spec = self.pod["spec"]
        found = [each for each in [*spec.get("initContainers", []), *spec["containers"]] if each["name"] == name]
        assert len(found) == 1, f"{len(found)} containers named {name}"
        return dict(found[0])

    def env(self) -> dict[str, str]:
        """The environment of the injected container, as the kubelet would give it."""
        return {each["name"]: each["value"].replace("$$", "$") for each in self.container()["env"]}


class Client:
    """Asks a webhook, wherever it runs, as an API server does; `authority` has signed its certificate."""

    def __init__(
        self,
        authority: trustme.CA,
        port: int,
        metrics_port: int,
        host: str = "127.0.0.1",
        patience_seconds: float = 30,
    ) -> None:
        self.authority = authority
        self.host, self.port, self.metrics_port = host, port, metrics_port
        self.patience_seconds = patience_seconds

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """What a client needs to trust the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        return context

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=self.patience_seconds)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, bytes]:
        return self.request("GET", path)

    def is_ready(self) -> bool:
        with suppress(OSError):
            return self.get("/readyz")[0] == 200
        return False

    def post(self, review: object, *, timeout: str = "10s") -> tuple[int, dict[str, Any]]:
        """Send a review as an API server does."""
        headers = {"Content-Type": "application/json"}
        status, body = self.request("POST", f"/mutate?timeout={timeout}", json.dumps(review).encode(), headers)
        return status, json.loads(body)

    def ask(self, pod: dict[str, Any], **request: Any) -> Answer:
        """Ask for a pod to be created, and apply the patch that comes back."""
        status, answer = self.post(review_of(pod, **request))
        assert status == 200, answer
        return read_answer(answer, pod)

    def metrics(self) -> str:
        """The page that Prometheus reads."""
        connection = http.client.HTTPConnection(self.host, self.metrics_port, timeout=30)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def verdicts(self) -> dict[str, float]:
        """The counter of verdicts by reason, as on the metrics page."""
        return {labels[0]: value for labels, value in self.samples("at_least_semaphore_verdicts_total").items()}

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """What the metrics page has of this name: the values of the labels, in their order → the sample."""
        return {
            tuple(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name
        }


class Webhook(Client):
    """A running gunicorn that serves the webhook, or another `app` in its place."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        app: str | None = None,
        workers: int = 2,
        cert_dir: Path | None = None,
        authority: trustme.CA | None = None,
        patience_seconds: float = 30,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="alsph-webhook-"))
        authority = authority or trustme.CA()
        if cert_dir is None:
            issue_certificate(self.folder, authority)
        self.log_file = self.folder / "log"
        self.environ = {
            "PATH": os.environ["PATH"],
            "CERT_DIR": str(cert_dir or self.folder),
            "BIND": f"127.0.0.1:{free_port()}",
            "METRICS_PORT": str(free_port()),
            "TMPDIR": str(self.folder),
            "WEB_CONCURRENCY": str(workers),
            **environ,
        }
        host, _, port = self.environ["BIND"].rpartition(":")
        super().__init__(authority, int(port), int(self.environ["METRICS_PORT"]), host, patience_seconds)
        command = [sys.executable, "-m", "gunicorn", *([app] if app else [])]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environ, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(self._serves, "the webhook to serve")
            wait_for(lambda: sum(map(has_booted, self.workers())) == workers, "all its workers to have started")
        except BaseException:
            self.close()
            raise

    def _serves(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the webhook ended with status {self.process.returncode}:\n{self.log()}")
        return self.is_ready()

    def log(self) -> str:
        return self.log_file.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines()]

    def workers(self) -> list[int]:
        """Their process ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def close(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        for stop in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(stop)
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    continue
        shutil.rmtree(self.folder)


def has_booted(worker: int) -> bool:
    """Whether its signals reach it: one that comes before is lost to the handlers of the process that forked it."""
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt")).split()[1]
    return bool(int(caught, 16) & 1 << (signal.SIGABRT - 1))  # which only workers handle


def read_answer(answer: Mapping[str, Any], pod: dict[str, Any]) -> Answer:
    """Read a response and apply its patch to the pod."""
    response = answer["response"]
    status = response.get("status", {})
    if "patch" in response:
        assert response["patchType"] == "JSONPatch"
        pod = jsonpatch.apply_patch(pod, json.loads(base64.b64decode(response["patch"])))
    return Answer(response["allowed"], status.get("code"), status.get("message", ""), response.get("warnings", []), pod)


def annotations_asking(key: str, length: int, expiration: int, **more: str) -> dict[str, str]:
    """Those of a pod that asks for a slot; `more` are further ones of our group, with _ for -."""
    asked = {"at-least-semaphore-pod": "true", "key": key, "length": str(length), "expiration": str(expiration)}
    asked |= {name.replace("_", "-"): value for name, value in more.items()}
    return {f"{GROUP}/{name}": value for name, value in asked.items()}


def pod_asking(
    key: str = "reports-db",
    length: int = 3,
    expiration: int = 60,
    *,
    owner: str = "ReplicaSet/reports-7d9c",
    **more: str,
) -> dict[str, Any]:
    """A pod that asks for a slot; `more` are further annotations of our group, with _ for -."""
    kind, name = owner.split("/")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{name}-",
            "annotations": annotations_asking(key, length, expiration, **more),
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": str(uuid.uuid4()), "controller": True}
            ],
        },
        "spec": {"containers": [{"name": "app", "image": "registry.example/reports:1"}]},
    }


def review_of(pod: object, *, namespace: str = "batch", uid: str | None = None, **request: Any) -> dict[str, Any]:
    """The AdmissionReview for the creation of a pod; `request` overrides its fields."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid or str(uuid.uuid4()),
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "operation": "CREATE",
            "namespace": namespace,
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "dryRun": False,
            "object": pod,
            "oldObject": None,
            **request,
        },
    }


def environ_for(redis_addresses: str, **more: str) -> dict[str, str]:
    """The variables of a webhook that uses these nodes with the users of the README."""
    return {
        "REDIS_ADDRESSES": redis_addresses,
        "REDIS_USERNAME": HOOK_USER,
        "REDIS_PASSWORD": HOOK_PASSWORD,
        "SIDECAR_REDIS_USERNAME": SIDECAR_USER,
        "SIDECAR_REDIS_PASSWORD": SIDECAR_PASSWORD,
        **more,
    }


@contextmanager
def running_webhook(environ: Mapping[str, str], **options: Any) -> Iterator[Webhook]:
    """A webhook that serves, and is gone at the end; `options` as of Webhook."""
    webhook = Webhook(environ, **options)
    try:
        yield webhook
    finally:
        webhook.close()
