"""The sidecar's log."""

import json
import os

import pytest

from sidecar.log import log, rfc3339


@pytest.mark.parametrize("text", ['a"b\\c', "a\nb\r\x1b[31m\x00", "\u2028\x85", "\udcff", "münchen"])
def test_a_line_is_one_json_object_whatever_is_said(capfd, text):
    log("info", text, slot=1, failed={"redis-0:6379": text})
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert [line] == line.splitlines(keepends=True)
    record = json.loads(line)
    assert {"level": "info", "message": text, "slot": 1, "failed": {"redis-0:6379": text}} == {
        name: value for name, value in record.items() if name != "time"
    }


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "1970-01-01T00:00:00.000Z"), (1700000000.0625, "2023-11-14T22:13:20.062Z")],
)
def test_an_instant_is_utc_to_the_millisecond(seconds, expected):
    assert expected == rfc3339(seconds)


def test_a_broken_stderr_does_not_stop_the_sidecar(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr("sidecar.log.STDERR", writing)
    log("info", "nobody reads this")
    os.close(writing)
