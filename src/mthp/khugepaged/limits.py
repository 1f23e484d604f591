# SPDX-License-Identifier: GPL-2.0-or-later
"""How many empty, shared and swapped PTEs a collapse may take in. Kernel: mm/khugepaged.c."""

from __future__ import annotations

from typing import Final

from mthp.khugepaged.control import CollapseControl
from mthp.mm.mm_types import Kernel, Vma, userfaultfd_armed
from mthp.words.profiles import IntermediateNone
from mthp.words.results import Refused, ScanResult
from mthp.words.units import Order


def collapse_max_ptes_none(
    kernel: Kernel, cc: CollapseControl, vma: Vma | None, order: Order
) -> int | None:
    """How many holes are allowed; None: a collapse to this order is refused whatever it holds.

    vma: looked at for userfaultfd, or None where the caller holds no VMA.
    Kernel: mm/khugepaged.c, collapse_max_ptes_none().
    """
    geometry = kernel.geometry
    max_ptes_none = kernel.settings.max_ptes_none
    if vma is not None and userfaultfd_armed(vma):
        return 0
    if not cc.is_khugepaged:
        return geometry.ptrs_per_pte
    if order == geometry.pmd_order:
        return max_ptes_none
    if max_ptes_none == geometry.ptrs_per_pte - 1:
        return (1 << order) - 1
    if max_ptes_none:
        if kernel.profile.intermediate_none is IntermediateNone.REFUSE:
            return None
        kernel.warn_once(
            "collapse_max_ptes_none",
            "mTHP collapse does not support max_ptes_none values other than 0 or "
            f"{geometry.ptrs_per_pte - 1}, defaulting to 0.",
        )
    return 0


def collapse_max_ptes_shared(kernel: Kernel, cc: CollapseControl, order: Order) -> int:
    """How many PTEs of shared pages are allowed. Kernel: collapse_max_ptes_shared()."""
    if not cc.is_khugepaged:
        return kernel.geometry.ptrs_per_pte
    return kernel.settings.max_ptes_shared if order == kernel.geometry.pmd_order else 0


def collapse_max_ptes_swap(kernel: Kernel, cc: CollapseControl, order: Order) -> int:
    """How many swapped entries are allowed. Kernel: collapse_max_ptes_swap()."""
    if not cc.is_khugepaged:
        return kernel.geometry.ptrs_per_pte
    return kernel.settings.max_ptes_swap if order == kernel.geometry.pmd_order else 0


_EXCEEDED: Final = {
    ScanResult.EXCEED_NONE_PTE: ("thp_scan_exceed_none_pte", "collapse_exceed_none_pte"),
    ScanResult.EXCEED_SHARED_PTE: ("thp_scan_exceed_share_pte", "collapse_exceed_shared_pte"),
    ScanResult.EXCEED_SWAP_PTE: ("thp_scan_exceed_swap_pte", "collapse_exceed_swap_pte"),
}


def exceeded(kernel: Kernel, order: Order, result: ScanResult) -> Refused:
    """Count that the budget that belongs to result is spent, and make the refusal."""
    count_collapse_event(kernel, order, *_EXCEEDED[result])
    return Refused(result)


def count_collapse_event(kernel: Kernel, order: Order, vm_event: str, mthp_stat: str) -> None:
    """Count an event by its order, and in vmstat at PMD order. Kernel: count_collapse_event()."""
    if order == kernel.geometry.pmd_order:
        kernel.vmstat.count_vm_event(vm_event)
    kernel.vmstat.count_mthp_stat(order, mthp_stat)
