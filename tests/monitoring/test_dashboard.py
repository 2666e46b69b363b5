"""The dashboard can be taken to any Grafana, and says on itself what it shows."""

import re

import pytest

from tests.monitoring.objects import COMPONENT, DASHBOARD, PANELS, Object

VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
WIDTH = 24


def titled(panel: Object) -> str:
    return str(panel["title"])


def test_it_is_the_same_dashboard_wherever_it_is_installed():
    assert "at-least-semaphore" == DASHBOARD["uid"]
    assert "id" not in DASHBOARD


def test_whoever_looks_chooses_the_data_source():
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [*PANELS, *(target for panel in PANELS for target in panel["targets"])]
    asking += [each for each in VARIABLES.values() if each["type"] == "query"]

    assert ("datasource", "prometheus") == (VARIABLES["datasource"]["type"], VARIABLES["datasource"]["query"])
    assert [chosen] * len(asking) == [each["datasource"] for each in asking]


def test_every_variable_that_is_used_is_there_and_every_one_is_used():
    used = set(re.findall(r"\$\{?(\w+)", (COMPONENT / "dashboard.json").read_text()))

    assert {*VARIABLES, "__rate_interval", "__all"} == used


@pytest.mark.parametrize("panel", PANELS, ids=titled)
def test_a_panel_says_what_it_shows_and_in_which_unit(panel):
    units = [panel["fieldConfig"]["defaults"].get("unit")]
    units += [each["id"] for override in panel["fieldConfig"]["overrides"] for each in override["properties"]]

    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["type"] == "state-timeline" or units[0] or "unit" in units


@pytest.mark.parametrize("panel", PANELS, ids=titled)
def test_a_panel_asks_each_question_under_a_name_of_its_own(panel):
    names = [target["refId"] for target in panel["targets"]]

    assert sorted(set(names)) == names


@pytest.mark.parametrize("panel", [each for each in PANELS if each["type"] == "table"], ids=titled)
def test_every_column_of_a_table_has_a_name_or_is_left_out(panel):
    [columns] = [each["options"] for each in panel["transformations"] if each["id"] == "organize"]
    values = {f"Value #{target['refId']}" for target in panel["targets"]}
    named = {each for each in columns["renameByName"] if each.startswith("Value")}
    overridden = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}

    assert values == named | {each for each in columns["excludeByName"] if each.startswith("Value")}
    assert overridden <= set(columns["renameByName"].values())


def test_no_panel_covers_another_one_and_no_place_between_them_is_empty():
    covered = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    height = 1 + max(y for _, y in covered)

    assert sorted((x, y) for x in range(WIDTH) for y in range(height)) == sorted(covered)
    assert len(DASHBOARD["panels"]) == len({panel["id"] for panel in DASHBOARD["panels"]})
