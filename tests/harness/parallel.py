"""Which worker of pytest-xdist runs which tests, and when: file by file, and at last what takes most of the machine.

Nothing of this takes part where there are no workers.
"""

import fcntl
import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.harness.waiting import locks

# What takes long comes first, so that nobody has much to do when the others have nothing left.
FIRST = (
    "tests/process/test_sidecar.py",
    "tests/faults/",
    "tests/integration/",
    "tests/process/",
    "tests/e2e/test_machine.py",
)
# For a worker each, in which the cluster that they bring up is there once.
LAST = (
    ("tests/e2e/test_operation.py", "tests/e2e/test_waiting.py"),
    ("tests/image/", "tests/e2e/"),
)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of a file share nodes and a webhook."""

    def _split_scope(self, nodeid: str) -> str:
        at = place(nodeid)
        return f"last {at}" if at > len(FIRST) else nodeid.partition("::")[0]


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
    """Where in the order a test stands, of which equal ones keep theirs: FIRST, what is in neither, LAST."""
    starts: tuple[str | tuple[str, ...], ...] = (*FIRST, (), *LAST)
    return next((at for at, start in enumerate(starts) if nodeid.startswith(start)), len(FIRST))


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
def at_last(pytestconfig: pytest.Config) -> None:
    """Wait until all others have ended, or wait here too: what follows would disturb them, and they it."""
    if is_worker(pytestconfig):
        for how in (fcntl.LOCK_UN, fcntl.LOCK_EX, fcntl.LOCK_UN):
            lock(how)
