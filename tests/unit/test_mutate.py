"""How much time an admission has."""

import pytest

from app.web.mutate import MARGIN_SECONDS, _time_allowed


@pytest.mark.parametrize("timeout", ["", "10s", "1m", "1m30s", "2.5s", "nonsense", "10", "-1s", "1h", "10s10s"])
def test_the_budget_holds_where_the_api_server_waits_longer_or_says_nothing_that_is_understood(timeout):
    assert 2 == _time_allowed(timeout, budget_seconds=2)


@pytest.mark.parametrize(("timeout", "seconds"), [("1s", 1), ("500ms", 0.5), ("1.5s", 1.5), ("1s500ms", 1.5)])
def test_a_shorter_patience_of_the_api_server_holds_less_a_margin(timeout, seconds):
    assert seconds - MARGIN_SECONDS == pytest.approx(_time_allowed(timeout, budget_seconds=2))
