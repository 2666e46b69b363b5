"""A machine within this machine: namespaces in which a worker node runs without changing the one it runs on.

Network, mounts, processes and host name are its own. They end with its first process, and that ends with us,
however we end: interfaces, routes, iptables chains, mounts and processes then are gone by themselves. Files stand in
one temporary folder. What remains are the cgroups, which have no namespace that would keep them apart: they are made
below one of our own, and removed.

Linux and root only.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.harness.waiting import locks, wait_for

# A kubelet sets these, which have no namespace. It finds files in their place that say what it wants.
_KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
}
# Folders that a kubelet, a container runtime and network plugins write to wherever they are told to keep their files.
_COVERED = ("/run", "/var/lib", "/var/log")
# The first process of the namespaces: children that nobody waits for become its own, so it must not keep them.
_INIT = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nprint(flush=True)\nwhile True: signal.pause()"
# However we end, it is killed; and with it all that is in its namespaces.
_UNSHARED = ["setpriv", "--pdeathsig=KILL"]
_UNSHARED += ["unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
_CGROUPS = Path("/sys/fs/cgroup")
_PREFIX = "alsph-machine-"


class Program:
    """A program that runs in the machine, and its log."""

    def __init__(self, name: str, entered: subprocess.Popen[bytes], log_file: Path) -> None:
        self.name, self._entered, self.log_file = name, entered, log_file

    @property
    def pid(self) -> int:
        """As seen from outside: `nsenter` waits for its one child, which is the program."""
        children = Path(f"/proc/{self._entered.pid}/task/{self._entered.pid}/children")
        return int(wait_for(lambda: children.read_text().split(), f"{self.name} to be started")[0])

    def check(self) -> None:
        """Raises AssertionError, with the end of its log, when it has ended."""
        if self._entered.poll() is not None:
            log = self.log_file.read_text(errors="replace")[-3000:]
            raise AssertionError(f"{self.name} ended with status {self._entered.returncode}:\n{log}")

    def kill(self, stop: signal.Signals = signal.SIGTERM, seconds: float = 20) -> None:
        """End it by this signal, and by SIGKILL if that is not enough."""
        for each in (stop, signal.SIGKILL):
            if self._entered.poll() is not None:
                return
            os.kill(self.pid, each)
            with suppress(subprocess.TimeoutExpired):
                self._entered.wait(seconds)


class Machine:
    """Namespaces with a network of their own, linked to ours; close it after use."""

    def __init__(self) -> None:
        clear_away()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.folder.chmod(0o755)
        self.cgroup = self.folder.name
        # By their names, in the order in which they were started first: they end in the opposite one.
        self.programs: dict[str, Program] = {}
        self._make_cgroups()
        number = _free_network()
        self._our_end = f"alsph{number}"
        self.address, self._our_address = f"10.{number}.0.2", f"10.{number}.0.1"
        self.pod_network, self.service_network = f"10.{number}.1.0/24", f"10.{number}.2.0/24"
        self._init = subprocess.Popen([*_UNSHARED, sys.executable, "-c", _INIT], stdout=subprocess.PIPE)
        try:
            assert self._init.stdout is not None
            assert self._init.stdout.readline() == b"\n", "the namespaces could not be made"
            self._link()
            self._cover()
        except BaseException:
            self.close()
            raise

    @property
    def _pid(self) -> int:
        """The first process of the namespaces, as seen from outside."""
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text()
        return int(children.split()[0])

    def command(self, *arguments: str) -> list[str]:
        """What to run here to run this in the machine."""
        namespaces = ["--mount", "--net", "--pid", "--uts"]
        return ["nsenter", f"--target={self._pid}", *namespaces, f"--wd={self.folder}", "--", *arguments]

    def run(self, *arguments: str) -> str:
        """Run it in the machine to its end; its output. Raises CalledProcessError."""
        return subprocess.run(self.command(*arguments), stdout=subprocess.PIPE, text=True, check=True).stdout

    def start(self, name: str, *arguments: str | Path) -> Program:
        """Start a program that goes on; its log is `<name>.log`, continued if it was started before."""
        log_file = self.folder / f"{name}.log"
        with log_file.open("ab") as log:
            entered = subprocess.Popen(
                self.command(*map(str, arguments)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        program = Program(name, entered, log_file)
        self.programs[name] = program
        return program

    def _link(self) -> None:
        """A cable between both networks, and our routes into the other one. They go when one of its ends goes."""
        ours = self._our_end
        _run("ip", "link", "add", "name", ours, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid))
        _run("ip", "address", "add", f"{self._our_address}/24", "dev", ours)
        _run("ip", "link", "set", ours, "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for each in ("lo", "eth0"):
            self.run("ip", "link", "set", each, "up")
        self.run("ip", "route", "add", "default", "via", self._our_address)
        for network in (self.pod_network, self.service_network):
            _run("ip", "route", "add", network, "via", self.address)

    def _cover(self) -> None:
        for folder in _COVERED:
            self.run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", folder)
        for name, value in _KERNEL_SETTINGS.items():
            file = self.folder / "sysctl" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
            self.run("mount", "--bind", str(file), f"/proc/sys/{name}")

    def _make_cgroups(self) -> None:
        for cgroup in _cgroups(self.cgroup):
            cgroup.mkdir()
            cpus = cgroup / "cpuset.cpus"
            if cpus.exists() and not cpus.read_text().strip():  # version 1 hands none on by itself
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (cgroup / name).write_text((cgroup.parent / name).read_text())
            if (cgroup / "cgroup.controllers").exists():
                wanted = " ".join(f"+{each}" for each in (cgroup / "cgroup.controllers").read_text().split())
                (cgroup / "cgroup.subtree_control").write_text(wanted)

    def close(self) -> None:
        """End everything and undo what was changed."""
        for program in reversed(self.programs.values()):
            program.kill()
        self._init.kill()  # and with it all that is in its namespaces
        self._init.communicate()
        # The kernel takes its time to clear a network; a link that has gone already is what we want.
        subprocess.run(["ip", "link", "delete", self._our_end], stderr=subprocess.DEVNULL)
        _remove(self.folder)


def clear_away() -> None:
    """Remove what is left of machines whose owner was killed: their folder tells who that was."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a machine's cgroups, which bear its folder's name, and its folder."""
    for cgroup in _cgroups(folder.name):
        # The last processes may still be on their way out.
        for each, _, _ in os.walk(cgroup, topdown=False):
            wait_for(partial(_removed, Path(each)), f"the cgroup {each} to be empty")
    shutil.rmtree(folder)


