"""How the reconciler speaks to an API server, which may answer anything, and reads pods, which may be anything."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from app.cli import waiters
from app.reconciler.api import Api, CannotConnect, Failures, event_name, reason_of
from app.reconciler.events import Events
from app.reconciler.pods import Member, Reader
from app.reconciler.watch import Pods, keep_watching
from app.settings import Settings
from tests.harness.stored import SECRET, stored_pod
from tests.harness.waiting import wait_for

CONNECTIONS = 100  # that httpx2 has at once
READER = Reader("", (SECRET,))
VERSION = {"resourceVersion": "7"}
FORBIDDEN = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "pods is forbidden"}
TOO_MANY = {"kind": "Status", "code": 429, "reason": "TooManyRequests", "message": "try later"}

Answer = tuple[int, bytes]


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    query: str

    @property
    def what(self) -> str:
        """`list`, `watch` or the method."""
        if self.method != "GET":
            return self.method
        return "watch" if "watch=true" in self.query else "list"


class Server:
    """Answers requests by what they ask for: one answer after the other, the last one for ever."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: dict[str, list[Answer]] = {"list": [page()], "watch": [(200, b"")]}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path, _, query = self.path.partition("?")
                server.asked.append(Asked(self.command, path, query))
                status, body = server.next_answer(server.asked[-1].what)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PATCH = do_POST = do_GET  # noqa: N815  so http.server calls them

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def next_answer(self, what: str) -> Answer:
        answers = self.answers[what]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def count(self, what: str) -> int:
        return sum(each.what == what for each in self.asked)

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def page(*pods: Any, then: str = "") -> Answer:
    """A list of pods, as text or as objects."""
    items = b",".join(each if isinstance(each, bytes) else text(each) for each in pods)
    metadata = {**VERSION, **({"continue": then} if then else {})}
    return 200, b'{"kind":"PodList","metadata":' + text(metadata) + b',"items":[' + items + b"]}"


def events(*told: tuple[str, Any]) -> Answer:
    """What a watch tells, line by line."""
    lines = [
        b'{"type":"' + kind.encode() + b'","object":' + (pod if isinstance(pod, bytes) else text(pod)) + b"}\n"
        for kind, pod in told
    ]
    return 200, b"".join(lines)


def text(found: Any) -> bytes:
    """JSON as the API server writes it: without spaces, and letters as themselves."""
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()


def pod(name: str, **options: Any) -> dict[str, Any]:
    found = stored_pod(name, **options)
    return {**found, "metadata": {**found["metadata"], **VERSION}}


def managed(name: str, fields: bytes, time: str = "2026-11-24T10:00:00Z") -> bytes:
    """A pod with these fields managed by somebody, who says so in a text of their own."""
    entry = b'{"manager":"m","operation":"Update","fieldsType":"FieldsV1","time":"%b","fieldsV1":%b}'
    whole = text(pod(name, metadata={"managedFields": ["HERE"]}))
    return whole.replace(b'"HERE"', entry % (time.encode(), fields))


def nested(depth: int, start: bytes = b'{"f:a":', end: bytes = b"}") -> bytes:
    return start * depth + b"{}" + end * depth


