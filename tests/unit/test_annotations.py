"""What a pod may write into our annotations, and what it is told otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission.annotations import (
    GROUP,
    InvalidAnnotation,
    SlotRequest,
    WhenFull,
    WhenUnavailable,
    group,
    parse_slot_request,
)

MINIMUM = {"at-least-semaphore-pod": "true", "key": "reports-db", "length": "3", "expiration": "60"}
NAMES = [*MINIMUM, "when-unavailable", "when-full", "max-wait", "lenght"]


def annotations(**changed: str) -> dict[str, str]:
    """The least that asks for a slot, with some annotations changed; names with _ for -."""
    changed = {name.replace("_", "-"): text for name, text in changed.items()}
    return {f"{GROUP}/{name}": text for name, text in {**MINIMUM, **changed}.items()}


def problem_with(found: dict[str, str]) -> str:
    with pytest.raises(InvalidAnnotation) as error:
        parse_slot_request(found, GROUP)
    return str(error.value)


def test_a_pod_asks_with_key_length_and_expiration():
    """Without a majority of nodes it is denied, unless it says otherwise."""
    expected = SlotRequest("reports-db", 3, 60, WhenUnavailable.DENY, WhenFull.DENY, None)
    assert expected == parse_slot_request(annotations(), GROUP)


def test_a_pod_may_ask_to_be_admitted_without_a_majority():
    request = parse_slot_request(annotations(when_unavailable="admit"), GROUP)
    assert request is not None
    assert WhenUnavailable.ADMIT is request.when_unavailable


@pytest.mark.parametrize(("more", "seconds"), [({}, None), ({"max_wait": "600"}, 600)], ids=["without end", "for long"])
def test_a_pod_may_ask_to_wait(more, seconds):
    request = parse_slot_request(annotations(when_full="wait", **more), GROUP)
    assert request is not None
    assert (WhenFull.WAIT, seconds) == (request.when_full, request.max_wait_seconds)


@pytest.mark.parametrize("when_full", [{}, {"when_full": "deny"}], ids=["by default", "explicitly"])
def test_how_long_a_pod_waits_that_does_not_wait_is_refused(when_full):
    """It was meant to have an effect."""
    expected = f"{GROUP}/max-wait is '600', accepted only with {GROUP}/when-full: wait"
    assert expected == problem_with(annotations(max_wait="600", **when_full))


def test_a_pod_that_waits_cannot_ask_to_be_admitted_without_a_majority():
    assert problem_with(annotations(when_full="wait", when_unavailable="admit")).startswith(
        f"{GROUP}/when-unavailable is 'admit', accepted with {GROUP}/when-full: wait is only 'deny', since"
    )


def test_of_annotations_that_do_not_go_together_every_problem_is_told():
    accepted = ["is whole seconds from 1 to 2592000", f"only with {GROUP}/when-full: wait"]
    assert [f"{GROUP}/max-wait is '0', accepted {each}" for each in accepted] == problem_with(
        annotations(max_wait="0")
    ).split("; ")
    assert f"{GROUP}/when-full is 'never', accepted is 'deny' or 'wait'" == problem_with(
        annotations(when_full="never", max_wait="60", when_unavailable="admit")
    )


@pytest.mark.parametrize("marker", [{}, {f"{GROUP}/at-least-semaphore-pod": "false"}], ids=["absent", "false"])
def test_without_the_marker_nothing_is_asked_and_nothing_else_is_judged(marker):
    """Other annotations of ours may stay on a pod that does not ask."""
    others = {f"{GROUP}/length": "many", f"{GROUP}/lenght": "3", "other/annotation": "x"}
    assert parse_slot_request({**others, **marker}, GROUP) is None


ACCEPTED = [
    *(("key", text) for text in ("a", "A.b_c-d/e0", "/", "k" * 253)),
    *(("length", text) for text in ("0", "1", "10000")),
    *(("expiration", text) for text in ("5", "86400")),
    *(("when-full", text) for text in ("deny", "wait")),
    *(("max-wait", text) for text in ("1", "2592000")),
]


@pytest.mark.parametrize(("name", "text"), ACCEPTED)
def test_values_up_to_the_limits_are_accepted(name, text):
    waits = {"when-full": "wait"} if name == "max-wait" else {}
    assert parse_slot_request(annotations(**waits, **{name: text}), GROUP) is not None


WHOLE_NUMBERS = ["", " 1", "+6", "-6", "006", "6.0", "0x6", "1_0", "٣", "3\n", "six", "9" * 100_000]
REFUSED = [
    *(("at-least-semaphore-pod", text) for text in ("", "True", "yes", "1", "true ")),
    *(("key", text) for text in ("", "a b", "a:b", "a\n", "schlüssel", "{a}", "k" * 254)),
    *(("length", text) for text in (*WHOLE_NUMBERS, "10001")),
    *(("expiration", text) for text in (*WHOLE_NUMBERS, "0", "4", "86401", "60s")),
    *(("when-unavailable", text) for text in ("", "allow", "Deny")),
    *(("when-full", text) for text in ("", "Wait", "admit", "wait ")),
    *(("max-wait", text) for text in (*WHOLE_NUMBERS, "0", "2592001", "1h")),
]


@pytest.mark.parametrize(("name", "text"), REFUSED, ids=lambda text: ascii(text[:20]))
def test_other_values_are_refused_and_the_annotation_is_named_in_full(name, text):
    waits = {"when-full": "wait"} if name == "max-wait" else {}
    message = problem_with(annotations(**waits, **{name: text}))
    assert message.startswith(f"{GROUP}/{name} is '")
    assert message.isprintable()
    assert len(message) < 250


def test_each_problem_says_what_is_accepted():
    expected = f"{GROUP}/length is '-1', accepted is a whole number from 0 to 10000"
    assert expected == problem_with(annotations(length="-1"))


@pytest.mark.parametrize("name", ["key", "length", "expiration"])
def test_a_missing_annotation_is_explained(name):
    found = annotations()
    del found[f"{GROUP}/{name}"]
    assert problem_with(found).startswith(f"{GROUP}/{name} is missing (")


def test_a_misspelt_annotation_is_not_ignored():
    """Who writes when-unavailible would otherwise learn in the outage that it has no effect."""
    expected = (
        f"{GROUP}/when-unavailible is 'admit', but known are only "
        "at-least-semaphore-pod, key, length, expiration, when-unavailable, when-full, max-wait"
    )
    assert expected == problem_with(annotations(when_unavailible="admit"))


def test_all_problems_of_a_pod_are_told_at_once():
    problems = problem_with(annotations(key="a b", length="-1", expiration="1", more="x")).split("; ")
    assert ["key", "length", "expiration", "more"] == [
        problem.split(" ")[0].removeprefix(f"{GROUP}/") for problem in problems
    ]


def test_any_number_of_unknown_annotations_gives_a_message_that_can_be_read():
    """Kubernetes has not looked at names and sizes yet when it asks a mutating webhook."""
    message = problem_with(annotations(**{f"x{number:04}\n{'y' * 1000}": "z" * 1000 for number in range(1000)}))
    assert message.endswith("; and 995 more unknown annotations")
    assert message.isprintable()
    assert len(message) < 2000


def test_the_longest_variant_leaves_a_misspelt_name_whole():
    found = {f"{group('v' * 20)}/at-least-semaphore-pod": "true", f"{group('v' * 20)}/when-unavailible": "admit"}
    with pytest.raises(InvalidAnnotation, match=f"{group('v' * 20)}/when-unavailible is 'admit'"):
        parse_slot_request(found, group("v" * 20))


def test_installations_with_different_variants_do_not_read_each_others_annotations():
    assert f"blue.{GROUP}" == group("blue")
    assert parse_slot_request(annotations(), group("blue")) is None


TEXT = st.sampled_from(["true", "3", "60", "admit", "wait"]) | st.text() | st.from_regex(r"\d+")
OURS = st.sampled_from([f"{GROUP}/{name}" for name in NAMES])


@given(st.dictionaries(OURS | st.text(), TEXT), st.booleans())
def test_any_annotations_are_either_invalid_or_understood(found, asks):
    """Nothing but InvalidAnnotation is raised, and what is understood is within the limits."""
    if asks:
        found = {**annotations(), **found}
    request, message = None, ""
    try:
        request = parse_slot_request(found, GROUP)
    except InvalidAnnotation as error:
        message = str(error)
    assert message.isprintable()
    if request is not None:
        assert 0 <= request.length <= 10_000
        assert 5 <= request.expiration_seconds <= 86_400
        assert 1 <= len(request.key) <= 253
        assert request.max_wait_seconds is None or 1 <= request.max_wait_seconds <= 2_592_000
        assert request.max_wait_seconds is None or request.when_full is WhenFull.WAIT
        assert request.when_unavailable is WhenUnavailable.DENY or request.when_full is WhenFull.DENY
