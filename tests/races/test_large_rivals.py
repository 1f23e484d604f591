# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rivals of large folios do, each played alone: its work, and by the orders that it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    WRITE,
    YOUNG,
    Leaf,
    leaf_kind,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.races.stage import START, Size, Stage
from mthp.races.world import RaceWorld
from tests.stages import at, entry, played, pmd


def order(stage: Stage, index: int) -> int:
    """Of the folio that an address of the window maps."""
    mem = stage.kernel.mem
    return mem.order.raw[mem.head.raw[pte_pfn(at(stage, stage.address(index)))]]


def reads(stage: Stage, index: int) -> int:
    return stage.kernel.mem.content.raw[pte_pfn(at(stage, stage.address(index)))]


def is_out(stage: Stage, index: int) -> bool:
    pte = entry(stage, index)
    return not pte_present(pte) and leaf_kind(pte) is Leaf.SWAP


def the_child_keeps_it(stage: Stage) -> bool:
    (child,) = stage.children.values()
    table = stage.table_at(child, START)
    return (
        stage.kernel.mem.content.raw[pte_pfn(table.ptes.raw[0])] == 100 and reads(stage, 0) == 230
    )


def is_reused(stage: Stage) -> bool:
    page = pte_pfn(entry(stage, 0))
    exclusive = stage.kernel.mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE
    return page == stage.pages[0] and bool(exclusive and entry(stage, 0) & WRITE)


def splits_to_pages(stage: Stage) -> bool:
    return [order(stage, index) for index in (0, 1)] == [0, 0] and reads(stage, 0) == 100


@pytest.mark.parametrize(
    ("rival", "is_done"),
    [
        ("any-fault", lambda stage: order(stage, 1) == 0 and reads(stage, 1) == 201),
        ("large-fault", lambda stage: order(stage, 0) == order(stage, 1) == 1),
        ("large-fault-beside", lambda stage: order(stage, 2) == order(stage, 3) == 1),
        ("huge-fault", lambda stage: pmd_trans_huge(pmd(stage))),
        ("huge-zero-fault", lambda stage: pmd_trans_huge(pmd(stage)) and pte_pfn(pmd(stage))),
        ("fork-store", the_child_keeps_it),
        ("fork-store-large", the_child_keeps_it),
        ("reuse", is_reused),
        ("reuse-large", is_reused),
        ("split-beside", lambda stage: order(stage, 2) == order(stage, 3) == 0),
        ("deferred-split", lambda stage: splits_to_pages(stage) and pte_none(entry(stage, 2))),
        ("underused", lambda stage: splits_to_pages(stage) and not pte_pfn(entry(stage, 3))),
        ("cold", lambda stage: not entry(stage, 0) & YOUNG and not entry(stage, 2) & YOUNG),
        ("cold-page", lambda stage: not entry(stage, 0) & YOUNG and entry(stage, 2) & YOUNG),
        ("cold-part", splits_to_pages),
        ("pageout", lambda stage: is_out(stage, 0) and is_out(stage, 2)),
        ("pageout-page", lambda stage: is_out(stage, 0) and not is_out(stage, 2)),
        ("pageout-part", lambda stage: is_out(stage, 0) and order(stage, 1) == 0),
        ("pageout-large", lambda stage: is_out(stage, 0) and is_out(stage, 1)),
        ("lazyfree-large", lambda stage: pte_none(entry(stage, 0)) and pte_none(entry(stage, 1))),
        ("lazyfree-part", lambda stage: pte_none(entry(stage, 0)) and order(stage, 1) == 0),
    ],
)
def test_a_rival_does_its_work(rival: str, is_done: Callable[[Stage], object]) -> None:
    assert is_done(played(rival, Size.WINDOW))


def test_a_fault_puts_a_huge_page_where_there_is_no_table() -> None:
    stage = RaceWorld.parse("pmd+madvise", "7.3", ("table-fault",))()
    task, body = stage.tasks[1]
    stage.machine.current = task
    body()
    slot = pmd_ptr(stage.mm, START + stage.kernel.geometry.pmd_size)
    assert slot is not None and pmd_trans_huge(slot.page.pmds.raw[slot.slot])


@pytest.mark.parametrize(("rival", "is_huge"), [("reuse", True), ("fork-store", False)])
def test_a_store_to_a_shared_huge_page_reuses_it_or_splits_it(rival: str, is_huge: bool) -> None:
    stage = RaceWorld.parse("pmd+huge", "7.3", (rival,))()
    task, body = stage.tasks[1]
    stage.machine.current = task
    body()
    assert pmd_trans_huge(pmd(stage)) is is_huge
    assert stage.watch.broken == []
