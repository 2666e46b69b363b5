"""The page of metrics, by Prometheus' own opinion of names, types and help."""

import subprocess
from pathlib import Path

import pytest

from tests.harness.webhook import Webhook, pod_asking


def found_wrong(promtool: Path, page: str) -> str:
    """What `promtool check metrics` has to say."""
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_live_page_is_as_prometheus_would_have_it(promtool: Path, webhook: Webhook, key: str):
    assert webhook.ask(pod_asking(key)).allowed
    assert 404 == webhook.get("/nothing")[0]
    page = webhook.metrics()

    assert f'at_least_semaphore_held{{semaphore="batch/{key}"}} 1.0' in page
    assert "" == found_wrong(promtool, page)


@pytest.mark.parametrize(
    ("ours", "worse", "wrong"),
    [
        ("_verdicts_total", "_verdicts", "counter metrics should have"),
        ("# HELP at_least_semaphore_held ", "# nothing ", "no help text"),
        ("_round_trip_seconds", "_round_trip_milliseconds", "use base unit"),
    ],
)
def test_what_would_be_wrong_is_seen(promtool: Path, webhook: Webhook, key: str, ours, worse, wrong):
    assert webhook.ask(pod_asking(key)).allowed
    page = webhook.metrics()

    assert ours in page
    assert wrong in found_wrong(promtool, page.replace(ours, worse))
