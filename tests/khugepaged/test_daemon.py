# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged's loop: slots, cursor, budget, sleeps, and mms that come and go."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.mm_types import (
    MMF_DISABLE_THP_COMPLETELY,
    MMF_DISABLE_THP_EXCEPT_ADVISED,
    MMF_VM_HUGEPAGE,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE, VM_NOHUGEPAGE
from mthp.words.events import Event, KhugepagedScan, ScanPmd, Slept
from mthp.words.profiles import PMD_ONLY
from mthp.words.results import KernelBug, ScanResult
from mthp.words.settings import Enabled
from tests.small_worlds import TINY, World, hole, huge, scans, small

NR = 16


def visits(events: list[Event]) -> list[tuple[int, int, bool]]:
    """(mm, progress, full scan finished) of each visit."""
    return [
        (e.mm, e.progress, e.full_scan_finished) for e in events if isinstance(e, KhugepagedScan)
    ]


def tables(events: list[Event]) -> list[int]:
    return [e.address for e in events if isinstance(e, ScanPmd)]


def sparse_world(tables: int, **knobs: object) -> World:
    """Tables that the scan refuses, each after `progress` entries: nothing drops the lock."""
    world = World(geometry=TINY, max_ptes_none=0, **knobs)  # type: ignore[arg-type]
    world.vma(*[small(1), hole(NR - 1)] * tables)
    return world


def test_a_wakeup_ends_at_the_second_round() -> None:
    world = World(geometry=TINY)
    world.vma(small(NR))
    events = world.scan()
    # One visit collapses and drops the lock, the next finds the end.
    assert visits(events) == [(1000, NR + 1, False), (1000, 1, True)]
    assert world.khugepaged.full_scans == 1
    assert world.khugepaged.pages_collapsed == 1
    assert world.khugepaged.mm_slot is None


def test_pages_to_scan_ends_a_wakeup_and_the_cursor_stays() -> None:
    """Each table costs 2 (the second entry is one too many), each visit one more."""
    world = sparse_world(5, pages_to_scan=5)
    seen = [tables(world.scan()) for _ in range(4)]
    base, size = 0x40000000, 1 << 16
    assert [[(a - base) // size for a in wakeup] for wakeup in seen] == [
        [0, 1],
        [2, 3],
        [4, 0],
        [1, 2],
    ]
    assert world.khugepaged.full_scans == 1
    assert world.khugepaged.address == base + 3 * size


def test_the_budget_counts_entries_or_tables_by_profile() -> None:
    world = sparse_world(5, pages_to_scan=2 * NR, profile=PMD_ONLY)
    assert len(tables(world.scan())) == 2
    assert world.khugepaged.cc.progress == 2 * NR + 1


def test_a_pmd_without_a_table_costs_one() -> None:
    world = World(geometry=TINY, pages_to_scan=3)
    vma = world.vma(pages=8 * NR)
    world.fill(vma, 0, huge(4))
    events = world.scan()
    assert scans(events) == [ScanResult.PMD_MAPPED, ScanResult.NO_PTE_TABLE]
    assert visits(events) == [(1000, 3, False)]


def test_vmas_that_do_not_count_cost_one_each() -> None:
    world = World(geometry=TINY)
    for n, flags in enumerate((VM_DEFAULT | VM_NOHUGEPAGE, VM_DEFAULT, VM_DEFAULT | VM_NOHUGEPAGE)):
        world.vma(small(1), flags=flags, at=0x40000000 + n * 0x100000, pages=NR, anon_vma=n != 1)
    assert visits(world.scan()) == [(1000, 4, True)]


def test_unaligned_edges_are_left_alone() -> None:
    world = World(geometry=TINY)
    world.vma(small(3 * NR - 2), at=0x40001000, pages=3 * NR - 2)
    assert tables(world.scan()) == [0x40010000]


def test_a_busy_mm_is_skipped_until_the_next_full_scan() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR))
    other = world.process()
    theirs = world.vma(small(NR), mm=other)
    world.held_by_another(world.mm.mmap_write_lock)
    events = world.scan()
    assert visits(events)[0] == (1000, 0, False)
    assert world.orders(vma) == [0] * NR
    assert world.orders(theirs) == [4]
    assert world.khugepaged.full_scans == 1
    mine, world.kernel.machine.current = world.kernel.machine.current, world.kernel.machine.current
    world.mm.mmap_lock.word.value = 0
    world.scan()
    assert world.orders(vma) == [4]
    assert mine.held == []


