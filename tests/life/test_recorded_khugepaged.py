# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged over a replay, and the engine's over the engine's memory, come to the same pages and counts."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from mthp.image.recording import EventKind
from mthp.life import program as ops
from mthp.life.recorded_records import KhugepagedWork
from mthp.life.recorded_replay import Meanwhile, RecordedReplay
from mthp.life.run import Life
from mthp.mm.mm_types import Kernel
from mthp.words.profiles import PMD_ONLY, V7_3, V16, Profile
from mthp.words.settings import Enabled, parse_enabled_flag
from tests.life.recordings import OFF, TABLE, RecordedProgram, consistent, folios
from tests.life.test_recorded_twin import DONTNEED, HUGEPAGE, Both, compare_pages

SIZES: list[tuple[int, ...]] = [(9,), (4,), (4, 9), (2, 4, 9), (3,), tuple(range(2, 10))]
SECOND = 1_000_000_000


class Scanned(Both):
    """One program with time between its operations, whose processes khugepaged scans."""

    def __init__(self, source: Random, profile: Profile, *, shrinks: bool = False) -> None:
        super().__init__((), source)
        sizes = source.choice(SIZES)
        modes = (Enabled.ALWAYS, Enabled.MADVISE) if source.random() < 0.5 else (Enabled.MADVISE,)
        self.profile = profile
        self.settings = self.settings.replace(
            sizes={
                order: source.choice(modes) if order in sizes else Enabled.NEVER
                for order in range(2, 10)
            },
            max_ptes_none=source.choice((0, 511, 511, 256, 30)),
            max_ptes_shared=source.choice((0, 30, 256)),
            pages_to_scan=source.choice((300, 600, 2000, 4096, 100_000)),
            scan_sleep_millisecs=source.choice((900, 3000)),
        )
        self.shrinks = shrinks
        self.life = Life(self.settings, profile)
        self.life.mm("0")
        self.operations: list[ops.Operation] = []
        perform = self.life.perform

        def noted(operation: ops.Operation) -> int:
            """What is done is written down, except what fails and is not advice or protection."""
            answer = perform(operation)
            if answer == 0 or isinstance(operation, ops.Madvise | ops.Mprotect):
                self.operations.append(operation)
            return answer

        self.life.perform = noted

    def begin(self) -> None:
        """Map and touch much, so that there is something to collapse."""
        assert self._perform(ops.Mmap("0", 0, 2048))
        self.recorded.mmap(0, 2048)
        for _ in range(2):
            self.touch()
        self.life.perform(ops.Madvise("0", 0, 2048, HUGEPAGE))
        self.recorded.madvise(0, 2048, HUGEPAGE)
        self.touch()

    def touch(self) -> None:
        """Touch pages of a range, most of them or a few."""
        task, (start, count) = self.source.choice(self.tasks), self.range()
        if self.shrinks and self.source.random() < 0.3:
            self.clear(task, start, count)
            return
        write, step = self.source.random() < 0.8, self.source.choice((1, 1, 2, 5, 19))
        kind = ops.Touching.WRITE if write else ops.Touching.READ
        for page in range(start, start + count, step):
            if self._perform(ops.Touches(str(task), kind, page, 1)):
                self.recorded.write(page, 1, task) if write else self.recorded.read(page, 1, task)

    def clear(self, task: int, start: int, count: int) -> None:
        """Fill pages with zeroes, at which somebody looks."""
        for page in range(start, start + count, self.source.choice((1, 1, 2))):
            if self._perform(ops.Touches(str(task), ops.Touching.ZERO, page, 1)):
                self.recorded.write(page, 1, task)
                self.recorded.look(page, 1, zero=True, task=task)

    def step(self) -> None:
        """Draw one operation and do it twice."""
        if self.source.random() < 0.5:
            self.touch()
        else:
            super().step()

    def again(self, beside: list[tuple[int, ops.Operation]], events: int) -> Life:
        """The program on another engine, with what happens beside it before these of so many events."""
        life = Life(self.settings, self.profile)
        life.kernel.settings = self.settings
        life.mm("0")
        event = events - sum(map(events_of, self.operations))
        for operation in self.operations:
            late = isinstance(operation, ops.Mmap | ops.Mprotect | ops.Mremap)
            while beside and beside[0][0] <= event + late:
                life.perform(beside.pop(0)[1])
            life.perform(operation)
            event += events_of(operation)
        for _, operation in beside:
            life.perform(operation)
        return life

    def check(self) -> None:
        """Compare every page, every counter and the cursor."""
        recording = self.recorded.recording()
        moments = [int(self.source.random() * int(recording.time[-1])) for _ in range(2)]
        meanwhile = Meanwhile(self.profile, pressure=tuple(moments) if self.shrinks else ())
        replay = RecordedReplay(recording, self.settings, meanwhile)
        daemon, shrink = replay.khugepaged, replay._shrink
        beside: list[tuple[int, ops.Operation]] = []
        assert daemon is not None
        wake_up, times = daemon.wake_up, recording.time[recording.kind != EventKind.IDLE]

        def noted(now: int) -> None:
            beside.append((int(np.searchsorted(times, now, side="right")), ops.FullScan()))
            wake_up(now)

        def noted_again(before: int, most: int) -> None:
            wakeups = daemon.wakeups
            wake_up_again(before, most)
            beside.extend([beside[-1]] * (daemon.wakeups - wakeups))

        def shrunk(now: int) -> None:
            beside.append((int(np.searchsorted(times, now, side="right")), ops.DropCaches(2)))
            shrink(now)

        daemon.wake_up = noted  # type: ignore[method-assign]
        wake_up_again, daemon.wake_up_again = daemon.wake_up_again, noted_again  # type: ignore[method-assign]
        replay._shrink = shrunk  # type: ignore[method-assign]
        replay.run()
        consistent(replay)
        self.life = self.again(beside, len(times))
        compare_pages(self, replay)
        engine = self.life.khugepaged
        assert daemon.full_scans == engine.full_scans
        assert daemon.pages_collapsed == engine.pages_collapsed
        assert daemon.progress == engine.cc.progress
        assert (daemon.slot is None) == (engine.mm_slot is None)
        assert len(daemon.slots) == len(engine.mm_slots)
        assert counts(daemon.kernel) == counts(self.life.kernel)
        mthp, events = self.life.kernel.vmstat.mthp, self.life.kernel.vmstat.events
        theirs = {order: n for (order, name), n in mthp.items() if name == "split" and n}
        ours: Counter[int] = Counter()
        for each in replay.shrunk:
            ours.update(each.split)
        assert dict(ours) == theirs
        assert (
            sum(each.given.underused for each in replay.shrunk)
            == events["thp_underused_split_page"]
        )


