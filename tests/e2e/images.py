"""Images where no registry of images can be reached: built from Debian packages, and packed for containerd.

Needs root, buildah and mmdebstrap. All images are in a storage of their own in the cache folder, which may be deleted
at any time; what the user has of images is left alone.
"""

import ast
import configparser
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.e2e.binaries import CACHE, MissingError

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = CACHE / "images"
# For others that read images: a storage as buildah and podman share it, by overlays.
STORAGE = _FOLDER / "storage"

# One for each checkout, so that the runs of two do not see each other's.
_PROJECT = f"localhost/at-least-semaphore-pod-hook:{hashlib.sha256(bytes(ROOT)).hexdigest()[:12]}"
_STAND_IN = "localhost/at-least-semaphore-stand-in"
_PAUSE = "localhost/at-least-semaphore-pause"
# In place of the commit that an image was built of.
REVISION = "0" * 40

# Programs, and the Debian packages that they come from.
_PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}

# The base of the project's image, Redis, and what the containers of tests run.
_PACKAGES = (
    "base-files",
    "base-passwd",
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "python3",
    "python3-venv",
    "redis-server",
    "redis-tools",
    "sed",
)
_RECIPE = (
    "--mode=root",
    # Packages are unpacked, and their scripts not run: it takes half as long, and nothing here needs what they do.
    "--variant=extract",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    f"--include={','.join(_PACKAGES)}",
    *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "locale", "man")),
    '--customize-hook=for each in passwd group; do cp "$1/usr/share/base-passwd/$each.master" "$1/etc/$each"; done',
)
# Where Debian's installer and its images write them.
_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
# What pip must know to reach the index. Variables (`:env:`) count for every command, as what is global does.
_PIP_OPTIONS = (
    "cert",
    "default-timeout",
    "disable-pip-version-check",
    "extra-index-url",
    "find-links",
    "index-url",
    "no-index",
    "proxy",
    "retries",
    "timeout",
    "trusted-host",
)


class BuildError(Exception):
    """A command failed; the message has what it said."""


def require(programs: Mapping[str, str] = _PROGRAMS) -> None:
    """Raise MissingError unless all is there that builds images. `programs`: each with its Debian package."""
    for name, package in programs.items():
        if not shutil.which(name):
            raise MissingError(f"{name} is not on the PATH; Debian's package {package} has it")
    if os.geteuid() != 0:
        raise MissingError("images are built by root only, and this is not root")
    if not _AUTHORITIES.exists():
        raise MissingError(f"{_AUTHORITIES} is not there; Debian's package ca-certificates has it")


def stand_in() -> str:
    """The name of a small Debian with Python, pip, Redis and a shell; made in half a minute if it is not there yet.

    It stands in for the base of the project's image, for that of Redis, and for whatever containers of tests run.
    Raises MissingError.
    """
    require()
    key = hashlib.sha256("\0".join((*_RECIPE, *(each.read_text() for each in _sources()))).encode()).hexdigest()[:12]
    name = f"{_STAND_IN}:{key}"
    with _lock():
        if not _is_there(name):
            with tempfile.TemporaryDirectory(dir=_FOLDER) as work:
                _bootstrap(Path(work), name)
    return name


def project_image() -> str:
    """The name of the project's image, built by its Dockerfile on the stand-in. Raises MissingError and BuildError.

    pip reaches the index as it does here, by files that the build sees and the image does not have. Layers are kept:
    what the project needs is installed anew when setup.cfg changes, and not when there are later versions of it.
    """
    base = stand_in()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    arguments = {"BASE_IMAGE": base, "VERSION": setup["metadata"]["version"], "REVISION": REVISION}
    with _lock(), tempfile.TemporaryDirectory(dir=_FOLDER) as work:
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        for path, target in _pip_mounts(Path(work)).items():
            options += ["--volume", f"{path}:{target}:ro"]
        build = ["build", "--isolation=chroot", "--network=host", "--layers", "--force-rm", "--pull-never", *options]
        # Stages that have names stay when what has none any more, the layers of earlier builds, is removed.
        for stage in ("library", "build"):
            _buildah(*build, f"--target={stage}", f"--tag={_PROJECT}-{stage}", str(ROOT))
        _buildah(*build, f"--tag={_PROJECT}", str(ROOT))
        with suppress(BuildError):  # somebody still looks at one of them
            _buildah("rmi", "--prune")
    return _PROJECT


def pause_image() -> str:
    """The name of an image that does nothing: what containerd keeps a pod's namespaces with. Raises MissingError."""
    base = stand_in()
    name = base.replace(_STAND_IN, _PAUSE)
    with _lock():
        if not _is_there(name):
            with _container(base) as container:
                _buildah("config", '--entrypoint=["sleep","infinity"]', container)
                _buildah("commit", container, name)
    return name


