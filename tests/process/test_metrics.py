"""The page that Prometheus reads."""

from tests.harness.webhook import Webhook


def test_methods_that_a_client_makes_up_are_one_time_series(webhook: Webhook):
    for number in range(3):
        assert 405 == webhook.request(f"MADEUP{number}", "/mutate")[0]

    page = webhook.metrics()
    assert "MADEUP" not in page
    assert 'method="other"' in page
