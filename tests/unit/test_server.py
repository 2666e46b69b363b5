"""When a request is complete: never later than gunicorn would say, and where it differs, it is not our guess."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.http.errors import ParseException
from gunicorn.http.parser import RequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from app import create_app
from app.server import LARGEST_BODY_BYTES, LARGEST_HEAD_BYTES, RequestEnd, request_end
from app.settings import Settings

HEAD = b"POST /mutate HTTP/1.1\r\nHost: localhost\r\n"


def end_of(*headers: bytes, after: bytes = b"") -> tuple[RequestEnd | None, int]:
    """What is said of a request with these headers, and how long its head is."""
    head = HEAD + b"".join(header + b"\r\n" for header in headers) + b"\r\n"
    return request_end(head + after), len(head)


@pytest.mark.parametrize(
    ("headers", "body_length"),
    [
        ([], 0),
        ([b"Content-Length: 0"], 0),
        ([b"Content-Length: 5"], 5),
        ([b"content-length:5"], 5),
        ([b"CONTENT-LENGTH: \t 0005 \t"], 5),
        ([b"X-Content-Length: 5"], 0),
        ([b"X: Content-Length: 5"], 0),
        ([b"Content-Length: 7340032"], 7340032),
        ([b"Content-Length : 5"], 0),  # gunicorn refuses it
    ],
)
def test_a_plain_request_ends_with_its_body(headers, body_length):
    said, head_length = end_of(*headers, after=b"pipelined")

    assert (head_length + body_length, True) == said


@pytest.mark.parametrize(
    "headers",
    [
        [b"Content-Length: 5", b"Content-Length: 5"],
        [b"Content-Length: 5", b"content-length: 6"],
        [b"Content-Length: -5"],
        [b"Content-Length: +5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: 5;"],
        [b"Content-Length: 0x5"],
        [b"Content-Length: 5.0"],
        [b"Content-Length: 1_0"],
        [b"Content-Length: \xb2"],
        [b"Content-Length:"],
        [b"Content-Length: 7340033"],
        [b"Content-Length: 99999999999999999999999999"],
        [b"Content-Length: " + b"9" * 10_000],
        [b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: identity", b"Content-Length: 5"],
        [b"Content-Length: 5", b"transfer-encoding:"],
        [b"Content-Length: 5", b"Expect: 100-continue"],
    ],
)
def test_what_is_no_plain_length_is_left_to_gunicorn_as_soon_as_the_head_is_there(headers):
    said, head_length = end_of(*headers)

    assert (head_length, False) == said


@pytest.mark.parametrize("end", [b"\n\n", b"\nHost: localhost\n\n", b"\r\nHost: localhost\n\n", b"\r\nX: y\nZ"])
def test_a_line_that_ends_with_a_bare_line_feed_is_left_to_gunicorn_at_once(end):
    head = b"GET / HTTP/1.1" + end

    assert (len(head), False) == request_end(head)


def test_a_head_that_does_not_end_is_left_to_gunicorn_when_it_is_too_long():
    head = HEAD.ljust(LARGEST_HEAD_BYTES, b"x")

    assert request_end(head[:-1]) is None
    assert (len(head), False) == request_end(head)
    assert (len(head) + 4, False) == request_end(head + b"\r\n\r\n")


@pytest.mark.parametrize("request_", [HEAD + b"Content-Length: 5\r\n\r\n12345", b"\r\nGET / HTTP/1.0\r\n\r\n"])
def test_nothing_is_said_before_the_head_is_there_and_always_the_same_from_then_on(request_):
    head_length = request_.rindex(b"\r\n\r\n") + 4

    said = [request_end(request_[:length]) for length in range(len(request_) + 1)]

    assert [None] * head_length + [(len(request_), True)] * (len(request_) - head_length + 1) == said


def test_what_the_application_takes_is_taken_in():
    settings = Settings.from_env({})
    assert create_app(settings).config["MAX_CONTENT_LENGTH"] == LARGEST_BODY_BYTES


class AskedForMore(Exception):  # noqa: N818  it is what happens, not a failure
    """gunicorn would wait for the peer."""


def parsed_by_gunicorn(received: bytes) -> RequestParser:
    """gunicorn's parser, which raises AskedForMore where it would wait."""

    def pieces() -> Iterator[bytes]:
        yield received
        raise AskedForMore

    return get_parser(Config(), pieces(), ("127.0.0.1", 1))


FRAMING = st.sampled_from(
    [
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"content-length:\t2 \r\n",
        b"Content-Length : 3\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 3\n",
        b"Content-Length:\r\n 3\r\n",
        b"Content-\r\nLength: 3\r\n",
        b"X: y\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"abc",
        b": 3\r\n",
    ]
)


@settings(deadline=None, max_examples=500)
@given(st.lists(FRAMING, max_size=6).map(b"".join), st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]))
def test_gunicorn_never_waits_for_more_than_what_was_taken_for_the_whole(headers, before):
    request = before + HEAD + headers + b"\r\nabcdef"
    for end in range(len(request) + 1):
        found = request_end(request[:end])
        if found and found.at <= end:
            with suppress(ParseException):  # refused, without waiting
                next(parsed_by_gunicorn(request[:end])).body.read()
            return


NEXT = b"GET /next HTTP/1.1\r\n\r\n"


@settings(deadline=None, max_examples=500)
@given(st.lists(FRAMING, max_size=6).map(b"".join), st.sampled_from([b"", b"\r\n"]))
def test_where_the_next_request_begins_for_certain_gunicorn_sees_it_begin_too(headers, before):
    request = before + HEAD + headers + b"\r\nabcdef"
    found = next(filter(None, (request_end(request[:end]) for end in range(len(request) + 1))), None)
    if found and found.is_certain and found.at <= len(request):
        parser = parsed_by_gunicorn(request[: found.at] + NEXT)
        with suppress(ParseException):  # refused, and the connection closed
            next(parser).body.read()
            assert "/next" == next(parser).uri
