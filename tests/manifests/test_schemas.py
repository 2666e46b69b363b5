"""Every object is one that its API accepts, with no field that the API does not know."""

import copy

import pytest

from tests.manifests.objects import SCHEMAS, load, title
from tests.manifests.schema import CUSTOM, InvalidError, validate


def test_every_object_of_the_trees_is_valid(tree):
    for each in tree.objects:
        validate(each)


def test_every_example_is_valid(examples):
    for each in examples:
        validate(each)


def test_the_schemas_are_themselves_valid_and_say_what_they_describe():
    for crd in load(*SCHEMAS):
        validate(crd)
        names = crd["spec"]["names"]
        assert f"{names['plural']}.{crd['spec']['group']}" == crd["metadata"]["name"]


def test_every_schema_is_of_use(dev):
    assert set(CUSTOM) <= {(each["apiVersion"], each["kind"]) for each in dev.objects}


def test_a_misspelt_field_is_found_in_every_kind(dev):
    for each in dev.objects:
        misspelt = copy.deepcopy(each)
        misspelt.get("spec", misspelt)["misspelt"] = "x"
        with pytest.raises(InvalidError, match="misspelt"):
            validate(misspelt)


def test_an_object_of_a_kind_without_a_schema_is_an_error():
    with pytest.raises(InvalidError, match="Unheard"):
        validate({"apiVersion": "example.com/v1", "kind": "Unheard", "metadata": {"name": "x"}})


def test_no_two_objects_have_one_name(tree):
    titles = [title(each) for each in tree.objects]

    assert sorted(set(titles)) == sorted(titles)
