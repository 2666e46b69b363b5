"""What the commands say of what they were told; the commands themselves are run in tests/process."""

import json
from pathlib import Path

import click
import pytest

from app.admission.annotations import SlotRequest, WhenFull, WhenUnavailable
from app.admission.holder import describe
from app.admission.review import Reason
from app.cli.desk import Wrong, parse_semaphore
from app.cli.foresight import caveats, foresee
from app.cli.held import Held, headline, held_in, semaphore_cells, slots_table, summary, unreadable
from app.cli.output import Cell, counted, duration, printable, table
from app.cli.release import log_to_container, parse_target
from app.logs import shortened
from app.semaphore.model import Lease
from app.semaphore.survey import Overview, Slot, State

NOW = 1_000_000.0
TOKEN = "0123456789abcdef" * 2


def slot(number: int = 0, *, left_ms: int = 50_000, unclaimed_ms: int = 0, nodes: int = 3, **holder: object) -> Slot:
    told = {"owner": "Job/nightly", "pod": "nightly-*", "since": int(NOW) - 90, "expiration": 60, **holder}
    return Slot(number, Lease(TOKEN, left_ms, unclaimed_ms, json.dumps(told)), frozenset(range(nodes)))


HOLDER = slot().lease.holder


def state(*held: Slot, length: int = 3, unconfirmed: tuple[Slot, ...] = (), records: int = 3) -> State:
    return State("batch/db", length, held, unconfirmed, records, {})


def overview_of(*states: State, unreadable: tuple[str, ...] = (), unheard: int = 0) -> Overview:
    return Overview(states, unreadable, {}, dict.fromkeys(range(unheard), "Connection refused"))


def asking(
    length: int,
    when_unavailable: WhenUnavailable = WhenUnavailable.DENY,
    when_full: WhenFull = WhenFull.DENY,
) -> SlotRequest:
    return SlotRequest("db", length, 60, when_unavailable, when_full)


# How things look ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "seconds"),
    [("0s", -5), ("0s", 0.9), ("59s", 59), ("1m0s", 60), ("4m59s", 299.9), ("1h0m", 3600), ("2d1h", 176_461)],
)
def test_a_duration_is_its_two_greatest_units(expected, seconds):
    assert expected == duration(seconds)


def test_columns_are_as_wide_as_their_widest_text_whatever_its_colour():
    lines = table(("A", "B"), [("long text", Cell("x", "red")), ("-", Cell("yy"))]).splitlines()

    assert ["A          B", "long text  x", "-          yy"] == [click.unstyle(line) for line in lines]
    assert click.style("x", fg="red") in lines[1]


def test_nothing_that_moves_a_cursor_or_turns_the_text_gets_to_the_terminal():
    assert "a?[2Jb??" == printable("a\x1b[2Jb\n\u202e")
    assert "\x1b" not in table(("A",), [("\x1b[2J",)])


def test_one_is_not_counted_as_many():
    assert ["0 slots", "1 slot", "2 slots"] == [counted(number, "slot") for number in range(3)]


# Who holds what -------------------------------------------------------------------------------------------


def test_a_slot_is_told_with_its_holder_and_without_its_token():
    held = Held("batch/db", slot(2), True, 3, NOW)

    assert {
        "semaphore": "batch/db",
        "slot": 2,
        "owner": "Job/nightly",
        "pod": "nightly-*",
        "since_timestamp_seconds": 999_910,
        "age_seconds": 90.0,
        "left_seconds": 50.0,
        "status": "running",
        "confirmed": True,
        "nodes": 3,
        "token_hash": shortened(TOKEN),
    } == held.fields()
    assert TOKEN not in slots_table([held], with_semaphore=True)
    assert f"2     Job/nightly  nightly-*  1m30s ago  50s   running  3 of 3  {shortened(TOKEN)}" in click.unstyle(
        slots_table([held], with_semaphore=False)
    )


def test_a_holder_of_whom_nothing_is_known_is_told_as_such():
    nobody = Slot(0, Lease(TOKEN, 1000, 0, "no JSON"), frozenset({0, 1}))
    cells = [cell.text if isinstance(cell, Cell) else cell for cell in Held("batch/db", nobody, True, 3, NOW).cells()]

    assert ["0", "-", "-", "-", "1s", "running", "2 of 3", shortened(TOKEN)] == cells


