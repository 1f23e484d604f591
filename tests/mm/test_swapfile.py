# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap slots: who uses them, and what becomes of them."""

from __future__ import annotations

from mthp.mm.pgtable_types import (
    Leaf,
    leaf_kind,
    pte_pfn,
    pte_present,
    pte_write,
)
from mthp.races.stage import SWAP_SLOT
from tests.stages import entry, played


def test_swapoff_brings_the_page_back_read_only() -> None:
    stage = played("swapoff")
    assert pte_present(entry(stage, 1)) and not pte_write(entry(stage, 1))
    assert not stage.kernel.swap.users and not stage.kernel.swap.cache


def test_a_slot_is_used_again_with_other_contents() -> None:
    stage = played("slot-reuse")
    assert leaf_kind(entry(stage, 1)) is Leaf.SWAP
    assert pte_pfn(entry(stage, 1)) == SWAP_SLOT + 1
    assert stage.kernel.swap.contents[SWAP_SLOT + 1] == 201
