# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast twins agree with clear ones: one world runs unwatched, with arrays; its copy has somebody who
watches every step, and so runs every clear twin. Afterwards nothing tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.copy import __collapse_huge_page_copy, __collapse_huge_page_copy_succeeded
from mthp.khugepaged.daemon import Khugepaged
from mthp.khugepaged.isolate import Isolation, isolate_ptes, release_pte_pages
from mthp.khugepaged.madvise import madvise_collapse
from mthp.khugepaged.scan import scan_ptes
from mthp.machine.task import NO_TWINS
from mthp.mm import page_flags as pg
from mthp.mm.folio import folio_add_lru, folio_batch_move_lru
from mthp.mm.mem_map import _ROWS, MemMap
from mthp.mm.mm_types import Kernel, PageTable
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_flags import PAGE_HWPOISON
from mthp.mm.pgtable import PteMap, pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    PFN_SHIFT,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_pte,
    mk_pte,
    table_pmd,
    zero_pte,
)
from mthp.mm.rmap import new_anon_folio
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.vectorised.collapse import isolate_ptes_at_once
from mthp.vectorised.twins import TWINS
from mthp.words.events import Event
from mthp.words.results import Refused
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Geometry
from tests.vectorised.calls import code, functions_run

START = 1 << 30
PLAIN = pg.PG_LRU | pg.PG_ANON | pg.PG_SWAPBACKED | pg.PG_UPTODATE
ENTRY = WRITE | DIRTY


@dataclass(frozen=True)
class Kind:
    """One small page: bits to set or clear in its PTE and folio, and counts to add. One that is not
    mapped is referred to by the batch alone.
    """

    pte: int = YOUNG
    set: int = 0
    clear: int = 0
    refs: int = 0
    maps: int = 0
    poisoned: bool = False
    batched: bool = False
    mapped: bool = True


KINDS = {
    "young": Kind(),
    "old": Kind(pte=0),
    "referenced": Kind(pte=0, set=pg.PG_REFERENCED),
    "uffd": Kind(pte=YOUNG | UFFD_WP),
    "locked": Kind(set=pg.PG_LOCKED),
    "off_lru": Kind(clear=pg.PG_LRU),
    "pinned": Kind(refs=1),
    "shared": Kind(refs=1, maps=1),
    "lazyfree": Kind(clear=pg.PG_SWAPBACKED),
    "not_anon": Kind(clear=pg.PG_ANON),
    "device": Kind(set=pg.PG_ZONE_DEVICE),
    "active": Kind(set=pg.PG_ACTIVE),
    "mlocked": Kind(set=pg.PG_MLOCKED | pg.PG_UNEVICTABLE),
    "poisoned": Kind(poisoned=True),
    "batched": Kind(clear=pg.PG_LRU, batched=True),
    "dead": Kind(clear=pg.PG_LRU, maps=-1, batched=True, mapped=False),
    "dead and poisoned": Kind(clear=pg.PG_LRU, maps=-1, poisoned=True, batched=True, mapped=False),
}
SPECIAL = ["none", "zero", "guard", "swap", "migration", "large", "part"]


@dataclass(frozen=True)
class Recipe:
    """A world of one process; pages: the kinds of each table's PTEs, the last one repeated."""

    pages: tuple[tuple[str, ...], ...]
    pmd_order: int = 4
    orders: frozenset[int] = frozenset({2})
    max_ptes_none: int = 0
    vm_flags: int = VM_DEFAULT
    nodes: int = 1
    free_blocks: int | None = None
    memcg: int | None = None


