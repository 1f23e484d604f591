# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads and stores of processes that run one after the other: no TLB need be asked.

Kernel: arch/x86/mm/fault.c, do_user_addr_fault(), access_error().
"""

from __future__ import annotations

from typing import Any, Final

from mthp.mm.memory import handle_user_fault
from mthp.mm.mm_types import Mm
from mthp.mm.pgtable import mm_find_pmd
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    PRESENT,
    WRITE,
    YOUNG,
    pmd_is_table,
    pmd_pgtable,
    pte_pfn,
)
from mthp.mm.vm_flags import VM_READ, VM_WRITE
from mthp.words.units import Address

MOST_FAULTS: Final = 8
"""So many faults are more than enough for one access."""


def touch(mm: Mm, address: Address, content: int | None) -> bool:
    """Load from a page (content: None) or store to it, faulting as often as it takes; False: SIGSEGV.

    content: what the whole page holds after the store, 0 for zeroes.
    """
    for _ in range(MOST_FAULTS):
        if access(mm, address, content):
            return True
        vma = mm.vma_lookup(address)
        if vma is None or not vma.vm_flags & (VM_READ if content is None else VM_WRITE):
            return False
        handle_user_fault(mm, address, write=content is not None)
    return False


def access(mm: Mm, address: Address, content: int | None) -> bool:
    """Do the access if the page table lets it through, as the hardware does: young and dirty are set."""
    pmd = mm_find_pmd(mm, address)
    if pmd is None:
        return False
    row: Any = pmd.page.pmds.raw
    at, index = pmd.slot, mm.geometry.pte_index(address)
    entry: int = row[at]
    within = index
    if pmd_is_table(entry):
        row, at, within = mm.kernel.tables[pmd_pgtable(entry)].ptes.raw, index, 0
        entry = row[at]
    wanted = PRESENT if content is None else PRESENT | WRITE
    if entry & (wanted | NO_ACCESS) != wanted:
        return False
    row[at] = entry | YOUNG | (0 if content is None else DIRTY)
    if content is not None:
        mm.kernel.mem.content.raw[pte_pfn(entry) + within] = content
    return True
