"""A pod without a cluster, beside `make run`: asks to be admitted, and runs the sidecar that it was given.

`. build/run/env`, then `python -m tests.pod NAME`. Ends with status 1 if it is refused, or asks `--again`, as
controllers do, and gives its slot back on Ctrl-C or SIGTERM.
"""

import argparse
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.harness.sidecars import with_interpreter
from tests.harness.webhook import Answer, pod_asking, read_answer, review_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pod")
    parser.add_argument("name")
    parser.add_argument("--expiration", type=int, default=20, metavar="SECONDS")
    parser.add_argument("--again", action="store_true", help="ask each second until it is admitted")
    arguments = parser.parse_args()
    if "RUN_FOLDER" not in os.environ:
        print("start `make run` in another terminal, then here: . build/run/env", file=sys.stderr)
        return 2
    folder, name = Path(os.environ["RUN_FOLDER"]), arguments.name
    pod = pod_asking(expiration=arguments.expiration)
    pod["metadata"] = {"name": name, "annotations": pod["metadata"]["annotations"]}
    while not (answer := ask(pod, folder)).allowed:
        if not arguments.again:
            print(f"pod {name} is refused: {answer.message}", file=sys.stderr)
            return 1
        time.sleep(1)
    return run(name, answer, folder)


def run(name: str, answer: Answer, folder: Path) -> int:
    """The sidecar, until it ends or this process is asked to."""
    env = answer.env()
    command = with_interpreter(answer.container()["command"])
    # In a group of its own: Ctrl-C is for the pod, which then ends it.
    sidecar = subprocess.Popen(command, env={"PATH": os.environ["PATH"], **env}, start_new_session=True)
    (folder / f"{name}.pid").write_text(f"{sidecar.pid}\n")
    print(f"pod {name} is admitted to slot {env['SLOT']}; its sidecar is process {sidecar.pid}", flush=True)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sidecar.terminate())
    status = sidecar.wait()
    print(f"the sidecar of pod {name} has ended with status {status}", flush=True)
    return 0


def ask(pod: dict[str, Any], folder: Path) -> Answer:
    """As an API server does."""
    host, _, port = os.environ["BIND"].rpartition(":")
    trusted = ssl.create_default_context(cafile=folder / "ca.crt")
    connection = http.client.HTTPSConnection(host, int(port), context=trusted, timeout=30)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/mutate?timeout=10s", json.dumps(review_of(pod)), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return read_answer(answer, pod)


if __name__ == "__main__":
    sys.exit(main())