def counts(kernel: Kernel) -> dict[object, int]:
    """What its collapses counted."""
    stat = kernel.vmstat
    every = [*stat.mthp.items(), *stat.events.items()]
    return {key: n for key, n in every if n and re.search("collapse|thp_scan", str(key))}


def events_of(operation: ops.Operation) -> int:
    """As how many events it is recorded: calls begin and return."""
    return 1 if isinstance(operation, ops.Touches | ops.Fork | ops.Kill) else 2


def same_life(seed: int, *, shrinks: bool = False) -> None:
    """Draw a program, with time between its operations, and live it both ways. shrinks: shrinkers are asked
    twice for all they can give."""
    source = Random(seed)
    profiles = (V7_3, V16) if shrinks else (V7_3, PMD_ONLY, V7_3, V16)
    both = Scanned(source, profiles[seed % len(profiles)], shrinks=shrinks)
    both.begin()
    for _ in range(12):
        both.recorded.wait(source.choice((0, SECOND // 10, 4 * SECOND, 20 * SECOND)))
        both.step()
    both.recorded.wait(30 * SECOND)
    both.life.perform(ops.Madvise("0", 0, 1, DONTNEED))
    both.recorded.madvise(0, 1, DONTNEED)
    both.check()


@pytest.mark.parametrize("seed", range(8))
def test_the_same_wakeups_come_to_the_same_pages_and_counts(seed: int) -> None:
    same_life(seed)


@pytest.mark.parametrize("seed", range(6))
def test_what_shrinkers_split_is_what_the_engine_splits(seed: int) -> None:
    same_life(seed, shrinks=True)


@pytest.mark.slow
@pytest.mark.parametrize("shrinks", [False, True])
@pytest.mark.parametrize("seed", range(8, 300))
def test_many_more_programs_come_to_the_same(seed: int, shrinks: bool) -> None:
    same_life(seed, shrinks=shrinks)


def touched(pages: int, step: int = 1) -> RecordedProgram:
    """A program that touches two tables, has them advised, and goes on for a minute."""
    program = RecordedProgram()
    program.mmap(0, 2 * TABLE)
    program.write(0, pages, step=step)
    program.madvise(0, 2 * TABLE, HUGEPAGE)
    program.wait(60 * SECOND)
    program.madvise(0, 1, HUGEPAGE)
    return program


def lived(program: RecordedProgram, enabled: str, **changes: int) -> RecordedReplay:
    """Its life with khugepaged of 7.3."""
    settings = OFF.with_enabled(parse_enabled_flag(enabled)).replace(**changes)
    replay = RecordedReplay(program.recording(), settings, Meanwhile(V7_3))
    replay.run()
    consistent(replay)
    return replay


def worked(replay: RecordedReplay) -> KhugepagedWork:
    """What khugepaged did in it."""
    assert replay.khugepaged is not None
    return replay.khugepaged.work()


def test_it_wakes_up_when_a_process_is_registered_and_after_each_sleep() -> None:
    replay = lived(touched(100), "64kB=madvise")
    daemon = replay.khugepaged
    assert daemon is not None and daemon.wakeups == 7
    assert folios(replay) == {4: 7} and daemon.full_scans == 7
    (point,) = daemon.points
    assert (point.collapsed, point.added) == (112, 12)
    assert point.time == replay.points[-1][0] < SECOND  # at once, not after a sleep


def test_the_pace_is_that_of_the_settings() -> None:
    slow = {"pages_to_scan": 1, "scan_sleep_millisecs": 40_000}
    replay = lived(touched(TABLE + 16), "64kB=madvise", **slow)
    assert folios(replay) == {4: 33}  # one table at once, the other after forty seconds
    assert [point.time // SECOND for point in worked(replay).points] == [0, 40]


def test_what_faults_bring_is_not_collapsed_again_but_allocated_for() -> None:
    program = touched(64)
    replay = lived(program, "64kB=always")
    work = worked(replay)
    assert folios(replay) == {4: 4} and work.collapsed == {}
    assert work.attempts == 4 * work.full_scans == 4 * 7


def test_of_a_huge_page_that_processes_share_older_kernels_split_one_pmd_alone() -> None:
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.write(0, 1)
    child = program.fork()
    program.wait(2 * SECOND)
    program.end(child)
    program.wait(SECOND)
    program.munmap(4 * TABLE, 1)
    settings = OFF.with_enabled(parse_enabled_flag("2MB=always")).replace(max_ptes_none=0)
    for profile, split in ((V7_3, {9: 1}), (PMD_ONLY, {})):
        meanwhile = Meanwhile(profile, pressure=(SECOND, 2 * SECOND), scans=False)
        replay = RecordedReplay(program.recording(), settings, meanwhile)
        replay.run()
        consistent(replay)
        assert [each.split for each in replay.shrunk] == [split, {}]


def test_nothing_is_registered_that_no_size_is_enabled_for() -> None:
    replay = lived(touched(100), "64kB=never")
    assert replay.khugepaged is not None and replay.khugepaged.wakeups == 0


@pytest.mark.parametrize(("profile", "registers"), [(V7_3, False), (PMD_ONLY, True)])
def test_advice_that_changes_nothing_registers_before_7_2(
    profile: Profile, registers: bool
) -> None:
    """The first was said while nothing was written: there was no anon_vma."""
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.read(0)
    program.madvise(0, TABLE, HUGEPAGE)
    program.write(1, 8)
    program.madvise(0, 16, HUGEPAGE)
    program.wait(60 * SECOND)
    program.madvise(0, 1, HUGEPAGE)
    settings = OFF.with_enabled(parse_enabled_flag("2MB=madvise"))
    replay = RecordedReplay(program.recording(), settings, Meanwhile(profile))
    replay.run()
    assert replay.khugepaged is not None
    assert (replay.khugepaged.wakeups > 0) is registers


def test_what_a_child_only_reads_counts_as_unused_unless_all_is_taken_to_be_young() -> None:
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.write(0, TABLE - 12)
    child = program.fork()
    program.madvise(0, TABLE, HUGEPAGE, task=child)
    program.wait(60 * SECOND)
    program.end(child)
    settings = OFF.with_enabled(parse_enabled_flag("64kB=madvise,2MB=madvise"))
    settings = settings.replace(max_ptes_shared=TABLE - 1)
    recording = program.recording()
    for all_young, lacking in ((False, True), (True, False)):
        replay = RecordedReplay(recording, settings, Meanwhile(PMD_ONLY, all_young=all_young))
        replay.run()
        consistent(replay)
        assert bool(worked(replay).lacking) is lacking
