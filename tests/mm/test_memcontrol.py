# SPDX-License-Identifier: GPL-2.0-or-later
"""The stock of a memory cgroup, and what a charge that meets the limit does."""

from __future__ import annotations

import pytest

from mthp.mm.folio import folio_putback_lru
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.mm_types import Kernel
from mthp.mm.page_counter import CHARGE_BATCH, Gfp, MemCgroup
from tests.small_worlds import TINY, World, small


def group(limit: int | None, usage: int = 0) -> MemCgroup:
    return Kernel().new_memcg("g", limit, usage)


def test_a_small_charge_takes_a_batch_and_the_next_ones_come_from_the_stock() -> None:
    memcg = group(1000)
    for pages in (4, 32, 28):
        assert memcg.charge(pages)
        assert memcg.usage.value == CHARGE_BATCH
    assert (memcg.stock, memcg.charged) == (0, 64)
    assert memcg.charge(1)
    assert (memcg.usage.value, memcg.stock, memcg.charged) == (128, 63, 65)


@pytest.mark.parametrize("pages", [64, 65, 512])
def test_a_batch_or_more_is_charged_as_it_is(pages: int) -> None:
    memcg = group(1000)
    assert memcg.charge(pages)
    assert (memcg.usage.value, memcg.stock) == (pages, 0)


def test_without_room_for_a_batch_only_the_pages_are_charged() -> None:
    memcg = group(10)
    assert memcg.charge(8)
    assert (memcg.usage.value, memcg.stock) == (8, 0)


def test_uncharging_goes_past_the_stock() -> None:
    memcg = group(1000)
    assert memcg.charge(16)
    memcg.uncharge(16)
    assert (memcg.usage.value, memcg.stock) == (48, 48)


def test_who_may_not_wait_fails_at_once() -> None:
    memcg = group(100)
    assert memcg.charge(4)
    called: list[int] = []
    assert not memcg.charge(90, Gfp.TRANSHUGE_LIGHT, lambda: called.append(1))
    assert called == []
    assert memcg.stock == 60


def test_who_may_not_wait_charges_nothing_ahead() -> None:
    memcg = group(1000)
    assert memcg.charge(4, Gfp.TRANSHUGE_LIGHT)
    assert (memcg.usage.value, memcg.stock) == (4, 0)
    assert memcg.charge(4)
    assert memcg.charge(8, Gfp.TRANSHUGE_LIGHT)
    assert (memcg.usage.value, memcg.stock) == (68, 52)


def test_who_may_wait_reclaims_and_then_drains_the_stock() -> None:
    memcg = group(100)
    assert memcg.charge(4)
    called: list[int] = []
    assert memcg.charge(90, Gfp.TRANSHUGE, lambda: called.append(1))
    assert called == [1]
    assert (memcg.usage.value, memcg.stock) == (94, 0)


def test_the_stock_stays_where_reclaim_made_room() -> None:
    memcg = group(200, usage=60)
    assert memcg.charge(4)
    assert memcg.charge(100, Gfp.TRANSHUGE, lambda: memcg.uncharge(60))
    assert (memcg.usage.value, memcg.stock) == (164, 60)


def test_reclaim_frees_what_waits_in_the_batches() -> None:
    """A page that only an LRU batch still holds is charged until the batch is drained."""
    world = World(geometry=TINY)
    memcg = world.kernel.new_memcg("g", limit=16)
    mm = world.process(memcg)
    dying, folio = world.mem.folio_alloc(0), world.mem.folio_alloc(4)
    assert dying is not None
    assert folio is not None
    assert mem_cgroup_charge(dying, mm)
    folio_putback_lru(world.mem, world.kernel.this_cpu, dying)
    assert not mem_cgroup_charge(folio, mm, Gfp.TRANSHUGE_LIGHT)
    assert mem_cgroup_charge(folio, mm)
    assert memcg.usage.value == 16


def test_the_sources_of_a_collapse_are_uncharged() -> None:
    """Of a scenario too: each collapse charges 16 pages and gives 16 back."""
    world = World(geometry=TINY)
    memcg = world.kernel.new_memcg("g", limit=32, usage=16)
    vma = world.vma(*[small()] * 16, mm=world.process(memcg))
    for i in range(16):
        world.mem.memcg.raw[world.folio(vma, i)] = memcg.number
    world.collapse(vma)
    assert memcg.usage.value == 16
