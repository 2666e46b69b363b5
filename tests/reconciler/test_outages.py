"""What pods that wait see of reconcilers, nodes and API servers that go: that they wait a little longer."""

import signal

import pytest

from tests.harness.control_plane import RECONCILER, paced
from tests.harness.nodes import RedisNode, failing
from tests.reconciler.site import Site
from tests.reconciler.wire import wire

FAULTS = {"down": (RedisNode.kill, RedisNode.start), "paused": (RedisNode.pause, RedisNode.resume)}


def let_in(site: Site, queue: list[str], *, at: int, upto: int, length: int) -> None:
    """From here in the queue to there, each as soon as the pod that was let in so long before it is gone."""
    for number in range(at, upto):
        if number >= length:
            site.pods.delete(queue[number - length])
        site.await_let_in(queue[number], seconds=60)


# Reconcilers --------------------------------------------------------------------------------------------


def test_one_of_two_is_killed_and_nobody_waits_for_it(site):
    queue = site.create_many(8, length=2)
    with site.watched(queue, 2):
        first, _second = site.start(), site.start()
        let_in(site, queue, at=0, upto=4, length=2)
        first.send(signal.SIGKILL)
        let_in(site, queue, at=4, upto=8, length=2)


def test_one_of_two_sleeps_and_does_no_harm_when_it_wakes(site):
    """What it knew has changed meanwhile: pods are gone, and slots have gone to others."""
    queue = site.create_many(8, length=2)
    with site.watched(queue, 2):
        first, _second = site.start(), site.start()
        let_in(site, queue, at=0, upto=3, length=2)
        first.pause()
        let_in(site, queue, at=3, upto=7, length=2)
        first.resume()
        paced(first.is_ready, "the first one to be awake")
        let_in(site, queue, at=7, upto=8, length=2)
        site.create("marker", key="marker")
        site.await_granted(*queue[6:], "marker")
    assert {*queue[6:], "marker"} == site.held()


def test_none_runs_for_a_while_and_then_all_that_has_happened_is_seen_to(site):
    queue = site.create_many(6, length=2)
    running = [site.start() for _ in range(2)]
    let_in(site, queue, at=0, upto=2, length=2)
    site.run(queue[0])
    for process in running:
        process.send(signal.SIGKILL)
        process.ended()
    site.end(queue[0])
    site.pods.delete(queue[2])
    site.await_next_second()
    younger = site.create("younger", length=2)["metadata"]["name"]

    with site.watched([queue[1], *queue[3:], younger], 2):
        for _ in range(2):
            site.start()
        site.await_granted(queue[1], queue[3])


def test_one_that_is_asked_to_end_does_so_at_once_and_well(site):
    site.create_many(4)
    process = site.start()

    assert 0 == process.terminate(5)
    assert process.said("ended")


def test_one_is_asked_to_end_while_nobody_answers_it(site, plane, nodes):
    queue = site.create_many(4)
    process = site.start()
    site.await_granted(queue[0])
    with plane.paused(), failing(nodes, RedisNode.pause, RedisNode.resume):
        paced(lambda: process.samples("reconcile_errors_total").get(("nodes",)), "an error to be counted")

        assert 0 == process.terminate(10)


# The API server -----------------------------------------------------------------------------------------


def test_the_api_server_is_restarted(site, plane):
    queue = site.create_many(6, length=2)
    running = [site.start() for _ in range(2)]
    let_in(site, queue, at=0, upto=3, length=2)
    with plane.stopped():
        paced(lambda: any(process.samples("reconcile_errors_total").get(("api",)) for process in running), "an error")
        assert [200, 200] == [process.get("/healthz")[0] for process in running]
    let_in(site, queue, at=3, upto=6, length=2)
    assert all(process.running for process in running)


def test_a_slot_that_is_free_while_the_api_server_is_away_is_given_when_it_is_back(site, plane):
    site.start()
    site.create("first")
    site.await_granted("first")
    sidecar = site.run("first")
    site.create("second")
    site.await_event("second", "WaitingForSlot")
    with plane.stopped():
        assert sidecar.terminate() == 0
        paced(lambda: not any(site.slots()[0]), "the slot to be given back")

    site.await_granted("first", "second", seconds=60)


