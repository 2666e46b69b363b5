"""Who is let in, when, and before whom: real pods in an API server, real nodes, reconcilers and sidecars."""

import json
from collections import Counter
from random import Random

import pytest

from app.admission.annotations import GROUP
from app.reconciler.grants import MOST_IN_A_TURN
from tests.harness.control_plane import Namespace, paced
from tests.harness.reconciler import GATE, WAITED_TOO_LONG, direct_pod, gates, held, token_of, waiting_pod, waits
from tests.reconciler.site import Site, settled

FOREIGN_GATE = "kueue.x-k8s.io/admission"


def annotate(pods: Namespace, name: str, **values: str | None) -> None:
    """Change annotations of our group, with _ for -; None takes one away."""
    changed = {f"{GROUP}/{each.replace('_', '-')}": value for each, value in values.items()}
    pods.patch(name, {"metadata": {"annotations": changed}})


# The order ----------------------------------------------------------------------------------------------


def test_pods_are_let_in_by_age_and_never_more_than_the_length(site):
    queue = site.create_many(12, length=2)
    rng = Random(1)
    with site.watched(queue, 2):
        site.start()
        running = queue[:2]
        site.await_granted(*running)
        for name in running:
            site.run(name)
        for follower in queue[2:]:
            site.end(running.pop(rng.randrange(2)))
            running.append(follower)
            site.await_granted(*running)
            site.run(follower)

    assert set(running) == site.held()


def test_semaphores_do_not_wait_for_each_other(site):
    """The oldest of all pods waits for a full one."""
    site.start()
    site.create("first", key="full")
    site.await_granted("first")
    site.create("second", key="full")
    site.create("third", key="free")

    site.await_granted("first", "third")


def test_a_long_queue_does_not_keep_the_slots_of_other_semaphores_from_them(site):
    """They have their turn before all of it has been let in."""
    names = site.create_many(MOST_IN_A_TURN + 20, length=200)
    site.await_next_second()
    site.create("another", key="other")
    process = site.start()
    site.await_granted(*names, "another", seconds=60)

    order = [json.loads(line)["pod"] for line in process.lines if '"let in"' in line]
    assert order.index("another") < MOST_IN_A_TURN + 10


def test_who_is_admitted_without_waiting_counts_as_well(site):
    """Pods of both kinds share one semaphore, and one that is refused does not disturb those who wait."""
    taken = site.pods.create(direct_pod("taken"))
    site.start()
    site.create("waits")
    site.await_event("waits", "WaitingForSlot")
    site.await_granted("taken")
    with pytest.raises(AssertionError, match="1 of 1 slots held"):
        site.pods.create(direct_pod("refused"))

    site.pods.delete(taken["metadata"]["name"])
    site.await_granted("waits")
    assert {"waits"} == site.held()


def test_a_place_in_the_queue_is_told_and_then_the_slot(site):
    queue = site.create_many(3, length=1)
    site.start()
    site.await_granted(queue[0])

    semaphore = site.semaphore()
    for place in (1, 2):
        message = site.await_event(queue[place], "WaitingForSlot")
        assert message.startswith(f"waits for a slot of {semaphore}: place {place} of 2")
    granted = site.await_event(queue[0], "SlotGranted")
    assert granted.startswith(f"slot 0 of {semaphore}, after ")
    (event,) = site.pods.events(queue[0], "SlotGranted")
    assert ("Normal", "at-least-semaphore-pod-hook") == (event["type"], event["source"]["component"])
    assert "at-least-semaphore-pod-hook" == event["reportingComponent"]
    assert site.pods.pod(queue[0])["metadata"]["uid"] == event["involvedObject"]["uid"]


def test_a_pod_that_is_replaced_by_one_of_its_name_leaves_it_neither_place_nor_slot(site):
    """As a StatefulSet does; the new one is another pod."""
    queue = site.create_many(2)
    process = site.start()
    site.await_granted(queue[0])
    process.pause()
    before = site.token(queue[0])
    site.pods.delete(queue[0])
    site.await_next_second()
    after = token_of(site.create(queue[0]))
    process.resume()

    site.await_granted(queue[1])
    assert not site.held(queue[0])
    assert waits(site.pods.pod(queue[0]))
    site.await_nowhere(before)
    site.pods.delete(queue[1])
    site.await_granted(queue[0])
    assert {after} == held(site.nodes, [before, after])


