# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise(MADV_COLLAPSE): its errnos, what it ignores, and where it stops."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from mthp.khugepaged.madvise import (
    GO_ON,
    THP,
    do_madvise_collapse,
    madvise_collapse,
    madvise_collapse_errno,
)
from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY, MMF_DISABLE_THP_EXCEPT_ADVISED, Vma
from mthp.mm.page_flags import PG_ANON, PG_LRU
from mthp.mm.pgtable_types import UFFD_WP, Leaf
from mthp.mm.vm_flags import VM_DEFAULT, VM_NOHUGEPAGE, VM_UFFD_WP
from mthp.words.results import KernelBug, ScanResult
from mthp.words.settings import Enabled
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    attempts,
    hole,
    huge,
    lazyfree,
    leaf,
    no_table,
    old,
    scans,
    shared,
    small,
    swap,
    zero,
)

NR = 16
R = ScanResult


def strict() -> World:
    """Every size off, every limit 0: none of it concerns MADV_COLLAPSE."""
    return World(
        geometry=TINY, orders=(), enabled=Enabled.NEVER, max_ptes_none=0, max_ptes_swap=0,
        max_ptes_shared=0, defrag=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "pieces",
    [
        (small(NR),),
        (small(1), hole(NR - 1)),
        (zero(NR),),
        (hole(NR),),
        (old(NR),),
        (shared(NR),),
        (swap(NR),),
        (lazyfree(NR),),
        (huge(4),),
    ],
    ids=lambda pieces: pieces[0].kind.name + str(len(pieces)),
)
def test_sysfs_limits_and_age_do_not_matter(pieces: tuple[Piece, ...]) -> None:
    world = strict()
    vma = world.vma(*pieces)
    before = world.census()
    assert world.madvise(vma) == 0
    assert world.orders(vma) == [4]
    assert world.kernel.events[-1].status in THP  # type: ignore[union-attr]
    assert world.khugepaged.pages_collapsed == 0
    world.assert_sound(before)


def test_only_the_pmd_order() -> None:
    world = World(geometry=TINY, orders={2, 3})
    vma = world.vma(small(NR))
    assert world.madvise(vma) == 0
    assert attempts(world.kernel.events) == [(4, R.SUCCEED)]


def unaffordable(world: World, vma: Vma) -> None:
    world.mm.memcg = world.kernel.new_memcg("full", limit=1)


def starve(world: World, vma: Vma) -> None:
    for node in world.mem.allocator.nodes:
        node.endless = False


def unmap_before(nth: int) -> Callable[[World, Vma], None]:
    return lambda world, vma: world.before_lock(
        world.mm.mmap_lock, nth, lambda: world.mm.unlink_vma(vma)
    )


@pytest.mark.parametrize(
    ("pieces", "meddle", "error"),
    [
        ((small(NR),), starve, errno.ENOMEM),
        ((small(NR),), unaffordable, errno.EBUSY),
        ((small(15), small(refs=1)), None, errno.EAGAIN),
        ((small(NR),), lambda w, v: w.lock(v, 3), errno.EAGAIN),
        ((small(15), small(flags_without=PG_LRU)), None, errno.EAGAIN),
        ((small(15), swap()), lambda w, v: w.cache_swapped(v, 15, locked=True), errno.EAGAIN),
        ((no_table(NR),), None, errno.EINVAL),
        ((small(15), small(plus=UFFD_WP)), None, errno.EINVAL),
        ((small(15), small(flags_without=PG_ANON)), None, errno.EINVAL),
        ((small(15), leaf(Leaf.GUARD)), None, errno.EINVAL),
        ((small(15), small(poisoned=True)), None, errno.EINVAL),
        ((small(NR),), unmap_before(2), errno.EINVAL),
        ((small(NR),), unmap_before(3), errno.EINVAL),
    ],
)
def test_errnos(pieces: tuple[Piece, ...], meddle: object, error: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(*pieces)
    if callable(meddle):
        meddle(world, vma)
    before = world.census()
    assert world.madvise(vma) == -error
    world.kernel.machine.on_step = None
    world.assert_sound(before, aborted=True)


def test_every_result_has_its_errno() -> None:
    by_errno = {
        errno.ENOMEM: {R.ALLOC_HUGE_PAGE_FAIL},
        errno.EBUSY: {R.CGROUP_CHARGE_FAIL, R.EXCEED_NONE_PTE},
        errno.EAGAIN: {
            R.PAGE_COUNT, R.PAGE_LOCK, R.PAGE_LRU, R.DEL_PAGE_LRU, R.PAGE_FILLED,
            R.PAGE_HAS_PRIVATE, R.PAGE_DIRTY_OR_WRITEBACK,
        },
    }  # fmt: skip
    for result in ScanResult:
        expected = [error for error, results in by_errno.items() if result in results]
        assert madvise_collapse_errno(result) == -(expected[0] if expected else errno.EINVAL)


def test_a_uffd_armed_vma_may_not_grow() -> None:
    """Its none limit is 0 even here, whatever max_ptes_none says."""
    world = World(geometry=TINY, max_ptes_none=15)
    assert (
        world.madvise(world.vma(small(15), hole(), flags=VM_DEFAULT | VM_UFFD_WP)) == -errno.EBUSY
    )
    full = world.vma(small(NR), flags=VM_DEFAULT | VM_UFFD_WP, at=0x50000000)
    assert world.madvise(full) == 0


@pytest.mark.parametrize(
    ("flags", "flag", "error"),
    [
        (VM_DEFAULT | VM_NOHUGEPAGE, 0, errno.EINVAL),
        (VM_DEFAULT, MMF_DISABLE_THP_COMPLETELY, errno.EINVAL),
        (VM_DEFAULT, MMF_DISABLE_THP_EXCEPT_ADVISED, 0),
    ],
)
def test_who_may_ask(flags: int, flag: int, error: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR), flags=flags)
    world.mm.mm_flags_set(flag)
    assert world.madvise(vma) == -error


