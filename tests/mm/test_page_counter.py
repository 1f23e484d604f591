# SPDX-License-Identifier: GPL-2.0-or-later
"""What a memory cgroup may use: limit, stock and reclaim."""

from __future__ import annotations

import pytest

from mthp.mm.mm_types import Kernel
from mthp.mm.page_counter import CHARGE_BATCH, Gfp, MemCgroup


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


def test_charges_stop_at_the_limit() -> None:
    memcg = group(10, 4)
    assert memcg.charge(6)
    assert not memcg.charge(1)
    memcg.uncharge(3)
    assert memcg.charge(3)
    assert memcg.usage.value == 10
    assert group(None).charge(1 << 40)


def test_reclaim_makes_room_while_it_can() -> None:
    memcg = group(10, 10)
    memcg.reclaimable = 3
    assert memcg.charge(2)
    assert (memcg.usage.value, memcg.reclaimable) == (10, 1)
    assert not memcg.charge(2)
    assert (memcg.usage.value, memcg.reclaimable) == (10, 1)
