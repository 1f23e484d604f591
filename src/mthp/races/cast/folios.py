# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals that migrate, merge, split or poison folios, and windows that are one large folio."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mthp.mm.huge_memory_split import deferred_split_scan, split_huge_pages_pid, split_isolated
from mthp.mm.ksm import ksm_do_scan
from mthp.mm.list_lru import Sublist
from mthp.mm.memory_failure import memory_failure
from mthp.mm.migrate import migrate_folio, move_page
from mthp.mm.page_flags import (
    PAGE_HWPOISON,
    PG_ANON,
    PG_KSM,
    PG_LRU,
    PG_PARTIALLY_MAPPED,
    PG_SWAPBACKED,
    PG_UPTODATE,
)
from mthp.mm.shrinker import SHRINK_BATCH
from mthp.mm.vm_flags import VM_DEFAULT, VM_MERGEABLE
from mthp.races.cast.accesses import store_and_load
from mthp.races.cast.faults import zap
from mthp.races.cast.rival import (
    BESIDE,
    BESIDE_WINDOW,
    ELSEWHERE,
    FIRST,
    HOLE,
    IS_LARGE,
    PAGES,
    TABLE,
    WINDOW,
    Rival,
)
from mthp.races.stage import START, Stage
from mthp.words.units import Folio

POISONED: Final = "a poisoned page is never copied"
KSM_PAGE: Final = PG_UPTODATE | PG_LRU | PG_ANON | PG_SWAPBACKED | PG_KSM


def _migrate_beside(stage: Stage) -> None:
    if (page := stage.page_beside) is not None:
        migrate_folio(stage.kernel, page)


def _poison(stage: Stage, index: int) -> None:
    stage.kernel.mem.page_flags.raw[stage.pages[index]] |= PAGE_HWPOISON


def _poison_second(stage: Stage) -> None:
    """The window is two small pages, and the second cannot be read."""
    stage.map_page(1)
    _poison(stage, 1)


def _poison_large(stage: Stage) -> None:
    """One large folio, whose second page cannot be read."""
    stage.map_large()
    _poison(stage, 1)


def _partially_mapped(stage: Stage) -> None:
    """One large folio, which stands as if a third page of it had been unmapped."""
    stage.map_large()
    stage.kernel.mem.flags.raw[stage.pages[0]] |= PG_PARTIALLY_MAPPED


def _large_table(stage: Stage) -> None:
    stage.map_large(stage.kernel.geometry.pmd_order, -stage.first)


def _queue_table(stage: Stage) -> None:
    """The whole table is one large folio on the queue of those that may be underused: all but the window
    is zeroes.
    """
    kernel = stage.kernel
    _large_table(stage)
    for index in stage.pages.keys() - range(1 << stage.order):
        kernel.mem.content.raw[stage.pages[index]] = 0
    kernel.settings = replace(kernel.settings, max_ptes_none=0)
    kernel.mem.deferred_split_folio(stage.pages[-stage.first], partially_mapped=False)


def _queue_part_of_table(stage: Stage) -> None:
    """The whole table was one large folio, of which a page beside the window is not mapped any more."""
    _large_table(stage)
    if stage.beside is not None:
        zap(stage, stage.address(stage.beside), stage.address(stage.beside + 1))
        del stage.pages[stage.beside]


def _shrink_queue(stage: Stage) -> None:
    """The shrinker goes through the queue of the process's node and cgroup."""
    memcg = stage.mm.memcg.number if stage.mm.memcg is not None else 0
    deferred_split_scan(stage.kernel, Sublist(0, memcg), SHRINK_BATCH)


def _split_queued(stage: Stage, folio: Folio | None) -> None:
    """The shrinker splits a folio, if it is still there to be taken off its queue.

    Folios of two pages are on no queue; what happens to one that is does not ask for its size.
    """
    if folio is not None and stage.kernel.mem.folio_try_get(folio):
        split_isolated(stage.kernel, folio)


def _partially_mapped_beside(stage: Stage) -> None:
    """The same beside the window."""
    if stage.beside is not None:
        stage.map_large(first=stage.beside)
        stage.kernel.mem.flags.raw[stage.pages[stage.beside]] |= PG_PARTIALLY_MAPPED


def _merged_page(stage: Stage) -> None:
    """A page of the same contents, which ksmd has merged in another process."""
    other = stage.kernel.new_mm(9, "other")
    stage.elsewhere = stage.map_elsewhere(other, START, VM_DEFAULT, 100, KSM_PAGE)


def _zeroes(stage: Stage) -> None:
    """The first page holds nothing but zeroes."""
    stage.kernel.mem.content.raw[stage.pages[0]] = 0


# fmt: off
FOLIOS = (
    Rival("migrate", "migration of a page of the window",
        lambda stage: migrate_folio(stage.kernel, stage.pages[0]), reach=PAGES),
    Rival("migrate-neighbour", "migration of a page beside the window", _migrate_beside, reach=PAGES,
        needs=BESIDE),
    Rival("migrate-large", "move_pages() where the window is a large folio",
        lambda stage: move_page(stage.mm, stage.window), Stage.map_large, WINDOW,
        never_below_pmd=IS_LARGE),
    Rival("move-pages", "move_pages() of a page of the window, small or huge",
        lambda stage: move_page(stage.mm, stage.window)),
    Rival("poisoned", "a page of the window is poisoned, and migrated",
        lambda stage: migrate_folio(stage.kernel, stage.pages[0]), lambda stage: _poison(stage, 0),
        FIRST, reach=PAGES, never_collapses=POISONED),
    Rival("store-poisoned", "a CPU stores to a page of the window, and the next one is poisoned",
        lambda stage: store_and_load(stage, 0), _poison_second, HOLE,
        never_collapses=POISONED),
    Rival("hwpoison", "the memory of a page of the window fails",
        lambda stage: memory_failure(stage.kernel, stage.pages[0]), reach=PAGES),
    Rival("large", "the window is a large folio", prepare=Stage.map_large, takes=WINDOW,
        never_below_pmd=IS_LARGE),
    Rival("large-poisoned", "the same, with a poisoned page", prepare=_poison_large, takes=WINDOW,
        never_collapses=POISONED),
    Rival("split", "a folio that was collapsed is split again",
        lambda stage: split_huge_pages_pid(stage.mm, stage.window)),
    Rival("split-large", "the shrinker splits the large folio of the window",
        lambda stage: _split_queued(stage, stage.pages[0]), _partially_mapped, WINDOW),
    Rival("split-beside", "the shrinker splits a large folio beside the window",
        lambda stage: _split_queued(stage, stage.page_beside), _partially_mapped_beside,
        BESIDE_WINDOW, reach=PAGES, needs=BESIDE),
    Rival("deferred-split",
        "the shrinker splits a folio as large as the table, of which a page is not mapped any more",
        _shrink_queue, _queue_part_of_table, TABLE, needs=BESIDE),
    Rival("underused",
        "the shrinker splits a folio as large as the table, of which all but the window is zeroes",
        _shrink_queue, _queue_table, TABLE, needs=BESIDE),
    Rival("ksm", "ksmd merges a page of the window with another process's",
        lambda stage: ksm_do_scan(stage.mm, stage.window, stage.elsewhere), _merged_page, ELSEWHERE,
        VM_MERGEABLE),
    Rival("ksm-zero", "ksmd puts the zero page in the place of a page of zeroes",
        lambda stage: ksm_do_scan(stage.mm, stage.window, stage.elsewhere), _zeroes, FIRST | ELSEWHERE,
        VM_MERGEABLE),
)
# fmt: on
