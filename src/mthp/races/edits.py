# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of the engine's functions, found and made in the syntax tree: layout and comments are no
part of them.

A pattern is Python: an expression, or some statements in a row. `...` in it stands for anything: an
expression, all arguments of a call, a whole body.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Edit:
    """In a function of a module, what matches the pattern `old`, once, becomes `new`.

    In `new`, `_` stands for what was matched, and `_1`, `_2`, … for its statements. No `new`: what
    matches is taken out: a statement, a lock of a with, an argument, an operand of `and` or `or`.
    """

    module: str
    function: str
    old: str
    new: str = ""


def source_of(module: str) -> str:
    """The text of one of our modules, by its name below mthp."""
    file = importlib.import_module(f"mthp.{module}").__file__
    assert file is not None
    return Path(file).read_text(encoding="utf-8")


def edited(edits: Sequence[Edit], source: Callable[[str], str] = source_of) -> dict[str, str]:
    """Module -> its text after all edits of it. ValueError where a pattern is not met once."""
    trees: dict[str, ast.Module] = {}
    for edit in edits:
        tree = trees.setdefault(edit.module, ast.parse(source(edit.module)))
        _apply(tree, edit)
    return {module: ast.unparse(tree) for module, tree in trees.items()}


def _apply(tree: ast.Module, edit: Edit) -> None:
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == edit.function
    ]
    pattern = ast.parse(edit.old).body
    found = [place for function in functions for place in _places(function, pattern)]
    if len(found) != 1:
        where = f"{edit.function}() of {edit.module}"
        raise ValueError(f"{where} holds this {len(found)} times: {edit.old}")
    found[0].replace(ast.parse(edit.new).body)


@dataclass(frozen=True)
class Statements:
    """Some statements of a body, from `at` on."""

    body: list[ast.stmt]
    at: int
    count: int = 1

    def replace(self, new: Sequence[ast.stmt]) -> None:
        """Put others there; pass where the body would be empty."""
        old = self.body[self.at : self.at + self.count]
        self.body[self.at : self.at + self.count] = _filled(new, old)
        if not self.body:
            self.body.append(ast.Pass())


@dataclass(frozen=True)
class WithItem:
    """A lock, or another context, of the with statement at `at`."""

    body: list[ast.stmt]
    at: int
    item: int

    def replace(self, new: Sequence[ast.stmt]) -> None:
        """Another context; without any the body stays alone."""
        statement = self.body[self.at]
        assert isinstance(statement, ast.With)
        if new:
            item = statement.items[self.item]
            item.context_expr = _filled_in(new, item.context_expr)
            return
        del statement.items[self.item]
        if not statement.items:
            self.body[self.at : self.at + 1] = statement.body


@dataclass(frozen=True)
class Operand:
    """An expression in a field of another node; at: its place where the field is a list."""

    parent: ast.AST
    field: str
    at: int | None

    def replace(self, new: Sequence[ast.stmt]) -> None:
        """Another expression, or none."""
        value = getattr(self.parent, self.field)
        if self.at is None:
            setattr(self.parent, self.field, _filled_in(new, value))
        elif new:
            value[self.at] = _filled_in(new, value[self.at])
        else:
            del value[self.at]


Place = Statements | WithItem | Operand


def bodies(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    """Every list of statements in a function."""
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                yield body


def _places(function: ast.FunctionDef, pattern: Sequence[ast.stmt]) -> Iterator[Place]:
    count = len(pattern)
    for body in bodies(function):
        for at in range(len(body) - count + 1):
            if all(map(_matches, pattern, body[at : at + count])):
                yield Statements(body, at, count)
    if count > 1 or not isinstance(pattern[0], ast.Expr):
        return
    wanted = pattern[0].value
    for body in bodies(function):
        for at, statement in enumerate(body):
            for item, each in enumerate(getattr(statement, "items", ())):
                if _matches(wanted, each.context_expr):
                    yield WithItem(body, at, item)
    for node in ast.walk(function):
        if not isinstance(node, ast.Expr | ast.withitem):
            yield from (place for place, value in _operands(node) if _matches(wanted, value))


def _operands(node: ast.AST) -> Iterator[tuple[Operand, ast.expr]]:
    for field, value in ast.iter_fields(node):
        for at, each in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(each, ast.expr):
                yield Operand(node, field, at), each


def _matches(pattern: object, node: object) -> bool:
    """Whether a node, or a field of one, is as the pattern says."""
    if _is_anything(pattern):
        return True
    if isinstance(pattern, list):
        if len(pattern) == 1 and _is_anything(pattern[0]):
            return isinstance(node, list)
        return (
            isinstance(node, list)
            and len(pattern) == len(node)
            and all(map(_matches, pattern, node))
        )
    if not isinstance(pattern, ast.AST):
        return pattern == node
    if type(pattern) is not type(node):
        return False
    takes_anything = isinstance(pattern, ast.Call) and any(map(_is_anything, pattern.args))
    return all(
        _matches(value, getattr(node, field))
        for field, value in ast.iter_fields(pattern)
        if field != "ctx" and not (takes_anything and field == "keywords")
    )


def _is_anything(pattern: object) -> bool:
    if isinstance(pattern, ast.Expr):
        pattern = pattern.value
    return isinstance(pattern, ast.Constant) and pattern.value is Ellipsis


class _Filling(ast.NodeTransformer):
    """Puts what was matched in the place of `_`, `_1`, `_2`, …"""

    def __init__(self, old: Sequence[ast.AST]) -> None:
        self.old = old

    def visit_Expr(self, node: ast.Expr) -> Any:
        """A statement of its own: those that were matched, or one of them."""
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        if name == "_":
            return list(self.old)
        if name.startswith("_") and name[1:].isdecimal():
            return self.old[int(name[1:]) - 1]
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> Any:
        """Within an expression."""
        return self.old[0] if node.id == "_" else node


def _filled(new: Sequence[ast.stmt], old: Sequence[ast.stmt]) -> list[ast.stmt]:
    module: ast.Module = _Filling(old).visit(ast.Module([*new], []))
    return module.body


def _filled_in(new: Sequence[ast.stmt], old: ast.expr) -> ast.expr:
    (statement,) = new
    assert isinstance(statement, ast.Expr)
    expression: ast.expr = _Filling([old]).visit(statement.value)
    return expression
