# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants made by rule: each call, check and lock of a module taken out, each two
neighbouring calls swapped, by the syntax tree alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mthp.races.edits import Replacing, bodies, source_of

MODULES = ("collapse", "isolate", "install", "copy", "swapin")
_NOT_PROTOCOL = frozenset(
    {"trace", "trace_flush", "count_collapse_event", "count_mthp_stat", "append", "clear"}
)
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
        function, line, what, old, new = list(_changes(tree))[number]
        Replacing(old, new).visit(tree)
        yield Mutation(name, function, line, what, ast.unparse(tree))


Change = tuple[str, int, str, Sequence[ast.AST], Sequence[ast.AST]]
"""Function, line, what is changed in words, what goes, and what stands there instead."""


def _changes(tree: ast.Module) -> Iterator[Change]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for body in bodies(function):
                yield from _of_body(function.name, body)


def _of_body(function: str, body: list[ast.stmt]) -> Iterator[Change]:
    for at, statement in enumerate(body):
        line = statement.lineno
        if _is_call(statement):
            yield function, line, f"without {_short(statement)}", [statement], []
            if at + 1 < len(body) and _is_call(body[at + 1]):
                what = f"{_short(body[at + 1])} before {_short(statement)}"
                both = body[at : at + 2]
                yield function, line, what, both, both[::-1]
        elif isinstance(statement, ast.With):
            for each in statement.items:
                if each.optional_vars is None:
                    what = f"without {ast.unparse(each.context_expr)}"
                    yield function, line, what, [each.context_expr], []
        elif isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Raise):
            what = f"without the check {ast.unparse(statement.test)}"
            yield function, line, what, [statement], []


def _is_call(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    function = _called(statement.value)
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name not in _NOT_PROTOCOL


def _called(call: ast.Call) -> ast.expr:
    """What a call calls, also by way of Machine.path()."""
    match call.func:
        case ast.Call(ast.Name("path") | ast.Attribute(attr="path"), [function]):
            return function
    return call.func


def _short(statement: ast.stmt) -> str:
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return f"{ast.unparse(_called(statement.value))}()"
