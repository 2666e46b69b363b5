"""Reads fields out of decoded JSON and says precisely which one is not what it should be.

Knows nothing of Kubernetes: which fields there are and what they may hold, callers say.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}

# Whoever sends something wrong chooses what the message quotes: bounded in length and in depth.
_short = reprlib.Repr()
_short.maxstring = 80
_short.maxlevel = 2
_short.maxdict = _short.maxlist = 3


class Malformed(ValueError):  # noqa: N818  read as "raise Malformed", it says what is wrong
    """The body is not a review that we can answer; the message names the field and what is accepted."""


def shown(value: object) -> str:
    """A value for a message: its `repr`, thus without control characters, texts cut to 80 characters."""
    return _short.repr(value)


@dataclass(frozen=True, slots=True)
class Field:
    """A decoded JSON value and the path it was found at. Absent and `null` are both None, as in Go."""

    path: str
    value: Any
    is_quoted: bool = True

    def unquoted(self) -> Field:
        """The same, of which and of whose members no message says more than the kind of value."""
        return Field(self.path, self.value, is_quoted=False)

    def __getitem__(self, name: str) -> Field:
        """The member of an object that has passed `required(dict)`."""
        return Field(f"{self.path}.{name}" if self.path else name, self.value.get(name), self.is_quoted)

    def members(self) -> Iterator[Field]:
        """The members of an object, whatever they are called; none when it is absent."""
        for name, value in (self.optional(dict) or {}).items():
            yield Field(f"{self.path}[{shown(name)}]", value, self.is_quoted)

    def items(self) -> Iterator[Field]:
        """The items of a list; none when it is absent."""
        for index, value in enumerate(self.optional(list) or []):
            yield Field(f"{self.path}[{index}]", value, self.is_quoted)

    def required(self, kind: type) -> Any:
        """The value, which must be a dict, list, str or bool as `kind` says. Raises Malformed."""
        if not isinstance(self.value, kind):
            raise self.malformed(_KINDS[kind])
        return self.value

    def optional(self, kind: type) -> Any:
        """The same, or None when absent."""
        return None if self.value is None else self.required(kind)

    def matching(self, pattern: re.Pattern[str], accepted: str) -> str:
        """The value, which must be a string that `pattern` matches in full. Raises Malformed."""
        if not isinstance(self.value, str) or not pattern.fullmatch(self.value):
            raise self.malformed(accepted)
        return self.value

    def equal_to(self, text: str) -> None:
        """Only this text is accepted. Raises Malformed."""
        if self.value != text:
            raise self.malformed(repr(text))

    def malformed(self, accepted: str) -> Malformed:
        """The error to raise about this value."""
        return Malformed(f"{self.path or 'the body'} is {self._found()}, accepted is {accepted}")

    def _found(self) -> str:
        if self.value is None:
            return "missing"
        return shown(self.value) if self.is_quoted else _KINDS.get(type(self.value), "a number")
