# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise(): what MADV_DONTNEED empties."""

from __future__ import annotations

import pytest

from mthp.mm.mm_types import TableState
from mthp.mm.pgtable_types import (
    pte_none,
)
from tests.stages import entry, played


def test_a_zap_empties_and_gives_the_table_back() -> None:
    stage = played("zap")
    assert all(map(pte_none, stage.table.ptes.raw))
    assert stage.table.state is TableState.DEFERRED
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


@pytest.mark.parametrize("rival", ["zap-vma", "zap-page-vma"])
def test_a_zap_under_the_vma_lock_empties(rival: str) -> None:
    stage = played(rival)
    assert pte_none(entry(stage, 0))
    assert stage.vma.vm_lock.value == 0
