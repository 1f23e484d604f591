# SPDX-License-Identifier: GPL-2.0-or-later
"""Reclaim: what is swapped out, dropped, or made old."""

from __future__ import annotations

from mthp.mm.pgtable_types import (
    YOUNG,
    Leaf,
    leaf_kind,
    pte_none,
    pte_pfn,
)
from tests.stages import entry, played


def test_swap_out_leaves_an_entry() -> None:
    stage = played("swap-out")
    assert leaf_kind(entry(stage, 0)) is Leaf.SWAP
    assert stage.kernel.swap.contents[pte_pfn(entry(stage, 0))] == 100


def test_aging_clears_young() -> None:
    assert not entry(played("referenced"), 0) & YOUNG


def test_a_page_that_was_given_up_is_dropped() -> None:
    stage = played("lazyfree")
    assert pte_none(entry(stage, 0))
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0
