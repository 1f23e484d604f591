# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios are charged to the cgroup of their mm. Kernel: mm/memcontrol.c."""

from __future__ import annotations

from mthp.mm.folio import lru_add_drain
from mthp.mm.mm_types import Mm
from mthp.mm.page_alloc import PAGE_ALLOC_COSTLY_ORDER
from mthp.mm.page_counter import Gfp
from mthp.words.units import Folio


def mem_cgroup_charge(folio: Folio, mm: Mm, gfp: Gfp = Gfp.TRANSHUGE) -> bool:
    """Charge a folio to the mm's cgroup; a full one's reclaim empties this CPU's batches first.

    False where the limit does not allow it. Before that fails the kernel may kill a process of the
    cgroup, of which `Kernel.warnings` tells.
    Kernel: mm/memcontrol.c, mem_cgroup_charge(); mm/vmscan.c, lru_gen_shrink_lruvec().
    """
    kernel, memcg = mm.kernel, mm.memcg
    if memcg is None:
        return True
    mem = kernel.mem
    if memcg.charge(mem.folio_nr_pages(folio), gfp, lambda: lru_add_drain(mem, kernel.this_cpu)):
        mem.memcg.raw[folio] = memcg.number
        return True
    order = mem.order.raw[folio]
    if memcg.kills(order, gfp):
        kernel.warn_once(
            f"mem_cgroup_oom {memcg.name}",
            f"cgroup {memcg.name} is full: before khugepaged's charge of order {order} fails, the "
            "kernel kills a process of the cgroup (with defrag 1 and orders up to "
            f"{PAGE_ALLOC_COSTLY_ORDER}); from there on this run is one in which it did not",
        )
    return False
