# SPDX-License-Identifier: GPL-2.0-or-later
"""What the laws remember of an execution: which tables are detached, and who has seen that they are."""

from __future__ import annotations

import pytest

from mthp.laws.ghost import Ghost, Step
from mthp.machine.step import Access
from mthp.machine.task import Task
from mthp.mm.mm_types import PmdPtr
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import PMD_NONE, Leaf, leaf_pte, pmd_pgtable
from tests.small_worlds import TINY, World, huge, small


@pytest.fixture
def world() -> World:
    return World(geometry=TINY)


def ghost(world: World) -> Ghost:
    return Ghost(world.kernel, world.census(), ["khugepaged"])


def step(pmd: PmdPtr, access: Access, old: int, new: int = 0) -> Step:
    return Step(Task("reader"), access, pmd.page.pmds, pmd.slot, old, new)


def test_only_a_walk_has_seen_that_a_table_is_linked(world: World) -> None:
    vma = world.vma(small(1))
    pmd, entry = pmd_ptr(world.mm, vma.vm_start), world.pmd(vma)
    assert pmd is not None
    seen = ghost(world)
    seen.guarded[pmd_pgtable(entry)] = 1
    for access, old in ((Access.WRITE, entry), (Access.READ, PMD_NONE), (Access.RMW, entry)):
        seen.pmd_is_read(step(pmd, access, old))
        assert seen.seen == {}
    seen.pmd_is_read(step(pmd, Access.READ, entry))
    assert seen.seen == {(pmd_pgtable(entry), "reader"): 1}


def test_a_table_alone_is_detached(world: World) -> None:
    vma = world.vma(small(16), huge(4))
    table, leaf = world.pmd(vma), world.pmd(vma, world.address(vma, 16))
    pmd = pmd_ptr(world.mm, vma.vm_start)
    assert pmd is not None
    for old, new, detached in (
        (table, PMD_NONE, {pmd_pgtable(table)}),
        (leaf, PMD_NONE, set()),
        (PMD_NONE, leaf, set()),
        (leaf, leaf_pte(Leaf.MIGRATION, 1), set()),
        (table, table, set()),
    ):
        after = ghost(world)
        after.pmd_is_changed(step(pmd, Access.WRITE, old, new))
        assert set(after.detached) == detached
