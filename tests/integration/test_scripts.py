"""The contract of each Lua script, as its header states it, held against a real node."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from app.semaphore.commands import (
    Acquire,
    AskTime,
    AskVitals,
    Command,
    ListNames,
    Prolong,
    Read,
    Recent,
    Release,
    Renew,
    Restore,
    Survey,
    Vacant,
    load_scripts,
)
from app.semaphore.model import Claim, Full, Granted, Lease, Names, Page, Record, Standing, Taken, Unknown
from sidecar.protocol import Keys
from tests.harness.nodes import ACL, HOOK_PASSWORD, HOOK_USER, RedisNode, redis_nodes
from tests.harness.semaphores import RECORD, SEMAPHORE
from tests.harness.waiting import wait_for

LIFE_MS = 60_000
DAY_MS = 24 * 60 * LIFE_MS


class Hook:
    """The hook's user on one node, and beside it a client with every right to look and meddle."""

    def __init__(self, node: RedisNode) -> None:
        host, port = node.address
        self._client = redis.Redis(host, port, username=HOOK_USER, password=HOOK_PASSWORD, protocol=2, driver_info=None)
        self._sha = {name: self._client.script_load(text) for name, text in load_scripts().items()}
        self.admin = node.client()

    def ask(self, command: Command) -> Any:
        return command.answer(self.raw(*command.words(Keys(), self._sha)))

    def raw(self, *words: str | int) -> Any:
        """Past the client's own reading of replies."""
        with self._client.client() as client:
            client.connection.send_command(*words)
            return client.connection.read_response()

    def acquire(
        self,
        token: str,
        length: int = 3,
        *,
        life_ms: int = LIFE_MS,
        lease_ms: int = LIFE_MS,
        holder: str = "{}",
        found: bool = True,
        reuses_token: bool = False,
        **more: Any,
    ) -> Any:
        claim = Claim(SEMAPHORE, length, life_ms, lease_ms, holder, reuses_token)
        return self.ask(Acquire(claim, token, found=found, **more))

    def fill(self, slots: Iterable[int], semaphore: str = SEMAPHORE) -> None:
        """Leases of s0, s1, … in these slots, as the scripts would have written them, all at once."""
        slots, record = list(slots), Keys().record(semaphore)
        with self.admin.pipeline() as batch:
            batch.hset(record, mapping={"bound": max(slots) + 1, "longest": LIFE_MS})
            for slot in slots:
                batch.hset(record, str(slot), f"s{slot}")
                batch.set(f"lease:s{slot}", f"holder-{slot}", px=60_000)
            batch.execute()

    def now_ms(self) -> int:
        seconds, microseconds = self.admin.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def lookups(self) -> int:
        """How many keys it has looked for so far, whether or not they were there."""
        stats: Any = self.admin.info("stats")
        return int(stats["keyspace_hits"]) + int(stats["keyspace_misses"])

    def close(self) -> None:
        self._client.close()
        self.admin.close()


@pytest.fixture(scope="module")
def node():
    with redis_nodes(1) as (node,):
        yield node


@pytest.fixture
def hook(node):
    hook = Hook(node)
    hook.admin.flushall()
    yield hook
    hook.close()


def record_of(hook: Hook) -> dict[Any, Any]:
    return {field: value for field, value in hook.admin.hgetall(RECORD).items() if field != "touched"}


# acquire: any slot --------------------------------------------------------------------------------------


def test_without_a_record_it_is_unknown_and_nothing_is_written(hook):
    assert Unknown() == hook.acquire("a", found=False)
    assert Unknown() == hook.acquire("a", found=False, slot=1)
    assert [] == hook.admin.keys()


def test_founding_writes_record_lease_and_reservation(hook):
    now_ms = hook.now_ms()
    assert Granted(1) == hook.acquire("a", start=1, life_ms=30_000, holder='{"owner":"Job/a"}')

    assert {"1": "a", "length": "3", "bound": "2", "longest": "60000"} == record_of(hook)
    assert 0 <= int(hook.admin.hget(RECORD, "touched")) - now_ms // 1000 <= 5
    assert '{"owner":"Job/a"}' == hook.admin.get("lease:a")
    assert now_ms <= int(hook.admin.get("reservation:a")) <= hook.now_ms()
    assert 25_000 < hook.admin.pttl("lease:a") <= 30_000
    assert 25_000 < hook.admin.pttl("reservation:a") <= 30_000
    assert -1 == hook.admin.pttl(RECORD)


