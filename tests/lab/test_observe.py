# SPDX-License-Identifier: GPL-2.0-or-later
"""From the bits of pagemap, kpageflags and page tables to the words of a scenario."""

from __future__ import annotations

import struct

import pytest

from mthp.lab.observe import (
    PM_EXCLUSIVE,
    PM_PRESENT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PRESENT,
    PTE_WRITE,
    FolioNames,
    pages_state,
)

NR = 512
HEAD = 1024
ENTRY = PTE_PRESENT | PTE_WRITE | PTE_ACCESSED | PTE_DIRTY
PTES, PMD = 0, 1


def huge_page(mapcounts: list[int], *, exclusive: bool) -> bytes:
    """What the agent sends of a table of one folio, its exclusive bit the same everywhere."""
    bits = PM_PRESENT | (PM_EXCLUSIVE if exclusive else 0)
    rows = (
        struct.pack("<4Q", bits | HEAD + i, 1 << 12, count, HEAD << 8 | 9)
        for i, count in enumerate(mapcounts)
    )
    return b"".join(rows)


def folios(pages: bytes, level: int) -> str:
    entries = struct.pack("<2Q", ENTRY, level) * NR
    return pages_state(0, pages, entries, FolioNames([pages])).folios_text()


@pytest.mark.parametrize("exclusive", [True, False])
def test_under_a_huge_pmd_the_exclusive_bit_is_each_pages_own(exclusive: bool) -> None:
    pages = huge_page([1] * 10 + [2] * 502, exclusive=exclusive)
    assert folios(pages, PMD) == "10:F9.a.x.m1.f0.i0 502:F9.a..m2.f0.i10"


def test_under_ptes_it_is_what_the_kernel_shows() -> None:
    pages = huge_page([1] * NR, exclusive=True)
    assert folios(pages, PTES) == "512:F9.a.x.m1.f0.i0"
    pages = huge_page([2] * NR, exclusive=False)
    assert folios(pages, PTES) == "512:F9.a..m2.f0.i0"
