"""What the README and the documents say is what the code does."""

import ast
import dataclasses
import re
from pathlib import Path

import yaml

from app.admission import annotations
from app.admission.annotations import GROUP, SlotRequest, WhenUnavailable, parse_slot_request
from app.settings import Settings
from tests.harness.nodes import ACL, HOOK_PASSWORD, SIDECAR_PASSWORD
from tests.model.test_stories import STORIES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


def block(language: str, containing: str) -> str:
    """The fenced code block of that language in which this text stands."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)
    return next(found for found in blocks if containing in found)


def column(first_header: str) -> list[str]:
    """The names, in backquotes, in the first column of a table."""
    table = README.split(f"| {first_header} |", 1)[1].split("\n\n", 1)[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_the_pod_of_the_readme_asks_for_a_slot():
    pod = yaml.safe_load(block("yaml", "kind: Pod"))

    request = parse_slot_request(pod["metadata"]["annotations"], GROUP)

    assert SlotRequest("reports-db", 3, 60, WhenUnavailable.DENY) == request


def test_the_readme_lists_every_annotation_with_what_it_accepts():
    assert [f"…/{name}" for name in annotations._KNOWN] == column("annotation")


def test_the_readme_lists_every_setting():
    fields = {field.name.upper() for field in dataclasses.fields(Settings)}

    assert {*fields, "WEB_CONCURRENCY"} == set(column("variable"))


def test_the_redis_users_of_the_readme_are_those_that_all_tests_run_with():
    tested = ACL.replace(HOOK_PASSWORD, "A-PASSWORD").replace(SIDECAR_PASSWORD, "ANOTHER")
    lines = [line for line in tested.splitlines() if not line.startswith("user tester")]

    assert lines == block("text", "user sidecar").splitlines()


def test_the_changelog_is_there_for_the_version_to_come():
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_links_lead_to_files_that_exist():
    for page in (ROOT / "README.md", *PAGES):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tests_that_the_documents_name_exist():
    named = {name for page in PAGES for name in re.findall(r"tests/[\w./]*::\w*", page.read_text())}
    files = {name.partition("::")[0] for name in named}

    assert named
    assert set() == named - {f"{file}::{test}" for file in files for test in names_in(file)}


def names_in(file: str) -> list[str]:
    """The names of a module's tests; none if there is no such file."""
    path = ROOT / file
    source = path.read_text() if path.exists() else ""
    return [each.name for each in ast.parse(source).body if isinstance(each, ast.FunctionDef)]


def test_every_fault_that_is_put_into_the_model_is_listed_with_its_history():
    page = (ROOT / "docs" / "guarantees.md").read_text()
    listed = re.findall(r"^\| (.*) \| `(\w+)` \|$", page, re.MULTILINE)

    assert [(mutant.fault, story.__name__) for mutant, story in STORIES] == listed
