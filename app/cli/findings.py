"""What `check` finds: of settings, certificate and nodes. Knows what is right, not how it is looked up."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from app.cli.certificate import Certificate, read_certificate
from app.cli.output import counted
from app.semaphore.survey import Health
from app.settings import Settings

# cert-manager has renewed long before, unless something keeps it from doing so.
SOON = timedelta(days=14)
# An offset does no harm by itself, as each node ends leases by its own clock. But the clock will be set right one day,
# and a step forward shortens every lease on the node by as much. A sidecar renews the shortest lease, of five seconds,
# 3.3 seconds before its end; of that a step takes less than a third. Clocks that are kept by NTP differ by far less.
WORST_OFFSET_SECONDS = 1.0
# Each holder keeps a connection to each node.
MOST_CONNECTIONS = 0.75
MOST_MEMORY = 0.75
DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
UTC_FORMAT = "%Y-%m-%d %H:%M UTC"
CONFIG = (*DURABLE, "maxclients")


class Level(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; the remedy says what to do, where there is something."""

    level: Level
    subject: str
    found: str
    remedy: str = ""


def of_settings(settings: Settings) -> Finding:
    """The settings, which have been accepted."""
    nodes = counted(len(settings.redis_addresses), "node")
    if settings.redis_password is None:
        remedy = "set REDIS_PASSWORD: it also keys the tokens, which others could guess without it"
        return Finding(Level.WARN, "settings", f"{nodes}, no password", remedy)
    if len(settings.redis_addresses) == 1:
        return Finding(Level.WARN, "settings", nodes, "name three, so that one of them may fail")
    variant = f"variant {settings.variant}" if settings.variant else "no variant"
    return Finding(Level.OK, "settings", f"{nodes}, {variant}")


def of_certificate(settings: Settings, now: datetime) -> Finding:
    """The certificate in CERT_DIR."""
    subject = f"certificate {settings.cert_file}"
    mount = "mount the TLS Secret there, or name the folder of tls.crt and tls.key by CERT_DIR"
    try:
        found = read_certificate(settings.cert_file.read_bytes(), settings.key_file.read_bytes())
    except OSError as error:
        return Finding(Level.FAIL, subject, f"{error.filename} cannot be read: {error.strerror}", mount)
    except ValueError as error:
        return Finding(Level.FAIL, subject, str(error), mount)
    if wrong := _unusable(found, now):
        return Finding(Level.FAIL, subject, *wrong)
    left = found.not_after - now
    until = f"valid until {found.not_after:{UTC_FORMAT}}, {counted(left.days, 'day')} left"
    if left < SOON:
        return Finding(Level.WARN, subject, until, "see why it was not renewed")
    return Finding(Level.OK, subject, f"{until}, for {', '.join(found.dns_names)}")


def _unusable(found: Certificate, now: datetime) -> tuple[str, str] | None:
    """Why no client would accept it, and what to do."""
    if not found.fits_key:
        return "tls.key is not its key", "issue both anew"
    if now >= found.not_after:
        return f"expired at {found.not_after:{UTC_FORMAT}}", "see why it was not renewed"
    if now < found.not_before:
        return f"not valid before {found.not_before:{UTC_FORMAT}}", "see whether this machine's clock is right"
    if not found.dns_names:
        return "it has no DNS names, and API servers look at nothing else", "issue it for the webhook's Service"
    return None


def of_hook_rights(subject: str, lacking: Mapping[str, str]) -> Finding:
    """What the webhook's user may not do."""
    if not lacking:
        return Finding(Level.OK, subject, "may do all that it needs")
    # Nobody but this command asks how a node is set up.
    level = Level.WARN if set(lacking) == {"config|get"} else Level.FAIL
    return Finding(level, subject, _refused(lacking), "give the user the line that stands in the README")


