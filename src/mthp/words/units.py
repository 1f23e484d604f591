# SPDX-License-Identifier: GPL-2.0-or-later
"""Geometry of a page table, and the numbers and sizes people type and kernels print.

Addresses and sizes are ints in bytes; orders are log2 of a number of base pages.
The capture takes this module along to hosts: the standard library of Python 3.8, and nothing else.
Kernel: include/linux/huge_mm.h (HPAGE_PMD_ORDER, HPAGE_PMD_MASK), mm/huge_memory.c (THP sizes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NewType

KIB = 1024

Address = int
"""Bytes from the start of an address space."""
Order = int
"""A folio of this order has 1 << order pages."""
Pfn = NewType("Pfn", int)
"""The number of a page frame."""
Folio = NewType("Folio", Pfn)
"""A folio is the number of its first frame."""

MTHP_MIN_ORDER = 2
"""Smallest anonymous mTHP order. Kernel: mm/khugepaged.c, KHUGEPAGED_MIN_MTHP_ORDER."""


@dataclass(frozen=True)
class Geometry:
    """How addresses split into pages and PMD ranges.

    page_shift: log2 of the base page in bytes. pmd_order: log2 of the PTEs in one table. min_order:
    the smallest order below the PMD's that a folio may be collapsed to.
    """

    page_shift: int = 12
    pmd_order: int = 9
    min_order: int = MTHP_MIN_ORDER

    def __post_init__(self) -> None:
        if not (1 <= self.pmd_order <= 16 and 2 <= self.page_shift <= 20):
            raise ValueError(
                f"impossible geometry: page shift {self.page_shift}, PMD order {self.pmd_order}"
            )

    @cached_property
    def page_size(self) -> int:
        return 1 << self.page_shift

    @cached_property
    def ptrs_per_pte(self) -> int:
        """How many PTEs one table has. Kernel: PTRS_PER_PTE, HPAGE_PMD_NR."""
        return 1 << self.pmd_order

    @cached_property
    def pmd_shift(self) -> int:
        return self.page_shift + self.pmd_order

    @cached_property
    def pmd_size(self) -> int:
        return 1 << self.pmd_shift

    @cached_property
    def anon_orders(self) -> frozenset[int]:
        """The orders that an anonymous folio may have. Kernel: THP_ORDERS_ALL_ANON."""
        return frozenset(range(self.min_order, self.pmd_order + 1)) | {self.pmd_order}

    @cached_property
    def anon_orders_mask(self) -> int:
        return sum(1 << order for order in self.anon_orders)

    def pmd_addr(self, address: int) -> int:
        """The address of the PMD range that holds address. Kernel: HPAGE_PMD_MASK."""
        return address & ~(self.pmd_size - 1)

    def pmd_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """[start, end) in parts, each within one table. Kernel: pmd_addr_end()."""
        for table in range(self.pmd_addr(start), end, self.pmd_size):
            yield max(start, table), min(end, table + self.pmd_size)

    def pmd_align_up(self, address: int) -> int:
        return (address + self.pmd_size - 1) & ~(self.pmd_size - 1)

    def pte_index(self, address: int) -> int:
        return (address >> self.page_shift) & (self.ptrs_per_pte - 1)

    def order_bytes(self, order: int) -> int:
        return self.page_size << order

    def order_of(self, size: int) -> int:
        """The order of a folio of size bytes; ValueError where no folio has that size."""
        order = (size >> self.page_shift).bit_length() - 1
        if order < 0 or self.page_size << order != size:
            raise ValueError(
                f"{format_size(size)} is not a power of two of {format_size(self.page_size)} pages"
            )
        return order

    def size_name(self, order: int) -> str:
        """An order as sysfs names it (64kB); toy geometries below 1 KiB are named in bytes (64B)."""
        size = self.order_bytes(order)
        return f"{size // KIB}kB" if size % KIB == 0 else f"{size}B"

    def __str__(self) -> str:
        return f"{format_size(self.page_size)}/{format_size(self.pmd_size)}"


_SUFFIX = {"": 1, "K": KIB, "M": KIB**2, "G": KIB**3, "T": KIB**4}
_SIZE = re.compile(r"([0-9]{1,19})\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_whole(text: str, least: int = 0, most: int | None = None) -> int:
    """Read a whole number in decimal digits, within least..most; ValueError otherwise."""
    if text.isascii() and text.isdecimal() and len(text) < 20:
        number = int(text)
        if number >= least and (most is None or number <= most):
            return number
    limits = f"from {least} up" if most is None else f"from {least} to {most}"
    raise ValueError(f"{text[:40]!r} is not a whole number {limits}")


def parse_size(text: str) -> int:
    """The bytes meant by 64K, 64kB, 2M, 2048kB, 1G or 4096; ValueError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a size: {text[:40]!r} (write 64K, 2M, 2048kB)")
    return int(match[1]) * _SUFFIX[match[2].upper()]


def format_size(size: int) -> str:
    """A size in the largest unit that divides it, as people write it: 64K, 2M, 1G."""
    for suffix in ("T", "G", "M", "K"):
        unit = _SUFFIX[suffix]
        if size >= unit and size % unit == 0:
            return f"{size // unit}{suffix}"
    return f"{size}B" if size else "0"


def human_bytes(size: float) -> str:
    """A size rounded for reading: 1.5 GiB, 640 KiB."""
    sign, size = ("-", -size) if size < 0 else ("", size)
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    step = 0
    while size >= KIB and step < len(units) - 1:
        size /= KIB
        step += 1
    digits = 0 if size >= 100 or size == int(size) else 1
    return f"{sign}{size:.{digits}f} {units[step]}"
