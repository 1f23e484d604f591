# SPDX-License-Identifier: GPL-2.0-or-later
"""Source folios are locked and taken off the LRU, and go back where the window is refused."""

from __future__ import annotations

import pytest

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.isolate import (
    __collapse_huge_page_isolate as isolate,
)
from mthp.khugepaged.isolate import (
    folio_pte_referenced,
    refuses_lazyfree,
    release_pte_pages,
    vm_normal_page,
)
from mthp.mm.mm_types import Vma
from mthp.mm.page_flags import (
    PG_ISOLATED,
    PG_LOCKED,
    PG_LRU,
    PG_REFERENCED,
    PG_YOUNG,
    PG_ZONE_DEVICE,
)
from mthp.mm.pgtable import PteMap
from mthp.mm.pgtable_types import SPECIAL, YOUNG, Pte, mk_pte, zero_pte
from mthp.mm.vm_flags import VM_DEFAULT, VM_DROPPABLE
from mthp.words.events import Isolate
from mthp.words.profiles import PMD_ONLY, V7_3, Profile
from mthp.words.results import KernelBug, Refused, ScanResult
from mthp.words.units import Folio
from tests.small_worlds import TINY, World, hole, large, lazyfree, old, small, zero

KHUGEPAGED, MADVISE = map(CollapseControl, Caller)
WATCHED = pytest.mark.parametrize("watched", [False, True])


def isolated(world: World, vma: Vma, order: int, cc: CollapseControl = KHUGEPAGED) -> list[Folio]:
    """Isolate the first window of a VMA; the large folios of it."""
    table = world.table(vma)
    with PteMap(world.kernel, table, 0) as pte, table.ptl.lock():
        return isolate(vma, vma.vm_start, pte, cc, order)


def watch(world: World, watched: bool) -> None:
    world.kernel.machine.on_step = (lambda access, word, index, bits: None) if watched else None


@WATCHED
def test_every_folio_is_locked_off_the_lru_and_referenced_once_more(watched: bool) -> None:
    world = World(geometry=TINY, max_ptes_none=15)
    vma = world.vma(small(3), large(2), zero(1), hole(2), large(1), small(4))
    folios = {world.folio(vma, page) for page in (0, 1, 2, 3, 10, 12, 13, 14, 15)}
    before = {folio: world.mem.refcount.raw[folio] for folio in folios}
    watch(world, watched)
    larges = isolated(world, vma, 4)
    assert list(larges) == [world.folio(vma, 3), world.folio(vma, 10)]
    for folio in folios:
        flags = world.mem.flags.raw[folio]
        assert flags & (PG_LOCKED | PG_ISOLATED | PG_LRU) == PG_LOCKED | PG_ISOLATED
        assert world.mem.refcount.raw[folio] == before[folio] + 1
    (event,) = [e for e in world.kernel.events if isinstance(e, Isolate)]
    assert (event.none_or_zero, event.referenced) == (3, 13)


@WATCHED
@pytest.mark.parametrize("cc", [KHUGEPAGED, MADVISE])
def test_a_window_of_old_pages_is_refused_to_khugepaged_and_put_back(
    cc: CollapseControl, watched: bool
) -> None:
    world = World(geometry=TINY, max_ptes_none=15)
    vma = world.vma(old(6), hole(2), large(3, without=YOUNG))
    before = world.census()
    watch(world, watched)
    if cc is MADVISE:
        isolated(world, vma, 4, cc)
        return
    with pytest.raises(Refused, match=ScanResult.LACK_REFERENCED_PAGE.string):
        isolated(world, vma, 4, cc)
    watch(world, False)
    world.assert_sound(before, aborted=True)


def test_they_go_back_from_the_highest_address_down_and_large_ones_behind() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(3), large(1), hole(11))
    folios = [world.folio(vma, page) for page in range(3)]
    big = world.folio(vma, 3)
    larges = isolated(world, vma, 4, MADVISE)
    order: list[int] = []
    world.kernel.machine.on_step = lambda access, word, index, bits: (
        order.append(index) if word is world.mem.flags and bits == PG_LOCKED else None
    )
    with PteMap(world.kernel, world.table(vma), 0) as pte, world.table(vma).ptl.lock():
        release_pte_pages(pte, 16, list(larges) or [big])
    assert order == [*folios[::-1], big]


@WATCHED
@pytest.mark.parametrize("order", [2, 3])
def test_below_pmd_order_a_folio_of_the_window_s_size_is_left(order: int, watched: bool) -> None:
    world = World(geometry=TINY, orders={2, 3})
    vma = world.vma(large(order - 1), large(order), small(16 - (3 << order - 1)))
    watch(world, watched)
    with pytest.raises(Refused, match=ScanResult.PTE_MAPPED_HUGEPAGE.string):
        isolated(world, vma, order)
    assert world.mem.flags.raw[world.folio(vma, 0)] & PG_LOCKED == 0


def test_the_lock_of_the_table_must_be_held() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    with (
        PteMap(world.kernel, world.table(vma), 0) as pte,
        pytest.raises(KernelBug, match="must be"),
    ):
        isolate(vma, vma.vm_start, pte, KHUGEPAGED, 4)


def test_special_and_device_pages_are_not_normal() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2), large(2))
    mem, ptes = world.mem, world.table(vma).ptes.raw
    assert vm_normal_page(mem, ptes[0]) == world.folio(vma, 0)
    assert vm_normal_page(mem, ptes[4]) == world.folio(vma, 4) + 2
    assert vm_normal_page(mem, Pte(ptes[0] | SPECIAL)) is None
    assert vm_normal_page(mem, zero_pte()) is None
    mem.flags.raw[world.folio(vma, 4)] |= PG_ZONE_DEVICE
    assert vm_normal_page(mem, ptes[4]) is None


@pytest.mark.parametrize("flag", [0, PG_YOUNG, PG_REFERENCED])
@pytest.mark.parametrize("young", [0, YOUNG])
def test_a_page_was_used_if_its_folio_or_its_entry_says_so(flag: int, young: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(old(1))
    folio = world.folio(vma, 0)
    world.mem.flags.raw[folio] |= flag
    pte = mk_pte(folio, young)
    assert folio_pte_referenced(world.mem, folio, vma, vma.vm_start, pte) is bool(flag or young)


@pytest.mark.parametrize("profile", [V7_3, PMD_ONLY])
@pytest.mark.parametrize("droppable", [0, VM_DROPPABLE])
@pytest.mark.parametrize("cc", [KHUGEPAGED, MADVISE])
def test_what_madv_free_gave_up_is_kept_freeable_by_khugepaged(
    cc: CollapseControl, droppable: int, profile: Profile
) -> None:
    world = World(geometry=TINY, profile=profile)
    vma = world.vma(lazyfree(1), small(1), flags=VM_DEFAULT | droppable)
    ptes = world.table(vma).ptes.raw
    kept = cc is KHUGEPAGED and not droppable and profile is V7_3
    given_up, used = world.folio(vma, 0), world.folio(vma, 1)
    assert refuses_lazyfree(world.kernel, cc, vma, given_up, ptes[0]) is kept
    assert not refuses_lazyfree(world.kernel, cc, vma, given_up, ptes[1])
    assert not refuses_lazyfree(world.kernel, cc, vma, used, ptes[0])
