"""Pods whose authors want more than is theirs: they get nothing, and nobody waits for them."""

import secrets

import pytest

from sidecar.protocol import Variable
from tests.harness.nodes import HOOK_PASSWORD
from tests.harness.reconciler import token_of, waits
from tests.reconciler.forgeries import forged
from tests.reconciler.site import KEY


def test_a_pod_that_names_the_semaphore_of_another_namespace_gets_no_slot_of_it(site, elsewhere):
    token = secrets.token_hex(16)
    elsewhere.create(forged("forged", site.semaphore(), token))
    site.start()
    site.create("honest")
    site.await_granted("honest")

    assert waits(elsewhere.pod("forged"))
    assert site.is_nowhere(token)


def test_a_pod_without_a_sidecar_gets_nothing_and_blocks_nobody(site, elsewhere):
    """Its semaphore is one's own, but there is no token that a slot could be given to."""
    bare = forged("bare", f"{elsewhere.name}/{KEY}", secrets.token_hex(16))
    del bare["spec"]["initContainers"]
    elsewhere.create(bare)
    token = secrets.token_hex(16)
    elsewhere.create(forged("whole", f"{elsewhere.name}/{KEY}", token, HOOK_PASSWORD))
    site.start()

    site.await_let_in("whole", elsewhere)
    assert waits(elsewhere.pod("bare"))
    assert not site.is_nowhere(token)


@pytest.mark.parametrize(
    "env",
    [
        {Variable.TOKEN: "x" * 32},
        {Variable.TOKEN: ""},
        {Variable.TOKEN: "a b\r\nc"},
        {Variable.SEMAPHORE: ""},
        {Variable.SEMAPHORE: "no-slash"},
        {Variable.SLOT: "ten"},
        {Variable.EXPIRATION: "forever"},
    ],
    ids=["not-hex", "no-token", "lines", "no-semaphore", "no-namespace", "no-number", "no-seconds"],
)
def test_a_sidecar_that_is_nonsense_does_not_disturb_anybody(site, elsewhere, env):
    elsewhere.create(forged("forged", f"{elsewhere.name}/{KEY}", secrets.token_hex(16), **env))
    process = site.start()
    site.create("honest")

    site.await_granted("honest")
    assert process.running
    assert not any(process.samples("reconcile_errors_total").values())


def test_the_token_of_another_pod_is_granted_once(site, elsewhere):
    """A copy of somebody's pod, which knows the token: it takes no second slot, and the first is not lost with it."""
    token = token_of(site.create("honest", length=2))
    site.start()
    site.await_granted("honest")
    elsewhere.create(forged("copy", site.semaphore(), token))
    site.create("next", length=2)
    site.await_granted("honest", "next")
    assert waits(elsewhere.pod("copy"))

    elsewhere.delete("copy")
    site.create("last", key="other")
    site.await_granted("honest", "next", "last")
    assert not site.is_nowhere(token)


def test_the_token_of_another_pod_under_a_semaphore_of_ones_own_does_not_cost_it_its_slot(site, elsewhere):
    """Once the copy is gone its unclaimed reservation is withdrawn; the lease that the other one renews is not."""
    site.start()
    token = token_of(site.create("honest"))
    site.await_granted("honest")
    sidecar = site.run("honest")
    elsewhere.create(forged("copy", f"{elsewhere.name}/{KEY}", token))
    site.await_turns(3)
    assert waits(elsewhere.pod("copy"))
    elsewhere.delete("copy")
    site.await_turns(3)

    assert "honest" in site.held()
    assert not sidecar.said("lost")


def test_the_token_of_a_pod_that_has_ended_brings_its_slot_to_life_for_nobody(site, elsewhere):
    """A lease of the token would make the entry that it left in its own semaphore count again."""
    process = site.start()
    token = token_of(site.create("first"))
    site.await_granted("first")
    site.run("first")
    site.end("first")
    elsewhere.create(forged("copy", f"{elsewhere.name}/{KEY}", token))
    site.await_turns(3)

    assert waits(elsewhere.pod("copy"))
    assert site.is_nowhere(token)
    site.create("next")
    site.await_let_in("next")
    told = f"pod {elsewhere.name}/copy gets no slot: its sidecar was not made by a webhook with this REDIS_PASSWORD"
    assert 1 == process.output.count(told)


def test_a_pod_that_was_sealed_under_the_password_before_is_known(site, elsewhere):
    """As long as that is REDIS_PASSWORD_ALSO."""
    elsewhere.create(forged("old", f"{elsewhere.name}/{KEY}", secrets.token_hex(16), "the one before"))
    site.start(REDIS_PASSWORD_ALSO="the one before")

    site.await_let_in("old", elsewhere)