def test_slots_that_no_majority_knows_are_listed_and_marked():
    found = held_in(state(slot(1), unconfirmed=(slot(0, nodes=1, unclaimed_ms=5),)), 3, NOW)

    assert [(0, False), (1, True)] == [(each.slot.number, each.is_confirmed) for each in found]
    assert "reserved, unconfirmed" in slots_table(found, with_semaphore=False)


def test_a_semaphore_in_numbers_bears_the_names_of_its_metrics():
    found = state(
        slot(0, unclaimed_ms=5, since=int(NOW) - 20),
        slot(1, unclaimed_ms=5, since=int(NOW) - 40),
        slot(2, left_ms=29_999),
        unconfirmed=(slot(3, nodes=1),),
    )

    assert {
        "semaphore": "batch/db",
        "length": 3,
        "held": 3,
        "reserved": 2,
        "overdue": 1,
        "unconfirmed": 1,
        "oldest_reservation_age_seconds": 40.0,
        "state": "full",
        "records": 3,
    } == summary(found, NOW)
    assert "batch/db: 3 of 3 slots held, 1 unconfirmed" == headline(found)


def test_a_semaphore_has_a_free_slot_as_long_as_fewer_are_held_than_its_length():
    assert "free" == summary(state(slot(0), slot(1)), NOW)["state"]
    assert "full" == summary(state(slot(0), slot(1), length=1), NOW)["state"]


def test_of_a_semaphore_that_cannot_be_read_no_number_is_told():
    found = unreadable("batch/db")

    assert set(summary(state(), NOW)) == set(found)
    assert {None} == set(found.values()) - {"batch/db", "unreadable"}
    assert ["batch/db", "-", "-", "-", "-", "-", "-", Cell("unreadable", "red"), "-"] == semaphore_cells(found, 3)


# What is asked for ----------------------------------------------------------------------------------------


def test_a_slot_is_what_follows_the_last_slash():
    assert ("batch/db", 0) == parse_target("batch/db/0")
    assert ("batch/a/b/7", 12) == parse_target("batch/a/b/7/12")


def test_a_token_is_32_hex_digits():
    assert (None, None) == parse_target(TOKEN)


@pytest.mark.parametrize("text", ["", "batch/db", "batch/0", "batch/db/x", "batch/db/-1", TOKEN[1:], TOKEN.upper()])
def test_what_is_neither_a_slot_nor_a_token_is_refused(text):
    with pytest.raises(Wrong):
        parse_target(text)


@pytest.mark.parametrize("text", ["db", "Batch/db", "batch/", "/db", "batch/a b", "batch/\x1b[2J", "batch/db\n"])
def test_what_is_no_name_of_a_semaphore_is_refused(text):
    with pytest.raises(Wrong):
        parse_semaphore(text)


# What would become of a pod -------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [(), (state(slot(0), slot(1)),)])
def test_a_pod_gets_in_while_fewer_slots_are_held_than_its_own_length(states):
    verdict = foresee(asking(3), "batch/db", overview_of(*states), 3)

    assert verdict
    assert (True, Reason.GRANTED) == (verdict.allowed, verdict.reason)


def test_a_full_semaphore_is_told_in_the_words_of_a_denial():
    held = [slot(0), slot(1, unclaimed_ms=5)]
    verdict = foresee(asking(2), "batch/db", overview_of(state(*held, length=2)), 3)

    assert verdict
    assert (False, Reason.FULL) == (verdict.allowed, verdict.reason)
    holders = [each.lease.holder for each in held]
    assert f"semaphore batch/db is full: {describe(2, 2, holders, 1)}" == verdict.message


def test_slots_that_no_majority_knows_keep_nobody_out():
    found = overview_of(state(slot(0), unconfirmed=(slot(1, nodes=1),), length=2))
    verdict = foresee(asking(2), "batch/db", found, 3)

    assert verdict
    assert verdict.allowed
    assert ["1 slot more on some node"] == [note.partition(",")[0] for note in caveats(asking(2), found)]


