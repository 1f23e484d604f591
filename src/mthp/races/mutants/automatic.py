# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants that nobody thought of: each call, check and lock of a module taken out, each two
neighbouring calls swapped, by the syntax tree alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from mthp.races.variant import source_of

MODULES = ("collapse", "isolate", "install", "copy", "swapin")
_NOT_PROTOCOL = frozenset({"trace", "count_collapse_event", "count_mthp_stat", "append", "clear"})
"""Calls that tell or count; no law is about them."""


@dataclass(frozen=True)
class Mutation:
    """One change of one module. what: the change, in words. text: the whole module with it."""

    module: str
    function: str
    line: int
    what: str
    text: str


def mutations(module: str) -> Iterator[Mutation]:
    """Every mutation of a module below khugepaged/, in the order of its lines."""
    name = f"khugepaged.{module}"
    source = source_of(name)
    count = len(list(_changes(ast.parse(source))))
    for number in range(count):
        tree = ast.parse(source)
        for at, (function, line, what, change) in enumerate(_changes(tree)):
            if at == number:
                change()
                text = ast.unparse(ast.fix_missing_locations(tree))
                yield Mutation(name, function, line, what, text)
                break


def _changes(tree: ast.Module) -> Iterator[tuple[str, int, str, _Change]]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and "at_once" not in function.name:
            for body in _bodies(function):
                yield from _of_body(function.name, body)


def _bodies(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                yield body


class _Change:
    """What to do to a body."""

    def __init__(
        self, body: list[ast.stmt], at: int, item: int = -1, *, swap: bool = False
    ) -> None:
        self.body, self.at, self.item, self.swap = body, at, item, swap

    def __call__(self) -> None:
        body, at = self.body, self.at
        if self.swap:
            body[at], body[at + 1] = body[at + 1], body[at]
            return
        statement = body[at]
        if isinstance(statement, ast.With) and self.item >= 0:
            del statement.items[self.item]
            if not statement.items:
                body[at : at + 1] = statement.body
            return
        body[at] = ast.Pass()


def _of_body(function: str, body: list[ast.stmt]) -> Iterator[tuple[str, int, str, _Change]]:
    for at, statement in enumerate(body):
        line = statement.lineno
        if _is_call(statement):
            yield function, line, f"without {_short(statement)}", _Change(body, at)
            if at + 1 < len(body) and _is_call(body[at + 1]):
                what = f"{_short(body[at + 1])} before {_short(statement)}"
                yield function, line, what, _Change(body, at, swap=True)
        elif isinstance(statement, ast.With):
            for item, each in enumerate(statement.items):
                if each.optional_vars is None:
                    what = f"without {ast.unparse(each.context_expr)}"
                    yield function, line, what, _Change(body, at, item)
        elif isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Raise):
            what = f"without the check {ast.unparse(statement.test)}"
            yield function, line, what, _Change(body, at)


def _is_call(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    function = statement.value.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name not in _NOT_PROTOCOL


def _short(statement: ast.stmt) -> str:
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return f"{ast.unparse(statement.value.func)}()"
