"""The checks of a history: each is silent about a good one, and says what is wrong with a bad one."""

from dataclasses import replace

import pytest

from tests.faults.history import Disturbance, History, Pod, Step, Verdict, findings

LIFE = 10.0


def granted(token: str, at: float, *, length: int = 1) -> Verdict:
    return Verdict("webhook 0", "ns/key", length, at, at + 0.1, "granted", token)


def full(at: float, *, length: int = 1) -> Verdict:
    return Verdict("webhook 0", "ns/key", length, at, at + 0.1, "full")


def steps(
    kind: str, token: str, at: float, *, nodes: tuple[int, ...] = (0, 1, 2), done: bool | None = True
) -> list[Step]:
    """The same on several nodes, each in a hundredth of a second."""
    user = "webhook 0" if kind in ("grant", "restore") else "sidecar"
    return [Step(node, user, kind, token, at + 0.01, at + 0.02, done, LIFE, "ns/key") for node in nodes]


def pod(token: str, began: float, ended: float, **more: object) -> Pod:
    return replace(Pod(token, "ns/key", began, ended, ended, "ends", well=True), **more)  # type: ignore[arg-type]


def good() -> History:
    """Two pods one after the other, a refusal while the first runs, a failed try, a silent node, an outage."""
    return History(
        seed=0,
        verdicts=[
            granted("a", 0.0),
            full(15.0),
            granted("b", 30.0),
            Verdict("webhook 1", "ns/key", 1, 50.0, 51.0, "unavailable"),
            Verdict("webhook 1", "ns/key", 1, 70.0, 80.0, "silent"),
        ],
        steps=[
            *steps("grant", "a", 0.0),
            *steps("renew", "a", 8.0, nodes=(0, 1)),
            *steps("renew", "a", 8.0, nodes=(2,), done=None),
            *steps("restore", "a", 8.0, nodes=(2,), done=False),
            *steps("renew", "a", 16.0),
            *steps("release", "a", 20.0),
            *steps("grant", "failed", 29.0, nodes=(0,)),
            *steps("release", "failed", 29.1),
            *steps("grant", "b", 30.0),
        ],
        disturbances=[
            Disturbance("paused", 49.0, 52.0, nodes=(0,)),
            Disturbance("cut", 48.0, 49.0, nodes=(1,), whom=("webhook 1",)),
            Disturbance("worker killed", 69.0, 71.0, whom=("webhook 1",)),
        ],
        pods=[pod("a", 0.1, 20.0), pod("b", 30.1, 60.0, well=False, complaints=("the slot is lost",))],
        left={"0": ["slots:ns/key"], "1": ["slots:ns/key"], "2": ["slots:ns/key"]},
    )


def test_a_good_history_has_no_finding():
    assert [] == findings(good())


def test_a_history_is_the_same_after_it_was_saved(tmp_path):
    good().save(tmp_path / "history")
    assert good() == History.load(tmp_path / "history")


def two_at_once(history: History) -> None:
    history.verdicts.append(granted("c", 12.0))
    history.steps += steps("grant", "c", 12.0, nodes=(1, 2)) + steps("release", "c", 25.0)


def two_at_once_after_a_node_was_emptied(history: History) -> None:
    """The holder has not heard of it, and others must not get in."""
    history.disturbances.append(Disturbance("emptied", 10.0, 10.5, nodes=(0,)))
    two_at_once(history)


def refused_though_released(history: History) -> None:
    history.verdicts.append(full(21.0))


def refused_though_the_lease_had_ended(history: History) -> None:
    history.verdicts.append(full(40.2))


def refused_by_a_lease_that_nobody_got(history: History) -> None:
    history.steps += steps("grant", "lost", 2.0, nodes=(0,))


def unavailable_with_one_node_away(history: History) -> None:
    history.disturbances[1] = replace(history.disturbances[1], whom=("webhook 0",))


def silent_without_a_reason(history: History) -> None:
    history.disturbances[2] = replace(history.disturbances[2], whom=("webhook 0",))


def an_error_for_an_answer(history: History) -> None:
    history.verdicts.append(replace(full(15.0), outcome="500"))


def released_by_a_webhook(history: History) -> None:
    history.steps.append(replace(steps("release", "a", 19.0)[0], user="webhook 1"))


def released_while_the_pod_runs(history: History) -> None:
    history.steps += steps("release", "a", 18.0)


def prolonged_by_a_repair(history: History) -> None:
    history.steps += steps("restore", "a", 16.5, nodes=(2,))


def lost_with_one_node_away(history: History) -> None:
    history.pods[0] = replace(history.pods[0], complaints=("the slot is lost",))


def a_lease_is_left(history: History) -> None:
    history.left["1"].append("lease:a")


def a_note_was_made(history: History) -> None:
    history.notes.append("not repaired")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (two_at_once, "2 holders at 12.1"),
        (two_at_once_after_a_node_was_emptied, "2 holders at 12.1"),
        (refused_though_released, "said to be full at 21.0"),
        (refused_though_the_lease_had_ended, "said to be full at 40.2"),
        (refused_by_a_lease_that_nobody_got, "for nobody"),
        (unavailable_with_one_node_away, "though only [0] were away"),
        (silent_without_a_reason, "though webhook 1 was well"),
        (an_error_for_an_answer, "though webhook 0 was well"),
        (released_by_a_webhook, "webhook 1 released the lease"),
        (released_while_the_pod_runs, "while the pod ran"),
        (prolonged_by_a_repair, "prolonged a lease"),
        (lost_with_one_node_away, "lost at 0.1"),
        (a_lease_is_left, "left after quiet: ['lease:a']"),
        (a_note_was_made, "not repaired"),
    ],
)
def test_what_breaks_a_promise_is_found(spoil, said):
    history = good()
    spoil(history)

    found = findings(history)
    assert any(said in finding for finding in found), found


def test_a_refusal_is_right_while_a_node_that_was_silent_may_hold_the_lease():
    """Its answer to the last renewal was never seen, and no release has reached it."""
    history = good()
    history.steps = [step for step in history.steps if not (step.kind == "release" and step.node == 2)]
    history.verdicts.append(full(25.0))
    assert [] == [finding for finding in findings(history) if "said to be full" in finding]


def test_a_clock_that_was_set_back_wins_a_lease_no_more_than_one_life_from_the_next_look():
    history = good()
    history.disturbances.append(Disturbance("clock", 19.0, 19.1, nodes=(1,), stretches=True))
    history.steps = [step for step in history.steps if step.token == "a" and step.kind != "release"]
    history.verdicts = [verdict for verdict in history.verdicts if verdict.token != "b"]
    history.verdicts += [full(27.0), full(36.0)]
    history.steps += steps("full", "x", 24.0, nodes=(0, 2)) + steps("full", "x", 27.0, nodes=(1,), done=False)
    assert [] == [finding for finding in findings(history) if "said to be full" in finding]

    history.verdicts.append(full(37.5))
    assert any("said to be full at 37.5" in finding for finding in findings(history))
