# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made for all mappings at once equals what is made for each by itself."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from mthp.mm.pgtable_types import pmd_is_table, pmd_pgtable
from mthp.predict.measure import entries_of, parts_of, populated_parts
from mthp.worlds.arrays import painted, span, spans
from tests.small_worlds import TINY, World, hole, huge, small

NR = TINY.ptrs_per_pte


def cook(seed: int) -> World:
    """Two processes with mappings of any size, some of them in one table, with and without pages."""
    source = Random(seed)
    world = World(geometry=TINY)
    for _ in range(2):
        mm, at = world.process(), 1 << 30
        for _ in range(source.randrange(12)):
            at += source.choice([0, 0, 1, 3, NR, 300 * NR]) * TINY.page_size
            pages = source.choice([1, 2, 5, NR, NR + 3, 4 * NR])
            vma = world.vma(mm=mm, at=at, pages=pages)
            kind = source.randrange(4)
            if kind == 0 and at % TINY.pmd_size == 0 and pages >= NR:
                world.fill(vma, 0, huge(4))
            elif kind > 1:
                first = source.randrange(pages)
                few = min(pages - first, NR - TINY.pte_index(at + first * TINY.page_size))
                world.fill(vma, first, small(1), *([hole(few - 2), small(1)] if few > 2 else []))
            at = vma.vm_end
    return world


@pytest.mark.parametrize("seed", range(30))
def test_parts_of_all_mappings_are_those_of_each(seed: int) -> None:
    world = cook(seed)
    vmas = [vma for mm in world.kernel.mms for vma in mm.vmas]
    each = [(k, part) for k, vma in enumerate(vmas) for part in populated_parts(vma)]
    assert [*parts_of(vmas).each()] == each
    words = [word for entries in entries_of(world.kernel, vmas) for word in entries.words.tolist()]
    tables = world.kernel.tables
    assert words == [
        word
        for _, part in each
        if pmd_is_table(part.pmd)
        for word in tables[pmd_pgtable(part.pmd)].ptes.raw[part.first : part.first + part.nr]
    ]


@pytest.mark.parametrize("seed", range(10))
def test_spans_of_all_ranges_are_those_of_each(seed: int) -> None:
    source = Random(seed)
    tables = [*sorted(source.sample(range(2**20), 30)), 2**64 // TINY.pmd_size - 1]
    address = np.array(tables, np.uint64) * np.uint64(TINY.pmd_size)
    ends = sorted(
        int(source.choice(address)) + source.randrange(-3, NR + 3) * TINY.page_size
        for _ in range(20)
    )
    ranges = [(low, min(high, 2**64)) for low, high in zip(ends[::2], ends[1::2], strict=True)]
    starts, stops = spans(address, TINY, ranges)
    each = [span(address, TINY, *bounds) for bounds in ranges]
    assert [slice(a, b) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)] == each
    plain = np.zeros(address.size * NR, np.int32)
    for number, own in enumerate(each, 1):
        plain[own] = number
    numbers = np.arange(1, len(each) + 1, dtype=np.int32)
    assert (painted(plain.size, starts, stops, numbers) == plain).all()
