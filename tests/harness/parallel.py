"""Which worker of pytest-xdist runs which tests, and when: file by file, and at last what needs the machine for itself.

Nothing of this takes part where there are no workers.
"""

import fcntl
import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.harness.waiting import locks

# What takes long comes first, so that nobody has much to do when the others have nothing left.
FIRST = ("tests/process/test_sidecar.py", "tests/faults/", "tests/integration/", "tests/process/")
# For one worker, in which what they bring up is there once.
LAST = ("tests/image/", "tests/e2e/")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of a file share nodes and a webhook."""

    def _split_scope(self, nodeid: str) -> str:
        return "last" if nodeid.startswith(LAST) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    config.option.loadscopereorder = False  # the order of pytest_collection_modifyitems
    return ByFile(config, log)


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_worker(config):
        items.sort(key=lambda item: place(item.nodeid))


def place(nodeid: str) -> int:
    """Where in the order a test stands, of which equal ones keep theirs."""
    if nodeid.startswith(LAST):
        return len(FIRST) + 1
    return next((at for at, start in enumerate(FIRST) if nodeid.startswith(start)), len(FIRST))


def lock(how: int) -> None:
    """On a byte that the workers of one run have in common: by the process that has started them, above all ports."""
    fcntl.lockf(locks(), how, 1, 2**16 + os.getppid())


def pytest_sessionstart(session: pytest.Session) -> None:
    """Workers share the lock from before the first test of any of them."""
    if is_worker(session.config):
        lock(fcntl.LOCK_SH)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if is_worker(session.config):
        lock(fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def alone(pytestconfig: pytest.Config) -> None:
    """Wait until the others have ended, for what takes so much that it would disturb them, and they it."""
    if is_worker(pytestconfig):
        lock(fcntl.LOCK_EX)
