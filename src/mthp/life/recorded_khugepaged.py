# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged at its pace, over replayed address spaces.

The clear twin is khugepaged/daemon.py: mm slots, the cursor, the budget, sleeping. Kernel: mm/khugepaged.c.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from mthp.khugepaged.eligibility import hugepage_enabled, requested_orders
from mthp.life.recorded_collapse import TableCollapse
from mthp.life.recorded_pages import PageStore
from mthp.life.recorded_records import KhugepagedPoint, KhugepagedWork
from mthp.life.recorded_space import Backing, RecordedSpace, Span
from mthp.mm.huge_mm import Tva
from mthp.mm.mm_types import Kernel
from mthp.words.profiles import HugepageMadvise, Profile, ScanCost
from mthp.words.settings import Settings

MILLISECOND = 1_000_000
"""In nanoseconds: the least that passes between two wakeups, however short scan_sleep is."""


class RecordedKhugepaged:
    """The daemon of a replay, which scans the replayed processes and no others.

    slots: registered spaces, in scan order. slot, page: the cursor; slot is None between two full scans.
    due: when it wakes up, in nanoseconds; None while it waits for the first space to be registered. woken:
    that has happened, and it wakes up at once. progress: of pages_to_scan, spent in the last wakeup.
    """

    def __init__(
        self, pages: PageStore, settings: Settings, profile: Profile, *, all_young: bool = False
    ) -> None:
        self.kernel = Kernel(settings, profile)
        self.by_any_call = profile.hugepage_madvise is HugepageMadvise.ANY_CALL
        self.table = TableCollapse(pages, self.kernel, all_young=all_young)
        self.slots: list[RecordedSpace] = []
        self.slot: RecordedSpace | None = None
        self.page = 0
        self.due: int | None = None
        self.woken = False
        self.wakeups = self.full_scans = self.pages_collapsed = self.progress = self.scanned = 0
        self.points: list[KhugepagedPoint] = []
        self.frames_added = 0
        self._pages = pages
        self._requested = requested_orders(self.kernel, Tva.KHUGEPAGED)
        self._enabled = hugepage_enabled(self.kernel)
        self._bits = pages.pmd_order
        self._sleep = max(settings.scan_sleep_millisecs, 1) * MILLISECOND
        self._again: tuple[int, Counter[tuple[int, str]], Counter[str]] | None = None

    # Registering

    def orders(self, space: RecordedSpace, span: Span) -> int:
        """The orders that a mapping may be collapsed to (bitmap). Kernel: collapse_possible_orders()."""
        if span.traits.backing is not Backing.ANON or not span.anon:
            return 0
        orders = space.orders(span) & self._requested
        while orders:
            order = orders.bit_length() - 1
            if (span.end - (1 << order)) & -(1 << order) >= span.start:
                break
            orders &= ~(1 << order)
        return orders

    def enter_vma(self, space: RecordedSpace, span: Span) -> None:
        """Register a space if a mapping of it can be collapsed. Kernel: khugepaged_enter_vma()."""
        if not space.registered and self._enabled and self.orders(space, span):
            self.enter(space)

    def enter(self, space: RecordedSpace) -> None:
        """Register a space; the first one wakes the daemon up. Kernel: __khugepaged_enter()."""
        space.registered = True
        self.woken |= not self.slots and self.due is None
        self.slots.append(space)

    def exit(self, space: RecordedSpace) -> None:
        """A space ends. Kernel: __khugepaged_exit()."""
        if space in self.slots and space is not self.slot:
            self.slots.remove(space)

    # Scanning

    def wake_up(self, now: int) -> None:
        """Make a wakeup, and fall asleep. Kernel: mm/khugepaged.c, khugepaged()."""
        frames, collapsed = self._pages.frames, self.table.collapsed.total()
        stat, cursor = self.kernel.vmstat, (self.slot, self.page, len(self.slots))
        before = self.full_scans, stat.mthp.copy(), stat.events.copy()
        self.woken = False
        self._do_scan()
        self._again = None
        if self.table.collapsed.total() == collapsed and cursor == (
            self.slot,
            self.page,
            len(self.slots),
        ):
            self._again = (
                self.full_scans - before[0],
                stat.mthp - before[1],
                stat.events - before[2],
            )
        elif self.table.collapsed.total() != collapsed:
            self.frames_added += self._pages.frames - frames
            self.points.append(
                KhugepagedPoint(now, self.table.copied + self.table.filled, self.frames_added)
            )
        # khugepaged_wait_work()
        self.due = now + self._sleep if self.slots and self._enabled else None

    def wake_up_again(self, before: int, most: int) -> None:
        """Make the wakeups before a time, but no more than most, if the last one changed nothing and ended
        where it began: each is as it was."""
        if self._again is None or self.due is None or self.due >= before:
            return
        times = min(-((self.due - before) // self._sleep), most)
        full_scans, mthp, events = self._again
        self.wakeups += times
        self.full_scans += times * full_scans
        self.scanned += times * self.progress
        self.kernel.vmstat.mthp.update({key: times * count for key, count in mthp.items()})
        self.kernel.vmstat.events.update({key: times * count for key, count in events.items()})
        self.due += times * self._sleep

    def _do_scan(self) -> None:
        """Kernel: mm/khugepaged.c, khugepaged_do_scan()."""
        self.wakeups += 1
        progress_max = self.kernel.settings.pages_to_scan
        rounds = 0
        self.table.drain()
        self.progress = 0
        while self.slots and self._enabled:
            rounds += self.slot is None
            if rounds == 2:
                break
            if self.slot is None:
                self.slot, self.page = self.slots[0], 0
            self.progress += 1
            if self.slot.ended or self._scan_space(self.slot, progress_max):
                self._advance(self.slot)
            if self.progress >= progress_max:
                break
        self.scanned += self.progress

    def _advance(self, space: RecordedSpace) -> None:
        """Move the cursor on. Kernel: mm/khugepaged.c, collapse_scan_mm_slot(), collect_mm_slot()."""
        at = self.slots.index(space) + 1
        self.slot = self.slots[at] if at < len(self.slots) else None
        self.page = 0
        self.full_scans += self.slot is None
        if space.ended:
            self.slots.remove(space)

    def _scan_space(self, space: RecordedSpace, progress_max: int) -> bool:
        """Go through the mappings from the cursor on, until a lock was dropped or the budget is spent;
        whether the space is done. Kernel: mm/khugepaged.c, collapse_scan_mm_slot()."""
        size, bits = self._pages.ptrs, self._bits
        for span in space.spans[space.after(self.page) :]:
            orders = self.orders(space, span)
            if not orders:
                self.progress += 1
                continue
            start, end = -(-span.start >> bits) << bits, span.end & -size
            if self.page > end:
                self.progress += 1
                continue
            self.page = max(self.page, start)
            before = self._pages.rss
            stopped = self._scan_tables(space, span, end, orders, progress_max)
            space.anon += self._pages.rss - before
            if stopped:
                return False
        return True

    def _scan_tables(
        self, space: RecordedSpace, span: Span, end: int, orders: int, progress_max: int
    ) -> bool:
        """Scan the tables of a mapping from the cursor on; whether that is all for now. Kernel:
        mm/khugepaged.c, collapse_scan_mm_slot()."""
        size, bits = self._pages.ptrs, self._bits
        per_pte = self.kernel.profile.progress is ScanCost.PER_PTE
        there: list[int] | None = None
        while self.page < end:
            row = space.tables.get(self.page >> bits)
            if row is None:
                # NO_PTE_TABLE, up to the next table that is there, or as far as the budget goes
                there = sorted(space.tables) if there is None else there
                at = bisect_left(there, self.page >> bits)
                following = there[at] << bits if at < len(there) else end
                cost = 1 if per_pte else size
                left = max(-(-(progress_max - self.progress) // cost), 1)
                tables = min((min(following, end) - self.page) >> bits, left)
                self.page += tables << bits
                self.progress += tables * cost
                dropped = False
            else:
                found = self.table.scan(space, row, orders, locked=span.traits.locked)
                self.pages_collapsed += found.result.name == "SUCCEED"
                self.page += size
                self.progress += found.cost if per_pte else size
                dropped = found.dropped
            if dropped or self.progress >= progress_max:
                return True
        return False

    def work(self) -> KhugepagedWork:
        """What it has done."""
        table = self.table
        return KhugepagedWork(
            profile=self.kernel.profile.name,
            wakeups=self.wakeups,
            full_scans=self.full_scans,
            scanned=self.scanned,
            collapsed=dict(sorted(table.collapsed.items())),
            copied=table.copied,
            filled=table.filled,
            frames_added=self.frames_added,
            attempts=sum(
                times
                for (_, name), times in self.kernel.vmstat.mthp.items()
                if name == "collapse_alloc"
            ),
            lacking=len(table.lacking),
            points=tuple(self.points),
        )