class World:
    """A recipe cooked; twice the same is twice equal."""

    def __init__(self, recipe: Recipe) -> None:
        geometry = Geometry(pmd_order=recipe.pmd_order)
        sizes = dict.fromkeys(geometry.anon_orders, Enabled.NEVER)
        sizes.update(dict.fromkeys(recipe.orders & geometry.anon_orders, Enabled.ALWAYS))
        knobs = Settings(geometry=geometry, sizes=sizes, pages_to_scan=1 << 30)
        knobs = knobs.replace(max_ptes_none=min(recipe.max_ptes_none, geometry.ptrs_per_pte - 1))
        blocks = None if recipe.free_blocks is None else {3: recipe.free_blocks}
        nodes = tuple(NodeState(blocks) for _ in range(recipe.nodes))
        self.kernel = Kernel(knobs, nodes=nodes, nr_cpus=2, twins=TWINS)
        self.events: list[Event] = []
        self.kernel.trace = self.events.append
        memcg = None
        if recipe.memcg is not None:
            memcg = self.kernel.new_memcg("cgroup", recipe.memcg)
        self.mm = self.kernel.new_mm(1, memcg=memcg)
        end = START + len(recipe.pages) * geometry.pmd_size
        self.vma = self.mm.mmap(START, end, recipe.vm_flags)
        self.mm.link_anon_vma(self.vma)
        self.tables: list[PageTable] = []
        for number, kinds in enumerate(recipe.pages):
            pmd = pmd_ptr(self.mm, START + number * geometry.pmd_size, create=True)
            assert pmd is not None
            table = self.kernel.new_table()
            pmd.page.pmds.raw[pmd.slot] = table_pmd(table.number)
            self.tables.append(table)
            self.fill(table, kinds, recipe)
        self.daemon = Khugepaged(self.kernel)
        self.daemon.khugepaged_enter(self.mm)

    def fill(self, table: PageTable, kinds: tuple[str, ...], recipe: Recipe) -> None:
        """Every entry of a table."""
        i = 0
        while i < len(table.ptes.raw):
            kind = kinds[min(i, len(kinds) - 1)]
            nr = (
                4
                if kind in ("large", "part") and i % 4 == 0 and i + 4 <= len(table.ptes.raw)
                else 1
            )
            for k in range(nr):
                table.ptes.raw[i + k] = self.entry(kind, i + k, k, nr, recipe)
            i += nr

    def entry(self, kind: str, i: int, k: int, nr: int, recipe: Recipe) -> int:
        """The PTE of page k of nr of a folio that is made with its first."""
        match kind:
            case "none":
                return 0
            case "zero":
                return zero_pte()
            case "guard":
                return leaf_pte(Leaf.GUARD)
            case "swap" | "migration":
                return leaf_pte(Leaf[kind.upper()], 3)
            case "part" if k in (1, 3):
                return 0
            case "large" | "part" if k:
                return mk_pte(self.kernel.mem.nr_frames - nr + k, ENTRY | YOUNG)
        holes = nr // 2 if kind == "part" else 0
        folio = self.folio(KINDS.get(kind, Kind()), nr, i % recipe.nodes, holes)
        made = KINDS.get(kind, Kind())
        return mk_pte(folio, ENTRY | made.pte) if made.mapped else 0

    def folio(self, kind: Kind, nr: int, nid: int, holes: int) -> int:
        """A folio of nr pages, the odd ones not mapped if there are holes."""
        mem = self.kernel.mem
        order = nr.bit_length() - 1
        flags = (PLAIN | kind.set) & ~kind.clear
        folio = new_anon_folio(mem, order, nid=nid, flags=flags, mapcount=0)
        mem.refcount.raw[folio] = nr - holes + kind.refs
        for page in range(folio, folio + nr):
            mem.mapcount.raw[page] = 0 if holes and (page - folio) % 2 else 1 + kind.maps
        if order:
            mem.large_mapcount.raw[folio] = mem.nr_pages_mapped.raw[folio] = nr - holes
        if kind.poisoned:
            mem.page_flags.raw[folio] |= PAGE_HWPOISON
        if kind.batched:
            folio_add_lru(mem, self.kernel.this_cpu, folio)
        if not kind.mapped:
            mem.folio_put(folio)
        if self.mm.memcg is not None:
            mem.memcg.raw[folio] = self.mm.memcg.number
            self.mm.memcg.usage.value += nr
        return folio

    def state(self) -> dict[str, Any]:
        """Everything a later run could tell by."""
        kernel, mem = self.kernel, self.kernel.mem
        nodes = mem.allocator.nodes
        return {
            "events": self.events,
            "rows": {name: getattr(mem, name).raw[: mem.nr_frames].tolist() for name in _ROWS},
            "tables": [list(table.ptes.raw) for table in kernel.tables.values()],
            "pmds": [list(page.pmds.raw) for page in self.mm.pmd_pages.values()],
            "batches": [(cpu.lru_add.value, cpu.mlock.value) for cpu in kernel.cpus],
            "blocks": [[list(blocks) for blocks in node.blocks] for node in nodes],
            "unborn": [node.unborn for node in nodes],
            "stats": (dict(kernel.vmstat.mthp), dict(kernel.vmstat.events)),
            "counters": dict(self.mm.counters),
            "usage": self.mm.memcg and self.mm.memcg.usage.value,
            "held": kernel.machine.current.held,
            "pte_maps": kernel.pte_maps,
            "cc": (self.daemon.cc.progress, self.daemon.pages_collapsed, self.daemon.full_scans),
        }


def test_windows_of_large_folios_take_the_fast_isolation() -> None:
    """Smaller than the window: taken at once, listed in the order met. As large: left alone."""
    world = World(Recipe((("young", "young", "young", "young", "large"),)))
    kernel, mem = world.kernel, world.kernel.mem
    cc = CollapseControl(Caller.KHUGEPAGED)
    pte = PteMap(kernel, world.tables[0], 0)
    before = mem.refcount.raw[: mem.nr_frames].tolist()
    isolation = Isolation(world.vma, START, cc, 4)
    with functions_run() as run:
        isolate_ptes_at_once(isolation, pte)
    assert code(isolate_ptes) not in run
    heads = [mem.head.raw[pte.get(i) >> PFN_SHIFT] for i in (4, 8, 12)]
    assert isolation.compound_pagelist == heads
    after = mem.refcount.raw[: mem.nr_frames].tolist()
    assert [after[head] - before[head] for head in heads] == [1, 1, 1]
    with functions_run() as run, pytest.raises(Refused):
        isolate_ptes_at_once(Isolation(world.vma, START, cc, 2), PteMap(kernel, pte.table, 4))
    assert code(isolate_ptes) in run


