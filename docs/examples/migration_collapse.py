# SPDX-License-Identifier: GPL-2.0-or-later
"""A collapse by migration entries and frozen references, for `mthp check --protocol` (docs/protocols.md).

The window's pages are put in flight: each PTE becomes a migration entry, under the PTE lock, and the
folios stay locked, with their references frozen, until the new folio is installed. mmap_lock is held for
reading alone, so that faults, zaps and migrations go on in the same table, and below PMD order the PMD is
never cleared. The price: an entry may be zapped and a page may come in meanwhile, and the table itself may
be given up. So the window is sampled again when the new folio is installed, and rolled back if it is not
what it was.
"""

from __future__ import annotations

from typing import NamedTuple

from mthp.khugepaged.alloc import alloc_charge_folio, check_memcg_alloc_deferred
from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.copy import copy_mc_user_highpage
from mthp.khugepaged.install import __folio_mark_uptodate
from mthp.khugepaged.isolate import __collapse_huge_page_isolate, release_pte_folio
from mthp.khugepaged.revalidate import Expect, find_pmd_or_thp_or_none, hugepage_vma_revalidate
from mthp.khugepaged.swapin import __collapse_huge_page_swapin
from mthp.mm.folio import folio_add_lru_vma, folio_clear_isolated, folio_putback_lru
from mthp.mm.huge_memory import KEPT, map_anon_folio_pmd_nopf
from mthp.mm.mm_types import MM_ANONPAGES, Mm, PmdPtr, Vma
from mthp.mm.mmu import store
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import PG_SWAPCACHE, PG_WRITEBACK
from mthp.mm.page_vma_mapped import is_wanted
from mthp.mm.pgtable import (
    PteMap,
    clear_ptes,
    flush_tlb_mm_range,
    pgtable_trans_huge_deposit,
    pmd_lock,
    pmdp_get_lockless,
    pte_free_defer,
    pte_offset_map,
    pte_offset_map_lock,
    set_ptes,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    PTE_NONE,
    SOFT_DIRTY,
    WRITE,
    YOUNG,
    Leaf,
    Pte,
    leaf_pte,
    mk_pte,
    pte_none_or_zero,
    pte_pfn,
    zero_pte,
)
from mthp.mm.rmap import folio_add_new_anon_rmap, folio_remove_rmap_ptes
from mthp.mm.swapfile import folio_free_swap
from mthp.mm.vm_flags import VM_WRITE
from mthp.races.protocol import HOLE, Rival, Stage
from mthp.words.events import Attempt, CollapseHugePage
from mthp.words.results import Refused, ScanResult
from mthp.words.units import Address, Folio, Order


class Slot(NamedTuple):
    """One PTE of the window. found: what stood there. left: the entry that was put in its place, or the
    same where there was no page to take."""

    found: Pte
    left: Pte

    @property
    def is_taken(self) -> bool:
        """Whether it mapped a page, which is in flight now."""
        return not pte_none_or_zero(self.found)


class Window:
    """What is collapsed. taken: folio -> how many PTEs of the window mapped it. frozen: folio -> the
    references that it has."""

    def __init__(self, vma: Vma, pmd: PmdPtr, start: Address, order: Order) -> None:
        self.vma = vma
        self.mm = vma.vm_mm
        self.kernel = vma.vm_mm.kernel
        self.mem = self.kernel.mem
        self.pmd = pmd
        self.start = start
        self.order = order
        self.end = start + self.kernel.geometry.order_bytes(order)
        self.slots: list[Slot] = []
        self.taken: dict[Folio, int] = {}
        self.frozen: dict[Folio, int] = {}


def collapse_huge_page(
    mm: Mm, start_addr: Address, referenced: int, unmapped: int, cc: CollapseControl, order: Order
) -> ScanResult:
    """Collapse one window into one new folio. mmap_lock is not held, on entry nor on return."""
    kernel = mm.kernel
    mm.mmap_lock.assert_not_held()
    kernel.trace(Attempt(mm.number, start_addr, order))
    pmd_addr = kernel.geometry.pmd_addr(start_addr)
    result = ScanResult.SUCCEED
    try:
        with alloc_charge_folio(mm, cc, order) as new:
            check_memcg_alloc_deferred(mm)
            with mm.mmap_read_lock() as mmap_lock:
                vma = hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)
                pmd = find_pmd_or_thp_or_none(mm, pmd_addr)
                if unmapped:
                    __collapse_huge_page_swapin(
                        mm, vma, start_addr, pmd, referenced, order, mmap_lock
                    )
                replace(Window(vma, pmd, start_addr, order), new.folio, cc)
                new.installed = True
    except Refused as refusal:
        result = refusal.result
    isolated = int(result is ScanResult.SUCCEED)
    kernel.trace(CollapseHugePage(mm.number, start_addr, isolated, result, order))
    return result


