# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rival alone, straight through: it does its work, and leaves a sound world."""

from __future__ import annotations

import pytest

from mthp.mm.gup import PIN
from mthp.mm.mm_types import TableState
from mthp.mm.mmu import store
from mthp.mm.mprotect import task_numa_work
from mthp.mm.page_flags import PG_WRITEBACK
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_kind,
    pmd_is_table,
    pmd_pgtable,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
    pte_protnone,
    pte_write,
)
from mthp.mm.rmap import rmap_walk
from mthp.mm.vm_flags import VM_STACK_INCOMPLETE
from mthp.races.cast.all import LAWFUL
from mthp.races.cast.moves import far
from mthp.races.lockless_walker import perf_get_page_size
from mthp.races.stage import START, SWAP_SLOT, Size, Stage
from mthp.races.world import RaceWorld


def played(rival: str, size: Size = Size.WINDOW) -> Stage:
    """The stage after the rival's task ran, and nobody else's."""
    stage = RaceWorld(size, "7.3", (rival,))()
    task, body = stage.tasks[1]
    stage.machine.current = task
    body()
    return stage


@pytest.mark.parametrize("size", list(Size))
@pytest.mark.parametrize("rival", LAWFUL)
def test_a_sound_world_is_left(rival: str, size: Size) -> None:
    stage = played(rival, size)
    stage.watch.at_rest([task for task, _ in stage.tasks])
    assert stage.broken == []


def entry(stage: Stage, index: int) -> int:
    return stage.table.ptes.raw[index]


def test_a_store_reaches_memory() -> None:
    stage = played("store")
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 200
    assert stage.kernel.cpus[1].tlb.value


def test_a_fault_fills_a_hole() -> None:
    stage = played("fault")
    page = pte_pfn(entry(stage, 1))
    assert pte_present(entry(stage, 1)) and pte_write(entry(stage, 1))
    assert stage.kernel.mem.content.raw[page] == 201


def test_a_read_fault_maps_the_zero_page() -> None:
    assert pte_pfn(entry(played("zero-fault"), 1)) == 0
    assert pte_present(entry(played("zero-fault"), 1))


def test_a_pin_is_held_and_written_through() -> None:
    stage = played("gup")
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 1 + PIN
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 300
    assert not stage.kernel.cpus[1].irqs_off.value


def test_a_zap_empties_and_gives_the_table_back() -> None:
    stage = played("zap")
    assert all(map(pte_none, stage.table.ptes.raw))
    assert stage.table.state is TableState.DEFERRED
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


def test_migration_moves_contents() -> None:
    stage = played("migrate")
    page = pte_pfn(entry(stage, 0))
    assert page != stage.pages[0]
    assert stage.kernel.mem.content.raw[page] == 100


def test_swap_out_leaves_an_entry() -> None:
    stage = played("swap-out")
    assert leaf_kind(entry(stage, 0)) is Leaf.SWAP
    assert stage.kernel.swap.contents[pte_pfn(entry(stage, 0))] == 100


@pytest.mark.parametrize(("rival", "content"), [("swap-in", 101), ("swap-in-store", 201)])
def test_swap_in_brings_the_page_back(rival: str, content: int) -> None:
    stage = played(rival)
    assert pte_present(entry(stage, 1))
    assert stage.kernel.mem.content.raw[pte_pfn(entry(stage, 1))] == content


def test_remap_leaves_a_fresh_mapping() -> None:
    stage = played("remap")
    assert stage.vma not in stage.mm.vmas
    assert [vma.vm_start for vma in stage.mm.vmas] == [START]


def test_fork_shares_read_only() -> None:
    stage = played("fork")
    assert stage.kernel.mem.mapcount.raw[stage.pages[0]] == 2
    assert not pte_write(entry(stage, 0))


def test_write_protection_is_set() -> None:
    stage = played("uffd-wp")
    assert entry(stage, 0) & UFFD_WP
    assert not pte_write(entry(stage, 0))


