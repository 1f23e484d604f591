# SPDX-License-Identifier: GPL-2.0-or-later
"""What a world's anonymous memory is made of: folios, bytes and translations by order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from mthp.mm.mm_types import Kernel, Vma
from mthp.mm.pgtable_types import (
    PFN_SHIFT,
    PRESENT,
    Leaf,
    leaf_kind,
    pmd_is_table,
    pmd_pgtable,
)
from mthp.predict.records import OrderUse
from mthp.worlds.build import mapped_frame


class TlbModel(StrEnum):
    """How many translations memory needs."""

    PLAIN = "plain"
    """One for each PMD mapping, else one for each PTE."""
    CONTPTE = "contpte"
    """Like plain, but 16 aligned PTEs of one folio share one (arm64, 4K pages)."""


CONTPTES = 16
"""PTEs behind one contiguous translation. Kernel: arch/arm64/include/asm/pgtable-hwdef.h."""


@dataclass(slots=True)
class Usage:
    """What some mappings use: bytes by folio order, the folios' heads, zero pages, swap, TLB."""

    bytes: Counter[int] = field(default_factory=Counter)
    heads: dict[int, set[int]] = field(default_factory=dict)
    zero: int = 0
    swapped: int = 0
    translations: int = 0

    def orders(self) -> dict[int, OrderUse]:
        """The folios and bytes of each order."""
        return {
            order: OrderUse(len(self.heads.get(order, ())), size)
            for order, size in sorted(self.bytes.items())
        }

    def add(self, other: Usage) -> None:
        """Add what other mappings use; a folio is counted once."""
        self.bytes.update(other.bytes)
        for order, heads in other.heads.items():
            self.heads.setdefault(order, set()).update(heads)
        self.zero += other.zero
        self.swapped += other.swapped
        self.translations += other.translations


@dataclass(frozen=True, slots=True)
class TablePart:
    """The part of one table's range that belongs to a mapping; count PTEs from index on.

    pmd: the value of its slot.
    """

    address: int
    index: int
    count: int
    pmd: int


def populated_parts(vma: Vma) -> Iterator[TablePart]:
    """Every part of a mapping whose PMD is not none, in order. Not a step."""
    mm = vma.vm_mm
    geometry = mm.geometry
    nr = geometry.ptrs_per_pte
    page_span = geometry.pmd_shift + geometry.pmd_order
    for number in sorted(mm.pmd_pages):
        first, end = number << page_span, (number + 1) << page_span
        if end <= vma.vm_start or first >= vma.vm_end:
            continue
        pmds = mm.pmd_pages[number].pmds.raw
        low = max(0, (vma.vm_start - first) >> geometry.pmd_shift)
        high = min(nr, -(-(vma.vm_end - first) >> geometry.pmd_shift))
        for slot in range(low, high):
            if pmds[slot]:
                base = first + (slot << geometry.pmd_shift)
                start = max(base, vma.vm_start)
                stop = min(base + geometry.pmd_size, vma.vm_end)
                count = (stop - start) >> geometry.page_shift
                yield TablePart(start, geometry.pte_index(start), count, pmds[slot])


def measure_vma(kernel: Kernel, vma: Vma, tlb: TlbModel) -> Usage:
    """What a mapping holds now. Not a step."""
    usage = Usage()
    page_size = kernel.geometry.page_size
    for part in populated_parts(vma):
        if not pmd_is_table(part.pmd):
            _measure_huge(kernel, part, usage)
            continue
        ptes = kernel.tables[pmd_pgtable(part.pmd)].ptes.view()[
            part.index : part.index + part.count
        ]
        present = (ptes & PRESENT) != 0
        pfns = ptes[present] >> PFN_SHIFT
        mapped = pfns[pfns != 0]
        zero = len(pfns) - len(mapped)
        usage.zero += zero * page_size
        usage.swapped += page_size * sum(
            leaf_kind(int(pte)) is Leaf.SWAP for pte in ptes[(ptes != 0) & ~present]
        )
        usage.translations += zero
        if not len(mapped):
            continue
        heads = kernel.mem.head.view()[mapped]
        orders = kernel.mem.order.view()[heads]
        for order in np.unique(orders).tolist():
            of_order = heads[orders == order]
            usage.bytes[order] += len(of_order) * page_size
            usage.heads.setdefault(order, set()).update(np.unique(of_order).tolist())
        usage.translations += _translations(ptes, part.index, heads, present, pfns != 0, tlb)
    return usage


