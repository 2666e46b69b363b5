"""The image: what is in it, what is not, and that both roles run from it as confined as in a cluster."""

import importlib.util
import json
import os
import re
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import trustme

from app.admission.injection import _USER
from app.settings import DEFAULT_IMAGE
from tests.e2e import images
from tests.harness.nodes import RedisNode, addresses
from tests.harness.waiting import free_port, wait_for
from tests.harness.webhook import Client, environ_for, issue_certificate, pod_asking
from tests.image.containers import Container, Engine

ROOT = Path(__file__).resolve().parents[2]
CERT_DIR = "/var/k8s-webhook-server/serving-certs"
METRICS_DIR = "/run/metrics"
# Less than the Deployment gives it.
GRACE_SECONDS = 15
# Folders that are for everybody to write in, where an image has them.
FOR_ALL = {"run/lock", "tmp", "var/lock", "var/tmp"}


@cache
def paths(root: Path) -> dict[str, os.stat_result]:
    """All that is in a root file system."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path.relative_to(root))] = path.lstat()
    return found


@pytest.fixture
def added(root: Path, base: Path) -> dict[str, os.stat_result]:
    """What the image has and its base has not."""
    return {path: state for path, state in paths(root).items() if path not in paths(base)}


@pytest.fixture
def packages(root: Path) -> Path:
    """Where the environment has its packages."""
    (found,) = root.glob("opt/venv/lib/python3.*/site-packages")
    return found


# What it is -----------------------------------------------------------------------------------------------


def test_the_image_runs_as_a_numeric_user_who_is_that_of_the_injected_container(image):
    assert f"{_USER}:{_USER}" == images.configuration(image)["User"]


def test_the_image_serves_the_webhook_unless_it_is_told_otherwise(image):
    config = images.configuration(image)

    assert (["gunicorn"], "/srv") == (config["Cmd"], config["WorkingDir"])
    assert "Entrypoint" not in config
    assert {"9443/tcp", "8080/tcp"} == set(config["ExposedPorts"])
    assert "SIGTERM" == config["StopSignal"]


def test_the_labels_tell_what_the_image_is_and_what_it_was_built_of(image):
    labels = {name: value for name, value in images.configuration(image)["Labels"].items() if "opencontainers" in name}

    assert {
        "org.opencontainers.image.title": "at-least-semaphore-pod-hook",
        "org.opencontainers.image.description": (
            "A Kubernetes admission webhook that lets only so many pods run at once"
        ),
        "org.opencontainers.image.source": "https://github.com/kaidotio/at-least-semaphore-pod-hook",
        "org.opencontainers.image.version": DEFAULT_IMAGE.rpartition(":")[2],
        "org.opencontainers.image.revision": images.REVISION,
    } == labels


def test_the_base_is_pinned_to_a_patch_version():
    (default,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", (ROOT / "Dockerfile").read_text(), re.M)

    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm", default)


# What is in it --------------------------------------------------------------------------------------------


def test_nothing_comes_to_the_base_but_the_environment_gunicorns_configuration_and_byte_code(added):
    """So no cache, no certificate or pip.conf of who built it, no tests, no history."""
    byte_code = re.compile(r"usr/(local/)?lib/python3\.\d+/(.*/)?__pycache__(/[^/]*\.pyc)?")
    environment = re.compile(r"opt(/venv(/.*)?)?")
    others = {path for path in added if not byte_code.fullmatch(path) and not environment.fullmatch(path)}

    compiled = next((path for path in others if path.endswith(".pyc")), "none")
    assert {"srv", "srv/gunicorn.conf.py", "srv/__pycache__", compiled} == others
    assert compiled.startswith("srv/__pycache__/gunicorn.conf.")


def test_nothing_of_the_base_is_altered(root, base):
    def identity(state: os.stat_result) -> tuple[float, ...]:
        of_all = (state.st_mode, state.st_uid, state.st_gid)
        return of_all if stat.S_ISDIR(state.st_mode) else (*of_all, state.st_size, state.st_mtime)

    after = paths(root)
    assert not {path for path, state in paths(base).items() if identity(after[path]) != identity(state)}


def test_the_packages_are_those_of_the_repository_whole(packages):
    for package in ("app", "sidecar"):
        theirs, ours = (
            {
                str(file.relative_to(tree)): file.read_text()
                for file in (tree / package).rglob("*")
                if file.is_file() and "__pycache__" not in file.parts
            }
            for tree in (packages, ROOT)
        )
        assert ours == theirs


def test_there_is_neither_a_packager_nor_a_compiler(added, packages):
    programs = {Path(path).name for path in added if "/bin/" in path}
    distributions = {path.name.partition("-")[0] for path in packages.glob("*.dist-info")}

    assert {"python", "gunicorn"} <= programs
    assert not {name for name in programs if re.match(r"pip|easy_install|wheel|(.*-)?(gcc|g\+\+|cc|c\+\+|ld)\b", name)}
    assert {"at_least_semaphore_pod_hook", "gunicorn", "hiredis"} <= distributions
    assert not {"pip", "setuptools", "wheel", "pytest"} & distributions
    assert not list(packages.glob("pip*")) + list(packages.glob("setuptools*"))


def test_what_is_added_belongs_to_root_and_nobody_else_may_write_there(added):
    of_root = {path for path, state in added.items() if (state.st_uid, state.st_gid) == (0, 0)}
    special = stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID

    assert added.keys() == of_root
    assert not {path for path, each in added.items() if not stat.S_ISLNK(each.st_mode) and each.st_mode & special}
    assert not {path for path, each in added.items() if stat.S_ISREG(each.st_mode) and not each.st_mode & stat.S_IROTH}


def test_the_user_may_write_nothing_but_in_folders_that_are_for_all(root):
    writable = {
        path
        for path, state in paths(root).items()
        if not stat.S_ISLNK(state.st_mode)
        and (state.st_mode & stat.S_IWOTH or state.st_uid == _USER or state.st_gid == _USER)
    }

    assert not {path for path in writable - FOR_ALL if not path.startswith("dev/")}


def test_every_module_has_byte_code_that_is_its_own_and_not_asked_whether_it_is(root, packages):
    """Flags of 0b01: by a hash, unchecked (PEP 552)."""
    sources = [*packages.rglob("*.py"), *(root / "srv").glob("*.py")]

    assert len(sources) > 100
    for source in sources:
        (compiled,) = source.parent.glob(f"__pycache__/{source.stem}.cpython-*.pyc")
        head = compiled.read_bytes()[:16]
        assert 0b01 == int.from_bytes(head[4:8], "little"), compiled
        assert importlib.util.source_hash(source.read_bytes()) == head[8:16], compiled


# The webhook ----------------------------------------------------------------------------------------------


class Spec:
    """What the Deployment gives the container of a webhook."""

    def __init__(self, nodes: list[RedisNode], folder: Path) -> None:
        self.authority = trustme.CA()
        issue_certificate(folder, self.authority)
        folder.chmod(0o755)
        self.port, self.metrics_port = free_port(), free_port()
        self.env = environ_for(
            addresses(nodes),
            BIND=f"127.0.0.1:{self.port}",
            METRICS_PORT=str(self.metrics_port),
            PROMETHEUS_MULTIPROC_DIR=METRICS_DIR,
            WEB_CONCURRENCY="2",
        )
        self.options = (f"--volume={folder}:{CERT_DIR}:ro", f"--tmpfs={METRICS_DIR}:mode=0777,size=16m")


@pytest.fixture
def spec(nodes: list[RedisNode], tmp_path: Path) -> Spec:
    return Spec(nodes, tmp_path)


@pytest.fixture
def serving(engine: Engine, spec: Spec) -> Iterator[Container]:
    """The container of a webhook."""
    with engine.container(env=spec.env, options=spec.options) as container:
        yield container


@pytest.fixture
def webhook(serving: Container, spec: Spec) -> Client:
    """A client of the webhook in that container."""
    client = Client(spec.authority, spec.port, spec.metrics_port)
    wait_for(lambda: client.is_ready() or not serving.running, "the webhook to serve")
    assert serving.running, serving.output
    return client


def test_the_webhook_grants_slots_counts_them_and_ends_when_told_to(webhook: Client, serving: Container, key):
    assert webhook.ask(pod_asking(key, length=1)).allowed
    assert 429 == webhook.ask(pod_asking(key, length=1)).code
    assert {"granted": 1.0, "full": 1.0} == {name: count for name, count in webhook.verdicts().items() if count}

    assert 0 == serving.terminate(GRACE_SECONDS), serving.output
    levels = {json.loads(line)["level"] for line in serving.output.splitlines()}
    assert not levels & {"warning", "error", "critical"}, serving.output


def test_the_command_line_works_in_the_webhooks_container_and_a_release_is_in_its_log(webhook: Client, serving, key):
    """With a root file system that cannot be written to, and as the image's user."""
    answer = webhook.ask(pod_asking(key, length=1))

    checked = serving.execute(["at-least-semaphore", "check"])
    assert (0, "") == (checked.returncode, checked.stderr), checked.stdout
    held = serving.execute(["at-least-semaphore", "holders", f"batch/{key}"])
    assert f"batch/{key}: 1 of 1 slot held" in held.stdout, held.stderr
    released = serving.execute(["at-least-semaphore", "release", f"batch/{key}/{answer.env()['SLOT']}", "--yes"])
    assert 0 == released.returncode, released.stderr

    (line,) = (line for line in serving.output.splitlines() if "a slot was released by hand" in line)
    assert f"batch/{key}" == json.loads(line)["semaphore"]
    assert webhook.ask(pod_asking(key, length=1)).allowed