def of_sidecar_rights(subject: str, lacking: Mapping[str, str], excess: set[str]) -> Finding:
    """What the sidecars' user may not do, and what it may though it should not."""
    if lacking:
        remedy = "give the user the line that stands in the README: without it sidecars cannot keep their slots"
        return Finding(Level.FAIL, subject, _refused(lacking), remedy)
    if excess:
        remedy = "every pod's author can read its password: give the user the line that stands in the README"
        return Finding(Level.WARN, subject, f"may do more than it needs: {', '.join(sorted(excess))}", remedy)
    return Finding(Level.OK, subject, "may renew and release leases, and nothing else that was tried")


def _refused(lacking: Mapping[str, str]) -> str:
    """The rights, and what the node said to the first of them: it may be something else than a lack of rights."""
    return f"may not {', '.join(lacking)} ({next(iter(lacking.values()))})"


def of_durability(subject: str, config: Mapping[str, str]) -> Finding:
    """Whether the node may forget what it has confirmed."""
    wrong = [f"{name} {config.get(name, 'unknown')}" for name, right in DURABLE.items() if config.get(name) != right]
    if wrong:
        right = ", ".join(f"{name} {value}" for name, value in DURABLE.items())
        remedy = f"set {right}: a node that forgets a slot lets one pod too many run"
        return Finding(Level.FAIL, subject, ", ".join(wrong), remedy)
    return Finding(Level.OK, subject, ", ".join(f"{name} {value}" for name, value in DURABLE.items()))


def of_connections(subject: str, config: Mapping[str, str], clients: Mapping[str, str]) -> Finding:
    """Whether there is room for more holders."""
    connected, most = int(clients["connected_clients"]), int(config["maxclients"])
    found = f"{connected} of {most} (maxclients) in use"
    if connected > most * MOST_CONNECTIONS:
        return Finding(Level.WARN, subject, found, "raise maxclients: every pod that holds a slot keeps a connection")
    return Finding(Level.OK, subject, found)


def of_memory(subject: str, memory: Mapping[str, str]) -> Finding:
    """Whether there is room for more slots: a node that is full refuses to write, so that no pod gets in by it."""
    used, most = int(memory["used_memory"]), int(memory["maxmemory"])
    if not most:
        return Finding(Level.OK, subject, "no limit (maxmemory)")
    found = f"{used / 1e6:.0f} of {most / 1e6:.0f} MB (maxmemory) in use"
    remedy = "raise maxmemory: a node without room takes no slots"
    if used >= most:
        return Finding(Level.FAIL, subject, found, remedy)
    return (
        Finding(Level.WARN, subject, found, remedy) if used > most * MOST_MEMORY else Finding(Level.OK, subject, found)
    )


def of_role(subject: str, replication: Mapping[str, str]) -> Finding:
    """Whether the node is independent."""
    role = replication.get("role", "unknown")
    if role != "master":
        remedy = "name servers that are independent of each other: a replica is none, and takes no slots"
        return Finding(Level.FAIL, subject, f"its role is {role}", remedy)
    return Finding(Level.OK, subject, "replicates nobody")


def of_clock(subject: str, health: Health) -> Finding:
    """How the node's clock stands to the one here."""
    offset, round_trip = health.clock_offset_seconds, health.round_trip_seconds
    if offset is None or round_trip is None:
        return Finding(Level.WARN, subject, f"cannot tell: {health.fault}")
    # The clock was looked at somewhere between asking and being answered.
    if abs(offset) - round_trip / 2 > WORST_OFFSET_SECONDS:
        where = "ahead of" if offset > 0 else "behind"
        remedy = "let NTP keep both machines' clocks: setting this one forward at once ends leases early"
        return Finding(Level.WARN, subject, f"{abs(offset):.3f} s {where} the one here", remedy)
    return Finding(Level.OK, subject, f"{offset:+.3f} s")


def of_identities(servers: Mapping[str, str]) -> list[Finding]:
    """Whether addresses lead to the same server; `servers` has the run id behind each address."""
    by_server: dict[str, list[str]] = {}
    for address, run_id in servers.items():
        by_server.setdefault(run_id, []).append(address)
    remedy = "give each node an address of its own: one server must not count twice"
    return [
        Finding(Level.FAIL, f"nodes {' and '.join(addresses)}", "are one and the same server", remedy)
        for addresses in by_server.values()
        if len(addresses) > 1
    ]


def today() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)
