"""What alerts and dashboard ask, put to a real Prometheus that reads a real webhook while things go well and do not."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.nodes import RedisNode, addresses, failing, redis_nodes
from tests.harness.sidecars import sidecar
from tests.harness.waiting import wait_for
from tests.harness.webhook import Answer, Webhook, environ_for, pod_asking, running_webhook
from tests.manifests.objects import walk
from tests.monitoring import reconciler
from tests.monitoring.objects import ALERTS, queries
from tests.monitoring.prometheus import Prometheus, labels, prometheus

QUERIES = [query for query, _ in queries()]
EXPRESSIONS = {each["alert"]: each["expr"] for each in ALERTS}
# Whatever the metric, its series have these: Prometheus's own, and those of who found the webhooks for it.
OF_THE_TARGET = {"instance", *labels("")}
# What the scene below has a reason for, and what it has none for. The others may have one for a moment.
REASONS = {
    "AtLeastSemaphoreUnavailable",
    "AtLeastSemaphoreAdmittedWithoutSlot",
    "AtLeastSemaphoreUnread",
    "AtLeastSemaphoreMajorityDown",
    "AtLeastSemaphoreNodeDown",
    "AtLeastSemaphoreNodeUnstable",
    "AtLeastSemaphoreNodeLacksLeases",
    "AtLeastSemaphoreNothingStarts",
    "AtLeastSemaphoreHoldersOverdue",
    "AtLeastSemaphoreReconcileErrors",
}
NO_REASONS = {
    "AtLeastSemaphoreWebhookAbsent",
    "AtLeastSemaphoreCertificateExpires",
    "AtLeastSemaphoreNodeClockOff",
    "AtLeastSemaphoreOverfull",
    "AtLeastSemaphoreSummedAsOther",
    "AtLeastSemaphoreReconcilerAbsent",
    "AtLeastSemaphoreApiServerUnheard",
    "AtLeastSemaphorePodsWithoutLease",
    "AtLeastSemaphoreWaitsLong",
}


@dataclass(frozen=True)
class Seen:
    """What was to be seen of the scene, when it is over."""

    prometheus: Prometheus
    pages: Sequence[str]

    @property
    def labels(self) -> dict[str, set[str]]:
        """The labels of each metric on the pages."""
        families = [family for page in self.pages for family in text_string_to_metric_families(page)]
        samples = [sample for family in families for sample in family.samples]
        return {
            name: {label for sample in samples if sample.name == name for label in sample.labels}
            for name in {sample.name for sample in samples}
        }


@pytest.fixture(scope="module")
def seen(prometheus_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    page = reconciler.Page()
    with (
        redis_nodes() as nodes,
        running_webhook(environ_for(addresses(nodes))) as webhook,
        reconciler.serving(page) as port,
    ):
        targets = {"webhook-x2x7l": webhook.metrics_port, "reconciler-8dq2m": port}
        with prometheus(prometheus_program, tmp_path_factory.mktemp("prometheus"), targets) as running:
            play(nodes, webhook, running)
            yield Seen(running, [webhook.metrics(), page.read()])


def play(nodes: list[RedisNode], webhook: Webhook, watching: Prometheus) -> None:
    """A full semaphore, a pod that vanishes, a node that is away and is repaired, and no majority."""

    def until(query: str) -> None:
        """So that no part of the scene is over before it was seen."""
        wait_for(lambda: watching.query(query), f"Prometheus to see {query}")

    assert [True, True, False] == [webhook.ask(pod_asking("full", 2)).allowed for _ in range(3)]
    start_and_vanish(webhook.ask(pod_asking("gone", 1, expiration=8)))
    until('at_least_semaphore_overdue{semaphore="batch/gone"} > 0')

    with failing(nodes[2:], RedisNode.kill, RedisNode.start):
        assert webhook.ask(pod_asking("missed", 2)).allowed
        until("at_least_semaphore_node_up == 0")
    until("at_least_semaphore_node_leases_missing > 0")

    def repaired() -> bool:
        webhook.ask(pod_asking("missed", 2))
        return f'at_least_semaphore_node_leases_missing{{node="{nodes[2].address}"}} 0.0' in webhook.metrics()

    wait_for(repaired, "the node to be repaired")

    with failing(nodes[1:], RedisNode.kill, RedisNode.start):
        assert 503 == webhook.ask(pod_asking("free", 1)).code
        assert webhook.ask(pod_asking("free", 1, when_unavailable="admit")).warnings
        until("at_least_semaphore_read_success == 0")
    until("at_least_semaphore_read_success == 1")
    until("rate(at_least_semaphore_node_repairs_total[5m]) > 0")


def start_and_vanish(pod: Answer) -> None:
    """Renew once, as a sidecar does when it starts, and never again."""
    with sidecar(pod.container()["startupProbe"]["exec"]["command"], pod.env()) as check:
        assert 0 == check.ended()


def named(prometheus: Prometheus, query: str) -> dict[str, set[str]]:
    """The metrics that a query names, and the labels that it asks them for."""
    tree = list(walk(prometheus.parsed(query)))
    selectors = [each for each in tree if each.get("type") in ("vectorSelector", "matrixSelector")]
    grouped = {label for each in tree for label in each.get("grouping") or ()}
    matched = {label for each in tree if each.get("matching") for label in each["matching"]["labels"]}
    found: dict[str, set[str]] = {}
    for each in selectors:
        labels = {matcher["name"] for matcher in each["matchers"]} - {"__name__"}
        found.setdefault(each["name"], grouped | matched).update(labels)
    return found


def test_queries_name_metrics_and_labels_that_are_on_the_pages(seen: Seen):
    for query in [*EXPRESSIONS.values(), *QUERIES]:
        metrics = named(seen.prometheus, query)
        assert metrics, query
        assert set() == set(metrics) - set(seen.labels), query
        for metric, asked_for in metrics.items():
            assert set() == asked_for - seen.labels[metric] - OF_THE_TARGET, query


def test_every_panel_has_something_to_show(seen: Seen):
    assert [] == [query for query in QUERIES if not seen.prometheus.history(query)]


def test_legends_name_labels_that_their_series_have(seen: Seen):
    for query, target in queries():
        for series in seen.prometheus.history(query):
            assert set(re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))) <= set(series["metric"]), query


def test_prometheus_evaluates_all_rules(seen: Seen):
    rules = seen.prometheus.rules()

    assert sorted(EXPRESSIONS) == sorted(each["name"] for each in rules)
    assert {("ok", "")} == {(each["health"], each.get("lastError", "")) for each in rules}


def test_alerts_have_a_reason_where_there_was_one_and_else_none(seen: Seen):
    with_reason = {name for name, expression in EXPRESSIONS.items() if seen.prometheus.history(expression)}

    assert set() == REASONS - with_reason
    assert set() == NO_REASONS & with_reason
