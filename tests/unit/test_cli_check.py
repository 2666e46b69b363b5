"""What `check` makes of what it sees; how it looks is tried on real nodes in tests/process."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from app.cli import findings
from app.cli.certificate import read_certificate
from app.cli.findings import Level
from app.semaphore.rights import excess_trials, hook_trials, sidecar_trials
from app.semaphore.survey import Health
from app.settings import Settings
from sidecar.protocol import Keys
from tests.harness.nodes import ACL, HOOK_USER, SIDECAR_USER
from tests.harness.webhook import environ_for, issue_certificate

NODES = "a:6379,b:6379,c:6379"
GOOD = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "maxclients": "10000"}


def allowed_to(user: str) -> set[str]:
    """The commands in the user's line of the ACL, which is that of the README."""
    (line,) = (line for line in ACL.splitlines() if line.startswith(f"user {user} "))
    return set(re.findall(r"\+([a-z|]+)", line))


def settings_for(folder: Path, addresses: str = NODES, **more: str) -> Settings:
    return Settings.from_env(environ_for(addresses, CERT_DIR=str(folder), **more))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    issue_certificate(tmp_path, trustme.CA())
    return settings_for(tmp_path)


# The rights -----------------------------------------------------------------------------------------------


def test_every_right_of_the_webhooks_user_is_tried():
    assert allowed_to(HOOK_USER) == {trial.right for trial in hook_trials(Keys())}


def test_every_right_of_the_sidecars_user_is_tried():
    assert allowed_to(SIDECAR_USER) == {trial.right for trial in sidecar_trials(Keys())}


def test_no_right_that_the_sidecars_user_needs_is_one_too_many():
    needed = {trial.words for trial in sidecar_trials(Keys())}

    assert set() == needed & {trial.words for trial in excess_trials(Keys())}


@pytest.mark.parametrize("trials", [hook_trials, sidecar_trials, excess_trials])
def test_a_variants_rights_are_tried_on_its_own_keys(trials):
    def keys_in(variant: str) -> list[str]:
        words = [str(word) for trial in trials(Keys(variant)) for word in trial.words]
        return [word for word in words if re.search("slots:|lease:|reservation:", word)]

    assert [f"blue:{key}" for key in keys_in("")] == keys_in("blue")


def test_a_right_that_is_lacking_is_named_with_what_the_node_said():
    found = findings.of_hook_rights("rights", {"scan": "no permissions", "info": "no permissions"})

    assert (Level.FAIL, "may not scan, info (no permissions)") == (found.level, found.found)


def test_the_right_to_look_at_the_configuration_is_needed_by_nobody_else():
    assert Level.WARN is findings.of_hook_rights("rights", {"config|get": "no"}).level
    assert Level.FAIL is findings.of_hook_rights("rights", {"config|get": "no", "get": "no"}).level


def test_sidecars_that_may_too_much_are_warned_of_and_those_that_may_too_little_fail():
    assert Level.OK is findings.of_sidecar_rights("rights", {}, set()).level
    found = findings.of_sidecar_rights("rights", {}, {"set", "get"})
    assert (Level.WARN, "may do more than it needs: get, set") == (found.level, found.found)
    assert Level.FAIL is findings.of_sidecar_rights("rights", {"unlink": "no"}, {"get"}).level


# Settings and the certificate -----------------------------------------------------------------------------


def test_settings_that_are_as_they_should_be_are_counted(settings):
    assert (Level.OK, "3 nodes, no variant") == (
        findings.of_settings(settings).level,
        findings.of_settings(settings).found,
    )


@pytest.mark.parametrize("environ", [{"REDIS_ADDRESSES": NODES}, environ_for("a:6379")])
def test_settings_without_a_password_or_with_one_node_are_warned_of(environ):
    assert Level.WARN is findings.of_settings(Settings.from_env(environ)).level


@pytest.mark.parametrize(
    ("expected", "left"),
    [(Level.OK, 15), (Level.OK, 14), (Level.WARN, 13), (Level.WARN, 1), (Level.FAIL, 0), (Level.FAIL, -1)],
)
def test_a_certificate_is_warned_of_two_weeks_before_its_end(settings, expected, left):
    certificate = read_certificate(settings.cert_file.read_bytes(), settings.key_file.read_bytes())

    assert expected is findings.of_certificate(settings, certificate.not_after - timedelta(days=left)).level


