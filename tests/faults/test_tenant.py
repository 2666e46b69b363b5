"""What the Redis users may do, over every command that the server has: a tenant can only lose its own slot.

The password of `sidecar` stands in every admitted pod, so whoever can read a pod has it, and the pod's token.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
import redis

from app.semaphore.commands import load_scripts
from app.semaphore.model import Full, Grant
from tests.harness.nodes import HOOK_USER, SIDECAR_PASSWORD, SIDECAR_USER, RedisNode, addresses, redis_nodes
from tests.harness.semaphores import RECORD, acquire, claim_of, semaphores_on
from tests.harness.webhook import environ_for, pod_asking, running_webhook

FAMILIES = ("slots", "lease", "reservation")
# Redis lets everybody run these (its flag `no_auth`): to log in, to be told the server's version, to log out.
EVERYBODYS = {"auth", "hello", "quit", "reset"}
SIDECARS = {("pexpire", "lease"), ("unlink", "lease"), ("unlink", "reservation")}
# More than any clock will count to, and as much as Redis takes: it adds the time of day, in 63 bits.
AEON_MS = 2**63 - 1 - 2**42
TOKEN = "0123456789abcdef" * 2


class User:
    """A connection of one user, over which anything can be said."""

    def __init__(self, node: RedisNode, username: str | None = None, password: str | None = None) -> None:
        self._connection = redis.Connection(
            host=node.address.host,
            port=node.address.port,
            username=username,
            password=password,
            protocol=2,
            driver_info=None,
            decode_responses=True,
        )
        self._connection.connect()

    def say(self, *words: str | int) -> Any:
        """The reply; an error is one too."""
        self._connection.send_command(*words)
        try:
            return self._connection.read_response(disconnect_on_error=False)
        except (redis.ResponseError, redis.AuthenticationError) as error:
            return error

    def close(self) -> None:
        self._connection.disconnect()


@contextmanager
def logged_in(node: RedisNode, username: str | None = None, password: str | None = None) -> Iterator[User]:
    user = User(node, username, password)
    try:
        yield user
    finally:
        user.close()


def tenant_on(node: RedisNode) -> Any:
    """Whoever has read an admitted pod."""
    return logged_in(node, SIDECAR_USER, SIDECAR_PASSWORD)


def admin_on(node: RedisNode) -> Any:
    return logged_in(node, "tester", "tester")


def is_error(reply: object) -> bool:
    return isinstance(reply, redis.RedisError)


def is_refused(reply: object) -> bool:
    """For want of a right; EXEC says so in an error of its own, and DEBUG and MODULE are off for everybody."""
    return isinstance(reply, redis.exceptions.NoPermissionError) or (
        is_error(reply) and any(why in str(reply) for why in ("NOPERM", "command not allowed. If the enable-"))
    )


def is_logged_out(user: User) -> bool:
    """Nobody: asked to log in, whatever is asked for."""
    return all(wants_login(user.say(*words)) for words in (["PING"], ["PEXPIRE", f"lease:{TOKEN}", 60_000]))


def wants_login(reply: object) -> bool:
    return is_error(reply) and "Authentication required" in str(reply)


@pytest.fixture(scope="module")
def node() -> Iterator[RedisNode]:
    with redis_nodes(1) as (running,):
        yield running


@pytest.fixture(scope="module")
def commands(node: RedisNode) -> dict[str, int]:
    """All that the server knows, subcommands as `config|get`: name → how many words it takes at least."""

    def arities(entries: list[Any]) -> Iterator[tuple[str, int]]:
        for name, arity, *_, subcommands in entries:
            if not subcommands or name == "command":  # the others are none without a subcommand
                yield name, abs(arity)
            yield from arities(subcommands)

    with admin_on(node) as admin:
        found = dict(arities(admin.say("COMMAND")))
        listed = set(admin.say("COMMAND", "LIST"))
    families = {name for name in listed if any(each.startswith(f"{name}|") for each in listed)}
    assert listed - families == found.keys() - {"command"}
    assert len(found) > 300
    return found


@pytest.fixture
def data(node: RedisNode) -> RedisNode:
    """The node with one held slot, as the scripts write it, and something in another database."""
    with node.client() as client:
        client.flushall()
        client.hset(RECORD, mapping={"0": TOKEN, "length": "1", "bound": "1", "touched": "1700000000"})
        client.set(f"lease:{TOKEN}", '{"owner":"Job/nightly"}', px=60_000)
        client.set(f"reservation:{TOKEN}", "", px=60_000)
    with admin_on(node) as admin:
        admin.say("SELECT", 1)
        admin.say("SET", f"lease:{TOKEN}", "elsewhere", "PX", 60_000)
    return node


def everything_on(node: RedisNode) -> dict[str, Any]:
    """All keys with their values and ends, and what else a command could have changed."""
    with admin_on(node) as admin:
        found = {name: admin.say(*name.split()) for name in ("ACL LIST", "CONFIG GET *", "FUNCTION LIST")}
        for database in (0, 1, 2):
            admin.say("SELECT", database)
            for key in admin.say("KEYS", "*"):
                found[f"{database} {key}"] = (value_of(admin, key), admin.say("PEXPIRETIME", key))
    return found


def value_of(admin: User, key: str) -> Any:
    kind = admin.say("TYPE", key)
    return admin.say("GET", key) if kind == "string" else admin.say("HGETALL", key)


def words_of(command: str, least: int, argument: str) -> list[str]:
    """A command with as many arguments as it must have: permissions are looked at before their meaning."""
    name = command.split("|")
    return [*name, *[argument] * (least - len(name))]


def may_run(admin: User, username: str, words: list[str]) -> bool:
    answer = admin.say("ACL", "DRYRUN", username, *words)
    assert answer == "OK" or "has no permissions" in answer, (words, answer)
    return bool(answer == "OK")


# Every command, by the server's own word ---------------------------------------------------------------


def test_a_tenant_may_prolong_and_remove_leases_remove_reservations_and_nothing_else(node, commands):
    with admin_on(node) as admin:
        allowed = {
            (command, family)
            for command, least in commands.items()
            for family in FAMILIES
            if may_run(admin, SIDECAR_USER, words_of(command, least, f"{family}:{TOKEN}"))
        }

    assert SIDECARS | {(command, family) for command in EVERYBODYS for family in FAMILIES} == allowed


@pytest.mark.parametrize("argument", ["", "0", "1", "*", "blue:lease:a", "leases:a", "xlease:a", f"{{lease:{TOKEN}}}"])
def test_a_tenant_may_run_nothing_on_what_is_not_in_the_families(node, commands, argument):
    """Not on numbers of databases either, nor on the keys of a variant, which has ACL lines of its own."""
    with admin_on(node) as admin:
        allowed = {name for name in commands if may_run(admin, SIDECAR_USER, words_of(name, commands[name], argument))}

    assert EVERYBODYS == allowed


def test_the_probes_user_may_ping_and_nothing_else(node, commands):
    with admin_on(node) as admin:
        allowed = {
            name
            for name, least in commands.items()
            for family in FAMILIES
            if may_run(admin, "probe", words_of(name, least, f"{family}:{TOKEN}"))
        }

    assert {"ping"} | EVERYBODYS == allowed


def test_the_webhook_may_run_what_its_scripts_and_its_client_use_and_nothing_else(node, commands):
    """PEXPIRE is also `renew`, UNLINK `release`; TIME writes `touched`. SCAN, INFO and CONFIG GET are for looking."""
    called = {name.lower() for text in load_scripts().values() for name in re.findall(r"redis\.call\('(\w+)'", text)}
    with admin_on(node) as admin:
        allowed = {
            (command, family)
            for command, least in commands.items()
            for family in (*FAMILIES, "other")
            if may_run(admin, HOOK_USER, webhooks_words(command, least, f"{family}:{TOKEN}"))
        }

    keyless = EVERYBODYS | {"time", "script|load", "scan", "info", "config|get"}
    keyed = {"exists", "get", "set", "mget", "hget", "hset", "hdel", "hmget", "hgetall", "pttl", "pexpire", "unlink"}
    assert keyed | {"time"} == called | {"unlink"}
    assert {(command, family) for command in {*keyed, "evalsha"} for family in FAMILIES} | {
        (command, family) for command in keyless for family in (*FAMILIES, "other")
    } == allowed


def webhooks_words(command: str, least: int, key: str) -> list[str]:
    """A script names its keys behind their number; else it would be allowed for having none."""
    return ["evalsha", "0" * 40, "1", key] if command == "evalsha" else words_of(command, least, key)


# Every command, for real -------------------------------------------------------------------------------


def test_every_other_command_is_refused_to_a_tenant_and_leaves_everything_as_it_was(data, commands):
    before = everything_on(data)
    with tenant_on(data) as tenant:
        refused = {
            (command, family)
            for command, least in commands.items()
            if command not in EVERYBODYS
            for family in FAMILIES
            if (command, family) not in SIDECARS
            if is_refused(tenant.say(*words_of(command, least, f"{family}:{TOKEN}")))
        }

    asked = {(command, family) for command in commands.keys() - EVERYBODYS for family in FAMILIES}
    assert asked - SIDECARS == refused
    assert before == everything_on(data)


LEASE, RESERVATION = f"lease:{TOKEN}", f"reservation:{TOKEN}"


@pytest.mark.parametrize(
    "words",
    [
        ["GET", LEASE],
        ["KEYS", "*"],
        ["SCAN", "0", "MATCH", "lease:*"],
        ["DBSIZE"],
        ["RANDOMKEY"],
        ["HGETALL", RECORD],
        ["EXISTS", LEASE],
        ["PTTL", LEASE],
        ["OBJECT", "FREQ", LEASE],
        ["TYPE", LEASE],
        ["DUMP", LEASE],
        ["SET", "lease:forged", "{}"],
        ["SET", LEASE, "{}", "KEEPTTL"],
        ["GETEX", LEASE, "PERSIST"],
        ["PERSIST", LEASE],
        ["EXPIRE", LEASE, "60"],
        ["PEXPIREAT", LEASE, "9999999999999"],
        ["DEL", LEASE],
        ["HSET", RECORD, "0", "forged"],
        ["RESTORE", "lease:forged", "0", ""],
        ["COPY", LEASE, "lease:forged"],
        ["COPY", LEASE, LEASE, "DB", "1"],
        ["RENAME", LEASE, "lease:forged"],
        ["MOVE", LEASE, "1"],
        ["SELECT", "1"],
        ["SWAPDB", "0", "1"],
        ["SORT", LEASE, "STORE", "lease:forged"],
        ["MIGRATE", "127.0.0.1", "1", LEASE, "0", "100"],
        ["EVAL", "return redis.call('PEXPIRE', KEYS[1], 1)", "1", LEASE],
        ["EVALSHA", "0" * 40, "0"],
        ["FCALL", "f", "0"],
        ["SCRIPT", "LOAD", "return 1"],
        ["SCRIPT", "FLUSH"],
        ["FUNCTION", "LIST"],
        ["MULTI"],
        ["EXEC"],
        ["WATCH", LEASE],
        ["SUBSCRIBE", "__keyevent@0__:expired"],
        ["PSUBSCRIBE", "*"],
        ["PUBLISH", "lease:", "x"],
        ["CLIENT", "LIST"],
        ["CLIENT", "KILL", "TYPE", "normal"],
        ["CLIENT", "PAUSE", "100000"],
        ["CLIENT", "TRACKING", "ON", "BCAST"],
        ["CONFIG", "GET", "*"],
        ["CONFIG", "SET", "appendonly", "no"],
        ["ACL", "LIST"],
        ["ACL", "WHOAMI"],
        ["ACL", "SETUSER", SIDECAR_USER, "+@all"],
        ["DEBUG", "SLEEP", "10"],
        ["MONITOR"],
        ["SLOWLOG", "GET"],
        ["INFO"],
        ["MEMORY", "USAGE", LEASE],
        ["WAIT", "1", "0"],
        ["REPLICAOF", "127.0.0.1", "1"],
        ["PSYNC", "?", "-1"],
        ["SAVE"],
        ["FLUSHALL"],
        ["SHUTDOWN", "NOSAVE"],
        ["COMMAND"],
        ["PING"],
        ["UNLINK", LEASE, RECORD],
        ["PEXPIRE", RECORD, "1"],
        ["PEXPIRE", f"{RECORD}\nlease:", "1"],
    ],
    ids=" ".join,
)
def test_what_a_tenant_would_like_to_do_is_refused(data, words):
    before = everything_on(data)
    with tenant_on(data) as tenant:
        assert is_refused(tenant.say(*words))

    assert before == everything_on(data)


# What everybody may run --------------------------------------------------------------------------------


def test_to_log_in_as_somebody_else_takes_their_password(data):
    with tenant_on(data) as tenant:
        for username in (HOOK_USER, "tester", "nobody"):
            for password in ("", "guess", SIDECAR_PASSWORD):
                assert is_error(tenant.say("AUTH", username, password))
                assert is_error(tenant.say("HELLO", 2, "AUTH", username, password))

        assert 1 == tenant.say("PEXPIRE", LEASE, 60_000)  # and it is still who it was
        assert is_refused(tenant.say("GET", LEASE))


@pytest.mark.parametrize("words", [["AUTH", "default", "guess"], ["HELLO", "2", "AUTH", "default", ""], ["AUTH", ""]])
def test_nobody_becomes_the_default_user(data, words):
    """As whom a server reads its own log, so that this one may do everything."""
    with tenant_on(data) as tenant, logged_in(data) as anybody:
        for user in (tenant, anybody):
            assert isinstance(user.say(*words), redis.AuthenticationError)

        assert 1 == tenant.say("PEXPIRE", LEASE, 60_000)  # and it is still who it was
        assert is_logged_out(anybody)


def test_to_reset_a_connection_is_to_be_logged_out(data):
    with tenant_on(data) as tenant:
        assert not is_error(tenant.say("RESET"))

        assert is_logged_out(tenant)
        assert wants_login(tenant.say("SELECT", 1))


def test_hello_tells_of_the_server_and_nothing_of_what_it_keeps(data):
    with tenant_on(data) as tenant:
        told = tenant.say("HELLO")
        names = set(told[::2])
        assert names <= {"server", "version", "proto", "id", "mode", "role", "modules", "availability_zone"}
        assert is_error(tenant.say("HELLO", 2, "SETNAME", "a name\nof two lines"))


def test_who_has_not_logged_in_is_refused_everything_for_real(data, commands):
    before = everything_on(data)
    with logged_in(data) as anybody:
        refused = {
            command
            for command, least in commands.items()
            if command not in EVERYBODYS and wants_login(anybody.say(*words_of(command, least, f"lease:{TOKEN}")))
        }

    assert commands.keys() - EVERYBODYS == refused
    assert before == everything_on(data)


# What a tenant can do with a token ---------------------------------------------------------------------


def test_a_tenant_prolongs_and_ends_the_lease_that_it_knows_and_no_other_database_sees_it(data):
    before = everything_on(data)
    with tenant_on(data) as tenant:
        assert 1 == tenant.say("PEXPIRE", LEASE, 120_000)
        assert 2 == tenant.say("UNLINK", LEASE, RESERVATION)
        assert 0 == tenant.say("PEXPIRE", LEASE, 120_000)  # it is not created

    gone = {f"0 {LEASE}", f"0 {RESERVATION}"}
    assert {name: value for name, value in before.items() if name not in gone} == everything_on(data)


@pytest.mark.parametrize("life_ms", [0, -1, -(2**63)])
def test_a_life_that_is_over_is_a_release(data, life_ms):
    with tenant_on(data) as tenant:
        assert 1 == tenant.say("PEXPIRE", LEASE, life_ms)

    with data.client() as client:
        assert not client.exists(LEASE)


@pytest.mark.parametrize("life", [2**63 - 1, 2**63, "1e3", "", "inf"], ids=str)
def test_a_life_that_redis_cannot_count_to_changes_nothing(data, life):
    before = everything_on(data)
    with tenant_on(data) as tenant:
        assert is_error(tenant.say("PEXPIRE", LEASE, life))

    assert before == everything_on(data)


@pytest.mark.parametrize(
    ("option", "life_ms", "said"), [("NX", 60_000, 0), ("GT", 1, 0), ("LT", AEON_MS, 0), ("XX", 60_000, 1)]
)
def test_options_tell_no_more_than_whether_a_token_that_one_knows_has_a_lease(data, option, life_ms, said):
    """And how it compares with a time of one's choice; a token cannot be guessed."""
    with tenant_on(data) as tenant:
        assert said == tenant.say("PEXPIRE", LEASE, life_ms, option)
        assert 0 == tenant.say("PEXPIRE", f"lease:{TOKEN[::-1]}", life_ms, option)


