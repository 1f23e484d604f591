# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded life under settings, summed up: what `mthp life` shows."""

from __future__ import annotations

import numpy as np

from mthp.image.recording import Recording
from mthp.life.recorded_records import Curve, Held, Life, MappingAtPeak, SiteTotal
from mthp.life.recorded_replay import Replay
from mthp.words.settings import Enabled, Settings

MOST_SITES = 10


def without_huge_pages(settings: Settings) -> Settings:
    """The same settings with every size off."""
    return settings.replace(
        enabled=Enabled.NEVER, sizes=dict.fromkeys(settings.sizes, Enabled.NEVER)
    )


def held(recording: Recording, settings: Settings) -> Held:
    """Replay the life without huge pages, as it was recorded, and compare it with what /proc said."""
    replay = Replay(recording, without_huge_pages(settings))
    began, ended = (
        np.searchsorted(recording.time, times.astype(np.int64), side="right").tolist()
        for times in (recording.sample_time, recording.sample_until)
    )
    had: dict[tuple[int, int], int] = {}
    asked: dict[int, set[int]] = {}
    process = recording.sample_process.tolist()
    for one, other, index in zip(began, ended, process, strict=True):
        for event in _around(one, other):
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
        seen = [had[event, index] for event in _around(one, other) if (event, index) in had]
        if len(seen) == 3:
            low, high = min(seen), max(seen)
            differences.append((anon - high if anon > high else min(anon - low, 0), anon))
    worst, at = max(differences, key=lambda each: abs(each[0]), default=(0, 0))
    return Held(len(differences), worst, at)


def _around(one: int, other: int) -> tuple[int, int, int]:
    """The events between which a sample lies: a call may have done what it does before it returns."""
    return one, other, other + 1


def _name(recording: Recording, index: int) -> str:
    process = recording.processes[index]
    program = process.program or "process"
    return f"{program.rpartition('/')[2]} ({process.pid})"


def live(recording: Recording, settings: Settings, basis: Held) -> Life:
    """The life under these settings."""
    replay = Replay(recording, settings)
    replay.run()
    until = Replay(recording, settings)
    until.run(replay.peak_event)
    work, points = replay.pages.work, replay.points
    order = np.argsort(-replay.site_pages, kind="stable")[:MOST_SITES].tolist()
    return Life(
        settings=settings.describe(),
        events=len(recording.kind),
        curve=Curve(
            *(
                np.array([getattr(point, name) for point in points], np.int64)
                for name in ("time", "rss", "frames", "huge")
            )
        ),
        peak=max(replay.peak.rss, 0),
        peak_time=replay.peak.time,
        peak_frames=replay.peak.frames,
        final=replay.pages.rss,
        peak_huge={each: count for each, count in replay.peak_orders.items() if each and count},
        faults=work.faults,
        saved=work.saved,
        cleared=work.cleared,
        copied=work.copied,
        brought=dict(sorted(work.brought.items())),
        mappings=tuple(_mappings(recording, until)),
        sites=tuple(
            SiteTotal(
                int(recording.sites[each]),
                int(replay.site_faults[each]),
                int(replay.site_pages[each]),
            )
            for each in order
            if replay.site_pages[each]
        ),
        held=basis,
        passed_over=replay.calls.passed_over,
        nowhere=replay.nowhere,
    )


def _mappings(recording: Recording, replay: Replay) -> list[MappingAtPeak]:
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
                found.append(MappingAtPeak(_name(recording, index), name, *sums))
    return sorted(found, key=lambda each: -each.rss)
