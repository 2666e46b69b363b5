"""How much time an admission has, and how long its body may be when it does not say so."""

import io
import json

import pytest
from flask import Flask
from gunicorn.http.errors import InvalidChunkSize

from app.admission.review import Reason, Verdict
from app.server import LARGEST_BODY_BYTES
from app.web import mutate
from app.web.mutate import MARGIN_SECONDS, _time_allowed


@pytest.mark.parametrize("timeout", ["", "10s", "1m", "1m30s", "2.5s", "nonsense", "10", "-1s", "1h", "10s10s"])
def test_the_budget_holds_where_the_api_server_waits_longer_or_says_nothing_that_is_understood(timeout):
    assert 2 == _time_allowed(timeout, budget_seconds=2)


@pytest.mark.parametrize(("timeout", "seconds"), [("1s", 1), ("500ms", 0.5), ("1.5s", 1.5), ("1s500ms", 1.5)])
def test_a_shorter_patience_of_the_api_server_holds_less_a_margin(timeout, seconds):
    assert seconds - MARGIN_SECONDS == pytest.approx(_time_allowed(timeout, budget_seconds=2))


class Chunks:
    """A body as gunicorn hands it over, of which one can only be read; broken: its last chunk is none."""

    def __init__(self, body: bytes, *, broken: bool = False) -> None:
        self._body = io.BytesIO(body)
        self._broken = broken

    def read(self, size: int) -> bytes:
        data = self._body.read(size)
        if self._broken and len(data) < size:
            raise InvalidChunkSize(b"ZZ")
        return data


def answer_to(chunks: Chunks) -> tuple[int, str]:
    """Status and text; nothing tells how long the body is."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY_BYTES
    app.register_blueprint(mutate.blueprint(lambda *_: Verdict.allow(Reason.NOT_ANNOTATED), lambda *_: None, 2))
    in_chunks = {"wsgi.input": chunks, "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = app.test_client().post("/mutate", content_type="application/json", environ_overrides=in_chunks)
    return answer.status_code, answer.get_data(as_text=True)


def review(length: int) -> bytes:
    request = {"uid": "1", "kind": {"kind": "Node"}, "operation": "CREATE"}
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    return json.dumps(body).encode().ljust(length)


def test_a_body_in_chunks_has_the_same_limit():
    """What comes after it would be left out without a word: here a second half which makes it no JSON."""
    assert 200 == answer_to(Chunks(review(LARGEST_BODY_BYTES - 1)))[0]

    status, text = answer_to(Chunks(review(LARGEST_BODY_BYTES) + b"no JSON"))
    assert (413, True) == (status, "exceeds" in text)


@pytest.mark.parametrize(("length", "status"), [(1000, 400), (LARGEST_BODY_BYTES + 1, 413)])
def test_a_body_whose_chunks_are_broken_is_no_error_of_the_server(length, status):
    answered, text = answer_to(Chunks(review(length), broken=True))

    assert status == answered
    assert ("the body cannot be read: Invalid chunk size" in text) == (status == 400)
