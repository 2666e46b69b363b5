"""What the metrics page says of nodes and semaphores, and what it does not say when it cannot know."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from app.admission.review import Reason
from app.scrape import READ_SECONDS
from sidecar.protocol import Keys
from tests.harness.nodes import RedisNode, addresses, failing, redis_nodes
from tests.harness.proxy import Fault, proxy
from tests.harness.semaphores import live_slots, put_records
from tests.harness.sidecars import sidecar
from tests.harness.waiting import wait_for
from tests.harness.webhook import Webhook, environ_for, issue_certificate, pod_asking, running_webhook

PREFIX = "at_least_semaphore_"
OF_SEMAPHORES = ("length", "held", "reserved", "overdue", "unconfirmed")


def of_semaphore(webhook: Webhook, semaphore: str) -> dict[str, float]:
    """The gauges of one semaphore."""
    return {name: webhook.samples(PREFIX + name)[(semaphore,)] for name in OF_SEMAPHORES}


def of_nodes(webhook: Webhook, nodes: list[RedisNode], name: str) -> list[float | None]:
    """One gauge, in the order of the nodes; None where there is none."""
    found = webhook.samples(f"{PREFIX}node_{name}")
    return [found.get((str(node.address),)) for node in nodes]


def one(webhook: Webhook, name: str) -> float:
    (value,) = webhook.samples(PREFIX + name).values()
    return value


@contextmanager
def away(nodes: list[RedisNode], paused: bool) -> Iterator[None]:
    begin, end = (RedisNode.pause, RedisNode.resume) if paused else (RedisNode.kill, RedisNode.start)
    with failing(nodes, begin, end):
        yield


def test_a_semaphore_is_seen_to_fill_and_its_pods_to_start(webhook, key):
    semaphore = f"batch/{key}"
    first, *_ = [webhook.ask(pod_asking(key, length=2)) for _ in range(2)]
    assert {"length": 2, "held": 2, "reserved": 2, "overdue": 0, "unconfirmed": 0} == of_semaphore(webhook, semaphore)
    age = webhook.samples(f"{PREFIX}oldest_reservation_age_seconds")[(semaphore,)]
    assert 0 <= age < 60

    with sidecar(first.container()["command"], first.env()) as process:
        process.wait_for("the slot is held")
        assert 1 == of_semaphore(webhook, semaphore)["reserved"]
        assert 0 == process.terminate()
    assert {"held": 1, "reserved": 1} == {
        name: value for name, value in of_semaphore(webhook, semaphore).items() if name in ("held", "reserved")
    }


def test_a_semaphore_without_reservations_has_no_oldest_one(webhook, key):
    answer = webhook.ask(pod_asking(key))
    with sidecar(answer.container()["command"], answer.env()) as process:
        process.wait_for("the slot is held")
        assert (f"batch/{key}",) not in webhook.samples(f"{PREFIX}oldest_reservation_age_seconds")
        assert (f"batch/{key}",) in webhook.samples(f"{PREFIX}held")


def test_a_sidecar_that_was_killed_is_overdue_and_then_its_slot_is_free(webhook, nodes, key):
    """Counted by the node: nobody gave the lease back."""
    semaphore = f"batch/{key}"
    expired = of_nodes(webhook, nodes, "expired_keys_total")[0]
    assert expired is not None
    answer = webhook.ask(pod_asking(key, expiration=5))
    with sidecar(answer.container()["command"], answer.env()) as process:
        process.wait_for("the slot is held")
        assert 0 == of_semaphore(webhook, semaphore)["overdue"]
    wait_for(lambda: of_semaphore(webhook, semaphore)["overdue"], "the slot to be overdue")
    wait_for(lambda: not of_semaphore(webhook, semaphore)["held"], "the slot to be free")
    assert 0 == of_semaphore(webhook, semaphore)["overdue"]
    wait_for(lambda: of_nodes(webhook, nodes, "expired_keys_total")[0] == expired + 1, "the node to count it")


def test_a_lease_that_no_majority_has_is_unconfirmed(webhook, nodes, key):
    webhook.ask(pod_asking(key))
    (token,) = tokens_on(nodes[0], key)
    for node in nodes[:2]:
        with node.client() as client:
            client.delete(f"lease:{token}")

    found = of_semaphore(webhook, f"batch/{key}")
    assert (0, 1) == (found["held"], found["unconfirmed"])


def tokens_on(node: RedisNode, key: str) -> list[str]:
    """Those with a lease in the semaphore on this node."""
    with node.client() as client:
        return list(live_slots(client, Keys().record(f"batch/{key}")).values())


def test_all_nodes_are_up_and_answer_in_no_time_with_our_own_clock(webhook, nodes):
    assert [1, 1, 1] == of_nodes(webhook, nodes, "up")
    assert 1 == one(webhook, "read_success")
    for round_trip in of_nodes(webhook, nodes, "round_trip_seconds"):
        assert round_trip is not None
        assert 0 < round_trip < READ_SECONDS
    for offset in of_nodes(webhook, nodes, "clock_offset_seconds"):
        assert offset is not None
        assert -READ_SECONDS < offset < READ_SECONDS
    assert 0 < one(webhook, "read_duration_seconds") < READ_SECONDS


@pytest.mark.parametrize("paused", [False, True], ids=["killed", "paused"])
@pytest.mark.parametrize("number", range(3))
def test_with_one_node_away_the_page_says_which_and_tells_of_semaphores(webhook, nodes, key, number, paused):
    webhook.ask(pod_asking(key))
    with away([nodes[number]], paused):
        assert [float(at != number) for at in range(3)] == of_nodes(webhook, nodes, "up")
        assert 1 == one(webhook, "read_success")
        assert 1 == of_semaphore(webhook, f"batch/{key}")["held"]
        for name in ("round_trip_seconds", "clock_offset_seconds", "leases", "expired_keys_total"):
            assert [number] == [at for at, value in enumerate(of_nodes(webhook, nodes, name)) if value is None], name
    wait_for(lambda: [1, 1, 1] == of_nodes(webhook, nodes, "up"), "the node to be up again")


@pytest.mark.parametrize("paused", [False, True], ids=["killed", "paused"])
def test_without_a_majority_nothing_is_said_of_semaphores_and_the_rest_is_there(webhook, nodes, key, paused):
    """A zero would say that the slots are free."""
    webhook.ask(pod_asking(key))
    with away(nodes[1:], paused):
        assert [1, 0, 0] == of_nodes(webhook, nodes, "up")
        assert 0 == one(webhook, "read_success")
        for name in (*OF_SEMAPHORES, "semaphores", "semaphores_unreadable", "semaphores_summed", "node_leases"):
            assert {} == webhook.samples(PREFIX + name), name
        assert 1 <= webhook.verdicts()["granted"]
        assert "unavailable" in webhook.ask(pod_asking(key)).message
    wait_for(lambda: one(webhook, "read_success"), "the nodes to be read again")
    assert 1 == of_semaphore(webhook, f"batch/{key}")["held"]


def test_a_node_that_came_back_empty_lacks_leases_until_it_is_repaired(key):
    with redis_nodes() as nodes, running_webhook(environ_for(addresses(nodes)), workers=1) as webhook:
        webhook.ask(pod_asking(key))
        nodes[2].restart(empty=True)
        wait_for(lambda: [0, 0, 1] == of_nodes(webhook, nodes, "leases_missing"), "the lease to be missed")
        assert [1, 1, 0] == of_nodes(webhook, nodes, "leases")

        def is_repaired() -> bool:
            webhook.ask(pod_asking(key, length=0))
            webhook.ask(pod_asking(key))
            return [0, 0, 0] == of_nodes(webhook, nodes, "leases_missing")

        wait_for(is_repaired, "the node to be repaired")
        repairs = of_nodes(webhook, nodes, "repairs_total")
        assert [0, 0] == repairs[:2]
        assert repairs[2]


def test_faults_are_counted_by_their_kind(key):
    with redis_nodes() as nodes, running_webhook(environ_for(addresses(nodes)), workers=1) as webhook:
        webhook.ask(pod_asking(key))
        faults = {(str(node.address), kind): 0 for node in nodes for kind in ("timeout", "connection", "error")}
        assert {key[::-1]: value for key, value in faults.items()} == webhook.samples(f"{PREFIX}node_faults_total")

        def count(kind: str, node: RedisNode) -> float:
            webhook.ask(pod_asking(key, length=1000))
            return webhook.samples(f"{PREFIX}node_faults_total")[(kind, str(node.address))]

        with away([nodes[0]], paused=True):
            wait_for(lambda: count("timeout", nodes[0]) == 1, "a timeout")
        with away([nodes[1]], paused=False):
            wait_for(lambda: count("connection", nodes[1]) == 1, "a lost connection")
        with nodes[2].client() as client:
            client.config_set("maxmemory", 1)
            wait_for(lambda: count("error", nodes[2]) >= 1, "an error")


def test_semaphores_past_the_most_are_summed_those_that_are_used_keep_their_own(nodes):
    more = environ_for(addresses(nodes), METRICS_SEMAPHORES="2")
    with redis_nodes() as fresh, running_webhook({**more, "REDIS_ADDRESSES": addresses(fresh)}) as webhook:
        for key in ("a", "b", "c", "z"):
            webhook.ask(pod_asking(key, length=3))
        free(fresh, "a")

        assert {("batch/b",): 1, ("batch/c",): 1, ("other",): 1} == webhook.samples(f"{PREFIX}held")
        assert {("batch/b",): 3, ("batch/c",): 3, ("other",): 6} == webhook.samples(f"{PREFIX}length")
        assert (4, 2) == (one(webhook, "semaphores"), one(webhook, "semaphores_summed"))
        assert ("other",) in webhook.samples(f"{PREFIX}oldest_reservation_age_seconds")


def free(nodes: list[RedisNode], key: str) -> None:
    for node in nodes:
        with node.client() as client:
            client.delete(*map(Keys().lease, tokens_on(node, key)))


def test_a_node_that_forbids_to_list_leaves_admissions_alone(key):
    """As with rights from before there was a list; the log says what is missing, and once. The nodes are well."""
    with redis_nodes() as nodes, running_webhook(environ_for(addresses(nodes))) as webhook:
        for node in nodes:
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", "hook", "-scan")

        assert 0 == one(webhook, "read_success")
        assert [1, 1, 1] == of_nodes(webhook, nodes, "up")
        assert webhook.ask(pod_asking(key)).allowed
        log = webhook.log()
        assert 3 == log.count("did not tell of all semaphores: User hook has no permissions to run the 'scan' command")
        assert "passed over" not in log


def test_one_node_that_forbids_to_list_is_up_and_the_others_tell(key):
    with redis_nodes() as nodes, running_webhook(environ_for(addresses(nodes))) as webhook:
        webhook.ask(pod_asking(key))
        with nodes[0].client() as client:
            client.execute_command("ACL", "SETUSER", "hook", "-scan", "-info")

        for _ in range(2):
            assert [1, 1, 1] == of_nodes(webhook, nodes, "up")
            assert 1 == of_semaphore(webhook, f"batch/{key}")["held"]
            assert of_nodes(webhook, nodes, "expired_keys_total")[0] is None


def test_nodes_that_answer_are_up_though_one_is_too_slow_to_tell_of_all(key):
    """Each answer in time, and all of them together not."""
    with redis_nodes() as nodes, ExitStack() as stack:
        slow = stack.enter_context(proxy(nodes[2].address))
        # Each is waited for longer than the whole reading may take: on a busy machine none is passed over.
        patient = environ_for(addresses([*nodes[:2], slow]), ADMISSION_BUDGET_SECONDS="25")
        webhook = stack.enter_context(running_webhook(patient))
        put_records(nodes, (f"batch/{number}" for number in range(10_000)))
        slow.fault = Fault.SLOW
        assert 0 == one(webhook, "read_success")
        assert {1.0} == set(webhook.samples(f"{PREFIX}node_up").values())


def test_readers_who_come_at_once_share_one_reading(webhook, nodes):
    """Each would ask all nodes for all semaphores."""
    webhook.metrics()
    before = nodes[0].calls("scan")
    with away([nodes[2]], paused=True):  # a reading takes half a second until it is passed over
        readers = [threading.Thread(target=webhook.metrics) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(30)

    assert nodes[0].calls("scan") - before < 8


def test_the_page_tells_when_the_certificate_ends(nodes, tmp_path):
    with running_webhook(environ_for(addresses(nodes))) as webhook:
        assert certificate_end(webhook) == one(webhook, "certificate_expiry_timestamp_seconds")

        (webhook.folder / "tls.crt").write_text("no certificate")
        assert certificate_end(webhook) == one(webhook, "certificate_expiry_timestamp_seconds")

        later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=90)
        issue_certificate(webhook.folder, webhook.authority, not_after=later)
        assert later.timestamp() == certificate_end(webhook) == one(webhook, "certificate_expiry_timestamp_seconds")


def certificate_end(webhook: Webhook) -> float:
    """As a client sees it, in seconds since the epoch."""
    with ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection((webhook.host, webhook.port), timeout=10))
        connection = stack.enter_context(webhook.tls.wrap_socket(plain, server_hostname="localhost"))
        found = connection.getpeercert()
    assert found
    return ssl.cert_time_to_seconds(str(found["notAfter"]))


def test_every_reason_is_counted_from_the_start_and_admissions_are_timed(nodes, key):
    with running_webhook(environ_for(addresses(nodes))) as webhook:
        assert {reason.value: 0 for reason in Reason} == webhook.verdicts()
        webhook.ask(pod_asking(key))
        assert 1 == one(webhook, "admission_duration_seconds_count")
        assert 0 < one(webhook, "admission_duration_seconds_sum") < 30
        assert [("3.11", "0.1.0")] == [
            (python[:4], version) for python, version in webhook.samples(f"{PREFIX}build_info")
        ]