def test_a_reader_does_not_keep_it_away() -> None:
    world = World(geometry=TINY)
    world.vma(hole(NR))
    world.held_by_another(world.mm.mmap_read_lock)
    assert visits(world.scan()) == [(1000, NR + 1, True)]


def test_the_second_failed_allocation_cancels_the_wakeup() -> None:
    world = World(geometry=TINY, free={0: 4}, defrag=False, alloc_sleep_millisecs=123)
    world.vma(*[small(NR)] * 4)
    events = world.scan()
    assert scans(events) == [ScanResult.ALLOC_HUGE_PAGE_FAIL] * 2
    assert [e for e in events if isinstance(e, Slept)] == [Slept("alloc_sleep", 123)]
    assert world.khugepaged.full_scans == 0
    assert world.khugepaged.address == 0x40020000
    # A new wakeup may sleep again.
    assert len(scans(world.scan())) == 2
    assert world.khugepaged.full_scans == 0


def test_one_failed_allocation_is_slept_off() -> None:
    world = World(geometry=TINY, free={4: 1}, defrag=False)
    first = world.vma(*[small(NR)] * 2)
    events = world.scan()
    assert scans(events) == [ScanResult.SUCCEED, ScanResult.ALLOC_HUGE_PAGE_FAIL]
    assert world.khugepaged.full_scans == 1
    assert world.orders(first) == [4] + [0] * NR


def test_waiting_for_work_is_recorded() -> None:
    world = World(geometry=TINY, scan_sleep_millisecs=77)
    world.khugepaged.khugepaged_wait_work()
    assert world.kernel.events == [Slept("scan_sleep", 77)]


def test_several_mms_in_the_order_of_their_registration() -> None:
    world = World(geometry=TINY)
    vmas = [world.vma(small(NR))]
    vmas += [world.vma(small(NR), mm=world.process()) for _ in range(2)]
    events = world.scan()
    assert [mm for mm, _, _ in visits(events)] == [1000, 1000, 1001, 1001, 1002, 1002]
    assert [finished for *_, finished in visits(events)] == [False] * 5 + [True]
    assert [world.orders(vma) for vma in vmas] == [[4]] * 3
    assert world.khugepaged.full_scans == 1


def test_a_full_scan_may_take_many_wakeups() -> None:
    world = World(geometry=TINY, pages_to_scan=1)
    world.vma(*[small(NR)] * 3)
    for n in range(3):
        assert len(scans(world.scan())) == 1
        assert world.khugepaged.full_scans == 0, n
    assert scans(world.scan()) == []
    assert world.khugepaged.full_scans == 1


def test_no_work_where_nothing_is_registered_or_enabled() -> None:
    world = World(geometry=TINY, enabled=Enabled.NEVER, orders=())
    world.vma(small(NR))
    assert world.scan() == []
    world = World(geometry=TINY)
    world.khugepaged.khugepaged_exit(world.mm)
    assert world.scan() == []
    assert world.khugepaged.full_scans == 0


def test_entering_needs_a_vma_that_can_be_collapsed() -> None:
    world = World(geometry=TINY)
    daemon = world.khugepaged
    daemon.khugepaged_exit(world.mm)
    assert world.mm.flags.value & MMF_VM_HUGEPAGE == 0
    vma = world.vma(small(NR), flags=VM_DEFAULT | VM_NOHUGEPAGE)
    daemon.khugepaged_enter_vma(vma, vma.vm_flags)
    assert daemon.mm_slots == []
    daemon.khugepaged_enter_vma(vma, VM_DEFAULT)
    daemon.khugepaged_enter(world.mm)
    assert daemon.mm_slots == [world.mm]
    assert world.mm.flags.value & MMF_VM_HUGEPAGE


def test_nobody_enters_after_the_last_user_left() -> None:
    world = World(geometry=TINY)
    mm = world.kernel.new_mm(7)
    mm.mm_users.write(0)
    with pytest.raises(KernelBug, match="last user"):
        world.khugepaged.khugepaged_enter(mm)


def test_leaving_under_the_cursor_waits_and_the_daemon_forgets_the_mm() -> None:
    world = World(geometry=TINY, pages_to_scan=1)
    world.vma(*[small(NR)] * 3)
    other = world.vma(small(NR), mm=world.process())
    world.scan()
    assert world.khugepaged.mm_slot is world.mm
    world.mm.mm_users.write(0)
    world.khugepaged.khugepaged_exit(world.mm)
    assert world.mm in world.khugepaged.mm_slots
    world.scan(2)
    assert world.khugepaged.mm_slots == [other.vm_mm]
    assert world.orders(other) == [4]


