"""Real sidecars: processes started from a command and an environment, as a container spec has them."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]


class Sidecar:
    """One process. It sees the given variables, PATH and nothing else; what it says is collected."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            with_interpreter(command),
            env={"PATH": os.environ["PATH"], **env},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            self.lines.extend(line.rstrip("\n") for line in stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def resident_kilobytes(self) -> int:
        return int(next(line for line in self.status().splitlines() if line.startswith("VmRSS")).split()[1])

    def status(self) -> str:
        """What the kernel says of it: proc(5)."""
        return Path(f"/proc/{self.pid}/status").read_text()

    def said(self, part: str) -> list[dict[str, Any]]:
        """The log's lines so far whose message contains `part`."""
        records = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [record for record in records if part in record["message"]]

    def wait_for(self, part: str, seconds: float = 20.0) -> dict[str, Any]:
        """The first line of the log whose message contains `part`, as soon as it is there."""
        return wait_for(lambda: self.said(part), f"{part!r} in the sidecar's log", seconds)[0]

    def send(self, signum: int) -> None:
        self._process.send_signal(signum)

    def ended(self, seconds: float = 10.0) -> int:
        """Wait for its end; the exit status."""
        status = self._process.wait(seconds)
        self._reader.join(seconds)
        return status

    def terminate(self, seconds: float = 10.0) -> int:
        """SIGTERM, as the kubelet ends a container; the exit status."""
        self.send(signal.SIGTERM)
        return self.ended(seconds)

    def close(self) -> None:
        """kill -9, if it still runs."""
        if self.running:
            self._process.kill()
        self.ended()


def with_interpreter(command: Sequence[str]) -> list[str]:
    """`python` in a container spec is, here, the interpreter that runs the tests."""
    program, *arguments = command
    return [sys.executable if program == "python" else program, *arguments]


@contextmanager
def sidecar(command: Sequence[str], env: Mapping[str, str]) -> Iterator[Sidecar]:
    """A running sidecar, gone at the end whatever happened to it."""
    process = Sidecar(command, env)
    try:
        yield process
    finally:
        process.close()
