"""Two short soaks; `make soak` runs longer ones. A history with a finding is saved, and the output says where."""

import pytest

from tests.faults.soak import report, run


@pytest.mark.parametrize("seed", [1, 2])
def test_a_short_soak_breaks_no_promise(seed):
    history = run(12, seed)

    assert 0 == report(history)
    assert {"granted", "full"} <= {verdict.outcome for verdict in history.verdicts}
    assert history.pods
    assert history.disturbances
