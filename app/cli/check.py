"""`check`: whether settings, certificate and nodes are as they should be."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

import click

from app.cli import findings
from app.cli.desk import Desk, Form, desk_options, patient
from app.cli.findings import CONFIG, Finding, Level
from app.cli.output import printable, say_json
from app.semaphore.model import Fault
from app.semaphore.rights import Failed, Probe, excess_trials, hook_trials, sidecar_trials
from app.semaphore.survey import Health
from app.settings import Settings, SettingsError
from sidecar.protocol import Address, Keys

COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@click.command(short_help="Whether settings, certificate and nodes are as they should be.")
@desk_options
def check(form: str, timeout_seconds: float) -> None:
    """Whether settings, certificate and nodes are as they should be, a line each: ok, warn or FAIL, and what to do.

    \b
    settings     those of the webhook are accepted
    certificate  it can be read, fits its key, names its server, and is valid for two weeks or more
    each node    answers and lets both users in
                 lets the webhook's user do what it needs
                 lets the sidecars' user renew and release leases, and do nothing else
                 writes everything to its disk before it answers, and forgets nothing
                 has connections and memory left, and replicates nobody
                 has a clock that differs by a second at most

    The rights are tried by commands that change nothing.

    Exit status: 0 if nothing FAILs, 1 otherwise.
    """
    try:
        settings = patient(Settings.from_env(os.environ), timeout_seconds)
    except SettingsError as error:
        found = [Finding(Level.FAIL, "settings", str(error), "correct it in the webhook's environment")]
    else:
        found = list(_all_findings(Desk(settings, Form(form), timeout_seconds)))
    if form == Form.JSON.value:
        say_json({"findings": [_fields(each) for each in found]})
    else:
        for each in found:
            _say(each)
    if any(each.level is Level.FAIL for each in found):
        raise click.exceptions.Exit(1)


def _all_findings(desk: Desk) -> Iterator[Finding]:
    yield findings.of_settings(desk.settings)
    yield findings.of_certificate(desk.settings, findings.today())
    with desk.semaphores() as semaphores:
        semaphores.health(desk.deadline())  # connects, which would count as a part of the round trip
        health = semaphores.health(desk.deadline())
    servers: dict[str, str] = {}
    for address in desk.addresses:
        yield from _of_node(desk.settings, address, health[address], servers)
    yield from findings.of_identities(servers)


def _of_node(settings: Settings, address: Address, health: Health, servers: dict[str, str]) -> Iterator[Finding]:
    """All about one node; adds its run id to `servers`."""
    user = settings.redis_username or "default"
    try:
        probe = Probe(address, settings.redis_username, settings.redis_password, settings.node_patience_seconds)
    except Failed as failed:
        yield _not_let_in(f"node {address}", user, failed, "REDIS_USERNAME and REDIS_PASSWORD")
        return
    with closing(probe):
        yield Finding(Level.OK, f"node {address}", f"answers, and lets {user} in")
        rights = f"node {address}, rights of {user}"
        trials = hook_trials(Keys(settings.variant))
        yield _found(rights, lambda: findings.of_hook_rights(rights, probe.lacking(trials)))
        yield _sidecars(settings, address)
        yield from _of_server(probe, address, servers)
    yield findings.of_clock(f"node {address}, clock", health)


def _sidecars(settings: Settings, address: Address) -> Finding:
    user = settings.sidecar_redis_username or "default"
    subject = f"node {address}, rights of {user}, the sidecars' user"
    try:
        probe = Probe(
            address, settings.sidecar_redis_username, settings.sidecar_redis_password, settings.node_patience_seconds
        )
    except Failed as failed:
        return _not_let_in(subject, user, failed, "SIDECAR_REDIS_USERNAME and SIDECAR_REDIS_PASSWORD")
    keys = Keys(settings.variant)
    with closing(probe):
        return _found(subject, lambda: _sidecar_rights(subject, probe, keys))


def _sidecar_rights(subject: str, probe: Probe, keys: Keys) -> Finding:
    excess = {trial.right for trial in excess_trials(keys)} - set(probe.lacking(excess_trials(keys)))
    return findings.of_sidecar_rights(subject, probe.lacking(sidecar_trials(keys)), excess)


def _of_server(probe: Probe, address: Address, servers: dict[str, str]) -> Iterator[Finding]:
    durability, connections = f"node {address}, durability", f"node {address}, connections"
    memory, role = f"node {address}, memory", f"node {address}, role"
    yield _found(durability, lambda: findings.of_durability(durability, probe.config(*CONFIG)))
    yield _found(
        connections, lambda: findings.of_connections(connections, probe.config(*CONFIG), probe.info("clients"))
    )
    yield _found(memory, lambda: findings.of_memory(memory, probe.info("memory")))
    yield _found(role, lambda: findings.of_role(role, probe.info("replication")))
    try:
        servers[str(address)] = probe.info("server")["run_id"]
    except (Failed, KeyError):
        return


def _found(subject: str, look: Callable[[], Finding]) -> Finding:
    """What is found; that it cannot be told if the node does not tell."""
    try:
        return look()
    except Failed as failed:
        return Finding(Level.WARN, subject, f"cannot tell: {failed.why}", "let the webhook's user ask: see the README")
    except KeyError as error:
        return Finding(Level.WARN, subject, f"cannot tell: the node does not say its {error}")


def _not_let_in(subject: str, user: str, failed: Failed, variables: str) -> Finding:
    if failed.fault is Fault.ERROR:
        remedy = f"see that {variables} are those of a user of the node"
        return Finding(Level.FAIL, subject, f"does not let {user} in: {failed.why}", remedy)
    remedy = "see that it runs and can be reached from here: network policies, its address in REDIS_ADDRESSES"
    return Finding(Level.FAIL, subject, f"cannot be reached: {failed.why}", remedy)


def _say(found: Finding) -> None:
    remedy = f"; {found.remedy}" if found.remedy else ""
    level = click.style(found.level.value.ljust(4), fg=COLOURS[found.level])
    click.echo(f"{level}  {printable(f'{found.subject}: {found.found}{remedy}')}")


def _fields(found: Finding) -> Mapping[str, str | None]:
    return {
        "level": found.level.value,
        "subject": found.subject,
        "found": found.found,
        "remedy": found.remedy or None,
    }
