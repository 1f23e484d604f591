# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded life under settings, summed up: what `mthp life` shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from mthp.image.record.attached import ZERO_PAGE
from mthp.image.recording import HowBegun, Recording
from mthp.life.recorded_records import (
    CallSite,
    HeldAgainst,
    LifeOutcome,
    LifeSweep,
    Lived,
    MemoryCurve,
    PeakMapping,
)
from mthp.life.recorded_replay import NOTHING, Meanwhile, RecordedReplay
from mthp.words.settings import Enabled, Settings

MOST_SITES = 10
MOST_OF_A_COMMAND = 100
MOST_PENDING: Final = 8
MOST_DURING_A_SAMPLE: Final = 64
"""A sample of /proc during which more events come is not compared."""


def without_huge_pages(settings: Settings) -> Settings:
    """The same settings with every size off."""
    return settings.replace(
        enabled=Enabled.NEVER, sizes=dict.fromkeys(settings.sizes, Enabled.NEVER)
    )


def held_against(recording: Recording, settings: Settings) -> HeldAgainst:
    """RecordedReplay the life without huge pages, as it was recorded, and compare it with what /proc said."""
    off = recording.huge_pages_off or not recording.was_there
    replay = RecordedReplay(recording, without_huge_pages(settings) if off else settings)
    began, ended = (
        np.searchsorted(recording.time, times.astype(np.int64), side="right").tolist()
        for times in (recording.sample_time, recording.sample_until)
    )
    pending = min(max(len(recording.task_pid), 1), MOST_PENDING)

    def around(one: int, other: int) -> range:
        """The events between which a sample lies: a fault is noted before its page is there, and a call may
        have done what it does before it returns. Of one that took long there are too many: none."""
        if other - one > MOST_DURING_A_SAMPLE:
            return range(0)
        return range(max(one - pending, 0), other + 2)

    had: dict[tuple[int, int], int] = {}
    asked: dict[int, set[int]] = {}
    process = recording.sample_process.tolist()
    for one, other, index in zip(began, ended, process, strict=True):
        for event in around(one, other):
            asked.setdefault(event, set()).add(index)

    def watch(event: int) -> None:
        for index in asked.get(event, ()):
            space = replay.spaces.get(index)
            if space is not None:
                had[event, index] = space.anon

    replay.run(stops=asked, watch=watch)
    differences = []
    said = recording.sample_anon.tolist()
    for one, other, index, anon in zip(began, ended, process, said, strict=True):
        events = around(one, other)
        seen = [had[event, index] for event in events if (event, index) in had]
        if events and len(seen) == len(events):
            low, high = min(seen), max(seen)
            differences.append((anon - high if anon > high else min(anon - low, 0), anon))
    worst, at = max(differences, key=lambda each: abs(each[0]), default=(0, 0))
    return HeldAgainst(len(differences), worst, at)


def _in_short(command: tuple[str, ...]) -> str:
    """A command in a line."""
    text = " ".join(" ".join(command).split())
    return text if len(text) <= MOST_OF_A_COMMAND else f"{text[: MOST_OF_A_COMMAND - 1]}…"


def _name(recording: Recording, index: int) -> str:
    process = recording.processes[index]
    program = process.program or "process"
    return f"{program.rpartition('/')[2]} ({process.pid})"


def live(recording: Recording, settings: Settings, meanwhile: Meanwhile = NOTHING) -> LifeOutcome:
    """The life under these settings; a second replay ends at the peak, to see what made it."""
    replay = RecordedReplay(recording, settings, meanwhile)
    replay.run()
    until = RecordedReplay(recording, settings, meanwhile)
    until.run(replay.peak_at)
    work, points = replay.pages.work, np.array(replay.points, np.int64).reshape(-1, 4).T
    order = np.argsort(-replay.site_pages, kind="stable")[:MOST_SITES].tolist()
    return LifeOutcome(
        settings=settings,
        curve=MemoryCurve(
            points[0],
            points[1],
            points[2],
            points[3],
            np.array(replay.folios, np.int32).reshape(points.shape[1], -1),
        ),
        peak=replay.peak,
        end=replay.end or replay.moment(int(recording.time[-1])),
        faults=work.faults,
        cleared=work.cleared,
        copied=work.copied,
        brought=dict(sorted(work.brought.items())),
        mappings=tuple(_mappings(recording, until)),
        sites=tuple(
            CallSite(
                int(recording.sites[each]),
                int(replay.site_faults[each]),
                int(replay.site_pages[each]),
            )
            for each in order
            if replay.site_pages[each]
        ),
        nowhere=replay.nowhere,
        passed_over=replay.calls.passed_over,
        khugepaged=replay.khugepaged.work() if replay.khugepaged is not None else None,
        shrunk=tuple(replay.shrunk),
    )