def replace(window: Window, new: Folio, cc: CollapseControl) -> None:
    """Put the pages in flight, copy them, install the new folio; or leave all as it was."""
    try:
        put_in_flight(window, cc)
        freeze(window)
        copy(window, new)
        if window.order == window.kernel.geometry.pmd_order:
            map_by_pmd(window, new)
        else:
            map_by_ptes(window, new)
    except Refused:
        roll_back(window)
        raise
    let_go(window)


def put_in_flight(window: Window, cc: CollapseControl) -> None:
    """Lock and isolate the folios, and put migration entries in the place of the PTEs. From the flush on
    no CPU and no secondary MMU can store to the pages."""
    with mmu_notifier_invalidate_range(window.mm, window.start, window.end):
        found = pte_offset_map_lock(window.mm, window.pmd, window.start)
        if found is None:
            raise Refused(ScanResult.NO_PTE_TABLE)
        pte, ptl = found
        with pte, ptl:
            __collapse_huge_page_isolate(window.vma, window.start, pte, cc, window.order)
            for i in range(1 << window.order):
                take(window, pte, i)
            flush_tlb_mm_range(window.mm, window.start, window.end)


def take(window: Window, pte: PteMap, i: int) -> None:
    """Replace one PTE. Its mapping stays counted, and the page anon-exclusive: nobody can fork() now."""
    pteval = pte.get(i)
    if pte_none_or_zero(pteval):
        window.slots.append(Slot(pteval, pteval))
        return
    pteval = pte.ptes.swap(pte.base + i, PTE_NONE)  # the hardware may have made it dirty
    entry = leaf_pte(Leaf.MIGRATION, pte_pfn(pteval), pteval & KEPT)
    pte.ptes.write(pte.base + i, entry)
    window.slots.append(Slot(pteval, entry))
    folio = window.mem.page_folio(pte_pfn(pteval))
    window.taken[folio] = window.taken.get(folio, 0) + 1


def freeze(window: Window) -> None:
    """From here on nobody gets at the folios: not by the page table, and not by a reference. One that is
    being written, or is mapped outside the window as well, is left alone."""
    mem = window.mem
    for folio, taken in window.taken.items():
        if mem.test(folio, PG_WRITEBACK) or mem.folio_mapcount(folio) != taken:
            raise Refused(ScanResult.PAGE_COUNT)
        references = mem.folio_expected_ref_count(folio) + 1  # and that of isolation
        if not mem.folio_ref_freeze(folio, references):
            raise Refused(ScanResult.PAGE_COUNT)
        window.frozen[folio] = references


def copy(window: Window, new: Folio) -> None:
    """Fill the new folio; no lock but the folios' own."""
    mem = window.mem
    for i, slot in enumerate(window.slots):
        if not slot.is_taken:
            mem.content.write(new + i, 0)
        elif not copy_mc_user_highpage(mem, new + i, pte_pfn(slot.found)):
            raise Refused(ScanResult.COPY_MC)
    __folio_mark_uptodate(window.kernel, new)


def sample_again(window: Window, pte: PteMap) -> None:
    """Nothing was zapped, and nothing has come in. Caller holds the PTE lock."""
    for i, slot in enumerate(window.slots):
        if (pte.get(i) ^ slot.left) & ~(YOUNG | DIRTY):
            raise Refused(ScanResult.PTE_NON_PRESENT)


def map_by_ptes(window: Window, new: Folio) -> None:
    """Map the new folio by PTEs, in the place of the entries; they hand on what they carry."""
    mem, vma = window.mem, window.vma
    nr = 1 << window.order
    with mmu_notifier_invalidate_range(window.mm, window.start, window.end):
        found = pte_offset_map_lock(window.mm, window.pmd, window.start)
        if found is None:
            raise Refused(ScanResult.NO_PTE_TABLE)
        pte, ptl = found
        with pte, ptl:
            sample_again(window, pte)
            drop_zero_pages(window, pte)
            flags = YOUNG
            for slot in window.slots:
                flags |= slot.found & (DIRTY | SOFT_DIRTY)
            if vma.vm_flags & VM_WRITE:
                flags |= WRITE | DIRTY | SOFT_DIRTY
            mem.folio_ref_add(new, nr - 1)
            folio_add_new_anon_rmap(mem, new, vma, window.start, exclusive=True)
            folio_add_lru_vma(mem, window.kernel.this_cpu, new, vma)
            set_ptes(pte, 0, mk_pte(new, flags), nr)
            window.kernel.update_mmu_cache_range(vma, window.start, nr)