STRANGE = {
    "deep": managed("strange", nested(1500)),
    "as deep as can be": managed("strange", nested(9990)),
    "deep arrays": managed("strange", nested(5000, b"[", b"]")),
    "brackets in strings": managed("strange", b'{"]}\\"]":%b}' % nested(1500)),
    "the name within": managed("strange", b'{"managedFields":[%b],"f:a":{}}' % nested(1500)),
    "half a character": managed("strange", b'{"\\ud800":{}}'),
    "no character": managed("strange", b'{"\xff":{}}'),
    "a great number": managed("strange", b'{"f:a":1e99999,"f:b":%b}' % (b"9" * 6000)),
    "a year too late": managed("strange", b"{}", "9999-12-31T23:59:59-23:59"),
    "a year too early": managed("strange", b"{}", "0000-06-01T00:00:00Z"),
}
of_each_strange_pod = pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def kubeconfig(path: Path, url: str, **user: str) -> Path:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user or {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def unreadable() -> list[str]:
    """What was said of pods that cannot be read."""
    return []


@pytest.fixture
def connect(tmp_path, monkeypatch, unreadable) -> Iterator[Callable[..., Api]]:
    """To the server at that address, as a user that is described so."""
    with ExitStack() as stack:

        def connected(url: str, **user: str) -> Api:
            monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", url, **user)))
            return stack.enter_context(closing(Api(READER, unreadable.append)))

        yield connected


@pytest.fixture
def api(server: Server, connect: Callable[..., Api]) -> Api:
    return connect(server.url)


def changes(api: Api) -> list[tuple[str, str, str | None]]:
    """What a watch tells until it fails: uid, kind, the name if the pod can be read."""
    found = []
    with suppress(*Failures):
        for uid, kind, member in api.changes("7"):
            found.append((uid, kind, member.name if member else None))
    return found


def member_of(name: str) -> Member:
    found = READER.read(pod(name))
    assert found
    return found


# Pods that may be anything ------------------------------------------------------------------------------


@of_each_strange_pod
def test_a_strange_pod_is_listed_like_any_other(server, api, strange):
    server.answers["list"] = [page(pod("before"), strange, then="more"), page(pod("after"))]

    found, version = api.members()
    assert ["before", "strange", "after"] == [member.name for member in found.values()]
    assert VERSION["resourceVersion"] == version
    server.answers["list"] = [page(pod("before"), strange)]
    assert 1 == len(api.tokens("batch"))


@of_each_strange_pod
def test_a_strange_pod_is_watched_like_any_other(server, api, strange):
    server.answers["watch"] = [events(("ADDED", pod("before")), ("DELETED", strange), ("ADDED", pod("after")))]

    assert [
        ("uid-of-before", "ADDED", "before"),
        ("uid-of-strange", "DELETED", "strange"),
        ("uid-of-after", "ADDED", "after"),
    ] == changes(api)


@of_each_strange_pod
def test_a_strange_pod_is_looked_at_like_any_other(server, api, strange):
    server.answers["list"] = [(200, strange)]

    assert "strange" == api.member("batch", "strange").name


def test_what_looks_like_managed_fields_in_a_text_is_left_there(server, api):
    said = '"managedFields":[{"managedFields":[ \\"]}'
    mentions = pod("mentions", metadata={"ownerReferences": [{"kind": "Job", "name": said, "controller": True}]})
    server.answers["list"] = [page(STRANGE["deep"], mentions)]

    found, _ = api.members()
    assert said == found["uid-of-mentions"].identity["ownerReferences"][0]["name"]


@pytest.mark.parametrize("character", "\x85\u2028", ids=["U+0085", "U+2028"])
def test_what_ends_a_line_elsewhere_does_not_end_what_a_watch_tells(server, api, character):
    """The API server writes U+0085 as it is; a pod that has one in an annotation must not end everybody's watch."""
    annotations = {**pod("strange")["metadata"]["annotations"], "note": f"a{character}b"}
    strange = pod("strange", metadata={"annotations": annotations})
    server.answers["watch"] = [events(("ADDED", strange), ("ADDED", pod("after")))]

    assert ["strange", "after"] == [name for _, _, name in changes(api)]


def test_a_pod_that_cannot_be_read_is_left_out_alone_and_told_of_once(server, api, unreadable):
    undated = pod("undated", created="once upon a time")
    server.answers["list"] = [page(pod("before"), undated, pod("after"))]
    server.answers["watch"] = [events(("MODIFIED", undated), ("ADDED", pod("after")))]

    for _ in range(2):
        assert ["before", "after"] == [member.name for member in api.members()[0].values()]
    assert [("uid-of-undated", "MODIFIED", None), ("uid-of-after", "ADDED", "after")] == changes(api)
    [said] = unreadable
    assert "pod batch/undated cannot be read: ValueError" in said


# An API server that may answer anything -----------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        (429, text(TOO_MANY)),
        (500, text({**TOO_MANY, "code": 500})),
        (403, text(FORBIDDEN)),
        (502, b"<html>"),
        events(("ERROR", {**TOO_MANY, "code": 410})),
        (200, b"nothing of the kind\n"),
    ],
    ids=["429", "500", "403", "not JSON", "410 in a watch", "strange"],
)
def test_after_more_watches_that_fail_than_there_are_connections_pods_can_be_listed(server, api, refusal):
    server.answers["watch"] = [refusal]
    for _ in range(CONNECTIONS + 5):
        with pytest.raises(Failures):
            next(api.changes("7"))

    api.members()
    assert CONNECTIONS + 5 == server.count("watch")