# A stretched lease -------------------------------------------------------------------------------------


@pytest.fixture
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes() as running:
        yield running


def stretch(nodes: list[RedisNode], key: str, life_ms: int = AEON_MS) -> list[Any]:
    """As a tenant who knows the key; the reply of each node."""
    replies = []
    for node in nodes:
        with tenant_on(node) as tenant:
            replies.append(tenant.say("PEXPIRE", key, life_ms))
    return replies


def lives_ms(nodes: list[RedisNode], key: str) -> list[int]:
    lives = []
    for node in nodes:
        with node.client() as client:
            lives.append(int(client.pttl(key)))
    return lives


def test_a_stretched_lease_is_cut_on_the_node_that_an_admission_searches(nodes):
    """The sequencer looks through the slots; the others are only asked for the one that it picked."""
    with semaphores_on(nodes) as semaphores:
        held = acquire(semaphores, "held", 1)
        assert [1, 1, 1] == stretch(nodes, f"lease:{held.token}")

        assert isinstance(acquire(semaphores, "late", 1), Full)

    sequencer, *others = lives_ms(nodes, f"lease:{held.token}")
    assert 0 < sequencer <= claim_of(1).longest_ms < min(others)


def test_a_lease_stretched_on_all_nodes_ends_two_longest_leases_later_at_most(nodes):
    """When it has ended at the sequencer, which so picks its slot, the others come across theirs."""
    with semaphores_on(nodes) as semaphores:
        held = acquire(semaphores, "held", 1)
        stretch(nodes, f"lease:{held.token}")
        acquire(semaphores, "late", 1)
        with nodes[0].client() as client:  # a lease later
            client.unlink(f"lease:{held.token}")

        assert isinstance(acquire(semaphores, "later", 1), Full)
        assert all(life <= claim_of(1).longest_ms for life in lives_ms(nodes, f"lease:{held.token}"))

        for node in nodes:  # and another one
            with node.client() as client:
                client.unlink(f"lease:{held.token}")
        assert isinstance(acquire(semaphores, "last", 1), Grant)


