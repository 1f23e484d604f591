# SPDX-License-Identifier: GPL-2.0-or-later
"""Reverse mapping of anonymous folios: counts kept at every map and unmap, and the walk.

Kernel: mm/rmap.c.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

import numpy as np

from mthp.machine.cpu import Cpu
from mthp.mm.folio import (
    ENTIRELY_MAPPED,
    PAGE_ANON_EXCLUSIVE,
    PG_ANON,
    PG_MAPPED_SHARED,
    PG_SWAPBACKED,
    MemMap,
)
from mthp.mm.lru import mlock_vma_folio, munlock_vma_folio
from mthp.mm.vma import VM_DROPPABLE, AnonVma, Vma, linear_page_index

UNKNOWN_MM: Final = -1
"""An mm that is not part of this world, but maps a folio of it."""


def folio_add_new_anon_rmap(
    mem: MemMap, folio: int, vma: Vma, address: int, *, exclusive: bool, pmd_mapped: bool = False
) -> None:
    """First mapping of a new folio, whole, at address. Kernel: mm/rmap.c."""
    order = mem.folio_order(folio)
    nr = 1 << order
    flags = PG_ANON
    if not vma.vm_flags & VM_DROPPABLE:
        flags |= PG_SWAPBACKED
    mem.flags.set_bits(folio, flags)
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
        if mem.machine.on_step is None:
            mem.mapcount.raw[folio : folio + nr] = array("i", [1]) * nr
        else:
            for page in range(folio, folio + nr):
                mem.mapcount.write(page, 1)
        mem.large_mapcount.write(folio, nr)
        mem.nr_pages_mapped.raw[folio] = nr
    if exclusive:
        count = 1 if pmd_mapped else nr
        mem.page_flags.raw[folio : folio + count] = array("B", [PAGE_ANON_EXCLUSIVE]) * count
    mem.vmstat.count_mthp_stat(order, "nr_anon")


def folio_add_anon_rmap_ptes(
    mem: MemMap, cpu: Cpu, folio: int, pages: range, vma: Vma, *, exclusive: bool
) -> None:
    """One more mapping of some pages of an anonymous folio; one that is mapped whole in a locked VMA
    is mlocked. Caller holds the PTE lock. Kernel: mm/rmap.c, folio_add_anon_rmap_ptes().
    """
    first = sum(mem.mapcount.add(page, 1) == 1 for page in pages)
    if mem.folio_test_large(folio):
        mem.large_mapcount.add(folio, len(pages))
        mem.nr_pages_mapped.raw[folio] += first
        _count_mm(mem, folio, vma.vm_mm.number, len(pages))
    if exclusive:
        for page in pages:
            mem.page_flags.set_bits(page, PAGE_ANON_EXCLUSIVE)
    if len(pages) == mem.folio_nr_pages(folio):
        mlock_vma_folio(mem, cpu, folio, vma)


def folio_remove_rmap_ptes(
    mem: MemMap, cpu: Cpu, folio: int, page: int, nr_pages: int, vma: Vma
) -> None:
    """nr_pages PTEs from `page` on no longer map the folio. Caller holds the PTE lock.

    A large folio that is left partly mapped goes on the deferred split queue.
    Kernel: mm/rmap.c, __folio_remove_rmap().
    """
    if not mem.folio_test_large(folio):
        mem.mapcount.add(folio, -1)
    else:
        mem.large_mapcount.add(folio, -nr_pages)
        _count_mm(mem, folio, vma.vm_mm.number, -nr_pages)
        last = _no_longer_mapped(mem, page, nr_pages)
        if last:
            mapped = mem.nr_pages_mapped.raw[folio] = mem.nr_pages_mapped.raw[folio] - last
            if 0 < mapped < ENTIRELY_MAPPED:
                mem.deferred_split_folio(folio)
    munlock_vma_folio(mem, cpu, folio, vma)


def _no_longer_mapped(mem: MemMap, page: int, nr_pages: int) -> int:
    """One mapping less of each of nr_pages pages; how many have none left."""
    if mem.machine.on_step is None:
        mapcounts = mem.mapcount.view()[page : page + nr_pages]
        mapcounts -= 1
        return nr_pages - int(np.count_nonzero(mapcounts))
    return sum(mem.mapcount.add(pfn, -1) == 0 for pfn in range(page, page + nr_pages))


def folio_remove_rmap_pmd(mem: MemMap, cpu: Cpu, folio: int, vma: Vma) -> None:
    """A PMD no longer maps the folio. Kernel: mm/rmap.c, folio_remove_rmap_pmd()."""
    mem.large_mapcount.add(folio, -1)
    _count_mm(mem, folio, vma.vm_mm.number, -1)
    if mem.entire_mapcount.add(folio, -1) == 0:
        mapped = mem.nr_pages_mapped.raw[folio] = mem.nr_pages_mapped.raw[folio] - ENTIRELY_MAPPED
        if 0 < mapped < mem.folio_nr_pages(folio):
            mem.deferred_split_folio(folio)
    munlock_vma_folio(mem, cpu, folio, vma)


def _count_mm(mem: MemMap, folio: int, mm: int, nr: int) -> None:
    """Keep PG_MAPPED_SHARED of a large folio that several mms map.

    Divergence: every mm is remembered, where the kernel has two slots and may say "shared" longer.
    Kernel: include/linux/rmap.h, folio_sub_return_large_mapcount().
    """
    counts = mem.mm_mapcounts.get(folio)
    if counts is None:
        return
    counts[mm] = counts.get(mm, 0) + nr
    if counts[mm] <= 0:
        del counts[mm]
    if len(counts) > 1:
        mem.set(folio, PG_MAPPED_SHARED)
    else:
        mem.clear(folio, PG_MAPPED_SHARED)


def share_large_folio(mem: MemMap, folio: int, mappings: dict[int, int]) -> None:
    """Say which mms map a large folio, and how often. For builders of worlds; not a step."""
    mem.mm_mapcounts[folio] = dict(mappings)
    if len(mappings) > 1:
        mem.flags.raw[folio] |= PG_MAPPED_SHARED


def rmap_walk(mem: MemMap, folio: int, anon_vmas: list[AnonVma]) -> Iterator[tuple[Vma, int]]:
    """(vma, address) of every place where the folio's pages may be mapped.

    Caller holds the anon_vma lock. Kernel: mm/rmap.c, rmap_walk_anon().
    """
    first = mem.index.raw[folio]
    end = first + mem.folio_nr_pages(folio)
    for vma in anon_vmas[mem.anon_vma.raw[folio]].vmas:
        shift = vma.vm_mm.geometry.page_shift
        pages = (vma.vm_end - vma.vm_start) >> shift
        for pgoff in range(max(first, vma.vm_pgoff), min(end, vma.vm_pgoff + pages)):
            yield vma, vma.vm_start + ((pgoff - vma.vm_pgoff) << shift)
