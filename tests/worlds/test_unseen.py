# SPDX-License-Identifier: GPL-2.0-or-later
"""What is taken of pages that smaps counts and does not name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mthp.image.snapshot import Kpf, Pte, Snapshot
from mthp.mm.pgtable_types import DIRTY
from mthp.words.profiles import DEFAULT
from mthp.worlds.build import build_world
from mthp.worlds.unseen import (
    LIKELY,
    Assumed,
    Leaning,
    Young,
    clean_lazyfree,
    counted_young,
    held_pages,
    surely_young,
    young_pages,
)
from tests.worlds.captured import HEAP, heap_of

GIVEN_UP = (0, 1, 3, 60)


def lazyfree(clean: int, referenced: int = 0) -> Snapshot:
    """Four tables of which MADV_FREE gave up so many pages; `clean` of them were not written since."""
    image = heap_of(4, referenced=referenced, lazyfree=clean)
    flags = image.processes[0].kpageflags
    assert flags is not None
    for row, pages in enumerate(GIVEN_UP):
        flags[row, :pages] &= ~np.uint64(1 << Kpf.SWAPBACKED)
    return image


def clean_of(image: Snapshot, leaning: Leaning = Leaning.LIKELY) -> list[int]:
    return [int(n) for n in clean_lazyfree(image, image.processes[0], leaning).sum(axis=1)]


def test_what_madv_free_gave_up_is_clean_as_smaps_says() -> None:
    assert clean_of(lazyfree(64)) == [0, 1, 3, 60]
    assert clean_of(lazyfree(0)) == [0, 0, 0, 0]
    assert clean_of(lazyfree(500)) == [0, 1, 3, 60], "more than there are"
    world = build_world(lazyfree(64), DEFAULT, assumed=LIKELY)
    words = [word for table in world.kernel.tables.values() for word in table.ptes.raw]
    assert sum(word & DIRTY == 0 for word in words) == 64


def test_what_was_written_again_before_a_fork_is_dirty_though_it_is_shared() -> None:
    image = lazyfree(0)
    process = image.processes[0]
    assert process.kpagecount is not None
    process.pte[:] &= ~np.uint16(Pte.EXCLUSIVE)
    process.kpagecount[:] = 2
    world = build_world(image, DEFAULT, assumed=LIKELY)
    words = [word for table in world.kernel.tables.values() for word in table.ptes.raw]
    assert sum(word & DIRTY != 0 for word in words) == sum(GIVEN_UP)


def test_some_written_again_leave_tables_with_a_clean_page_many_or_few() -> None:
    assert sum(clean_of(lazyfree(32))) == 32
    assert clean_of(lazyfree(3), Leaning.LEAST) == [0, 1, 1, 1]
    assert clean_of(lazyfree(3), Leaning.MOST) == [0, 0, 0, 3]
    assert clean_of(lazyfree(63), Leaning.MOST) == [0, 0, 3, 60], "one table fewer has a clean one"


def test_used_pages_are_those_that_were_written_again() -> None:
    image = lazyfree(60)
    flags = image.processes[0].kpageflags
    assert flags is not None
    flags[2, :3] |= np.uint64(1 << Kpf.REFERENCED)
    flags[1, 0] |= np.uint64(1 << Kpf.REFERENCED)
    assert clean_of(image) == [0, 0, 0, 60]


def test_pages_given_up_are_the_last_to_be_young() -> None:
    image = lazyfree(64, referenced=4 * 512 - 64)
    young = young_pages(image, image.processes[0], LIKELY)
    assert [int(n) for n in young.sum(axis=1)] == [512, 511, 509, 452]


@pytest.mark.parametrize("young", [Young.ALL, Young.NONE])
def test_marks_come_before_what_is_assumed(young: Young) -> None:
    image = heap_of(2)
    process = image.processes[0]
    marks = np.zeros(process.pte.shape, np.bool_)
    marks[1, 7] = True
    assumed = Assumed(young, marks={process.pid: marks})
    assert young_pages(image, process, assumed) is marks


def test_zero_and_swapped_pages_are_counted_by_nobody() -> None:
    image = heap_of(1, referenced=600)
    process = image.processes[0]
    process.pte[0, :10] = int(Pte.PRESENT | Pte.ZERO)
    process.pte[0, 10:30] = int(Pte.SWAPPED)
    assert not [*counted_young(image, process)]
    assert np.count_nonzero(surely_young(image, process)) == 482
    fewer = process.vmas[0]._replace(referenced=4096)
    (counted,) = counted_young(image, dataclasses.replace(process, vmas=(fewer,)))
    assert (len(counted.pages), counted.meant) == (482, 1)


def test_a_hidden_pin_lies_in_the_fullest_table_without_known_pins() -> None:
    image = heap_of(4, status={"VmPin": "8 kB"})
    process = dataclasses.replace(image.processes[0], pins=((HEAP, HEAP + 4096),))
    process.pte[1, :3] = 0
    held = held_pages(process, LIKELY, image.geometry)
    assert np.flatnonzero(held).tolist() == [2 * 512]
    nowhere = Assumed(held={process.pid: np.zeros_like(held)})
    assert not held_pages(process, nowhere, image.geometry).any()