def _cgroups(name: str) -> Iterator[Path]:
    """The cgroup of this name in each hierarchy: many in version 1, one in version 2."""
    if (_CGROUPS / "cgroup.controllers").exists():
        yield _CGROUPS / name
    else:
        yield from (each / name for each in _CGROUPS.iterdir() if each.is_dir() and not each.is_symlink())


def _removed(cgroup: Path) -> bool:
    with suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True)


def _free_network() -> int:
    """The N of a 10.N.0.0/16 that this machine has no route into, and that no other process has that asks here."""
    routes = subprocess.run(["ip", "route"], stdout=subprocess.PIPE, text=True, check=True).stdout
    for number in range(211, 255):
        with suppress(OSError):
            fcntl.lockf(locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            if f"10.{number}." not in routes:
                return number
    raise AssertionError("no network is free")


@contextmanager
def machine() -> Iterator[Machine]:
    """A machine that is gone at the end, with all that ran in it."""
    made = Machine()
    try:
        yield made
    finally:
        made.close()


def missing(tools: Sequence[str]) -> str:
    """Why there can be no machine here; empty if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a worker node needs root on Linux"
    absent = [each for each in tools if not shutil.which(each)]
    return f"a worker node needs {', '.join(absent)}, not found on the PATH" if absent else ""
