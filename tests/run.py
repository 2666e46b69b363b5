"""`make run`: three nodes and a webhook that stay until Ctrl-C, with a review to send and an environment to use.

Prometheus reads them as well, with our alerts, where there is one.
"""

import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.binaries import MissingError, find
from tests.harness.scene import Scene, scene
from tests.harness.webhook import ROOT, pod_asking, review_of
from tests.monitoring.prometheus import prometheus

# Where commands in another terminal find all of it.
FOLDER = ROOT / "build" / "run"


def main(folder: Path) -> int:
    # SIGTERM is to end the nodes and the webhook as well; SIGINT is ignored in a script's background.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.default_int_handler)
    if other := running_in(folder):
        print(f"process {other} runs in {folder} already; end it by Ctrl-C, or name another folder", file=sys.stderr)
        return 2
    try:
        with scene() as running, emptied(folder), alerting(running, folder) as alerts:
            write_files(running, folder, alerts.get("PROMETHEUS", ""))
            print(instructions(running, folder, alerts), flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0


def running_in(folder: Path) -> int | None:
    """The process whose files are there, if it still runs."""
    with suppress(OSError, ValueError):
        pid = int((folder / "run.pid").read_text())
        return pid if b"tests.run" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    return None


@contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """A folder with nothing of an earlier run in it, and gone at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "run.pid").write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def alerting(running: Scene, folder: Path) -> Iterator[Mapping[str, str]]:
    """Where Prometheus is, or why there is none."""
    try:
        program = find("prometheus")
    except MissingError as error:
        yield {"missing": str(error)}
        return
    with prometheus(program, folder, {"webhook-0": running.webhook.metrics_port}) as server:
        yield {"PROMETHEUS": server.url}


def write_files(running: Scene, folder: Path, prometheus_url: str) -> None:
    webhook = running.webhook
    (folder / "review.json").write_text(json.dumps(review_of(pod_asking(), uid="UID"), indent=2))
    webhook.authority.cert_pem.write_to_path(folder / "ca.crt")
    for number, node in enumerate(running.nodes):
        (folder / f"node-{number}.pid").write_text(f"{node.pid}\n")
    variables = {name: value for name, value in webhook.environ.items() if name not in ("PATH", "TMPDIR")}
    exports = {**variables, "RUN_FOLDER": str(folder), "PROMETHEUS": prometheus_url}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    (folder / "env").write_text("\n".join(lines) + "\n")


def instructions(running: Scene, folder: Path, alerts: Mapping[str, str]) -> str:
    webhook = running.webhook
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return f"""\
The webhook serves https://localhost:{webhook.port}/mutate, its metrics http://localhost:{webhook.metrics_port}/metrics
The Redis nodes are {", ".join(str(node.address) for node in running.nodes)}
The webhook's log is {webhook.log_file}
Prometheus: {alerts.get("PROMETHEUS") or f"none, so no alerts: {alerts['missing']}"}

Ask for a pod to be admitted, as an API server does. Three are, the fourth is told who holds the slots; as no
sidecar runs for them, their slots are free again after 300 s:

  sed "s/UID/$(cat /proc/sys/kernel/random/uuid)/" {shown}/review.json | \\
    curl --cacert {shown}/ca.crt --header 'Content-Type: application/json' --data-binary @- \\
    'https://localhost:{webhook.port}/mutate?timeout=10s'

Or with a sidecar, which keeps the slot until Ctrl-C, and see who holds which slot; the README has a tour:

  . {shown}/env
  python -m tests.pod one
  at-least-semaphore holders

Ctrl-C ends it all."""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if sys.argv[1:] else FOLDER))
