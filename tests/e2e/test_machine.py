"""A machine of our own leaves nothing behind on the one that it runs on, however it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.binaries import CACHE
from tests.e2e.machine import clear_away, machine, missing
from tests.harness.waiting import wait_for

# A machine in which something runs, in a process of its own: it says where, and waits.
_USED = """
from tests.e2e.machine import machine
with machine() as made:
    made.run("iptables", "-t", "nat", "-N", "OURS")
    made.run("ip", "link", "add", "name", "pods0", "type", "bridge")
    print(made.folder, made.start("something", "sleep", "1000").pid, flush=True)
    input()
    raise SystemExit("as after a failure")
"""


# Images are built, and run in folders alsph-…, by other tests meanwhile.
_OF_IMAGES = re.compile(f"{CACHE}|/alsph-(?!machine)")
# Without the name lookups of http.server, which end in vain after ten seconds.
_SERVER = """
import socketserver, sys
socketserver.TCPServer((sys.argv[1], 8000), socketserver.BaseRequestHandler).serve_forever()
"""


@pytest.fixture(autouse=True)
def _possible():
    reason = missing(("ip", "iptables", "unshare", "nsenter", "setpriv"))
    if reason:
        pytest.skip(reason)
    clear_away()


def said(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def state():
    """All that a worker node would change on a machine."""
    sysctls = [Path("/proc/sys") / name for name in ("vm/overcommit_memory", "kernel/panic", "net/ipv4/ip_forward")]
    return {
        "interfaces": said("ip", "-brief", "link"),
        "routes": said("ip", "route"),
        # Without the time, and what was counted.
        "chains": [line.split()[0] for line in said("iptables-save", "-t", "nat").splitlines() if line[0] in ":-"],
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if not _OF_IMAGES.search(line)],
        "sysctls": [each.read_text() for each in sysctls],
        "cgroups": sorted(str(each) for each in Path("/sys/fs/cgroup").glob("**/alsph-machine-*")),
    }


def test_the_machine_has_what_it_is_given_and_ours_does_not():
    before = state()
    with machine() as made:
        assert made.run("cat", "/proc/sys/kernel/panic") == "10\n"
        made.run("iptables", "-t", "nat", "-N", "OURS")
        made.run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
        assert "OURS" in made.run("iptables-save", "-t", "nat")
        made.start("server", sys.executable, "-c", _SERVER, made.address)
        wait_for(lambda: _is_reached(made.address, 8000), "a server in it to be reached from here")
        now = state()
        assert [now[each] for each in ("chains", "mounts", "sysctls")] == [
            before[each] for each in ("chains", "mounts", "sysctls")
        ]
    assert state() == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, None])
def test_nothing_is_left_of_a_machine_whose_owner_fails_or_is_killed(end):
    before = state()
    owner = subprocess.Popen([sys.executable, "-c", _USED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder, pid = owner.stdout.readline().split()
    assert state() != before
    if end:
        owner.send_signal(end)
    try:
        owner.communicate("\n", timeout=60)
    finally:
        owner.kill()
    wait_for(lambda: not _runs(int(pid)), "what ran in it to end")
    if end is signal.SIGKILL:
        assert Path(folder).exists()
        with machine():  # the next one clears away what a killed one could not
            pass
    assert state() == before
    assert not Path(folder).exists()


def _is_reached(*address):
    with suppress(OSError), socket.create_connection(address, 1):
        return True
    return False


def _runs(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
