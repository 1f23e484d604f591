# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration: contents and mappings go to another folio."""

from __future__ import annotations

import pytest

from mthp.mm.pgtable_types import (
    pmd_trans_huge,
    pte_pfn,
)
from tests.stages import after_a_collapse, entry, played, pmd


def test_migration_moves_contents() -> None:
    stage = played("migrate")
    page = pte_pfn(entry(stage, 0))
    assert page != stage.pages[0]
    assert stage.kernel.mem.content.raw[page] == 100


@pytest.mark.parametrize("rival", ["move-pages", "migrate-large"])
def test_move_pages_moves_contents(rival: str) -> None:
    stage = played(rival)
    page = pte_pfn(entry(stage, 0))
    assert page != stage.pages[0]
    assert stage.kernel.mem.content.raw[page] == 100
    assert stage.kernel.mem.order.raw[page] == (rival == "migrate-large")


def test_a_huge_page_migrates_with_its_pmd() -> None:
    stage = after_a_collapse("move-pages")
    assert pmd_trans_huge(pmd(stage))
    assert stage.kernel.mem.content.raw[pte_pfn(pmd(stage))] == 100