def test_the_webhook_says_what_is_missing(engine: Engine, spec: Spec):
    """And needs no place to write for that but the folder of the metrics."""
    with engine.container(env={"PROMETHEUS_MULTIPROC_DIR": METRICS_DIR}, options=spec.options[1:]) as container:
        assert container.ended() != 0

        assert f"cannot start: CERT_DIR: {CERT_DIR}/tls.crt is not there" in container.output


# The sidecar ----------------------------------------------------------------------------------------------


def lease_ms(node: RedisNode, token: str) -> int:
    """What is left of the lease; negative if there is none."""
    with node.client() as client:
        return int(client.pttl(f"lease:{token}"))


def renewed(nodes: list[RedisNode], token: str) -> bool:
    """Whether each node has renewed the lease since a moment ago."""
    before = [lease_ms(node, token) for node in nodes]
    return bool(
        wait_for(
            lambda: all(0 < was < lease_ms(node, token) for was, node in zip(before, nodes, strict=True)),
            "a renewal on every node",
        )
    )


def test_the_injected_container_keeps_the_slot_until_it_is_told_to_end(engine: Engine, webhook: Client, nodes, key):
    answer = webhook.ask(pod_asking(key, length=1, expiration=5))
    injected, token = answer.container(), answer.env()["TOKEN"]

    with engine.container(injected["command"], answer.env()) as sidecar:
        sidecar.wait_for("the slot is held")
        checked = sidecar.execute(injected["startupProbe"]["exec"]["command"])
        assert 0 == checked.returncode, checked.stderr
        assert renewed(nodes, token)
        assert 429 == webhook.ask(pod_asking(key, length=1)).code

        assert 0 == sidecar.terminate(GRACE_SECONDS), sidecar.output

    assert all(lease_ms(node, token) < 0 for node in nodes)
    assert webhook.ask(pod_asking(key, length=1)).allowed


# Starting -------------------------------------------------------------------------------------------------


def compiled_at_start(output: str) -> list[str]:
    """Of what `python -v` says, the modules that it had to compile."""
    assert "code object from" in output
    return re.findall(r"code object from '?([^'\n]*\.py)\b'?$", output, re.M)


def test_nothing_is_compiled_when_the_webhook_starts(engine: Engine, spec: Spec):
    check = ("python", "-v", "-m", "gunicorn", "--check-config")
    with engine.container(check, spec.env, spec.options) as container:
        assert 0 == container.ended(), container.output

        assert not compiled_at_start(container.output)


@pytest.mark.parametrize("arguments", [(), ("check",)], ids=["keeping", "check"])
def test_nothing_is_compiled_when_the_sidecar_or_its_probe_starts(engine: Engine, spec: Spec, arguments):
    """It would be again at every probe, as nothing can be kept."""
    with engine.container(("python", "-v", "-m", "sidecar", *arguments)) as container:
        assert 2 == container.ended(), container.output

        assert not compiled_at_start(container.output)
