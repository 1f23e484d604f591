# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that failed is unmapped and kept."""

from __future__ import annotations

from mthp.mm.pgtable_types import (
    Leaf,
    leaf_kind,
)
from tests.stages import entry, played


def test_failed_memory_is_unmapped_and_kept() -> None:
    stage = played("hwpoison")
    assert leaf_kind(entry(stage, 0)) is Leaf.HWPOISON
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 1
    assert stage.kernel.mem.mapcount.raw[stage.pages[0]] == 0
