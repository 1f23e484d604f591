# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mutation may be, where it stands, and which statements run together."""

from __future__ import annotations

import ast

import pytest

from tests.mutation.edits import blocks, lines_of, mutations

MODULE = b'''"""A module."""
from x import y
LIMIT: Final = 1 << 3


class Kind(Enum):
    PAGE = "page"


class Thing:
    """A thing."""

    __slots__ = ("a",)

    @wraps("name")
    def take(self, a: int = 2, *, b: bool = True) -> int:
        """Take it."""
        assert a is not None
        if a > 0 and not self.busy(a, b):
            self.count += 1
            return a - 1
        elif a in (4, 5):
            raise ValueError(f"{a + 1} is wrong")
        for each in range(a):
            with self.lock():
                self.events["taken"] = each
                continue
        return min(a, ~b)
'''


def changes(line: str) -> set[str]:
    """What becomes of a line."""
    return {each.after for each in mutations("m.py", MODULE) if each.before == line}


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("LIMIT: Final = 1 << 3", {"1 >> 3", "2 << 3", "1 << 4"}),
        ("self.count += 1", {"pass", "self.count -= 1", "self.count += 2"}),
        ("return a - 1", {"return a + 1", "return a - 2", "return None"}),
        ("elif a in (4, 5):", {"elif a not in (4, 5):", "elif not (a in (4, 5)):",
                               "elif a in (5, 5):", "elif a in (4, 6):"}),
        ('raise ValueError(f"{a + 1} is wrong")', {"pass"}),
        ("with self.lock():", {"if True:"}),
        ('self.events["taken"] = each', {"pass", "self.events['taken_'] = each"}),
        ("continue", {"pass", "break"}),
        ("return min(a, ~b)", {"return max(a, ~b)", "return min(~b, a)", "return min(a, (b))",
                               "return None"}),
    ],
)  # fmt: skip
def test_what_becomes_of_a_line(line: str, after: set[str]) -> None:
    prefix = "LIMIT: Final = " if line.startswith("LIMIT") else ""
    assert changes(line) == {prefix + each for each in after}


def test_conditions() -> None:
    found = changes("if a > 0 and not self.busy(a, b):")
    assert found == {
        "if not (a > 0 and not self.busy(a, b)):",
        "if a >= 0 and not self.busy(a, b):",
        "if a > 1 and not self.busy(a, b):",
        "if a > 0 or not self.busy(a, b):",
        "if a > 0 and (self.busy(a, b)):",
        "if a > 0 and not self.busy(b, a):",
    }


def test_what_no_test_is_meant_to_see_is_left_alone() -> None:
    for line in (
        '"""A module."""', "from x import y", 'PAGE = "page"', '__slots__ = ("a",)',
        '@wraps("name")', '"""Take it."""', "assert a is not None",
    ):  # fmt: skip
        assert changes(line) == set()
    assert changes("def take(self, a: int = 2, *, b: bool = True) -> int:") == {
        "def take(self, a: int = 3, *, b: bool = True) -> int:",
        "def take(self, a: int = 2, *, b: bool = False) -> int:",
    }


def test_every_mutation_is_another_module_that_parses() -> None:
    found = mutations("m.py", MODULE)
    for each in found:
        mutated = each.apply(MODULE)
        ast.parse(mutated)
        assert each.is_another_module(MODULE)
        (old,) = set(MODULE.splitlines()) - set(mutated.splitlines()) or {b""}
        assert old.decode().strip() == each.before
    assert sum(map(len, lines_of(found))) == len(found)


def test_blocks_begin_where_a_call_may_stand() -> None:
    lines = MODULE.decode().splitlines()
    assert [lines[line - 1].strip() for line in blocks(MODULE)] == [
        "assert a is not None",
        "self.count += 1",
        'raise ValueError(f"{a + 1} is wrong")',
        "with self.lock():",
        'self.events["taken"] = each',
    ]


def test_a_mutation_knows_its_block_and_its_function() -> None:
    lines = MODULE.decode().splitlines()
    where = {
        each.before: (each.function, lines[each.block - 1].strip() if each.block else "")
        for each in mutations("m.py", MODULE)
    }
    assert where["LIMIT: Final = 1 << 3"] == ("", "")
    assert where["def take(self, a: int = 2, *, b: bool = True) -> int:"] == ("Thing", "")
    assert where["return min(a, ~b)"] == ("Thing.take", "assert a is not None")
    assert where["elif a in (4, 5):"] == ("Thing.take", "assert a is not None")
    assert where["return a - 1"] == ("Thing.take", "self.count += 1")
    assert where["continue"] == ("Thing.take", 'self.events["taken"] = each')