def archive(images: Mapping[str, str], path: Path) -> None:
    """Write what `ctr -n k8s.io images import` takes: an OCI layout of all these images, each layer once.

    `images` gives for each name that is to be known there the name of the image here.
    """
    with _lock(), tempfile.TemporaryDirectory(dir=_FOLDER) as work:
        layout = Path(work, "layout")
        tags = {image: str(number) for number, image in enumerate(dict.fromkeys(images.values()))}
        for image, tag in tags.items():
            _buildah("push", image, f"oci:{layout}:{tag}")
        _name(layout / "index.json", {name: tags[image] for name, image in images.items()})
        with tarfile.open(path, "w") as out:
            out.add(layout, arcname=".")


@contextmanager
def mounted(image: str) -> Iterator[Path]:
    """Meanwhile the root file system of the image is to be seen in this folder."""
    with _container(image) as container:
        yield Path(_buildah("mount", container))


def configuration(image: str) -> dict[str, Any]:
    """What the image says of itself: https://github.com/opencontainers/image-spec/blob/main/config.md"""
    inspected = json.loads(_buildah("inspect", "--type=image", image))
    return dict(inspected["OCIv1"]["config"])


def _name(index: Path, tags: Mapping[str, str]) -> None:
    """In place of its tag give each image the names by which containerd takes it, one entry for each."""
    layout = json.loads(index.read_text())
    found = {each["annotations"]["org.opencontainers.image.ref.name"]: each for each in layout["manifests"]}
    layout["manifests"] = [
        {**found[tag], "annotations": {"io.containerd.image.name": name}} for name, tag in tags.items()
    ]
    index.write_text(json.dumps(layout))


def _bootstrap(work: Path, name: str) -> None:
    """Unpack the packages, from where this machine gets its own, and make an image of them."""
    options = _output("apt-config", "dump").splitlines()
    # Proxies, their certificates, and how old lists may be.
    reach = [f"--aptopt={line}" for line in options if line.startswith(("Acquire::http", "Acquire::Check"))]
    tree = work / "tree.tar"
    suite = _output("sh", "-c", '. /etc/os-release && echo "$VERSION_CODENAME"').strip()
    _output("mmdebstrap", "--quiet", *_RECIPE, *reach, suite, str(tree), *map(str, _sources()))
    with _container("scratch") as container:
        _buildah("add", "--quiet", container, str(tree), "/")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        _buildah("config", f"--env={path}", container)
        _buildah("commit", "--quiet", container, name)


def _sources() -> list[Path]:
    return [each for each in _SOURCES if each.exists()]


def _pip_mounts(work: Path) -> dict[Path, Path]:
    """What a build sees of this machine: how pip reaches the index here, and the files and folders named there."""
    config = configparser.RawConfigParser()
    config["global"] = {"cert": str(_AUTHORITIES)}
    mounts = {_AUTHORITIES: _AUTHORITIES, work / "pip.conf": Path("/etc/pip.conf")}
    for section, name, value in _pip_settings():
        if name in _PIP_OPTIONS:
            if section not in config:
                config.add_section(section)
            config[section][name] = "\n".join(value.split())
            mounts |= {path: path for path in map(Path, value.split()) if path.is_absolute() and path.exists()}
    with (work / "pip.conf").open("w") as file:
        config.write(file)
    return mounts


def _pip_settings() -> Iterator[tuple[str, str, str]]:
    """Section, option and value; what counts more comes later."""
    # As `:env:.cert='…'` or `install.find-links='…'`.
    lines = _output(sys.executable, "-m", "pip", "config", "list").splitlines()
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        where, _, value = line.partition("=")
        section, _, name = where.rpartition(".")
        yield section.replace(":env:", "global"), name, ast.literal_eval(value)


@contextmanager
def _lock() -> Iterator[None]:
    """Two test runs at once would build the same, and prune each other's."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _container(image: str) -> Iterator[str]:
    """A working container: not a running one, but a root file system to change or to look at."""
    name = _buildah("from", "--pull-never", image)
    try:
        yield name
    finally:
        _buildah("rm", name)


def _is_there(image: str) -> bool:
    return image in _buildah("images", "--all", "--format", "{{.Name}}:{{.Tag}}").splitlines()


def _buildah(*arguments: str) -> str:
    storage = ("--root", str(STORAGE), "--runroot", str(_FOLDER / "run"), "--storage-driver", "overlay")
    return _output("buildah", *storage, *arguments).strip()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{command} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