def test_a_guest_writes_through_its_mapping() -> None:
    assert played("guest").kernel.mem.content.raw[1] == 400


def test_aging_clears_young() -> None:
    assert not entry(played("referenced"), 0) & YOUNG


def test_ksm_maps_the_page_of_another_process_read_only() -> None:
    stage = played("ksm")
    assert pte_pfn(entry(stage, 0)) == stage.elsewhere
    assert not pte_write(entry(stage, 0))
    assert stage.kernel.mem.mapcount.raw[stage.elsewhere] == 2
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


def test_ksm_leaves_a_page_of_other_contents() -> None:
    stage = RaceWorld(Size.WINDOW, "7.3", ("ksm",))()
    stage.kernel.mem.content.raw[stage.pages[0]] = 7
    stage.machine.current = stage.tasks[1][0]
    stage.tasks[1][1]()
    assert pte_pfn(entry(stage, 0)) == stage.pages[0]


def test_ksm_maps_the_zero_page_for_zeroes() -> None:
    assert pte_present(entry(played("ksm-zero"), 0))
    assert pte_pfn(entry(played("ksm-zero"), 0)) == 0


def test_failed_memory_is_unmapped_and_kept() -> None:
    stage = played("hwpoison")
    assert leaf_kind(entry(stage, 0)) is Leaf.HWPOISON
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 1
    assert stage.kernel.mem.mapcount.raw[stage.pages[0]] == 0


def test_a_numa_hint_is_hit_once() -> None:
    stage = RaceWorld(Size.WINDOW, "7.3", ("numa-hint",))()
    task_numa_work(stage.mm, START, stage.end)
    assert pte_protnone(entry(stage, 0)) and pte_protnone(entry(stage, 2))
    stage = played("numa-hint")
    assert not pte_protnone(entry(stage, 0)) and pte_write(entry(stage, 0))
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 200


def test_mprotect_lets_nobody_store() -> None:
    stage = played("mprotect")
    assert not pte_write(entry(stage, 0))
    assert not store(stage.mm, START, 200)


def test_a_store_leaves_a_soft_dirty_mark_again() -> None:
    stage = played("soft-dirty")
    assert entry(stage, 0) & SOFT_DIRTY
    assert not entry(stage, 2) & (SOFT_DIRTY | WRITE)


def test_perf_sees_what_there_is() -> None:
    stage = RaceWorld(Size.WINDOW, "7.3", ("perf",))()
    sizes = [perf_get_page_size(stage.mm, stage.address(i)) for i in range(4)]
    assert sizes == [4096, 0, 4096, 0]
    assert not stage.kernel.cpus[0].irqs_off.value


def test_userfaultfd_fills_the_hole() -> None:
    stage = played("uffd-copy")
    assert stage.kernel.mem.content.raw[pte_pfn(entry(stage, 1))] == 500


def test_a_hole_in_userfaultfds_charge_is_not_filled_by_a_fault() -> None:
    stage = played("uffd-register")
    assert not store(stage.mm, stage.address(1), 1)
    assert pte_none(entry(stage, 1))


@pytest.mark.parametrize("rival", ["zap-vma", "zap-page-vma"])
def test_a_zap_under_the_vma_lock_empties(rival: str) -> None:
    stage = played(rival)
    assert pte_none(entry(stage, 0))
    assert stage.vma.vm_lock.value == 0


def test_a_page_that_was_given_up_is_dropped() -> None:
    stage = played("lazyfree")
    assert pte_none(entry(stage, 0))
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


def test_swapoff_brings_the_page_back_read_only() -> None:
    stage = played("swapoff")
    assert pte_present(entry(stage, 1)) and not pte_write(entry(stage, 1))
    assert not stage.kernel.swap.users and not stage.kernel.swap.cache


def test_the_whole_window_comes_back_as_one_folio() -> None:
    stage = played("swap-in-large")
    assert stage.kernel.mem.order.raw[pte_pfn(entry(stage, 0))] == 1
    assert pte_pfn(entry(stage, 1)) == pte_pfn(entry(stage, 0)) + 1