def test_a_certificate_is_told_with_its_names_and_its_end(settings):
    found = findings.of_certificate(settings, findings.today())

    assert Level.OK is found.level
    assert re.fullmatch(r"valid until \d{4}-\d\d-\d\d \d\d:\d\d UTC, \d+ days left, for localhost", found.found)


def test_a_certificate_that_is_not_yet_valid_fails(settings):
    certificate = read_certificate(settings.cert_file.read_bytes(), settings.key_file.read_bytes())

    found = findings.of_certificate(settings, certificate.not_before - timedelta(seconds=1))

    assert Level.FAIL is found.level
    assert "not valid before" in found.found


def test_a_key_of_another_certificate_fails(settings, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    issue_certificate(other, trustme.CA())
    (other / "tls.key").rename(settings.key_file)

    found = findings.of_certificate(settings, findings.today())

    assert (Level.FAIL, "tls.key is not its key") == (found.level, found.found)


def test_a_certificate_without_a_dns_name_fails(settings):
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(settings.key_file)
    issued.cert_chain_pems[0].write_to_path(settings.cert_file)

    found = findings.of_certificate(settings, findings.today())

    assert Level.FAIL is found.level
    assert "no DNS names" in found.found


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_files_that_cannot_be_read_fail_by_their_names(settings, name):
    (settings.cert_dir / name).unlink()

    found = findings.of_certificate(settings, findings.today())

    assert Level.FAIL is found.level
    assert f"{settings.cert_dir / name} cannot be read: No such file or directory" == found.found


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_files_that_are_no_pem_fail_and_are_not_quoted(settings, name):
    (settings.cert_dir / name).write_text("secret")

    found = findings.of_certificate(settings, findings.today())

    assert Level.FAIL is found.level
    assert "secret" not in found.found


# The nodes ------------------------------------------------------------------------------------------------


def test_a_node_that_forgets_nothing_is_well():
    assert Level.OK is findings.of_durability("node", GOOD).level


@pytest.mark.parametrize(
    ("name", "value"), [("appendonly", "no"), ("appendfsync", "everysec"), ("maxmemory-policy", "allkeys-lru")]
)
def test_a_node_that_may_forget_fails(name, value):
    found = findings.of_durability("node", {**GOOD, name: value})

    assert (Level.FAIL, f"{name} {value}") == (found.level, found.found)


@pytest.mark.parametrize(("expected", "connected"), [(Level.OK, 7500), (Level.WARN, 7501)])
def test_connections_are_warned_of_when_three_quarters_are_in_use(expected, connected):
    assert expected is findings.of_connections("node", GOOD, {"connected_clients": str(connected)}).level


@pytest.mark.parametrize(
    ("expected", "used", "most"),
    [(Level.OK, 75, 100), (Level.WARN, 76, 100), (Level.WARN, 99, 100), (Level.FAIL, 100, 100), (Level.OK, 100, 0)],
)
def test_memory_is_warned_of_when_three_quarters_are_in_use_and_fails_when_none_is_left(expected, used, most):
    assert expected is findings.of_memory("node", {"used_memory": str(used), "maxmemory": str(most)}).level


@pytest.mark.parametrize(("expected", "role"), [(Level.OK, "master"), (Level.FAIL, "slave")])
def test_a_replica_fails(expected, role):
    assert expected is findings.of_role("node", {"role": role}).level


@pytest.mark.parametrize(
    ("expected", "offset", "round_trip"),
    [
        (Level.OK, 0.9, 0.0),
        (Level.OK, -0.9, 0.0),
        (Level.WARN, 1.1, 0.0),
        (Level.WARN, -1.1, 0.0),
        (Level.OK, 1.4, 1.0),
    ],
)
def test_a_clock_is_warned_of_when_it_is_off_by_a_second_for_certain(expected, offset, round_trip):
    assert expected is findings.of_clock("node", Health(None, round_trip, offset)).level


def test_a_clock_that_was_not_heard_is_not_known():
    found = findings.of_clock("node", Health("Connection refused"))

    assert (Level.WARN, "cannot tell: Connection refused") == (found.level, found.found)


def test_addresses_of_one_server_fail():
    (found,) = findings.of_identities({"a:1": "x", "b:1": "y", "c:1": "x"})

    assert (Level.FAIL, "nodes a:1 and c:1") == (found.level, found.subject)
    assert [] == findings.of_identities({"a:1": "x", "b:1": "y"})
