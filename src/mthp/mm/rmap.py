# SPDX-License-Identifier: GPL-2.0-or-later
"""Reverse mapping of anonymous folios: counts kept at every map and unmap, and the walk.

Kernel: mm/rmap.c.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

from mthp.machine.cpu import Cpu
from mthp.machine.hold import Hold
from mthp.mm.folio import mlock_vma_folio, munlock_vma_folio
from mthp.mm.mem_map import MemMap
from mthp.mm.mm_types import AnonVma, Kernel, Mm, Vma, linear_page_index
from mthp.mm.mmu_notifier import mmu_notifier_test_young
from mthp.mm.page_flags import (
    ENTIRELY_MAPPED,
    ON_LRU,
    PAGE_ANON_EXCLUSIVE,
    PG_ANON,
    PG_KSM,
    PG_MAPPED_SHARED,
    PG_SWAPBACKED,
)
from mthp.mm.page_vma_mapped import map_pte
from mthp.mm.pgtable import flush_tlb_page, mm_find_pmd, unlocked_after
from mthp.mm.pgtable_types import PMD_NONE, YOUNG, pmd_folio, pmd_trans_huge
from mthp.mm.vm_flags import (
    VM_DROPPABLE,
    VM_EXEC,
    VM_LOCKED,
    VM_READ,
    VM_SOFTDIRTY,
    VM_STACK_INCOMPLETE,
    VM_WRITE,
)
from mthp.words.profiles import OtherPmd
from mthp.words.units import Address, Folio, Order, Pfn

UNKNOWN_MM: Final = -1
"""An mm that is not part of this world, but maps a folio of it."""
MM_IDS: Final = 2
"""So many mms a large folio knows. Kernel: include/linux/mm_types.h, struct folio, _mm_id."""


def anon_vma_prepare(vma: Vma) -> None:
    """Give a VMA an anon_vma, if it has none: that of a neighbour with which it may be merged once, else a
    new one. Kernel: mm/rmap.c, __anon_vma_prepare(); mm/vma.c, find_mergeable_anon_vma().
    """
    if vma.anon_vma is None:
        found: AnonVma | None = None
        after, before = vma.vm_mm.vma_after(vma), vma.vm_mm.vma_before(vma)
        if after is not None:
            found = _reusable_anon_vma(after, vma, after)
        if found is None and before is not None:
            found = _reusable_anon_vma(before, before, vma)
        vma.vm_mm.link_anon_vma(vma, found)


def anon_vma_clone(target: Vma, source: Vma, *, fork: bool = False) -> None:
    """Let rmap walks find a VMA by every anon_vma of another. fork: it is of another process, and its new
    pages belong to an anon_vma of its own, or to one that no VMA has so any more.

    Kernel: mm/rmap.c, anon_vma_clone(), maybe_reuse_anon_vma().
    """
    if source.anon_vma is None:
        return
    with anon_vma_lock_write(source.anon_vma):
        for anon_vma in source.anon_vma_chain:
            target.anon_vma_chain.insert(0, anon_vma)
            anon_vma.vmas.append(target)
            unused = not anon_vma.num_active_vmas and anon_vma.num_children <= 1
            if fork and target.anon_vma is None and unused:
                target.anon_vma = anon_vma
        if not fork:
            target.anon_vma = source.anon_vma
        if target.anon_vma is not None:
            target.anon_vma.num_active_vmas += 1


def unlink_anon_vmas(vma: Vma) -> None:
    """Let no rmap walk find a VMA any more. Kernel: mm/rmap.c, unlink_anon_vmas()."""
    if vma.anon_vma is not None:
        with anon_vma_lock_write(vma.anon_vma):
            vma.vm_mm.leave_anon_vmas(vma)


def anon_vma_fork(copy: Vma, vma: Vma) -> None:
    """Let rmap walks of a VMA's folios find its copy too, and give the copy an anon_vma for pages of its own.

    Kernel: mm/rmap.c, anon_vma_fork().
    """
    anon_vma_clone(copy, vma, fork=True)
    if vma.anon_vma is not None and copy.anon_vma is None:
        with anon_vma_lock_write(vma.anon_vma):
            own = vma.vm_mm.kernel.new_anon_vma(vma.anon_vma)
            copy.vm_mm.link_anon_vma(copy, own)


def vma_is_fork_child(vma: Vma) -> bool:
    """Whether fork() made it of one that had an anon_vma. Kernel: mm/vma.c, vma_is_fork_child()."""
    return len(vma.anon_vma_chain) > 1


def _reusable_anon_vma(old: Vma, a: Vma, b: Vma) -> AnonVma | None:
    """The anon_vma of old, which is a or b, if the two are adjacent and alike but for rights.

    Kernel: mm/vma.c, reusable_anon_vma(), anon_vma_compatible().
    """
    adjacent = a.vm_end == b.vm_start and linear_page_index(a, a.vm_end) == b.vm_pgoff
    rights = VM_READ | VM_WRITE | VM_EXEC | VM_SOFTDIRTY
    alike = not (a.vm_flags ^ b.vm_flags) & ~rights and a.file == b.file
    return old.anon_vma if adjacent and alike and not vma_is_fork_child(old) else None


def folio_add_new_anon_rmap(
    mem: MemMap,
    folio: Folio,
    vma: Vma,
    address: Address,
    *,
    exclusive: bool,
    pmd_mapped: bool = False,
) -> None:
    """Count the first mapping of a new folio, whole, at address. Kernel: mm/rmap.c."""
    order = mem.folio_order(folio)
    nr = 1 << order
    flags = PG_ANON
    if not vma.vm_flags & VM_DROPPABLE:
        flags |= PG_SWAPBACKED
    mem.flags.store_bits(folio, flags)
    assert vma.anon_vma is not None
    mem.anon_vma.raw[folio] = vma.anon_vma.number
    mem.index.raw[folio] = linear_page_index(vma, address)
    if order == 0:
        mem.mapcount.write(folio, 1)
    elif pmd_mapped:
        mem.entire_mapcount.write(folio, 1)
        mem.large_mapcount.write(folio, 1)
        mem.nr_pages_mapped.raw[folio] = ENTIRELY_MAPPED
    else:
        mem.mapcount.fill(folio, nr, 1)
        mem.large_mapcount.write(folio, nr)
        mem.nr_pages_mapped.raw[folio] = nr
    if exclusive:
        count = 1 if pmd_mapped else nr
        mem.page_flags.raw[folio : folio + count] = array("B", [PAGE_ANON_EXCLUSIVE]) * count
    mem.vmstat.count_mthp_stat(order, "nr_anon")


def folio_add_anon_rmap_ptes(
    mem: MemMap, cpu: Cpu, folio: Folio, pages: range, vma: Vma, *, exclusive: bool
) -> None:
    """Count one more mapping of some pages of an anonymous folio; one that is mapped whole in a
    locked VMA is mlocked. Caller holds the PTE lock. Kernel: mm/rmap.c, folio_add_anon_rmap_ptes().
    """
    first = sum(mem.mapcount.add(page, 1) == 1 for page in pages)
    if mem.folio_test_large(folio):
        folio_add_return_large_mapcount(mem, folio, len(pages), vma)
        mem.nr_pages_mapped.raw[folio] += first
    if exclusive:
        for page in pages:
            mem.page_flags.set_bits(page, PAGE_ANON_EXCLUSIVE)
    if len(pages) == mem.folio_nr_pages(folio):
        mlock_vma_folio(mem, cpu, folio, vma)


def folio_add_anon_rmap_pmd(
    mem: MemMap, cpu: Cpu, folio: Folio, vma: Vma, *, exclusive: bool
) -> None:
    """Count one more mapping by a PMD. Caller holds the pmd lock. Kernel: mm/rmap.c."""
    if mem.entire_mapcount.add(folio, 1) == 1:
        mem.nr_pages_mapped.raw[folio] += ENTIRELY_MAPPED
    folio_add_return_large_mapcount(mem, folio, 1, vma)
    if exclusive:
        mem.page_flags.set_bits(folio, PAGE_ANON_EXCLUSIVE)
    mlock_vma_folio(mem, cpu, folio, vma)


def folio_remove_rmap_ptes(
    mem: MemMap, cpu: Cpu, folio: Folio, page: Pfn, nr_pages: int, vma: Vma
) -> None:
    """Count that nr_pages PTEs from `page` on no longer map the folio. Caller holds the PTE lock.

    A large folio that is left partly mapped goes on the deferred split queue.
    Kernel: mm/rmap.c, __folio_remove_rmap().
    """
    if not mem.folio_test_large(folio):
        mem.mapcount.add(folio, -1)
    else:
        folio_sub_return_large_mapcount(mem, folio, nr_pages, vma)
        last = mem.mapcount.add_each(page, nr_pages, -1)
        if last:
            mapped = mem.nr_pages_mapped.raw[folio] = mem.nr_pages_mapped.raw[folio] - last
            if 0 < mapped < ENTIRELY_MAPPED:
                mem.deferred_split_folio(folio, partially_mapped=True)
    munlock_vma_folio(mem, cpu, folio, vma)


def folio_remove_rmap_pmd(mem: MemMap, cpu: Cpu, folio: Folio, vma: Vma) -> None:
    """Count that a PMD no longer maps the folio. Kernel: mm/rmap.c, folio_remove_rmap_pmd()."""
    folio_sub_return_large_mapcount(mem, folio, 1, vma)
    if mem.entire_mapcount.add(folio, -1) == 0:
        mapped = mem.nr_pages_mapped.raw[folio] = mem.nr_pages_mapped.raw[folio] - ENTIRELY_MAPPED
        if 0 < mapped < mem.folio_nr_pages(folio):
            mem.deferred_split_folio(folio, partially_mapped=True)
    munlock_vma_folio(mem, cpu, folio, vma)


def folio_add_return_large_mapcount(mem: MemMap, folio: Folio, diff: int, vma: Vma) -> int:
    """Count so many more mappings of a large folio, and whose they are: a folio knows two mms, and the
    mappings of further ones are nobody's. Returns how many there are.

    Divergence: the flag follows by a step of its own, where the kernel has a bit lock over both.
    Kernel: include/linux/rmap.h, folio_add_return_large_mapcount().
    """
    mapcount = mem.large_mapcount.add(folio, diff)
    known = mem.mm_mapcounts.get(folio)
    if known is None:
        return mapcount
    mm = vma.vm_mm.number
    if mm in known:
        known[mm] += diff
    elif len(known) < MM_IDS:
        known[mm] = diff
        if mapcount != diff:
            mem.set(folio, PG_MAPPED_SHARED)
    return mapcount


def folio_sub_return_large_mapcount(mem: MemMap, folio: Folio, diff: int, vma: Vma) -> int:
    """Count so many mappings of a large folio less. It is nobody's alone any more until one of the two
    mms that it knows has all that are left, or none are left. Returns how many there are.

    Kernel: include/linux/rmap.h, folio_sub_return_large_mapcount().
    """
    mapcount = mem.large_mapcount.add(folio, -diff)
    known = mem.mm_mapcounts.get(folio)
    if known is None:
        return mapcount
    mm = vma.vm_mm.number
    if mm in known:
        known[mm] -= diff
        if known[mm] > 0:
            return mapcount
        # Below 0 where some of its mappings were made while the folio knew two others.
        del known[mm]
    if not mapcount or mapcount in known.values():
        mem.clear(folio, PG_MAPPED_SHARED)
    return mapcount


def new_anon_folio(
    mem: MemMap,
    order: Order = 0,
    *,
    nid: int = 0,
    flags: int = ON_LRU,
    mapcount: int = 1,
    anon_vma: int = 0,
    index: int = 0,
) -> Folio:
    """Make a folio in frames of its own that stands as if each of its pages were mapped by
    `mapcount` PTEs; returns the first frame. Every page's contents are its frame's number. For
    builders of worlds, who set the PTEs; not a step."""
    folio, nr = mem.prep_folio(mem.new_frames(nid, order), order), 1 << order
    mem.flags.raw[folio] = flags
    mem.anon_vma.raw[folio] = anon_vma
    mem.index.raw[folio] = index
    mem.content.raw[folio : folio + nr] = array("i", range(folio, folio + nr))
    if mapcount:
        mem.mapcount.raw[folio : folio + nr] = array("i", [mapcount]) * nr
        mem.refcount.raw[folio] = mapcount * nr
    if order:
        mem.large_mapcount.raw[folio] = mapcount * nr
        mem.nr_pages_mapped.raw[folio] = nr if mapcount else 0
    if mapcount == 1 and not flags & PG_KSM:
        mem.page_flags.raw[folio : folio + nr] = array("B", [PAGE_ANON_EXCLUSIVE]) * nr
    return folio


def remember_mm(mem: MemMap, folio: Folio, mm: Mm) -> None:
    """Tell the mappings of mms apart from here on, if a folio is large: only this one has mapped it so far,
    and another is about to. Kernel: folio_set_large_mapcount() does so for every folio.
    """
    if mem.folio_test_large(folio) and folio not in mem.mm_mapcounts:
        mem.mm_mapcounts[folio] = {mm.number: mem.large_mapcount.raw[folio]}


def share_large_folio(mem: MemMap, folio: Folio, known: dict[int, int]) -> None:
    """Say of a large folio that several mms map, or did, how often those map it that it knows: MM_IDS at
    most. For builders of worlds; not a step.
    """
    mem.mm_mapcounts[folio] = known
    mem.flags.raw[folio] |= PG_MAPPED_SHARED


def rmap_walk(mem: MemMap, folio: Folio, anon_vmas: list[AnonVma]) -> Iterator[tuple[Vma, int]]:
    """Yield (vma, address) of every place where the folio's pages may be mapped.

    Caller holds the anon_vma lock. Kernel: mm/rmap.c, rmap_walk_anon().
    """
    first = mem.index.raw[folio]
    end = first + mem.folio_nr_pages(folio)
    for vma in anon_vmas[mem.anon_vma.raw[folio]].vmas:
        shift = vma.vm_mm.geometry.page_shift
        pages = (vma.vm_end - vma.vm_start) >> shift
        for pgoff in range(max(first, vma.vm_pgoff), min(end, vma.vm_pgoff + pages)):
            yield vma, vma.vm_start + ((pgoff - vma.vm_pgoff) << shift)


def anon_vma_lock_write(anon_vma: AnonVma) -> Hold:
    """Keep rmap walks out of an anon_vma. Kernel: mm/internal.h, anon_vma_lock_write()."""
    return anon_vma.rwsem.write()


def folio_lock_anon_vma_read(kernel: Kernel, folio: Folio) -> Hold:
    """Lock the folio's anon_vma to walk it. Kernel: mm/rmap.c, folio_lock_anon_vma_read()."""
    return kernel.anon_vmas[kernel.mem.anon_vma.raw[folio]].rwsem.read()


