"""`release`: take a slot away from its holder."""

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import click

from app.cli.desk import Desk, Form, Wrong, desk_options, no_semaphore, open_desk, parse_semaphore, quoted
from app.cli.held import Held, headline, held_in, slots_table
from app.cli.output import duration, say, say_json, tell
from app.logs import JsonFormatter, shortened
from app.semaphore.semaphores import Semaphores
from app.semaphore.survey import Overview

WARNING = """\
If its pod still runs, it goes on without its slot: its sidecar logs that the slot is lost, and does not take
it again. The next pod that asks gets the slot, so that one more than the length may run at once. Delete the
pod first: then its sidecar gives the slot back, and there is nothing to release."""


@click.command()
@click.argument("what", metavar="TOKEN|NAMESPACE/KEY/SLOT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@desk_options
def release(what: str, yes: bool, form: str, timeout_seconds: float) -> None:
    """Take a slot away from its holder, so that another pod gets it.

    Hardly ever needed: the slot of a pod that has ended is given back at once, and one whose sidecar is gone is free
    when its lease has ended (LEFT in `holders`). It is for those who cannot wait that long, and know that the pod
    does not run any more.

    A pod that still runs goes on without its slot: its sidecar logs that the slot is lost, and does not take it
    again. The next pod that asks gets the slot, so that one more than the length may run at once. So delete the pod
    first.

    The slot is what follows the last slash, as in batch/reports-db/0; a token is 32 hex digits. You are asked before
    anything is done, for which `kubectl exec` needs -i. What was released is written to stderr as a line of the
    webhook's log and, in the webhook's container, to the container's log as well.

    Exit status 1: nobody holds the slot, you said no, or no majority of nodes has confirmed it.
    """
    semaphore, number = parse_target(what)
    desk = open_desk(form, timeout_seconds)
    with desk.semaphores() as semaphores:
        held = _find(desk, desk.read(semaphores, semaphore), semaphore, number, what)
        if not yes:
            _show(held)
            click.confirm("Release it?", abort=True, err=True)
        is_confirmed = semaphores.release(held.slot.lease.token, desk.deadline())
        _log(held, is_confirmed)
        _look_again(desk, semaphores, held, is_confirmed)


def parse_target(what: str) -> tuple[str | None, int | None]:
    """The semaphore and the slot; neither of a token. Raises Wrong."""
    if re.fullmatch(r"[0-9a-f]{32}", what):
        return None, None
    semaphore, _, number = what.rpartition("/")
    if "/" not in semaphore or not re.fullmatch(r"[0-9]{1,9}", number):
        raise Wrong(
            f"{quoted(what)} is neither NAMESPACE/KEY/SLOT, such as batch/reports-db/0, nor a whole token of 32 hex "
            "digits; what `holders` shows as TOKEN is but a hash of one"
        )
    return parse_semaphore(semaphore), int(number)


def _find(desk: Desk, overview: Overview, semaphore: str | None, number: int | None, token: str) -> Held:
    if semaphore and not desk.state_of(overview, semaphore):
        raise click.ClickException(no_semaphore(semaphore))
    found = [each for state in overview.states for each in held_in(state, len(desk.addresses), time.time())]
    if semaphore:
        matching = [each for each in found if each.slot.number == number]
        nobody = f"nobody holds slot {number}; {headline(overview.states[0])}"
    else:
        matching = [each for each in found if each.slot.lease.token == token]
        nobody = f"no slot is held by the token {shortened(token)}: it has been given back, or has ended"
    if not matching:
        raise click.ClickException(nobody)
    # While a slot changes hands two have it: the one that a majority knows is its holder.
    return max(matching, key=lambda each: len(each.slot.nodes))


def _show(held: Held) -> None:
    tell(f"slot {held.slot.number} of {held.semaphore}, on {held.cells()[6]} nodes:")
    click.echo(slots_table([held], with_semaphore=False), err=True)
    for line in WARNING.splitlines():
        tell(line)


def _look_again(desk: Desk, semaphores: Semaphores, held: Held, is_confirmed: bool) -> None:
    """Tell what has become of the slot; ends with status 1 if no majority has released it."""
    overview = semaphores.overview(desk.deadline(), only=held.semaphore)
    now = [each for state in overview.states for each in held_in(state, len(desk.addresses), time.time())]
    left = [each for each in now if each.slot.lease.token == held.slot.lease.token]
    successors = [each for each in now if each.slot.number == held.slot.number and each not in left]
    for node in desk.unheard(overview):
        tell(
            f"node {node} could not be told: it may count the slot as taken for {duration(held.left_seconds)} more, "
            "or until the sidecar notices"
        )
    if not is_confirmed or any(each.is_confirmed for each in left):
        raise click.ClickException(f"slot {held.slot.number} may still be held: {desk.no_majority()}; try again")
    if desk.form is Form.JSON:
        say_json({"released": held.fields(), "given_to": successors[0].fields() if successors else None})
    elif successors:
        say(f"released; slot {held.slot.number} has been given to {successors[0].holder.name} meanwhile")
    else:
        say(f"released; slot {held.slot.number} of {held.semaphore} is free")


def _log(held: Held, is_confirmed: bool) -> None:
    """One line in the form of the webhook's log."""
    message = "a slot was released by hand" if is_confirmed else "a slot was released by hand on no majority of nodes"
    line = JsonFormatter().format(
        logging.makeLogRecord(
            {
                "name": "app.cli",
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": message,
                "semaphore": held.semaphore,
                "slot": held.slot.number,
                "token": shortened(held.slot.lease.token),
                "holder": held.holder.name,
            }
        )
    )
    log_to_container(line)  # first: our own stderr may be closed
    with suppress(OSError):
        click.echo(line, err=True)


def log_to_container(line: str, proc: Path = Path("/proc")) -> None:
    """Write the line to the webhook's log too, where this runs in its container: what its first process writes to.

    That is so only if that process is gunicorn; anywhere else nothing happens, nor if nobody takes the line.
    """
    with suppress(OSError):
        if b"gunicorn" not in (proc / "1" / "cmdline").read_bytes():
            return
        stderr = os.open(proc / "1" / "fd" / "2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            os.write(stderr, f"{line}\n".encode())
        finally:
            os.close(stderr)
