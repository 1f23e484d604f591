# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals that know large folios: what a collapse leaves, and what it finds."""

from __future__ import annotations

from mthp.khugepaged import collapse
from mthp.khugepaged.control import Caller, CollapseControl
from mthp.mm.huge_memory_split import deferred_split_scan, split_huge_pages_pid
from mthp.mm.madvise import madvise_dontneed
from mthp.mm.memory import handle_huge_fault
from mthp.mm.migrate import move_page
from mthp.races.cast.rival import WINDOW, Rival
from mthp.races.stage import START, Size, Stage


def one_large_folio(stage: Stage) -> None:
    """The window is one large folio."""
    stage.map_large()


def move_whatever(stage: Stage) -> None:
    """move_pages() of what stands at the window's begin, be it small or huge by now."""
    move_page(stage.mm, START)


def split_whatever(stage: Stage) -> None:
    """Split what stands at the window's begin, if it is large by now."""
    split_huge_pages_pid(stage.mm, START)


def split_queued(stage: Stage) -> None:
    """The shrinker splits the window's large folio."""
    deferred_split_scan(stage.kernel, stage.pages[0])


def zap_second(stage: Stage) -> None:
    """MADV_DONTNEED of the window's second page, be it part of a huge one by now."""
    madvise_dontneed(stage.mm, stage.address(1), stage.address(2))


def zap_and_fault(stage: Stage) -> None:
    """MADV_DONTNEED of the table, and a fault that puts a huge page there."""
    madvise_dontneed(stage.mm, START, stage.end)
    handle_huge_fault(stage.mm, START)


def whole_table(stage: Stage) -> None:
    """MADV_COLLAPSE of the whole table."""
    cc = CollapseControl(Caller.MADVISE)
    collapse.collapse_huge_page(stage.mm, START, 1, 0, cc, stage.kernel.geometry.pmd_order)


def whole_table_again(stage: Stage) -> None:
    """The same, if the window is smaller than the table."""
    if stage.size is Size.WINDOW:
        whole_table(stage)


HUGE = (
    Rival("move-pages", "move_pages() of a page of the window, small or huge", move_whatever),
    Rival("split", "a folio that was collapsed is split again", split_whatever),
    Rival("zap-second", "MADV_DONTNEED of the window's second page", zap_second),
    Rival("huge-fault", "the table is zapped, and a fault puts a huge page there", zap_and_fault),
    Rival("madv-collapse-pmd", "MADV_COLLAPSE of the table the window is in", whole_table_again),
    Rival(
        "migrate-large",
        "move_pages() where the window is a large folio",
        move_whatever,
        prepare=one_large_folio,
        takes=WINDOW,
    ),
    Rival(
        "split-large",
        "the shrinker splits the large folio of the window",
        split_queued,
        prepare=one_large_folio,
        takes=WINDOW,
    ),
    Rival(
        "zap-large",
        "MADV_DONTNEED of a page of a large folio",
        zap_second,
        prepare=one_large_folio,
        takes=WINDOW,
    ),
)
