"""`python -m sidecar` keeps the slot's lease; `python -m sidecar check` is the startupProbe.

Knows arguments and exit statuses: 0 done, 1 the check failed, 2 started wrongly. Knows nothing of leases.
"""

import os
import signal
import sys

from sidecar.keeper import SIGNALS, Keeper
from sidecar.protocol import Renewal
from sidecar.settings import Settings, SettingsError


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["check"]):
        return complain("usage: python -m sidecar [check]", 2)
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        return complain(f"sidecar: {error}", 2)
    if arguments:
        return check(Keeper(settings))
    # Before any other thread is there: each of them inherits it, and one waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    Keeper(settings).keep()
    return 0


def check(keeper: Keeper) -> int:
    """A renewal of its own: the sidecar's Redis user has no command that merely looks."""
    outcome = keeper.renew_once()
    if outcome is Renewal.KEPT:
        return 0
    if outcome is Renewal.LOST:
        return complain("sidecar: a majority of nodes has no lease of this pod", 1)
    failed = "; ".join(f"{address}: {why}" for address, why in keeper.failures().items())
    return complain(f"sidecar: no majority of nodes renewed the lease; {failed}", 1)


def complain(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
