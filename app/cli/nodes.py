"""`nodes`: how each of them is."""

from typing import Any

import click

from app.cli.desk import Desk, Form, desk_options, open_desk
from app.cli.output import UNKNOWN, Cell, say_json, table, tell
from app.semaphore.survey import Health, Overview
from sidecar.protocol import majority

HEADERS = ("NODE", "STATE", "ROUND TRIP", "CLOCK OFFSET", "LEASES", "MISSING", "EXPIRED KEYS")


@click.command()
@desk_options
def nodes(form: str, timeout_seconds: float) -> None:
    """How each node is.

    \b
    ROUND TRIP    how long it takes to tell the time
    CLOCK OFFSET  how far its clock is ahead of the one here; below zero: behind
    LEASES        slots that are held on it
    MISSING       slots that a majority holds and it lacks: it was away, or has lost its data, and
                  is brought up to date by the next pods that ask
    EXPIRED KEYS  leases and reservations that ended by themselves since it was started

    Exit status 0 as long as a majority of nodes answers, even where one is down; 1 without a majority.
    """
    desk = open_desk(form, timeout_seconds)
    with desk.semaphores() as semaphores:
        overview = semaphores.overview(desk.deadline())
        # After it, since connecting would count as a part of the round trip.
        health = list(semaphores.health(desk.deadline()).values())
    found = [_fields(desk, overview, number, each) for number, each in enumerate(health)]
    if desk.form is Form.JSON:
        say_json({"nodes": found})
    else:
        click.echo(table(HEADERS, [_cells(each) for each in found]))
    well = sum(each["node_up"] for each in found)
    if well < majority(len(found)):
        raise click.ClickException(
            f"{desk.no_majority()}: pods that ask for a slot are refused, or run without one if they say so; "
            "pods that run go on"
        )
    for each in found:
        if each["node_up"] and each["node_leases"] is None:
            tell(f"node {each['node']} did not tell of all leases: {desk.unheard(overview).get(each['node'])}")


def _fields(desk: Desk, overview: Overview, number: int, health: Health) -> dict[str, Any]:
    """For programs, by the names of the metrics."""
    is_known = number in overview.leases and desk.has_majority(overview)
    missing = sum(state.lacking.get(number, 0) for state in overview.states)
    return {
        "node": str(desk.addresses[number]),
        "node_up": health.fault is None,
        "fault": health.fault,
        "node_round_trip_seconds": health.round_trip_seconds,
        "node_clock_offset_seconds": health.clock_offset_seconds,
        "node_leases": overview.leases.get(number),
        "node_leases_missing": missing if is_known else None,
        "node_expired_keys_total": health.vitals.expired_keys if health.vitals else None,
    }


def _cells(found: dict[str, Any]) -> list[str | Cell]:
    return [
        found["node"],
        Cell("up", "green") if found["node_up"] else Cell(found["fault"], "red"),
        _or_unknown(found["node_round_trip_seconds"], lambda seconds: f"{seconds * 1000:.1f} ms"),
        _or_unknown(found["node_clock_offset_seconds"], lambda seconds: f"{seconds:+.3f} s"),
        _or_unknown(found["node_leases"]),
        _or_unknown(found["node_leases_missing"]),
        _or_unknown(found["node_expired_keys_total"]),
    ]


def _or_unknown(value: Any, shown: Any = str) -> str:
    return UNKNOWN if value is None else shown(value)
