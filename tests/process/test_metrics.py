"""The page that Prometheus reads."""

import os
import signal
from pathlib import Path

from tests.harness.nodes import RedisNode, addresses
from tests.harness.waiting import wait_for
from tests.harness.webhook import Webhook, environ_for, pod_asking, running_webhook


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
