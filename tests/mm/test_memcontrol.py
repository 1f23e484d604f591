# SPDX-License-Identifier: GPL-2.0-or-later
"""A folio is charged to the cgroup of its mm, and uncharged when it is freed."""

from __future__ import annotations

from mthp.mm.folio import folio_putback_lru
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.page_counter import Gfp
from tests.small_worlds import TINY, World, small


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


def test_a_folio_is_uncharged_when_it_is_freed() -> None:
    world = World(geometry=TINY)
    memcg = world.kernel.new_memcg("g", limit=16)
    vma = world.vma(small(15), small(refs=1), mm=world.process(memcg))
    world.collapse(vma)
    assert memcg.usage.value == 0
    world.mem.refcount.raw[world.folio(vma, 15)] -= 1
    world.khugepaged.khugepaged_do_scan()
    assert memcg.usage.value == 16
