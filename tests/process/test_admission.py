"""Real reviews over TLS to the real gunicorn: every row of the verdict table."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.admission.annotations import GROUP
from app.admission.injection import gate_name
from tests.harness.nodes import RedisNode, addresses, redis_nodes
from tests.harness.sidecars import sidecar
from tests.harness.waiting import free_port
from tests.harness.webhook import Answer, Webhook, environ_for, pod_asking, review_of, running_webhook


def tokens_on(nodes: list[RedisNode], key: str, namespace: str = "batch") -> list[set[str]]:
    """The tokens with a live lease on the semaphore, node by node."""
    found = []
    for node in nodes:
        with node.client() as client:
            record = client.hgetall(f"slots:{namespace}/{key}")
            tokens = {token for slot, token in record.items() if slot.isdecimal()}
            found.append({token for token in tokens if client.exists(f"lease:{token}")})
    return found


def test_a_pod_that_asks_is_admitted_with_a_sidecar_that_knows_its_slot(webhook: Webhook, nodes, key):
    answer = webhook.ask(pod_asking(key, length=1))

    env = answer.env()
    assert answer.allowed
    assert answer.pod["spec"]["initContainers"][0]["name"] == "at-least-semaphore-sidecar"
    assert (f"batch/{key}", "0", "60") == (env["SEMAPHORE"], env["SLOT"], env["EXPIRATION_SECONDS"])
    assert sum({env["TOKEN"]} == held for held in tokens_on(nodes, key)) >= 2


def test_a_pod_that_does_not_ask_is_left_as_it_is(webhook: Webhook):
    pod = {"metadata": {"name": "plain"}, "spec": {"containers": [{"name": "app", "image": "app"}]}}

    status, answer = webhook.post(review_of(pod, uid="plain"))

    assert (200, {"uid": "plain", "allowed": True}) == (status, answer["response"])


def test_a_pod_whose_annotations_are_wrong_is_told_which_and_what_is_accepted(webhook: Webhook, key):
    answer = webhook.ask(pod_asking(key, length=-1, lenght="3"))

    assert (False, 400) == (answer.allowed, answer.code)
    assert f"{GROUP}/length is '-1', accepted is a whole number from 0 to 10000" in answer.message
    assert f"{GROUP}/lenght is '3'" in answer.message


def test_a_full_semaphore_refuses_and_names_its_holders(webhook: Webhook, key):
    for owner in ("ReplicaSet/reports-7d9c", "ReplicaSet/reports-7d9c", "Job/nightly"):
        assert webhook.ask(pod_asking(key, owner=owner)).allowed

    answer = webhook.ask(pod_asking(key))

    assert (False, 429) == (answer.allowed, answer.code)
    expected = f"semaphore batch/{key} is full: 3 of 3 slots held by ReplicaSet/reports-7d9c (2), Job/nightly (1)"
    assert f"{expected}; none of them has started; more: at-least-semaphore holders batch/{key}" == answer.message


def test_no_denial_asks_clients_to_send_again(webhook: Webhook, key):
    """API clients would do so by themselves, up to ten times, and hold up their callers."""
    webhook.ask(pod_asking(key, length=1))

    _, answer = webhook.post(review_of(pod_asking(key, length=1)))

    assert {"code", "reason", "message"} == set(answer["response"]["status"])


def test_length_0_admits_nobody(webhook: Webhook, key):
    answer = webhook.ask(pod_asking(key, length=0))

    assert (False, 429) == (answer.allowed, answer.code)
    assert f"semaphore batch/{key} is closed: its length is 0" == answer.message


def test_the_namespace_is_the_requests_and_keeps_semaphores_apart(webhook: Webhook, key):
    pod = pod_asking(key, length=1)
    pod["metadata"]["namespace"] = "forged"

    assert webhook.ask(pod, namespace="one").allowed
    assert webhook.ask(pod, namespace="two").allowed
    assert not webhook.ask(pod, namespace="one").allowed


def test_a_dry_run_gets_the_patch_and_takes_nothing(webhook: Webhook, nodes, key):
    answers = [webhook.ask(pod_asking(key, length=1), dryRun=True) for _ in range(3)]

    assert [True] * 3 == [answer.allowed for answer in answers]
    assert f"batch/{key}" == answers[0].env()["SEMAPHORE"]
    assert [set()] * 3 == tokens_on(nodes, key)


def test_the_same_review_twice_takes_one_slot(webhook: Webhook, nodes, key):
    pod = pod_asking(key, length=2)

    first, second = (webhook.ask(pod, uid=f"once-{key}") for _ in range(2))

    assert first.env() == second.env()
    assert {first.env()["TOKEN"]} == set.union(*tokens_on(nodes, key))


def test_a_pod_that_passes_through_again_keeps_the_slot_it_was_just_given(webhook: Webhook, nodes, key):
    admitted = webhook.ask(pod_asking(key, length=1))

    again = webhook.ask(admitted.pod)

    assert again.allowed
    assert admitted.pod == again.pod


def test_a_copy_of_a_running_pod_must_have_a_slot_of_its_own(webhook: Webhook, nodes, key):
    """As `kubectl debug --copy-to` or a restored backup bring it: with a sidecar whose lease is another pod's."""
    admitted = webhook.ask(pod_asking(key, length=2))
    for node in nodes:  # as at the first renewal
        with node.client() as client:
            client.unlink(f"reservation:{admitted.env()['TOKEN']}")

    copy = webhook.ask(admitted.pod)

    assert copy.allowed
    assert admitted.env()["TOKEN"] != copy.env()["TOKEN"]
    assert not webhook.ask(admitted.pod).allowed


