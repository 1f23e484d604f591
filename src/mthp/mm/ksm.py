# SPDX-License-Identifier: GPL-2.0-or-later
"""What same-page merging means to a page that is swapped in. Kernel: mm/ksm.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mthp.mm.folio import PG_ANON, PG_DIRTY, PG_KSM, PG_LOCKED, PG_UPTODATE
from mthp.mm.vma import Vma, linear_page_index

if TYPE_CHECKING:
    from mthp.mm.kernel import Kernel


def ksm_might_need_to_copy(kernel: Kernel, folio: int, vma: Vma, address: int) -> int | None:
    """The swap cache folio itself, or a locked copy of it where it already belongs to another place
    (a merged page loses the mark when it is swapped out); None: no memory.

    Divergence: a place is told by its index alone, not by the root of its anon_vma.
    Kernel: mm/ksm.c, ksm_might_need_to_copy().
    """
    mem = kernel.mem
    flags = mem.flags.test_bits(folio, PG_KSM | PG_ANON | PG_UPTODATE)
    if mem.folio_test_large(folio) or flags & PG_KSM or not flags & PG_ANON:
        return folio
    if mem.index.raw[folio] == linear_page_index(vma, address) or not flags & PG_UPTODATE:
        return folio
    copy = mem.folio_alloc(0)
    if copy is None:
        return None
    if not kernel.charge(copy, vma.vm_mm):
        mem.folio_put(copy)
        return None
    mem.content.write(copy, mem.content.read(folio))
    mem.flags.set_bits(copy, PG_DIRTY | PG_UPTODATE | PG_LOCKED)
    kernel.vmstat.count_vm_event("ksm_swpin_copy")
    return copy