def test_a_write_ends() -> None:
    stage = played("writeback")
    assert not stage.kernel.mem.flags.raw[stage.pages[1]] & PG_WRITEBACK
    assert stage.kernel.swap.contents[SWAP_SLOT + 1] == 101


def test_a_written_page_is_freed() -> None:
    stage = played("swap-cache-free")
    assert not stage.kernel.swap.cache
    assert stage.kernel.mem.refcount.raw[stage.pages[1]] == 0


def test_a_slot_is_used_again_with_other_contents() -> None:
    stage = played("slot-reuse")
    assert leaf_kind(entry(stage, 1)) is Leaf.SWAP
    assert pte_pfn(entry(stage, 1)) == SWAP_SLOT + 1
    assert stage.kernel.swap.contents[SWAP_SLOT + 1] == 201


def at(stage: Stage, address: int) -> int:
    """The PTE of an address."""
    pmd = pmd_ptr(stage.mm, address)
    assert pmd is not None
    table = stage.kernel.tables[pmd_pgtable(pmd.page.pmds.raw[pmd.slot])]
    return table.ptes.raw[stage.kernel.geometry.pte_index(address)]


@pytest.mark.parametrize(("rival", "shift"), [("mremap", 0), ("mremap-ptes", 4096)])
def test_mremap_moves_pages(rival: str, shift: int) -> None:
    stage = played(rival)
    to = far(stage) + shift
    assert pte_pfn(at(stage, to)) == stage.pages[0]
    assert pte_pfn(at(stage, to + 0x2000)) == stage.pages[2]
    assert [vma.vm_start for vma in stage.mm.vmas] == [to]
    places = list(rmap_walk(stage.kernel.mem, stage.pages[0], stage.kernel.anon_vmas))
    assert [address for _, address in places] == [to]


def test_a_mapping_shrinks() -> None:
    stage = played("shrink")
    assert [vma.vm_end for vma in stage.mm.vmas] == [stage.address(1)]
    assert pte_pfn(entry(stage, 0)) == stage.pages[0]
    assert pte_none(entry(stage, 2))


def test_a_fault_puts_a_huge_page_where_the_table_was() -> None:
    stage = played("huge-fault")
    assert pmd_trans_huge(pmd(stage))
    assert stage.kernel.mem.content.raw[pte_pfn(pmd(stage))] == 0


def test_exec_ends_with_a_stack_like_any_other() -> None:
    stage = played("exec-shift")
    (vma,) = stage.mm.vmas
    assert vma.vm_start == START - stage.kernel.geometry.pmd_size
    assert not vma.vm_flags & VM_STACK_INCOMPLETE
    assert pte_pfn(at(stage, vma.vm_start)) == stage.pages[0]


def test_userfaultfd_moves_a_page_out() -> None:
    stage = played("uffd-move")
    assert pte_none(entry(stage, 0))
    assert pte_pfn(at(stage, far(stage))) == stage.pages[0]
    places = list(rmap_walk(stage.kernel.mem, stage.pages[0], stage.kernel.anon_vmas))
    assert [address for _, address in places] == [far(stage)]


def test_userfaultfd_moves_a_page_in() -> None:
    stage = played("uffd-move-in")
    assert pte_pfn(entry(stage, 1)) == stage.elsewhere
    assert pte_none(at(stage, far(stage)))


@pytest.mark.parametrize("rival", ["move-pages", "migrate-large"])
def test_move_pages_moves_contents(rival: str) -> None:
    stage = played(rival)
    page = pte_pfn(entry(stage, 0))
    assert page != stage.pages[0]
    assert stage.kernel.mem.content.raw[page] == 100
    assert stage.kernel.mem.order.raw[page] == (rival == "migrate-large")


