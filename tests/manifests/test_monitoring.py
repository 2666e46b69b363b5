"""The component with alerts and a dashboard, and that its thresholds fit what the other manifests and the app say."""

import json

import pytest

from app.settings import Settings
from tests.manifests.conftest import rendered
from tests.manifests.objects import NAME, Tree, title, with_component
from tests.manifests.schema import validate
from tests.manifests.test_references import hours, is_dashboard
from tests.manifests.test_webhook import environ
from tests.monitoring.objects import ALERTS, DASHBOARD

# Of seconds, in a duration of Prometheus.
UNITS = {"s": 1, "m": 60, "h": 3600}


@pytest.fixture
def monitored(tmp_path) -> Tree:
    """The base with the component alone."""
    return rendered(with_component("monitoring", "base", tmp_path))


def alert(name: str) -> str:
    """What makes it fire."""
    [found] = [each["expr"] for each in ALERTS if each["alert"] == f"AtLeastSemaphore{name}"]
    return " ".join(found.split())


def waits_seconds(name: str) -> int:
    [found] = [each["for"] for each in ALERTS if each["alert"] == f"AtLeastSemaphore{name}"]
    return int(found[:-1]) * UNITS[found[-1]]


def threshold(name: str) -> float:
    """What a value must pass."""
    return float(alert(name).rpartition(" ")[2])


def test_it_adds_the_alerts_and_a_dashboard_and_alters_nothing_else(base, monitored):
    added = [each for each in monitored.objects if each not in base.objects]

    assert [each for each in monitored.objects if each in base.objects] == base.objects
    assert [f"ConfigMap/{NAME}-dashboard", f"PrometheusRule/{NAME}"] == sorted(map(title, added))
    for each in added:
        validate(each)


def test_the_dashboard_is_found_by_its_label_under_a_name_that_stays(dev):
    [found] = [each for each in dev.all("ConfigMap") if is_dashboard(each)]

    assert f"{NAME}-dashboard" == found["metadata"]["name"]
    assert [f"{NAME}.json"] == list(found["data"])
    assert json.loads(found["data"][f"{NAME}.json"]) == DASHBOARD


def test_kubectl_can_apply_the_dashboard(dev):
    """It keeps what it has applied in an annotation, and those have 256 KiB together."""
    assert all(len(json.dumps(each)) < 200_000 for each in dev.all("ConfigMap"))


def test_an_alert_of_the_certificate_comes_after_it_should_have_been_renewed(tree):
    days_left = int(alert("CertificateExpires").rpartition(" < ")[2].removesuffix(" * 86400"))
    certificate = tree.one("Certificate", NAME)["spec"]

    assert days_left + waits_seconds("CertificateExpires") / 86400 < hours(certificate["renewBefore"]) / 24


def test_admissions_are_slow_before_they_are_refused(tree):
    assert threshold("AdmissionsSlow") <= Settings.from_env(environ(tree)).admission_budget_seconds / 2


def test_a_node_is_slow_before_it_is_passed_over(tree):
    assert threshold("NodeSlow") <= Settings.from_env(environ(tree)).admission_budget_seconds / 4 / 5


def test_what_never_starts_is_told_of_when_its_reservations_have_ended_once(tree):
    assert waits_seconds("NothingStarts") >= 2 * Settings.from_env(environ(tree)).reservation_seconds


def test_a_node_that_is_restarted_is_no_alert(tree):
    """Nor two, one after the other, which lack leases until they are repaired."""
    assert waits_seconds("NodeDown") > 60 + tree.redis["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert waits_seconds("NodeLacksLeases") > 10 * tree.redis["spec"]["minReadySeconds"]


def test_reconcilers_that_are_all_restarted_are_no_alert(dev):
    """Nor is one that reads the list of all pods first, for as long as it is let."""
    spec = dev.pods["reconciler"]["spec"]
    [container] = spec["containers"]
    let = container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"]

    assert waits_seconds("ReconcilerAbsent") > 2 * (let + spec["terminationGracePeriodSeconds"])
    assert waits_seconds("ApiServerUnheard") + threshold("ApiServerUnheard") > 2 * let


def test_one_lost_scrape_is_no_alert(dev):
    endpoints = [each["spec"]["podMetricsEndpoints"] for each in dev.all("PodMonitor")]

    assert [["30s"], ["30s"]] == [[one["interval"] for one in each] for each in endpoints]
    assert all(waits_seconds(each["alert"].removeprefix("AtLeastSemaphore")) >= 60 for each in ALERTS if "for" in each)
