"""What becomes of a slot when its pod starts late, ends, vanishes or never was."""

import secrets
import signal

import pytest

from app.semaphore.model import Claim
from tests.harness.control_plane import ApiError, paced
from tests.harness.nodes import RedisNode
from tests.harness.reconciler import direct_pod, held, left_ms, token_of
from tests.harness.semaphores import semaphores_on, soon
from tests.reconciler.site import Site

RESERVATION_SECONDS = 5


def await_renewals(nodes: list[RedisNode], token: str, times: int) -> None:
    """Until the token's reservation has been given more time so often."""
    left = left_ms(nodes[0], token, reserved=True)
    for _ in range(times):

        def is_longer() -> bool:
            nonlocal left
            before, left = left, left_ms(nodes[0], token, reserved=True)
            return left > before

        paced(is_longer, "the reservation to be renewed")


# Until the sidecar has started --------------------------------------------------------------------------


def test_a_slot_is_kept_for_a_pod_that_takes_longer_to_start_than_a_reservation_lasts(site, nodes):
    token = token_of(site.create("slow"))
    site.start()
    site.await_granted("slow")

    await_renewals(nodes, token, 4)
    assert {"slow"} == site.held()
    site.run("slow")


def test_a_slot_is_kept_for_a_pod_that_did_not_have_to_wait(site, nodes):
    """Those who ask by `deny` have a reservation as well, and may take long to start."""
    token = token_of(site.pods.create(direct_pod("slow")))
    site.start()

    await_renewals(nodes, token, 3)


def test_what_lapsed_while_no_reconciler_ran_is_taken_again(site, nodes):
    """In one slot only: the entry that was left in the record must not come alive as well."""
    names = site.create_many(3, length=5)
    first = site.start()
    site.await_granted(*names)
    first.send(signal.SIGKILL)
    first.ended()
    paced(lambda: not site.held(), "the reservations to lapse")

    site.start()
    paced(lambda: set(names) == site.held(), "the slots to be taken again")
    tokens = {site.token(name) for name in names}
    for slots in site.slots():
        assert tokens == set(slots.values())
        assert len(tokens) == len(slots)
    for name in names:
        site.run(name)


def test_what_lapsed_and_went_to_another_is_not_taken_from_it(site):
    """The pod whose turn it was gets a slot when there is one again; nobody has more than there are."""
    site.create("late")
    first = site.start()
    site.await_granted("late")
    first.send(signal.SIGKILL)
    first.ended()
    paced(lambda: not site.held(), "the reservation to lapse")
    site.pods.create(direct_pod("direct"))
    site.run("direct")

    process = site.start()
    with site.watched(["late", "direct"], 1):
        site.await_turns(2)
        assert {"direct"} == site.held("late", "direct")
        site.end("direct")
        paced(lambda: "late" in site.held(), "the slot to be taken again")
    assert process.running


def test_a_pod_whose_gate_somebody_else_has_lifted_gets_its_slot_when_there_is_one(site):
    """By hand, say. Its sidecar lets no app start until then."""
    site.start()
    site.create("first")
    site.await_granted("first")
    pod = site.create("hasty", expiration=5)
    site.pods.patch("hasty", {"spec": {"schedulingGates": None}})
    process = site.start_sidecar(pod)
    process.wait_for("the slot is lost")
    site.await_turns(2)
    assert {"first"} == site.held("first", "hasty")
    site.pods.delete("first")

    process.wait_for("kept again", 60)
    assert {"hasty"} == site.held("hasty")


# Pods that end ------------------------------------------------------------------------------------------


def test_a_waiting_pod_that_is_deleted_leaves_nothing(site):
    queue = site.create_many(3)
    tokens = {name: site.token(name) for name in queue}
    site.start()
    site.await_granted(queue[0])
    site.pods.delete(queue[1])
    site.pods.delete(queue[0])

    site.await_granted(queue[2])
    for name in queue[:2]:
        site.await_nowhere(tokens[name])


def test_a_pod_that_is_deleted_right_after_its_grant_gives_the_slot_back_at_once(site):
    """Long before its reservation would end by itself, as it is renewed while the pod exists."""
    process = site.start()
    token = token_of(site.create("short-lived"))
    site.create("next")
    paced(lambda: len(site.granted()) == 1, "one to be let in")
    (first,) = site.granted()
    assert process.running

    site.pods.delete(first)
    paced(lambda: len(site.granted()) == 1, "the other to be let in")
    if first == "short-lived":
        site.await_nowhere(token)


def test_a_pod_that_is_on_its_way_out_and_never_started_gives_its_slot_back(site):
    """It is bound to a worker node whose kubelet does not answer, so that it stays for as long as that is so."""
    site.start()
    site.create("stuck")
    site.await_granted("stuck")
    token = site.token("stuck")
    bind(site, "stuck")
    site.plane.ask("DELETE", f"{site.pods.path}/pods/stuck", {"gracePeriodSeconds": 3600})
    assert "deletionTimestamp" in site.pods.pod("stuck")["metadata"]

    # Whether or not it is freed now, nobody else may get it while the kubelet could still start the pod.
    site.create("next")
    site.pods.delete("stuck")
    site.await_granted("next")
    site.await_nowhere(token)


