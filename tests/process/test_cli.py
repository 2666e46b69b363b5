"""The command line, run as in the webhook's container: its own process, the webhook's environment, real nodes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from app.admission.annotations import GROUP
from app.logs import shortened
from sidecar.protocol import Keys
from tests.harness.cli import environ_of, run, run_json, run_on_terminal
from tests.harness.nodes import RedisNode, redis_nodes
from tests.harness.semaphores import put_records
from tests.harness.sidecars import Sidecar, sidecar
from tests.harness.waiting import wait_for
from tests.harness.webhook import ROOT, Answer, Webhook, pod_asking


def holders_of(webhook: Webhook, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_json(webhook.environ, "holders", f"batch/{key}")["holders"]
    return found


def granted(webhook: Webhook, key: str, length: int = 3, **more: Any) -> Answer:
    """An admission, of which all nodes know."""
    answer = webhook.ask(pod_asking(key, length, **more))
    assert answer.allowed, answer.message
    token = shortened(answer.env()["TOKEN"])
    wait_for(
        lambda: any(each["token_hash"] == token and each["nodes"] == 3 for each in holders_of(webhook, key)),
        "all nodes to have the lease",
    )
    return answer


@contextmanager
def running(answer: Answer) -> Iterator[Sidecar]:
    """The sidecar of an admitted pod, which has renewed."""
    with sidecar(answer.container()["command"], answer.env()) as started:
        started.wait_for("the slot is held")
        yield started


def on_all(nodes: list[RedisNode], *command: Any) -> None:
    for node in nodes:
        with node.client() as client:
            client.execute_command(*command)


# How it is started ----------------------------------------------------------------------------------------


def test_the_console_script_is_installed_and_tells_its_version():
    script = str(Path(sys.executable).parent / "at-least-semaphore")

    assert (
        f"at-least-semaphore, version {version('at-least-semaphore-pod-hook')}\n"
        == run({}, "--version", command=(script,)).stdout
    )


@pytest.mark.parametrize("command", ["holders", "semaphores", "nodes", "release", "explain", "check"])
def test_every_command_explains_itself_without_any_setting_and_says_when_it_fails(command):
    ended = run({"REDIS_ADDRESSES": "wrong"}, command, "--help")

    assert 0 == ended.returncode
    assert "Exit status" in ended.stdout


@pytest.mark.parametrize("command", [["holders"], ["semaphores"], ["nodes"], ["release", "a/b/0"], ["explain", "-"]])
def test_a_wrong_setting_is_told_in_a_line(command):
    ended = run({"REDIS_ADDRESSES": "wrong"}, *command)

    assert (2, "") == (ended.returncode, ended.stdout)
    assert ended.stderr.startswith("Error: wrong setting: REDIS_ADDRESSES: 'wrong' is not an address")
    assert 1 == len(ended.stderr.splitlines())


def test_the_files_of_the_workers_metrics_are_left_alone(webhook: Webhook, key, tmp_path):
    granted(webhook, key)
    environ = {**webhook.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    (tmp_path / "counter_7.db").write_bytes(b"a worker's")
    before = (tmp_path / "counter_7.db").stat()

    for command in (["holders"], ["semaphores"], ["nodes"], ["check"], ["explain", "-"], ["release", f"batch/{key}/0"]):
        run(environ, *command, stdin=json.dumps(pod_asking(key)))

    assert ["counter_7.db"] == [file.name for file in tmp_path.iterdir()]
    assert before.st_mtime_ns == (tmp_path / "counter_7.db").stat().st_mtime_ns


def test_colours_are_for_terminals(webhook: Webhook, key):
    granted(webhook, key)

    seen = run_on_terminal(webhook.environ, "holders", f"batch/{key}")

    assert "\x1b[33mreserved\x1b[0m" in seen
    for command in (["holders"], ["semaphores"], ["nodes"], ["check"], ["explain", "-"]):
        assert "\x1b" not in run(webhook.environ, *command, stdin=json.dumps(pod_asking(key))).stdout
    assert "\x1b" not in run_on_terminal(webhook.environ, "holders", f"batch/{key}", "-o", "json")


# holders --------------------------------------------------------------------------------------------------


def test_holders_are_told_with_their_status_and_without_their_tokens(webhook: Webhook, nodes, key):
    reserved = granted(webhook, key, owner="Job/waits")
    runs = granted(webhook, key, owner="Job/runs")
    stuck = granted(webhook, key, owner="Job/stuck")
    with running(runs):
        with running(stuck):
            pass  # killed
        on_all(nodes, "PEXPIRE", Keys().lease(stuck.env()["TOKEN"]), 29_000)  # of 60
        said = run(webhook.environ, "holders", f"batch/{key}")
        found = {each["owner"]: each for each in holders_of(webhook, key)}

    first, headers, *lines = said.stdout.splitlines()
    assert f"batch/{key}: 3 of 3 slots held" == first
    assert ["SLOT", "OWNER", "POD", "SINCE", "LEFT", "STATUS", "NODES", "TOKEN"] == headers.split()
    assert [0, 1, 2] == [int(line.split()[0]) for line in lines]
    assert {"Job/waits": "reserved", "Job/runs": "running", "Job/stuck": "overdue"} == {
        owner: each["status"] for owner, each in found.items()
    }
    for answer, owner in ((reserved, "Job/waits"), (runs, "Job/runs"), (stuck, "Job/stuck")):
        token = answer.env()["TOKEN"]
        assert (shortened(token), 3, int(answer.env()["SLOT"])) == (
            found[owner]["token_hash"],
            found[owner]["nodes"],
            found[owner]["slot"],
        )
        assert token not in said.stdout + said.stderr + json.dumps(found)


def test_a_slot_that_no_majority_knows_is_told_as_unconfirmed(webhook: Webhook, nodes, key):
    token = granted(webhook, key).env()["TOKEN"]
    on_all(nodes[1:], "UNLINK", Keys().lease(token))

    said = run(webhook.environ, "holders", f"batch/{key}").stdout

    assert f"batch/{key}: 0 of 3 slots held, 1 unconfirmed\n" in said
    assert "reserved, unconfirmed  1 of 3" in said


def test_the_holders_of_all_semaphores_are_one_table(webhook: Webhook, key):
    granted(webhook, f"{key}/a", owner="Job/a")
    granted(webhook, f"{key}/b", owner="Job/b")

    headers, *lines = run(webhook.environ, "holders").stdout.splitlines()

    assert "SEMAPHORE" == headers.split()[0]
    assert {(f"batch/{key}/a", "Job/a"), (f"batch/{key}/b", "Job/b")} <= {
        (line.split()[0], line.split()[2]) for line in lines
    }


def test_a_semaphore_that_nobody_has_asked_for_does_not_exist(webhook: Webhook, key):
    ended = run(webhook.environ, "holders", f"batch/{key}")

    assert (1, "") == (ended.returncode, ended.stdout)
    assert f"there is no semaphore batch/{key}" in ended.stderr


def test_a_semaphore_without_holders_exists(webhook: Webhook, key):
    answer = granted(webhook, key)
    assert 0 == run(webhook.environ, "release", answer.env()["TOKEN"], "--yes").returncode

    ended = run(webhook.environ, "holders", f"batch/{key}")

    assert (0, f"batch/{key}: 0 of 3 slots held\n") == (ended.returncode, ended.stdout)


@pytest.mark.parametrize("name", ["reports-db", "Batch/x", "batch/\x1b[2J"])
def test_what_is_no_name_is_refused_before_anything_is_asked(name):
    ended = run({"REDIS_ADDRESSES": "127.0.0.1:1"}, "holders", name)

    assert (2, "") == (ended.returncode, ended.stdout)
    assert "is not the name of a semaphore; write NAMESPACE/KEY" in ended.stderr
    assert "\x1b" not in ended.stderr


def test_texts_on_the_nodes_do_nothing_to_a_terminal(webhook: Webhook, nodes, key):
    answer = granted(webhook, key)
    holder = json.dumps({"owner": "Job/\x1b[2J", "pod": "\n0  x"})
    on_all(nodes, "SET", Keys().lease(answer.env()["TOKEN"]), holder, "KEEPTTL")
    on_all(nodes, "HSET", Keys().record("batch/\x1b[2J"), "length", 1, "longest", 1, "bound", 0)
    try:
        said = run(webhook.environ, "holders").stdout + run(webhook.environ, "semaphores").stdout
    finally:
        on_all(nodes, "UNLINK", Keys().record("batch/\x1b[2J"))

    assert "\x1b" not in said
    assert "Job/?[2J" in said
    assert "batch/?[2J" in said


# semaphores -----------------------------------------------------------------------------------------------


def test_semaphores_are_told_in_numbers(webhook: Webhook, key):
    with running(granted(webhook, key, 2)):
        granted(webhook, key, 2)
        found = {each["semaphore"]: each for each in run_json(webhook.environ, "semaphores")["semaphores"]}
        lines = [line.split() for line in run(webhook.environ, "semaphores").stdout.splitlines()]

    mine = found[f"batch/{key}"]
    assert 0 <= mine.pop("oldest_reservation_age_seconds") < 60
    assert {
        "semaphore": f"batch/{key}",
        "length": 2,
        "held": 2,
        "reserved": 1,
        "overdue": 0,
        "unconfirmed": 0,
        "state": "full",
        "records": 3,
    } == mine
    (line,) = (line for line in lines if line[0] == f"batch/{key}")
    assert ["2", "2", "1", "0", "0"] == line[1:6]
    assert ["full", "3", "of", "3"] == line[7:]


def test_a_semaphore_that_a_minority_knows_is_told_as_unreadable(webhook: Webhook, nodes, key):
    on_all(nodes[:1], "HSET", Keys().record(f"batch/{key}"), "length", 1, "longest", 1, "bound", 0)

    found = {each["semaphore"]: each for each in run_json(webhook.environ, "semaphores")["semaphores"]}
    asked_for = run(webhook.environ, "holders", f"batch/{key}")

    assert ("unreadable", None) == (found[f"batch/{key}"]["state"], found[f"batch/{key}"]["held"])
    assert f"batch/{key}: cannot be read" in run(webhook.environ, "holders").stdout
    assert (1, "") == (asked_for.returncode, asked_for.stdout)
    assert "cannot be read: fewer than 2 of 3 nodes know it" in asked_for.stderr


def test_on_nodes_that_know_nothing_that_is_said():
    with redis_nodes(3) as empty:
        environ = environ_of(empty)
        for command in ("holders", "semaphores"):
            ended = run(environ, command)
            assert (0, "there is no semaphore yet: no pod has asked for a slot\n") == (ended.returncode, ended.stdout)
        nothing = {"holders": [], "waiting": [], "semaphores": [], "nodes_total": 3, "nodes_unheard": {}}
        assert nothing == run_json(environ, "holders")


def test_who_waits_for_many_semaphores_is_told_how_far_it_has_come_on_a_terminal():
    with redis_nodes(3) as fresh:
        put_records(fresh, (f"batch/{number}" for number in range(1200)))
        environ = environ_of(fresh)
        assert "\rread 1000 of 1200 semaphores\rread 1200 of 1200" in run_on_terminal(environ, "semaphores")
        assert "" == run(environ, "semaphores").stderr


# nodes ----------------------------------------------------------------------------------------------------


def test_nodes_are_told_with_what_they_have_and_lack(webhook: Webhook, nodes, key):
    token = granted(webhook, key).env()["TOKEN"]
    before = {each["node"]: each for each in run_json(webhook.environ, "nodes")["nodes"]}
    on_all(nodes[2:], "UNLINK", Keys().lease(token))

    after = {each["node"]: each for each in run_json(webhook.environ, "nodes")["nodes"]}

    assert [str(node.address) for node in nodes] == list(after)
    lacking = str(nodes[2].address)
    assert before[lacking]["node_leases"] - 1 == after[lacking]["node_leases"]
    assert before[lacking]["node_leases_missing"] + 1 == after[lacking]["node_leases_missing"]
    for each in after.values():
        assert (True, None) == (each["node_up"], each["fault"])
        assert each["node_round_trip_seconds"] > 0
        assert abs(each["node_clock_offset_seconds"]) < 5
        assert each["node_expired_keys_total"] >= 0
    assert 1 + len(nodes) == len(run(webhook.environ, "nodes").stdout.splitlines())


# release --------------------------------------------------------------------------------------------------


def test_a_released_slot_goes_to_the_next_pod_and_its_sidecar_says_that_it_is_lost(webhook: Webhook, key):
    answer = granted(webhook, key, 1, expiration=5, owner="Job/stuck")
    token = answer.env()["TOKEN"]
    with running(answer) as kept:
        ended = run(webhook.environ, "release", f"batch/{key}/0", stdin="y\n")

        assert (0, f"released; slot 0 of batch/{key} is free\n") == (ended.returncode, ended.stdout)
        assert "Job/stuck" in ended.stderr
        assert "Delete the" in ended.stderr
        assert token not in ended.stderr
        line = json.loads(ended.stderr[ended.stderr.index("{") :].splitlines()[0])
        assert {
            "level": "warning",
            "logger": "app.cli",
            "message": "a slot was released by hand",
        }.items() <= line.items()
        assert (f"batch/{key}", 0, shortened(token), "Job/stuck") == (
            line["semaphore"],
            line["slot"],
            line["token"],
            line["holder"],
        )
        assert granted(webhook, key, 1)
        kept.wait_for("lost")
    assert [shortened(token)] != [each["token_hash"] for each in holders_of(webhook, key)]


def test_who_says_no_changes_nothing(webhook: Webhook, key):
    granted(webhook, key)

    for stdin in ("n\n", "\n", ""):
        (held,) = holders_of(webhook, key)
        assert 1 == run(webhook.environ, "release", f"batch/{key}/{held['slot']}", stdin=stdin).returncode

    assert 1 == len(holders_of(webhook, key))


def test_a_slot_is_released_by_its_token_and_by_a_key_with_slashes(webhook: Webhook, key):
    first, second = granted(webhook, f"{key}/a/1", 2), granted(webhook, f"{key}/a/1", 2)

    by_token = run_json(webhook.environ, "release", first.env()["TOKEN"], "--yes")
    by_slot = run_json(webhook.environ, "release", f"batch/{key}/a/1/{second.env()['SLOT']}", "--yes")

    assert [shortened(each.env()["TOKEN"]) for each in (first, second)] == [
        by_token["released"]["token_hash"],
        by_slot["released"]["token_hash"],
    ]
    assert None is by_token["given_to"] is by_slot["given_to"]
    assert [] == holders_of(webhook, f"{key}/a/1")


def test_a_slot_that_no_majority_knows_is_released_as_well(webhook: Webhook, nodes, key):
    answer = granted(webhook, key, 1)
    on_all(nodes[1:], "UNLINK", Keys().lease(answer.env()["TOKEN"]))

    assert 0 == run(webhook.environ, "release", f"batch/{key}/0", "--yes").returncode
    assert [] == holders_of(webhook, key)


def test_what_nobody_holds_is_not_released(webhook: Webhook, key):
    slot = int(granted(webhook, key).env()["SLOT"])

    for what, why in (
        (f"batch/{key}/{slot + 1}", f"nobody holds slot {slot + 1}; batch/{key}: 1 of 3 slots held"),
        (f"batch/{key}.other/0", f"there is no semaphore batch/{key}.other"),
        ("0" * 32, f"no slot is held by the token {shortened('0' * 32)}"),
    ):
        ended = run(webhook.environ, "release", what, "--yes")
        assert (1, "") == (ended.returncode, ended.stdout)
        assert why in ended.stderr
    assert 2 == run(webhook.environ, "release", "nonsense", "--yes").returncode
    assert 1 == len(holders_of(webhook, key))


# explain --------------------------------------------------------------------------------------------------


def template(**of_pod: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "reports", "namespace": "batch"},
        "spec": {"template": of_pod},
    }


def test_explain_says_what_the_webhook_then_does_and_takes_no_slot(webhook: Webhook, key, tmp_path):
    pod = pod_asking(key, 1, owner="Job/first")
    file = tmp_path / "pod.yaml"
    file.write_text(json.dumps(template(**{name: pod[name] for name in ("metadata", "spec")})))

    for _ in range(2):
        free = run(webhook.environ, "explain", str(file))
        assert 0 == free.returncode
        assert "Deployment reports in batch: its pod would be admitted, with a slot\n" in free.stdout
        assert f"semaphore batch/{key}: 0 of 1 slot held, so one is free" in free.stdout
    granted(webhook, key, 1, owner="Job/first")
    full = run(webhook.environ, "explain", str(file))
    denied = webhook.ask(pod)

    assert 1 == full.returncode
    assert "Deployment reports in batch: its pod would be refused (full)\n" in full.stdout
    assert denied.message.partition("; more:")[0] in full.stdout
    assert "Not looked at is whether the API server asks the webhook about these pods" in full.stdout


def test_explain_gives_the_reason_that_the_webhook_gives(webhook: Webhook, key):
    invalid = pod_asking(key, 1, expirations="60")
    denied = webhook.ask(invalid)
    malformed = pod_asking(key)
    malformed["metadata"]["annotations"][f"{GROUP}/length"] = 3
    pods = {"kind": "List", "items": [invalid, malformed, {"kind": "Pod", "metadata": {}, "spec": {"containers": []}}]}

    ended = run(webhook.environ, "explain", "-", "-n", "batch", "-o", "json", stdin=json.dumps(pods))
    first, second, third = json.loads(ended.stdout)["pods"]

    assert 1 == ended.returncode
    assert (False, "invalid", denied.message) == (first["allowed"], first["reason"], first["message"])
    assert (False, "malformed") == (second["allowed"], second["reason"])
    assert f"metadata.annotations['{GROUP}/length'] is 3, accepted is a string" == second["message"]
    assert any("has to be quoted" in note for note in second["notes"])
    assert (True, "not_annotated", "") == (third["allowed"], third["reason"], third["message"])
    assert ["batch"] * 3 == [each["namespace"] for each in (first, second, third)]


def test_explain_finds_annotations_that_do_not_count(webhook: Webhook, key):
    pod = pod_asking(key)
    careless = template(spec=pod["spec"])
    careless["metadata"]["annotations"] = pod["metadata"]["annotations"]

    ended = run(webhook.environ, "explain", "-", stdin=json.dumps(careless))

    assert 0 == ended.returncode
    assert "its pod would be admitted without a slot: it asks for none\n" in ended.stdout
    assert "stand in metadata.annotations, where they do not count" in ended.stdout


def test_explain_notes_that_an_admitted_pod_needs_a_slot_of_its_own_once_more(webhook: Webhook, key):
    admitted = granted(webhook, key).pod

    (found,) = run_json(webhook.environ, "explain", "-", "-n", "batch", stdin=json.dumps(admitted))["pods"]

    assert (True, "granted") == (found["allowed"], found["reason"])
    assert ["the pod has a sidecar already"] == [note.partition(",")[0] for note in found["notes"]]


def test_explain_says_of_a_pod_that_waits_how_many_slots_are_held(webhook: Webhook, key):
    granted(webhook, key, 1, owner="Job/first")
    waits = json.dumps(pod_asking(key, 1, when_full="wait"))

    ended = run({**webhook.environ, "WAITING_ALLOWED": "true"}, "explain", "-", "-n", "batch", stdin=waits)

    assert 0 == ended.returncode
    assert "it would be admitted, and held back by a scheduling gate until it has a slot\n" in ended.stdout
    assert f"semaphore batch/{key}: waits for a slot; 1 of 1 slots held by Job/first (1)" in ended.stdout


def test_explain_refuses_a_pod_that_cannot_wait_in_the_words_of_the_webhook(webhook: Webhook, key):
    bound = pod_asking(key, 1, when_full="wait")
    bound["spec"]["nodeName"] = "worker-1"
    pods = [pod_asking(key, 1, when_full="wait"), bound]
    listed = json.dumps({"kind": "List", "items": pods})

    ended = run(webhook.environ, "explain", "-", "-n", "batch", "-o", "json", stdin=listed)
    found = json.loads(ended.stdout)["pods"]

    assert 1 == ended.returncode
    assert [(False, "cannot_wait")] * 2 == [(each["allowed"], each["reason"]) for each in found]
    assert [webhook.ask(pod).message for pod in pods] == [each["message"] for each in found]


def test_explain_goes_by_the_namespace_of_the_object_then_by_the_option(webhook: Webhook, key):
    pod = pod_asking(key)
    named = {**pod, "metadata": {**pod["metadata"], "namespace": "own"}}

    def message(pod: Any, *arguments: str) -> str:
        return str(run_json(webhook.environ, "explain", "-", *arguments, stdin=json.dumps(pod))["pods"][0]["message"])

    assert f"semaphore default/{key}" in message(pod)
    assert f"semaphore other/{key}" in message(pod, "-n", "other")
    assert f"semaphore own/{key}" in message(named, "-n", "other")


@pytest.mark.parametrize(
    ("stdin", "why"),
    [("a: [", "it is not YAML"), ("kind: Service", "nothing in it makes pods"), ("text", "no Kubernetes object")],
)
def test_what_cannot_be_explained_is_told(webhook: Webhook, stdin, why):
    ended = run(webhook.environ, "explain", "-", stdin=stdin)

    assert (2, "") == (ended.returncode, ended.stdout)
    assert why in ended.stderr


def test_a_file_that_is_not_there_is_told(webhook: Webhook, tmp_path):
    ended = run(webhook.environ, "explain", str(tmp_path / "none.yaml"))

    assert 2 == ended.returncode
    assert "No such file or directory" in ended.stderr


def test_what_is_released_is_released_where_nobody_can_be_told(webhook, key):
    granted(webhook, key, length=1)
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "app.cli", "release", f"batch/{key}/0", "--yes"]
        ended = subprocess.run(command, env=webhook.environ, cwd=ROOT, stderr=full, stdout=subprocess.PIPE)

    assert f"released; slot 0 of batch/{key} is free\n" == ended.stdout.decode()


def test_a_timeout_that_is_no_number_is_refused(webhook):
    ended = run(webhook.environ, "holders", "--timeout", "nan")

    assert 2 == ended.returncode
    assert "'nan' is no number of seconds" in ended.stderr
