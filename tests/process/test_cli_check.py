"""`check` on real nodes: what is wrong is found, and nothing is changed by looking."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.harness.cli import environ_of, run
from tests.harness.nodes import HOOK_PASSWORD, HOOK_USER, SIDECAR_USER, RedisNode, failing
from tests.harness.semaphores import semaphores_on, soon
from tests.harness.waiting import wait_for
from tests.harness.webhook import issue_certificate


@pytest.fixture(scope="module")
def cert_dir(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("certificate")
    issue_certificate(folder, trustme.CA())
    return folder


def findings(environ: dict[str, str]) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit status; subject → level and what was found of all that is not ok."""
    ended = run(environ, "check", "-o", "json")
    found = json.loads(ended.stdout)["findings"]
    return ended.returncode, {
        each["subject"]: (each["level"], each["found"]) for each in found if each["level"] != "ok"
    }


@contextmanager
def altered(node: RedisNode, *command: Any, back: tuple[Any, ...]) -> Iterator[None]:
    """Meanwhile the node is set up in another way."""
    with node.client() as client:
        client.execute_command(*command)
        try:
            yield
        finally:
            client.execute_command(*back)


def with_rights(node: RedisNode, user: str, *rights: str) -> Any:
    """Meanwhile the user has other rights on the node."""
    return altered(node, "ACL", "SETUSER", user, *rights, back=("ACL", "LOAD"))


def test_all_is_well_on_nodes_that_are_as_the_readme_says(nodes, cert_dir):
    ended = run(environ_of(nodes, CERT_DIR=str(cert_dir)), "check")

    assert (0, "") == (ended.returncode, ended.stderr)
    lines = ended.stdout.splitlines()
    assert 2 + 8 * len(nodes) == len(lines)
    assert all(line.startswith("ok    ") for line in lines), ended.stdout


def test_a_variants_users_are_checked_for_its_own_keys(nodes, cert_dir):
    status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir), VARIANT="blue"))

    assert 1 == status
    assert {"FAIL"} == {level for level, _ in found.values()}
    assert 2 * len(nodes) == len([subject for subject in found if ", rights of " in subject])


def test_nothing_is_written_by_looking(nodes, cert_dir):
    def states() -> list[Any]:
        found = []
        for node in nodes:
            with node.client() as client:
                persistence: Any = client.info("persistence")
                found.append(
                    (
                        client.dbsize(),
                        persistence["aof_current_size"],
                        client.info("memory")["number_of_cached_scripts"],
                    )
                )
        return found

    with semaphores_on(nodes) as semaphores:  # loads the scripts, as every webhook does
        semaphores.overview(soon())
    before = states()
    run(environ_of(nodes, CERT_DIR=str(cert_dir)), "check")

    assert before == states()


def test_settings_that_the_webhook_would_refuse_fail(nodes):
    ended = run(environ_of(nodes, BIND="nowhere"), "check")

    assert (1, "") == (ended.returncode, ended.stderr)
    assert re.fullmatch(r"FAIL  settings: BIND: 'nowhere' is not where one can listen.*\n", ended.stdout)


def test_a_certificate_that_is_not_there_fails(nodes, tmp_path):
    status, found = findings(environ_of(nodes, CERT_DIR=str(tmp_path)))

    assert (1, {f"certificate {tmp_path / 'tls.crt'}"}) == (status, set(found))


@pytest.mark.parametrize(
    ("begin", "end", "why"),
    [
        (RedisNode.kill, RedisNode.start, "cannot be reached: Connection refused"),
        (RedisNode.pause, RedisNode.resume, "cannot be reached: no answer in time"),
    ],
)
def test_a_node_that_is_away_fails_and_the_others_are_looked_at(nodes, cert_dir, begin, end, why):
    with failing(nodes[:1], begin, end):
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    assert (1, {f"node {nodes[0].address}": ("FAIL", why)}) == (status, found)


@pytest.mark.parametrize("right", ["time", "evalsha", "script|load", "set", "hset", "unlink", "scan", "info"])
def test_a_right_that_the_webhooks_user_lacks_is_found(nodes, cert_dir, right):
    with with_rights(nodes[1], HOOK_USER, f"-{right}"):
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    level, text = found[f"node {nodes[1].address}, rights of {HOOK_USER}"]
    assert (1, "FAIL") == (status, level)
    assert text.startswith(f"may not {right} (")


def test_keys_that_the_webhooks_user_may_not_touch_are_found(nodes, cert_dir):
    with with_rights(nodes[1], HOOK_USER, "resetkeys", "~slots:*", "~lease:*"):
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    level, text = found[f"node {nodes[1].address}, rights of {HOOK_USER}"]
    assert (1, "FAIL") == (status, level)
    assert text.startswith("may not evalsha, mget, unlink (")


