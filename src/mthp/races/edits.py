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
    """The text of one of our modules, by its name below mthp. ValueError: there is no such module."""
    try:
        file = importlib.import_module(f"mthp.{module}").__file__
    except ImportError:
        raise ValueError(f"no module {module!r} below mthp") from None
    assert file is not None
    return Path(file).read_text(encoding="utf-8")


def edited(edits: Sequence[Edit], source: Callable[[str], str] = source_of) -> dict[str, str]:
    """Module -> its text after all edits of it. ValueError where a pattern is not met once."""
    trees: dict[str, ast.Module] = {}
    for edit in edits:
        tree = trees.setdefault(edit.module, ast.parse(source(edit.module)))
        pattern = ast.parse(edit.old).body
        found = [
            place
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name == edit.function
            for place in _places(node, pattern)
        ]
        if len(found) != 1:
            where = f"{edit.function}() of {edit.module}"
            raise ValueError(f"{where} holds this {len(found)} times: {edit.old}")
        new: ast.Module = _Filling(found[0]).visit(ast.parse(edit.new))
        Replacing(found[0], new.body).visit(tree)
    return {module: ast.unparse(tree) for module, tree in trees.items()}


class Replacing(ast.NodeTransformer):
    """Puts others in the place of some statements in a row, or of one expression, or nothing."""

    def __init__(self, old: Sequence[ast.AST], new: Sequence[ast.AST]) -> None:
        self.old = old
        self.new = new

    def visit(self, node: ast.AST) -> Any:
        """Where they stood, the others stand."""
        if not any(node is each for each in self.old):
            return super().visit(node)
        if isinstance(node, ast.stmt):
            return self.new if node is self.old[0] else ()
        new = self.new[0] if self.new else None
        return new.value if isinstance(new, ast.Expr) else new

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """A body that would be empty passes."""
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            vars(node)["body"].append(ast.Pass())
        return node

    def visit_withitem(self, node: ast.withitem) -> ast.AST | None:
        """A lock is taken out with what it is named."""
        is_gone = node.context_expr in self.old and not self.new
        return None if is_gone else self.generic_visit(node)

    def visit_With(self, node: ast.With) -> Any:
        """Without any lock or other context the body stays alone."""
        self.generic_visit(node)
        return node if node.items else node.body


def bodies(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    """Every list of statements in a function."""
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                yield body


def _places(function: ast.FunctionDef, pattern: Sequence[ast.stmt]) -> Iterator[Sequence[ast.AST]]:
    count = len(pattern)
    for body in bodies(function):
        for at in range(len(body) - count + 1):
            row = body[at : at + count]
            if all(map(_matches, pattern, row)):
                yield row
    if count > 1 or not isinstance(pattern[0], ast.Expr):
        return
    for node in ast.walk(function):
        for child in () if isinstance(node, ast.Expr) else ast.iter_child_nodes(node):
            if isinstance(child, ast.expr) and _matches(pattern[0].value, child):
                yield [child]


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
