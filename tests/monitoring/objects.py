"""The alerts and the dashboard as they stand in k8s/components/monitoring, and what they ask Prometheus."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPONENT = ROOT / "k8s" / "components" / "monitoring"

Object = dict[str, Any]

RULES: Object = yaml.safe_load((COMPONENT / "prometheus-rule.yaml").read_text())["spec"]
ALERTS: list[Object] = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD: Object = json.loads((COMPONENT / "dashboard.json").read_text())
PANELS: list[Object] = [each for each in DASHBOARD["panels"] if each["type"] != "row"]

# What Grafana puts in place of them where nothing is chosen; the last follows the time between scrapes there.
_VARIABLES = {"$installation": ".*", "$tenant": ".*", "$__rate_interval": "5m"}


def query_of(target: Object, **others: str) -> str:
    """What Prometheus gets of it; `others` are values of variables."""
    query: str = target["expr"]
    for name, value in {**_VARIABLES, **{f"${name}": value for name, value in others.items()}}.items():
        query = query.replace(name, value)
    return query


def queries() -> Iterator[tuple[str, Object]]:
    """All queries of the dashboard as Prometheus gets them, and what the dashboard says of each."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield query_of(target), target


def write_rules(folder: Path) -> Path:
    """The alerts as a file of rules, as the Prometheus Operator writes one."""
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump(RULES, sort_keys=False))
    return file