def test_in_a_longer_full_semaphore_the_admissions_that_follow_come_across_a_stretched_lease(nodes):
    """Each looks closely at 340 slots from a random start on, and passes the rest with one EXISTS a batch."""
    with semaphores_on(nodes, rng=Random(1)) as semaphores:
        held = [acquire(semaphores, f"held{number}", 400) for number in range(400)]
        stretch(nodes, f"lease:{held[0].token}")

        asked = 0
        while lives_ms(nodes[:1], f"lease:{held[0].token}")[0] > claim_of(1).longest_ms:
            assert isinstance(acquire(semaphores, f"late{asked}", 400), Full)
            asked += 1
            assert asked < 100, "five in six look there"


def test_a_repair_hands_on_no_more_than_the_longest_lease(nodes):
    """Else a life that Redis can just count to would be past that at the node that is repaired.

    The script would fail there half way, with a record that lacks leases and counts as whole.
    """
    with semaphores_on(nodes) as semaphores:
        held = acquire(semaphores, "held", 4)
        stretch(nodes, f"lease:{held.token}")
        stretch(nodes, f"reservation:{held.token}")
        nodes[1].restart(empty=True)
        assert semaphores.repair("batch/reports-db", time.monotonic() + 5)

    for family in ("lease", "reservation"):
        assert 0 < lives_ms(nodes, f"{family}:{held.token}")[1] <= claim_of(1).longest_ms


def test_a_stretched_reservation_admits_no_second_pod(nodes):
    """A pod that brings its sidecar passes as a reinvocation only within a minute of its admission."""
    with running_webhook(environ_for(addresses(nodes))) as webhook:
        admitted = webhook.ask(pod_asking(length=1))
        token = admitted.env()["TOKEN"]
        for node in nodes:  # more than a minute later
            with node.client() as client:
                client.set(f"reservation:{token}", round((time.time() - 61) * 1000), keepttl=True)
        assert not webhook.ask(admitted.pod).allowed

        stretch(nodes, f"reservation:{token}", 299_000)

        assert not webhook.ask(admitted.pod).allowed
