"""Every pod is one that Pod Security `restricted` lets in, with less than that where it can be.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from tests.manifests.objects import NAMESPACE, RECONCILER, Object, Tree, containers, title

# Of all kinds of volumes, those that `restricted` allows and a pod of ours may have need of.
VOLUMES = {"configMap", "emptyDir", "secret"}
HOST = {"hostNetwork", "hostPID", "hostIPC"}


def security(pod: Object, container: Object) -> Object:
    """What holds for a container: its own word before the pod's."""
    return {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}


def test_no_container_may_become_more_than_it_is(pods):
    for pod in pods:
        for container in containers(pod):
            context = security(pod, container)
            assert context["runAsNonRoot"]
            assert (65532, 65532) == (context["runAsUser"], context["runAsGroup"])
            assert context["allowPrivilegeEscalation"] is False
            assert {"drop": ["ALL"]} == context["capabilities"]
            assert {"type": "RuntimeDefault"} == context["seccompProfile"]
            assert context["readOnlyRootFilesystem"]
            assert not context.get("privileged")


def test_no_pod_shares_anything_with_its_worker_node(pods):
    for pod in pods:
        assert not HOST & set(pod["spec"])
        assert not [port for container in containers(pod) for port in container.get("ports", []) if "hostPort" in port]
        for volume in pod["spec"].get("volumes", []):
            assert set(volume) - {"name"} <= VOLUMES


def test_no_pod_has_a_token_for_the_api_server_but_the_reconciler(pods, base, dev):
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is (pod["spec"].get("serviceAccountName") == RECONCILER)
    for tree in (base, dev):
        assert all(each["automountServiceAccountToken"] is False for each in tree.all("ServiceAccount"))


def test_every_container_asks_for_what_it_needs_and_has_limits(pods):
    """A quota may demand both, and a node that takes all the memory takes its neighbours along."""
    for pod in pods:
        for container in containers(pod):
            assert {"cpu", "memory"} == set(container["resources"]["requests"])
            assert {"cpu", "memory"} == set(container["resources"]["limits"])


def test_mounted_files_are_readable_for_the_user_that_reads_them(tree):
    assert {65532} == {pod["spec"]["securityContext"]["fsGroup"] for pod in tree.pods.values()}


def test_no_pod_is_told_of_other_services(tree):
    assert all(pod["spec"]["enableServiceLinks"] is False for pod in tree.pods.values())


def test_images_have_a_version_and_are_not_pulled_again(pods, tree):
    images = [container["image"] for pod in pods for container in containers(pod)]

    assert all(not image.endswith(":latest") and ":" in image.rpartition("/")[2] for image in images)
    assert {"IfNotPresent"} == {
        container["imagePullPolicy"] for pod in tree.pods.values() for container in containers(pod)
    }


def test_the_namespace_lets_in_nothing_else(tree):
    labels = tree.one("Namespace", NAMESPACE)["metadata"]["labels"]

    assert ["restricted"] * 3 == [labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")]


def test_nothing_grants_rights_but_the_component_whose_reconciler_needs_them(base, dev):
    def granting(tree: Tree) -> list[str]:
        return [title(each) for each in tree.objects if each["kind"].endswith(("Role", "RoleBinding"))]

    assert [] == granting(base)
    assert [f"ClusterRole/{RECONCILER}", f"ClusterRoleBinding/{RECONCILER}"] == granting(dev)
