"""The examples ask for slots as they say, and none stands in its own way."""

from app.admission.annotations import GROUP, WhenFull, WhenUnavailable, parse_slot_request
from tests.manifests.objects import EXAMPLES, containers, load, pod_of


def requests():
    """What every example's pods ask for, by the example's name."""
    return {
        each["metadata"]["name"]: parse_slot_request(pod_of(each)["metadata"]["annotations"], GROUP)
        for each in load(*EXAMPLES)
    }


def test_there_is_an_example_of_every_controller():
    assert ["CronJob", "Deployment", "Deployment", "Job", "Job"] == sorted(each["kind"] for each in load(*EXAMPLES))


def test_every_example_asks_for_a_slot_that_is_given_up_soon():
    assert all(each and each.expiration_seconds <= 60 for each in requests().values())
    assert {WhenUnavailable.DENY} == {each.when_unavailable for each in requests().values() if each}


def test_the_deployments_share_a_semaphore_that_is_one_too_small_for_them():
    deployments = [each for each in load(*EXAMPLES) if each["kind"] == "Deployment"]
    [asked] = {requests()[each["metadata"]["name"]] for each in deployments}

    assert asked
    assert 3 == asked.length == sum(each["spec"]["replicas"] for each in deployments) - 1


def test_a_rolling_update_takes_a_pod_away_before_it_adds_one():
    for each in load(*EXAMPLES):
        if each["kind"] == "Deployment":
            assert {"maxSurge": 0, "maxUnavailable": 1} == each["spec"]["strategy"]["rollingUpdate"]
            labels = pod_of(each)["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"] == labels


def test_the_job_and_the_cron_job_keep_out_of_each_others_way():
    [asked] = {requests()[name] for name in ("migration", "report")}

    assert asked
    assert 1 == asked.length


def test_more_pods_wait_than_may_run_in_the_one_example_that_waits():
    [job] = [each for each in load(*EXAMPLES) if each["metadata"]["name"] == "imports"]
    asked = requests()["imports"]

    assert asked
    assert ["imports"] == [name for name, each in requests().items() if each and each.when_full is WhenFull.WAIT]
    assert 0 < asked.length < job["spec"]["parallelism"] <= job["spec"]["completions"]


def test_examples_run_in_the_namespace_one_is_in():
    assert not [each for each in load(*EXAMPLES) if "namespace" in each["metadata"]]
    assert {"docker.io/library/busybox:1.37"} == {
        container["image"] for each in load(*EXAMPLES) for container in containers(pod_of(each))
    }
