"""The manifests as they are rendered, once for all tests."""

from pathlib import Path

import pytest

from tests.e2e.binaries import MissingError
from tests.manifests.objects import EXAMPLES, Object, Tree, load, pod_of, render


def rendered(folder: str | Path) -> Tree:
    try:
        return render(folder)
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def base() -> Tree:
    return rendered("base")


@pytest.fixture(scope="session")
def dev() -> Tree:
    return rendered("overlays/dev")


@pytest.fixture(params=["base", "dev"])
def tree(request: pytest.FixtureRequest) -> Tree:
    """Both trees, one after the other."""
    found: Tree = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def examples() -> list[Object]:
    return load(*EXAMPLES)


@pytest.fixture(params=["base", "dev", "examples"])
def pods(request: pytest.FixtureRequest) -> list[Object]:
    """All pod templates of one place."""
    found: Tree | list[Object] = request.getfixturevalue(request.param)
    return [pod_of(each) for each in (found.objects if isinstance(found, Tree) else found) if pod_of(each)]