def test_a_large_folio_is_split_where_it_is() -> None:
    stage = played("split-large")
    first = stage.pages[0]
    assert [pte_pfn(entry(stage, i)) for i in range(2)] == [first, first + 1]
    assert list(stage.kernel.mem.order.raw[first : first + 2]) == [0, 0]
    assert list(stage.kernel.mem.refcount.raw[first : first + 2]) == [1, 1]
    assert list(stage.kernel.mem.mapcount.raw[first : first + 2]) == [1, 1]


def test_part_of_a_large_folio_is_zapped() -> None:
    stage = played("zap-large")
    assert pte_present(entry(stage, 0)) and pte_none(entry(stage, 1))
    assert stage.kernel.mem.large_mapcount.raw[stage.pages[0]] == 1


def test_an_mm_that_ends_has_nothing_left() -> None:
    stage = played("exit")
    assert not stage.mm.vmas and not stage.mm.mm_users.value
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


# What rivals do to what a collapse has left: the collapser first, then the rival.


def after_a_collapse(rival: str, size: Size = Size.PMD) -> Stage:
    """The stage after both tasks ran, one after the other."""
    stage = RaceWorld(size, "7.3", (rival,))()
    for task, body in stage.tasks:
        stage.machine.current = task
        body()
    stage.watch.at_rest([task for task, _ in stage.tasks])
    assert stage.watch.collapsed
    assert stage.broken == []
    return stage


def pmd(stage: Stage) -> int:
    found = pmd_ptr(stage.mm, START)
    assert found is not None
    return found.page.pmds.raw[found.slot]


def test_a_huge_page_is_there() -> None:
    stage = after_a_collapse("load")
    assert pmd_trans_huge(pmd(stage))
    assert perf_get_page_size(stage.mm, START) == stage.kernel.geometry.pmd_size


@pytest.mark.parametrize("rival", ["zap-second", "uffd-wp", "zap-page", "shrink"])
def test_part_of_a_huge_page_splits_its_pmd(rival: str) -> None:
    stage = after_a_collapse(rival)
    assert pmd_is_table(pmd(stage))
    kept = 1 if rival == "zap-page" else 0
    page = pte_pfn(at(stage, stage.address(kept)))
    assert stage.kernel.mem.order.raw[stage.kernel.mem.head.raw[page]] == 1


def test_fork_shares_a_huge_page() -> None:
    stage = after_a_collapse("fork")
    folio = pte_pfn(pmd(stage))
    assert stage.kernel.mem.entire_mapcount.raw[folio] == 2
    assert not pte_write(pmd(stage))
    assert store(stage.mm, START, 7)
    assert pmd_is_table(pmd(stage))
    assert pte_pfn(entry(stage, 0)) != folio


def test_a_huge_page_that_is_ones_own_is_written_again() -> None:
    stage = after_a_collapse("soft-dirty")
    assert pmd_trans_huge(pmd(stage)) and pte_write(pmd(stage))


def test_a_huge_page_moves_with_its_pmd() -> None:
    stage = after_a_collapse("mremap")
    moved = pmd_ptr(stage.mm, far(stage))
    assert moved is not None
    assert pmd_trans_huge(moved.page.pmds.raw[moved.slot])


def test_a_huge_page_migrates_with_its_pmd() -> None:
    stage = after_a_collapse("move-pages")
    assert pmd_trans_huge(pmd(stage))
    assert stage.kernel.mem.content.raw[pte_pfn(pmd(stage))] == 100


@pytest.mark.parametrize("rival", ["split", "ksm", "uffd-move"])
def test_a_huge_page_is_split_into_pages(rival: str) -> None:
    stage = after_a_collapse(rival)
    assert pmd_is_table(pmd(stage))
    page = pte_pfn(at(stage, stage.address(1)))
    assert stage.kernel.mem.order.raw[page] == 0


def test_ksm_merges_a_page_of_what_was_huge() -> None:
    stage = after_a_collapse("ksm")
    assert pte_pfn(entry(stage, 0)) == stage.elsewhere