def test_a_sidecar_of_another_semaphore_is_not_believed(webhook: Webhook, key):
    admitted = webhook.ask(pod_asking(f"{key}.a", length=1))
    moved = admitted.pod | {"metadata": pod_asking(f"{key}.b", length=1)["metadata"]}

    answer = webhook.ask(moved)

    assert f"batch/{key}.b" == answer.env()["SEMAPHORE"]
    assert admitted.env()["TOKEN"] != answer.env()["TOKEN"]


def test_a_sidecar_that_knows_no_slot_is_believed_to_hold_none(webhook: Webhook, key):
    """As that of a pod that waited has it, whose annotations were changed in a copy."""
    admitted = webhook.ask(pod_asking(key, length=2))
    env = admitted.container()["env"]
    admitted.pod["spec"]["initContainers"][0]["env"] = [each for each in env if each["name"] != "SLOT"]

    answer = webhook.ask(admitted.pod)

    assert admitted.env()["TOKEN"] != answer.env()["TOKEN"]
    assert "SLOT" in answer.env()


def test_a_pod_that_does_not_wait_loses_our_gate_also_when_it_passes_through_again(webhook: Webhook, key):
    """Nobody would lift it."""
    admitted = webhook.ask(pod_asking(key, length=2))
    admitted.pod["spec"]["schedulingGates"] = [{"name": gate_name("")}, {"name": "example.com/other"}]

    answer = webhook.ask(admitted.pod)

    assert answer.allowed
    assert [{"name": "example.com/other"}] == answer.pod["spec"]["schedulingGates"]


def test_a_pod_that_lost_its_annotations_loses_our_sidecar_too(webhook: Webhook, key):
    admitted = webhook.ask(pod_asking(key, length=1))
    admitted.pod["metadata"]["annotations"] = {}

    answer = webhook.ask(admitted.pod)

    assert answer.allowed
    assert [] == answer.pod["spec"]["initContainers"]


def test_what_the_log_says_names_the_pod_and_no_token(webhook: Webhook, key):
    """By the names that the metrics have."""
    token = webhook.ask(pod_asking(key, length=1)).env()["TOKEN"]
    full = webhook.ask(pod_asking(key, length=1)).message

    granted, refused = (line for line in webhook.log_lines()[-2:])
    always = {"level": "info", "logger": "app.web.mutate", "namespace": "batch", "pod": "reports-7d9c-*"}
    for line, expected in (
        (
            granted,
            {
                "message": f"semaphore batch/{key}: slot 0 of 1",
                **{"reason": "granted", "allowed": True, "semaphore": f"batch/{key}", "slot": 0},
                "token": hashlib.sha256(token.encode()).hexdigest()[:8],
            },
        ),
        (
            refused,
            {
                "message": full,
                **{"reason": "full", "allowed": False, "semaphore": f"batch/{key}", "held": 1, "length": 1},
            },
        ),
    ):
        assert 0 < line.pop("admission_duration_seconds") < 30
        del line["time"]
        assert {**always, **expected} == line
    assert token not in webhook.log()


def test_a_mirror_pod_is_left_as_it_is(webhook: Webhook, nodes, key):
    pod = pod_asking(key)
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "hash"

    answer = webhook.ask(pod)

    assert (True, pod) == (answer.allowed, answer.pod)
    assert [set()] * 3 == tokens_on(nodes, key)


def test_anything_but_the_creation_of_a_pod_is_let_through(webhook: Webhook, key):
    pod = pod_asking(key)

    assert webhook.ask(pod, operation="UPDATE").pod == pod
    assert webhook.ask(pod, subResource="ephemeralcontainers").pod == pod
    deployment = {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert webhook.ask({"spec": {}}, kind=deployment).allowed


def test_300_admissions_by_16_clients_for_100_slots_admit_exactly_100(webhook: Webhook, key):
    def ask(_: int) -> Answer:
        return webhook.ask(pod_asking(key, length=100))

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, range(300)))

    assert Counter({True: 100, False: 200}) == Counter(answer.allowed for answer in answers)
    assert {429} == {answer.code for answer in answers if not answer.allowed}
    assert {str(slot) for slot in range(100)} == {answer.env()["SLOT"] for answer in answers if answer.allowed}