def test_an_mm_that_exits_during_its_visit_is_left_at_once() -> None:
    world = World(geometry=TINY)
    vma = world.vma(*[small(NR)] * 2)
    world.before_lock(world.mm.mmap_lock, 3, lambda: world.mm.mm_users.write(0))
    assert scans(world.scan()) == [ScanResult.ANY_PROCESS]
    assert world.khugepaged.mm_slots == []
    assert world.orders(vma) == [0] * 2 * NR
    assert world.khugepaged.full_scans == 1


def test_an_mm_that_exits_between_two_mappings_is_left_there() -> None:
    world = World(geometry=TINY)
    world.vma(anon_vma=False)
    vma = world.vma(small(NR), at=0x50000000)
    seen = 0

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        nonlocal seen
        seen += word is world.mm.mm_users
        if seen == 3:  # before the visit, at the first mapping, at the second
            world.mm.mm_users.value = 0

    world.kernel.machine.on_step = hook
    events = world.scan()
    assert scans(events) == []
    assert visits(events) == [(world.mm.number, 3, True)]  # one for the visit and for each mapping
    assert world.orders(vma) == [0] * NR


@pytest.mark.parametrize(
    ("flag", "flags", "collapses"),
    [
        (MMF_DISABLE_THP_COMPLETELY, VM_DEFAULT, False),
        (MMF_DISABLE_THP_COMPLETELY, VM_DEFAULT | VM_HUGEPAGE, False),
        (MMF_DISABLE_THP_EXCEPT_ADVISED, VM_DEFAULT, False),
        (MMF_DISABLE_THP_EXCEPT_ADVISED, VM_DEFAULT | VM_HUGEPAGE, True),
    ],
)
def test_prctl_modes(flag: int, flags: int, collapses: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR), flags=flags)
    world.mm.mm_flags_set(flag)
    assert bool(scans(world.scan())) is collapses
    assert world.orders(vma) == ([4] if collapses else [0] * NR)
    assert world.khugepaged.full_scans == 1


def test_a_wakeup_starts_by_draining_every_cpu() -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(NR))
    folio = world.folio(vma, 3)
    world.off_lru(vma, 3)
    world.mem.refcount.raw[folio] += 1
    world.kernel.cpus[1].lru_add.value = (folio,)
    world.scan()
    assert world.orders(vma) == [4]


def test_the_batch_lives_through_the_tables_of_a_pass() -> None:
    """Sources of a collapse pass through the batch and are freed when it is flushed."""
    world = World(geometry=TINY, orders={2}, max_ptes_none=15)
    vma = world.vma(small(1), hole(NR - 1), small(1), hole(NR - 1))
    first, second = world.folio(vma, 0), world.folio(vma, NR)
    world.scan()
    # The folio of each window is large and flushes the batch when it is added.
    assert world.kernel.this_cpu.lru_add.value == ()
    assert world.mem.refcount.raw[first] == world.mem.refcount.raw[second] == 0


def test_before_the_first_wakeup_the_cursor_stands_nowhere() -> None:
    daemon = World(geometry=TINY).khugepaged
    assert (daemon.mm_slot, daemon.address) == (None, 0)
    assert (daemon.full_scans, daemon.pages_collapsed, daemon.cc.progress) == (0, 0, 0)


def test_a_vma_registers_its_mm_where_anything_may_be_collapsed() -> None:
    """khugepaged_enter_vma(): the mm is put on the list once, unless the daemon has no work at all or
    the VMA none for it."""
    for enabled, flags, enters in (
        (Enabled.ALWAYS, VM_DEFAULT, True),
        (Enabled.ALWAYS, VM_DEFAULT | VM_NOHUGEPAGE, False),
        (Enabled.NEVER, VM_DEFAULT, False),
    ):
        world = World(geometry=TINY, orders=(), enabled=enabled)
        world.settings(sizes=dict.fromkeys(TINY.anon_orders, Enabled.INHERIT))
        mm = world.kernel.new_mm(7)
        vma = world.vma(small(NR), mm=mm, flags=flags)
        for _ in range(2):
            world.khugepaged.khugepaged_enter_vma(vma, vma.vm_flags)
        assert world.khugepaged.mm_slots == [world.mm, mm][: 1 + enters]
        assert bool(mm.flags.value & MMF_VM_HUGEPAGE) is enters