def drop_zero_pages(window: Window, pte: PteMap) -> None:
    """No TLB may translate to the zero page any more when the new folio is mapped."""
    zeroes = [i for i, slot in enumerate(window.slots) if slot.found and not slot.is_taken]
    for i in zeroes:
        clear_ptes(pte, i, 1)
    if zeroes:
        flush_tlb_mm_range(window.mm, window.start, window.end)


def map_by_pmd(window: Window, new: Folio) -> None:
    """Map the new folio by the PMD, which is never none: a zap would take the range for empty. Walkers
    without locks may be in the old table for as long as they like: another one is deposited, and the old
    one is freed when all of them have left."""
    kernel, pmd = window.kernel, window.pmd
    deposit = kernel.new_table()
    try:
        with mmu_notifier_invalidate_range(window.mm, window.start, window.end), pmd_lock(pmd):
            pte = pte_offset_map(kernel, pmdp_get_lockless(pmd), window.start)
            if pte is None:
                raise Refused(ScanResult.NO_PTE_TABLE)
            old = pte.table
            with pte, old.ptl.lock():
                sample_again(window, pte)
                drop_zero_pages(window, pte)
                pgtable_trans_huge_deposit(pmd, deposit.number)
                map_anon_folio_pmd_nopf(kernel, new, pmd, window.vma, window.start)
                flush_tlb_mm_range(window.mm, window.start, window.end)  # links to the old table
                clear_ptes(pte, 0, 1 << window.order)
    except Refused:
        del kernel.tables[deposit.number]
        raise
    pte_free_defer(old)


def let_go(window: Window) -> None:
    """The sources are not mapped any more, and go."""
    mem, cpu = window.mem, window.kernel.this_cpu
    thaw(window)
    for slot in window.slots:
        if slot.is_taken:
            drop_mapping(window, slot)
    for folio in window.taken:
        folio_free_swap(window.kernel, folio)
        folio_clear_isolated(mem, folio)
        mem.folio_unlock(folio)
        if mem.test(folio, PG_SWAPCACHE):
            folio_putback_lru(mem, cpu, folio)
        else:
            mem.folio_put(folio)
    window.mm.counters[MM_ANONPAGES] += len(window.slots) - sum(window.taken.values())


def thaw(window: Window) -> None:
    """References may be taken again."""
    for folio, references in window.frozen.items():
        window.mem.folio_ref_unfreeze(folio, references)


def drop_mapping(window: Window, slot: Slot) -> None:
    """What the entry stood for is gone: its mapping, and the mapping's reference."""
    mem, page = window.mem, pte_pfn(slot.found)
    folio = mem.page_folio(page)
    folio_remove_rmap_ptes(mem, window.kernel.this_cpu, folio, page, 1, window.vma)
    mem.folio_put(folio)


def roll_back(window: Window) -> None:
    """Every PTE is again what it was, but for those that were zapped meanwhile."""
    thaw(window)
    found = pte_offset_map_lock(window.mm, window.pmd, window.start)
    if found is None:
        zapped = [slot for slot in window.slots if slot.is_taken]
    else:
        pte, ptl = found
        with pte, ptl:
            zapped = restore(window, pte)
    for slot in zapped:
        drop_mapping(window, slot)
    for folio in window.taken:
        release_pte_folio(window.kernel, folio)


def restore(window: Window, pte: PteMap) -> list[Slot]:
    """Put back what the entries stand for; those that are gone. Caller holds the PTE lock."""
    zapped = []
    for i, slot in enumerate(window.slots):
        now = pte.get(i)
        if slot.is_taken and not is_wanted(now, -pte_pfn(slot.found)):
            zapped.append(slot)
        elif slot.is_taken:
            changed = now ^ slot.left  # by others meanwhile, who may clear marks
            pte.ptes.write(pte.base + i, slot.found ^ changed)
    return zapped


# What it is explored with, besides the rivals that there are


def map_zero_page(stage: Stage) -> None:
    """The window's empty PTE maps the zero page instead."""
    stage.table.ptes.raw[1] = zero_pte()


RIVALS = (
    Rival(
        "zero-store",
        "a CPU stores where the window maps the zero page",
        lambda stage: store(stage.mm, stage.address(1), 201),
        map_zero_page,
        HOLE,
    ),
)
WORLDS = ("pmd:fault+zap", "window:zero-store+zap-page")
