# SPDX-License-Identifier: GPL-2.0-or-later
"""What khugepaged makes of one image under any settings: plain tables by counting, the others by the engine.

The answer is the engine's: the same windows, copies and memory at the same fixed point. One thing is not
seen: what tables that the engine is not given leave in an LRU batch, which may decide about smaller windows
at the place of one that was refused in its middle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import Pte, Snapshot
from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.eligibility import (
    collapse_possible_orders,
    collapse_test_exit_or_disable,
    hugepage_enabled,
)
from mthp.khugepaged.limits import collapse_max_ptes_none
from mthp.mm.huge_mm import Tva
from mthp.mm.mm_types import Vma
from mthp.plan.bulk import (
    Below,
    Limits,
)
from mthp.plan.occupancy import (
    TableKind,
    anonymous_pages,
    entangled,
    mapped_again,
    occupancy_of,
    partly_mapped_of,
    zeros_of,
)
from mthp.plan.packed import Bools, Counts, Tally, pages_of, tally, unpack
from mthp.plan.records import BulkVerdict, Sizes, Underused
from mthp.plan.runs import OddTables, Runs, Walk, runs_of, together_of
from mthp.plan.together import Joint, Sharing, Together
from mthp.plan.wakeups import Visits, Wakeups
from mthp.predict.outcome import Request, run_world
from mthp.predict.passes import Windows
from mthp.predict.records import PartlyMapped
from mthp.predict.timeline import elapsed_ms, others_of, scanned_pages
from mthp.vectorised.glance import passing_costs
from mthp.words.profiles import Profile
from mthp.words.results import ScanResult
from mthp.words.settings import Settings
from mthp.worlds.arrays import ImageMemcg, ImageProcess, WorldArrays
from mthp.worlds.build import build_arrays

SPARE_TABLES = 4
"""So many tables' frames more than an answer needs must be free; else the engine has to say what fails."""
_NO_MEMORY = frozenset({ScanResult.ALLOC_HUGE_PAGE_FAIL, ScanResult.CGROUP_CHARGE_FAIL})


@dataclass
class _Sum:
    """What is known so far of an answer, in pages. need: those that have to be free for it at most. counted:
    tables of which occupancy decides. highest: order that is tried. full_scans: after which nothing
    collapses. alloc_sleep_ms: slept after failed allocations. last: number of a process -> the row of the
    last counted table with something to collapse, or a later one.
    """

    windows: dict[int, int] = field(default_factory=partial(defaultdict, int))
    change: dict[int, int] = field(default_factory=partial(defaultdict, int))
    added: dict[tuple[int, int], int] = field(default_factory=partial(defaultdict, int))
    copied: int = 0
    need: int = 0
    counted: int = 0
    highest: int = 0
    full_scans: int = 1
    alloc_sleep_ms: int = 0
    failed: bool = False
    last: dict[int, int] = field(default_factory=dict)

    def add(self, other: _Sum) -> None:
        """Add what is known of other tables."""
        for order, nr in other.windows.items():
            self.windows[order] += nr
        for order, nr in other.change.items():
            self.change[order] += nr
        for where, nr in other.added.items():
            self.added[where] += nr
        self.copied += other.copied
        self.need += other.need
        self.full_scans = max(self.full_scans, other.full_scans)


class _Decided(NamedTuple):
    """Runs of plain tables under the same limits. which: those of which occupancy decides. undecided: those
    of which it does not; None for none."""

    limits: Limits
    plain: Runs
    which: Bools
    undecided: Bools | None

    def rows(self, runs: Bools) -> NDArray[np.intp]:
        """The rows of some of the runs' tables among their process's."""
        return self.plain.row[np.repeat(runs, self.plain.tables.tables)]


