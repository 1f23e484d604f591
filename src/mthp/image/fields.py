# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading the fields of JSON documents: every refusal names the place and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from mthp.words.files import FileError

E = TypeVar("E", bound=StrEnum)

_REQUIRED = object()
MOST_REFERENCES = 1 << 20
MOST_TIMES = 1 << 10
"""Of extra references to a page, and of how often ranges name the pages of a VMA."""
_NAMES: dict[type[Any], str] = {
    str: "text",
    dict: "an object",
    list: "a list",
    int: "a whole number",
    bool: "true or false",
}


class ScenarioError(FileError):
    """A scenario that cannot be read, or a state that cannot be. One line."""


class Fields:
    """The fields of one object; taken ones are struck off, so that rest() holds the unknown.

    where: the object's place in the document with a dot at its end, for messages.
    """

    __slots__ = ("_left", "document", "where")

    def __init__(self, document: Mapping[str, Any], where: str = "") -> None:
        self.document = document
        self._left = dict(document)
        self.where = where

    def rest(self) -> dict[str, Any]:
        """The fields that were not taken."""
        return dict(self._left)

    def has(self, key: str) -> bool:
        """Whether the field is there, be it null."""
        return key in self.document

    def is_null(self, key: str) -> bool:
        """Whether the field is null or not there; a null is struck off."""
        if self.document.get(key) is not None:
            return False
        self._left.pop(key, None)
        return True

    def take(self, key: str, kind: type[Any], default: Any = _REQUIRED) -> Any:
        """Take a field of JSON type kind; ScenarioError where it is missing or of another type."""
        value = self._left.pop(key, default)
        if value is _REQUIRED:
            raise ScenarioError(f"{self.where}{key}: missing")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ScenarioError(f"{self.where}{key}: {short(value)} is not {_NAMES[kind]}")
        return value

    def number(self, key: str, low: int, high: int, default: Any = _REQUIRED) -> int:
        """Take a whole number within low..high."""
        value: int = self.take(key, int, default)
        if not low <= value <= high:
            raise ScenarioError(f"{self.where}{key}: {short(value)} is outside {low}..{high}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Take true or false, or 1 or 0."""
        value = self._left.pop(key, default)
        if type(value) not in (bool, int) or value not in (0, 1):
            raise ScenarioError(f"{self.where}{key}: {short(value)} is not true or false")
        return bool(value)

    def choice(self, key: str, kind: type[E]) -> E:
        """Take one of an enum's values."""
        value = self.take(key, str)
        if value not in set(kind):
            raise ScenarioError(
                f"{self.where}{key}: {short(value)} is not one of {', '.join(kind)}"
            )
        return kind(value)

    def table(self, key: str, kind: type[Any]) -> dict[str, Any]:
        """Take an object whose values are all of JSON type kind."""
        values: dict[str, Any] = self.take(key, dict)
        for name, value in values.items():
            if not isinstance(value, kind):
                raise ScenarioError(
                    f"{self.where}{key}.{name[:40]}: {short(value)} is not {_NAMES[kind]}"
                )
        return values

    def objects(self, key: str, what: str, default: Any = _REQUIRED) -> list[Fields]:
        """Take a list of objects, each ready to be read."""
        values = self._left.pop(key, default)
        if values is _REQUIRED:
            raise ScenarioError(f"{self.where}{key}: missing")
        if not isinstance(values, Sequence) or not all(isinstance(each, dict) for each in values):
            raise ScenarioError(f"{self.where}{key}: not {what}")
        return [Fields(each, f"{self.where}{key}[{i}].") for i, each in enumerate(values)]

    def counted_ranges(self, key: str, pages: int) -> tuple[tuple[int, int, int], ...]:
        """Take [[first page, pages, number], ...] in a VMA of so many pages; the number may
        lack."""
        ranges = self._ranges(key, pages, lengths=(2, 3))
        return tuple((each[0], each[1], each[2] if each[2:] else 1) for each in ranges)

    def ranges(self, key: str, pages: int) -> tuple[tuple[int, int], ...]:
        """Take [[first page, pages], ...] inside a VMA of so many pages."""
        return tuple((each[0], each[1]) for each in self._ranges(key, pages, lengths=(2,)))

    def _ranges(self, key: str, pages: int, lengths: tuple[int, ...]) -> list[list[int]]:
        """Take lists of so many whole numbers, the first two of which are a range of pages."""
        ranges: list[list[int]] = self.take(key, list, [])
        for each in ranges:
            whole = isinstance(each, list) and all(type(number) is int for number in each)
            if not whole or len(each) not in lengths:
                raise ScenarioError(f"{self.where}{key}: {short(each)} is not [first, pages]")
            if len(each) == 3 and each[2] > MOST_REFERENCES:
                raise ScenarioError(f"{self.where}{key}: {short(each)} is over {MOST_REFERENCES}")
            if each[0] < 0 or min(each[1:]) < 1 or each[0] + each[1] > pages:
                raise ScenarioError(
                    f"{self.where}{key}: {short(each)} is not inside the VMA's {pages} pages"
                )
        if sum(each[1] for each in ranges) > MOST_TIMES * pages:
            raise ScenarioError(f"{self.where}{key}: every page {MOST_TIMES} times and more")
        return ranges


def short(value: object) -> str:
    """A value as it may stand in a one-line message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
