"""What the commands have in common: their options, the settings, and reading what the nodes know."""

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

import click

from app import semaphores_on
from app.cli.output import tell
from app.semaphore.semaphores import Semaphores
from app.semaphore.survey import Overview, State
from app.settings import Settings, SettingsError
from sidecar.protocol import Address, majority

F = TypeVar("F", bound=Callable[..., Any])

# More than so many take long enough to say how far it has come.
MANY_SEMAPHORES = 500


class Form(StrEnum):
    """What stdout is written for."""

    TABLE = "table"
    JSON = "json"


class Wrong(click.ClickException):
    """What was asked for cannot be understood, or the settings are wrong."""

    exit_code = 2


def _no_nan(_context: click.Context, _option: click.Parameter, seconds: float) -> float:
    """Which is in any range, as click sees it."""
    if math.isnan(seconds):
        raise click.BadParameter("'nan' is no number of seconds")
    return seconds


_OUTPUT = click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice([form.value for form in Form]),
    default=Form.TABLE.value,
    show_default=True,
    help="A table for people, JSON for programs.",
)
_TIMEOUT = click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(0.1, 3600),
    callback=_no_nan,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the nodes, for each thing that they are asked.",
)


def desk_options(command: F) -> F:
    """The options of every command: `form` and `timeout_seconds`, of which a Desk is made."""
    return _OUTPUT(_TIMEOUT(command))


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with."""

    settings: Settings  # but for the patience with nodes, which is the command's
    form: Form
    timeout_seconds: float

    @property
    def addresses(self) -> tuple[Address, ...]:
        return self.settings.redis_addresses

    def deadline(self) -> float:
        """For what is asked now, in monotonic seconds."""
        return time.monotonic() + self.timeout_seconds

    @contextmanager
    def semaphores(self) -> Iterator[Semaphores]:
        """The semaphores, over connections of our own."""
        semaphores = semaphores_on(self.settings)
        try:
            yield semaphores
        finally:
            semaphores.close()

    def read(self, semaphores: Semaphores, only: str | None = None) -> Overview:
        """What a majority knows, of all semaphores or of one; says which nodes were not heard, and ends without one."""
        overview = semaphores.overview(self.deadline(), only=only, on_read=_progress)
        tell_unheard(self.unheard(overview))
        if not self.has_majority(overview):
            raise click.ClickException(f"{self.no_majority()}, so it is not known who holds what")
        return overview

    def has_majority(self, overview: Overview) -> bool:
        nodes = len(self.addresses)
        return nodes - len(overview.unheard) >= majority(nodes)

    def no_majority(self) -> str:
        nodes = len(self.addresses)
        if nodes == 1:
            return f"the only node in REDIS_ADDRESSES, {self.addresses[0]}, did not answer"
        return f"fewer than {majority(nodes)} of {nodes} nodes answered"

    def unheard(self, overview: Overview) -> Mapping[str, str]:
        """Why nodes were not heard, by their addresses."""
        return {str(self.addresses[number]): why for number, why in sorted(overview.unheard.items())}

    def state_of(self, overview: Overview, semaphore: str) -> State | None:
        """The state of a semaphore; None if there is no such one. Ends if no majority knows it."""
        if semaphore in overview.unreadable:
            nodes = len(self.addresses)
            raise click.ClickException(
                f"semaphore {semaphore} cannot be read: fewer than {majority(nodes)} of {nodes} nodes know it"
            )
        return next((state for state in overview.states if state.semaphore == semaphore), None)


def tell_unheard(unheard: Mapping[str, str]) -> None:
    """Say which nodes were not heard, by their addresses, and why."""
    for node, why in unheard.items():
        tell(f"node {node} was not heard: {why}")


def open_desk(form: str, timeout_seconds: float) -> Desk:
    """By the environment. Ends with one line about a wrong setting."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        raise Wrong(f"wrong setting: {error}") from error
    return Desk(patient(settings, timeout_seconds), Form(form), timeout_seconds)


def patient(settings: Settings, timeout_seconds: float) -> Settings:
    """With an eighth of the timeout for one silent node: there may be several, and each is asked in turn."""
    return replace(settings, admission_budget_seconds=timeout_seconds / 2)


def parse_semaphore(text: str) -> str:
    """NAMESPACE/KEY as it was given on the command line. Raises Wrong."""
    if not re.fullmatch(r"[a-z0-9-]+/[A-Za-z0-9._/-]+", text):
        raise Wrong(f"{quoted(text)} is not the name of a semaphore; write NAMESPACE/KEY, such as batch/reports-db")
    return text


def quoted(text: str) -> str:
    """What was written, but for what may be a token: it ends in people's terminals and bug reports."""
    return repr(re.sub("[0-9a-fA-F]{32,}", "…", text))


def no_semaphore(semaphore: str) -> str:
    """What is said of one that no node knows."""
    return f"there is no semaphore {semaphore}: no pod has asked for a slot of it; `semaphores` lists all"


def _progress(done: int, total: int) -> None:
    if total > MANY_SEMAPHORES and sys.stderr.isatty():
        click.echo(f"\rread {done} of {total} semaphores", nl=done >= total, err=True)