def test_founding_what_is_founded_is_an_admission_like_any_other(hook):
    hook.acquire("a", 1)

    assert Full(1, ("{}",), 1) == hook.acquire("b", 1, found=True)


def test_the_first_free_slot_from_the_start_on_is_granted(hook):
    """Wrapping around at the end."""
    hook.fill([3, 4, 0])

    assert Granted(1) == hook.acquire("a", 5, start=3)
    assert Granted(2) == hook.acquire("b", 5, start=3)


@pytest.mark.parametrize("start", range(5))
def test_every_start_finds_every_free_slot(hook, start):
    assert [(start + at) % 5 for at in range(5)] == [hook.acquire(f"t{at}", 5, start=start).slot for at in range(5)]
    assert Full(5, ("{}",) * 5, 5) == hook.acquire("late", 5, start=start)


def test_an_entry_whose_lease_is_dead_is_overwritten(hook):
    hook.acquire("a", 1)
    hook.ask(Release("a"))

    assert Granted(0) == hook.acquire("b", 1)
    assert {"0": "b", "length": "1", "bound": "1", "longest": "60000"} == record_of(hook)


def test_a_lease_that_ran_out_is_dead(hook):
    hook.acquire("a", 1, life_ms=50)
    wait_for(lambda: not hook.admin.exists("lease:a"), "the lease to end")

    assert Granted(0) == hook.acquire("b", 1)


def test_the_same_token_gets_the_slot_it_has_and_nothing_is_prolonged(hook):
    hook.acquire("a", 5, start=2, life_ms=30_000)

    assert Granted(2) == hook.acquire("a", 5, start=4, life_ms=90_000)
    assert Granted(2) == hook.acquire("a", 5, slot=2, life_ms=90_000)
    assert Granted(2) == hook.acquire("a", 5, slot=3)  # no vote for slot 3: the client compares
    assert {"2": "a", "length": "5", "bound": "3", "longest": "60000"} == record_of(hook)
    assert hook.admin.pttl("lease:a") <= 30_000


LONGEST_MS = 10 * LIFE_MS


@pytest.mark.parametrize("asked", [{"start": 4}, {"slot": 2}])
def test_a_token_of_a_pod_that_was_admitted_before_is_prolonged_as_long_as_it_is_a_reservation(hook, asked):
    """A gate is lifted by the answer."""
    hook.acquire("a", 5, start=2, life_ms=5000)

    assert Granted(2) == hook.acquire("a", 5, life_ms=LONGEST_MS, reuses_token=True, **asked)
    assert hook.admin.pexpiretime("lease:a") == hook.admin.pexpiretime("reservation:a")
    assert LONGEST_MS - LIFE_MS < hook.admin.pttl("lease:a") <= LONGEST_MS
    assert str(LONGEST_MS) == hook.admin.hget(RECORD, "longest")
    hook.acquire("b", 5, slot=2)  # who cuts down what is longer than that
    assert LONGEST_MS - LIFE_MS < hook.admin.pttl("lease:a")


def test_a_lease_that_a_sidecar_has_renewed_is_the_sidecars_whoever_asks_for_its_token(hook):
    hook.acquire("a", 5, start=2, life_ms=5000)
    hook.admin.delete("reservation:a")

    assert Granted(2) == hook.acquire("a", 5, life_ms=LONGEST_MS, reuses_token=True)
    assert hook.admin.pttl("lease:a") <= 5000
    assert not hook.admin.exists("reservation:a")
    assert str(LIFE_MS) == hook.admin.hget(RECORD, "longest")


def test_a_token_whose_lease_has_ended_is_granted_anew(hook):
    hook.acquire("a", 1)
    hook.ask(Release("a"))

    assert Granted(0) == hook.acquire("a", 1)
    assert 55_000 < hook.admin.pttl("lease:a") <= 60_000


