"""The component that has the API server warn of annotations that do not count. What it says: tests/e2e."""

import re

from app.admission.annotations import GROUP
from app.cli.pods import MARKER, TEMPLATES
from tests.manifests.conftest import rendered
from tests.manifests.objects import NAME, with_component


def policy(tmp_path):
    tree = rendered(with_component("warnings", "base", tmp_path))
    return tree, tree.one("ValidatingAdmissionPolicy", NAME)["spec"]


def test_nobody_is_refused_by_it(tmp_path):
    tree, spec = policy(tmp_path)
    binding = tree.one("ValidatingAdmissionPolicyBinding", NAME)["spec"]

    assert (NAME, ["Warn"], "Ignore") == (binding["policyName"], binding["validationActions"], spec["failurePolicy"])


def test_it_speaks_of_our_annotations(tmp_path):
    text = str(policy(tmp_path)[1])

    assert {GROUP} == set(re.findall(r"[\w.-]+\.kaidotio\.github\.io", text))
    assert f"'{GROUP}/{MARKER}' in variables.annotations" in text


def test_it_looks_at_all_that_makes_pods_by_a_template_but_at_what_others_make(tmp_path):
    """A ReplicaSet is its Deployment's, and nobody applies a ReplicationController any more."""
    found = {each for rule in policy(tmp_path)[1]["matchConstraints"]["resourceRules"] for each in rule["resources"]}

    assert {f"{kind.lower()}s" for kind in TEMPLATES} - {"pods", "replicasets", "replicationcontrollers"} == found
