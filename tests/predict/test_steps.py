# SPDX-License-Identifier: GPL-2.0-or-later
"""A collapse call by call reads like the kernel's own order of calls, and names its locks."""

from __future__ import annotations

import pytest

from mthp.predict.outcome import Request, run_world
from mthp.predict.records import DrawnCall
from mthp.predict.steps import StepRecorder
from mthp.words.profiles import V7_3
from mthp.words.settings import Enabled
from mthp.worlds.build import build_world
from tests.predict.test_changes import FULL, START, scenario

MMAP, ANON = "mmap_lock (write)", "anon_vma (write)"

BEFORE = [
    "collapse_huge_page",
    "alloc_charge_folio",
    "__folio_alloc",
    "mem_cgroup_charge",
    "check_memcg_alloc_deferred",
    "mmap_read_lock",
    "hugepage_vma_revalidate",
    "find_pmd_or_thp_or_none",
    "mmap_read_unlock",
    "mmap_write_lock",
    "hugepage_vma_revalidate",
    "vma_start_write",
    "check_pmd_still_valid",
    "anon_vma_lock_write",
    "mmu_notifier_invalidate_range_start",
    "spin_lock(pmd_ptl)",
    "pmdp_collapse_flush",
    "spin_unlock(pmd_ptl)",
    "mmu_notifier_invalidate_range_end",
    "tlb_remove_table_sync_one",
    "pte_offset_map",
    "spin_lock(pte_ptl)",
    "__collapse_huge_page_isolate",
    "folio_trylock",
    "folio_isolate_lru",
    "spin_unlock(pte_ptl)",
]
COPY = [
    "__collapse_huge_page_copy",
    "copy_mc_user_highpage",
    "__collapse_huge_page_copy_succeeded",
    "release_pte_folio",
    "spin_lock(pte_ptl)",
    "folio_remove_rmap_ptes",
    "spin_unlock(pte_ptl)",
    "__folio_mark_uptodate",
    "spin_lock(pmd_ptl)",
    "pmd_none",
]
SMALL = [
    "spin_lock(pte_ptl)",
    "pmd_populate",
    "map_anon_folio_pte_nopf",
    "spin_unlock(pte_ptl)",
    "spin_unlock(pmd_ptl)",
    "pte_unmap",
    "anon_vma_unlock_write",
    "mmap_write_unlock",
    "collapse_huge_page",
]
HUGE = [
    "pgtable_trans_huge_deposit",
    "map_anon_folio_pmd_nopf",
    "spin_unlock(pmd_ptl)",
    "pte_unmap",
    "mmap_write_unlock",
    "collapse_huge_page",
]


def steps(order: int) -> list[DrawnCall]:
    world = build_world(scenario(*FULL, orders={order: Enabled.ALWAYS}), V7_3)
    recorder = StepRecorder(world.kernel, START + 0x3000)
    request = Request("t", "s", "r", changes=False, on_event=recorder.on_event)
    run_world(world, request)
    return recorder.folded()


@pytest.mark.parametrize(
    ("order", "calls"),
    [(4, BEFORE + COPY + SMALL), (9, [*BEFORE, "anon_vma_unlock_write", *COPY, *HUGE])],
)
def test_the_order_of_calls(order: int, calls: list[str]) -> None:
    drawn = steps(order)
    assert [step.function for step in drawn] == calls
    by_name = {step.function: step for step in drawn}
    assert by_name["alloc_charge_folio"].locks == ()
    assert by_name["find_pmd_or_thp_or_none"].locks == ("mmap_lock (read)",)
    assert by_name["pmdp_collapse_flush"].locks == (MMAP, ANON, "pmd_ptl")
    assert by_name["folio_isolate_lru"].locks == (MMAP, ANON, "pte_ptl")
    copying = by_name["copy_mc_user_highpage"].locks
    assert copying == ((MMAP, ANON) if order < 9 else (MMAP,))
    assert drawn[0].locks == drawn[-1].locks == ()
    assert drawn[-1].what == "returns: succeeded"
    assert f"x{1 << order}" in by_name["folio_trylock"].what
    if order < 9:
        both = (MMAP, ANON, "pmd_ptl", "pte_ptl")
        assert by_name["map_anon_folio_pte_nopf"].locks == both