def test_the_api_server_has_forgotten_where_a_reconciler_was(site, plane):
    """410 Gone: it slept while all that it knew of was overtaken."""
    queue = site.create_many(6, length=2)
    process = site.start()
    let_in(site, queue, at=0, upto=2, length=2)
    process.pause()
    with plane.stopped():
        plane.compact()
    site.pods.delete(queue[0])
    site.pods.delete(queue[2])
    plane.compact()
    process.resume()

    site.await_granted(queue[1], queue[3], seconds=60)
    assert {queue[1], queue[3]} == site.held()


def test_the_api_server_hangs_for_a_while(site, plane):
    process = site.start()
    site.create("first")
    site.await_granted("first")
    with plane.paused():
        paced(lambda: max(process.samples("watch_age_seconds").values()) > 2, "the watch to be overdue")
        assert 200 == process.get("/healthz")[0]
    site.pods.delete("first")
    site.create("second")

    site.await_granted("second")


def test_a_watch_that_is_cut_off_without_a_word_is_noticed(site, plane):
    """As by a firewall that forgets a connection: nothing comes, and nobody says so."""
    with wire(plane.port) as way:
        process = site.start(plane.kubeconfig(RECONCILER, way.port))
        site.create("first")
        site.await_granted("first")
        way.cut()
        site.create("second", key="other")

        site.await_granted("first", "second", seconds=120)
        assert process.running


# Nodes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_with_one_node_away_pods_are_let_in_as_before(site, nodes, fault, number):
    queue = site.create_many(6, length=2)
    site.start()
    let_in(site, queue, at=0, upto=3, length=2)
    with failing([nodes[number]], *FAULTS[fault]):
        let_in(site, queue, at=3, upto=5, length=2)
    let_in(site, queue, at=5, upto=6, length=2)
    paced(lambda: all(2 == len(slots) for slots in site.slots()), "all nodes to know of both")
    assert set(queue[4:]) == site.held()


def test_without_a_majority_pods_wait_and_are_let_in_when_it_is_back(site, nodes):
    queue = site.create_many(3, length=1)
    process = site.start()
    let_in(site, queue, at=0, upto=1, length=1)
    with failing(nodes[1:], RedisNode.kill, RedisNode.start):
        site.pods.delete(queue[0])
        site.create("elsewhere", key="other")
        paced(lambda: process.samples("reconcile_errors_total").get(("nodes",)), "an error to be counted")
        assert set(queue[1:]) | {"elsewhere"} == set(site.names())
        assert [] == site.granted()
        assert 200 == process.get("/healthz")[0]
        # They are read every ten seconds: until then it says what it knew.
        paced(lambda: process.samples("pods_without_lease") == {}, "no number of pods without a lease to be told")

    site.await_granted(queue[1], "elsewhere", seconds=60)
    site.pods.delete(queue[1])
    site.await_granted(queue[2], "elsewhere", seconds=60)


def test_pods_can_be_created_to_wait_while_no_node_is_there(site, nodes):
    process = site.start()
    with failing(nodes, RedisNode.kill, RedisNode.start):
        queue = site.create_many(3, length=2)
        paced(lambda: process.samples("reconcile_errors_total").get(("nodes",)), "an error to be counted")
        assert [] == site.granted()

    site.await_granted(*queue[:2], seconds=60)


def test_a_reconciler_can_start_while_no_node_is_there(site, nodes):
    queue = site.create_many(2, length=1)
    with failing(nodes, RedisNode.kill, RedisNode.start):
        process = site.start()
        paced(lambda: process.samples("reconcile_errors_total").get(("nodes",)), "an error to be counted")

    site.await_granted(queue[0], seconds=60)


def test_a_node_that_comes_back_empty_costs_nobody_a_slot(site, nodes):
    queue = site.create_many(5, length=2)
    with site.watched(queue, 2):
        site.start()
        let_in(site, queue, at=0, upto=2, length=2)
        nodes[0].restart(empty=True)
        let_in(site, queue, at=2, upto=5, length=2)
    assert set(queue[3:]) == site.held()