def bind(site: Site, name: str) -> None:
    """As a scheduler does."""
    target = {"apiVersion": "v1", "kind": "Node", "name": "worker-0"}
    site.plane.ask("POST", f"{site.pods.path}/pods/{name}/binding", {"metadata": {"name": name}, "target": target})


def test_a_lease_that_is_renewed_is_not_freed_when_its_pod_vanishes(site):
    """`kubectl delete --force` removes the pod while its containers go on, and so does who loses etcd's data."""
    site.start()
    site.create("forced", expiration=10)
    site.await_granted("forced")
    token = site.token("forced")
    process = site.run("forced")
    site.pods.delete("forced")
    site.create("next", expiration=10)
    site.await_turns(3)

    assert process.running
    assert {token} == held(site.nodes, [token])
    assert "next" not in site.granted()
    assert not process.said("lost")
    assert process.terminate() == 0
    site.await_let_in("next")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_all_of_whose_containers_have_ended_gives_its_slot_back_though_its_sidecar_could_not(site, phase):
    """It was killed, as on a worker node that runs out of memory; the lease would live for an hour."""
    site.start()
    site.create("done", expiration=3600)
    site.await_granted("done")
    process = site.run("done")
    process.send(signal.SIGKILL)
    process.ended()
    assert {"done"} == site.held()
    site.create("next")
    site.say("done", phase, sidecar="terminated", app="terminated")

    site.await_granted("done", "next")
    assert {"next"} == site.held()


@pytest.mark.parametrize(("container", "state"), [("sidecar", "running"), ("app", "running"), ("app", "waiting")])
def test_a_pod_that_has_failed_keeps_its_slot_as_long_as_a_container_has_not_ended(site, container, state):
    """As when its worker node is lost: its phase is Failed, and nobody knows what still runs there, or will."""
    site.start()
    site.create("cut-off", expiration=3600)
    site.await_granted("cut-off")
    site.run("cut-off")
    site.create("next")
    site.say("cut-off", "Failed", **{"sidecar": "terminated", "app": "terminated", container: state})
    site.await_turns(3)

    assert "cut-off" in site.held()
    assert "next" not in site.granted()


def test_a_pod_that_has_failed_before_anything_ran_gives_its_slot_back(site):
    """A worker node that refuses a pod says so without any container's status."""
    site.start()
    site.create("refused")
    site.create("next")
    paced(lambda: len(site.granted()) == 1, "one to be let in")
    (first,) = site.granted()
    site.pods.set_status(first, phase="Failed", reason="OutOfcpu", message="Pod was rejected")

    site.await_granted("refused", "next")


# Pods that never were -----------------------------------------------------------------------------------


def test_the_slot_of_a_pod_that_was_refused_after_it_was_given_one_is_free_after_a_minute(site):
    """By a quota, which the API server asks last; nobody tells the webhook. Its reservation would last for an hour."""
    refuse_pods(site)
    with pytest.raises(ApiError, match="exceeded quota"):
        site.pods.create(direct_pod("refused"))
    (token,) = site.slots()[0].values()
    stretch(site.nodes, token)
    site.start()
    site.plane.ask("DELETE", f"/api/v1/namespaces/{site.name}/resourcequotas/none")
    paced(lambda: create_or_not(site, "next"), "the quota to be forgotten")
    site.await_event("next", "WaitingForSlot")

    assert not site.is_nowhere(token)
    site.await_granted("next", seconds=90)
    assert site.is_nowhere(token)


def refuse_pods(site: Site) -> None:
    """A quota of no pods at all, in force."""
    path = f"/api/v1/namespaces/{site.name}/resourcequotas"
    hard = {"pods": "0"}
    site.plane.ask("POST", path, {"metadata": {"name": "none"}, "spec": {"hard": hard}})
    # As the controller manager does.
    merge = "application/merge-patch+json"
    site.plane.ask("PATCH", f"{path}/none/status", {"status": {"hard": hard, "used": {"pods": "0"}}}, merge)


def create_or_not(site: Site, name: str) -> bool:
    try:
        site.create(name)
    except ApiError:
        return False
    return True


def stretch(nodes: list[RedisNode], token: str) -> None:
    """A reservation as long as that of a webhook whose RESERVATION_SECONDS are an hour."""
    for node in nodes:
        with node.client() as client:
            for key in (f"lease:{token}", f"reservation:{token}"):
                client.pexpire(key, 3_600_000)


def test_a_reservation_that_a_sidecar_has_claimed_is_not_taken_for_one_without_a_pod(site, nodes):
    """Somebody else's pods may be on the same nodes, such as those of another cluster: claimed is claimed."""
    token = secrets.token_hex(16)
    with semaphores_on(nodes) as semaphores:
        grant_directly(semaphores, site.semaphore(), token)
        assert semaphores.renew(token, 3_600_000, soon())
    for node in nodes:
        with node.client() as client:
            client.unlink(f"reservation:{token}")
    site.start()
    site.create("waits")
    site.await_event("waits", "WaitingForSlot")

    assert {token} == held(nodes, [token])


def grant_directly(semaphores, semaphore: str, token: str) -> None:
    """As a webhook does for a pod."""
    claim = Claim(semaphore, length=1, reservation_ms=3_600_000, lease_ms=3_600_000, holder="{}")
    assert semaphores.acquire(claim, iter([token]), soon()).token == token
