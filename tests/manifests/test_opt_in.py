"""The component that has only labelled namespaces asked about, on top of either tree."""

import copy
import re

import pytest

from app.admission.annotations import GROUP
from tests.manifests.conftest import rendered
from tests.manifests.objects import NAME, NAMESPACE, ROOT, Object, Tree, with_component
from tests.manifests.schema import validate

LABEL = f"{GROUP}/enabled"
COMPONENT = ROOT / "k8s" / "components" / "opt-in"


@pytest.fixture
def opted_in(request: pytest.FixtureRequest, tree: Tree, tmp_path) -> Tree:
    """The same tree with the component."""
    folder = {"base": "base", "dev": "overlays/dev"}[request.node.callspec.params["tree"]]
    return rendered(with_component(COMPONENT.name, folder, tmp_path))


def selector(tree: Tree) -> Object:
    [webhook] = tree.one("MutatingWebhookConfiguration", NAME)["webhooks"]
    return dict(webhook["namespaceSelector"])


def test_without_the_component_no_namespace_needs_a_label(tree):
    assert ["matchExpressions"] == list(selector(tree))


def test_with_it_a_namespace_needs_the_label(opted_in):
    assert {LABEL: "true"} == selector(opted_in)["matchLabels"]
    validate(opted_in.one("MutatingWebhookConfiguration", NAME))


def test_the_label_leads_nobody_into_our_own_namespace_or_kube_system(opted_in):
    [excluded] = selector(opted_in)["matchExpressions"]

    assert ("kubernetes.io/metadata.name", "NotIn") == (excluded["key"], excluded["operator"])
    assert {NAMESPACE, "kube-system"} == set(excluded["values"])


def test_nothing_else_is_altered(tree, opted_in):
    rest = copy.deepcopy(opted_in)
    [webhook] = rest.one("MutatingWebhookConfiguration", NAME)["webhooks"]
    del webhook["namespaceSelector"]["matchLabels"]

    assert tree.objects == rest.objects


def test_every_component_is_one_line_of_dev_which_leaves_out_this_one():
    lines = (ROOT / "k8s" / "overlays" / "dev" / "kustomization.yaml").read_text()
    found = re.findall(r"^  (# )?- \.\./\.\./components/(\S+)$", lines, re.MULTILINE)

    assert {each.name for each in COMPONENT.parent.iterdir()} == {name for _, name in found}
    assert [COMPONENT.name] == [name for comment, name in found if comment]


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/performance.md"])
def test_the_documents_tell_of_the_component_and_of_its_price(page):
    [told] = [each for each in (ROOT / page).read_text().split("\n\n") if "[`opt-in`](" in each]

    assert re.search(r"pod that asks for a slot\b.*\bruns without one", " ".join(told.split()))


def test_who_labels_a_namespace_as_it_is_written_gives_it_the_label_that_is_looked_for():
    command = f"kubectl label namespace batch {LABEL}=true\n"

    assert command in (COMPONENT / "kustomization.yaml").read_text()
    assert command in (ROOT / "README.md").read_text()
