"""`repair`: tell nodes what they lack."""

import click

from app.cli.desk import Form, desk_options, no_semaphore, open_desk, parse_semaphore, tell_unheard
from app.cli.output import counted, say, say_json, tell
from app.semaphore.survey import Overview


@click.command()
@click.argument("semaphore", metavar="[NAMESPACE/KEY]", required=False)
@desk_options
def repair(semaphore: str | None, form: str, timeout_seconds: float) -> None:
    """Tell nodes what they lack of all semaphores, or of one.

    A node that was away, or has lost its data, is brought up to date by the next pods that ask; where none ask for
    long, this does the same. Nothing is given to anybody and nothing taken away: only what a majority of nodes has, and
    one lacks, is written to that one. Do it before another node is touched.

    Exit status 1: some node may still lack something, since not all answered, or two of them contradict each other
    while a slot is being given; try again.
    """
    only = parse_semaphore(semaphore) if semaphore else None
    desk = open_desk(form, timeout_seconds)
    with desk.semaphores() as semaphores:
        before = desk.read(semaphores, only)
        names = [*(state.semaphore for state in before.states), *before.unreadable]
        if only and not names:
            raise click.ClickException(no_semaphore(only))
        left = [name for name in names if not semaphores.repair(name, desk.deadline())]
        after = semaphores.overview(desk.deadline(), only=only)
    counts = {"semaphores": len(names), "leases_missing_before": _missing(before), "leases_missing": _missing(after)}
    unheard = {**desk.unheard(before), **desk.unheard(after)}
    tell_unheard({node: why for node, why in unheard.items() if node not in desk.unheard(before)})
    if desk.form is Form.JSON:
        say_json({**counts, "not_repaired": left, "nodes_unheard": unheard})
    else:
        told = f"{counted(counts['leases_missing_before'], 'lease')} missing before, {counts['leases_missing']} now"
        where = f", on the nodes that answered; {counted(len(unheard), 'node')} did not" if unheard else ""
        say(f"looked at {counted(len(names), 'semaphore')}: {told}{where}")
        for name in left:
            tell(f"{name}: some node may still lack something; try again when all answer")
    if left:
        raise click.exceptions.Exit(1)


def _missing(overview: Overview) -> int:
    """How many leases that a majority has are missing, on all nodes together."""
    return sum(sum(state.lacking.values()) for state in overview.states)
