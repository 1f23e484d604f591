# SPDX-License-Identifier: GPL-2.0-or-later
"""userfaultfd: write protection, pages filled and moved."""

from __future__ import annotations

from mthp.mm.mmu import store
from mthp.mm.pgtable_types import (
    UFFD_WP,
    pte_none,
    pte_pfn,
    pte_write,
)
from mthp.mm.rmap import rmap_walk
from tests.stages import at, entry, played


def test_write_protection_is_set() -> None:
    stage = played("uffd-wp")
    assert entry(stage, 0) & UFFD_WP
    assert not pte_write(entry(stage, 0))


def test_userfaultfd_fills_the_hole() -> None:
    stage = played("uffd-copy")
    assert stage.kernel.mem.content.raw[pte_pfn(entry(stage, 1))] == 500


def test_a_hole_in_userfaultfds_charge_is_not_filled_by_a_fault() -> None:
    stage = played("uffd-register")
    assert not store(stage.mm, stage.address(1), 1)
    assert pte_none(entry(stage, 1))


def test_userfaultfd_moves_a_page_out() -> None:
    stage = played("uffd-move")
    assert pte_none(entry(stage, 0))
    assert pte_pfn(at(stage, stage.far)) == stage.pages[0]
    places = list(rmap_walk(stage.kernel.mem, stage.pages[0], stage.kernel.anon_vmas))
    assert [address for _, address in places] == [stage.far]


def test_userfaultfd_moves_a_page_in() -> None:
    stage = played("uffd-move-in")
    assert pte_pfn(entry(stage, 1)) == stage.elsewhere
    assert pte_none(at(stage, stage.far))