def test_why_a_watch_is_refused_is_known(server, api):
    server.answers["watch"] = [(403, text(FORBIDDEN))]
    with pytest.raises(Failures) as refused:
        next(api.changes("7"))

    assert "403 Forbidden: pods is forbidden" == reason_of(refused.value)


def test_what_is_refused_is_told_without_the_pod_that_the_api_server_quotes(server, api):
    quoting = {**FORBIDDEN, "code": 422, "message": 'invalid: "{\\"env\\":[{\\"value\\":\\"secret\\"}]}": no time'}
    server.answers["PATCH"] = [(422, text(quoting))]
    with pytest.raises(Failures) as refused:
        api.lift_gate(member_of("worker"))

    assert '422 Forbidden: invalid: "' == reason_of(refused.value)


def test_watches_that_end_as_soon_as_they_begin_come_ever_more_seldom(server, api):
    """As behind a proxy that does not let them last: pods are listed instead, now and then."""
    kinds: list[str] = []
    pods = Pods()
    thread = threading.Thread(target=keep_watching, args=(api, pods, kinds.append), daemon=True)
    thread.start()
    time.sleep(2)
    pods.stop()
    thread.join(5)

    assert 2 <= server.count("watch") <= 6
    assert server.count("watch") == server.count("list") == len(kinds)
    assert {"api"} == set(kinds)


def test_it_was_heard_of_pods_only_if_they_were_listed_or_watched(server, api):
    refused = (403, text(FORBIDDEN))
    server.answers |= {"list": [refused], "watch": [refused], "PATCH": [(200, b"{}"), refused], "POST": [refused]}
    for ask in (
        api.members,
        lambda: api.tokens("batch"),
        lambda: next(api.changes("7")),
        lambda: api.mark(member_of("worker"), True),
        lambda: api.mark(member_of("worker"), True),
        lambda: api.tell(member_of("worker"), "Normal", "SlotGranted", "slot 0", 1),
    ):
        with suppress(*Failures):
            ask()
    assert float("-inf") == api.heard_at

    server.answers["list"] = [page()]
    api.members()
    listed = api.heard_at
    assert time.monotonic() - listed < 10
    server.answers["watch"] = [(200, b"")]
    with pytest.raises(Failures):
        next(api.changes("7"))
    assert api.heard_at > listed


def test_a_token_whose_file_is_gone_when_it_is_refused_is_a_failure_like_others(server, connect, tmp_path):
    token = tmp_path / "token"
    token.write_text("old")
    api = connect(server.url, tokenFile=str(token))
    api.members()
    token.unlink()
    server.answers["list"] = [(401, text({**FORBIDDEN, "code": 401}))]

    with pytest.raises(Failures, match=r"Token file .* not found"):
        api.members()


@pytest.mark.parametrize(
    "content",
    ["- a\n- list", "{", "{}", '{"clusters": []', "http://127.0.0.1:1", ""],
)
def test_what_is_no_kubeconfig_is_told_of(tmp_path, monkeypatch, content):
    file = tmp_path / "kubeconfig"
    file.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(file))

    with pytest.raises(CannotConnect, match="KUBECONFIG"):
        Api(READER, print)


def test_an_address_that_is_none_is_told_of(connect):
    with pytest.raises(CannotConnect, match="KUBECONFIG"):
        connect("http://localhost:port")


@pytest.mark.parametrize("namespace", ["\x00", "a/../b", "ü"])
def test_a_namespace_that_is_none_is_only_a_part_of_the_path(server, api, namespace):
    api.members(namespace)

    [asked] = server.asked
    assert re.fullmatch(r"/api/v1/namespaces/[^/]+/pods", asked.path)


# Threads that go on -------------------------------------------------------------------------------------


