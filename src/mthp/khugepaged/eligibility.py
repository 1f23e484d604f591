# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether khugepaged has work, and which orders it may collapse a VMA to.

Kernel: mm/khugepaged.c.
"""

from __future__ import annotations

from mthp.mm.huge_mm import Tva, hugepage_global_enabled, thp_vma_allowable_orders
from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY, Kernel, Mm, Vma
from mthp.words.profiles import Orders


def hugepage_enabled(kernel: Kernel) -> bool:
    """Whether khugepaged has a reason to run. shmem switches are not modelled.

    Kernel: mm/khugepaged.c, hugepage_enabled(), anon_hpage_enabled().
    """
    settings = kernel.settings
    return bool(
        hugepage_global_enabled(settings) or settings.orders_always or settings.orders_madvise
    )


def requested_orders(kernel: Kernel, tva: Tva) -> int:
    """Orders a caller may collapse anonymous memory to, before anything else is asked (bitmap)."""
    if tva is Tva.KHUGEPAGED and kernel.profile.orders is Orders.ANON:
        return kernel.geometry.anon_orders_mask
    return 1 << kernel.geometry.pmd_order


def collapse_possible_orders(vma: Vma, vm_flags: int, tva: Tva) -> int:
    """The orders that the VMA may be collapsed to (bitmap).

    Kernel: mm/khugepaged.c, collapse_possible_orders().
    """
    return thp_vma_allowable_orders(vma, vm_flags, tva, requested_orders(vma.vm_mm.kernel, tva))


def collapse_test_exit(mm: Mm) -> bool:
    """Whether the last user of the mm has left. Kernel: mm/khugepaged.c, collapse_test_exit()."""
    users: int = mm.mm_users.read()
    return users == 0


def collapse_test_exit_or_disable(mm: Mm) -> bool:
    """Whether the mm is to be left alone. Kernel: mm/khugepaged.c, collapse_test_exit_or_disable()."""
    return collapse_test_exit(mm) or mm.mm_flags_test(MMF_DISABLE_THP_COMPLETELY)