def folio_trylock_anon_vma_read(kernel: Kernel, folio: Folio) -> Hold | None:
    """Lock the folio's anon_vma, or None at once. Kernel: struct rmap_walk_control, try_lock."""
    return kernel.anon_vmas[kernel.mem.anon_vma.raw[folio]].rwsem.try_read()


def mapped_places(kernel: Kernel, folio: Folio) -> list[tuple[Vma, int]]:
    """Where a folio's pages may be mapped. Caller holds its anon_vma.

    A temporary stack is passed over: its tables are moved without rmap locks.
    Kernel: mm/rmap.c, invalid_migration_vma().
    """
    walk = rmap_walk(kernel.mem, folio, kernel.anon_vmas)
    places = [(vma, at) for vma, at in walk if not vma.vm_flags & VM_STACK_INCOMPLETE]
    passed = kernel.profile.other_pmd is OtherPmd.PASSED
    return places if passed else list(_before_other_pmds(folio, places))


def _before_other_pmds(folio: Folio, places: list[tuple[Vma, int]]) -> Iterator[tuple[Vma, int]]:
    """The places of each VMA before the first PMD that maps another huge page. Kernel:
    mm/page_vma_mapped.c, page_vma_mapped_walk(), not_found(), before Linux 7.2.
    """
    ended: set[Vma] = set()
    for vma, address in places:
        pmd = mm_find_pmd(vma.vm_mm, address)
        pmdval = pmd.page.pmds.raw[pmd.slot] if pmd is not None else PMD_NONE
        if pmd_trans_huge(pmdval) and pmd_folio(pmdval) != folio:
            ended.add(vma)
        if vma not in ended:
            yield vma, address