def test_the_same_token_keeps_its_slot_when_all_are_held(hook):
    hook.acquire("a", 1)

    assert Granted(0) == hook.acquire("a", 1)


@pytest.mark.parametrize("free", [0, 1, 15, 16, 17, 79, 80, 1103, 1104, 5000, 9999])
def test_one_free_slot_among_10000_is_found(hook, free):
    """Whichever batch it is in, the first from the start or the last."""
    hook.fill(slot for slot in range(10_000) if slot != free)
    for start in [0, 1, free, (free + 1) % 10_000, 9999]:
        assert Granted(free) == hook.acquire("a", 10_000, start=start)
        hook.ask(Release("a"))


def test_a_slot_whose_lease_ended_among_10000_is_found(hook):
    hook.fill(range(10_000))
    hook.ask(Release("s7777"))

    assert Granted(7777) == hook.acquire("a", 10_000, start=3)


def test_10000_held_slots_are_full_and_20_holders_are_shown(hook):
    hook.fill(range(10_000))

    assert Full(10_000, tuple(f"holder-{slot}" for slot in range(20)), 0) == hook.acquire("a", 10_000, start=1234)


def test_the_holders_shown_are_those_that_live(hook):
    """After the length was reduced: a slot is not held, and yet there are too many that are, past the length."""
    hook.fill(range(5))
    hook.ask(Release("s1"))

    assert Full(4, ("holder-0", "holder-2", "holder-3", "holder-4"), 0) == hook.acquire("a", 3)


def test_holders_that_are_all_past_the_length_are_shown(hook):
    hook.fill(range(5))
    for slot in range(2):
        hook.ask(Release(f"s{slot}"))

    assert Full(3, ("holder-2", "holder-3", "holder-4"), 0) == hook.acquire("a", 2)


def test_holders_that_no_sidecar_has_claimed_are_counted(hook):
    """Of those that are shown; a reservation that outlived its lease is nobody's."""
    for slot, token in enumerate("abc"):
        hook.acquire(token, 3, slot=slot)
    hook.admin.delete("reservation:a")
    assert 2 == hook.acquire("late", 3).unstarted

    hook.admin.delete("lease:b")
    assert Full(2, ("{}", "{}"), 1) == hook.acquire("late", 2)


# acquire: exactly one slot ------------------------------------------------------------------------------


def test_exactly_one_slot_is_granted_or_taken(hook):
    hook.acquire("a", start=1)

    assert Taken() == hook.acquire("b", slot=1)
    assert Granted(2) == hook.acquire("b", slot=2)
    assert {"1": "a", "2": "b", "length": "3", "bound": "3", "longest": "60000"} == record_of(hook)
    assert 55_000 < hook.admin.pttl("reservation:b") <= 60_000


def test_what_is_taken_or_full_writes_nothing(hook):
    hook.acquire("a", 1)
    before = hook.admin.dbsize(), hook.admin.hgetall(RECORD)
    hook.acquire("b", 1, slot=0)
    hook.acquire("b", 1)

    assert before == (hook.admin.dbsize(), hook.admin.hgetall(RECORD))


def test_a_slot_of_a_dead_lease_is_granted_exactly(hook):
    hook.acquire("a", start=1)
    hook.ask(Release("a"))

    assert Granted(1) == hook.acquire("b", slot=1)


# acquire: a length that changes -------------------------------------------------------------------------


def test_a_reduced_length_grants_nothing_until_enough_leases_have_ended(hook):
    """Counted wherever they are: the leases past the length are as many pods."""
    for slot in range(5):
        hook.acquire(f"t{slot}", 5, slot=slot)

    assert Full(5, ("{}",) * 5, 5) == hook.acquire("late", 2)
    assert Taken() == hook.acquire("late", 2, slot=0)
    for held, ended in [(4, "t0"), (3, "t3"), (2, "t4")]:
        hook.ask(Release(ended))
        assert held == hook.acquire("late", 2).held
        assert Taken() == hook.acquire("late", 2, slot=0)  # it is free, and yet
    hook.ask(Release("t2"))
    assert Granted(0) == hook.acquire("late", 2)


