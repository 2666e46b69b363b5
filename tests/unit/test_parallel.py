"""How workers share out tests: some that stand for ours, run by a pytest of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def note(pytestconfig, worker_id):
    def write(text):
        with (pytestconfig.rootpath / "notes").open("a") as notes:
            notes.write(f"{text} by {worker_id}\\n")
    return write
"""
QUICK = """
def test_that_is_quick(note):
    note("quick")
"""
LONG = """
from tests.harness.waiting import wait_for

def test_that_goes_on_until_the_cluster_is_asked_for(pytestconfig, note):
    wait_for((pytestconfig.rootpath / "asked").exists, "somebody to ask for the cluster")
    note("long")
"""
CLUSTER = """
import pytest

@pytest.fixture(scope="session")
def asked(pytestconfig):
    (pytestconfig.rootpath / "asked").touch()

@pytest.fixture(scope="session")
def cluster(asked, at_last, note):
    note("cluster")
"""
IN_THE_CLUSTER = """
def test_in_the_cluster(cluster, note):
    note("in it")
"""
SKIPPED = """
import pytest

def test_it():
    pytest.skip("it lacks something")
"""


def run(folder: Path, *arguments: str, **environ: str) -> str:
    """What pytest says of the tests in the folder, run with our hooks and fixtures."""
    (folder / "pytest.ini").touch()
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def test_clusters_come_when_all_others_have_ended_one_for_each_of_two_workers(
    tmp_path,
):
    files = {
        "conftest.py": CONFTEST,
        "tests/e2e/conftest.py": CLUSTER,
        "tests/e2e/test_a.py": IN_THE_CLUSTER,
        "tests/e2e/test_b.py": IN_THE_CLUSTER,
        "tests/e2e/test_waiting.py": IN_THE_CLUSTER,
        "tests/unit/test_long.py": LONG,
        "tests/faults/test_quick.py": QUICK,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    said = run(tmp_path, "-n2")

    assert "5 passed" in said, said
    noted = [line.split(" by ") for line in (tmp_path / "notes").read_text().splitlines()]
    assert ["quick", "long"] == [what for what, _ in noted[:2]]
    by_worker = {worker: [what for what, by in noted[2:] if by == worker] for _, worker in noted}
    assert [["cluster", "in it"], ["cluster", "in it", "in it"]] == sorted(by_worker.values())


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_in_ci_a_test_that_is_skipped_has_failed(tmp_path, workers):
    (tmp_path / "test_skipped.py").write_text(SKIPPED)

    assert "1 skipped" in run(tmp_path, workers)
    said = run(tmp_path, workers, CI="true")
    assert "1 failed" in said
    assert "skipped under CI=true: Skipped: it lacks something" in said
