# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-table entries as words: a PTE and a PMD are ints, read with the kernel's predicates.

The layout is the model's own. Bits 0-9 are flags, bits 10-13 say what a non-present entry is, and
the frame number (or swap entry, or table number) stands from bit 16 up.
Kernel: include/linux/pgtable.h, include/linux/leafops.h (softleaf_from_pte), include/linux/mm.h
(mk_pte, folio_mk_pmd), arch/x86/include/asm/pgtable.h (pte_uffd).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NewType

from mthp.words.units import Folio, Pfn

Pte = NewType("Pte", int)
Pmd = NewType("Pmd", Pte)

PTE_NONE: Final = Pte(0)

PRESENT: Final = 1 << 0
WRITE: Final = 1 << 1
YOUNG: Final = 1 << 2
DIRTY: Final = 1 << 3
SOFT_DIRTY: Final = 1 << 4
UFFD_WP: Final = 1 << 5
SPECIAL: Final = 1 << 6
SWP_EXCLUSIVE: Final = 1 << 7
HUGE: Final = 1 << 8
NO_ACCESS: Final = 1 << 9
"""Present to software and not to the hardware: a NUMA hint, a huge PMD that is being changed."""

KIND_SHIFT: Final = 10
KIND_MASK: Final = 0xF << KIND_SHIFT
PFN_SHIFT: Final = 16
PTE_FLAGS_MASK: Final = (1 << PFN_SHIFT) - 1

ZERO_PFN: Final = Pfn(0)
"""The shared zero page is frame 0 of every world."""
ZERO_PTE_BITS: Final = PRESENT | SPECIAL


class Leaf(IntEnum):
    """What a non-present, non-none entry stands for. Kernel: enum softleaf_type."""

    NONE = 0
    SWAP = 1
    MIGRATION = 2
    HWPOISON = 3
    GUARD = 4
    UFFD_WP_MARKER = 5
    DEVICE = 6


def mk_pte(pfn: int, flags: int) -> Pte:
    """A present PTE of frame pfn. Kernel: mk_pte()."""
    return Pte(pfn << PFN_SHIFT | flags | PRESENT)


def zero_pte(flags: int = YOUNG) -> Pte:
    """A PTE of the shared zero page, which is special and never written through."""
    return Pte(ZERO_PTE_BITS | flags)


def leaf_pte(kind: Leaf, value: int = 0, flags: int = 0) -> Pte:
    """A non-present entry: swap (value: swap entry), migration (value: pfn), or a marker."""
    return Pte(value << PFN_SHIFT | kind << KIND_SHIFT | flags)


def pte_none(pte: int) -> bool:
    """Whether an entry is empty."""
    return pte == 0


def pte_present(pte: int) -> bool:
    """Whether an entry maps a page."""
    return pte & PRESENT != 0


def pte_pfn(pte: int) -> Pfn:
    """The frame of a present entry, or what a leaf entry names."""
    return pte >> PFN_SHIFT  # type: ignore[return-value]  # Pfn() would be a call for each PTE


def pte_none_or_zero(pte: int) -> bool:
    """Whether it is empty or maps the zero page. Kernel: mm/khugepaged.c, pte_none_or_zero()."""
    return pte == 0 or (pte & PRESENT != 0 and pte >> PFN_SHIFT == ZERO_PFN)


def pte_young(pte: int) -> bool:
    """Whether it was used since the bit was last cleared."""
    return pte & YOUNG != 0


def pte_dirty(pte: int) -> bool:
    """Whether it was written through."""
    return pte & DIRTY != 0


def pte_write(pte: int) -> bool:
    """Whether it may be written through."""
    return pte & WRITE != 0


def pte_uffd(pte: int) -> bool:
    """Whether userfaultfd write-protects a present PTE. Kernel: pte_uffd()."""
    return pte & UFFD_WP != 0


def pte_protnone(pte: int) -> bool:
    """Whether it is present but lets no access through. Kernel: pte_protnone()."""
    return pte & (PRESENT | NO_ACCESS) == PRESENT | NO_ACCESS


def pte_special(pte: int) -> bool:
    """Whether it maps a frame that has no page of its own to the memory manager."""
    return pte & SPECIAL != 0


def leaf_kind(pte: int) -> Leaf:
    """What a non-present entry is. Kernel: softleaf_from_pte()."""
    return Leaf((pte & KIND_MASK) >> KIND_SHIFT)


def pte_swp_uffd_any(pte: int) -> bool:
    """Whether a non-present entry is write-protected by userfaultfd, as a bit or as a marker.

    Kernel: include/linux/userfaultfd_k.h, pte_swp_uffd_any().
    """
    return pte & UFFD_WP != 0 or leaf_kind(pte) is Leaf.UFFD_WP_MARKER


# A PMD slot: none, a table (PRESENT, table number), a huge leaf (PRESENT | HUGE), a migration
# entry (not present), or bad (PRESENT | SPECIAL).

PMD_NONE: Final = Pmd(PTE_NONE)


def table_pmd(number: int) -> Pmd:
    """A PMD that points to page table `number`."""
    return Pmd(Pte(number << PFN_SHIFT | PRESENT))


def huge_pmd(pfn: int, flags: int) -> Pmd:
    """A PMD that maps a PMD-sized folio. Kernel: folio_mk_pmd()."""
    return Pmd(mk_pte(pfn, flags | HUGE))


def pmd_none(pmd: int) -> bool:
    """Whether a slot is empty."""
    return pmd == 0


def pmd_present(pmd: int) -> bool:
    """Whether a slot has a table, a huge leaf, or something bad."""
    return pmd & PRESENT != 0


def pmd_trans_huge(pmd: int) -> bool:
    """Whether a slot maps a huge page."""
    return pmd & (PRESENT | HUGE) == PRESENT | HUGE


def is_huge_zero_pmd(pmd: int) -> bool:
    """Whether a slot maps the huge zero page. Kernel: include/linux/huge_mm.h, is_huge_zero_pmd()."""
    return pmd_trans_huge(pmd) and pmd >> PFN_SHIFT == ZERO_PFN


def pmd_is_migration_entry(pmd: int) -> bool:
    """Whether a slot's huge page is on its way elsewhere."""
    return pmd & PRESENT == 0 and (pmd & KIND_MASK) >> KIND_SHIFT == Leaf.MIGRATION


def pmd_bad(pmd: int) -> bool:
    """Whether a slot is present and neither a table nor a leaf."""
    return pmd & (PRESENT | SPECIAL) == PRESENT | SPECIAL


def pmd_is_table(pmd: int) -> bool:
    """Whether a slot points to a table of PTEs."""
    return pmd & (PRESENT | SPECIAL | HUGE) == PRESENT


def pmd_folio(pmd: int) -> Folio:
    """The folio that a huge PMD or its migration entry names. Kernel: include/linux/pgtable.h."""
    return Folio(pte_pfn(pmd))


def pmd_page(pmd: int, index: int) -> Pfn:
    """The frame of a page of a huge PMD; every page of the huge zero page is the zero page."""
    return ZERO_PFN if is_huge_zero_pmd(pmd) else Pfn(pte_pfn(pmd) + index)


def pmd_pgtable(pmd: int) -> int:
    """The number of the table a PMD points to. Kernel: pmd_pgtable()."""
    return pmd >> PFN_SHIFT
