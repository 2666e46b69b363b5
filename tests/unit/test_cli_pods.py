"""The pods that a file makes, and the mistakes that run them unguarded without a word."""

import json
from typing import Any

import pytest
import yaml

from app.admission import annotations, injection
from app.admission.annotations import GROUP
from app.cli.pods import HOLDER, MARKER, TEMPLATES, WAITED_TOO_LONG, Unreadable, mistakes, sources_in
from sidecar.protocol import Mode
from tests.harness.webhook import annotations_asking, pod_asking

ASKING = annotations_asking("db", 3, 60)


def workload(kind: str, template: Any, **metadata: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": kind, "metadata": {"name": "reports", **metadata}}
    at = found
    *path, last = TEMPLATES[kind]
    for name in path:
        at[name] = {}
        at = at[name]
    at[last] = template
    return found


def mistakes_in(found: dict[str, Any], group: str = GROUP) -> list[str]:
    (source,) = sources_in(json.dumps(found).encode())
    return mistakes(source, group)


def deployment(**metadata: Any) -> dict[str, Any]:
    """One whose template has this metadata."""
    return workload("Deployment", {"metadata": metadata, "spec": {}})


@pytest.mark.parametrize("kind", [kind for kind, path in TEMPLATES.items() if path])
def test_of_what_makes_pods_the_template_is_the_pod(kind):
    pod = pod_asking()

    (source,) = sources_in(yaml.safe_dump(workload(kind, pod, namespace="batch")).encode())

    assert (kind, "reports", "batch", pod) == (source.kind, source.name, source.namespace, source.pod)
    assert [] == mistakes(source, GROUP)


def test_a_pod_is_itself_and_may_have_no_name_yet():
    pod = pod_asking()
    (source,) = sources_in(json.dumps(pod).encode())

    assert (pod, "Pod reports-7d9c-*", None) == (source.pod, source.title, source.namespace)


def test_documents_and_lists_are_gone_through_and_what_makes_no_pods_is_passed_by():
    listed = {"kind": "List", "items": [pod_asking(), {"kind": "PodList", "items": [pod_asking()]}]}
    documents = [{"kind": "Service"}, None, listed, workload("Job", pod_asking())]

    found = sources_in(yaml.safe_dump_all(documents).encode())

    assert ["Pod", "Pod", "Job"] == [source.kind for source in found]


def test_an_object_without_a_template_is_left_for_the_webhook_to_complain_about():
    (source,) = sources_in(b"kind: CronJob\nspec: 3\n")

    assert source.pod is None
    assert [] == mistakes(source, GROUP)


@pytest.mark.parametrize(
    "text",
    [b"a: [", b"just text", b"- kind: Pod", b"kind: 3", b"spec: {}", b"\xff\xfe\x00", b"kind: Pod\n--- [", b"[" * 5000],
)
def test_what_holds_no_objects_cannot_be_read(text):
    with pytest.raises(Unreadable):
        sources_in(text)


def test_the_names_are_those_that_the_webhook_knows():
    assert annotations._MARKER.name == MARKER
    assert f'"path": "/metadata/labels/{GROUP}~1{HOLDER}"' in injection.inject(
        {"metadata": {"labels": {}}, "spec": {"containers": []}},
        injection.Sidecar("image", Mode.NATIVE, "a:1", None, None, "", {}, {}, b""),
        semaphore="batch/db",
        slot=0,
        token="",
        expiration_seconds=5,
    )


@pytest.mark.parametrize("kind", [kind for kind, path in TEMPLATES.items() if path])
def test_annotations_on_the_object_instead_of_in_its_template_are_found(kind):
    (found,) = mistakes_in(workload(kind, {"spec": {}}, annotations=ASKING))

    assert f"{GROUP}/{MARKER}, expiration, key, length stand in metadata.annotations" in found
    assert f"move them to {'.'.join(TEMPLATES[kind])}.metadata.annotations" in found


def test_annotations_on_the_job_of_a_cron_job_are_found():
    cron_job = workload("CronJob", {"spec": {}})
    cron_job["spec"]["jobTemplate"]["metadata"] = {"annotations": ASKING}

    (found,) = mistakes_in(cron_job)

    assert "stand in spec.jobTemplate.metadata.annotations" in found
    assert "move them to spec.jobTemplate.spec.template.metadata.annotations" in found


def test_a_missing_marker_is_found():
    others = {name: value for name, value in ASKING.items() if not name.endswith(MARKER)}

    assert [f'{GROUP}/{MARKER}: "true" is missing, so expiration, key, length do not count'] == mistakes_in(
        deployment(annotations=others)
    )


def test_a_misspelt_marker_is_found():
    misspelt = {name.replace("-pod", "-pods") if name.endswith(MARKER) else name: "" for name in ASKING}
    misspelt = {name.replace("-pods-hook", "-pod-hook"): value for name, value in misspelt.items()}

    (found,) = mistakes_in(deployment(annotations=misspelt))

    assert f"(is {MARKER}s a misspelling of it?)" in found


def test_a_marker_that_says_no_is_told_of_if_there_is_more():
    assert [] == mistakes_in(deployment(annotations={f"{GROUP}/{MARKER}": "false"}))
    assert [f"{GROUP}/{MARKER} is 'false', so key do not count"] == mistakes_in(
        deployment(annotations={f"{GROUP}/{MARKER}": "false", f"{GROUP}/key": "db"})
    )


def test_labels_instead_of_annotations_are_found_and_those_that_are_ours_are_none():
    (found,) = mistakes_in(deployment(labels=ASKING))

    assert "stand among the labels" in found
    assert [] == mistakes_in(deployment(labels={f"{GROUP}/{name}": "true" for name in (HOLDER, WAITED_TOO_LONG)}))


def test_annotations_of_a_similar_group_are_found():
    misspelt = {name.replace("kaidotio", "kaidoito"): value for name, value in ASKING.items()}
    (found,) = mistakes_in(deployment(annotations={**misspelt, "example.com/key": "x"}))

    assert found.startswith(f"annotations of {GROUP.replace('kaidotio', 'kaidoito')} are not those")


def test_annotations_of_another_installation_are_found():
    (found,) = mistakes_in(deployment(annotations=ASKING), group=f"blue.{GROUP}")

    assert f"annotations of {GROUP} are not those of this installation, whose are blue.{GROUP}" in found


@pytest.mark.parametrize(
    "broken", [3, "text", ["list"], {"annotations": 3}, {"annotations": ["a"]}, {"labels": {1: 2}}]
)
def test_whatever_stands_where_metadata_should_is_no_reason_to_fail(broken):
    (source,) = sources_in(
        yaml.safe_dump({"kind": "Deployment", "metadata": broken, "spec": {"template": broken}}).encode()
    )

    assert [] == mistakes(source, GROUP)


@pytest.mark.parametrize(
    "value", ["2024-13-45", "0b_", "9" * 5000, "!!int x", "!!bool x", "!!timestamp x", "2001-12-14t99:59:43"]
)
def test_what_yaml_cannot_make_sense_of_is_unreadable(value):
    with pytest.raises(Unreadable):
        sources_in(f"kind: Pod\na: {value}\n".encode())


def test_aliases_of_aliases_are_refused_before_anything_is_made_of_them():
    levels = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9))
    with pytest.raises(Unreadable, match="81 YAML aliases, and 20 are accepted"):
        sources_in(f"a0: &a0 [x]\n{levels}\nkind: Pod\nmetadata: {{name: *a8}}\n".encode())


def test_a_few_aliases_are_taken():
    (source,) = sources_in(b"kind: Pod\nmetadata: {name: &name x, labels: {app: *name}}\n")

    assert "x" == source.name


def test_a_name_that_is_no_text_is_not_written_out():
    (source,) = sources_in(b"kind: Pod\nmetadata: {name: [[1, 2], [3]]}\n")

    assert "*" == source.name


def test_a_file_that_is_too_large_is_refused():
    with pytest.raises(Unreadable, match="1048577 bytes, and 1048576 are accepted"):
        sources_in(b" " * (1024 * 1024 + 1))