def test_a_vma_without_an_aligned_table_or_anon_vma() -> None:
    world = World(geometry=TINY)
    assert world.madvise(world.vma(small(15), pages=15)) == -errno.EINVAL
    assert world.madvise(world.vma(hole(NR), at=0x50000000, anon_vma=False)) == -errno.EINVAL


def test_a_range_without_an_aligned_table_is_fine() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR), small(NR))
    assert madvise_collapse(vma, vma.vm_start + 0x1000, vma.vm_start + 0x1F000) == 0
    assert world.kernel.events == []
    assert madvise_collapse(vma, vma.vm_start + 0x1000, vma.vm_end) == 0
    assert world.orders(vma) == [0] * NR + [4]


def test_a_range_that_leaves_the_vma_is_a_bug() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR))
    with pytest.raises(KernelBug, match="leaves"):
        madvise_collapse(vma, vma.vm_start, vma.vm_end + 1)
    assert world.kernel.machine.current.held == []


def test_it_goes_on_after_some_refusals_and_stops_at_others() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(15), small(refs=1), no_table(NR), small(NR))
    assert world.madvise(vma) == -errno.EINVAL
    assert scans(world.kernel.events) == [R.PAGE_COUNT, R.NO_PTE_TABLE, R.SUCCEED]
    world = World(geometry=TINY)
    vma = world.vma(small(15), small(flags_without=PG_ANON), small(NR))
    assert world.madvise(vma) == -errno.EINVAL
    assert scans(world.kernel.events) == [R.PAGE_ANON]
    assert R.EXCEED_NONE_PTE not in GO_ON


def test_the_errno_is_of_the_last_refusal() -> None:
    world = World(geometry=TINY)
    vma = world.vma(no_table(NR), small(15), small(refs=1), small(NR))
    assert world.madvise(vma) == -errno.EAGAIN


def test_a_vma_that_shrinks_on_the_way_asks_for_less() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR), small(NR), small(NR))

    def shrink() -> None:
        world.mm.vma_set_range(vma, vma.vm_start, vma.vm_end - world.geometry.pmd_size)

    world.before_lock(world.mm.mmap_lock, 4, shrink)  # 1 madvise, 2 and 3 the first collapse
    assert world.madvise(vma) == 0
    assert world.orders(vma) == [4, 4]


def test_a_vma_that_goes_on_the_way_is_an_error() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR), small(NR))
    world.before_lock(world.mm.mmap_lock, 4, lambda: world.mm.unlink_vma(vma))
    assert world.madvise(vma) == -errno.EINVAL
    assert world.kernel.machine.current.held == []
    assert world.mm.mmap_lock.word.value == 0


def walked(world: World, start: int, tables: int) -> int:
    return do_madvise_collapse(world.mm, start, tables * world.geometry.pmd_size)


def test_the_call_walks_mappings_and_goes_on_behind_a_gap() -> None:
    world = World(geometry=TINY)
    size = world.geometry.pmd_size
    one = world.vma(small(NR))
    two = world.vma(small(NR), at=one.vm_end)
    three = world.vma(small(NR), at=two.vm_end + size)
    assert walked(world, one.vm_start, 2) == 0
    assert walked(world, one.vm_start - size, 2) == -errno.ENOMEM
    assert walked(world, one.vm_start, 4) == -errno.ENOMEM
    assert [world.orders(vma) for vma in (one, two, three)] == [[4]] * 3
    assert walked(world, three.vm_end, 1) == -errno.ENOMEM
    assert world.kernel.machine.current.held == []


def test_the_call_ends_at_the_first_mapping_that_refuses() -> None:
    world = World(geometry=TINY)
    one = world.vma(small(NR), flags=VM_DEFAULT | VM_NOHUGEPAGE)
    two = world.vma(small(NR), at=one.vm_end)
    assert walked(world, one.vm_start - 1 * world.geometry.pmd_size, 3) == -errno.EINVAL
    assert world.orders(two) == [0] * NR


def test_the_range_of_a_call() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR))
    assert do_madvise_collapse(world.mm, vma.vm_start, 0) == 0
    assert do_madvise_collapse(world.mm, vma.vm_start + 1, 64) == -errno.EINVAL
    assert do_madvise_collapse(world.mm, vma.vm_start, 2**64 - vma.vm_start) == -errno.EINVAL
    assert world.orders(vma) == [0] * NR
    assert do_madvise_collapse(world.mm, vma.vm_start, world.geometry.pmd_size - 1) == 0
    assert world.orders(vma) == [4]


def test_it_drains_all_batches_first() -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(NR))
    folio = world.folio(vma, 3)
    world.off_lru(vma, 3)
    world.mem.refcount.raw[folio] += 1
    world.kernel.cpus[1].lru_add.value = (folio,)
    assert world.madvise(vma) == 0
