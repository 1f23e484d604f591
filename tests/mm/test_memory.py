# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults, zaps and copies of what is mapped by PTEs."""

from __future__ import annotations

import pytest

from mthp.mm.pgtable_types import (
    pte_none,
    pte_pfn,
    pte_present,
    pte_write,
)
from tests.stages import entry, played


def test_a_fault_fills_a_hole() -> None:
    stage = played("fault")
    page = pte_pfn(entry(stage, 1))
    assert pte_present(entry(stage, 1)) and pte_write(entry(stage, 1))
    assert stage.kernel.mem.content.raw[page] == 201


def test_a_read_fault_maps_the_zero_page() -> None:
    assert pte_pfn(entry(played("zero-fault"), 1)) == 0
    assert pte_present(entry(played("zero-fault"), 1))


@pytest.mark.parametrize(("rival", "content"), [("swap-in", 101), ("swap-in-store", 201)])
def test_swap_in_brings_the_page_back(rival: str, content: int) -> None:
    stage = played(rival)
    assert pte_present(entry(stage, 1))
    assert stage.kernel.mem.content.raw[pte_pfn(entry(stage, 1))] == content


def test_the_whole_window_comes_back_as_one_folio() -> None:
    stage = played("swap-in-large")
    assert stage.kernel.mem.order.raw[pte_pfn(entry(stage, 0))] == 1
    assert pte_pfn(entry(stage, 1)) == pte_pfn(entry(stage, 0)) + 1


def test_part_of_a_large_folio_is_zapped() -> None:
    stage = played("zap-large")
    assert pte_present(entry(stage, 0)) and pte_none(entry(stage, 1))
    assert stage.kernel.mem.large_mapcount.raw[stage.pages[0]] == 1