# Gates --------------------------------------------------------------------------------------------------


def test_a_pod_that_others_hold_back_takes_no_slot_and_blocks_nobody(site):
    """Such as Kueue, which would wait for quota while the slot is idle."""
    pod = waiting_pod("held-back")
    pod["spec"]["schedulingGates"] = [{"name": FOREIGN_GATE}]
    assert {FOREIGN_GATE, GATE} == set(gates(site.pods.create(pod)))
    site.await_next_second()
    site.start()
    younger = [site.create(f"younger-{number}")["metadata"]["name"] for number in range(2)]
    paced(lambda: len(site.granted()) == 1, "one of the younger ones to be let in")
    (first,) = site.granted()
    (second,) = set(younger) - {first}

    assert {first} == site.held()
    assert {FOREIGN_GATE, GATE} == set(gates(site.pods.pod("held-back")))
    site.pods.patch("held-back", {"spec": {"schedulingGates": [{"name": GATE}]}})
    assert waits(site.pods.pod("held-back"))
    site.run(first)
    site.end(first)
    # It is the oldest, once nobody else holds it back.
    site.await_granted("held-back")
    site.pods.delete("held-back")
    site.await_granted(second)


def test_only_our_gate_is_lifted(site):
    pod = waiting_pod("held-back")
    pod["spec"]["schedulingGates"] = [{"name": FOREIGN_GATE}]
    site.pods.create(pod)
    site.start()
    site.await_turns()

    assert {FOREIGN_GATE, GATE} == set(gates(site.pods.pod("held-back")))
    assert "held-back" not in site.held()
    # Who lifts ours by hand says that the pod need not wait for it.
    site.pods.patch("held-back", {"spec": {"schedulingGates": [{"name": GATE}]}})
    paced(lambda: gates(site.pods.pod("held-back")) == [], "the gate to be lifted")


# Two reconcilers ------------------------------------------------------------------------------------------


def test_two_side_by_side_give_each_pod_one_slot_and_do_not_fight(site):
    keys = {"one": 1, "two": 2, "three": 3}
    queues = {key: site.create_many(8, key, length) for key, length in keys.items()}
    with site.watched(queues["three"], 3, "three"), site.watched(queues["two"], 2, "two"):
        running = [site.start() for _ in range(2)]
        for at in range(8):
            for key, length in keys.items():
                name, queue = queues[key][at], queues[key]
                site.await_let_in(name)
                in_order = [each for each in queue if not waits(site.pods.pod(each))]
                assert in_order == queue[: len(in_order)]
                if at >= length - 1:
                    run_and_end(site, queue[at - length + 1])
    every = [name for queue in queues.values() for name in queue]

    def granted() -> Counter[str]:
        return Counter(name for name in every for _ in site.pods.events(name, "SlotGranted"))

    paced(lambda: set(every) == set(granted()), "all to be told of their slots")
    assert dict.fromkeys(every, 1) == granted()
    assert len(every) == sum(process.samples("slot_wait_seconds_count")[()] for process in running)


def run_and_end(site: Site, name: str) -> None:
    """Its slot is given back, and the pod stays, as that of a Job that is done."""
    process = site.run(name)
    process.terminate()
    site.say(name, "Succeeded", sidecar="terminated", app="terminated")


def test_nothing_is_written_once_all_is_said(site):
    """Renewals go on, on the nodes; what pods and events say does not change, however often reconcilers look."""
    queue = site.create_many(4, length=2)
    for _ in range(2):
        site.start()
    site.await_granted(*queue[:2])
    for name in queue[2:]:
        site.await_event(name, "WaitingForSlot")
    site.await_turns(2)
    before = settled(site.pods)
    site.await_turns(5)
    after = settled(site.pods)

    for what, values in before.items():
        assert values == {name: after[what][name] for name in values}


