"""The programs that a cluster is made of, and Prometheus: found on this machine, or built through the Go module proxy.

Looked for in `KUBEBUILDER_ASSETS` and on the `PATH` first. What is built is kept in a cache folder, by version.
Run as a program, it builds what is missing: `python -m tests.e2e.binaries`.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "at-least-semaphore-pod-hook"


@dataclass(frozen=True)
class Source:
    """A Go module and the programs that are built of it."""

    module: str
    version: str
    # Program to its folder in the module.
    programs: dict[str, str]
    # Modules whose folders are part of this one's repository (`=> ./staging/…`) bear this version outside of it.
    staging_version: str | None = None
    flags: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return CACHE / f"{self.module.rpartition('/v3')[0] or self.module}-{self.version}".replace("/", "-")


_KUBERNETES = "1.36.3"
SOURCES = (
    Source(
        "k8s.io/kubernetes",
        f"v{_KUBERNETES}",
        {
            name: f"cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-proxy",
                "kube-scheduler",
                "kubectl",
                "kubelet",
            )
        },
        staging_version=f"v0.{_KUBERNETES.partition('.')[2]}",
        # Without it they say that they are v0.0.0, which a kubelet takes ill of an API server.
        flags=("-ldflags", f"-s -w -X k8s.io/component-base/version.gitVersion=v{_KUBERNETES}"),
    ),
    Source("go.etcd.io/etcd/server/v3", "v3.6.14", {"etcd": "."}),
    Source("github.com/coredns/coredns", "v1.14.7", {"coredns": "."}),
    Source(
        "github.com/prometheus/prometheus",
        "v0.316.0",
        {name: f"cmd/{name}" for name in ("prometheus", "promtool")},
        # Without the clients of a score of clouds, in whose services it could look for targets.
        flags=("-tags", "remove_all_sd", "-ldflags", "-s -w"),
    ),
)


def is_asked_for() -> bool:
    """Whether tests may take minutes and gigabytes for programs and images: in CI, and by `make e2e`."""
    return os.environ.get("CI") == "true" or os.environ.get("E2E") == "1"


class MissingError(Exception):
    """A program is not here; the message says which, and where it was looked for."""


def find(name: str) -> Path:
    """Where the program is. Raises MissingError."""
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), *os.get_exec_path(), *(str(each.folder) for each in SOURCES)]
    found = shutil.which(name, path=os.pathsep.join(filter(None, folders)))
    if not found:
        raise MissingError(
            f"{name} is neither in KUBEBUILDER_ASSETS nor on the PATH nor in {CACHE}; `make programs` builds it"
        )
    return Path(found)


def build_missing(*names: str) -> None:
    """Build what is not found of these programs, or of all; takes some minutes and some gigabytes the first time.

    Raises MissingError without Go.
    """
    for source in SOURCES:
        missing = [name for name in source.programs if (not names or name in names) and not _is_found(name)]
        if missing and not shutil.which("go"):
            raise MissingError(f"{', '.join(missing)} would have to be built, and go is not on the PATH")
        if missing:
            _build(source, missing)


def _is_found(name: str) -> bool:
    try:
        find(name)
    except MissingError:
        return False
    return True


def _build(source: Source, programs: list[str]) -> None:
    source.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.folder) as work:
        # A module of our own that requires theirs: `go install module@version` refuses one that has replacements.
        _write_module(Path(work), source)
        for name in programs:
            package = "/".join(filter(None, (source.module, source.programs[name].strip("."))))
            _go(source, "build", *source.flags, "-o", f"{work}/built/{name}", package, cwd=work)
            # Into place at once: a build that is cut off must not leave half a program.
            Path(work, "built", name).rename(source.folder / name)


def _write_module(work: Path, source: Source) -> None:
    module = work / "go.mod"
    module.write_text(f"module built\n\ngo 1.24\n\nrequire {source.module} {source.version}\n")
    if source.staging_version:
        theirs = _go(source, "mod", "download", "-json", f"{source.module}@{source.version}", cwd=work)
        go_mod = next(line for line in theirs.splitlines() if '"GoMod"' in line).split('"')[3]
        staged = [line.split()[0] for line in Path(go_mod).read_text().splitlines() if "=> ./staging/" in line]
        with module.open("a") as out:
            out.writelines(f"replace {name} => {name} {source.staging_version}\n" for name in staged)


def _go(source: Source, *arguments: str, cwd: str | Path) -> str:
    # Modules may ask for a later Go than is here: the tool chain fetches that by itself.
    environ = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "auto", **source.environ}
    done = subprocess.run(["go", *arguments], cwd=cwd, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    build_missing()
