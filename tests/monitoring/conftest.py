"""The programs of Prometheus, built where tests may take the time for it."""

from pathlib import Path

import pytest

from tests.e2e.binaries import MissingError, build_missing, find, is_asked_for


def program(name: str) -> Path:
    try:
        if is_asked_for():
            build_missing(name)
        return find(name)
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def promtool() -> Path:
    return program("promtool")


@pytest.fixture(scope="session")
def prometheus_program() -> Path:
    return program("prometheus")
