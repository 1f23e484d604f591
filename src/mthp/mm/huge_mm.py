# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sizes of folio a VMA may have, by its flags and the switches.

Kernel: include/linux/huge_mm.h, mm/huge_memory.c (__thp_vma_allowable_orders).
"""

from __future__ import annotations

from enum import Enum

from mthp.mm.mm_types import (
    MMF_DISABLE_THP_COMPLETELY,
    MMF_DISABLE_THP_EXCEPT_ADVISED,
    Vma,
    vma_is_anonymous,
)
from mthp.mm.vm_flags import VM_HUGEPAGE, VM_NO_KHUGEPAGED, VM_NOHUGEPAGE, VM_STACK_INCOMPLETE
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Address, Order


class Tva(Enum):
    """For whom orders are asked. Kernel: enum tva_type."""

    KHUGEPAGED = "khugepaged"
    FORCED_COLLAPSE = "MADV_COLLAPSE"
    SMAPS = "smaps"
    PAGEFAULT = "page fault"


FORCED_COLLAPSE, SMAPS, PAGEFAULT = Tva.FORCED_COLLAPSE, Tva.SMAPS, Tva.PAGEFAULT


class VmaGate(Enum):
    """Why a VMA has no order left, in the order the kernel asks."""

    NOT_ENABLED = "no size it could be collapsed to is enabled for it"
    NOHUGEPAGE = "MADV_NOHUGEPAGE, or MAP_STACK as threads' stacks have (Linux 6.7)"
    THP_DISABLED = "PR_SET_THP_DISABLE"
    NOT_ADVISED = "PR_SET_THP_DISABLE except advised, and not advised"
    SPECIAL = "special or hugetlb mapping"
    TOO_SHORT = "holds no aligned range of any enabled size"
    FILE = "not an anonymous mapping: no anonymous page in it is ever collapsed"
    TEMPORARY_STACK = "exec's temporary stack"
    NO_ANON_VMA = "never written: no anon_vma"


def hugepage_global_enabled(settings: Settings) -> bool:
    """Whether the global switch allows any size. Kernel: hugepage_global_enabled()."""
    return settings.enabled in (Enabled.ALWAYS, Enabled.MADVISE)


def highest_order(orders: int) -> int:
    """The highest order of a bitmap that is not 0. Kernel: highest_order()."""
    return orders.bit_length() - 1


def next_orders(orders: int) -> int:
    """The bitmap without its highest order. Kernel: include/linux/huge_mm.h, next_order()."""
    return orders & ~(1 << highest_order(orders))


def thp_vma_suitable_order(vma: Vma, address: Address, order: Order) -> bool:
    """Whether the VMA spans the aligned range of `order` around address.

    Kernel: include/linux/huge_mm.h, thp_vma_suitable_order().
    """
    size = vma.vm_mm.geometry.order_bytes(order)
    start = address & ~(size - 1)
    return start >= vma.vm_start and start + size <= vma.vm_end


def thp_vma_suitable_orders(vma: Vma, address: Address, orders: int) -> int:
    """The orders left, from the first that suits on. Kernel: thp_vma_suitable_orders()."""
    while orders and not thp_vma_suitable_order(vma, address, highest_order(orders)):
        orders = next_orders(orders)
    return orders


def sysfs_orders(settings: Settings, vm_flags: int) -> int:
    """Orders the per-size and global switches allow a VMA with these flags (bitmap).

    Kernel: include/linux/huge_mm.h, thp_vma_allowable_orders().
    """
    advised = vm_flags & VM_HUGEPAGE != 0
    mask = settings.orders_always
    if advised:
        mask |= settings.orders_madvise
    if settings.enabled is Enabled.ALWAYS or (advised and hugepage_global_enabled(settings)):
        mask |= settings.orders_inherit
    return mask


def vma_thp_disabled(vma: Vma, vm_flags: int, tva: Tva) -> VmaGate | None:
    """What keeps huge pages out of the VMA, if anything does. Kernel: vma_thp_disabled()."""
    if vm_flags & VM_NOHUGEPAGE:
        return VmaGate.NOHUGEPAGE
    if vma.vm_mm.mm_flags_test(MMF_DISABLE_THP_COMPLETELY):
        return VmaGate.THP_DISABLED
    if vm_flags & VM_HUGEPAGE or tva is FORCED_COLLAPSE:
        return None
    if vma.vm_mm.mm_flags_test(MMF_DISABLE_THP_EXCEPT_ADVISED):
        return VmaGate.NOT_ADVISED
    return None


def allowable_orders(vma: Vma, vm_flags: int, tva: Tva, orders: int) -> int | VmaGate:
    """The orders left of `orders` (a bitmap, never 0), or the gate that let none through.

    Kernel: mm/huge_memory.c, __thp_vma_allowable_orders().
    """
    kernel = vma.vm_mm.kernel
    anonymous = vma_is_anonymous(vma)
    if not anonymous and vma.file not in kernel.files:  # file_thp_enabled()
        return VmaGate.FILE
    if tva is not FORCED_COLLAPSE:
        orders &= sysfs_orders(kernel.settings, vm_flags)
    orders &= kernel.geometry.anon_orders_mask
    if not orders:
        return VmaGate.NOT_ENABLED
    disabled = vma_thp_disabled(vma, vm_flags, tva)
    if disabled is not None:
        return disabled
    if tva not in (SMAPS, PAGEFAULT) and vm_flags & VM_NO_KHUGEPAGED:
        return VmaGate.SPECIAL
    if tva is not PAGEFAULT:
        orders = _orders_that_fit(vma, orders)
        if not orders:
            return VmaGate.TOO_SHORT
    if not anonymous:
        return orders
    if vm_flags & VM_STACK_INCOMPLETE:
        return VmaGate.TEMPORARY_STACK
    if vma.anon_vma is None and tva not in (SMAPS, PAGEFAULT):
        return VmaGate.NO_ANON_VMA
    return orders


def _orders_that_fit(vma: Vma, orders: int) -> int:
    """The orders of which the VMA holds an aligned range at its end (bitmap)."""
    geometry = vma.vm_mm.geometry
    while orders:
        order = highest_order(orders)
        if thp_vma_suitable_order(vma, vma.vm_end - geometry.order_bytes(order), order):
            break
        orders = next_orders(orders)
    return orders


def thp_vma_allowable_orders(vma: Vma, vm_flags: int, tva: Tva, orders: int) -> int:
    """The bitmap of orders allowed; 0 if none is. Kernel: thp_vma_allowable_orders()."""
    answer = allowable_orders(vma, vm_flags, tva, orders)
    return 0 if isinstance(answer, VmaGate) else answer
