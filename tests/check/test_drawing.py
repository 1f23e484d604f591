# SPDX-License-Identifier: GPL-2.0-or-later
"""What a drawing calls a step: a function of the kernel's, by the engine's own citations."""

from __future__ import annotations

import sys

import pytest

from mthp.check.check import hunt
from mthp.check.drawing import callers, kernel_function, replay
from mthp.machine.step import Access
from mthp.races.mutants.rules import MUTANTS

SOURCE = '''
"""Page tables. Kernel: mm/pgtable.c."""

def walk(look):
    """Kernel: mm/rmap.c, walk()."""
    return read_by(look)

def read_by(look):
    """Kernel: include/linux/pgtable.h, read_by()."""
    return helper(look)

def helper(look):
    """What the kernel has no function for."""
    return look()

def clear(look):
    """Kernel: set_none(), __clear(), which it is part of."""
    return look()

def part_of_it(look):
    """Kernel: mm/rmap.c, the_whole()."""
    return look()
'''


def named(function: str, access: Access) -> str:
    """What a step is called that is taken at the bottom of a function of the engine's."""
    module = {"__name__": "mthp.mm.invented"}
    exec(SOURCE, module)
    found: str = module[function](lambda: kernel_function(callers(sys._getframe(0)), access))  # type: ignore[operator]
    return found


@pytest.mark.parametrize(
    ("function", "access", "name"),
    [
        ("walk", Access.READ, "walk()"),  # headers hold what every function reads by
        ("walk", Access.WRITE, "read_by()"),
        ("read_by", Access.READ, ""),
        ("helper", Access.WRITE, ""),
        ("clear", Access.READ, "__clear()"),  # the module's file
        ("part_of_it", Access.READ, "the_whole()"),
    ],
)
def test_the_innermost_function_that_the_kernel_has(
    function: str, access: Access, name: str
) -> None:
    assert named(function, access) == name


def test_a_race_is_drawn_by_the_functions_and_locks_of_the_kernel() -> None:
    violation = hunt(MUTANTS["A16"]).violation
    assert violation is not None
    drawn = {(call.function, call.locks) for call in violation.calls}
    held = ("mmap_lock (write)", "anon_vma (write)", "pmd lock")
    assert ("pmdp_collapse_flush(): changes the PMD", held) in drawn
    names = {function.partition(":")[0] for function, _ in drawn}
    assert {"folio_isolate_lru()", "try_to_migrate_one()", "pmd_populate()"} <= names
    assert "guard_pmd_none()" not in names


@pytest.mark.parametrize(
    ("token", "word", "values"),
    [
        ("7.3:window:mprotect:b1", "PTE 0", ("page 1 dirty soft_dirty", "page 16")),
        ("v16:pmd:poisoned+soft-dirty:b10c14", "PTE 0", ("migration entry soft_dirty", "page 1")),
    ],
)
def test_a_drawing_shows_the_mark_that_is_lost(
    token: str, word: str, values: tuple[str, str]
) -> None:
    violation = replay(f"as-is:{token}")
    steps = [each for each in violation.race.steps if each.drawn and each.word == word]
    assert {8} <= {each.law for each in violation.breaches}
    assert values[0] in {text for each in steps for text in (each.old, each.new)}
    assert [each.new for each in steps if each.changes][-1] == values[1]
