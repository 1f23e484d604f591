# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap(): page tables move with their pages."""

from __future__ import annotations

import pytest

from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    pmd_trans_huge,
    pte_pfn,
)
from mthp.mm.rmap import rmap_walk
from mthp.mm.vm_flags import VM_STACK_INCOMPLETE
from mthp.races.stage import START
from tests.stages import after_a_collapse, at, played


@pytest.mark.parametrize(("rival", "shift"), [("mremap", 0), ("mremap-ptes", 4096)])
def test_mremap_moves_pages(rival: str, shift: int) -> None:
    stage = played(rival)
    to = stage.far + shift
    assert pte_pfn(at(stage, to)) == stage.pages[0]
    assert pte_pfn(at(stage, to + 0x2000)) == stage.pages[2]
    assert [vma.vm_start for vma in stage.mm.vmas] == [to]
    places = list(rmap_walk(stage.kernel.mem, stage.pages[0], stage.kernel.anon_vmas))
    assert [address for _, address in places] == [to]


def test_exec_ends_with_a_stack_like_any_other() -> None:
    stage = played("exec-shift")
    (vma,) = stage.mm.vmas
    assert vma.vm_start == START - stage.kernel.geometry.pmd_size
    assert not vma.vm_flags & VM_STACK_INCOMPLETE
    assert pte_pfn(at(stage, vma.vm_start)) == stage.pages[0]


def test_a_huge_page_moves_with_its_pmd() -> None:
    stage = after_a_collapse("mremap")
    moved = pmd_ptr(stage.mm, stage.far)
    assert moved is not None
    assert pmd_trans_huge(moved.page.pmds.raw[moved.slot])