def test_where_the_configuration_is_not_to_be_had_that_is_told_and_nothing_fails(nodes, cert_dir):
    with with_rights(nodes[2], HOOK_USER, "-config|get"):
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    node = f"node {nodes[2].address}"
    assert 0 == status
    assert {f"{node}, rights of {HOOK_USER}", f"{node}, durability", f"{node}, connections"} == set(found)
    assert {"warn"} == {level for level, _ in found.values()}
    assert found[f"{node}, durability"][1].startswith("cannot tell: ")


def test_a_sidecar_that_may_more_than_it_needs_is_warned_of(nodes, cert_dir):
    with with_rights(nodes[0], SIDECAR_USER, "~*", "+get", "+scan", "+eval", "+unlink", "+config|get"):
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    assert 0 == status
    assert {
        f"node {nodes[0].address}, rights of {SIDECAR_USER}, the sidecars' user": (
            "warn",
            "may do more than it needs: config|get, eval, get, scan, unlink of records",
        )
    } == found


def test_the_webhooks_user_in_the_sidecars_place_is_warned_of(nodes, cert_dir):
    environ = environ_of(
        nodes, CERT_DIR=str(cert_dir), SIDECAR_REDIS_USERNAME=HOOK_USER, SIDECAR_REDIS_PASSWORD=HOOK_PASSWORD
    )
    status, found = findings(environ)

    assert 0 == status
    assert 3 == sum("may do more than it needs" in text for _, text in found.values())


@pytest.mark.parametrize("right", ["pexpire", "unlink"])
def test_a_right_that_the_sidecars_user_lacks_is_found(nodes, cert_dir, right):
    other = {"pexpire": ("+unlink", "~lease:*", "~reservation:*"), "unlink": ("+pexpire", "~lease:*")}[right]
    with with_rights(nodes[0], SIDECAR_USER, "reset", "on", ">sidecar-password", *other):
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    level, text = found[f"node {nodes[0].address}, rights of {SIDECAR_USER}, the sidecars' user"]
    assert (1, "FAIL") == (status, level)
    assert text.startswith(f"may not {right} (")


def test_wrong_passwords_fail_and_are_not_told(nodes, cert_dir):
    environ = environ_of(nodes, CERT_DIR=str(cert_dir), SIDECAR_REDIS_PASSWORD="s3cret")
    ended = run(environ, "check")
    hook = run({**environ, "REDIS_PASSWORD": "s3cret"}, "check")

    assert [1, 1] == [ended.returncode, hook.returncode]
    assert 3 == ended.stdout.count("does not let sidecar in: ")
    assert 3 == hook.stdout.count("does not let hook in: ")
    assert "s3cret" not in ended.stdout + ended.stderr + hook.stdout + hook.stderr


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("appendonly", "no", "yes"),
        ("appendfsync", "everysec", "always"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ],
)
def test_a_node_that_may_forget_a_slot_fails(nodes, cert_dir, name, wrong, right):
    with altered(nodes[2], "CONFIG", "SET", name, wrong, back=("CONFIG", "SET", name, right)):
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    assert (1, {f"node {nodes[2].address}, durability": ("FAIL", f"{name} {wrong}")}) == (status, found)


def test_a_node_with_hardly_a_connection_left_is_warned_of(nodes, cert_dir):
    fewer = altered(nodes[2], "CONFIG", "SET", "maxclients", "5", back=("CONFIG", "SET", "maxclients", "10000"))
    with fewer, nodes[2].client() as one, nodes[2].client() as other:
        assert one.ping()
        assert other.ping()
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    assert 0 == status
    ((subject, (level, text)),) = found.items()
    assert (f"node {nodes[2].address}, connections", "warn") == (subject, level)
    assert "of 5 (maxclients) in use" in text


def test_a_replica_fails(nodes, cert_dir):
    def is_up() -> bool:
        with nodes[2].client() as client:
            return bool(client.info("replication")["role"] == "slave")

    with altered(nodes[2], "REPLICAOF", *nodes[0].address, back=("REPLICAOF", "NO", "ONE")):
        wait_for(is_up, "the replica")
        status, found = findings(environ_of(nodes, CERT_DIR=str(cert_dir)))

    assert 1 == status
    assert ("FAIL", "its role is slave") == found[f"node {nodes[2].address}, role"]


def test_one_server_under_two_addresses_fails(nodes, cert_dir):
    twice = f"{nodes[0].address},localhost:{nodes[0].address.port},{nodes[1].address}"
    status, found = findings({**environ_of(nodes, CERT_DIR=str(cert_dir)), "REDIS_ADDRESSES": twice})

    assert 1 == status
    assert {
        f"nodes {nodes[0].address} and localhost:{nodes[0].address.port}": ("FAIL", "are one and the same server")
    } == found
