# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast twins of what khugepaged does to a table or a window: scan, isolate, release, copy."""

from __future__ import annotations

import numpy as np

from mthp.khugepaged.copy import (
    BATCH_IGNORES,
    NEXT_FRAME,
    __collapse_huge_page_copy,
    __collapse_huge_page_copy_succeeded,
)
from mthp.khugepaged.isolate import Isolation, isolate_ptes, release_pte_pages
from mthp.khugepaged.scan import Scan, scan_ptes
from mthp.mm.mem_map import MemMap
from mthp.mm.mm_types import MM_ANONPAGES, PmdPtr, Vma
from mthp.mm.page_flags import PAGE_HWPOISON, PG_ISOLATED, PG_LOCKED, PG_LRU
from mthp.mm.pgtable import PteMap
from mthp.mm.pgtable_types import PFN_SHIFT, PRESENT, PTE_NONE, Pmd, Pte, pte_pfn
from mthp.mm.vm_flags import VM_LOCKED
from mthp.vectorised.lru import folio_add_lru_dead, folio_add_lru_held
from mthp.vectorised.plain_pages import plain_pages
from mthp.words.events import Copied
from mthp.words.profiles import ScanCost
from mthp.words.units import Address, Folio, Order


def scan_ptes_at_once(scan: Scan, pte: PteMap) -> None:
    """Scan a table at once if nothing in it stops the scan or needs a closer look."""
    kernel, cc = scan.kernel, scan.cc
    nr = kernel.geometry.ptrs_per_pte
    pages = None
    if not kernel.node_reclaim:
        pages = plain_pages(scan.vma.vm_mm, pte, nr, scan.max_ptes_none)
    if pages is None:
        scan_ptes(scan, pte)
        return
    scan.none_or_zero = pages.none_or_zero
    if cc.is_khugepaged:
        scan.referenced = pages.referenced()
    if pages.mapped is None:
        cc.present_ptes = (1 << nr) - 1
    else:
        bits = np.packbits(pages.mapped, bitorder="little")
        cc.present_ptes = int.from_bytes(bits.tobytes(), "little")
    if len(kernel.mem.allocator.nodes) == 1:
        cc.node_load[0] = len(pages.folios)
    else:
        nodes = np.bincount(kernel.mem.nid.view()[pages.folios])
        cc.node_load.update(dict(enumerate(nodes.tolist())))
    if kernel.profile.progress is ScanCost.PER_PTE:
        cc.progress += nr


def isolate_ptes_at_once(isolation: Isolation, pte: PteMap) -> None:
    """Isolate a window of plain pages whose folios are smaller than it (any, at PMD order)."""
    if not _isolate_plain_pages(isolation, pte):
        isolate_ptes(isolation, pte)


def _isolate_plain_pages(isolation: Isolation, pte: PteMap) -> bool:
    """Count, lock and isolate all of them; False, and nothing is done, if one is not plain."""
    mem = isolation.mem
    first = pte.ptes.raw[pte.base]
    order_of_first = mem.order.raw[mem.head.raw[first >> PFN_SHIFT]] if first & PRESENT else 0
    if isolation.sub_pmd and order_of_first >= isolation.order:
        return False  # seen at a glance: windows of large folios mostly begin with one
    pages = plain_pages(
        isolation.vma.vm_mm, pte, 1 << isolation.order, isolation.max_ptes_none or 0
    )
    if pages is None:
        return False
    taken, flags = pages.folios, pages.flags
    if not pages.small:
        if isolation.sub_pmd and int(mem.order.view()[taken].max()) >= isolation.order:
            return False
        met = list(dict.fromkeys(taken.tolist()))
        taken = np.array(met)
        flags = mem.flags.view()[taken]
        isolation.compound_pagelist = [folio for folio in met if mem.order.raw[folio]]
    isolation.done = 1 << isolation.order
    isolation.none_or_zero = pages.none_or_zero
    if isolation.cc.is_khugepaged:
        isolation.referenced = pages.referenced()
    isolation.folio = int(pages.folios[-1])
    # Each is on the LRU, unlocked, and has no references but its mappings'.
    mem.flags.view()[taken] = flags ^ (PG_LRU | PG_LOCKED | PG_ISOLATED)
    if pages.small:
        mem.refcount.view()[taken] = 2
    else:
        mem.refcount.view()[taken] += 1
    return True


def release_pte_pages_at_once(pte: PteMap, nr: int, compound_pagelist: list[Folio]) -> None:
    """Release small folios: the reference of each one's isolation becomes the batch's."""
    if compound_pagelist or not nr:
        release_pte_pages(pte, nr, compound_pagelist)
        return
    mem = pte.kernel.mem
    folios = pte.ptes.view()[pte.base : pte.base + nr] >> PFN_SHIFT
    folios = folios[folios != 0]
    mem.flags.view()[folios] &= ~(PG_ISOLATED | PG_LOCKED)
    folio_add_lru_held(mem, pte.kernel.this_cpu, folios[::-1])


def folio_pte_batch_at_once(
    mem: MemMap, folio: Folio, pte: PteMap, i: int, pteval: Pte, most: int
) -> int:
    """Compare the entries that follow with those of consecutive pages."""
    most = min(most, folio + mem.folio_nr_pages(folio) - pte_pfn(pteval))
    words = pte.ptes.view()[pte.base + i : pte.base + i + most] & BATCH_IGNORES
    first = pteval & BATCH_IGNORES
    same = words == np.arange(first, first + most * NEXT_FRAME, NEXT_FRAME)
    return most if same.all() else int(same.argmin())


def copy_at_once(
    pte: PteMap,
    folio: Folio,
    pmd: PmdPtr,
    orig_pmd: Pmd,
    vma: Vma,
    address: Address,
    order: Order,
    compound_pagelist: list[Folio],
) -> None:
    """Copy a window without poison. Its sources go at once too, if they are small and each has
    one mapping and the reference of its isolation.

    An empty PTE names frame 0, and frame 0 is the zero page.
    """
    mem = pte.kernel.mem
    nr = 1 << order
    ptes = pte.ptes.view()[pte.base : pte.base + nr]
    pfns = ptes >> PFN_SHIFT
    if np.count_nonzero(mem.page_flags.view().take(pfns) & PAGE_HWPOISON):
        __collapse_huge_page_copy(pte, folio, pmd, orig_pmd, vma, address, order, compound_pagelist)
        return
    content = mem.content.view()
    content[folio : folio + nr] = content.take(pfns)
    sources = pfns if np.count_nonzero(pfns) == nr else pfns[pfns != 0]
    refcount = mem.refcount.view()
    if (
        compound_pagelist
        or vma.vm_flags & VM_LOCKED
        or np.count_nonzero(refcount.take(sources) != 2)
    ):
        filled = __collapse_huge_page_copy_succeeded(pte, vma, order, compound_pagelist)
    else:
        filled = nr - len(sources)
        ptes[:] = PTE_NONE
        mem.flags.view()[sources] &= ~(PG_ISOLATED | PG_LOCKED)
        mem.mapcount.view()[sources] = 0
        refcount[sources] = 1
        folio_add_lru_dead(mem, pte.kernel.this_cpu, sources)
        vma.vm_mm.counters[MM_ANONPAGES] += filled
    pte.kernel.trace(Copied(vma.vm_mm.number, address, order, nr - filled, filled))
