"""An API server once for all tests, nodes and a webhook for those of a file, and a namespace for each."""

from collections.abc import Iterator
from contextlib import closing
from itertools import count

import pytest

from tests.e2e.binaries import MissingError, build_missing, is_asked_for
from tests.harness.control_plane import PROGRAMS, RECONCILER, ControlPlane, Namespace, running_control_plane
from tests.harness.nodes import RedisNode, addresses
from tests.harness.reconciler import RULES
from tests.harness.webhook import environ_for, running_webhook
from tests.reconciler.site import Site

NUMBERS = count()


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    if not is_asked_for():
        pytest.skip("brings up an API server, which takes minutes and gigabytes the first time; run `make e2e`")
    try:
        build_missing(*PROGRAMS)
    except MissingError as error:
        pytest.skip(str(error))
    with running_control_plane() as running:
        running.grant(RECONCILER, RULES)
        yield running


@pytest.fixture(scope="module")
def environ(request: pytest.FixtureRequest, nodes: list[RedisNode]) -> dict[str, str]:
    """Of webhook and reconcilers; a file may have a RESERVATION_SECONDS of its own."""
    seconds = getattr(request.module, "RESERVATION_SECONDS", 300)
    return environ_for(addresses(nodes), RESERVATION_SECONDS=str(seconds))


@pytest.fixture(scope="module")
def hook(request: pytest.FixtureRequest, plane: ControlPlane, environ: dict[str, str]) -> Iterator[str]:
    """What a namespace bears in its LABEL for a webhook to be asked that lets pods wait."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    with running_webhook({**environ, "WAITING_ALLOWED": "true"}) as webhook, plane.asking(webhook, name):
        yield name


@pytest.fixture
def site(
    request: pytest.FixtureRequest, plane: ControlPlane, hook: str, nodes: list[RedisNode], environ: dict[str, str]
) -> Iterator[Site]:
    name = request.node.name.removeprefix("test_").translate(str.maketrans("_[]", "---"))
    with closing(Site(plane, f"{name[:50].strip('-')}-{next(NUMBERS)}", hook, nodes, environ)) as made:
        yield made


@pytest.fixture
def elsewhere(site: Site) -> Namespace:
    """Of its pods the webhook is not asked, so that nothing in them need be as it would have made it."""
    return site.another("unasked", hook="nobody")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What the reconcilers have said belongs to the report of a failure."""
    report = yield
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and site:
        report.sections += [(f"reconciler {number}", text) for number, text in enumerate(site.said)]
    return report
