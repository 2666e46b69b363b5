"""Each alert fires when it should, says what it should, and has a section in its runbook."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring.objects import ALERTS, ROOT, RULES, write_rules

RUNBOOK = ROOT / "docs" / "alerts.md"
URL = "https://github.com/kaidotio/at-least-semaphore-pod-hook/blob/main/docs/alerts.md"
CASES = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())
# What is expected of an alert at one instant.
EXPECTED = [expected for case in CASES["tests"] for expected in case.get("alert_rule_test", [])]
NAMES = [each["alert"] for each in ALERTS]


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def anchor(heading: str) -> str:
    """Of a heading that is a single word, on GitHub."""
    return heading.lower()


def test_prometheus_accepts_the_rules(promtool, tmp_path):
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", write_rules(tmp_path))


def test_every_alert_fires_when_it_should_and_says_what_it_should(promtool, tmp_path):
    for expected in EXPECTED:
        for alert in expected.get("exp_alerts", []):
            alert["exp_annotations"]["runbook_url"] = f"{URL}#{anchor(expected['alertname'])}"
    cases = tmp_path / "cases.yaml"
    cases.write_text(yaml.safe_dump({"rule_files": [str(write_rules(tmp_path))], **CASES}))

    run(promtool, "test", "rules", cases)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_case_in_which_an_alert_fires_and_one_in_which_it_does_not(name):
    alerts = [expected.get("exp_alerts", []) for expected in EXPECTED if expected["alertname"] == name]

    assert {True, False} == set(map(bool, alerts))


def test_every_alert_says_how_urgent_it_is_what_it_means_and_where_one_reads_on():
    assert {"critical", "warning", "info"} == {each["labels"]["severity"] for each in ALERTS}
    assert {("description", "runbook_url", "summary")} == {tuple(sorted(each["annotations"])) for each in ALERTS}


def test_no_two_alerts_have_one_name_and_all_tell_of_whom_they_are():
    assert sorted(set(NAMES)) == sorted(NAMES)
    assert all(each.startswith("AtLeastSemaphore") for each in NAMES)


def test_the_runbook_has_a_section_for_each_alert_in_the_same_order_and_no_others():
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)

    assert NAMES == headings
    assert [f"{URL}#{anchor(each)}" for each in NAMES] == [each["annotations"]["runbook_url"] for each in ALERTS]


def test_each_section_tells_of_the_alerts_urgency_of_those_concerned_and_what_to_do():
    sections = re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    severities = {each["alert"]: each["labels"]["severity"] for each in ALERTS}

    for section in sections:
        name, text = section.split("\n", 1)
        assert text.strip().startswith(f"*{severities[name].capitalize()}.*"), name
        assert [f"**{each}**" for each in ("Impact.", "Look.", "Do.")] == re.findall(r"^\*\*\w+\.\*\*", text, re.M), (
            name
        )


def test_nothing_selects_a_job_which_is_called_differently_everywhere():
    assert not re.search(r"\bjob\b", str([each["expr"] for each in ALERTS]))


def test_the_rules_are_evaluated_as_often_as_prometheus_does_so_by_itself():
    """What the cases say of times would not be true otherwise."""
    assert not [each for each in RULES["groups"] if "interval" in each]
