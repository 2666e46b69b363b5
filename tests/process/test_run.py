"""`make run` does what it prints, and the tour of the README goes as told."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.binaries import MissingError, build_missing, find, is_asked_for
from tests.harness.waiting import wait_for
from tests.harness.webhook import ROOT

TOUR = (ROOT / "README.md").read_text().split("### A tour", 1)[1].split("\n## ", 1)[0]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


class Run:
    """A `make run` with a folder of its own, until Ctrl-C."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "tests.run", str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._lines: list[str] = []
        assert self.process.stdout
        self._reader = threading.Thread(target=self._lines.extend, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def wait(self) -> None:
        wait_for(lambda: "Ctrl-C ends it all.\n" in self._lines, "the instructions")

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout
        self.process.stdout.close()
        return status


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    running = Run(tmp_path / "run")
    try:
        running.wait()
        yield running
    finally:
        if running.process.poll() is None:
            running.end()


class Shell:
    """A terminal in which one command follows the other, with jobs in the background."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            ["bash"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._commands = 0

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.said += line

    def type(self, commands: str) -> str:
        """Run a block of the README to its end; what it said, and what jobs have said meanwhile."""
        self._commands += 1
        end = f"end of {self._commands}"
        before = len(self.said)
        assert self._process.stdin
        self._process.stdin.write(commands.replace("build/run", str(self._folder)) + f"\necho\necho {end}\n")
        self._process.stdin.flush()
        wait_for(lambda: f"\n{end}\n" in self.said[before:], commands, 60)
        return self.said[before:]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)
        self._reader.join(30)
        assert self._process.stdout
        self._process.stdout.close()


def test_the_review_that_it_prints_is_admitted_three_times_and_ctrl_c_ends_it_all(run):
    command = re.search(r"  sed .*?'\n", run.said, re.S)
    assert command
    answers = [subprocess.check_output(["sh", "-c", command[0]], cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [True, True, True, False] == [json.loads(answer)["response"]["allowed"] for answer in answers]
    assert b"3 of 3 slots held by ReplicaSet/reports-7d9c (3)" in answers[3]

    assert 0 == run.end()
    assert not run.folder.exists()
    port = re.search(r"https://localhost:(\d+)", run.said)
    assert port
    assert 7 == subprocess.run(["curl", "--silent", f"https://localhost:{port[1]}"], check=False).returncode


def test_a_second_run_in_the_same_folder_is_refused_and_leaves_it_alone(run):
    command = [sys.executable, "-m", "tests.run", str(run.folder)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (2, "") == (second.returncode, second.stdout)
    assert f"process {run.process.pid} runs in {run.folder} already" in second.stderr
    assert (run.folder / "env").exists()


def test_the_tour_of_the_readme_goes_as_told(run):
    """Its commands, word for word; what it shows of their output is looked for in what they say."""
    blocks = re.findall(r"^```sh\n(.*?)^```", TOUR, re.S | re.M)
    start, look, fourth, kill, lose, alerts = blocks
    shell = Shell(run.folder)
    try:
        shell.type(start)
        wait_for(lambda: 3 == shell.said.count("the slot is held"), "three sidecars to renew")
        said = shell.type(look)
        assert 3 == len(re.findall(r"batch/reports-db +[012] .* running +3 of 3", said))
        assert 'at_least_semaphore_held{semaphore="batch/reports-db"} 3.0' in said
        assert in_tour("pod four is refused: semaphore batch/reports-db is full: 3 of 3 slots held by") in shell.type(
            fourth
        )

        *look_again, again = kill.splitlines()
        shell.type("\n".join(look_again))
        wait_for(lambda: " overdue " in shell.type(look_again[-1]), "the slot to be overdue")
        shell.type(again)
        wait_for(lambda: "pod four is admitted to slot" in shell.said, "the slot to be free", 40)

        *_, look_at_nodes = lose.splitlines()
        assert in_tour("Connection refused") in shell.type(lose)
        assert 2 == shell.type(look_at_nodes).count(in_tour("  up  "))
        if has_prometheus():
            alert = in_tour('"alertname": "AtLeastSemaphoreNodeDown"')
            wait_for(lambda: alert in shell.type(alerts), "the alert")
        shell.type("kill $(jobs -p)")
        wait_for(lambda: 3 == shell.said.count("has ended with status 0"), "the pods to end")
    finally:
        shell.close()


def in_tour(text: str) -> str:
    """The text, of which the README says that it is seen."""
    assert text in TOUR
    return text


def has_prometheus() -> bool:
    """Where `make run` has none it says so; with CI=true there is one."""
    try:
        find("prometheus")
    except MissingError:
        assert not is_asked_for()
        return False
    return True


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    if is_asked_for():
        build_missing("prometheus")
