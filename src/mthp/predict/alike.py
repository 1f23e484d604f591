# SPDX-License-Identifier: GPL-2.0-or-later
"""Which searches for a least change must end alike, though the mappings lie elsewhere in their tables.

Where only the PMD size is enabled, a table is scanned as a whole, and where in it a mapping lies decides two
things: which page a change of single pages is made to, and which refusal the scan comes to first. A mapping
of plain pages, which the scan never refuses, has no second refusal, so that it ends as another does of the
same size and pages, as long as no change of single pages is asked for. What is not such is searched apart.
"""

from __future__ import annotations

from mthp.khugepaged.eligibility import requested_orders
from mthp.mm.huge_mm import Tva, VmaGate
from mthp.mm.mm_types import Vma
from mthp.mm.pgtable import PteMap, pmd_ptr
from mthp.mm.pgtable_types import PTE_FLAGS_MASK, pmd_is_table, pmd_pgtable
from mthp.predict.records import Change, Refusal, WindowGate
from mthp.vectorised.plain_pages import plain_pages
from mthp.words.results import ScanResult

PLACELESS = frozenset(
    {*VmaGate, WindowGate.EDGE, ScanResult.EXCEED_NONE_PTE, ScanResult.ALLOC_HUGE_PAGE_FAIL}
    | {ScanResult.CGROUP_CHARGE_FAIL}
)
"""Refusals whose candidates are the same wherever the mapping lies, but for those made to single pages."""


def anywhere(vma: Vma, pmd_addr: int, refusal: Refusal) -> tuple[object, ...] | None:
    """What the search for a refusal's least change depends on, but for the place of the mapping in its
    table and for what the whole kernel has; None where the place may matter from the start.
    """
    mm, kernel, geometry = vma.vm_mm, vma.vm_mm.kernel, vma.vm_mm.geometry
    settings = kernel.settings
    enabled = settings.orders_always | settings.orders_madvise | settings.orders_inherit
    smaller = requested_orders(kernel, Tva.KHUGEPAGED) & ~(1 << geometry.pmd_order)
    pmd = pmd_ptr(mm, pmd_addr)
    value = pmd.page.pmds.raw[pmd.slot] if pmd is not None else 0
    if enabled & smaller or kernel.order_policy is not None or not pmd_is_table(value):
        return None
    start, end = max(vma.vm_start, pmd_addr), min(vma.vm_end, pmd_addr + geometry.pmd_size)
    pages = (end - start) >> geometry.page_shift
    with PteMap(kernel, kernel.tables[pmd_pgtable(value)], geometry.pte_index(start)) as pte:
        words = pte.ptes.view()[pte.base : pte.base + pages] & PTE_FLAGS_MASK
        plain = plain_pages(mm, pte, pages, None)
    if plain is None or not plain.small or refusal.status not in PLACELESS:
        return None
    mem, folios = kernel.mem, plain.folios
    return (
        mm, refusal._replace(address=refusal.address - start, distinct=0), pages, vma.vm_flags, vma.file,
        vma.anon_vma is not None, words.tobytes(), plain.flags.tobytes(),
        mem.nid.view()[folios].tobytes(), mem.page_flags.view()[folios].tobytes(),
        (mem.index.view()[folios] - (start >> geometry.page_shift)).tobytes(),
    )  # fmt: skip


def is_of_place(change: Change, pmd_order: int) -> bool:
    """Whether a change is made to single pages, or to a size of which a table has several."""
    return bool(change.ptes or change.order not in (0, pmd_order))