def test_a_reduced_length_counts_leases_past_it_while_slots_below_are_free(hook):
    hook.acquire("beyond", 5, slot=4)

    assert Granted(0) == hook.acquire("a", 3)
    assert Granted(1) == hook.acquire("b", 3, slot=1)
    assert 3 == hook.acquire("c", 3).held
    assert Taken() == hook.acquire("c", 3, slot=2)


def test_the_leases_past_a_reduced_length_are_looked_for_only_while_there_are_any(hook):
    """`bound` says whether there may be; entries of dead leases past the length go away with it."""
    hook.acquire("a", 5, slot=4)
    hook.acquire("b", 5, slot=1)
    hook.acquire("c", 3, slot=0)
    assert "5" == hook.admin.hget(RECORD, "bound")
    hook.ask(Release("a"))

    assert Granted(2) == hook.acquire("d", 3, start=2)
    assert {"0": "c", "1": "b", "2": "d", "length": "3", "bound": "3", "longest": "60000"} == record_of(hook)


def test_a_length_raised_again_opens_the_slots_past_the_old_one(hook):
    hook.fill(range(5))
    assert 5 == hook.acquire("a", 2).held

    assert Granted(5) == hook.acquire("a", 6)
    assert 6 == hook.acquire("b", 6).held
    assert 6 == hook.acquire("b", 5).held


# acquire: leases that somebody stretched ----------------------------------------------------------------


@pytest.mark.parametrize(
    "stretch", [lambda admin: admin.pexpire("lease:a", DAY_MS * 30), lambda admin: admin.persist("lease:a")]
)
@pytest.mark.parametrize("look", [{"slot": 0}, {"start": 0}, {"start": 0, "length": 1}])
def test_a_lease_stretched_past_the_longest_is_cut_down_to_it(hook, stretch, look):
    """No ACL bounds a time to live, a clock may be set back, and a slot held for ever were lost."""
    hook.acquire("a", 2, slot=0, life_ms=20_000, lease_ms=40_000)
    stretch(hook.admin)
    hook.acquire("b", life_ms=30_000, lease_ms=10_000, **{"length": 2, **look})

    assert 30_000 < hook.admin.pttl("lease:a") <= 40_000


@pytest.mark.parametrize("longest", [{"life_ms": DAY_MS}, {"lease_ms": DAY_MS}])
def test_a_lease_may_last_as_long_as_the_longest_that_was_ever_asked_for(hook, longest):
    hook.acquire("long", 2, slot=1, **longest)
    hook.acquire("a", 2, slot=0)
    hook.ask(Renew("a", DAY_MS - LIFE_MS))
    hook.acquire("b", 2)

    assert DAY_MS - 2 * LIFE_MS < hook.admin.pttl("lease:a") <= DAY_MS - LIFE_MS


@pytest.mark.parametrize("start", [0, 150, 299])
def test_a_refusal_by_up_to_336_slots_cuts_down_every_stretched_lease(hook, start):
    hook.fill(range(340))
    for slot in (0, 1, 100, 335):
        hook.admin.pexpire(f"lease:s{slot}", DAY_MS)
    assert 340 == hook.acquire("a", 340, start=start).held

    assert all(hook.admin.pttl(f"lease:s{slot}") <= LIFE_MS for slot in range(340))


# read ---------------------------------------------------------------------------------------------------


def test_a_read_gives_the_live_slots_with_their_leases_and_reservations(hook):
    assert Unknown() == hook.ask(Read(SEMAPHORE))
    hook.acquire("a", 5, slot=0, life_ms=30_000, holder="A")
    hook.acquire("b", 5, slot=3, life_ms=40_000, holder="B")
    hook.acquire("dead", 5, slot=1)
    hook.ask(Release("dead"))
    hook.admin.delete("reservation:b")

    record = hook.ask(Read(SEMAPHORE))
    assert (5, {0, 3}) == (record.length, set(record.leases))
    a, b = record.leases[0], record.leases[3]
    assert ("a", "A", "b", "B") == (a.token, a.holder, b.token, b.holder)
    assert 25_000 < a.left_ms <= 30_000 < b.left_ms <= 40_000
    assert 25_000 < a.unclaimed_ms <= 30_000
    assert b.unclaimed_ms < 1