@pytest.mark.parametrize(
    ("expected", "when_unavailable"),
    [
        ((False, Reason.UNAVAILABLE), WhenUnavailable.DENY),
        ((True, Reason.ADMITTED_WITHOUT_SLOT), WhenUnavailable.ADMIT),
    ],
)
@pytest.mark.parametrize("overview", [overview_of(unheard=2), overview_of(unreadable=("batch/db",), unheard=1)])
def test_without_a_majority_it_is_as_the_pod_says(expected, when_unavailable, overview):
    verdict = foresee(asking(3, when_unavailable), "batch/db", overview, 3)

    assert verdict
    assert expected == (verdict.allowed, verdict.reason)


def test_what_the_next_admission_mends_first_cannot_be_foreseen():
    assert foresee(asking(3), "batch/db", overview_of(unreadable=("batch/db",)), 3) is None


@pytest.mark.parametrize(
    ("overview", "told"),
    [
        (overview_of(), "0 of 3 slots held, so one is free: it is next if no older pod waits"),
        (
            overview_of(state(slot(0), slot(1))),
            "2 of 3 slots held by Job/nightly (2), so one is free: it is next if no older pod waits",
        ),
        (overview_of(state(slot(0), slot(1), slot(2, unclaimed_ms=5))), describe(3, 3, [HOLDER] * 3, 1)),
        (overview_of(unheard=2), "how many are held is not known, since fewer than 2 of 3 nodes answered"),
        (
            overview_of(unreadable=("batch/db",), unheard=1),
            "how many are held is not known, since fewer than 2 of 3 nodes know it",
        ),
        (
            overview_of(unreadable=("batch/db",)),
            "how many are held is not known, since fewer than 2 of 3 nodes know it",
        ),
    ],
    ids=["new", "free", "full", "no majority", "known to few", "known to few of all"],
)
def test_a_pod_that_waits_is_admitted_whatever_is_known_of_its_semaphore(overview, told):
    verdict = foresee(asking(3, when_full=WhenFull.WAIT), "batch/db", overview, 3)

    assert verdict
    assert (True, Reason.WAITING) == (verdict.allowed, verdict.reason)
    assert f"semaphore batch/db: waits for a slot; {told}" == verdict.message


@pytest.mark.parametrize("overview", [overview_of(state(slot(0))), overview_of(unheard=2)], ids=["held", "no majority"])
def test_a_pod_that_waits_for_a_closed_semaphore_is_told_so(overview):
    verdict = foresee(asking(0, when_full=WhenFull.WAIT), "batch/db", overview, 3)

    assert verdict
    assert "semaphore batch/db: waits for a slot; it is closed: its length is 0" == verdict.message


def test_another_length_than_that_of_the_last_pod_is_noted():
    assert [] == caveats(asking(3), overview_of(state()))
    assert ["it asks with length 4, the last pod that was admitted did with 3"] == [
        note.partition(":")[0] for note in caveats(asking(4), overview_of(state()))
    ]


# The log of the container ---------------------------------------------------------------------------------


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """As /proc, with a first process."""
    (tmp_path / "1" / "fd").mkdir(parents=True)
    (tmp_path / "1" / "fd" / "2").write_text("before\n")
    return tmp_path


def test_the_line_of_a_release_goes_to_the_log_of_gunicorn(proc: Path):
    (proc / "1" / "cmdline").write_bytes(b"/opt/venv/bin/python\0/opt/venv/bin/gunicorn\0")

    log_to_container("line", proc)

    assert "before\nline\n" == (proc / "1" / "fd" / "2").read_text()


def test_no_other_first_process_is_written_to(proc: Path):
    (proc / "1" / "cmdline").write_bytes(b"/sbin/init\0")

    log_to_container("line", proc)

    assert "before\n" == (proc / "1" / "fd" / "2").read_text()


def test_a_log_that_cannot_be_written_to_is_no_reason_to_fail(proc: Path):
    (proc / "1" / "cmdline").write_bytes(b"gunicorn")
    (proc / "1" / "fd" / "2").unlink()

    log_to_container("line", proc)
    log_to_container("line", proc / "nowhere")


def test_what_may_be_a_token_is_not_repeated():
    """An error ends in a bug report; and who has a token may end its lease."""
    for read in (parse_semaphore, parse_target):
        with pytest.raises(Wrong) as wrong:
            read("lease:" + "0123456789abcdef" * 2)
        assert "'lease:…'" in wrong.value.message
