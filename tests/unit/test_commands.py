"""The wire form of what is asked of a node. What the scripts do with it: tests/integration/test_scripts.py."""

from dataclasses import replace

import pytest

from app.semaphore.commands import (
    Acquire,
    Collect,
    Command,
    Prolong,
    Read,
    Recent,
    Release,
    Renew,
    Restore,
    Vacant,
    Withdraw,
    load_scripts,
)
from app.semaphore.model import Claim, Full, Granted, Lease, Record, Standing, Taken, Unknown, Vacancies
from sidecar.protocol import Keys

SCRIPTS = ("acquire", "collect", "prolong", "read", "recent", "restore", "survey", "vacant", "withdraw")
SHA = {name: f"sha-of-{name}" for name in SCRIPTS}
CLAIM = Claim("batch/reports-db", 3, 60_000, 90_000, '{"owner":"Job/a"}')


def test_the_scripts_are_found_by_their_names():
    assert set(SHA) == set(load_scripts())


@pytest.mark.parametrize("variant", ["", "blue"])
def test_every_key_carries_the_variant(variant):
    """Two installations on the same nodes know nothing of each other."""
    commands: list[Command] = [
        Acquire(CLAIM, "t"),
        Renew("t", 1),
        Release("t"),
        Withdraw("t"),
        Prolong("t", 1),
        Vacant({CLAIM.semaphore: 3}),
        Collect(CLAIM.semaphore, 60, removing=True),
        Recent(CLAIM.semaphore, 0, "t", 1),
        Read(CLAIM.semaphore),
        Restore(CLAIM.semaphore, True, Record(3, 90_000, {})),
    ]
    for command in commands:
        words = [word for word in command.words(Keys(variant), SHA) if isinstance(word, str)]
        keys = [word for word in words if word.startswith(("slots:", "lease:", "reservation:", "blue:"))]
        assert keys
        assert all(word.startswith("blue:") == bool(variant) for word in keys), words


def test_any_slot_is_asked_for_with_a_start():
    words = Acquire(CLAIM, "t", start=2).words(Keys(), SHA)

    assert ("EVALSHA", "sha-of-acquire", 3, "slots:batch/reports-db", "lease:t", "reservation:t") == words[:6]
    assert ("t", 3, 60_000, '{"owner":"Job/a"}', 90_000, 0, -1, 2, 0) == words[6:]


def test_slot_0_is_asked_for_exactly_and_not_taken_for_none():
    words = Acquire(CLAIM, "t", slot=0, found=True).words(Keys(), SHA)

    assert ("t", 3, 60_000, '{"owner":"Job/a"}', 90_000, 1, 0, 0, 0) == words[6:]


def test_it_is_said_of_a_token_that_it_may_have_had_a_slot_before():
    words = Acquire(replace(CLAIM, reuses_token=True), "t", start=2).words(Keys(), SHA)

    assert (-1, 2, 1) == words[-3:]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ([b"GRANTED", 0], Granted(0)),
        ([b"TAKEN"], Taken()),
        ([b"UNKNOWN"], Unknown()),
        ([b"FULL", 7, 0], Full(7, (), 0)),
        ([b"FULL", 2, 1, b"a", "ü".encode()], Full(2, ("a", "ü"), 1)),
        ([b"FULL", 1, 0, b"\xff"], Full(1, ("�",), 0)),  # a tenant cannot write it, and yet nothing may fail over it
    ],
)
def test_replies_to_an_acquire(reply, expected):
    assert expected == Acquire(CLAIM, "t").answer(reply)


@pytest.mark.parametrize("command", [Renew("t", 1), Release("t"), Recent("a/b", 0, "t", 1)])
@pytest.mark.parametrize(("reply", "expected"), [(0, False), (1, True), (2, True)])
def test_replies_that_say_yes_or_no(command, reply, expected):
    assert expected is command.answer(reply)


def test_replies_to_a_prolongation():
    assert [Standing.LOST, Standing.RESERVED, Standing.CLAIMED] == [Prolong("t", 1).answer(reply) for reply in range(3)]


def test_the_lengths_of_semaphores_come_in_the_order_of_their_records():
    words = Vacant({"a/b": 3, "a/c": 0}).words(Keys(), SHA)

    assert ("EVALSHA", "sha-of-vacant", 2, "slots:a/b", "slots:a/c", "lease:", 1000, 3, 0) == words


def test_semaphores_with_room_go_by_their_numbers():
    assert Vacancies(frozenset(["a/b", "a/d"])) == Vacant({"a/b": 1, "a/c": 1, "a/d": 1}).answer([1, 3])


def test_a_record_without_a_live_lease_is_not_the_same_as_none():
    assert Unknown() == Read("batch/reports-db").answer(None)
    assert Record(3, 90_000, {}) == Read("batch/reports-db").answer([3, 90_000])


def test_what_is_read_is_what_is_restored():
    """The reply to a read has the form of the arguments of a restore."""
    reply = [3, 90_000, 0, b"a", 5000, 4000, b"{}", 2, b"b", 70, -2, b'{"owner":"Job/b"}']
    record = Read("batch/reports-db").answer(reply)

    assert Record(3, 90_000, {0: Lease("a", 5000, 4000, "{}"), 2: Lease("b", 70, -2, '{"owner":"Job/b"}')}) == record
    words = Restore("batch/reports-db", False, record).words(Keys(), SHA)
    assert ("slots:batch/reports-db", "lease:", "reservation:", 0) == words[3:7]
    assert (3, 90_000, 0, "a", 5000, 4000, "{}", 2, "b", 70, -2, '{"owner":"Job/b"}') == words[7:]