def test_a_record_without_live_leases_is_read_as_one(hook):
    hook.acquire("a", 4)
    hook.ask(Release("a"))

    assert Record(4, LIFE_MS, {}) == hook.ask(Read(SEMAPHORE))


def test_a_stretched_lease_is_read_as_the_longest(hook):
    hook.acquire("a", 1)
    hook.admin.pexpire("lease:a", DAY_MS)
    hook.admin.pexpire("reservation:a", DAY_MS)

    lease = hook.ask(Read(SEMAPHORE)).leases[0]
    assert (LIFE_MS, LIFE_MS) == (lease.left_ms, lease.unclaimed_ms)


# restore ------------------------------------------------------------------------------------------------


def test_a_restore_writes_a_record_where_there_is_none(hook):
    leases = {0: Lease("a", 30_000, 20_000, "A"), 4: Lease("b", 40_000, -2, "B")}
    assert 2 == hook.ask(Restore(SEMAPHORE, False, Record(3, 90_000, leases)))

    assert {"0": "a", "4": "b", "length": "3", "bound": "5", "longest": "90000"} == record_of(hook)
    assert ["A", "B", "", None] == hook.admin.mget("lease:a", "lease:b", "reservation:a", "reservation:b")
    assert 25_000 < hook.admin.pttl("lease:a") <= 30_000
    assert 15_000 < hook.admin.pttl("reservation:a") <= 20_000
    assert 35_000 < hook.admin.pttl("lease:b") <= 40_000
    assert 0 < int(hook.admin.hget(RECORD, "touched"))


def test_a_restore_of_a_record_without_leases_lets_the_node_vote_again(hook):
    assert 0 == hook.ask(Restore(SEMAPHORE, False, Record(3, 90_000, {})))
    assert Granted(0) == hook.acquire("a", found=False)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_restore_writes_nothing_if_the_record_came_or_went_meanwhile(hook, recorded):
    if not recorded:
        hook.acquire("a", 5, slot=1)
    before = hook.admin.dbsize(), hook.admin.hgetall(RECORD)

    assert -1 == hook.ask(Restore(SEMAPHORE, recorded, Record(3, 90_000, {0: Lease("b", 30_000, 30_000, "B")})))
    assert before == (hook.admin.dbsize(), hook.admin.hgetall(RECORD))


def test_a_restore_leaves_held_slots_and_held_tokens_alone(hook):
    hook.acquire("a", 5, slot=0, life_ms=30_000)
    hook.acquire("dead", 5, slot=2)
    hook.ask(Release("dead"))
    leases = {
        0: Lease("x", 40_000, 40_000, "X"),  # its slot is held
        1: Lease("a", 40_000, 40_000, "A"),  # its token has a lease in another slot
        2: Lease("c", 40_000, -2, "C"),
    }

    assert 1 == hook.ask(Restore(SEMAPHORE, True, Record(5, 90_000, leases)))
    assert {"0": "a", "2": "c", "length": "5", "bound": "3", "longest": "90000"} == record_of(hook)
    assert hook.admin.pttl("lease:a") <= 30_000
    assert not hook.admin.exists("lease:x")


def test_a_restore_of_two_leases_forgets_no_entry_that_it_has_written_itself(hook):
    """Another node has moved `b`, and given its slot to `a`, while this one missed both."""
    hook.acquire("b", 2, slot=0)
    hook.ask(Release("b"))
    leases = {0: Lease("a", 30_000, -2, "A"), 1: Lease("b", 30_000, -2, "B")}

    assert 2 == hook.ask(Restore(SEMAPHORE, True, Record(2, 90_000, leases)))
    assert leases.keys() == hook.ask(Read(SEMAPHORE)).leases.keys()
    assert 2 == hook.acquire("c", 2).held


def test_a_restored_lease_past_the_length_is_counted(hook):
    hook.ask(Restore(SEMAPHORE, False, Record(2, 90_000, {4: Lease("a", 30_000, -2, "A")})))

    assert Granted(0) == hook.acquire("b", 2)
    assert 2 == hook.acquire("c", 2).held


# recent -------------------------------------------------------------------------------------------------


WITHIN_A_MINUTE = Recent(SEMAPHORE, 1, "a", 60_000)


