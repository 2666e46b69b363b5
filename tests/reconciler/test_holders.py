"""`at-least-semaphore holders` where it may ask the API server: who waits, and at which place."""

from tests.harness.cli import run, run_json
from tests.harness.control_plane import RECONCILER


def environ(site, **more: str) -> dict[str, str]:
    kubeconfig = str(site.plane.kubeconfig(RECONCILER))
    return {**site.environ, "KUBECONFIG": kubeconfig, "WAITING_ALLOWED": "true", **more}


def test_who_waits_is_shown_behind_who_holds_with_their_places(site):
    first, second, third = site.create_many(3)
    site.create("late", max_wait="1")
    site.start()
    site.await_granted(first)
    site.await_event("late", "WaitedTooLong")

    ended = run(environ(site), "holders", site.semaphore())
    assert ended.returncode == 0, ended.stderr
    slots, waiting = ended.stdout.split("\n\n")
    assert f"{site.semaphore()}: 1 of 1 slot held" in slots
    assert first in slots
    said, headers, *rows = waiting.splitlines()
    assert "3 pods waiting:" == said
    assert ["PLACE", "OWNER", "POD", "SINCE", "STATUS", "TOKEN"] == headers.split()
    assert [["1", "-", second], ["2", "-", third], ["-", "-", "late"]] == [row.split()[:3] for row in rows]
    assert "waited too long" in rows[2]


def test_programs_are_told_the_same(site):
    first, second = site.create_many(2, length=0)

    found = run_json(environ(site), "holders", site.semaphore())
    assert [] == found["holders"]
    assert [(1, first, "waiting, closed"), (2, second, "waiting, closed")] == [
        (each["place"], each["pod"], each["status"]) for each in found["waiting"]
    ]
    assert {site.semaphore()} == {each["semaphore"] for each in found["waiting"]}
    assert not {site.token(first), site.token(second)} & {str(each) for each in found["waiting"]}


def test_a_semaphore_that_pods_wait_for_exists_though_no_slot_was_granted_yet(site):
    site.create("closed", length=0)

    ended = run(environ(site), "holders", site.semaphore())
    assert ended.returncode == 0, ended.stderr
    assert f"{site.semaphore()}: no slot has been granted yet" in ended.stdout
    assert "1 pod waiting:" in ended.stdout


def test_where_the_api_server_cannot_be_asked_the_holders_are_shown_all_the_same(site):
    (name,) = site.create_many(1)
    site.start()
    site.await_granted(name)

    for lacking in ({"KUBECONFIG": ""}, {"KUBECONFIG": "/nonexistent/kubeconfig"}):
        ended = run(environ(site, **lacking, HOME="/nonexistent"), "holders", site.semaphore())
        assert ended.returncode == 0
        assert name in ended.stdout
        assert "pods that wait are not shown: " in ended.stderr
        assert run_json(environ(site, **lacking, HOME="/nonexistent"), "holders")["waiting"] is None


def test_where_no_pod_may_wait_the_api_server_is_not_asked(site):
    site.create("closed", length=0)

    ended = run(environ(site, WAITING_ALLOWED="false"), "holders", site.semaphore())
    assert (1, "") == (ended.returncode, ended.stdout)
    assert "there is no semaphore" in ended.stderr