def test_a_pod_that_waits_is_admitted_though_no_node_answers():
    """With a gate, the holders' label and a sidecar that has a token but no slot yet."""
    nobody = ",".join(f"127.0.0.1:{free_port()}" for _ in range(3))
    with running_webhook(environ_for(nobody, WAITING_ALLOWED="true")) as webhook:
        pod = pod_asking(when_full="wait", max_wait="600")
        pod["spec"]["schedulingGates"] = [{"name": "example.com/other"}]

        answer = webhook.ask(pod)

        env = answer.env()
        assert answer.allowed
        assert [{"name": "example.com/other"}, {"name": gate_name("")}] == answer.pod["spec"]["schedulingGates"]
        assert {f"{GROUP}/holder": "true"} == answer.pod["metadata"]["labels"]
        assert ("batch/reports-db", "60") == (env["SEMAPHORE"], env["EXPIRATION_SECONDS"])
        assert "SLOT" not in env
        line = webhook.log_lines()[-1]
        assert ("info", "waiting", True) == (line["level"], line["reason"], line["allowed"])
        assert hashlib.sha256(env["TOKEN"].encode()).hexdigest()[:8] == line["token"]
        assert 1.0 == webhook.verdicts()["waiting"]
        assert env["TOKEN"] not in webhook.log()

        with sidecar(answer.container()["command"], env) as started:
            said = started.wait_for("no majority of nodes answered")
            assert "batch/reports-db" == said["semaphore"]
            assert "slot" not in said


def test_a_pod_that_waits_is_refused_where_nothing_would_let_it_in(webhook: Webhook, key):
    answer = webhook.ask(pod_asking(key, when_full="wait"))

    assert (False, 400) == (answer.allowed, answer.code)
    assert f"semaphore batch/{key}: the pod cannot wait for a slot: no reconciler is there" in answer.message


def test_with_one_node_down_admissions_go_on():
    with redis_nodes() as nodes, running_webhook(environ_for(addresses(nodes))) as webhook:
        nodes[0].kill()

        answers = [webhook.ask(pod_asking(length=2)) for _ in range(3)]

        assert [True, True, False] == [answer.allowed for answer in answers]


def test_without_a_majority_a_pod_is_denied_or_goes_without_a_slot_as_it_asked():
    """The webhook also starts, and is ready, while no node can be reached."""
    with redis_nodes() as nodes:
        environ = environ_for(addresses(nodes))
        for node in nodes[1:]:
            node.kill()
        with running_webhook(environ) as webhook:
            denied = webhook.ask(pod_asking())
            admitted = webhook.ask(pod_asking(when_unavailable="admit"))

            assert (False, 503) == (denied.allowed, denied.code)
            assert "semaphore batch/reports-db is unavailable: fewer than 2 of 3 nodes answered" in denied.message
            assert str(nodes[1].address) in denied.message
            assert (True, pod_asking(when_unavailable="admit")["spec"]) == (admitted.allowed, admitted.pod["spec"])
            assert ["admitted without a slot: no majority of the semaphore's Redis nodes answered"] == admitted.warnings
            assert {"denied": 1.0, "admitted": 1.0} == {
                "denied": webhook.verdicts()["unavailable"],
                "admitted": webhook.verdicts()["admitted_without_slot"],
            }

            gated = pod_asking(when_unavailable="admit")
            gated["spec"]["schedulingGates"] = [{"name": gate_name("")}]
            assert [] == webhook.ask(gated).pod["spec"]["schedulingGates"], "nobody would lift our gate"

            for node in nodes[1:]:
                node.start()
            assert webhook.ask(pod_asking()).allowed


def test_the_answer_comes_within_the_api_servers_patience_however_short():
    """Two nodes are silent, the API server waits for one second: the answer is there before."""
    with redis_nodes() as nodes, running_webhook(environ_for(addresses(nodes))) as webhook:
        for node in nodes[1:]:
            node.pause()

        _, answer = webhook.post(review_of(pod_asking()), timeout="1s")

        assert 503 == answer["response"]["status"]["code"]


def test_a_variant_has_annotations_keys_and_a_sidecar_of_its_own():
    with redis_nodes() as nodes:
        for node in nodes:
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", "hook", "~blue:*")
        with running_webhook(environ_for(addresses(nodes), VARIANT="blue")) as webhook:
            pod = pod_asking(length=1)
            annotations: dict[str, Any] = pod["metadata"]["annotations"]
            pod["metadata"]["annotations"] = {f"blue.{name}": value for name, value in annotations.items()}

            admitted = webhook.ask(pod)

            container = admitted.container("blue-at-least-semaphore-sidecar")
            assert {"name": "VARIANT", "value": "blue"} in container["env"]
            other = pod_asking()
            assert other == webhook.ask(other).pod
            with nodes[0].client() as client:
                assert client.exists("blue:slots:batch/reports-db")
