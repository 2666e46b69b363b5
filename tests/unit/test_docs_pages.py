"""What the pages for operators quote is what people see: messages, commands and links."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from app.cli.__main__ import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"

# What is quoted of others: Kubernetes, Redis, the C library.
FOREIGN = """\
CreateContainerConfigError
ErrImagePull
FailedCreate
ImagePullBackOff
Init:0/1
NOPERM
Name or service not known
NotReady
ProgressDeadlineExceeded
ReplicaFailure
SchedulingGated
Startup probe failed
WRONGPASS
Waiting for deployment … rollout to finish
Warning
certificate has expired or is not yet valid
connection refused
context deadline exceeded
cpu max limit to request ratio per Container
didn't match pod anti-affinity rules
exceeded quota
failed calling webhook
has no permissions to run the 'scan' command
json: cannot unmarshal bool into Go struct field
kubectl debug --copy-to
minimum memory usage per Container
no endpoints available
violates PodSecurity
x509: certificate signed by unknown authority
""".splitlines()
# Stands for what differs from one message to the next.
HOLE = "#"


@cache
def said_by_us() -> str:
    """All texts of the webhook, the sidecar and the nodes' start, a line each; what explains the code is left out."""
    files = [ROOT / "gunicorn.conf.py", *(ROOT / "app").rglob("*.py"), *(ROOT / "sidecar").rglob("*.py")]
    texts = [text for file in files for text in texts_in(ast.parse(file.read_text()))]
    start = (ROOT / "k8s" / "base" / "redis" / "start.sh").read_text()
    return "\n".join([*texts, with_holes(re.sub(r"\$\w+", HOLE, start))])


def texts_in(tree: ast.AST) -> Iterator[str]:
    """The texts of a module, with holes for what is put into them."""
    explains = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [each.value if isinstance(each, ast.Constant) else HOLE for each in node.values]
            yield with_holes("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explains:
            yield with_holes(node.value)


def with_holes(text: str) -> str:
    return re.sub(r"\d+", HOLE, text)


def is_said(quoted: str) -> bool:
    """Whether each part of it stands in a text of ours: between what is left out, and where one is put into another."""
    parts = [part for part in re.split(r"…|: ", with_holes(quoted)) if re.search(r"\w", part)]
    return bool(parts) and all(part.strip() in said_by_us() for part in parts)


def index() -> list[tuple[str, str]]:
    """What is quoted in the first column of the index, and where each row leads."""
    rows = TROUBLESHOOTING.read_text().split("## Index", 1)[1].split("\n## ", 1)[0].strip().splitlines()[2:]
    cells = [row.strip("| ").rsplit(" | ", 1) for row in rows]
    return [(quoted, leads) for seen, leads in cells for quoted in re.findall(r"`([^`]+)`", seen)]


@pytest.mark.parametrize("quoted", [quoted for quoted, _ in index()])
def test_what_the_index_quotes_is_said_by_the_code_or_by_somebody_known(quoted):
    assert quoted in FOREIGN or is_said(quoted)


def test_what_is_known_of_others_is_quoted():
    assert set(FOREIGN) <= {quoted for quoted, _ in index()}


def test_what_nobody_says_is_noticed():
    assert not is_said("… is full to the brim: …")
    assert not is_said("fewer than 2 of 3 nodes replied")


def test_every_section_is_in_the_index():
    indexed = {anchor for _, leads in index() for anchor in re.findall(r"\(#([^)]+)\)", leads)}
    first = re.findall(r"^\| [^`]*? \| \[.*\]\(#(.*)\) \|$", TROUBLESHOOTING.read_text(), re.MULTILINE)

    assert anchors(TROUBLESHOOTING) - {"troubleshooting", "index"} == indexed | set(first)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings_that_exist(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        assert anchor in anchors((page.parent / target).resolve() if target else page), f"{target}#{anchor}"


@cache
def anchors(page: Path) -> frozenset[str]:
    """What the headings of a page are called in links, as GitHub makes it of them."""
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_the_pages_name_exist_with_their_options(page):
    for words in commands_in(page.read_text()):
        command = main.commands.get(words[0])
        assert command, words
        known = {name for each in command.params if isinstance(each, click.Option) for name in each.opts}
        assert {word for word in words if word.startswith("-") and word != "-"} <= {*known, "-h", "--help"}, words


def test_commands_are_found_where_they_stand():
    found = commands_in(
        "by `at-least-semaphore release a/b/0`;\n```\n$ x | at-least-semaphore explain -o json - | y\n```\n"
    )

    assert found == [["release", "a/b/0"], ["explain", "-o", "json", "-"]]


def commands_in(text: str) -> list[list[str]]:
    """The words after `at-least-semaphore`, each time that it is called in code."""
    code = "\n".join("".join(found) for found in re.findall(r"```.*?\n(.*?)```|(?<!`)`([^`]+)`(?!`)", text, re.S))
    called = re.findall(r"(?:^|[\s|])at-least-semaphore ([a-z][^|\n;<']*)", code.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(each, comments=True) for each in called]
