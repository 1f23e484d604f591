# SPDX-License-Identifier: GPL-2.0-or-later
"""Which lines of the protocol run while a search runs it, in this process and in those it forks.

The protocol's functions are given copies of their code in which each statement is marked as it runs. A
mark is a store to memory that forked processes share; nothing else in a copy is different.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import unwrap
from mmap import mmap
from pathlib import Path
from types import CodeType, FunctionType
from typing import Final

from mthp import khugepaged
from mthp.check.records import RanLines
from mthp.races.edits import bodies, source_of
from mthp.races.variant import IN_FORCE, Variant, functions_of

_MARKS: Final = "__ran__"


class Lines:
    """The marks of some texts."""

    def __init__(self, texts: Sequence[Variant]) -> None:
        self.texts = texts
        self.marks = [mmap(-1, text.text.count("\n") + 2) for text in texts]

    def ran(self) -> tuple[RanLines, ...]:
        """What has run so far."""
        return tuple(map(_ran, self.texts, self.marks))


def _ran(text: Variant, marks: mmap) -> RanLines:
    marked = _marked(text.file, text.text)

    def lines(functions: Sequence[FunctionType]) -> int:
        found = 0
        for function in map(unwrap, functions):
            found |= marked.get(_key(function), (None, 0))[1]
        return found

    ran = sum(1 << line for line, mark in enumerate(marks[:]) if mark)
    return RanLines(Path(text.file).name, lines(text.functions), ran, lines(text.replacing))


@contextmanager
def marked_lines() -> Iterator[Lines]:
    """Mark what runs of the texts that are in the engine's place, or of khugepaged's where there are none."""
    lines = Lines(tuple(IN_FORCE) or _engine())
    before: list[tuple[FunctionType, CodeType]] = []
    for text, marks in zip(lines.texts, lines.marks, strict=True):
        copies = _marked(text.file, text.text)
        for function in map(unwrap, text.functions):
            if (key := _key(function)) in copies:
                before.append((function, function.__code__))
                function.__code__ = copies[key][0]
                function.__globals__[_MARKS] = marks
    try:
        yield lines
    finally:
        for function, code in before:
            function.__code__ = code
            function.__globals__.pop(_MARKS, None)


@cache
def _engine() -> tuple[Variant, ...]:
    """khugepaged itself, as it is."""
    found = []
    for module in pkgutil.iter_modules(khugepaged.__path__):
        name = f"khugepaged.{module.name}"
        functions = tuple(f for _, f in functions_of(importlib.import_module(f"mthp.{name}")))
        found.append(Variant(f"{module.name}.py", source_of(name), functions, ()))
    return tuple(found)


Key = tuple[str, int]
"""Which function of a text: its name and its first line."""


def _key(function: FunctionType) -> Key:
    code = function.__code__
    return code.co_qualname, code.co_firstlineno


@cache
def _marked(file: str, text: str) -> dict[Key, tuple[CodeType, int]]:
    """The functions of a text with their marks, and their lines as bits."""
    tree = ast.parse(text)
    lines: dict[int, int] = {}
    found: dict[int, list[ast.stmt]] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            first = min([function.lineno, *(each.lineno for each in function.decorator_list)])
            mine = {id(body): body for body in bodies(function)}
            found |= mine
            lines[first] = sum(
                {1 << each.lineno for body in mine.values() for each in body if _does(each)}
            )
    for body in found.values():
        body[:] = [each for statement in body for each in _marked_statement(statement)]
    return {
        (code.co_qualname, code.co_firstlineno): (code, lines[code.co_firstlineno])
        for code in _codes(compile(tree, file, "exec", dont_inherit=True))
        if code.co_firstlineno in lines
    }


def _does(statement: ast.stmt) -> bool:
    """Whether it is more than a text."""
    return not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


def _marked_statement(statement: ast.stmt) -> Iterator[ast.stmt]:
    if _does(statement):
        (mark,) = ast.parse(f"{_MARKS}[{statement.lineno}] = 1").body
        yield ast.increment_lineno(mark, statement.lineno - 1)
    yield statement


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)