# What changes while pods wait ---------------------------------------------------------------------------


def test_who_waits_for_longer_than_it_wants_is_out_of_the_queue_and_can_come_back(site):
    site.start()
    site.create("holder")
    site.await_granted("holder")
    site.create("impatient", max_wait="1")
    site.create("patient")

    message = site.await_event("impatient", "WaitedTooLong")
    assert "1" in message
    paced(lambda: WAITED_TOO_LONG in site.pods.pod("impatient")["metadata"]["labels"], "the label")
    assert "Warning" == site.pods.events("impatient", "WaitedTooLong")[0]["type"]
    assert waits(site.pods.pod("impatient"))
    site.pods.delete("holder")
    site.await_granted("patient")
    assert {"patient"} == site.held()

    annotate(site.pods, "impatient", max_wait="2592000")
    paced(lambda: WAITED_TOO_LONG not in site.pods.pod("impatient")["metadata"]["labels"], "the label to go")
    site.pods.delete("patient")
    site.await_granted("impatient")


def test_who_comes_back_gets_its_old_place(site):
    site.start()
    site.create("holder")
    site.await_granted("holder")
    site.create("impatient", max_wait="1")
    site.await_event("impatient", "WaitedTooLong")
    site.create("younger")
    site.await_event("younger", "WaitingForSlot")
    annotate(site.pods, "impatient", max_wait=None)
    paced(lambda: WAITED_TOO_LONG not in site.pods.pod("impatient")["metadata"]["labels"], "the label to go")

    site.pods.delete("holder")
    site.await_granted("impatient")
    site.pods.delete("impatient")
    site.await_granted("younger")


def test_a_pod_that_has_its_slot_is_not_asked_how_long_it_wanted_to_wait(site):
    site.start()
    site.create("quick", max_wait="1")
    site.await_granted("quick")
    site.create("slow", max_wait="1")
    site.await_event("slow", "WaitedTooLong")

    assert [] == site.pods.events("quick", "WaitedTooLong")
    assert WAITED_TOO_LONG not in site.pods.pod("quick")["metadata"]["labels"]


def test_a_length_that_is_changed_takes_effect(site):
    queue = site.create_many(3, length=1)
    site.start()
    site.await_granted(queue[0])

    annotate(site.pods, queue[1], length="2")
    site.await_granted(*queue[:2])
    annotate(site.pods, queue[2], length="3")
    site.await_granted(*queue)


def test_a_closed_semaphore_lets_nobody_in_until_it_is_opened(site):
    site.start()
    site.create("waits", length=0)
    site.await_turns()
    assert waits(site.pods.pod("waits"))
    assert set() == site.held("waits")

    annotate(site.pods, "waits", length="1")
    site.await_let_in("waits")


def test_a_key_that_is_changed_is_not_followed(site):
    """The sidecar names another semaphore, and nobody can change that in a pod that is there."""
    site.start()
    site.create("holder")
    site.await_granted("holder")
    site.create("moved")
    site.create("next")
    annotate(site.pods, "moved", key="other")

    assert "key" in site.await_event("moved", "CannotWait")
    assert "Warning" == site.pods.events("moved", "CannotWait")[0]["type"]
    site.pods.delete("holder")
    site.await_granted("next")
    site.await_turns()
    assert waits(site.pods.pod("moved"))
    assert {"next"} == site.held("moved", "next", "holder")


@pytest.mark.parametrize(
    "changed",
    [{"length": "many"}, {"length": None}, {"expiration": "1"}, {"max_wait": "never"}, {"when_unavailable": "admit"}],
    ids=lambda changed: "-".join(changed),
)
def test_annotations_that_are_broken_meanwhile_hold_up_nobody_else(site, changed):
    site.start()
    site.create("holder")
    site.await_granted("holder")
    site.create("broken")
    site.create("next")
    annotate(site.pods, "broken", **changed)
    site.await_event("broken", "CannotWait")

    site.pods.delete("holder")
    site.await_granted("next")
