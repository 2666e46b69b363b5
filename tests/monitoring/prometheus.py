"""A real Prometheus that reads the metrics of webhooks and evaluates our rules."""

import http.client
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from tests.harness.waiting import free_port, wait_for
from tests.monitoring.objects import Object, write_rules

PATIENCE_SECONDS = 60
NAMESPACE = "at-least-semaphore-pod-hook"


def labels(pod: str) -> dict[str, str]:
    """What the Prometheus Operator writes on what a PodMonitor finds, besides `instance`."""
    return {"namespace": NAMESPACE, "pod": pod}


class Prometheus:
    """One process with a folder of its own; reads the targets, pod to port, every second or more rarely."""

    def __init__(self, program: Path, folder: Path, targets: Mapping[str, int], interval_seconds: int = 1) -> None:
        self.interval_seconds = interval_seconds
        self._port = free_port()
        config = {
            "global": {"scrape_interval": f"{interval_seconds}s", "evaluation_interval": "1s"},
            "rule_files": [str(write_rules(folder))],
            "scrape_configs": [
                {
                    "job_name": "webhooks",
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{port}"], "labels": labels(pod)} for pod, port in targets.items()
                    ],
                }
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._log = folder / "log"
        command = [
            str(program),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            wait_for(self._has_read_all, "Prometheus to read its targets", PATIENCE_SECONDS)
        except BaseException:
            self.close()
            raise
        self.began = time.time()

    @property
    def url(self) -> str:
        return f"http://localhost:{self._port}"

    def _has_read_all(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"Prometheus ended with status {self._process.returncode}:\n{self._log.read_text()}")
        with suppress(OSError):
            targets = self.get("targets", state="active")["activeTargets"]
            return bool(targets) and all(each["health"] == "up" for each in targets)
        return False

    def get(self, path: str, **parameters: str) -> Any:
        """The data that the API answers with. Raises OSError if it does not."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", f"/api/v1/{path}?{urlencode(parameters)}")
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise OSError(f"{path}: {response.status}: {body}")
        return json.loads(body)["data"]

    def query(self, query: str) -> list[Object]:
        """What it answers now, one element for each series."""
        found: list[Object] = self.get("query", query=query)["result"]
        return found

    def history(self, query: str) -> list[Object]:
        """What it would have answered at any time since it first read its targets, one element for each series."""
        span = {"start": str(self.began), "end": str(time.time()), "step": str(self.interval_seconds)}
        found: list[Object] = self.get("query_range", query=query, **span)["result"]
        return found

    def parsed(self, query: str) -> Any:
        """The query as the tree that Prometheus makes of it."""
        return self.get("parse_query", query=query)

    def rules(self) -> list[Object]:
        """The rules, once each has been evaluated."""

        def found() -> list[Object]:
            rules = [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
            return rules if all(each["health"] != "unknown" for each in rules) else []

        return wait_for(found, "all rules to be evaluated")

    def close(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        for stop in (self._process.terminate, self._process.kill):
            stop()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
                return


@contextmanager
def prometheus(
    program: Path, folder: Path, targets: Mapping[str, int], interval_seconds: int = 1
) -> Iterator[Prometheus]:
    """A running Prometheus, gone at the end."""
    running = Prometheus(program, folder, targets, interval_seconds)
    try:
        yield running
    finally:
        running.close()
