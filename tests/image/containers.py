"""Containers of the image, confined as the kubelet confines them: run by podman, gone when the test is."""

import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e import images
from tests.harness.waiting import wait_for

# With their Debian packages.
PROGRAMS = {"podman": "podman", "runc": "runc"}
# What the Deployment and the injected container ask for. The user is the image's own.
_CONFINED = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    # Who runs the tests may not be allowed to give the containers more, which is what podman does if it is not told.
    "--ulimit=nofile=1024:1024",
    "--ulimit=nproc=1024:1024",
)


class Engine:
    """podman, with a state of its own beside the images, which it only reads."""

    def __init__(self, image: str, folder: Path) -> None:
        self._image = image
        self._numbers = itertools.count()
        self._folder = folder
        self._command = (
            "podman",
            *("--root", str(folder / "root"), "--runroot", str(folder / "run"), "--tmpdir", str(folder / "tmp")),
            *("--storage-driver", "overlay", "--storage-opt", f"overlay.imagestore={images.STORAGE}"),
            *("--cgroup-manager", "cgroupfs", "--runtime", "runc"),
        )

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=60)

    @contextmanager
    def container(
        self, command: Sequence[str] = (), env: Mapping[str, str] | None = None, options: Sequence[str] = ()
    ) -> Iterator["Container"]:
        """A running container, gone at the end whatever happened to it. No command: that of the image."""
        name = f"alsph-image-test-{next(self._numbers)}"
        variables = [f"--env={name}={value}" for name, value in (env or {}).items()]
        run = ("run", "--name", name, "--network=host", *_CONFINED, *variables, *options, self._image, *command)
        log = self._folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen([*self._command, *run], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield Container(self, name, process, log)
        finally:
            self("rm", "--force", "--time", "0", name)
            process.wait(60)


class Container:
    """One container; `process` is the podman that is attached to it, and ends with its status."""

    def __init__(self, engine: Engine, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._engine = engine
        self._name = name
        self._log = log
        self.process = process

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, part: str) -> None:
        """Until the container has said this."""
        wait_for(lambda: part in self.output or not self.running, f"{part!r} from {self._name}")
        assert part in self.output, self.output

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """As an exec probe does."""
        return self._engine("exec", self._name, *command)

    def ended(self, seconds: float = 60) -> int:
        """Wait for its end; the exit status."""
        return self.process.wait(seconds)

    def terminate(self, grace_seconds: float) -> int:
        """SIGTERM to its first process, as the kubelet sends it; the exit status."""
        killed = self._engine("kill", "--signal", signal.SIGTERM.name, self._name)
        assert killed.returncode == 0, killed.stderr
        return self.ended(grace_seconds)


@contextmanager
def running_engine(image: str) -> Iterator[Engine]:
    # Not pytest's folder for temporary files: the paths of sockets in it must be short.
    folder = Path(tempfile.mkdtemp(prefix="alsph-"))
    try:
        yield Engine(image, folder)
    finally:
        shutil.rmtree(folder)
