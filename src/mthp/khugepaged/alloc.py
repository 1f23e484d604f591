# SPDX-License-Identifier: GPL-2.0-or-later
"""The new folio: from which node, charged to whom. Kernel: mm/khugepaged.c."""

from __future__ import annotations

from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.limits import count_collapse_event
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.mm_types import Kernel, Mm
from mthp.mm.page_counter import Gfp
from mthp.words.profiles import DeferredMemcg
from mthp.words.results import Refused, ScanResult
from mthp.words.units import Folio, Order


class NewFolio:
    """The new folio of one attempt: it is put on every way out, unless it was installed."""

    __slots__ = ("folio", "installed", "kernel")

    def __init__(self, kernel: Kernel, folio: Folio) -> None:
        self.kernel = kernel
        self.folio = folio
        self.installed = False

    def __enter__(self) -> NewFolio:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.installed and not self.kernel.machine.abandoned:
            self.kernel.mem.folio_put(self.folio)


def collapse_find_target_node(kernel: Kernel, cc: CollapseControl) -> int:
    """Choose the first node with the most pages of the table; its equals may be fallen back to.

    Kernel: mm/khugepaged.c, collapse_find_target_node().
    """
    nodes = len(kernel.mem.allocator.nodes)
    if nodes == 1:
        cc.alloc_nmask |= {0}
        return 0
    loads = [cc.node_load[nid] for nid in range(nodes)]
    most = max(loads)
    cc.alloc_nmask |= {nid for nid, load in enumerate(loads) if load == most}
    return loads.index(most) if most else 0


def alloc_charge_folio(mm: Mm, cc: CollapseControl, order: Order) -> NewFolio:
    """Allocate and charge a folio of `order`. No lock is held: this may reclaim and compact.

    Refused: ALLOC_HUGE_PAGE_FAIL, CGROUP_CHARGE_FAIL. collapse_alloc counts before the charge.
    Kernel: mm/khugepaged.c, alloc_charge_folio().
    """
    kernel = mm.kernel
    compact = kernel.settings.defrag or not cc.is_khugepaged
    node = collapse_find_target_node(kernel, cc)
    folio = kernel.mem.folio_alloc(order, node, cc.alloc_nmask, compact=compact)
    if folio is None:
        count_collapse_event(kernel, order, "thp_collapse_alloc_failed", "collapse_alloc_failed")
        raise Refused(ScanResult.ALLOC_HUGE_PAGE_FAIL)
    count_collapse_event(kernel, order, "thp_collapse_alloc", "collapse_alloc")
    if not mem_cgroup_charge(folio, mm, Gfp.TRANSHUGE if compact else Gfp.TRANSHUGE_LIGHT):
        kernel.mem.folio_put(folio)
        raise Refused(ScanResult.CGROUP_CHARGE_FAIL)
    return NewFolio(kernel, folio)


def check_memcg_alloc_deferred(mm: Mm) -> None:
    """See that the cgroup could queue the folio for a split. Refused: ALLOC_HUGE_PAGE_FAIL, though
    the allocation was counted as done.

    Kernel: mm/huge_memory.c, folio_memcg_alloc_deferred().
    """
    checked = mm.kernel.profile.deferred_memcg is DeferredMemcg.CHECKED
    if checked and mm.memcg is not None and mm.memcg.defer:
        raise Refused(ScanResult.ALLOC_HUGE_PAGE_FAIL)
