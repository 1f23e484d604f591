# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded life lived again under other settings.

Faults between two other events are taken together, for until the next one memory only grows.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mthp.image.recording import EventKind, FaultFlag, HowBegun, RecordedProcess, Recording
from mthp.life.recorded_calls import AT_BEGIN, Calls
from mthp.life.recorded_khugepaged import RecordedKhugepaged
from mthp.life.recorded_pages import BY_PTES, GUARD, NONE, ZERO, PageStore
from mthp.life.recorded_records import MemoryMoment, Shrunk
from mthp.life.recorded_shrink import shrink
from mthp.life.recorded_space import (
    PROT,
    PROT_WRITE,
    Backing,
    HugeAdvice,
    RecordedSpace,
    Span,
    SpanTraits,
)
from mthp.words.profiles import DEFAULT, Profile
from mthp.words.settings import Settings

MOST_TOGETHER = 4096
"""Faults that are taken together: what a curve cannot show between."""
FEW = 24
"""So few are quicker one by one."""
WORTH = 4
"""Faults for each table that are there, for it to be worth while to look which are left after the first."""
UNSEEN = Span(0, 1 << 62, SpanTraits(Backing.FILE, 7, "[unseen]"))
"""What stands for the mappings of a process of which nobody saw them."""


Watch = Callable[[int], None]


@dataclass(frozen=True)
class Meanwhile:
    """What happens beside the program. profile: of the kernel. all_young: every page counts as used, not only
    those of which a fault shows it. pressure: when shrinkers are asked for all that they can give, in
    nanoseconds. scans: whether khugepaged runs."""

    profile: Profile
    all_young: bool = False
    pressure: tuple[int, ...] = ()
    scans: bool = True

    def khugepaged(self, pages: PageStore, settings: Settings) -> RecordedKhugepaged | None:
        """The daemon of one replay."""
        if not self.scans:
            return None
        return RecordedKhugepaged(pages, settings, self.profile, all_young=self.all_young)


NOTHING = Meanwhile(DEFAULT, scans=False)