def page_at(kernel: Kernel, folio: Folio, vma: Vma, address: Address) -> Pfn:
    """The page of a folio that a place of its may map."""
    return Pfn(folio + linear_page_index(vma, address) - kernel.mem.index.raw[folio])


def folio_referenced(kernel: Kernel, folio: Folio) -> int:
    """Count the places that used the folio since last time, and clear their marks. Never waits for
    a lock.

    Kernel: mm/rmap.c, folio_referenced().
    """
    mem = kernel.mem
    if not mem.folio_mapcount(folio) or not mem.folio_trylock(folio):
        return 0
    referenced = 0
    anon_vma = folio_trylock_anon_vma_read(kernel, folio)
    if anon_vma is not None:
        with anon_vma:
            for vma, address in mapped_places(kernel, folio):
                referenced += folio_referenced_one(kernel, folio, vma, address)
    mem.folio_unlock(folio)
    return referenced


def folio_referenced_one(kernel: Kernel, folio: Folio, vma: Vma, address: Address) -> bool:
    """Whether one place used it. Kernel: folio_referenced_one(),
    clear_flush_young_ptes_notify()."""
    mm = vma.vm_mm
    found = map_pte(mm, address, folio)
    if found is None:
        return False
    with unlocked_after(kernel, found) as pte:
        if is_kept_by_mlock(kernel, folio, vma):
            return True
        young = pte.ptes.clear_bits(pte.base, YOUNG) & YOUNG != 0
        if young:
            flush_tlb_page(mm, address)
    return young or mmu_notifier_test_young(mm, address)


def is_kept_by_mlock(kernel: Kernel, folio: Folio, vma: Vma) -> bool:
    """Whether the VMA is locked: reclaim takes nothing from it, and restores an mlock that got missed.

    Caller holds the PTE lock. Kernel: mm/rmap.c, try_to_unmap_one() without TTU_IGNORE_MLOCK,
    folio_referenced_one().
    """
    if vma.vm_flags & VM_LOCKED:
        mlock_vma_folio(kernel.mem, kernel.this_cpu, folio, vma)
    return vma.vm_flags & VM_LOCKED != 0