class Failing:
    """In the place of an Api: whatever it is asked for fails in a way that nobody has thought of, and then works."""

    VERSION: ClassVar[str] = "7"

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.told: list[Sequence[Any]] = []

    def members(self) -> tuple[dict[str, Member], str]:
        self._fail()
        return {}, self.VERSION

    def changes(self, _version: str) -> Iterator[Any]:
        raise ConnectionError

    def tell(self, *event: Any) -> None:
        self._fail()
        self.told.append(event)

    def _fail(self) -> None:
        if self._errors:
            raise self._errors.pop()


UNTHOUGHT_OF = (RecursionError("too deep"), RuntimeError("a bug"), AssertionError())


def test_watching_goes_on_whatever_happens(caplog):
    pods = Pods()
    kinds: list[str] = []
    api: Any = Failing(*UNTHOUGHT_OF)
    thread = threading.Thread(target=keep_watching, args=(api, pods, kinds.append))
    thread.start()
    try:
        wait_for(lambda: pods.is_listed, "pods to be listed")
    finally:
        pods.stop()
        thread.join()

    assert ["internal"] * 3 == kinds[:3]
    assert 3 == sum(record.exc_info is not None for record in caplog.records)


def test_events_are_written_on_whatever_happens(caplog):
    kinds: list[str] = []
    api: Any = Failing(*UNTHOUGHT_OF)
    written = Events(api, kinds.append)
    for slot in range(4):
        written.tell_granted(member_of("worker"), slot, 1)

    wait_for(lambda: api.told, "an event to be written")
    assert "slot 3" in api.told[0][3]
    assert ["internal"] * 3 == kinds
    assert 3 == sum(record.exc_info is not None for record in caplog.records)


def test_who_asks_who_waits_is_told_on_one_line_that_it_cannot_be_known(monkeypatch, capsys, tmp_path, server, caplog):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", server.url)))
    monkeypatch.setattr(Api, "members", lambda *_: Failing(RuntimeError("a bug")).members())
    settings = Settings.from_env(
        {
            "REDIS_ADDRESSES": "a:1,b:1,c:1",
            "SIDECAR_IMAGE": "registry.example/sidecar:1",
            "WAITING_ALLOWED": "true",
        }
    )

    assert waiters.read_waiters(settings, None) is None
    assert ["pods that wait are not shown: a bug; run this where the reconciler runs"] == (
        capsys.readouterr().err.splitlines()
    )
    assert not caplog.records


# Events -------------------------------------------------------------------------------------------------


class Slow(set[str]):
    """Uids that take their time to be gone through: meanwhile another thread does something."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def __iter__(self) -> Iterator[str]:
        self.meanwhile()
        return super().__iter__()

    def __contains__(self, uid: object) -> bool:
        self.meanwhile()
        return super().__contains__(uid)


def test_who_is_told_of_a_place_while_others_are_forgotten_is_not_told_again():
    api: Any = Failing()
    written = Events(api, print)
    first, second = member_of("first"), member_of("second")
    written.tell_places("batch/reports-db", [first], "")
    uids = Slow({first.uid, second.uid})
    uids.meanwhile = lambda: written.tell_places("batch/reports-db", [second], "")
    written.forget_all_but(uids)
    written.tell_places("batch/reports-db", [second], "")
    written.tell_granted(second, 0, 1)

    wait_for(lambda: [event for event in api.told if "SlotGranted" in event], "the last event to be written")
    assert ["first", "second"] == [event[0].name for event in api.told if "WaitingForSlot" in event]


@pytest.mark.parametrize(
    "name",
    ["worker", "a" * 253, "a" * 192 + "-" + "b" * 60, "a" * 191 + ".-" + "b" * 60, "a" * 180 + "-" * 20 + "b" * 53],
)
def test_an_events_name_is_one_wherever_its_pods_name_is_cut_off(name):
    member = replace(member_of("worker"), name=name, uid="0b4e6c0e-3f7a-4f0f-9d0a-0f5d4d9f2a11")

    for reason in ("WaitingForSlot", "SlotGranted", "WaitedTooLong", "CannotWait"):
        found = event_name(member, reason)
        assert len(found) <= 253
        assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", part) for part in found.split(".")), found
        assert member.uid in found