def is_recent(hook: Hook, **other: Any) -> bool:
    """Whether `a` was granted slot 1 within the last minute, or `other` was."""
    return bool(hook.ask(replace(WITHIN_A_MINUTE, **other)))


def let_pass(hook: Hook, seconds: int) -> None:
    """The grant of `a` is so long ago."""
    hook.admin.set("reservation:a", hook.now_ms() - seconds * 1000, keepttl=True)


def test_a_grant_is_recent_by_its_instant(hook):
    hook.acquire("a", slot=1)
    assert is_recent(hook)
    let_pass(hook, 30)
    assert is_recent(hook)
    let_pass(hook, 61)
    assert not is_recent(hook)
    let_pass(hook, -30)  # the node's clock was set back
    assert not is_recent(hook)


def test_nothing_makes_a_grant_recent_again(hook):
    """A pod that was copied must not pass for one that is admitted just now."""
    hook.acquire("a", slot=1)
    let_pass(hook, 61)

    assert Standing.RESERVED is hook.ask(Prolong("a", LONGEST_MS))
    assert not is_recent(hook)
    assert Granted(1) == hook.acquire("a")
    assert not is_recent(hook)
    assert Granted(1) == hook.acquire("a", reuses_token=True)
    assert not is_recent(hook)


def test_what_is_granted_for_a_pod_that_was_admitted_before_is_not_recent(hook):
    """Its reservation had lapsed, and it may have been copied since."""
    hook.acquire("a", slot=1, reuses_token=True)

    assert "" == hook.admin.get("reservation:a")
    assert not is_recent(hook)


def test_what_a_repair_has_written_is_not_recent(hook):
    hook.ask(Restore(SEMAPHORE, False, Record(3, 90_000, {1: Lease("a", 30_000, 30_000, "A")})))

    assert not is_recent(hook)


def test_another_slot_another_token_and_a_claimed_or_ended_lease_are_not_recent(hook):
    hook.acquire("a", slot=1)
    hook.acquire("claimed", slot=0)
    hook.admin.delete("reservation:claimed")
    hook.acquire("ended", slot=2)
    hook.admin.delete("lease:ended")

    asked = [(0, "a"), (1, "b"), (0, "claimed"), (2, "ended")]
    assert [False] * 4 == [is_recent(hook, slot=slot, token=token) for slot, token in asked]
    assert not is_recent(hook, semaphore="batch/other")


# vacant -------------------------------------------------------------------------------------------------


def vacant(hook: Hook, lengths: dict[str, int]) -> set[str]:
    return set(hook.ask(Vacant(lengths)).semaphores)


def abandon(hook: Hook, semaphores: Iterable[str], bound: int = 5000) -> None:
    """Records of semaphores that were long, and whose leases have all ended."""
    record: Any = {"bound": bound, **{str(slot): f"dead{slot}" for slot in range(bound)}}
    with hook.admin.pipeline() as batch:
        for semaphore in semaphores:
            batch.hset(Keys().record(semaphore), mapping=record)
        batch.execute()


@pytest.mark.parametrize("length", [0, 1, 2])
def test_however_long_semaphores_were_a_look_for_vacancies_is_bounded(hook, length):
    """Nobody else is served meanwhile, and a pod may bring any length."""
    names = [f"evil/{number}" for number in range(20)]
    abandon(hook, names)
    before = hook.lookups()

    assert (set(names) if length else set()) == vacant(hook, dict.fromkeys(names, length))
    # At most a record's bound, once for all of its slots, and a slot's lease.
    assert hook.lookups() - before <= 20 + 2 * 1000


def test_a_look_for_vacancies_ends_where_it_is_decided(hook):
    """With the fourth slot, as the first is free."""
    hook.fill(range(1, 900))
    before = hook.lookups()

    assert set() == vacant(hook, {SEMAPHORE: 3})
    assert hook.lookups() - before <= 3 + 3


@pytest.mark.parametrize(("slot", "expected"), [(999, set()), (1000, {SEMAPHORE})])
def test_leases_past_the_length_are_found_among_a_thousand_slots(hook, slot, expected):
    """Further on it is only a hint that a slot is free: whoever asks for one is told better."""
    hook.fill([slot])

    assert expected == vacant(hook, {SEMAPHORE: 1})


