# SPDX-License-Identifier: GPL-2.0-or-later
"""What is taken out of page tables is gathered, and given back once no CPU can reach it.

Kernel: mm/mmu_gather.c.
"""

from __future__ import annotations

from mthp.mm.mm_types import Mm
from mthp.mm.pgtable import flush_tlb_mm_range, pte_free_defer
from mthp.mm.swapfile import free_swap_cache
from mthp.words.units import Address, Folio


class MmuGather:
    """What one call takes out of the page tables of an mm.

    start, end: the range, bytes. folios: each with how many references to it page tables had. tables: the
    numbers of those that no PMD points to any more. Kernel: struct mmu_gather.
    """

    __slots__ = ("end", "folios", "mm", "start", "tables")

    def __init__(self, mm: Mm, start: Address, end: Address) -> None:
        self.mm = mm
        self.start = start
        self.end = end
        self.folios: list[tuple[Folio, int]] = []
        self.tables: list[int] = []


def tlb_gather_mmu(mm: Mm, start: Address, end: Address) -> MmuGather:
    """Begin to take things out of [start, end). Kernel: mm/mmu_gather.c, tlb_gather_mmu()."""
    return MmuGather(mm, start, end)


def tlb_remove_folio_pages(tlb: MmuGather, folio: Folio, nr: int) -> None:
    """Put nr references to a folio later. Kernel: mm/mmu_gather.c, __tlb_remove_folio_pages()."""
    tlb.folios.append((folio, nr))


def pte_free_tlb(tlb: MmuGather, table: int) -> None:
    """Free a table later. Kernel: include/asm-generic/tlb.h, pte_free_tlb(); mm/mmu_gather.c,
    tlb_remove_table().
    """
    tlb.tables.append(table)


def tlb_finish_mmu(tlb: MmuGather) -> None:
    """Flush, then give tables and pages back. Kernel: mm/mmu_gather.c, tlb_finish_mmu(), tlb_flush_mmu()."""
    flush_tlb_mm_range(tlb.mm, tlb.start, tlb.end)
    tlb_table_flush(tlb)
    free_pages_and_swap_cache(tlb)


def tlb_table_flush(tlb: MmuGather) -> None:
    """Free the tables once no walker can be inside. Kernel: mm/mmu_gather.c, tlb_table_flush(),
    tlb_remove_table_free().
    """
    for number in tlb.tables:
        pte_free_defer(tlb.mm.kernel.tables[number])


def free_pages_and_swap_cache(tlb: MmuGather) -> None:
    """Put what page tables referred to; what nobody maps any more gives its swap slot up first.

    Kernel: mm/swap_state.c, free_pages_and_swap_cache().
    """
    kernel = tlb.mm.kernel
    for folio, nr in tlb.folios:
        free_swap_cache(kernel, folio)
        kernel.mem.folio_put(folio, nr)
