"""The page that Prometheus reads."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path

from tests.harness.nodes import RedisNode, addresses
from tests.harness.waiting import wait_for
from tests.harness.webhook import ROOT, Webhook, environ_for, pod_asking, running_webhook


def test_methods_that_a_client_makes_up_are_one_time_series(webhook: Webhook):
    for number in range(3):
        assert 405 == webhook.request(f"MADEUP{number}", "/mutate")[0]

    page = webhook.metrics()
    assert "MADEUP" not in page
    assert 'method="other"' in page


def test_all_that_a_worker_counts_has_its_room_on_the_disk(nodes: list[RedisNode], tmp_path: Path, key):
    """A hole in a file that is mapped into memory kills who writes to it when the disk is full."""
    with running_webhook(environ_for(addresses(nodes), PROMETHEUS_MULTIPROC_DIR=str(tmp_path))) as webhook:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "OTHER"):
            for path in ("/mutate", "/healthz", "/other"):
                webhook.request(method, path)
        assert webhook.ask(pod_asking(key)).allowed

        sizes = {file.name: file.stat() for file in tmp_path.iterdir()}
        assert 3 * 2 == len(sizes)
        assert all(size.st_blocks * 512 >= size.st_size == 256 * 1024 for size in sizes.values()), sizes


def test_a_worker_that_is_gone_keeps_its_counts_and_gives_back_the_room(nodes: list[RedisNode], tmp_path: Path, key):
    environ = environ_for(addresses(nodes), PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    with running_webhook(environ, workers=1) as webhook:
        assert webhook.ask(pod_asking(key)).allowed
        (worker,) = webhook.workers()
        os.kill(worker, signal.SIGKILL)

        def is_small() -> bool:
            return all(file.stat().st_size < 16 * 1024 for file in tmp_path.glob(f"*_{worker}.db"))

        wait_for(is_small, "the room to be given back")
        assert webhook.ask(pod_asking(key)).allowed
        assert 2 == webhook.verdicts()["granted"]


def test_silent_readers_cost_no_more_than_a_few_threads_and_keep_nobody_from_the_page(webhook: Webhook):
    """They are connections to the process that keeps the workers alive."""
    with ExitStack() as stack:
        for _ in range(100):
            address = ("127.0.0.1", webhook.metrics_port)
            stack.enter_context(socket.create_connection(address, timeout=20))

        def page() -> str:
            try:
                return webhook.metrics()
            except (OSError, HTTPException):  # there is no room for one more
                return ""

        assert "at_least_semaphore_verdicts_total" in wait_for(page, "the page")
        status = Path(f"/proc/{webhook.process.pid}/status").read_text()
        threads = next(line for line in status.splitlines() if line.startswith("Threads"))
        assert int(threads.split()[1]) < 30


def test_the_files_of_a_process_that_had_the_same_number_are_counted_on(tmp_path: Path):
    """As in a container that is restarted in its place; what is there is not thrown away."""
    program = (
        "import os; os.getpid = lambda: 7; from flask import Flask; from app.metrics import Metrics;"
        " from app.admission.review import Reason, Verdict;"
        " Metrics(Flask('x'), []).count_verdict(Verdict.allow(Reason.GRANTED), 0.1)"
    )
    page = (
        "from prometheus_client import CollectorRegistry, generate_latest;"
        " from prometheus_client.multiprocess import MultiProcessCollector;"
        " registry = CollectorRegistry(); MultiProcessCollector(registry); print(generate_latest(registry).decode())"
    )
    environ = {"PATH": os.environ["PATH"], "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env=environ, cwd=ROOT, check=True)
    told = subprocess.run(
        [sys.executable, "-c", page], env=environ, cwd=ROOT, check=True, capture_output=True, text=True
    )

    assert 'at_least_semaphore_verdicts_total{reason="granted"} 2.0' in told.stdout