@pytest.mark.parametrize("order", [1, -1])
def test_one_that_was_long_leaves_the_others_their_looks(hook, order):
    lengths = {"evil/long": 1, "batch/large": 500, "batch/small": 499}
    hook.fill(range(500), "batch/large")
    hook.fill(range(499), "batch/small")
    abandon(hook, ["evil/long"])

    assert {"evil/long"} == vacant(hook, dict(list(lengths.items())[::order]))


def test_all_slots_of_one_semaphore_are_looked_at_however_many_they_are(hook):
    hook.fill(range(10_000))
    assert set() == vacant(hook, {SEMAPHORE: 10_000})
    hook.ask(Release("s9999"))
    assert {SEMAPHORE} == vacant(hook, {SEMAPHORE: 10_000})


def test_a_closed_semaphore_is_never_vacant(hook):
    hook.acquire("a")

    assert set() == vacant(hook, {SEMAPHORE: 0, "batch/unknown": 0})


# survey: what people and metrics are told -----------------------------------------------------------------

LARGE = "batch/large"


def slots_of(record: Any) -> list[int]:
    return sorted(record.leases)


def survey(hook: Hook, semaphores: Sequence[str], start: int = 0) -> Any:
    return hook.ask(Survey(semaphores, start))


def test_a_survey_tells_of_each_record_what_a_read_does(hook):
    hook.acquire("a", 3, slot=0, life_ms=30_000, holder="A")
    hook.acquire("b", 3, slot=2, holder="B")
    hook.admin.delete("reservation:b")

    record, unknown = survey(hook, [SEMAPHORE, "batch/unknown"]).records

    assert Unknown() == unknown
    read = hook.ask(Read(SEMAPHORE))
    assert (read.length, read.longest_ms) == (record.length, record.longest_ms)
    assert {0: ("a", "A"), 2: ("b", "B")} == {at: (each.token, each.holder) for at, each in record.leases.items()}
    assert 29_000 < record.leases[0].left_ms <= 30_000 < record.leases[2].left_ms
    assert 29_000 < record.leases[0].unclaimed_ms <= 30_000
    assert record.leases[2].unclaimed_ms < 1


def test_a_survey_leaves_out_dead_leases_and_says_no_more_than_the_longest_life(hook):
    for slot, token in enumerate("abc"):
        hook.acquire(token, 3, slot=slot)
    hook.ask(Release("a"))
    hook.admin.pexpire("lease:b", DAY_MS)
    hook.admin.persist("lease:c")

    (record,) = survey(hook, [SEMAPHORE]).records

    assert {1: LIFE_MS, 2: LIFE_MS} == {slot: lease.left_ms for slot, lease in record.leases.items()}


def test_a_survey_of_a_record_without_leases_is_a_record(hook):
    hook.acquire("a", 3)
    hook.ask(Release("a"))

    page = survey(hook, [SEMAPHORE, SEMAPHORE])

    assert Page((Record(3, LIFE_MS, {}),) * 2, None) == page


@pytest.mark.parametrize(
    ("slots", "start", "first", "next_slot"),
    [
        (999, 0, range(999), None),
        (1000, 0, range(1000), None),
        (1001, 0, range(1000), 1000),
        (2500, 1000, range(1000, 2000), 2000),
        (2500, 2000, range(2000, 2500), None),
        (2500, 9999, range(0), None),
    ],
)
def test_a_survey_looks_at_a_thousand_slots_and_says_where_it_goes_on(hook, slots, start, first, next_slot):
    hook.fill(range(slots))

    page = survey(hook, [SEMAPHORE], start)

    assert list(first) == slots_of(page.records[0])
    assert next_slot == page.next_slot


def test_a_survey_leaves_semaphores_for_the_next_when_the_slots_are_used_up(hook):
    """What the start says holds for the first alone."""
    hook.fill(range(600))
    page = survey(hook, [SEMAPHORE, SEMAPHORE, SEMAPHORE], 100)

    assert [500, 500] == [len(record.leases) for record in page.records]
    assert 500 == page.next_slot
    assert list(range(500)) == slots_of(page.records[1])


