# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings that come, go and shrink."""

from __future__ import annotations

from mthp.mm.pgtable_types import (
    pte_none,
    pte_pfn,
)
from mthp.races.stage import START
from tests.stages import entry, played


def test_remap_leaves_a_fresh_mapping() -> None:
    stage = played("remap")
    assert stage.vma not in stage.mm.vmas
    assert [vma.vm_start for vma in stage.mm.vmas] == [START]


def test_a_mapping_shrinks() -> None:
    stage = played("shrink")
    assert [vma.vm_end for vma in stage.mm.vmas] == [stage.address(1)]
    assert pte_pfn(entry(stage, 0)) == stage.pages[0]
    assert pte_none(entry(stage, 2))