def _measure_huge(kernel: Kernel, part: TablePart, usage: Usage) -> None:
    pfn = part.pmd >> PFN_SHIFT
    if part.pmd & PRESENT == 0:
        return
    usage.translations += 1
    size = part.count * kernel.geometry.page_size
    if pfn == 0:
        usage.zero += size
        return
    order = kernel.geometry.pmd_order
    usage.bytes[order] += size
    usage.heads.setdefault(order, set()).add(pfn)


def _translations(
    ptes: np.ndarray[tuple[int], np.dtype[np.int64]],
    index: int,
    heads: np.ndarray[tuple[int], np.dtype[np.int64]],
    present: np.ndarray[tuple[int], np.dtype[np.bool_]],
    not_zero: np.ndarray[tuple[int], np.dtype[np.bool_]],
    tlb: TlbModel,
) -> int:
    """How many translations the pages that one table maps need."""
    if tlb is TlbModel.PLAIN:
        return len(heads)
    at = np.flatnonzero(present)[not_zero] + index
    pfns = ptes[at - index] >> PFN_SHIFT
    blocks = at // CONTPTES
    whole = 0
    for block in np.unique(blocks).tolist():
        inside = blocks == block
        if (
            int(np.count_nonzero(inside)) == CONTPTES
            and len(np.unique(heads[inside])) == 1
            and int(pfns[inside][0]) % CONTPTES == 0
            and (np.diff(pfns[inside]) == 1).all()
        ):
            whole += 1
    return len(heads) - whole * (CONTPTES - 1)


def frames_in_use(kernel: Kernel) -> int:
    """As Allocator.frames_out(), less the folios that nothing but an LRU batch still holds. Not a step."""
    held = Counter(
        folio
        for cpu in kernel.cpus
        for folio in (*cpu.lru_add.value, *(folio for folio, _ in cpu.mlock.value))
    )
    refcount = kernel.mem.refcount.raw
    waiting = sum(
        kernel.mem.folio_nr_pages(folio) for folio, n in held.items() if refcount[folio] == n
    )
    return kernel.mem.allocator.frames_out() - waiting


def folios_of(kernel: Kernel, vma: Vma) -> Iterator[tuple[int, int, int]]:
    """(address, order, pages) of each folio a mapping maps: where it begins there, and how many of its
    pages are mapped in that table. Not a step.
    """
    page_size = kernel.geometry.page_size
    for part in populated_parts(vma):
        if not pmd_is_table(part.pmd):
            if part.pmd & PRESENT and part.pmd >> PFN_SHIFT:
                yield part.address, kernel.geometry.pmd_order, part.count
            continue
        table = kernel.tables[pmd_pgtable(part.pmd)].ptes.view()
        ptes = table[part.index : part.index + part.count]
        at = np.flatnonzero((ptes & PRESENT != 0) & (ptes >> PFN_SHIFT != 0))
        heads = kernel.mem.head.view()[ptes[at] >> PFN_SHIFT]
        begins = np.flatnonzero(np.diff(heads, prepend=-1))
        pages = np.diff(begins, append=len(heads))
        orders = kernel.mem.order.view()[heads[begins]]
        for i, order, count in zip(
            at[begins].tolist(), orders.tolist(), pages.tolist(), strict=True
        ):
            yield part.address + i * page_size, order, count


def page_order(vma: Vma, address: int) -> int | None:
    """The order of the folio that address maps, None where it maps none. Not a step."""
    mem = vma.vm_mm.kernel.mem
    pfn = mapped_frame(vma.vm_mm, address)
    return mem.order.raw[mem.head.raw[pfn]] if pfn else None
