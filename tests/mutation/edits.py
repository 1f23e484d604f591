# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways in which one line of a module may be made wrong.

Every mutation is one textual edit: an operator, a constant, a condition, two arguments or a
statement. Annotations, decorators, docstrings, messages, labels, imports and assertions made for
the type checker are left alone, for no test is meant to see them.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "&"),
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
OTHER_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
IDENTIFIER = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Mutation:
    """One edit: bytes start to end of a file become `new`.

    block: the first line of the statements that run if one of them does, among which it stands; 0
    for what runs when the module is imported. function: the function or class around it, or "".
    """

    path: str
    start: int
    end: int
    new: str
    line: int
    block: int
    function: str
    before: str = ""
    after: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names it as long as neither its line nor its function changes."""
        return self.path, self.function, self.before, self.after

    def apply(self, source: bytes) -> bytes:
        """The source with this edit."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def is_another_module(self, source: bytes) -> bool:
        """Whether the edited module parses, and is not what it was."""
        try:
            return ast.dump(ast.parse(self.apply(source))) != ast.dump(ast.parse(source))
        except SyntaxError:
            return False


class _Finder:
    """Walks one module's syntax tree."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path = path
        self.source = source
        self.lines = source.splitlines(keepends=True)
        self.offsets = [0, *accumulate(len(line) for line in self.lines)]
        self.found: list[Mutation] = []
        self.block = 0
        self.function = ""
        self.in_function = False

    def at(self, line: int, column: int) -> int:
        return self.offsets[line - 1] + column

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def add(self, start: int, end: int, new: str) -> None:
        """An edit, unless it changes nothing."""
        line = bisect_right(self.offsets, start)
        made = Mutation(self.path, start, end, new, line, self.block, self.function)
        begin = self.offsets[line - 1]
        before = self.lines[line - 1].decode().strip()
        after = made.apply(self.source)[begin : self.offsets[line] + len(new)]
        after_text = after.splitlines()[0].decode().strip()
        if after_text != before or self.source[start:end] != new.encode():
            self.found.append(replace(made, before=before, after=after_text))

    # Statements

    def body(self, statements: list[ast.stmt]) -> None:
        """The statements of a block; an `elif` is none of its own."""
        outer = self.block
        if self.in_function:
            self.block = first_line(statements, self.lines) or outer
        for each in statements:
            self.visit_statement(each)
        self.block = outer

    def visit_statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self._definition(node)
            return
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_no_code(node):
            return
        self._statement_itself(node)
        for name, value in ast.iter_fields(node):
            if name != "annotation":
                self._field(value)

    def _definition(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        if isinstance(node, ast.FunctionDef):
            for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
                self.expression(default)
        outer = self.function, self.in_function
        self.function = f"{self.function}.{node.name}".lstrip(".")
        self.in_function |= isinstance(node, ast.FunctionDef)
        self.body([each for each in node.body if not _is_label(node, each)])
        self.function, self.in_function = outer

    def _field(self, value: object) -> None:
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            self.body(value)
            return
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.expr):
                self.expression(each)
            elif isinstance(each, ast.AST):
                for _, below in ast.iter_fields(each):
                    self._field(below)

    def _statement_itself(self, node: ast.stmt) -> None:
        start, end = self.span(node)
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        removable = ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Expr | ast.Delete
        if isinstance(node, removable) or isinstance(target, ast.Attribute | ast.Subscript):
            self.add(start, end, "pass")
        if isinstance(node, ast.Return):
            bare = node.value is None
            self.add(start, end, "pass" if bare else "return None")
        elif isinstance(node, ast.AugAssign):
            old, new = OPERATORS[type(node.op)]
            self._between(node.target, node.value, f"{old}=", f"{new}=")
        elif isinstance(node, ast.Break | ast.Continue):
            self.add(start, end, "continue" if isinstance(node, ast.Break) else "break")
        elif isinstance(node, ast.If):
            self._negate(node.test)
        elif isinstance(node, ast.With) and not any(each.optional_vars for each in node.items):
            self.add(start, self.span(node.items[-1].context_expr)[1], "if True")

    def _negate(self, test: ast.expr) -> None:
        start, end = self.span(test)
        self.add(start, end, f"not ({self.text(test)})")

    # Expressions

    def expression(self, node: ast.expr) -> None:
        if isinstance(node, ast.JoinedStr | ast.Lambda):
            if isinstance(node, ast.Lambda):
                self.expression(node.body)
            return
        self._expression_itself(node)
        for _, value in ast.iter_fields(node):
            self._field(value)

    def _expression_itself(self, node: ast.expr) -> None:
        start, end = self.span(node)
        if isinstance(node, ast.BinOp):
            self._between(node.left, node.right, *OPERATORS.get(type(node.op), ("", "")))
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                self._between(left, right, *OPERATORS[type(node.op)])
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
                self._between(left, right, *OPERATORS[type(op)])
        elif isinstance(node, ast.UnaryOp):
            self.add(start, end, f"({self.text(node.operand)})")
        elif isinstance(node, ast.IfExp):
            self._negate(node.test)
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                self._negate(test)
        elif isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.Constant):
            self._constant(node, start, end)

    def _call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in OTHER_NAMES:
            self.add(*self.span(node.func), OTHER_NAMES[node.func.id])
        plain = [each for each in node.args if not isinstance(each, ast.Starred)]
        for one, two in [tuple(plain[:2])] if len(plain) > 1 else []:
            start, end = self.span(one)[0], self.span(two)[1]
            between = self.source[self.span(one)[1] : self.span(two)[0]].decode()
            self.add(start, end, f"{self.text(two)}{between}{self.text(one)}")

    def _constant(self, node: ast.Constant, start: int, end: int) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(start, end, str(not value))
        elif isinstance(value, int):
            self.add(start, end, str(value + 1))
        elif isinstance(value, str) and IDENTIFIER.fullmatch(value):
            self.add(start, end, repr(value + "_"))

    def _between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Another operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.source[start:end].decode()
        if old and old in gap:
            self.add(start, end, gap.replace(old, new, 1))


def _is_label(owner: ast.FunctionDef | ast.ClassDef, node: ast.stmt) -> bool:
    """A member of an Enum that is a text."""
    names = {ast.unparse(base) for base in getattr(owner, "bases", ())}
    value = node.value if isinstance(node, ast.Assign) else None
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return bool(names & {"Enum", "StrEnum"}) and is_text


def _is_no_code(node: ast.stmt) -> bool:
    """Docstrings, ellipses, assertions, and names declared for others."""
    if _is_docstring(node):
        return True
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id in {"__slots__", "__all__"}
    typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return typing or isinstance(node, ast.Assert)


def first_line(statements: list[ast.stmt], lines: list[bytes]) -> int | None:
    """Where a block begins, behind a docstring. None of a block that has nothing but one, and of an
    `elif`, before which no statement can stand."""
    if statements and _is_docstring(statements[0]):
        statements = statements[1:]
    if not statements or lines[statements[0].lineno - 1].lstrip().startswith(b"elif "):
        return None
    first = statements[0]
    decorators = first.decorator_list if isinstance(first, ast.FunctionDef | ast.ClassDef) else []
    return min([first.lineno, *(each.lineno for each in decorators)])


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def blocks(source: bytes) -> list[int]:
    """The first lines of all blocks of a module's functions."""
    lines = source.splitlines(keepends=True)
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    found: set[int | None] = set()
    for node in (each for function in functions for each in ast.walk(function)):
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                found.add(first_line(value, lines))
    return sorted(line for line in found if line is not None)


def mutations(path: str, source: bytes) -> list[Mutation]:
    """Every mutation of a module, by position."""
    finder = _Finder(path, source)
    finder.body(ast.parse(source).body)
    return sorted(set(finder.found), key=lambda each: (each.start, each.end, each.new))


def lines_of(found: list[Mutation]) -> Iterator[list[Mutation]]:
    """The mutations of each line that has some."""
    by_line: dict[tuple[str, int], list[Mutation]] = {}
    for each in found:
        by_line.setdefault((each.path, each.line), []).append(each)
    yield from by_line.values()