class Planner:
    """Answers for one image, under any settings. arrays: as arrays_of() gives them. snapshot: where the image
    is one, which knows of other processes. tally: what counts windows, which packed.compiled() does faster
    and not otherwise."""

    def __init__(
        self,
        arrays: WorldArrays,
        profile: Profile,
        settings: Settings,
        snapshot: Snapshot | None = None,
        tally: Tally = tally,
    ) -> None:
        self.snapshot = snapshot
        self.processes: list[ImageProcess] = [*arrays.processes]
        self.arrays = replace(arrays, processes=self.processes)
        self.profile = profile
        self.geometry = settings.geometry
        outside = bool(arrays.outside)
        self.tied = entangled(self.processes, self.geometry, arrays.swap_cache, outside=outside)
        again = mapped_again(self.processes)
        self.plain: list[list[Runs]] = []
        self.together: list[Runs] = []
        self.odd: list[OddTables] = []
        self.walks: list[Walk] = []
        for process, tied in zip(self.processes, self.tied, strict=True):
            found = occupancy_of(process, tied, profile, self.geometry, again)
            odd = np.isin(found.kind, (TableKind.ODD, TableKind.TOGETHER))
            self.plain.append(runs_of(found, self.geometry, tally))
            self.together.append(together_of(found.together, self.geometry))
            self.walks.append(Walk.of(process, found, self.geometry))
            counts = (found.shared, found.swapped, found.in_use, found.holes)
            self.odd.append(
                OddTables(found.row[odd], found.vma[odd], *(each[odd] for each in counts))
            )
        self.before, self.pmds, self.nodes = Sizes(), 0, {0}
        for process in self.processes:
            self._measure(process)
        self.before = +self.before
        empty = [self._part(process, np.zeros(0, np.intp)) for process in self.processes]
        self.mappings = build_arrays(
            replace(arrays, processes=empty, outside={}), settings, profile
        )
        self.wakeups: dict[tuple[object, ...], Wakeups] = {}
        runs = (len(plain.run_vma) for of_process in self.plain for plain in of_process)
        self.of_all = np.ones(max(runs, default=0), np.bool_)
        self.runs: dict[tuple[object, ...], _Sum] = {}
        self.joints: dict[tuple[bytes, int], Together] = {}

    @cached_property
    def partly_mapped(self) -> PartlyMapped:
        """Large folios of which some page is mapped and another is not, as captured."""
        return partly_mapped_of(self.processes, self.geometry)

    @cached_property
    def zero_filled(self) -> tuple[int, int] | None:
        """Bytes of pages that hold nothing but zeros, as captured, and those of them in large folios; None
        where the image does not tell of every process."""
        small, large = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for process in self.processes:
            tables = process.tables
            if tables.zero_filled is None:
                return None
            here = anonymous_pages(process, self.geometry) & tables.zero_filled
            small.append(tables.pfn[here & (tables.folio_order == 0)])
            large.append(tables.pfn[here & (tables.folio_order > 0)])
        of_small, of_large = (
            len(np.unique(np.concatenate(each))) << self.geometry.page_shift
            for each in (small, large)
        )
        return of_small + of_large, of_large

    @cached_property
    def _zeros(self) -> Counts | None:
        return zeros_of(self.processes, self.geometry)

    def underused(self, settings: Settings) -> Underused | None:
        """Huge folios that reclaim takes for underused, as captured; None where that does not tell.

        Kernel: mm/huge_memory.c, thp_underused().
        """
        if self._zeros is None:
            return None
        limit = settings.max_ptes_none
        off = limit == self.geometry.ptrs_per_pte - 1
        found = self._zeros[self._zeros > (np.inf if off else limit)]
        return Underused(len(found), int(found.sum()) << self.geometry.page_shift)

    @property
    def cpus(self) -> int:
        """Those of the machine."""
        return len(self.mappings.kernel.cpus)

    def plan(self, settings: Settings) -> BulkVerdict:
        """What khugepaged makes of the image under these settings."""
        answer = _Sum()
        orders = [*self._orders(settings)]
        odd, passed = self._scanned(orders, settings)
        joint = self._joint(orders, settings, odd, passed)
        for number, mine in enumerate(orders):
            for decided in self._decided(number, mine, joint):
                self._count(number, decided, answer)
                if decided.undecided is not None:
                    odd[number][decided.rows(decided.undecided)] = True
            self._give_up(number, mine, answer, joint)
            highest = int(mine.max(initial=0)).bit_length() - 1
            answer.highest = max(answer.highest, highest)
        others = 0
        if any(each.any() for each in odd):
            self._unshare(odd, passed, settings.max_ptes_shared)
            others = sum(map(int, map(np.count_nonzero, odd)))
        why = self._short_of_memory(answer, settings)
        if others and not why:
            run = self._run(settings, odd)
            why = "an allocation failed" if run.failed else ""
            answer.add(run)
            why = why or self._short_of_memory(answer, settings)
        if why:
            answer = self._run(settings, None)
        wakeups = self._wakeups(orders, settings)
        walked = wakeups.all, wakeups.tables
        # Of the engine's tables it is not known in which full scan the last is, nor where.
        known = not others and not why and answer.full_scans == 1 and self.arrays.cursor is None
        if known and answer.last:
            walked = wakeups.until(answer.last)
        return self._answer(settings, answer, walked, others, why)

    def _scanned(
        self, orders: list[NDArray[np.int64]], settings: Settings
    ) -> tuple[list[Bools], list[Bools]]:
        """Of each process the odd tables whose scan may come to its end, and those that are passed by as long
        as so many of their pages are shared."""
        odd, passed = ([np.zeros(len(tied), np.bool_) for tied in self.tied] for _ in range(2))
        for number, mine in enumerate(self.odd):
            if len(mine.row):
                scanned = mine.scanned(orders[number], settings)
                odd[number][mine.row], passed[number][mine.row] = scanned
        return odd, passed

    def counted(self, settings: Settings) -> list[Bools]:
        """Of each process, of which of its tables occupancy decides, where the engine does not have all."""
        found = [np.zeros(len(tied), np.bool_) for tied in self.tied]
        orders = [*self._orders(settings)]
        joint = self._joint(orders, settings, *self._scanned(orders, settings))
        for number, own in enumerate(orders):
            for decided in self._decided(number, own, joint):
                found[number][decided.rows(decided.which)] = True
        return found

    def windows(self, settings: Settings) -> Windows:
        """The windows of counted tables that collapse, one by one: pid -> (address, order), by address."""
        found: Windows = {}
        page = self.geometry.page_shift
        orders = [*self._orders(settings)]
        joint = self._joint(orders, settings, *self._scanned(orders, settings))
        for number, own in enumerate(orders):
            process = self.processes[number]
            for limits, plain, which_runs, _ in self._decided(number, own, joint):
                mine = np.repeat(which_runs, plain.tables.tables)
                tables = process.tables.table_address[plain.row[mine]].astype(np.int64)
                for order, which in plain.tables.windows(limits).items():
                    pages = unpack(pages_of(which[:, mine], order, self.geometry), self.geometry)
                    row, place = np.nonzero(pages[:, :: 1 << order])
                    addresses = tables[row] + (place << order + page)
                    windows = found.setdefault(process.pid, [])
                    windows.extend((at, order) for at in addresses.tolist())
        return {pid: sorted(windows) for pid, windows in found.items()}

    # --- plain tables -------------------------------------------------------------------------

    @cached_property
    def groups(self) -> list[list[tuple[Vma, NDArray[np.intp]]]]:
        """Of each process, mappings of which the same sizes are allowed, since they have the same flags, and
        a whole table each: one of them, and the places of all."""
        of_start = {(vma.vm_mm.number, vma.vm_start): vma for vma in self.mappings.vmas}
        found = []
        for process, walk in zip(self.processes, self.walks, strict=True):
            places_of: dict[tuple[int, bool], list[int]] = {}
            for k in np.flatnonzero(walk.spanned).tolist():
                vma = process.vmas[k]
                if vma.file is None:
                    places_of.setdefault((vma.vm_flags, vma.anon_vma), []).append(k)
            found.append(
                [
                    (of_start[process.pid, process.vmas[places[0]].start], np.array(places))
                    for places in places_of.values()
                ]
            )
        return found

    def _orders(self, settings: Settings) -> Iterator[NDArray[np.int64]]:
        """Of each process, the orders that each of its mappings may be collapsed to now: bitmaps."""
        kernel = self.mappings.kernel
        kernel.settings = settings
        for process, groups in zip(self.processes, self.groups, strict=True):
            orders = np.zeros(len(process.vmas), np.int64)
            if process.place is not None and hugepage_enabled(kernel):
                for vma, places in groups:
                    if not collapse_test_exit_or_disable(vma.vm_mm):
                        orders[places] = collapse_possible_orders(vma, vma.vm_flags, Tva.KHUGEPAGED)
            yield orders

    def _limits(self, orders: NDArray[np.int64]) -> Iterator[Limits]:
        """What the windows have to hold to, of mappings with the same orders."""
        kernel, pmd = self.mappings.kernel, self.geometry.pmd_order
        cc = CollapseControl(Caller.KHUGEPAGED)
        for mask in sorted({*orders.tolist()} - {0}):
            most = {
                order: collapse_max_ptes_none(kernel, cc, None, order)
                for order in self.geometry.anon_orders
                if mask >> order & 1
            }
            whole = most.pop(pmd, 0) or 0
            none = {*most.values()}
            below = Below.NEVER if None in none else Below.FULL if 0 in none else Below.ANY
            settings = kernel.settings
            yield Limits(mask, whole, below, settings.max_ptes_shared, settings.max_ptes_swap)

    def _counted(self, number: int, joint: Joint) -> Iterator[tuple[Runs, Bools]]:
        """The plain tables of a process, and of each run whether it is counted."""
        for plain in self.plain[number]:
            yield plain, self.of_all[: len(plain.run_vma)]
        if joint.counted:
            yield self.together[number], joint.counted[number]

    def _decided(self, number: int, orders: NDArray[np.int64], joint: Joint) -> Iterator[_Decided]:
        """The runs of a process's plain tables, by their limits. orders: as _orders() has them."""
        for limits, (plain, counted) in product(
            self._limits(orders), [*self._counted(number, joint)]
        ):
            which = (orders[plain.run_vma] == limits.orders) & counted
            undecided = plain.tables.undecided(limits)
            if undecided is not None:
                undecided &= which
                which &= ~undecided
            yield _Decided(limits, plain, which, undecided)

    def _count(self, number: int, decided: _Decided, answer: _Sum) -> None:
        """Add what becomes of runs of a process's plain tables."""
        limits, plain, which, _ = decided
        answer.counted += int(plain.tables.tables @ which)
        for order, windows, need, copied, change, last, added in plain.tables.collapsed(
            which, limits
        ):
            if not windows:
                continue
            answer.last[number] = max(last, answer.last.get(number, last))
            answer.windows[order] += windows
            answer.need += need
            answer.copied += copied
            for each, pages in change.items():
                answer.change[each] += pages
            if added is not None:
                self._add_frames(number, plain, added, answer)

    def _give_up(self, number: int, orders: NDArray[np.int64], answer: _Sum, joint: Joint) -> None:
        """Take off what the tables that share pages with others of the image are the last to give up."""
        if joint.counted:
            plain = self.together[number]
            mine = orders[plain.run_vma] != 0
            self._add_frames(number, plain, -joint.freed[number] * mine, answer)
            if mine.any():
                answer.full_scans = max(answer.full_scans, joint.full_scans)

    def _add_frames(self, number: int, plain: Runs, added: Counts, answer: _Sum) -> None:
        """Add frames that runs take to what their mappings do."""
        process = self.processes[number]
        of_vma = np.bincount(plain.run_vma, added, len(process.vmas))
        for k in np.flatnonzero(of_vma).tolist():
            answer.added[process.pid, process.vmas[k].start] += int(of_vma[k])

    # --- tables that share pages with each other ----------------------------------------------

    @cached_property
    def sharing(self) -> Sharing:
        """Which tables share small pages."""
        return Sharing.of(self.processes)

    @cached_property
    def _numbers(self) -> list[NDArray[np.intp]]:
        """Of each process, its tables that share pages with others of the image, counted through all."""
        first = np.cumsum([0, *(len(each.tables.pte) for each in self.processes)]).tolist()
        return [start + each.row for start, each in zip(first, self.together, strict=False)]

    @cached_property
    def _in_turn(self) -> NDArray[np.intp]:
        """These, in the order in which khugepaged comes to them."""
        at, from_here = self.arrays.cursor or (0, 0)
        keys = [np.zeros((3, 0), np.uint64)]
        for process, each in zip(self.processes, self.together, strict=True):
            address = process.tables.table_address[each.row]
            place = process.place or 0
            before = (place < at) | ((place == at) & (address < np.uint64(from_here)))
            keys.append(np.stack([address, np.full_like(address, place), before]))
        order = np.lexsort(np.hstack(keys))
        return np.concatenate(self._numbers)[order]

    def _joint(
        self,
        orders: list[NDArray[np.int64]],
        settings: Settings,
        odd: list[Bools],
        passed: list[Bools],
    ) -> Joint:
        """What becomes of tables that share pages with others of the image. Those of which counting does not
        tell all stay in odd and passed, the others are taken out."""
        if not any(len(each.row) for each in self.together):
            return Joint()
        whole, lower, several = (np.zeros(self.sharing.tables, np.bool_) for _ in range(3))
        for number, mine in enumerate(orders):
            plain, numbers = self.together[number], self._numbers[number]
            for limits in self._limits(mine):
                here = mine[plain.run_vma] == limits.orders
                all_of = here & (self.geometry.ptrs_per_pte - plain.tables.present <= limits.pmd)
                all_of &= bool(limits.orders >> self.geometry.pmd_order & 1)
                sizes = len(limits.lower(self.geometry.pmd_order))
                whole[numbers] |= all_of
                lower[numbers] |= here & ~all_of & (sizes == 1)
                several[numbers] |= here & ~all_of & (sizes > 1)
        few, many = np.concatenate(odd), np.concatenate(passed)
        ours = np.zeros(len(few), np.bool_)
        ours[np.concatenate(self._numbers)] = True
        engines = self.sharing.reached((few | many) & (~ours | several), whole, lower)
        alone = ours & ~engines
        ends = np.cumsum([len(each) for each in odd])[:-1]
        for each, known in zip([*odd, *passed], np.split(alone, ends) * 2, strict=True):
            each &= ~known
        turns = self._in_turn[(whole & alone)[self._in_turn]]
        key = turns.tobytes(), settings.max_ptes_shared
        if key not in self.joints:
            self.joints[key] = self.sharing.one_by_one(turns, settings.max_ptes_shared)
        found = self.joints[key]
        counted = found.collapsed | (lower & alone & few)
        return Joint(
            [counted[numbers] for numbers in self._numbers],
            [found.freed[numbers] for numbers in self._numbers],
            found.full_scans,
        )

    # --- the engine ---------------------------------------------------------------------------

    def _unshare(self, odd: list[Bools], passed: list[Bools], limit: int) -> None:
        """Add tables that are passed by for their shared pages, as far as collapses of others may leave
        them with few enough. Changes odd."""
        if not (any(map(np.any, odd)) and any(map(np.any, passed))):
            return
        scanned, rest = np.concatenate(odd), np.concatenate(passed)
        more = scanned
        while np.any(more):
            scanned = scanned | more
            more = rest & ~scanned & (self.sharing.shared_after(scanned) <= limit)
        ends = np.cumsum([len(each) for each in odd])[:-1]
        for each, of_process in zip(odd, np.split(scanned, ends), strict=True):
            each |= of_process

    def _run(self, settings: Settings, rows: list[Bools] | None) -> _Sum:
        """Run the engine over some tables, or all. What it made of them is kept."""
        if rows is not None:
            # Where the answer stands, memory is enough without defrag too: _short_of_memory() sees to it.
            settings = settings.replace(defrag=True)
        alike = settings.replace(pages_to_scan=1, scan_sleep_millisecs=0)
        none, most = settings.max_ptes_none, self.geometry.ptrs_per_pte - 1
        if rows is not None and 0 < none < most:
            # Between its ends the limit is that of whole tables, whose holes are as many all the time.
            holes = [1, *(nr for odd in self.odd for nr in odd.holes.tolist() if nr <= none)]
            alike = alike.replace(max_ptes_none=max(holes))
        key = None if rows is None else tuple(each.tobytes() for each in rows), alike
        if key not in self.runs:
            self.runs[key] = self._run_anew(settings, rows)
        return self.runs[key]

    def _run_anew(self, settings: Settings, rows: list[Bools] | None) -> _Sum:
        arrays = self.arrays
        if rows is not None:
            if any(np.any(mine & tied) for mine, tied in zip(rows, self.tied, strict=True)):
                rows = [mine | tied for mine, tied in zip(rows, self.tied, strict=True)]
            parts = [
                self._part(process, np.flatnonzero(which))
                for process, which in zip(self.processes, rows, strict=True)
            ]
            arrays = replace(arrays, processes=parts)
        world = build_arrays(arrays, settings, self.profile)
        outcome = run_world(world, Request("", "", "", changes=False))
        answer, shift = _Sum(), self.geometry.page_shift
        for (order, status), nr in outcome.attempts.items():
            if status is ScanResult.SUCCEED:
                answer.windows[order] += nr
            answer.failed |= status in _NO_MEMORY
        for vma in outcome.vmas:
            for sizes, sign in ((vma.after, 1), (vma.before, -1)):
                for order, size in sizes.items():
                    answer.change[order] += sign * (size >> shift)
            if vma.memory_added:
                answer.added[vma.pid, vma.start] = vma.memory_added >> shift
        answer.copied = outcome.copied_bytes >> shift
        # The last one of a run to the fixed point finds nothing.
        answer.full_scans = max(outcome.clock.full_scans - 1, 1)
        answer.alloc_sleep_ms = outcome.clock.alloc_sleep_ms
        answer.need = outcome.collapsed_bytes + outcome.swapped_in_bytes >> shift
        return answer

    def _part(self, process: ImageProcess, rows: NDArray[np.intp]) -> ImageProcess:
        """A process with some of its tables."""
        return replace(process, tables=process.tables.rows(rows), empty_tables=())

    # --- in all -------------------------------------------------------------------------------

    def _short_of_memory(self, answer: _Sum, settings: Settings) -> str:
        """Why allocations might fail, so that one collapse decides about the next; empty where none does."""
        spare = SPARE_TABLES * self.geometry.ptrs_per_pte
        need = answer.need + spare
        taken = sum(nr << order for order, nr in answer.windows.items()) + spare
        nodes = [node for nid, node in enumerate(self.arrays.nodes) if nid in self.nodes]
        finite = [node for node in nodes if node.free_blocks is not None]
        for node in finite:
            free = {order: nr << order for order, nr in (node.free_blocks or {}).items()}
            if sum(free.values()) - node.reserve < need:
                return "memory might run out"
            # Smaller blocks, and what is freed, are of no use; of those split less than one is lost.
            large = sum(nr for order, nr in free.items() if order >= answer.highest)
            if not settings.defrag and large - node.reserve < taken:
                return "without defrag a block has to be free"
        if len(self.arrays.nodes) > 1 and self.arrays.node_reclaim:
            return "zone_reclaim_mode refuses tables by the nodes of their pages"
        limits: list[ImageMemcg] = [*self.arrays.memcgs]
        if any(memcg.usage + need > memcg.limit for memcg in limits):
            return "a cgroup might come to its limit"
        return ""

    def _measure(self, process: ImageProcess) -> None:
        """Add what a process maps of anonymous memory, by the orders of its folios, by PMDs, and where."""
        tables, here = process.tables, anonymous_pages(process, self.geometry)
        pages = np.bincount(tables.folio_order[here]).tolist()
        self.before.update(
            {order: nr << self.geometry.page_shift for order, nr in enumerate(pages)}
        )
        if tables.node is not None:
            self.nodes.update(np.unique(tables.node[here]).tolist())
        self.pmds += int(
            np.count_nonzero((here & (tables.pte & np.uint16(Pte.HUGE) != 0)).all(axis=1))
        )

    def _wakeups(self, orders: list[NDArray[np.int64]], settings: Settings) -> Wakeups:
        """Those of a full scan. orders: as _orders() has them."""
        most, passing = self.geometry.ptrs_per_pte, passing_costs(self.mappings.kernel)
        eligible = [each != 0 for each in orders]
        # Where the PMD order alone is tried, a scan ends at one hole too many.
        alone = [each == 1 << self.geometry.pmd_order for each in orders]
        limit = (
            settings.max_ptes_none if passing == 1 and any(each.any() for each in alone) else most
        )
        key = settings.pages_to_scan, limit, *(each.tobytes() for each in (*eligible, *alone))
        if limit == most:
            key = settings.pages_to_scan, limit, *(each.tobytes() for each in eligible)
        if key not in self.wakeups:
            turns = [n for n, process in enumerate(self.processes) if process.place is not None]
            turns.sort(key=lambda number: self.processes[number].place or 0)
            self.wakeups[key] = Wakeups.of(
                (
                    Visits.of(
                        number, self.walks[number], eligible[number], passing,
                        np.where(alone[number], limit, most), self.geometry,
                    )
                    for number in turns
                ),
                settings.pages_to_scan,
            )  # fmt: skip
        return self.wakeups[key]

    def _last_collapse_ms(
        self, settings: Settings, answer: _Sum, walked: tuple[int, int]
    ) -> int | None:
        collapsed = sum(nr << order for order, nr in answer.windows.items())
        if not collapsed:
            return None
        known = None if self.snapshot is None else others_of(self.snapshot, settings)
        others = answer.full_scans * scanned_pages(known, self.geometry)
        size = collapsed << self.geometry.page_shift
        wakeups = answer.full_scans * walked[0]
        return elapsed_ms(settings, wakeups, others, size) + answer.alloc_sleep_ms

    def _answer(
        self, settings: Settings, answer: _Sum, walked: tuple[int, int], others: int, why: str
    ) -> BulkVerdict:
        shift = self.geometry.page_shift
        change = {order: nr << shift for order, nr in answer.change.items() if nr}
        after = {**self.before}
        for order, size in change.items():
            after[order] = after.get(order, 0) + size
        return BulkVerdict(
            settings=settings,
            windows=dict(sorted(answer.windows.items())),
            before=self.before,
            after=Sizes({order: size for order, size in sorted(after.items()) if size}),
            pmds=self.pmds + answer.windows.get(self.geometry.pmd_order, 0),
            memory_added=sum(answer.added.values()) << shift,
            copied_bytes=answer.copied << shift,
            added_by_vma={where: nr << shift for where, nr in answer.added.items() if nr},
            last_collapse_ms=self._last_collapse_ms(settings, answer, walked),
            scanned_ptes=walked[1] * self.geometry.ptrs_per_pte * answer.full_scans,
            counted_tables=answer.counted,
            engine_tables=sum(map(len, self.tied)) if why else others,
            all_engine=why,
        )
