"""Log lines are JSON, and stay so whatever is logged."""

import json
import logging
import sys

from app.logs import JsonFormatter


def line(message: str, *arguments: object, **extra: object) -> str:
    record = logging.makeLogRecord(
        {"name": "app", "levelname": "INFO", "msg": message, "args": arguments, "created": 1.5, "msecs": 500.0, **extra}
    )
    return JsonFormatter().format(record)


def test_a_line_has_time_level_logger_message_and_further_fields():
    assert {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "info",
        "logger": "app",
        "message": "slot 2",
        "namespace": "batch",
    } == json.loads(line("slot %d", 2, namespace="batch"))


def test_no_text_can_begin_a_line_of_its_own():
    forged = 'x\n{"level": "error"}\r\u2028\x1b[2J'

    written = line("%s", forged, field=forged)

    assert written.isprintable()
    assert forged == json.loads(written)["message"]


def test_an_exception_stays_within_its_line():
    try:
        raise ValueError("wrong")
    except ValueError:
        written = line("failed", exc_info=sys.exc_info())

    assert "\n" not in written
    assert "ValueError: wrong" in json.loads(written)["exception"]


def test_what_json_has_no_form_for_is_written_as_text():
    assert "{1}" == json.loads(line("set", field={1}))["field"]
