"""A cluster with the project installed in it, once for all tests, and a namespace for each."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.binaries import MissingError, is_asked_for
from tests.e2e.cluster import TOOLS, Cluster, KubectlError
from tests.e2e.cluster import cluster as running_cluster
from tests.e2e.installation import NAMESPACE, RECONCILERS, WEBHOOK, Installation, pack_images
from tests.e2e.machine import missing
from tests.e2e.workloads import Tenant

LOGS = [("logs", "-n", NAMESPACE, "-l", each, "--prefix", "--tail=50") for each in (WEBHOOK, RECONCILERS)]


@pytest.fixture(scope="session")
def cluster(at_last: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not is_asked_for():
        pytest.skip("brings up a cluster, which takes minutes and gigabytes the first time; run `make e2e`")
    reason = missing(TOOLS)
    if reason:
        pytest.skip(reason)
    archive: Path = tmp_path_factory.mktemp("images") / "images.tar"
    try:
        pack_images(archive)
    except MissingError as error:
        pytest.skip(str(error))
    with running_cluster([archive]) as running:
        yield running


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Installation:
    return Installation(cluster)


@pytest.fixture
def tenant(request: pytest.FixtureRequest, installation: Installation) -> Iterator[Tenant]:
    """A namespace of the test's own."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:50].strip("-")
    installation.kubectl("create", "namespace", name)
    yield Tenant(installation, name)
    # Nobody waits for its end: what is still in it gets its SIGTERM.
    installation.kubectl("delete", "namespace", name, "--wait=false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What the cluster looked like belongs to the report of a failure."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and cluster:
        for what in (("get", "pods,replicasets,jobs", "-A", "-o", "wide"), ("get", "events", "-A"), *LOGS):
            with suppress(KubectlError):
                report.sections.append((f"kubectl {' '.join(what)}", cluster.kubectl(*what)[-12000:]))
    return report