def test_a_survey_goes_on_to_the_next_semaphore_only_with_slots_left(hook):
    hook.fill(range(1000))

    page = survey(hook, [SEMAPHORE, SEMAPHORE])

    assert [1000] == [len(record.leases) for record in page.records]
    assert page.next_slot is None


def test_records_alone_are_listed_and_none_is_left_out(hook):
    expected = {f"batch/a{number}.x/y" for number in range(2500)}
    with hook.admin.pipeline() as batch:
        for semaphore in expected:
            batch.hset(f"slots:{semaphore}", "length", "1")
        batch.set("slots:batch/no-hash", "")
        batch.hset("blue:slots:batch/other", "length", "1")
        batch.set("lease:slots", "")
        batch.execute()

    found: set[str] = set()
    names = hook.ask(ListNames(0))
    found.update(names.semaphores)
    while names.cursor:
        names = hook.ask(ListNames(names.cursor))
        found.update(names.semaphores)

    assert expected == found


def test_leases_that_end_by_themselves_are_counted_and_others_are_not(hook):
    before = hook.ask(AskVitals()).expired_keys
    hook.acquire("a", 3, life_ms=1)
    hook.acquire("b", 3)
    hook.ask(Release("b"))

    # The lease and the reservation; a node sweeps a few times a second.
    wait_for(lambda: before + 2 == hook.ask(AskVitals()).expired_keys, "both keys to be counted")


# The rights of the hook's user --------------------------------------------------------------------------

LINE = next(line for line in ACL.splitlines() if line.startswith(f"user {HOOK_USER} "))
RIGHTS = sorted(set(re.findall(r"\+(\S+)", LINE)) - {"ping"})  # ping is for people who look whether it can log in
FAMILIES = re.findall(r"~(\S+)", LINE)


def everything(node: RedisNode) -> None:
    """All that the webhook ever asks of a node, over a new connection."""
    hook = Hook(node)
    try:
        assert Granted(4) == hook.acquire("a", 5, start=4)
        assert Taken() == hook.acquire("b", 5, slot=4)
        assert isinstance(hook.acquire("b", 1), Full)
        hook.admin.persist("lease:a")
        assert Granted(0) == hook.acquire("b", 2)
        assert hook.ask(Renew("a", 60_000))
        assert hook.ask(Release("a"))
        assert Granted(1) == hook.acquire("c", 2, start=1)
        assert is_recent(hook, token="c")
        hook.fill(range(40))
        assert 40 == hook.acquire("d", 40).held
        assert 40 == len(hook.ask(Read(SEMAPHORE)).leases)
        restored = Record(50, 90_000, {49: Lease("r", 30_000, 20_000, "R")})
        assert 1 == hook.ask(Restore(SEMAPHORE, True, restored))
        assert 1 == len(hook.ask(Survey([SEMAPHORE], 0)).records)
        assert Names(0, (SEMAPHORE,)) == hook.ask(ListNames(0))
        assert 0 < hook.ask(AskTime())
        assert 0 <= hook.ask(AskVitals()).expired_keys
        assert [b"appendonly", b"yes"] == hook.raw("CONFIG", "GET", "appendonly")
    finally:
        hook.close()


def test_the_rights_of_the_hook_are_enough(node, hook):
    everything(node)


@pytest.mark.parametrize("right", RIGHTS)
def test_every_right_of_the_hook_is_needed(node, hook, right):
    hook.admin.execute_command("ACL", "SETUSER", HOOK_USER, f"-{right}")
    try:
        with pytest.raises(redis.ResponseError, match="ermission"):
            everything(node)
    finally:
        hook.admin.execute_command("ACL", "SETUSER", HOOK_USER, f"+{right}")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_keys_is_needed(node, hook, family):
    others = [f"~{other}" for other in FAMILIES if other != family]
    hook.admin.execute_command("ACL", "SETUSER", HOOK_USER, "resetkeys", *others)
    try:
        with pytest.raises(redis.ResponseError, match="ermission"):
            everything(node)
    finally:
        hook.admin.execute_command("ACL", "SETUSER", HOOK_USER, "resetkeys", *(f"~{each}" for each in FAMILIES))
