"""`make run` does what it prints."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from tests.harness.waiting import wait_for
from tests.harness.webhook import ROOT


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_that_it_prints_work_and_ctrl_c_ends_it_all():
    process = subprocess.Popen([sys.executable, "-m", "tests.run"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stdout
    reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        wait_for(lambda: "Ctrl-C ends it all.\n" in lines, "the instructions")
        command = re.search(r"  sed .*?'\n", "".join(lines), re.S)
        assert command
        answers = [subprocess.check_output(["sh", "-c", command[0]], stderr=subprocess.DEVNULL) for _ in range(4)]
        assert [True, True, True, False] == [json.loads(answer)["response"]["allowed"] for answer in answers]
        assert b"3 of 3 slots held by ReplicaSet/reports-7d9c (3)" in answers[3]
        look = next(line for line in lines if " -c 'import redis" in line)
        holders = subprocess.check_output(["sh", "-c", look], text=True).splitlines()
        assert ["0", "1", "2"] == sorted(line.split()[0] for line in holders)
        assert all('"owner":"ReplicaSet/reports-7d9c"' in line and "ms left" in line for line in holders)
    finally:
        process.send_signal(signal.SIGINT)
    assert 0 == process.wait(20)
    reader.join(20)
    process.stdout.close()
    port = re.search(r"https://localhost:(\d+)", "".join(lines))
    assert port
    assert 7 == subprocess.run(["curl", "--silent", f"https://localhost:{port[1]}"], check=False).returncode
