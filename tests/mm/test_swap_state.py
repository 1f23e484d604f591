# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap cache, and pages under writeback."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.mm_types import Vma
from mthp.mm.page_flags import PG_LOCKED, PG_UPTODATE, PG_WRITEBACK
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import Leaf, leaf_pte, pte_pfn
from mthp.mm.swap_state import swap_cache_del_folio, swapin_sync
from mthp.mm.swap_table import SwapError, unplaced_entry
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE, VM_UFFD_WP
from mthp.races.stage import SWAP_SLOT
from mthp.words.profiles import PMD_ONLY, V7_3
from mthp.words.settings import Enabled
from mthp.words.units import Folio, Pfn
from tests.small_worlds import (
    TINY,
    World,
    small,
    swap,
)
from tests.stages import played


def test_a_write_ends() -> None:
    stage = played("writeback")
    assert not stage.kernel.mem.flags.raw[stage.pages[1]] & PG_WRITEBACK
    assert stage.kernel.swap.contents[SWAP_SLOT + 1] == 101


def test_a_written_page_is_freed() -> None:
    stage = played("swap-cache-free")
    assert not stage.kernel.swap.cache
    assert stage.kernel.mem.refcount.raw[stage.pages[1]] == 0


def run_of(world: World, vma: Vma, first: int, count: int, offset: int) -> None:
    """`count` swapped pages from `first` on have slots one after the other."""
    ptes = world.table(vma).ptes.raw
    for i in range(count):
        world.kernel.swap.users.pop(pte_pfn(ptes[first + i]))
        world.kernel.swap.hold(offset + i)
        ptes[first + i] = leaf_pte(Leaf.SWAP, offset + i, ptes[first + i] & 0x3FF)


def read(world: World, vma: Vma, page: int) -> int | None:
    """swapin_sync() of a page: the order of the folio, which holds what its slots hold."""
    pmd = pmd_ptr(world.mm, vma.vm_start)
    assert pmd is not None
    orig = world.table(vma).ptes.raw[page]
    folio = swapin_sync(world.mm, vma, world.address(vma, page), pmd, orig)
    assert world.kernel.machine.current.held == [] and world.kernel.pte_maps == 0
    if isinstance(folio, SwapError):
        assert folio is SwapError.NO_MEMORY
        return None
    order, first = world.mem.order.raw[folio], world.kernel.swap.entry_of[folio]
    swap = world.kernel.swap
    assert first <= pte_pfn(orig) < first + (1 << order)
    for i in range(1 << order):
        assert world.mem.content.raw[folio + i] == swap.contents[first + i]
        assert swap.cache[first + i] == folio
    assert not world.mem.test(folio, PG_LOCKED)
    batched = world.kernel.this_cpu.lru_add.value.count(folio)
    assert world.mem.refcount.raw[folio] == 1 + (1 << order) + batched
    return order


@pytest.mark.parametrize(
    ("first", "count", "offset", "page", "order"),
    [
        (8, 8, 64, 9, 3),
        (8, 8, 68, 9, 2),  # the offset is aligned to four only
        (8, 8, 65, 9, 0),
        (8, 4, 64, 9, 2),
        (9, 7, 65, 13, 2),  # the window of eight has a page that is there
        (9, 7, 65, 9, 0),
        (0, 16, 64, 3, 3),  # below PMD order
    ],
)
def test_the_largest_window_that_runs_on_is_read_at_once(
    first: int, count: int, offset: int, page: int, order: int
) -> None:
    world = World(geometry=TINY, orders={2, 3, 4})
    vma = world.vma(small(first), swap(count), small(16 - first - count))
    run_of(world, vma, first, count, offset)
    assert read(world, vma, page) == order


