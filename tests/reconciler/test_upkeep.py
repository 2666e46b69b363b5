"""What a reconciler does for semaphores that nobody asks for: it repairs them, and removes what is of no use."""

import time
from collections.abc import Sequence

from sidecar.protocol import Keys
from tests.harness.control_plane import paced
from tests.harness.nodes import RedisNode, failing
from tests.harness.semaphores import SEMAPHORE as IDLE
from tests.harness.semaphores import acquire, live_slots, put_records, semaphores_on
from tests.reconciler.site import Site

DAY_SECONDS = 24 * 60 * 60


def age(nodes: Sequence[RedisNode], semaphore: str, seconds: float) -> None:
    """Let the record have been written so long ago."""
    for node in nodes:
        with node.client() as client:
            client.hset(Keys().record(semaphore), "touched", int(time.time() - seconds))


def has_record(node: RedisNode, semaphore: str) -> bool:
    with node.client() as client:
        return bool(client.exists(Keys().record(semaphore)))


def test_a_node_that_lost_its_data_is_repaired_without_any_admission(site, nodes):
    """Else a slot that two nodes know is lost with the next one, as long as nobody asks for that semaphore."""
    with semaphores_on(nodes) as semaphores:
        for name in "abc":
            acquire(semaphores, name, 5)
    site.start()
    nodes[1].restart(empty=True)

    def is_repaired() -> bool:
        with nodes[1].client() as client:
            return 3 == len(live_slots(client, Keys().record(IDLE)))

    paced(is_repaired, "the node to be told what it lacks", 90)


def test_a_node_that_missed_a_grant_is_repaired_when_it_is_back(site, nodes):
    with semaphores_on(nodes) as semaphores:
        acquire(semaphores, "before", 5)
        site.start()
        with failing([nodes[2]], RedisNode.kill, RedisNode.start):
            acquire(semaphores, "meanwhile", 5)

    def is_repaired() -> bool:
        with nodes[2].client() as client:
            found = live_slots(client, Keys().record(IDLE)).values()
            return any(token.startswith("meanwhile") for token in found)

    paced(is_repaired, "the node to be told what it lacks", 90)


def test_a_record_that_nobody_has_used_for_a_day_is_removed(site, nodes):
    old, young, torn = (site.semaphore(key) for key in ("old", "young", "torn"))
    put_records(nodes, [old, young, torn])
    age(nodes, old, DAY_SECONDS + 60)
    age(nodes, young, DAY_SECONDS - 600)
    age(nodes[:2], torn, DAY_SECONDS + 60)
    age(nodes[2:], torn, 0)
    site.start()

    paced(lambda: not any(has_record(node, old) for node in nodes), "the old record to be removed", 90)
    for kept in (young, torn):
        assert all(has_record(node, kept) for node in nodes)


def test_a_record_with_a_lease_stays_however_old_it_is(site, nodes):
    site.start()
    site.create("long-lived", expiration=86400)
    site.await_granted("long-lived")
    site.run("long-lived")
    old = site.semaphore("old")
    put_records(nodes, [old])
    for semaphore in (site.semaphore(), old):
        age(nodes, semaphore, DAY_SECONDS + 60)

    paced(lambda: not any(has_record(node, old) for node in nodes), "the other record to be removed", 90)
    assert all(has_record(node, site.semaphore()) for node in nodes)
    assert {"long-lived"} == site.held()


def test_nothing_is_removed_while_a_node_is_away(site: Site, nodes):
    """It may know of a holder whom the others have lost."""
    old = site.semaphore("old")
    put_records(nodes, [old])
    age(nodes, old, DAY_SECONDS + 60)
    with failing([nodes[2]], RedisNode.kill, RedisNode.start):
        site.start()
        before = nodes[0].calls("scan")
        paced(lambda: nodes[0].calls("scan") > before + 1, "the reconciler to look for semaphores twice", 90)
        assert all(has_record(node, old) for node in nodes[:2])

    paced(lambda: not any(has_record(node, old) for node in nodes), "the record to be removed", 120)


def test_a_semaphore_that_was_removed_is_made_anew_for_the_next_pod(site, nodes):
    put_records(nodes, [site.semaphore()])
    age(nodes, site.semaphore(), DAY_SECONDS + 60)
    site.start()
    paced(lambda: not any(has_record(node, site.semaphore()) for node in nodes), "the record to be removed", 90)

    site.create("next")
    site.await_granted("next")
    assert {"next"} == site.held()
