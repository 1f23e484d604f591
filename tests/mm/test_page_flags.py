# SPDX-License-Identifier: GPL-2.0-or-later
"""Bits of folios and pages: one each, and none beside those a row has room for."""

from __future__ import annotations

from mthp.mm import page_flags
from mthp.mm.mm_types import Kernel
from mthp.mm.page_flags import ENTIRELY_MAPPED
from mthp.words.units import Geometry


def bits(prefix: str) -> list[int]:
    return [value for name, value in vars(page_flags).items() if name.startswith(prefix)]


def test_every_flag_has_a_bit_of_its_own() -> None:
    for prefix in ("PG_", "PAGE_"):
        found = bits(prefix)
        assert found and all(bit.bit_count() == 1 for bit in found)
        assert len(set(found)) == len(found)


def test_the_rows_of_flags_have_room_for_them() -> None:
    mem = Kernel().mem
    assert sum(bits("PG_")) < 1 << 8 * mem.flags.raw.itemsize
    assert sum(bits("PAGE_")) < 1 << 8 * mem.page_flags.raw.itemsize


def test_a_pmd_mapping_counts_more_than_any_number_of_pages() -> None:
    """ENTIRELY_MAPPED stands beside a count of pages, of the largest table there is."""
    assert Geometry(16, 13).ptrs_per_pte < ENTIRELY_MAPPED
