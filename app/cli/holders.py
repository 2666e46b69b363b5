"""`holders` and `semaphores`: who holds what."""

import time
from typing import Any

import click

from app.cli.desk import Desk, Form, desk_options, no_semaphore, open_desk, parse_semaphore
from app.cli.held import SEMAPHORE_HEADERS, headline, held_in, semaphore_cells, slots_table, summary, unreadable
from app.cli.output import counted, say, say_json, table
from app.cli.waiters import Waiter, read_waiters, waiters_table
from app.semaphore.survey import Overview

NONE_YET = "there is no semaphore yet: no pod has asked for a slot"


@click.command(short_help="Who holds which slot, and who waits for one.")
@click.argument("semaphore", metavar="[NAMESPACE/KEY]", required=False)
@desk_options
def holders(semaphore: str | None, form: str, timeout_seconds: float) -> None:
    """Who holds which slot, of all semaphores or of one; and who waits for one.

    \b
    STATUS  reserved  admitted, but the pod's sidecar has not started yet: the pod waits for
                      a machine or pulls its images, or was refused by somebody else after us
            running   its sidecar renews the slot
            overdue   it has not done so for more than half of the lease: the sidecar or its
                      worker node is gone, or cut off from the nodes; the slot ends by itself
            unconfirmed  the slot is known to some node, but to no majority: an admission or a
                      release is under way, or the lease is being lost. It does not count as held
    LEFT    until the slot is free, unless it is renewed before
    NODES   on how many nodes the slot is held
    TOKEN   tells one admission from another; the webhook's log has it, too

    Pods that wait follow with their PLACE, where this may ask the API server for pods: in the reconciler's container.
    A pod without a place gets no slot as it is, its STATUS says why.

    Exit status 1: there is no such semaphore, or no majority of nodes answered.
    """
    only = parse_semaphore(semaphore) if semaphore else None
    desk = open_desk(form, timeout_seconds)
    with desk.semaphores() as semaphores:
        overview = desk.read(semaphores, only)
    waiters = read_waiters(desk.settings, only)
    if only and not desk.state_of(overview, only) and not waiters:
        raise click.ClickException(no_semaphore(only))
    if desk.form is Form.JSON:
        say_json(_holders_json(desk, overview, waiters))
    else:
        _show_holders(desk, overview, only)
        if waiters:
            _show_waiters(waiters, only)


def _holders_json(desk: Desk, overview: Overview, waiters: list[Waiter] | None) -> dict[str, Any]:
    now = time.time()
    return {
        "holders": [each.fields() for state in overview.states for each in held_in(state, len(desk.addresses), now)],
        "waiting": None if waiters is None else [each.fields() for each in waiters],
        **_reading_json(desk, overview, now),
    }


def _reading_json(desk: Desk, overview: Overview, now: float) -> dict[str, Any]:
    summaries = [summary(state, now) for state in overview.states]
    return {
        "semaphores": summaries + [unreadable(name) for name in overview.unreadable],
        "nodes_total": len(desk.addresses),
        "nodes_unheard": desk.unheard(overview),
    }


def _show_holders(desk: Desk, overview: Overview, only: str | None) -> None:
    now = time.time()
    found = [each for state in overview.states for each in held_in(state, len(desk.addresses), now)]
    if only:
        say(headline(overview.states[0]) if overview.states else f"{only}: no slot has been granted yet")
    elif not overview.states:
        say(NONE_YET)
    elif not found:
        say(f"no slot is held; {counted(len(overview.states), 'semaphore')} known")
    if found:
        click.echo(slots_table(found, with_semaphore=not only))
    for name in overview.unreadable:
        say(f"{name}: cannot be read, as no majority of nodes knows it", colour="red")


def _show_waiters(waiters: list[Waiter], only: str | None) -> None:
    say("")
    say(f"{counted(len(waiters), 'pod')} waiting:")
    click.echo(waiters_table(waiters, with_semaphore=not only))


@click.command()
@desk_options
def semaphores(form: str, timeout_seconds: float) -> None:
    """All semaphores in numbers.

    \b
    LENGTH       how many slots there are, by the pod that was admitted last
    HELD         slots that are held, by a majority of nodes
    RESERVED     of these, those of pods whose sidecar has not started yet
    OVERDUE      of these, those whose sidecar has stopped to renew
    UNCONFIRMED  slots that some node knows, but no majority: they do not count as held
    OLDEST       how long the oldest reservation has been waiting for its pod to start
    STATE        full: the next pod that asks with this length is refused, or waits
    RECORDS      on how many nodes the semaphore is known. One that lacks it learns it with the
                 next pods that ask

    A semaphore that is not used any more stays in the list until its record is removed from the nodes.

    Exit status 1: no majority of nodes answered.
    """
    desk = open_desk(form, timeout_seconds)
    with desk.semaphores() as opened:
        overview = desk.read(opened)
    reading = _reading_json(desk, overview, time.time())
    if desk.form is Form.JSON:
        say_json(reading)
    elif reading["semaphores"]:
        click.echo(
            table(SEMAPHORE_HEADERS, [semaphore_cells(each, len(desk.addresses)) for each in reading["semaphores"]])
        )
    else:
        say(NONE_YET)