def full_scan(world: World) -> int:
    """One full scan of khugepaged."""
    world.daemon.khugepaged_do_scan()
    return world.daemon.pages_collapsed


def madvise(world: World) -> int:
    """MADV_COLLAPSE of everything."""
    return madvise_collapse(world.vma, world.vma.vm_start, world.vma.vm_end)


def assert_twins_agree(recipe: Recipe, run: Callable[[World], int]) -> None:
    """The same recipe, unwatched and watched, is in the same state after each of two runs."""
    fast, clear = World(recipe), World(recipe)
    steps = [0]

    def watch(*_: object) -> None:
        steps[0] += 1

    clear.kernel.machine.on_step = watch
    for _ in range(2):
        assert run(fast) == run(clear)
        assert fast.state() == clear.state()
    assert steps[0]


common = st.sampled_from(["young", "young", "young", "old", "none", "referenced", "active"])
pages = st.one_of(
    st.lists(st.just("young"), min_size=1, max_size=1),
    st.lists(common, min_size=1, max_size=40),
    st.lists(st.sampled_from([*KINDS, *SPECIAL]), min_size=1, max_size=40),
    st.lists(st.one_of(common, st.sampled_from([*KINDS, *SPECIAL])), min_size=1, max_size=40),
)
recipes = st.builds(
    Recipe,
    pages=st.lists(pages.map(tuple), min_size=1, max_size=3).map(tuple),
    pmd_order=st.integers(3, 7),
    orders=st.frozensets(st.integers(2, 7), min_size=1),
    max_ptes_none=st.sampled_from([0, 1, 1 << 20]),
    vm_flags=st.sampled_from([VM_DEFAULT, VM_DEFAULT, VM_DEFAULT | VM_LOCKED]),
    nodes=st.integers(1, 2),
    free_blocks=st.sampled_from([None, None, 0, 3]),
    memcg=st.sampled_from([None, 1 << 20, 70]),
)


@settings(deadline=None, max_examples=200)
@given(recipes)
def test_khugepaged_ends_the_same_watched_and_unwatched(recipe: Recipe) -> None:
    assert_twins_agree(recipe, full_scan)


@settings(deadline=None, max_examples=100)
@given(recipes)
def test_madvise_ends_the_same_watched_and_unwatched(recipe: Recipe) -> None:
    assert_twins_agree(recipe, madvise)


@pytest.mark.parametrize("kind", [*KINDS, *SPECIAL])
@pytest.mark.parametrize("orders", [{9}, {4}, set(range(2, 10))])
def test_one_odd_page_in_a_whole_table(kind: str, orders: set[int]) -> None:
    odd = (*["young"] * 300, kind, "young")
    assert_twins_agree(Recipe((odd,), 9, frozenset(orders)), full_scan)


@pytest.mark.parametrize("before", range(0, 40, 3))
def test_a_batch_that_is_not_empty(before: int) -> None:
    """The batch's fill decides when sources are freed."""
    first = (*["batched"] * before, "none")
    recipe = Recipe((("young",), first, ("young",)), 6, frozenset({6}))
    assert_twins_agree(recipe, lambda world: madvise(world) + full_scan(world))


def test_plain_pages_take_the_fast_twins() -> None:
    """Each of them, or this file would compare the clear ones with themselves."""
    # What is not dead in a batch is left to folio_batch_move_lru() itself.
    clear = {code(each) for each in TWINS if each is not folio_batch_move_lru}
    clear |= {code(__collapse_huge_page_copy_succeeded), code(MemMap.free_folio)}
    world = World(Recipe((("young",),)))
    with functions_run() as run:
        assert madvise(world) == 0
    assert not clear & run
    taken = {code(TWINS[each]) for each in (scan_ptes, isolate_ptes, __collapse_huge_page_copy)}
    assert taken < run
    assert world.kernel.mem.content.raw[32:48].tolist() == list(range(1, 17))


def test_windows_without_a_used_page_are_released_at_once() -> None:
    world = World(Recipe((("young", *["old"] * 7, "young"),), orders=frozenset({2})))
    with functions_run() as run:
        full_scan(world)
    assert code(TWINS[release_pte_pages]) in run
    assert code(release_pte_pages) not in run


def test_a_kernel_without_twins_does_the_same() -> None:
    """Nobody watches, and the functions of the specification run all the same."""
    recipe = Recipe((("none", "old", "young"),), max_ptes_none=15)
    fast, clear = World(recipe), World(recipe)
    clear.kernel.machine.twins = NO_TWINS
    with functions_run() as run:
        assert full_scan(clear) == full_scan(fast)
    assert code(isolate_ptes) in run
    assert fast.state() == clear.state()
