# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads and stores of user space, through the TLB."""

from __future__ import annotations

import pytest

from mthp.mm.mmu import load, store
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import DIRTY, YOUNG
from mthp.races.stage import START
from tests.stages import after_a_collapse, played, pmd


def test_a_store_reaches_memory() -> None:
    stage = played("store")
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 200
    assert stage.kernel.cpus[1].tlb.value


@pytest.mark.parametrize(("write", "set_by_it"), [(False, YOUNG), (True, YOUNG | DIRTY)])
def test_an_access_leaves_its_mark_in_a_huge_pmd(write: bool, set_by_it: int) -> None:
    stage = after_a_collapse("referenced")
    there = pmd_ptr(stage.mm, START)
    assert there is not None
    there.page.pmds.raw[there.slot] &= ~(YOUNG | DIRTY)
    if write:
        assert store(stage.mm, START, 7)
    else:
        assert load(stage.mm, START) is not None
    assert pmd(stage) & (YOUNG | DIRTY) == set_by_it
