"""The settings of the webhook, read once from the environment. Wrong ones refuse to start, and say why.

Knows the variables and what they accept, not what is done with them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sidecar.protocol import LONGEST_LEASE_SECONDS, SHORTEST_LEASE_SECONDS, Address, Mode, parse_addresses

T = TypeVar("T")

DEFAULT_IMAGE = "ghcr.io/kaidotio/at-least-semaphore-pod-hook:0.1.0"


class SettingsError(ValueError):
    """A variable of the environment cannot be used; the message names it, its value and the remedy."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; units are in the names."""

    # The nodes, in the order in which they are asked. An odd number, so that there is a majority.
    redis_addresses: tuple[Address, ...]
    # The user of the webhook, who may touch records, leases and reservations; none: no AUTH is sent.
    redis_username: str | None
    redis_password: str | None = field(repr=False)
    # The one before it, as long as pods that were created under it have not started.
    redis_password_also: str | None = field(repr=False)
    # What injected sidecars use: text that is handed on, checked like our own. Every pod's owner can read it,
    # so its user should be able to do no more than prolong and end leases by their tokens.
    sidecar_redis_addresses: str
    sidecar_redis_username: str | None
    sidecar_redis_password: str | None = field(repr=False)
    sidecar_image: str
    sidecar_mode: Mode
    # What a LimitRange or a quota of tenants' namespaces may demand otherwise: resources by their names.
    sidecar_requests: Mapping[str, str]
    sidecar_limits: Mapping[str, str]
    # Long enough to schedule a pod and pull its images: an admitted pod whose sidecar has not renewed by then
    # loses its slot.
    reservation_seconds: int
    # For everything that one admission does; below the timeoutSeconds of the webhook configuration.
    admission_budget_seconds: float
    cert_dir: Path
    bind: str
    metrics_port: int
    # Series that the metrics have for semaphores; the rest is summed. Every semaphore costs Prometheus five or six.
    metrics_semaphores: int
    # Workers of gunicorn; each serves one request at a time.
    web_concurrency: int
    # Whether pods may wait for a slot, which only a reconciler gives them later.
    waiting_allowed: bool
    # Tells installations in one cluster, or on the same nodes, apart. Empty: none.
    variant: str

    @property
    def node_patience_seconds(self) -> float:
        """How long an answer of one node is waited for: so many nodes may be silent within one admission."""
        return self.admission_budget_seconds / 4

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Under which tokens and seals are made, the first, and under which seals are known."""
        also = () if self.redis_password_also is None else (self.redis_password_also.encode(),)
        return ((self.redis_password or "").encode(), *also)

    @property
    def cert_file(self) -> Path:
        return self.cert_dir / "tls.crt"

    @property
    def key_file(self) -> Path:
        return self.cert_dir / "tls.key"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and check all variables. An empty one counts as unset. Raises SettingsError at the first wrong one."""
        read = _Reader(environ)
        addresses = read("REDIS_ADDRESSES", _checked_addresses, "127.0.0.1:6379")
        sidecar_addresses = read("SIDECAR_REDIS_ADDRESSES", _checked_addresses, addresses)
        _check_count(sidecar_addresses, addresses)
        read.check_logins()
        return cls(
            redis_addresses=parse_addresses(addresses),
            redis_username=read("REDIS_USERNAME", str, None),
            redis_password=read("REDIS_PASSWORD", str, None),
            redis_password_also=read("REDIS_PASSWORD_ALSO", str, None),
            sidecar_redis_addresses=sidecar_addresses,
            sidecar_redis_username=read("SIDECAR_REDIS_USERNAME", str, None),
            sidecar_redis_password=read("SIDECAR_REDIS_PASSWORD", str, None),
            sidecar_image=read("SIDECAR_IMAGE", _image, DEFAULT_IMAGE),
            sidecar_mode=read("SIDECAR_MODE", _mode, Mode.NATIVE),
            sidecar_requests=read("SIDECAR_REQUESTS", _resources, {"cpu": "5m", "memory": "16Mi"}),
            # A quota may demand limits. The one on cpu is wide, since every probe starts an interpreter.
            sidecar_limits=read("SIDECAR_LIMITS", _resources, {"cpu": "250m", "memory": "64Mi"}),
            reservation_seconds=read("RESERVATION_SECONDS", _reservation, 300),
            admission_budget_seconds=read("ADMISSION_BUDGET_SECONDS", _budget, 2.0),
            cert_dir=read("CERT_DIR", Path, Path("/var/k8s-webhook-server/serving-certs")),
            bind=read("BIND", _bind, "0.0.0.0:9443"),
            metrics_port=read("METRICS_PORT", _port, 8080),
            metrics_semaphores=read("METRICS_SEMAPHORES", _semaphores, 1000),
            web_concurrency=read("WEB_CONCURRENCY", _workers, 1),
            waiting_allowed=read("WAITING_ALLOWED", _flag, False),
            variant=read("VARIANT", _variant, ""),
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    environ: Mapping[str, str]

    def __call__(self, name: str, convert: Callable[[str], T], default: T) -> T:
        text = self.environ.get(name, "").strip()
        if not text:
            return default
        try:
            return convert(text)
        except ValueError as error:
            raise SettingsError(f"{name}: {error}") from error

    def check_logins(self) -> None:
        for username, password in (
            ("REDIS_USERNAME", "REDIS_PASSWORD"),
            ("SIDECAR_REDIS_USERNAME", "SIDECAR_REDIS_PASSWORD"),
        ):
            if self(username, str, "") and not self(password, str, ""):
                raise SettingsError(f"{username}: {self.environ[username]!r} has no password; set {password} as well")
        if self("REDIS_PASSWORD", str, "") and not self("SIDECAR_REDIS_PASSWORD", str, ""):
            raise SettingsError(
                "SIDECAR_REDIS_PASSWORD: not set, though the nodes ask the webhook for a password; "
                "set the one of the sidecars' user, which should not be the webhook's"
            )


def _checked_addresses(text: str) -> str:
    parse_addresses(text)
    return text


def _check_count(sidecar_addresses: str, addresses: str) -> None:
    """A sidecar that knew fewer nodes would take a minority for a majority."""
    theirs, ours = len(parse_addresses(sidecar_addresses)), len(parse_addresses(addresses))
    if theirs != ours:
        raise SettingsError(
            f"SIDECAR_REDIS_ADDRESSES: {sidecar_addresses!r} names {theirs} nodes, REDIS_ADDRESSES {ours}; "
            "name the same nodes, as pods reach them"
        )


def _image(text: str) -> str:
    if re.search(r"\s", text):
        raise ValueError(f"{text!r} is not the name of an image; write one such as {DEFAULT_IMAGE}")
    return text


def _mode(text: str) -> Mode:
    if text not in list(Mode):
        raise ValueError(f"{text!r} is not a mode; write native, or container for Kubernetes before 1.29")
    return Mode(text)


def _resources(text: str) -> Mapping[str, str]:
    """As `kubectl set resources --limits` takes them, or `none`."""
    found = {} if text == "none" else dict(_resource(part.strip(), text) for part in text.split(","))
    if text.count("=") > len(found):
        raise ValueError(f"{text!r} names a resource twice")
    return found


def _resource(part: str, text: str) -> tuple[str, str]:
    found = re.fullmatch(r"(cpu|memory|ephemeral-storage)=([0-9]{1,15}(?:\.[0-9]{1,3})?(?:m|k|[KMGT]i|[MGT])?)", part)
    if not found:
        raise ValueError(f"{text!r} is not accepted; write such as cpu=250m,memory=64Mi, or none")
    return found[1], found[2]


def _number(text: str, least: float, most: float, what: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not least <= float(text) <= most:
        raise ValueError(f"{text!r} is not accepted; write {what} from {least:g} to {most:g}")
    return float(text)


def _whole(text: str, least: int, most: int, what: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not accepted; write {what} from {least} to {most}")
    return int(_number(text, least, most, what))


def _reservation(text: str) -> int:
    return _whole(text, SHORTEST_LEASE_SECONDS, LONGEST_LEASE_SECONDS, "a whole number of seconds")


def _budget(text: str) -> float:
    return _number(text, 0.2, 25, "a number of seconds")


def _port(text: str) -> int:
    return _whole(text, 1, 65535, "a port")


def _semaphores(text: str) -> int:
    return _whole(text, 0, 100_000, "a number of semaphores")


def _workers(text: str) -> int:
    return _whole(text, 1, 1000, "a number of workers")


def _bind(text: str) -> str:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})", text)
    if not found or not 0 <= int(found[2]) <= 65535:
        raise ValueError(f"{text!r} is not where one can listen; write address:port, such as 0.0.0.0:9443")
    return text


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is not accepted; write true or false")
    return text == "true"


def _variant(text: str) -> str:
    # It becomes a part of a container's name, of an annotation's domain and of Redis keys.
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?", text):
        raise ValueError(f"{text!r} is not a DNS label of at most 20 characters (a-z, 0-9, -)")
    return text
