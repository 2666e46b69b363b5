"""What is kept about a holder, and how it is told to those who are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission.holder import Holder, describe, holder_of, read_holder

REPLICASET = {"kind": "ReplicaSet", "name": "reports-7d9c", "controller": True}
CLUSTER = {"kind": "Cluster", "name": "east"}


def pod(**metadata: object) -> dict[str, object]:
    return {"metadata": metadata}


def holders(owner: str, slots: int) -> list[str]:
    return [json.dumps({"owner": owner, "pod": f"{number}"}) for number in range(slots)]


def test_a_holder_is_compact_json():
    expected = '{"owner":"ReplicaSet/reports-7d9c","pod":"reports-7d9c-x2x4z","since":1700000000,"expiration":60}'
    assert expected == holder_of(pod(name="reports-7d9c-x2x4z", ownerReferences=[REPLICASET]), 1_700_000_000, 60)


def test_the_controller_comes_before_other_owners():
    assert (
        "ReplicaSet/reports-7d9c" == json.loads(holder_of(pod(ownerReferences=[CLUSTER, REPLICASET]), 0, 60))["owner"]
    )
    assert "Cluster/east" == json.loads(holder_of(pod(ownerReferences=[CLUSTER]), 0, 60))["owner"]


def test_a_pod_that_has_no_name_yet_is_known_by_its_prefix():
    """The API server fills in the name of a pod with generateName only after admission."""
    assert '{"pod":"nightly-*","since":0,"expiration":60}' == holder_of(pod(generateName="nightly-"), 0, 60)


@pytest.mark.parametrize("nameless", [{}, {"metadata": None}, {"metadata": {"ownerReferences": None}}], ids=str)
def test_a_pod_of_which_nothing_is_known_is_a_holder_too(nameless):
    assert '{"pod":"*","since":0,"expiration":60}' == holder_of(nameless, 0, 60)


def test_long_texts_are_cut_to_the_longest_name_of_kubernetes():
    """Names have not been validated yet when the holder is written down."""
    found = json.loads(holder_of(pod(name="p" * 1000, ownerReferences=[{"kind": "K", "name": "o" * 1000}]), 0, 60))
    assert ("p" * 253, "K/" + "o" * 251) == (found["pod"], found["owner"])


def test_holders_are_counted_by_owner_most_slots_first_then_by_name():
    expected = "4 of 4 slots held by ReplicaSet/reports-7d9c (2), Job/a (1), Job/b (1)"
    texts = [*holders("Job/b", 1), *holders("ReplicaSet/reports-7d9c", 2), *holders("Job/a", 1)]
    assert expected == describe(4, 4, texts, 0)


def test_a_pod_without_owner_is_told_by_its_name():
    assert "1 of 1 slots held by Pod/shell (1)" == describe(1, 1, [holder_of(pod(name="shell"), 0, 60)], 0)


def test_owners_past_the_fifth_are_only_counted():
    texts = [text for name in "abcdefg" for text in holders(f"Job/{name}", 2)]
    expected = "14 of 14 slots held by Job/a (2), Job/b (2), Job/c (2), Job/d (2), Job/e (2) and 4 more"
    assert expected == describe(14, 14, texts, 0)


def test_slots_of_which_no_holder_is_known_are_more():
    """Only a sample of a long semaphore is read."""
    assert "500 of 500 slots held by Job/a (2) and 498 more" == describe(500, 500, holders("Job/a", 2), 0)


def test_without_any_known_holder_only_the_numbers_are_told():
    assert "3 of 3 slots held" == describe(3, 3, [], 0)


def test_more_slots_may_be_held_than_the_length_after_it_was_reduced():
    """Or where another pod asks for another length of the same semaphore."""
    assert "2 of 1 slots held (under a greater length) by Job/a (2)" == describe(2, 1, holders("Job/a", 2), 0)


@pytest.mark.parametrize(
    ("held", "seen", "unstarted", "told"),
    [
        (2, 2, 0, "2 of 2 slots held by Job/a (2)"),
        (2, 2, 1, "2 of 2 slots held by Job/a (2); 1 of them not started"),
        (2, 2, 2, "2 of 2 slots held by Job/a (2); none of them has started"),
        (30, 20, 3, "30 of 30 slots held by Job/a (20) and 10 more; 3 of the first 20 not started"),
        (30, 20, 20, "30 of 30 slots held by Job/a (20) and 10 more; 20 of the first 20 not started"),
    ],
)
def test_holders_that_have_not_started_are_told_of(held, seen, unstarted, told):
    """They may wait for a machine, or somebody else has refused them after us."""
    assert told == describe(held, held, holders("Job/a", seen), unstarted)


BROKEN = ["", "{", "[]", "1", "null", "{}", '{"owner":1,"pod":[1]}', '{"owner":""}', "[" * 100_000, "9" * 10_000]


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_what_we_did_not_write_counts_as_unknown(text):
    assert "1 of 1 slots held by unknown (1)" == describe(1, 1, [text], 0)


def test_texts_that_we_did_not_write_are_cut_too():
    phrase = describe(1, 1, [json.dumps({"owner": "o" * 10_000})], 0)
    assert f"1 of 1 slots held by {'o' * 253} (1)" == phrase


def test_what_would_steer_a_terminal_is_not_let_through():
    text = json.dumps({"owner": "Job/\x1b[2J\u202ea\n"})
    assert "1 of 1 slots held by Job/?[2J?a? (1)" == describe(1, 1, [text], 0)


@given(st.lists(st.text() | st.builds(lambda owner: json.dumps({"owner": owner}), st.text(max_size=1000)), max_size=20))
def test_whatever_the_holders_are_the_phrase_is_printable_and_counts_every_slot(texts):
    phrase = describe(len(texts), 3, texts, len(texts) // 2)
    assert phrase.isprintable()
    assert len(phrase) < 1500


def test_a_holder_is_read_back():
    text = holder_of(pod(name="x", ownerReferences=[REPLICASET]), 1_700_000_000, 60)

    assert Holder("ReplicaSet/reports-7d9c", "x", 1_700_000_000, 60) == read_holder(text)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"owner":1,"pod":[],"since":"x","expiration":true}', "[" * 9999]
)
def test_of_a_text_that_is_no_holder_nothing_is_known(text):
    assert Holder(None, None, None, None) == read_holder(text)
    assert "unknown" == read_holder(text).name