def lived(
    recording: Recording,
    name: str,
    settings: Settings,
    recorded_settings: Settings | None = None,
    meanwhile: Meanwhile = NOTHING,
) -> Lived:
    """The life without huge pages, and under these settings. recorded_settings: those that were set while it
    was recorded. meanwhile: what happens beside it."""
    recorded_settings = recorded_settings or settings
    began = time.monotonic()
    recorded = live(recording, without_huge_pages(settings))
    same = settings == recorded.settings
    given = recorded if same and meanwhile is NOTHING else live(recording, settings, meanwhile)
    return Lived(
        name=name,
        command=_in_short(recording.command),
        kernel=recording.kernel,
        geometry=recording.geometry,
        events=len(recording.kind),
        processes=len(recording.processes),
        tasks=len(recording.task_pid),
        seconds=recording.seconds,
        off=recording.huge_pages_off,
        recorded=recorded,
        given=given,
        held=held_against(recording, recorded_settings),
        unseen=tuple(_unseen(recording, given)),
        took=time.monotonic() - began,
    )


def sweep_life(
    recording: Recording, name: str, settings: Settings, meanwhile: Meanwhile = NOTHING
) -> LifeSweep:
    """The life without huge pages, with each size alone, with those below PMD size, with all, and under these
    settings. meanwhile: what happens beside it."""
    began = time.monotonic()
    off, geometry = without_huge_pages(settings), recording.geometry
    sizes = sorted(geometry.anon_orders)
    small = [order for order in sizes if order < geometry.pmd_order]
    grid = {"none": off}
    for title, orders in (
        *((geometry.size_name(order), [order]) for order in sizes),
        ("all below", small),
        ("all", sizes),
    ):
        grid[title] = off.replace(sizes={**off.sizes, **dict.fromkeys(orders, Enabled.ALWAYS)})
    grid["as given"] = settings
    rows = tuple((title, live(recording, each, meanwhile)) for title, each in grid.items())
    return LifeSweep(
        name=name,
        command=_in_short(recording.command),
        kernel=recording.kernel,
        geometry=geometry,
        seconds=recording.seconds,
        rows=rows,
        held=held_against(recording, settings),
        unseen=tuple(_unseen(recording, rows[-1][1])),
        took=time.monotonic() - began,
    )


def _unseen(recording: Recording, given: LifeOutcome) -> Iterator[str]:
    """What the answer does not know."""
    if given.khugepaged is None:
        yield "khugepaged is not run: this is what faults alone make of it"
    else:
        yield (
            "what else khugepaged scans: here it has these processes alone, wakes up when the first of them "
            "comes onto its list, and its work takes no time"
        )
        if given.khugepaged.lacking:
            yield (
                f"what forked children only read: {given.khugepaged.lacking:,} windows were refused since no "
                "fault shows that they were used (--assume-young all)"
            )
    if given.shrunk and recording.looks:
        yield (
            "what was stored, or zeroed, between the last look at a page and the moment of pressure, unless "
            "a fault shows it"
        )
    elif given.shrunk:
        yield (
            "pages that were written with zeroes, or to zero again: of underused huge pages only those never "
            "written to count as zero (mthp record --zero looks)"
        )
    yield "memory is never short: nothing is reclaimed, swapped or refused"
    if recording.was_there and not recording.huge_pages_off:
        large = np.count_nonzero((recording.start_order > 0) & (recording.start_order != ZERO_PAGE))
        yield (
            f"which pages it touched of large folios: huge pages were on for it, and {large:,} of the "
            f"{len(recording.start_page):,} pages that it had at the start were in such, and stay so here"
        )
    begun = [each for each in recording.processes if each.how is not HowBegun.FORK]
    blind = sum(each.vmas is None for each in begun)
    if blind:
        yield (
            f"the first mappings of {blind} of {len(begun)} programs: pages of their data and stacks count "
            "as small ones"
        )
    if given.passed_over:
        calls = ", ".join(f"{name} ({count})" for name, count in sorted(given.passed_over.items()))
        yield f"what some calls did: {calls}"
    yield "pages that the kernel itself brings in for direct I/O and the like, where no fault shows it"


def _mappings(recording: Recording, replay: RecordedReplay) -> list[PeakMapping]:
    """What each process's mappings have, those of one name together; most first."""
    found = []
    pages = replay.pages
    for index, space in replay.spaces.items():
        by_name: dict[str, list[int]] = {}
        for span in space.spans:
            sums = by_name.setdefault(span.traits.name, [0, 0, 0, 0])
            sums[0] += 1
            for _, row, low, high in space.parts(span.start, span.end):
                folios = pages.folio[row, low:high]
                there = folios > 0
                sums[1] += int(np.count_nonzero(there))
                sums[2] += int(np.count_nonzero(there & pages.written[row, low:high]))
                sums[3] += int(np.count_nonzero(pages.order[folios[there]]))
        for name, sums in by_name.items():
            if sums[1]:
                found.append(PeakMapping(_name(recording, index), name, *sums))
    return sorted(found, key=lambda each: -each.rss)
