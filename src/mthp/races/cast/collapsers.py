# SPDX-License-Identifier: GPL-2.0-or-later
"""The collapser: khugepaged, from where it begins; and MADV_COLLAPSE as its rival."""

from __future__ import annotations

from enum import Enum

from mthp.khugepaged import collapse
from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.madvise import madvise_collapse_locked
from mthp.khugepaged.scan import collapse_scan_pmd
from mthp.races.cast.rival import BESIDE, Rival
from mthp.races.stage import START, Size, Stage

COLLAPSER = "khugepaged"


class Start(Enum):
    """Where khugepaged begins."""

    COLLAPSE = "collapse_huge_page()"
    MADVISE = "madvise_collapse() of a mapping of three tables, of which the second is not there"
    SCAN = "collapse_scan_pmd()"
    DAEMON = "khugepaged_do_scan()"

    def run(self, stage: Stage) -> None:
        """What its task does; the daemon scans every registered mm twice."""
        if self is Start.COLLAPSE:
            for window in stage.windows:
                _collapse(stage, window, Caller.KHUGEPAGED, len(stage.swapped), stage.order)
        elif self is Start.SCAN:
            _scan(stage)
        elif self is Start.MADVISE:
            _madvise(stage)
        else:
            stage.khugepaged.khugepaged_do_scan()
            stage.khugepaged.khugepaged_do_scan()


def _scan(stage: Stage) -> None:
    with stage.mm.mmap_read_lock() as mmap_lock:
        vma = stage.mm.find_vma(START)
        if vma is not None:
            cc = CollapseControl(Caller.KHUGEPAGED)
            collapse_scan_pmd(stage.mm, vma, START, mmap_lock, cc)


def _madvise(stage: Stage) -> None:
    with stage.mm.mmap_read_lock() as mmap_lock:
        vma = stage.mm.vma_lookup(START)
        if vma is not None:
            madvise_collapse_locked(vma, START, vma.vm_end, mmap_lock)


def _collapse(stage: Stage, start: int, caller: Caller, unmapped: int, order: int) -> None:
    """From the allocation of the new folio on."""
    cc = CollapseControl(caller)
    stage.watch.came_to(collapse.collapse_huge_page(stage.mm, start, 1, unmapped, cc, order))


def _madvise_table(stage: Stage) -> None:
    if stage.size is Size.WINDOW:
        _collapse(stage, START, Caller.MADVISE, 0, stage.kernel.geometry.pmd_order)


# fmt: off
SECOND_COLLAPSERS = (
    Rival("madv-collapse", "MADV_COLLAPSE of the same window",
        lambda stage: _collapse(stage, stage.window, Caller.MADVISE, 0, stage.order)),
    Rival("madv-collapse-pmd", "MADV_COLLAPSE of the table the window is in", _madvise_table,
        needs=BESIDE),
)
# fmt: on
