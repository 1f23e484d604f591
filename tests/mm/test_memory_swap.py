# SPDX-License-Identifier: GPL-2.0-or-later
"""Swapped pages come back."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.memory import handle_user_fault
from mthp.mm.memory_swap import VmFault, do_swap_page
from mthp.mm.mm_types import MM_SWAPENTS, Vma
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PAGE_HWPOISON, PG_LOCKED, PG_SWAPCACHE
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_pte,
    pte_pfn,
    pte_present,
)
from mthp.mm.rmap import new_anon_folio
from mthp.mm.vm_flags import VM_DEFAULT, VM_READ, VM_SOFTDIRTY, VM_UFFD_WP
from mthp.races.stage import FILE
from mthp.races.world import RaceWorld
from mthp.worlds.build import mapped_frame
from tests.small_worlds import (
    ON_LRU,
    TINY,
    World,
    hole,
    leaf,
    small,
    swap,
    zero,
)


def swapped_in(world: World, vma: Vma, page: int) -> VmFault:
    """do_swap_page() of one page."""
    address = world.address(vma, page)
    pmd = pmd_ptr(world.mm, address)
    assert pmd is not None
    entry = world.table(vma, address).ptes.raw[world.geometry.pte_index(address)]
    hold = world.mm.mmap_read_lock()
    result = do_swap_page(world.mm, vma, address, pmd, entry, hold)
    assert hold.active is (result is not VmFault.RETRY)
    if hold.active:
        hold.release()
    assert world.kernel.machine.current.held == []
    assert world.kernel.pte_maps == 0
    return result


@pytest.mark.parametrize(
    ("kind", "result"),
    [(Leaf.MIGRATION, VmFault.DONE), (Leaf.GUARD, VmFault.ERROR), (Leaf.HWPOISON, VmFault.ERROR)],
)
def test_what_is_no_swap_entry(kind: Leaf, result: VmFault) -> None:
    world = World(geometry=TINY)
    vma = world.vma(leaf(kind))
    assert swapped_in(world, vma, 0) is result


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("uffd", [False, True])
@pytest.mark.parametrize("flags", [VM_DEFAULT, VM_READ, VM_DEFAULT | VM_UFFD_WP])
@pytest.mark.parametrize("cached", [False, True])
def test_a_page_comes_back_with_its_rights(
    shared: bool, uffd: bool, flags: int, cached: bool
) -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(1, uffd=uffd, shared=shared), flags=flags)
    content = world.kernel.swap.contents[1]
    if cached:
        world.cache_swapped(vma, 0)
    assert swapped_in(world, vma, 0) is VmFault.DONE
    pte = world.table(vma).ptes.raw[0]
    assert world.mem.content.raw[pte_pfn(pte)] == content
    protected = uffd and flags & VM_UFFD_WP
    writable = not shared and flags != VM_READ and not protected
    assert bool(pte & WRITE) is bool(writable)
    assert bool(pte & UFFD_WP) is uffd and pte & SOFT_DIRTY and pte & YOUNG
    exclusive = world.mem.page_flags.raw[pte_pfn(pte)] & PAGE_ANON_EXCLUSIVE
    assert bool(exclusive) is not shared
    assert world.kernel.swap.users == {} and world.kernel.swap.cache == {}
    assert world.kernel.vmstat.events["pgmajfault"] == (not cached)
    assert world.mm.counters["MM_ANONPAGES"] == 1
    assert world.mem.refcount.raw[pte_pfn(pte)] == 2 - cached  # a batch's, if it is new


def test_the_soft_dirty_mark_decides_whether_stores_must_fault() -> None:
    for flags, writable in ((VM_DEFAULT, False), (VM_DEFAULT | VM_SOFTDIRTY, True)):
        world = World(geometry=TINY)
        vma = world.vma(swap(1), flags=flags)
        world.table(vma).ptes.raw[0] &= ~SOFT_DIRTY
        assert swapped_in(world, vma, 0) is VmFault.DONE
        assert bool(world.table(vma).ptes.raw[0] & WRITE) is writable


def test_a_locked_page_lets_go_of_mmap_lock() -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(1))
    cached = world.cache_swapped(vma, 0, locked=True)
    before = world.mem.refcount.raw[cached]
    assert swapped_in(world, vma, 0) is VmFault.RETRY
    assert world.mem.refcount.raw[cached] == before


def test_a_page_that_is_being_freed_in_the_swap_cache_is_looked_for_again() -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(1))
    world.mem.refcount.raw[world.cache_swapped(vma, 0)] = 0
    before = world.census().entries
    assert swapped_in(world, vma, 0) is VmFault.DONE
    assert world.census().entries == before


def test_a_page_that_leaves_the_swap_cache_before_it_is_locked_is_let_go() -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(1))
    cached = world.cache_swapped(vma, 0)
    mem, device = world.mem, world.kernel.swap

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if word is mem.flags and bits == PG_LOCKED and device.cache:  # another gives it up
            world.kernel.machine.on_step = None
            device.del_folio(cached, 1)
            world.kernel.machine.on_step = hook
            mem.flags.raw[cached] &= ~PG_SWAPCACHE
            mem.refcount.raw[cached] -= 1

    world.kernel.machine.on_step = hook
    assert swapped_in(world, vma, 0) is VmFault.DONE
    assert mem.refcount.raw[cached] == 0 and not mem.test(cached, PG_LOCKED)


@pytest.mark.parametrize("why", ["failed memory", "cannot be read", "no memory"])
def test_a_page_that_cannot_come_back(why: str) -> None:
    world = World(geometry=TINY, free={} if why == "no memory" else None)
    vma = world.vma(swap(2))
    if why == "failed memory":
        cached = world.cache_swapped(vma, 0)
        world.mem.page_flags.raw[cached] |= PAGE_HWPOISON
    elif why == "cannot be read":
        world.kernel.swap.failing.add(1)
    before = world.census()
    assert swapped_in(world, vma, 0) is VmFault.ERROR
    assert world.census().entries == before.entries
    assert world.kernel.swap.users == {1: 1, 3: 1}
    now = world.census()
    assert not any(flags & PG_LOCKED for flags in now.flags.values())


def test_a_slot_that_others_name_stays_in_the_swap_cache_and_one_that_nobody_names_is_given_up() -> (
    None
):
    for others in (0, 1):
        world = World(geometry=TINY)
        vma = world.vma(swap(1, shared=bool(others)))
        for _ in range(others):
            world.kernel.swap.add_user(1)
        assert swapped_in(world, vma, 0) is VmFault.DONE
        folio = world.folio(vma, 0)
        assert world.mem.test(folio, PG_SWAPCACHE) is bool(others)
        assert world.kernel.swap.users == ({1: 1} if others else {})


def test_a_device_that_reads_ahead_keeps_the_slot() -> None:
    world = World(geometry=TINY)
    world.kernel.swap.synchronous = False
    vma = world.vma(swap(1))
    assert swapped_in(world, vma, 0) is VmFault.DONE
    assert world.mem.test(world.folio(vma, 0), PG_SWAPCACHE)


@pytest.mark.parametrize(
    ("first", "page", "length", "together"),
    [
        (4, 5, 16, True),
        (4, 5, 6, False),  # another mapping has the other half of the entries
        (14, 15, 32, False),  # another table has it
        (4, 7, 16, True),
    ],
)
def test_a_large_folio_comes_back_whole_where_mapping_and_table_hold_all_of_it(
    first: int, page: int, length: int, together: bool
) -> None:
    world = World(geometry=TINY)
    vma = world.vma(hole(length), pages=length)
    other = world.vma(hole(48 - length), pages=48 - length, at=vma.vm_end)
    assert vma.anon_vma is not None
    mem, device = world.mem, world.kernel.swap
    index = world.address(vma, first) >> 12
    flags = ON_LRU | PG_SWAPCACHE
    folio = new_anon_folio(
        mem, 2, flags=flags, mapcount=0, anon_vma=vma.anon_vma.number, index=index
    )
    mem.refcount.raw[folio] = 4
    device.add_to_cache(64, folio, 4)
    for i in range(4):
        device.hold(64 + i)
        address = world.address(vma, first + i)
        mapping = vma if address < vma.vm_end else other
        ptes = world.table(mapping, address).ptes.raw
        ptes[(first + i) % 16] = leaf_pte(Leaf.SWAP, 64 + i, SOFT_DIRTY | SWP_EXCLUSIVE)
        world.mm.counters[MM_SWAPENTS] += 1
    before = world.census()
    assert swapped_in(world, vma, page) is VmFault.DONE
    mapped = [mapped_frame(world.mm, world.address(vma, first + i)) for i in range(4)]
    wanted = range(4) if together else [page - first]
    assert mapped == [folio + i if i in wanted else None for i in range(4)]
    assert world.mm.counters[MM_SWAPENTS] == 4 - len(wanted)
    assert world.check(before.outside) == []


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("content", ["hole", "zero page", "shared"])
def test_a_fault_that_another_was_faster_than_changes_nothing(content: str, write: bool) -> None:
    pieces = {"hole": hole(1), "zero page": zero(1), "shared": small(1, without=WRITE, elsewhere=1)}
    world = World(geometry=TINY)
    vma = world.vma(pieces[content])
    table = world.table(vma)
    before = world.census().outside if content != "shared" else None

    def other() -> None:
        if pte_present(table.ptes.raw[0]) and pte_pfn(table.ptes.raw[0]):
            world.zap(vma, 0, 1)
        world.fill(vma, 0, small(1))

    world.before_lock(table.ptl, 1, other)
    handle_user_fault(world.mm, vma.vm_start, write=write)
    world.kernel.machine.on_step = None
    pte = table.ptes.raw[0]
    if content == "hole" or write:
        assert pte_pfn(pte) and world.mem.mapcount.raw[pte_pfn(pte)] == 1
        assert world.mm.counters["MM_ANONPAGES"] == 1
        referenced = [pfn for pfn, refs in enumerate(world.mem.refcount.raw) if refs]
        shared = content == "shared"
        assert len(referenced) == 1 + shared
    assert before is None or world.check(before) == []
    assert world.kernel.machine.current.held == []


def test_faults_are_charged_and_given_up_where_the_cgroup_is_full() -> None:
    stage = RaceWorld.parse("pmd+memcg", "7.3", ("fault",))()
    memcg = stage.mm.memcg
    assert memcg is not None
    stage.machine.current = stage.tasks[1][0]
    memcg.limit = memcg.charged
    assert not store(stage.mm, stage.address(1), 5)
    memcg.limit += 1
    assert store(stage.mm, stage.address(1), 5)
    assert memcg.charged == memcg.limit == 2


@pytest.mark.parametrize("write", [True, False])
def test_a_hole_of_a_file_mapping_is_filled_from_the_file(write: bool) -> None:
    stage = RaceWorld.parse("pmd+file", "7.3", ("fault",))()
    stage.machine.current = stage.tasks[1][0]
    handle_user_fault(stage.mm, stage.address(1), write=write)
    assert load(stage.mm, stage.address(1)) == stage.kernel.files[FILE]
