# SPDX-License-Identifier: GPL-2.0-or-later
"""A walker that takes no lock and changes nothing. Kernel: kernel/events/core.c."""

from __future__ import annotations

from mthp.mm.mm_types import Mm
from mthp.mm.pgtable import mm_find_pmd, pmdp_get_lockless, pte_offset_map
from mthp.mm.pgtable_types import PMD_NONE, pmd_is_table, pmd_present, pmd_trans_huge, pte_present


def perf_get_page_size(mm: Mm, address: int) -> int:
    """The size in bytes of what maps address, 0 if nothing does, with interrupts off alone.

    It may see a table that is being emptied, but never one that was freed.
    Kernel: kernel/events/core.c, perf_get_page_size(), perf_get_pgtable_size().
    """
    cpu = mm.kernel.this_cpu
    cpu.local_irq_save()
    try:
        return _pgtable_size(mm, address)
    finally:
        if not mm.machine.abandoned:
            cpu.local_irq_restore()


def _pgtable_size(mm: Mm, address: int) -> int:
    pmd = mm_find_pmd(mm, address)
    pmdval = pmdp_get_lockless(pmd) if pmd is not None else PMD_NONE
    if not pmd_present(pmdval):
        return 0
    if pmd_trans_huge(pmdval):
        return mm.geometry.pmd_size
    assert pmd_is_table(pmdval)
    pte = pte_offset_map(mm.kernel, pmdval, address)
    assert pte is not None
    with pte:
        return mm.geometry.page_size if pte_present(pte.get(0)) else 0
