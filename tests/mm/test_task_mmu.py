# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/PID/clear_refs: marks taken away, and left again."""

from __future__ import annotations

from mthp.mm.pgtable_types import (
    SOFT_DIRTY,
    WRITE,
    pmd_trans_huge,
    pte_write,
)
from tests.stages import after_a_collapse, entry, played, pmd


def test_a_store_leaves_a_soft_dirty_mark_again() -> None:
    stage = played("soft-dirty")
    assert entry(stage, 0) & SOFT_DIRTY
    assert not entry(stage, 2) & (SOFT_DIRTY | WRITE)


def test_a_huge_page_that_is_ones_own_is_written_again() -> None:
    stage = after_a_collapse("soft-dirty")
    assert pmd_trans_huge(pmd(stage)) and pte_write(pmd(stage))
