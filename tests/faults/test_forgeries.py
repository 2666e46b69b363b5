"""Forged reviews and pods against the real webhook, hostile variables against real sidecars."""

import gzip
import itertools
import json
import re
import secrets
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hiredis
import pytest

from app.admission.annotations import GROUP
from app.decision import tokens
from app.server import LARGEST_BODY_BYTES
from tests.harness.nodes import HOOK_PASSWORD, SIDECAR_PASSWORD, SIDECAR_USER, RedisNode, addresses
from tests.harness.sidecars import Sidecar, sidecar
from tests.harness.waiting import wait_for
from tests.harness.webhook import Answer, Webhook, environ_for, pod_asking, read_answer, review_of, running_webhook

JSON = {"Content-Type": "application/json"}
NAME = "at-least-semaphore-sidecar"
# Ends of lines as JSON, terminals and str.splitlines see them, what steers a terminal, and half of a character.
HOSTILE = 'x"}\n{"level": "error"}\r\x00\x1b[2J\x85\u2028\u202e\u200f\ud800\\'


@pytest.fixture(scope="module")
def shared(nodes: list[RedisNode]) -> Iterator[Webhook]:
    """With time enough for large pods on a busy machine."""
    with running_webhook(environ_for(addresses(nodes), ADMISSION_BUDGET_SECONDS="8")) as running:
        yield running


@pytest.fixture
def webhook(shared: Webhook, nodes: list[RedisNode]) -> Iterator[Webhook]:
    """Whatever it was asked: every line of its log is an object, no secret is in one, and nothing was an error."""
    yield shared
    said = shared.log()
    lines = shared.log_lines()
    assert len(lines) == said.count("\n")
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert all(line["level"] != "error" and "exception" not in line for line in lines), said
    for secret in (HOOK_PASSWORD, SIDECAR_PASSWORD, *tokens_on(nodes)):
        assert secret not in said


@pytest.fixture
def key() -> str:
    """The key of a semaphore that no other test uses."""
    return secrets.token_hex(8)


def tokens_on(nodes: list[RedisNode]) -> set[str]:
    """All that have a lease anywhere."""
    tokens: set[str] = set()
    for node in nodes:
        with node.client() as client:
            tokens |= {name.removeprefix("lease:") for name in client.keys("lease:*")}
    return tokens


def claim(nodes: list[RedisNode], token: str) -> None:
    """As its sidecar does with the first renewal."""
    for node in nodes:
        with node.client() as client:
            client.unlink(f"reservation:{token}")


def post(webhook: Webhook, body: bytes, **headers: str) -> tuple[int, Any]:
    status, answer = webhook.request("POST", "/mutate?timeout=10s", body, {**JSON, **headers})
    return status, json.loads(answer)


# Forged sidecars -----------------------------------------------------------------------------------------


def forged(semaphore: str, **changed: object) -> dict[str, Any]:
    """A sidecar as the webhook would inject it, but for its image and what is changed of its claim."""
    claim = {"SEMAPHORE": semaphore, "SLOT": "0", "TOKEN": "f" * 32, "EXPIRATION_SECONDS": "60", **changed}
    env = [{"name": name, "value": value} for name, value in claim.items()]
    return {"name": NAME, "image": "forged:1", "restartPolicy": "Always", "env": env}


def named_ours(pod: dict[str, Any]) -> list[dict[str, Any]]:
    spec = pod["spec"]
    return [each for each in [*(spec.get("initContainers") or []), *spec["containers"]] if each["name"] == NAME]


def is_replaced(answer: Answer) -> bool:
    """By the one sidecar of the webhook, which stands first, with a slot of its own."""
    (ours,) = named_ours(answer.pod)
    return answer.allowed and answer.pod["spec"]["initContainers"][0] == ours and ours["image"] != "forged:1"


