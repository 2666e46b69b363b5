"""How things look: tables for people, JSON for programs. Knows nothing of what they say."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

GAP = "  "
UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text in a table, in a colour if there is a terminal to show it (names as of click.style)."""

    text: str
    colour: str | None = None


def printable(text: str) -> str:
    """One line that does nothing to a terminal, whatever stood on a node, in a file or in the answer of a server."""
    return "".join(each if each.isprintable() else "?" for each in text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """Aligned columns below their headers."""
    cells = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in (headers, *rows)]
    widths = [max(len(printable(cell.text)) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(GAP.join(map(_padded, row, widths)).rstrip() for row in cells)


def _padded(cell: Cell, width: int) -> str:
    text = printable(cell.text)
    return _coloured(text, cell.colour) + " " * (width - len(text))


def _coloured(text: str, colour: str | None) -> str:
    return click.style(text, fg=colour) if colour else text


def say(text: str, colour: str | None = None) -> None:
    """One line on stdout."""
    click.echo(_coloured(printable(text), colour))


def tell(text: str) -> None:
    """One line on stderr, where it does not get between a command's result and who reads that."""
    click.echo(printable(text), err=True)


def say_json(value: Any) -> None:
    """For programs; what is not known is null."""
    click.echo(json.dumps(value, indent=2))


def duration(seconds: float) -> str:
    """Its two greatest units, such as `3m12s`; below zero, as where clocks differ, counts as zero."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def counted(count: int, what: str) -> str:
    """Such as `1 slot` or `2 slots`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
