# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages: faulted in, shared, and mapped by PTEs again."""

from __future__ import annotations

import pytest

from mthp.mm.mmu import store
from mthp.mm.pgtable_types import (
    pmd_is_table,
    pmd_trans_huge,
    pte_pfn,
    pte_write,
)
from mthp.races.stage import START
from tests.stages import after_a_collapse, at, entry, played, pmd


def test_a_fault_puts_a_huge_page_where_the_table_was() -> None:
    stage = played("huge-fault")
    assert pmd_trans_huge(pmd(stage))
    assert stage.kernel.mem.content.raw[pte_pfn(pmd(stage))] == 0


@pytest.mark.parametrize("rival", ["zap-second", "uffd-wp", "zap-page", "shrink"])
def test_part_of_a_huge_page_splits_its_pmd(rival: str) -> None:
    stage = after_a_collapse(rival)
    assert pmd_is_table(pmd(stage))
    kept = 1 if rival == "zap-page" else 0
    page = pte_pfn(at(stage, stage.address(kept)))
    assert stage.kernel.mem.order.raw[stage.kernel.mem.head.raw[page]] == 1


def test_fork_shares_a_huge_page() -> None:
    stage = after_a_collapse("fork")
    folio = pte_pfn(pmd(stage))
    assert stage.kernel.mem.entire_mapcount.raw[folio] == 2
    assert not pte_write(pmd(stage))
    assert store(stage.mm, START, 7)
    assert pmd_is_table(pmd(stage))
    assert pte_pfn(entry(stage, 0)) != folio