CLAIMS: dict[str, Any] = {
    "a token that nobody was given": {},
    "none of its variables": {"env": []},
    "null for variables": {"env": None},
    "variables without values": {"env": [{"name": "TOKEN"}, {"name": "SLOT"}, {"name": "SEMAPHORE"}]},
    "a token from a Secret": {
        "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}, {"name": "SLOT"}]
    },
    "numbers for texts": {"env": [{"name": name, "value": 0} for name in ("TOKEN", "SLOT", "SEMAPHORE")]},
    "an empty name": {"env": [{"name": "", "value": HOSTILE}]},
    "no restart policy": {"restartPolicy": None},
    "a restart policy that is a list": {"restartPolicy": ["Always"]},
}


@pytest.mark.parametrize("changed", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("where", ["initContainers", "containers"])
def test_a_forged_sidecar_is_replaced(webhook: Webhook, key, where, changed):
    pod = pod_asking(key)
    pod["spec"].setdefault(where, []).insert(0, {**forged(f"batch/{key}"), **changed})

    assert is_replaced(webhook.ask(pod))


TOKENS = {
    "none": "",
    "one digit short": "f" * 31,
    "one digit more": "f" * 33,
    "upper case": "F" * 32,
    "a line end": "f" * 32 + "\n",
    "control characters": HOSTILE,
    "a pattern of keys": "*" * 32,
    "other digits": "٣" * 32,
    "a megabyte": "f" * 2**20,
    "null": None,
    "a number": 7,
    "an object": {"f": "f"},
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_a_sidecar_with_a_token_of_an_odd_shape_is_replaced(webhook: Webhook, key, token):
    pod = pod_asking(key)
    pod["spec"]["initContainers"] = [forged(f"batch/{key}", TOKEN=token)]

    assert is_replaced(webhook.ask(pod))


def test_a_sidecar_with_the_token_of_a_running_pod_is_replaced_wherever_and_however_often_it_stands(
    webhook: Webhook, nodes, key
):
    admitted = webhook.ask(pod_asking(key, length=2))
    claim(nodes, admitted.env()["TOKEN"])
    copy = admitted.container()
    pod = pod_asking(key, length=2)
    pod["spec"] = {"initContainers": [copy, copy], "containers": [copy, {"name": "app"}, copy]}

    answer = webhook.ask(pod)

    assert [NAME] == [each["name"] for each in answer.pod["spec"]["initContainers"]]
    assert [{"name": "app"}] == answer.pod["spec"]["containers"]
    assert admitted.env()["TOKEN"] != answer.env()["TOKEN"]
    assert not webhook.ask(pod).allowed


@pytest.mark.parametrize(
    "semaphore", ["other/{key}", "batch/{key}/", "Batch/{key}", "batch//{key}", " batch/{key}", "{key}", "", None, []]
)
def test_a_just_admitted_sidecar_of_another_semaphore_has_no_say(webhook: Webhook, key, semaphore):
    admitted = webhook.ask(pod_asking(key, length=2))
    token = admitted.env()["TOKEN"]
    variable = next(each for each in admitted.container()["env"] if each["name"] == "SEMAPHORE")
    variable["value"] = semaphore.format(key=key) if isinstance(semaphore, str) else semaphore

    answer = webhook.ask(admitted.pod)

    assert answer.allowed
    assert token != answer.env()["TOKEN"]


def test_a_just_admitted_sidecar_that_moves_to_another_namespace_has_no_say(webhook: Webhook, key):
    admitted = webhook.ask(pod_asking(key, length=1))

    answer = webhook.ask(admitted.pod, namespace="other")

    assert f"other/{key}" == answer.env()["SEMAPHORE"]
    assert admitted.env()["TOKEN"] != answer.env()["TOKEN"]


def test_what_only_looks_like_our_name_is_left_alone(webhook: Webhook, key):
    """Kubernetes takes lower-case names only, and so refuses most of these by itself."""
    others = [
        {**forged(f"batch/{key}"), "name": name} for name in (NAME.upper(), f" {NAME}", f"{NAME}\n", f"blue-{NAME}")
    ]
    pod = pod_asking(key)
    pod["spec"]["initContainers"] = others

    answer = webhook.ask(pod)

    assert is_replaced(answer)
    assert others == answer.pod["spec"]["initContainers"][1:]


def test_ephemeral_containers_are_left_alone(webhook: Webhook, key):
    """A pod cannot be created with any (https://kubernetes.io/docs/concepts/workloads/pods/ephemeral-containers/)."""
    pod = pod_asking(key)
    pod["spec"]["ephemeralContainers"] = [forged(f"batch/{key}")]

    answer = webhook.ask(pod)

    assert is_replaced(answer)
    assert [forged(f"batch/{key}")] == answer.pod["spec"]["ephemeralContainers"]


SECRET = "hunter2-or-a-token"


@pytest.mark.parametrize(
    "spec",
    [
        SECRET,
        [SECRET],
        {"containers": SECRET},
        {"containers": {"TOKEN": SECRET}},
        {"containers": [SECRET]},
        {"containers": [{"name": {"TOKEN": SECRET}}]},
        {"containers": [{"name": "app", "env": SECRET}]},
        {"containers": [{"name": "app", "env": {"TOKEN": SECRET}}]},
        {"containers": [{"name": "app", "env": [SECRET]}]},
        {"containers": [{"name": "app", "env": [[SECRET]]}]},
        {"containers": [{"name": "app", "env": [{"name": [SECRET]}]}]},
        {"containers": [{"name": "app", "env": [{"value": SECRET}]}]},
        {"containers": [], "initContainers": [{"name": "app", "env": [{"name": {"TOKEN": SECRET}}]}]},
    ],
    ids=json.dumps,
)
def test_of_a_spec_of_another_shape_no_value_is_told(webhook: Webhook, spec):
    """A variable may hold a password. The message still says where and what."""
    pod = pod_asking()
    pod["spec"] = spec

    status, answer = webhook.post(review_of(pod))

    assert 400 == status
    assert re.fullmatch(r"request\.object\.spec\S* is (missing|an? \w+), accepted is an? \w+", answer["error"])
    assert SECRET not in webhook.log()


# Forged metadata -----------------------------------------------------------------------------------------


def test_labels_ask_for_nothing(webhook: Webhook, key):
    pod = pod_asking(key)
    pod["metadata"]["labels"] = pod["metadata"].pop("annotations")

    assert pod == webhook.ask(pod).pod


@pytest.mark.parametrize(
    "namespace", ["../kube-system", "a/b", "A", "a b", "a\n", HOSTILE, "é", "-a", "a" * 64, "", None]
)
def test_a_namespace_that_is_none_is_refused_and_the_objects_own_is_not_read(webhook: Webhook, key, namespace):
    pod = pod_asking(key)
    pod["metadata"]["namespace"] = namespace

    assert f"batch/{key}" == webhook.ask(pod).env()["SEMAPHORE"]
    status, answer = webhook.post(review_of(pod, namespace=namespace))
    assert (400, True) == (status, answer["error"].isprintable())


@pytest.mark.parametrize("wrong", [None, 1, 1.5, True, [], ["true"], {}, {"a": HOSTILE}], ids=repr)
@pytest.mark.parametrize("name", [f"{GROUP}/length", f"{GROUP}/at-least-semaphore-pod", "other", HOSTILE])
def test_an_annotation_that_is_no_text_is_refused_and_named(webhook: Webhook, key, name, wrong):
    pod = pod_asking(key)
    pod["metadata"]["annotations"][name] = wrong

    status, answer = webhook.post(review_of(pod))

    assert 400 == status
    assert f"metadata.annotations[{name[:20]!r}"[:30] in answer["error"]
    assert answer["error"].isprintable()


@pytest.mark.parametrize("text", [HOSTILE, "9" * 1_000_000, "\x1b" * 1_000_000], ids=["hostile", "digits", "escapes"])
@pytest.mark.parametrize("name", ["at-least-semaphore-pod", "key", "length", "expiration", "when-unavailable", "more"])
def test_an_annotation_with_any_text_is_denied_with_a_message_that_can_be_read(webhook: Webhook, name, text):
    pod = pod_asking()
    pod["metadata"]["annotations"][f"{GROUP}/{name}"] = text

    answer = webhook.ask(pod)

    assert (False, 400) == (answer.allowed, answer.code)
    assert f"{GROUP}/{name} is " in answer.message
    assert answer.message.isprintable()
    assert len(answer.message) < 1000


@pytest.mark.parametrize("field", ["name", "generateName", "owner's name", "owner's kind", "label", "other annotation"])
@pytest.mark.parametrize("text", [HOSTILE, HOSTILE * 10_000], ids=["short", "long"])
def test_names_are_told_to_others_without_what_steers_a_terminal(webhook: Webhook, key, field, text):
    """In the message of a refusal; the log has them as they are, within their line."""
    pod = pod_asking(key, length=1)
    owner = pod["metadata"]["ownerReferences"][0]
    match field:
        case "name" | "generateName":
            pod["metadata"][field] = text
            del pod["metadata"]["ownerReferences"]
        case "owner's name" | "owner's kind":
            owner[field.removeprefix("owner's ")] = text
        case "label":
            pod["metadata"]["labels"] = {text: text}
        case _:
            pod["metadata"]["annotations"][text] = text

    admitted, refused = webhook.ask(pod), webhook.ask(pod)

    assert is_replaced(admitted)
    assert (False, 429) == (refused.allowed, refused.code)
    assert refused.message.isprintable()
    assert len(refused.message) < 700
    assert len(json.dumps(webhook.log_lines()[-1])) < 5000


@pytest.mark.parametrize("uid", ["", HOSTILE, "a\nb", "\u202e", "x" * 254, None, 1, ["uid"]], ids=ascii)
def test_a_uid_that_is_none_is_refused(webhook: Webhook, uid):
    review = review_of(pod_asking())
    review["request"]["uid"] = uid

    status, answer = webhook.post(review)

    assert (400, True) == (status, answer["error"].startswith("request.uid is "))
    assert answer["error"].isprintable()


# Bodies --------------------------------------------------------------------------------------------------


def body_with(value: bytes, key: str = "bodies") -> bytes:
    """A review that is fine but for one value, which stands where nobody looks."""
    return (
        json.dumps(review_of(pod_asking(key), dryRun=True))
        .encode()
        .replace(b'"oldObject": null', b'"oldObject": ' + value)
    )


@pytest.mark.parametrize("opened", [b"[", b'{"a":'], ids=["lists", "objects"])
@pytest.mark.parametrize("levels", [900, 970, 1000, 10_000, 100_000])
def test_what_is_nested_too_deeply_is_refused_with_the_reason(webhook: Webhook, opened, levels):
    closed = {b"[": b"]", b'{"a":': b"}"}[opened]

    status, answer = post(webhook, body_with(opened * levels + b"1" + closed * levels))

    if levels >= 1000:
        assert (400, True) == (status, "maximum recursion depth exceeded" in answer["error"])
    if levels <= 900:
        assert 200 == status


def test_a_number_of_very_many_digits_is_refused_and_one_past_all_floats_is_none_of_our_business(webhook: Webhook):
    status, answer = post(webhook, body_with(b"9" * 5000))
    assert (400, True) == (status, "Exceeds the limit (4300 digits)" in answer["error"])

    assert 200 == post(webhook, body_with(b"9" * 4000))[0]
    assert 200 == post(webhook, body_with(b"1e999999"))[0]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_count_as_numbers(webhook: Webhook, number):
    """No answer repeats what came but as text, so that every answer is JSON."""
    assert 200 == post(webhook, body_with(number.encode()))[0]

    body = body_with(b"null").replace(b'"dryRun": true', f'"dryRun": {number}'.encode())
    status, answer = post(webhook, body)
    assert (400, True) == (status, answer["error"].startswith("request.dryRun is "))


def test_of_a_name_that_comes_twice_the_last_one_counts(webhook: Webhook, key):
    """As in Go. No client can make the API server read one and the webhook the other: it encodes what it has read."""
    body = json.dumps(review_of(pod_asking(key), namespace="second"))
    body = body.replace('"namespace": "second"', '"namespace": "first", "namespace": "second"')
    body = body.replace(f'"{GROUP}/length": "3"', f'"{GROUP}/length": "x", "{GROUP}/length": "3"')

    status, answer = post(webhook, body.encode())

    assert 200 == status
    assert f"second/{key}" == read_answer(answer, pod_asking(key)).env()["SEMAPHORE"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"])
def test_json_may_come_in_any_encoding_of_unicode(webhook: Webhook, encoding):
    """Python tells them apart by the first bytes; the API server sends UTF-8."""
    assert 200 == post(webhook, body_with(b'"x"').decode().encode(encoding))[0]


@pytest.mark.parametrize(
    "body",
    [
        body_with(b'"\xff"'),
        body_with(b'"\xc0\x80"'),
        body_with(b'"\n"'),
        body_with(b"1") + b"1",
        body_with(b"1") * 2,
        body_with(b"1")[:-1],
        b"\xef\xbb\xbf" * 2 + body_with(b"1"),
        gzip.compress(body_with(b"1")),
        b"\x00" * 1000,
    ],
    ids=["0xff", "long NUL", "line end", "more", "twice", "cut", "two BOMs", "gzip", "NULs"],
)
def test_what_is_no_json_is_refused_with_the_reason(webhook: Webhook, body):
    status, answer = post(webhook, body, **{"Content-Encoding": "gzip"} if body.startswith(b"\x1f\x8b") else {})

    assert (400, True) == (status, answer["error"].startswith("the body is not JSON: "))
    assert answer["error"].isprintable()
    assert len(answer["error"]) < 300


def test_halves_of_characters_are_text_like_any_other(webhook: Webhook, key):
    """JSON can write them, UTF-8 cannot: as escapes or as the bytes that Python takes for them."""
    for half in (b"\\ud800", b"\\udfff", b"\xed\xa0\x80"):
        body = (
            json.dumps(review_of(pod_asking(key, length=1000))).encode().replace(b'"reports-7d9c-"', b'"' + half + b'"')
        )
        assert 200 == post(webhook, body)[0]


# Large bodies --------------------------------------------------------------------------------------------


def large_pods(size: int) -> dict[str, dict[str, Any]]:
    """Pods whose JSON has a little more than `size` bytes."""
    text, pods = "x" * size, {}
    pods["a long annotation"] = pod_asking()
    pods["a long annotation"]["metadata"]["annotations"]["other"] = text
    pods["a long variable of a forged sidecar"] = pod_asking()
    pods["a long variable of a forged sidecar"]["spec"]["initContainers"] = [forged("batch/db", TOKEN=text)]
    pods["many containers"] = pod_asking()
    pods["many containers"]["spec"]["containers"] = [{"name": f"{at:09}"} for at in range(size // 23)]
    pods["many sidecars"] = pod_asking()
    pods["many sidecars"]["spec"]["containers"] = [{"name": NAME}] * 10_000 + [
        {"name": "app", "args": [text[: size // 2]]}
    ]
    pods["many labels"] = pod_asking()
    pods["many labels"]["metadata"]["labels"] = {f"{at:09}": "" for at in range(size // 17)}
    return pods


LARGE = 6 * 1024 * 1024


@pytest.mark.parametrize("kind", large_pods(0))
def test_a_pod_below_the_limit_is_admitted_and_the_log_stays_short(webhook: Webhook, key, kind):
    pod = large_pods(LARGE)[kind]
    pod["metadata"]["annotations"][f"{GROUP}/key"] = key
    if kind == "many sidecars":  # the patch names each
        pod["spec"]["containers"] = pod["spec"]["containers"][-2000:]
    before = len(webhook.log())

    answer = webhook.ask(pod)

    assert is_replaced(answer)
    assert len(webhook.log()) - before < 1000


@pytest.mark.parametrize("kind", large_pods(0))
def test_a_pod_above_the_limit_is_refused_with_the_reason(webhook: Webhook, kind):
    body = json.dumps(review_of(large_pods(LARGEST_BODY_BYTES)[kind])).encode().ljust(LARGEST_BODY_BYTES + 1)

    status, answer = post(webhook, body)

    assert (413, True) == (status, "exceeds" in answer["error"])


# HTTP ----------------------------------------------------------------------------------------------------


def exchange(webhook: Webhook, sent: bytes) -> bytes:
    """Whatever comes back, until the webhook closes the connection."""
    with (
        socket.create_connection(("127.0.0.1", webhook.port), timeout=30) as plain,
        webhook.tls.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=True) as peer,
    ):
        peer.sendall(sent)
        received = b""
        try:
            while part := peer.recv(65536):
                received += part
        except ConnectionResetError:
            pass
        return received


HEAD = b"POST /mutate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def chunks(body: bytes, of: int = 1_000_000) -> bytes:
    parts = [body[at : at + of] for at in range(0, len(body), of)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def test_a_body_in_chunks_is_read(webhook: Webhook):
    assert b"HTTP/1.1 200 " == exchange(webhook, CHUNKED + chunks(body_with(b"1"), of=100) + b"0\r\n\r\n")[:13]


@pytest.mark.parametrize(
    "broken", [b"ZZ\r\n", b"-5\r\n", b"\r\n\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"2\r\n{}XX", b"2;\x00\r\n{}\r\n"], ids=repr
)
def test_chunks_that_are_none_are_refused_with_the_reason(webhook: Webhook, broken):
    head, _, body = exchange(webhook, CHUNKED + broken + b"\r\n" * 10).partition(b"\r\n\r\n")

    assert b"HTTP/1.1 400 " == head[:13]
    assert json.loads(body)["error"].startswith("the body cannot be read: ")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x1b[2J\r\n\r\n",
        b'GET /\x1b[2J\n{"level": "error"} HTTP/1.1\r\n\r\n',
        b"POST /mutate HTTP/1.1\r\nHost: localhost\r\nX: a\x00\x1b[2Jb\r\n\r\n",
        b"POST /mutate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /mutate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /mutate HTTP/9.9\r\n\r\n",
        b"POST http://\xff/mutate HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"GET /" + b"\xe2\x80\xae" * 2000 + b" HTTP/1.1\r\n\r\n",
        HEAD.replace(b"/mutate", b"/mutate?timeout=%00%0a%ff%1b[2J")
        + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}",
        HEAD.replace(b"application/json", b"text/\x1b[2J%0a") + b"Content-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 999\r\nConnection: close\r\n\r\n{}" + b" " * 997,
    ],
    ids=lambda sent: repr(sent)[:50],
)
def test_hostile_requests_are_refused_within_the_log(webhook: Webhook, sent):
    assert exchange(webhook, sent)[:10] == b"HTTP/1.1 4"


# Nodes that repeat what they were sent -------------------------------------------------------------------


class Repeating(socketserver.BaseRequestHandler):
    """A server that knows few commands, and says of others what Redis says."""

    server: "RepeatingServer"

    def handle(self) -> None:
        reader = hiredis.Reader()
        while received := self.request.recv(65536):
            reader.feed(received)
            while words := reader.gets():
                self.request.sendall(self.answer([word.decode() for word in words]))

    def answer(self, words: list[str]) -> bytes:
        name, *arguments = words
        if name in self.server.known:
            return b"+OK\r\n"
        repeated = " ".join(f"'{each}'" for each in arguments)[:128]
        return f"-ERR unknown command '{name}', with args beginning with: {repeated}\r\n".encode()


class RepeatingServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    known: frozenset[str] = frozenset()


@contextmanager
def repeating(*known: str) -> Iterator[str]:
    """The address of such a server."""
    with RepeatingServer(("127.0.0.1", 0), Repeating) as server:
        server.known = frozenset(known)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("known", [(), ("AUTH", "SCRIPT")], ids=["nothing", "AUTH and SCRIPT"])
def test_what_a_node_repeats_of_a_password_or_a_token_is_not_told(known):
    """Neither in the log nor to the pod's creator; a Redis whose commands were renamed answers like this."""
    with repeating(*known) as address, running_webhook(environ_for(address)) as webhook:
        denied = webhook.ask(pod_asking("db"), uid="uid")

        said = denied.message + webhook.log()
        assert (False, 503) == (denied.allowed, denied.code)
        assert "unknown command" in said
        assert HOOK_PASSWORD not in said
        for token in itertools.islice(tokens("uid", "batch/db", HOOK_PASSWORD.encode()), 10):
            assert token not in said


# Sidecars ------------------------------------------------------------------------------------------------

RUN = ["python", "-m", "sidecar"]
TOKEN = secrets.token_hex(16)
# An environment has no NUL, and bytes that are no UTF-8 instead of halves of characters.
IN_VARIABLE = "x-7f3a" + HOSTILE.replace("\x00", "").replace("\ud800", "\udcff")


def variables(nodes: list[RedisNode], **changed: str) -> dict[str, str]:
    return {
        "SEMAPHORE": "batch/db",
        "SLOT": "0",
        "TOKEN": TOKEN,
        "EXPIRATION_SECONDS": "60",
        "REDIS_ADDRESSES": addresses(nodes),
        "REDIS_USERNAME": SIDECAR_USER,
        "REDIS_PASSWORD": SIDECAR_PASSWORD,
        **changed,
    }


def said_by(process: Sidecar) -> str:
    """What it has said in the end, in which the secrets are not."""
    for secret in (TOKEN, SIDECAR_PASSWORD):
        assert secret not in process.output
    return process.output


@pytest.mark.parametrize("text", [IN_VARIABLE, "x" * 100_000], ids=["hostile", "long"])
@pytest.mark.parametrize("variable", ["SEMAPHORE", "VARIANT", "REDIS_USERNAME", "REDIS_PASSWORD"])
def test_a_sidecar_with_a_hostile_variable_says_everything_in_lines_of_json(nodes, variable, text):
    with sidecar(RUN, variables(nodes, **{variable: text})) as process:
        wait_for(lambda: process.lines, "the first line of the log")
        assert 0 == process.terminate()

    said = said_by(process)
    assert all({"time", "level", "message", "semaphore", "slot"} <= json.loads(line).keys() for line in process.lines)
    assert said.replace("\n", "").isprintable()
    assert ("x-7f3a" in said) == (variable == "SEMAPHORE" and text == IN_VARIABLE)


@pytest.mark.parametrize("command", [RUN, [*RUN, "check"]], ids=["run", "check"])
@pytest.mark.parametrize("variable", ["SLOT", "TOKEN", "EXPIRATION_SECONDS", "REDIS_ADDRESSES", "SIDECAR_MODE"])
def test_a_sidecar_that_cannot_start_says_so_on_one_line(nodes, command, variable):
    with sidecar(command, variables(nodes, **{variable: IN_VARIABLE})) as process:
        assert 2 == process.ended()

    said = said_by(process)
    assert [said] == said.splitlines()
    assert said.startswith(f"sidecar: {variable}: ")
    assert said.isprintable()
    assert ("x-7f3a" in said) == (variable != "TOKEN")


@pytest.mark.parametrize("variable", ["SEMAPHORE", "VARIANT", "REDIS_USERNAME", "REDIS_PASSWORD"])
def test_a_check_with_a_hostile_variable_says_one_line(nodes, variable):
    with sidecar([*RUN, "check"], variables(nodes, **{variable: IN_VARIABLE})) as process:
        assert 1 == process.ended()

    said = said_by(process)
    assert [said] == said.splitlines()
    assert said.isprintable()
    assert "x-7f3a" not in said
