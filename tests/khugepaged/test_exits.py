# SPDX-License-Identifier: GPL-2.0-or-later
"""Every exit leaves locks, PTE maps, references, counts and the page table balanced, and memory
reads what it read before: over random worlds with injected failures."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

from mthp.khugepaged.control import Caller
from mthp.mm.mm_types import Vma
from mthp.mm.page_flags import PG_LOCKED
from mthp.mm.pgtable_types import Leaf, leaf_kind, pmd_is_table, pte_pfn, pte_present
from mthp.words.events import CollapseHugePage
from mthp.words.results import ScanResult
from mthp.words.units import Geometry
from mthp.worlds.build import mapped_frame
from tests.khugepaged.strategies import VMA_FAULTS, Fault, Recipe, recipes
from tests.small_worlds import World

R = ScanResult
TINIER = Geometry(12, 3)
REACHED = {
    R.SUCCEED, R.FAIL, R.NO_PTE_TABLE, R.PMD_MAPPED, R.EXCEED_NONE_PTE,
    R.PTE_MAPPED_HUGEPAGE, R.PAGE_LOCK, R.PAGE_COUNT, R.DEL_PAGE_LRU, R.ANY_PROCESS, R.VMA_NULL,
    R.VMA_CHECK, R.ADDRESS_RANGE, R.ALLOC_HUGE_PAGE_FAIL, R.CGROUP_CHARGE_FAIL, R.COPY_MC,
}  # fmt: skip
"""Exits that random worlds must meet, or they are worth little."""


@st.composite
def page_faults(draw: st.DrawFn, pages: int) -> list[tuple[str, int]]:
    """(what, page): things done to pages between the scan and the collapse."""
    kinds = st.sampled_from(["pin", "lock", "off_lru", "poison", "cache", "cache locked", "fail"])
    return draw(st.lists(st.tuples(kinds, st.integers(0, pages - 1)), max_size=2))


def apply(world: World, vma: Vma, what: str, page: int) -> None:
    """Do it, where there is a page to do it to."""
    address = world.address(vma, page)
    pmd = world.pmd(vma, address)
    if not pmd or not pmd_is_table(pmd):
        return
    pte = world.table(vma, address).ptes.raw[world.geometry.pte_index(address)]
    swapped = pte and not pte_present(pte) and leaf_kind(pte) is Leaf.SWAP
    if what.startswith("cache"):
        if swapped:
            world.cache_swapped(vma, page, locked=what == "cache locked")
        return
    if what == "fail":
        if swapped:
            world.kernel.swap.failing.add(pte_pfn(pte))
        return
    if mapped_frame(vma.vm_mm, address):
        getattr(world, what)(vma, page)


def verdicts(world: World) -> list[ScanResult]:
    return [e.status for e in world.kernel.events if isinstance(e, CollapseHugePage)]


@pytest.mark.parametrize(
    ("geometry", "reached"),
    [
        (TINIER, REACHED | {R.PTE_NON_PRESENT}),
        pytest.param(Geometry(12, 4), REACHED, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_exit_of_collapse_huge_page_is_balanced(
    geometry: Geometry, reached: set[ScanResult]
) -> None:
    """One attempt on any window of any world, with pages and VMAs changed under it."""
    seen: set[ScanResult] = set()

    @settings(
        max_examples=350, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(recipes(geometry), st.data())
    def check(recipe: Recipe, data: st.DataObject) -> None:
        world, vma = recipe.build()
        order = data.draw(st.integers(2, geometry.pmd_order), "order")
        window = data.draw(st.integers(0, (2 * geometry.ptrs_per_pte >> order) - 1), "window")
        for what, page in data.draw(page_faults(1 << order), "faults"):
            apply(world, vma, what, (window << order) + page)
        before = world.census()
        inject(world, vma, data)
        result = world.collapse(
            vma,
            order,
            window << order,
            unmapped=data.draw(st.sampled_from([0, 1]), "unmapped"),
            caller=data.draw(st.sampled_from(list(Caller)), "caller"),
        )
        world.kernel.machine.on_step = None
        seen.add(result)
        world.assert_sound(before, aborted=result is not ScanResult.SUCCEED)
        drain_and_check(world, before.outside.locked)

    check()
    assert seen >= reached


def inject(world: World, vma: Vma, data: st.DataObject, first: int = 1) -> None:
    """Another task changes the mapping before mmap_lock is taken for the n-th time."""
    fault: Fault | None = data.draw(st.sampled_from([None] * 5 + VMA_FAULTS), "fault")
    if fault is not None:
        nth = data.draw(st.integers(first, first + 1), "before lock")
        world.before_lock(world.mm.mmap_lock, nth, lambda: fault(world, vma))


def drain_and_check(world: World, locked: frozenset[int]) -> None:
    """After the batches are drained nothing is lost either."""
    before = world.census()
    world.khugepaged.mm_slots.clear()
    world.khugepaged.khugepaged_do_scan()
    world.assert_sound(before)
    assert {f for f, flags in before.flags.items() if flags & PG_LOCKED} <= locked


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes(), page_faults(32), st.data())
def test_every_full_scan_is_balanced(
    recipe: Recipe, faults: list[tuple[str, int]], data: st.DataObject
) -> None:
    world, vma = recipe.build()
    for what, page in faults:
        apply(world, vma, what, page)
    before = world.census()
    inject(world, vma, data)
    for _ in range(3):
        world.scan()
        world.kernel.machine.on_step = None
        collapsed = ScanResult.SUCCEED in verdicts(world)
        world.assert_sound(before, aborted=not collapsed)
    target(float(len(verdicts(world))))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes(), page_faults(32), st.data())
def test_every_madvise_collapse_is_balanced(
    recipe: Recipe, faults: list[tuple[str, int]], data: st.DataObject
) -> None:
    world, vma = recipe.build()
    for what, page in faults:
        apply(world, vma, what, page)
    before = world.census()
    inject(world, vma, data, first=2)  # the first is madvise()'s own
    error = world.madvise(vma)
    world.kernel.machine.on_step = None
    world.assert_sound(before, aborted=ScanResult.SUCCEED not in verdicts(world))
    assert error <= 0


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes(Geometry()), page_faults(1024), st.data())
def test_the_default_geometry_is_balanced_too(
    recipe: Recipe, faults: list[tuple[str, int]], data: st.DataObject
) -> None:
    world, vma = recipe.build()
    for what, page in faults:
        apply(world, vma, what, page)
    before = world.census()
    world.scan()
    world.assert_sound(before, aborted=ScanResult.SUCCEED not in verdicts(world))