class RecordedReplay:
    """One replay of a recording under settings.

    points: time, rss, frames and huge of the curve; folios: of each, how many there are of each order. peak,
    peak_at: when folios take most; the event after it and how much had happened beside the program. end:
    before the command's first task ended; None before. nowhere: faults that found no mapping, or one that
    does not allow the access. khugepaged: None where it is not run. shrunk: each time that shrinkers were
    asked.
    """

    def __init__(
        self, recording: Recording, settings: Settings, meanwhile: Meanwhile = NOTHING
    ) -> None:
        self._recording = recording
        self._settings = settings
        self.pages = PageStore(recording.geometry.pmd_order, looks=recording.looks)
        self.khugepaged = meanwhile.khugepaged(self.pages, settings)
        self.shrunk: list[Shrunk] = []
        self._profile = meanwhile.profile
        self._pressure = deque(sorted(meanwhile.pressure))
        self._in_use: set[int] = set()
        self._look_times = recording.look_time.astype(np.int64)
        self._runs = np.concatenate([[0], np.cumsum(recording.look_runs, dtype=np.int64)]).tolist()
        self._looks = 0
        limit = 1 << (56 - recording.geometry.page_shift)
        self.calls = Calls(recording.geometry.page_shift, limit)
        self.spaces: dict[int, RecordedSpace] = {}
        self.site_faults = np.zeros(len(recording.sites), np.int64)
        self.site_pages = np.zeros(len(recording.sites), np.int64)
        self._process = recording.task_process.astype(np.int64)
        self.points: list[tuple[int, int, int, int]] = []
        self.folios: list[tuple[int, ...]] = []
        self.peak = MemoryMoment(0, 0, 0, 0, {})
        self.peak_at = 0, 0
        self.end: MemoryMoment | None = None
        self.nowhere = 0
        first = {each: task for task, each in enumerate(self._process.tolist())}
        for index, process in enumerate(recording.processes):
            if process.how in (HowBegun.THERE, HowBegun.UNSEEN):
                self._begin(index, process)
        begun = set(recording.value[recording.kind == EventKind.TASK].tolist())
        for task in range(len(self._process)):
            index = int(self._process[task])
            if task not in begun and index in first:
                self._begin(index, recording.processes[index])
                self.spaces[index].tasks += 1

    def _begin(self, index: int, process: RecordedProcess) -> None:
        if index in self.spaces:
            return
        # Of a program that others started the mappings were read a little later, if it was still there.
        known = process.vmas is not None and process.parent is None
        space = RecordedSpace(self.pages, self._settings, known, self.khugepaged)
        shift = self._recording.geometry.page_shift
        for vma in process.vmas or ():
            backing = Backing.FILE if vma.inode else Backing.ANON
            private = vma.perms[3] == "p" and not vma.path.startswith("[v")
            traits = SpanTraits(
                backing if private else Backing.OTHER,
                _prot(vma.perms),
                vma.path or "[anon]",
                _advice(vma.flags),
                reserved="nr" in vma.flags,
                accounted="ac" in vma.flags if vma.flags else vma.perms[1] == "w",
                grows=vma.path == "[stack]" or "gd" in vma.flags,
                locked="lo" in vma.flags,
                forked="dc" not in vma.flags,
                wiped="wf" in vma.flags,
            )
            space.map(vma.start >> shift, vma.end >> shift, traits)
            if vma.path == "[heap]":
                space.brk = vma.end
        self.spaces[index] = space
        given = (process.arguments or 0) >> shift
        stack = space.find(given)
        if stack is not None and given:
            space.give(stack, given)
        if process.how is HowBegun.THERE and not index:
            recording = self._recording
            space.have(
                recording.start_page.astype(np.int64), recording.start_order, recording.start_folio
            )
            for span in space.spans:
                space.enter(span)

    def run(
        self,
        until: tuple[int, int] | None = None,
        stops: Iterable[int] = (),
        watch: Watch | None = None,
    ) -> None:
        """Live up to an event, and until so much has happened beside the program. watch: is called before
        each of the events in stops, with its number."""
        kinds = self._recording.kind
        count, most = until or (len(kinds), sys.maxsize)
        marks = iter(sorted({each for each in stops if each <= count}))
        mark = next(marks, count + 1)
        begin = 0
        for edge in [*np.flatnonzero(kinds[:count] != EventKind.FAULT).tolist(), count]:
            while True:
                happens = self._meanwhile(begin, most)
                if mark == begin and watch is not None:
                    watch(mark)
                    mark = next(marks, count + 1)
                if begin == edge:
                    break
                end = min(edge, begin + MOST_TOGETHER, mark, happens)
                self._faults(begin, end)
                self._note(int(self._recording.time[end - 1]), end)
                begin = end
            if edge < count:
                self._other(edge)
                begin = edge + 1

    @property
    def beside(self) -> int:
        """How much has happened beside the program: khugepaged's wakeups, calls of shrinkers, and looks."""
        wakeups = self.khugepaged.wakeups if self.khugepaged is not None else 0
        return len(self.shrunk) + self._looks + wakeups

    def _meanwhile(self, event: int, most: int) -> int:
        """Let happen what comes before an event; before which one the next comes."""
        daemon, times = self.khugepaged, self._recording.time
        if daemon is not None and daemon.woken and event:
            daemon.due = int(times[event - 1])
        while self.beside < most:
            asked = self._pressure[0] if self._pressure else sys.maxsize
            due = daemon.due if daemon is not None and daemon.due is not None else sys.maxsize
            look = sys.maxsize
            if self._looks < len(self._look_times):
                look = int(self._look_times[self._looks])
            now = min(asked, due, look)
            at = int(np.searchsorted(times, now, side="right"))
            if at > event or at == len(times):
                return at
            if now == look:
                self._look()
                continue
            if daemon is not None and due <= asked:
                daemon.wake_up(now)
                if event < len(times):
                    before = min(int(times[event]), asked)
                    daemon.wake_up_again(before, most - self.beside)
            else:
                self._shrink(self._pressure.popleft())
            for space in self.spaces.values():
                space.peak = max(space.peak, space.anon)
            self._note(now, event)
        return len(times) + 1

    def _look(self) -> None:
        """Note the next look at which pages are zero, unless memory is asked for before it is over: it may
        have seen what was only done after that."""
        recording, look = self._recording, self._looks
        self._looks += 1
        space = self.spaces.get(int(recording.look_process[look]))
        over = not self._pressure or self._pressure[0] >= int(recording.look_until[look])
        if space is not None and over:
            runs = slice(self._runs[look], self._runs[look + 1])
            first = recording.run_page[runs].astype(np.int64)
            end = first + recording.run_pages[runs].astype(np.int64)
            space.see(look + 1, first, end, recording.run_zero[runs] > 0)

    def _shrink(self, now: int) -> None:
        """Ask shrinkers for all that they can give."""
        spaces, settings = self.spaces.values(), self._settings
        seen = self._look_times
        given = shrink(self.pages, spaces, settings, self._profile, self._in_use, now, seen)
        self.shrunk.append(given)

    def moment(self, time: int) -> MemoryMoment:
        """Memory as it is, at a time."""
        pages = self.pages
        folios = {order: count for order, count in pages.huge.items() if order and count}
        return MemoryMoment(time, pages.rss, pages.frames, pages.frames - pages.huge[0], folios)

    def _note(self, time: int, event: int) -> None:
        """Add the memory of now to the curve, where it is another. event: the next one."""
        pages = self.pages
        now, folios = (pages.rss, pages.frames), tuple(pages.huge.values())
        if self.points:
            if now == self.points[-1][1:3] and folios == self.folios[-1]:
                return
            if folios == self.folios[-1]:
                folios = self.folios[-1]  # a million points share what few differ in
        self.points.append((time, *now, pages.frames - pages.huge[0]))
        self.folios.append(folios)
        if (pages.frames, pages.rss) > (self.peak.frames, self.peak.rss):
            self.peak, self.peak_at = self.moment(time), (event, self.beside)

    # Events that are no faults

    def _other(self, event: int) -> None:
        recording = self._recording
        kind, value = int(recording.kind[event]), int(recording.value[event])
        task = int(recording.task[event])
        index = int(self._process[task])
        space = self.spaces.get(index)
        if kind == EventKind.TASK:
            child = int(self._process[value])
            if child not in self.spaces and space is not None:
                self.spaces[child] = space.fork(self._settings)
            if child in self.spaces:
                self.spaces[child].tasks += 1
        elif kind == EventKind.PROGRAM:
            self._begin(value, recording.processes[value])
            if value != index:
                self.spaces[value].tasks += 1
                self._process[task] = value
                self._leave(index)
        elif kind == EventKind.END:
            if task == 0:
                self.end = self.moment(int(recording.time[event]))
            self._leave(index)
        elif space is not None and kind in (EventKind.CALL, EventKind.RETURN):
            name = recording.calls[recording.call_kind[value]]
            if (name in AT_BEGIN) == (kind == EventKind.CALL):
                args = recording.call_args[value].tolist()
                self.calls.perform(space, name, args, int(recording.call_result[value]))
        self._note(int(recording.time[event]), event + 1)

    def _leave(self, index: int) -> None:
        """A task leaves an address space, which ends with its last one."""
        space = self.spaces.get(index)
        if space is not None:
            space.tasks -= 1
            if space.tasks <= 0:
                space.end()
                del self.spaces[index]

    # Faults

    def _faults(self, begin: int, end: int) -> None:
        recording = self._recording
        index = self._process[recording.task[begin:end]]
        if end - begin > 1 and (index != index[0]).any():
            changes = np.flatnonzero(np.diff(index)) + 1
            edges = [0, *changes.tolist(), end - begin]
        else:
            edges = [0, end - begin]
        for one, other in pairwise(edges):
            space = self.spaces.get(int(index[one]))
            if space is not None:
                self._of_space(space, begin + one, begin + other)

    def _of_space(self, space: RecordedSpace, begin: int, end: int) -> None:
        recording = self._recording
        pages = recording.value[begin:end].astype(np.int64)
        write = recording.flags[begin:end] & FaultFlag.WRITE != 0
        sites = recording.site[begin:end]
        left = np.arange(end - begin)
        if end - begin > FEW:
            left = self._together(space, pages, write, sites)
        while len(left) > FEW:
            # What a fault brings lies in its table: the first fault of each, then what is left after those.
            _, first = np.unique(pages[left] >> self.pages.pmd_order, return_index=True)
            if len(left) < WORTH * len(first):
                break
            self._singly(space, pages, write, sites, left[np.sort(first)])
            left = np.delete(left, first)
            left = left[~self._there(space, pages[left], write[left])[0]]
        self._singly(space, pages, write, sites, left)
        space.peak = max(space.peak, space.anon)

    def _singly(
        self,
        space: RecordedSpace,
        at: NDArray[np.int64],
        write: NDArray[np.bool_],
        sites: NDArray[np.uint32],
        chosen: NDArray[np.int64],
    ) -> None:
        """Take chosen faults one by one."""
        before = self.pages.rss
        for page, is_write, site in zip(
            at[chosen].tolist(), write[chosen].tolist(), sites[chosen].tolist(), strict=True
        ):
            span = space.find(page)
            if span is None:
                span = None if space.vmas_known else UNSEEN
            if span is None or span.traits.backing is Backing.OTHER:
                self.nowhere += span is None
                continue
            if not span.traits.prot & (PROT_WRITE if is_write else PROT):
                self.nowhere += 1
                continue
            if space.touch(span, page, is_write):
                self.pages.work.faults += 1
                self.site_faults[site] += 1
                self.site_pages[site] += self.pages.rss - before
                before = self.pages.rss

    def _there(
        self, space: RecordedSpace, at: NDArray[np.int64], write: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        """Which of the accesses find what they need, and what is at their pages. The clear twin is the
        beginning of RecordedSpace.touch()."""
        pages, bits = self.pages, self.pages.pmd_order
        tables, which = np.unique(at >> bits, return_inverse=True)
        rows = np.array([space.tables.get(table, -1) for table in tables.tolist()], np.int64)[which]
        low = at & (pages.ptrs - 1)
        known = rows >= 0
        state = np.where(known, pages.folio[rows, low], np.int32(NONE))
        there = (state > 0) & ~(write & (pages.guarded[rows, low] > 0))
        there |= (state == GUARD) | ((state == ZERO) & ~write)
        there &= known
        stored = there & write & (state > 0)
        pages.store(rows[stored], low[stored])
        if pages.forked:
            for row in np.unique(rows[there & (state > 0)]).tolist():
                pages.use(row, low[there & (rows == row)])
        return there, state

    def _together(
        self,
        space: RecordedSpace,
        at: NDArray[np.int64],
        write: NDArray[np.bool_],
        sites: NDArray[np.uint32],
    ) -> NDArray[np.int64]:
        """Take the faults that bring small pages, and pass over those at pages that are there; returns the
        others. The clear twin is RecordedSpace.touch()."""
        there, state = self._there(space, at, write)
        left = ~there
        small = self._small(space, at, write, left & (state <= 0))
        if small.any():
            chosen = np.flatnonzero(small)
            self._bring(space, at[chosen], write[chosen], sites[chosen])
        return np.flatnonzero(left & ~small)

    def _small(
        self,
        space: RecordedSpace,
        at: NDArray[np.int64],
        write: NDArray[np.bool_],
        asked: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which of the faults are at mappings that have none but small pages, and allow them."""
        answer = np.zeros(len(at), np.bool_)
        places = np.flatnonzero(asked)
        starts = np.array(space.starts, np.int64)
        index = np.searchsorted(starts, at[places], side="right") - 1
        for each in np.unique(index).tolist():
            if each < 0:
                continue
            span = space.spans[each]
            if span.traits.backing is Backing.OTHER or space.orders(span):
                continue
            chosen = places[(index == each) & (at[places] < span.end)]
            stores = write[chosen]
            if stores.any() and span.traits.prot & PROT_WRITE:
                space.prepare(span)
            may_load = bool(span.traits.prot) and span.traits.backing is Backing.ANON
            answer[chosen] = np.where(stores, bool(span.traits.prot & PROT_WRITE), may_load)
        return answer

    def _bring(
        self,
        space: RecordedSpace,
        at: NDArray[np.int64],
        write: NDArray[np.bool_],
        sites: NDArray[np.uint32],
    ) -> None:
        """Bring small pages, or the zero page where a load comes first, to pages where nothing is, or the
        zero page."""
        pages, bits = self.pages, self.pages.pmd_order
        tables, which = np.unique(at >> bits, return_inverse=True)
        rows = np.array([space.row(table) for table in tables.tolist()], np.int64)
        for row in rows[pages.how[rows] != BY_PTES].tolist():
            pages.split_pmd(row)
        rows, low = rows[which], at & (pages.ptrs - 1)
        _, first = np.unique(at, return_index=True)
        loads = first[~write[first]]
        loads = loads[pages.folio[rows[loads], low[loads]] == NONE]
        pages.folio[rows[loads], low[loads]] = ZERO
        stores = np.flatnonzero(write)
        _, first = np.unique(at[stores], return_index=True)
        stores = stores[np.sort(first)]
        pages.bring_small(rows[stores], low[stores])
        pages.store(rows[stores], low[stores])
        space.anon += len(stores)
        pages.work.faults += len(stores) + len(loads)
        np.add.at(self.site_faults, sites[stores], 1)
        np.add.at(self.site_faults, sites[loads], 1)
        np.add.at(self.site_pages, sites[stores], 1)


def _advice(flags: frozenset[str]) -> HugeAdvice:
    if "hg" in flags:
        return HugeAdvice.HUGEPAGE
    return HugeAdvice.NOHUGEPAGE if "nh" in flags else HugeAdvice.NONE


def _prot(perms: str) -> int:
    return sum(bit for letter, bit in zip("rwx", (1, 2, 4), strict=True) if letter in perms)