@pytest.mark.parametrize(
    "why", ["armed", "not synchronous", "size off", "unplaced", "cached", "short mapping", "bits"]
)
def test_one_page_alone_is_read(why: str) -> None:
    world = World(geometry=TINY, orders=() if why == "size off" else {2})
    flags = VM_DEFAULT | (VM_UFFD_WP if why == "armed" else 0)
    vma = world.vma(swap(6 if why == "short mapping" else 16), flags=flags,
                    pages=6 if why == "short mapping" else 16)  # fmt: skip
    if why == "unplaced":
        for i in range(4):
            world.table(vma).ptes.raw[4 + i] = leaf_pte(Leaf.SWAP, unplaced_entry(0, i + 50), 0x90)
            world.kernel.swap.hold(unplaced_entry(0, i + 50))
    elif why == "short mapping":
        run_of(world, vma, 4, 2, 64)
    else:
        run_of(world, vma, 4, 4, 64)
    if why == "not synchronous":
        world.kernel.swap.synchronous = False
    elif why == "cached":
        world.kernel.swap.add_to_cache(67, Folio(Pfn(1)), 1)
    elif why == "bits":
        world.table(vma).ptes.raw[6] ^= 1 << 5
    assert read(world, vma, 4) == 0


@pytest.mark.parametrize("advised", [False, True])
def test_without_a_block_smaller_ones_are_tried_and_advised_memory_may_compact(
    advised: bool,
) -> None:
    world = World(geometry=TINY, orders={2, 3}, free={0: 8, 2: 1}, enabled=Enabled.MADVISE)
    vma = world.vma(swap(16), flags=VM_DEFAULT | (VM_HUGEPAGE if advised else 0))
    run_of(world, vma, 0, 8, 64)
    assert read(world, vma, 0) == (3 if advised else 2)
    assert world.kernel.vmstat.mthp[3, "swpin_fallback"] == (not advised)
    assert world.kernel.vmstat.mthp[3 if advised else 2, "swpin"] == 1


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_what_cannot_be_charged_is_put_back(limit: int) -> None:
    world = World(geometry=TINY, orders={2}, free={2: 4})
    memcg = world.mm.memcg = world.kernel.new_memcg("g", limit=limit)
    vma = world.vma(swap(16))
    run_of(world, vma, 0, 4, 64)
    assert read(world, vma, 0) == {0: None, 1: 0, 4: 2}[limit]
    assert world.kernel.vmstat.mthp[2, "swpin_fallback_charge"] == (limit < 4)
    assert memcg.usage.value == limit
    assert len(world.kernel.swap.cache) == limit
    assert world.mem.allocator.nodes[0].free_frames() == 16 - limit


@pytest.mark.parametrize("profile", [V7_3, PMD_ONLY])
def test_a_large_folio_needs_its_list_where_the_kernel_asks(profile: object) -> None:
    world = World(geometry=TINY, orders={2}, profile=V7_3 if profile is V7_3 else PMD_ONLY)
    world.mm.memcg = world.kernel.new_memcg("g")
    world.mm.memcg.defer = True
    vma = world.vma(swap(16))
    run_of(world, vma, 0, 4, 64)
    assert read(world, vma, 0) == (0 if profile is V7_3 else 2)


def test_a_slot_that_cannot_be_read_leaves_a_page_that_is_not_up_to_date() -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(2))
    world.kernel.swap.failing.add(1)
    for page, good in ((0, False), (1, True)):
        assert read(world, vma, page) == 0
        folio = world.kernel.swap.cache[1 + 2 * page]
        assert world.mem.test(folio, PG_UPTODATE) is good


def test_a_folio_leaves_the_swap_cache_in_a_step_at_its_slot() -> None:
    world = World(geometry=TINY)
    device = world.kernel.swap
    cached = world.cache_swapped(world.vma(swap(2)), 1, locked=True)
    world.mem.folio_get(cached)
    steps: list[tuple[Access, int, bool]] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if word is device:
            steps.append((access, bits, 3 in device.cache))

    world.kernel.machine.on_step = hook
    swap_cache_del_folio(world.kernel, cached)
    assert steps == [(Access.RMW, 1 << 3, True)] and device.cache == {}
