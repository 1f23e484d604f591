# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds predictions along each path, from a whole state and from captures of it, against what a kernel did.

The scenario path is given the state as the lab reads it, every bit of it. Users have a capture.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.compare.conformance import ENDLESS_PAGES_TO_SCAN, PassResult, compare, run_pass
from mthp.compare.forecast import Mapped
from mthp.image.runs import FolioToken, PageKind, PagesState, PteState
from mthp.image.scenario import RecordedPass, Scenario
from mthp.image.snapshot import Snapshot, read_snapshot
from mthp.lab.session.captures import Captured
from mthp.predict.bounds import unknowns, with_bounds
from mthp.predict.outcome import Request, run_world
from mthp.words.events import CollapseHugePage, Event, ScanPmd
from mthp.words.profiles import Profile
from mthp.words.settings import Settings
from mthp.worlds.build import BuiltWorld, build_world
from mthp.worlds.deduced import is_registered
from mthp.worlds.from_scenario import FIRST_PID
from mthp.worlds.unseen import LIKELY, Assumed

SCENARIO = "scenario"
"""The path of the whole state; the others are those of CapturePath."""

Table = tuple[int, int]
"""The place of its process in the record, and its address."""
Cause = Callable[[int, Table], str]
"""What the kernel and the prediction made of a table in a pass, in the trace's words."""

_CODES = {
    PageKind.NONE: Mapped.NONE,
    PageKind.ZERO: Mapped.ZERO,
    PageKind.HUGE_ZERO: Mapped.ZERO,
    PageKind.SWAP: Mapped.SWAPPED,
    PageKind.GUARD: Mapped.SWAPPED,
}


@dataclass
class PathCount:
    """Passes along one path, and PTEs of them that map something before or after.

    agreed: passes in which every PTE maps what the kernel made it map, and errno is the same; in_full:
    those of them with the same events and counters. over, under: PTEs predicted to lie in a larger
    folio than they do, and in a smaller one. A pass in which a process was killed has
    no PTEs, and agrees if its events do. changed: PTEs that no longer map what they did in the
    beginning; nothing_changes: passes that leave no such PTE. said_open: passes that do not agree, of
    captures of which the answer says that they leave open what decides. within_range: passes that agree,
    and those of these in which as many PTEs came into larger folios as between the ends of the answer.
    no_prediction: states without
    a capture, or with one that makes no world; their passes count as not agreed.
    """

    passes: int = 0
    agreed: int = 0
    in_full: int = 0
    ptes: int = 0
    changed: int = 0
    over: int = 0
    under: int = 0
    nothing_changes: int = 0
    said_open: int = 0
    within_range: int = 0
    no_prediction: int = 0

    def add(self, other: Mapping[str, int]) -> None:
        """Add the counts of a state."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + other[each.name])


@dataclass
class PathVerdict:
    """What came of one state along a path. causes: what the kernel and what the prediction made of a
    table, in words -> PTEs predicted wrong in such tables. why: there is no prediction."""

    count: PathCount = field(default_factory=PathCount)
    causes: Counter[str] = field(default_factory=Counter)
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """An entry of a line of the log."""
        return {**asdict(self.count), "causes": dict(self.causes.most_common()), "why": self.why}


@dataclass
class PathTotal:
    """What came of many states along a path. families: counts by family; causes: as in PathVerdict, by
    family; no_prediction: why -> states."""

    count: PathCount = field(default_factory=PathCount)
    families: dict[str, PathCount] = field(default_factory=dict)
    causes: dict[str, Counter[str]] = field(default_factory=dict)
    no_prediction: Counter[str] = field(default_factory=Counter)

    def add(self, family: str, entry: Mapping[str, Any]) -> None:
        """Add what PathVerdict.to_json() says of a state of a family."""
        self.count.add(entry)
        self.families.setdefault(family, PathCount()).add(entry)
        if entry["causes"]:
            self.causes.setdefault(family, Counter()).update(entry["causes"])
        if entry["why"]:
            self.no_prediction[entry["why"]] += 1

    def to_json(self) -> dict[str, Any]:
        """An entry of `paths` in `mthp lab fuzz --json`."""
        return {
            **asdict(self.count),
            "families": {name: asdict(each) for name, each in sorted(self.families.items())},
            "causes": {name: dict(each.most_common()) for name, each in self.causes.items()},
            "why_no_prediction": dict(self.no_prediction.most_common()),
        }


def along_all(
    scenario: Scenario, real: Sequence[PassResult], captured: Captured | None, profile: Profile
) -> dict[str, PathVerdict]:
    """The verdict along every path. real: the engine's run of the scenario itself."""
    paths = {SCENARIO: PathVerdict()}
    _count(paths[SCENARIO], scenario, real, lambda *_: "the whole state was known")
    if captured is not None:
        for path, data in captured.files.items():
            paths[path.value] = along_capture(scenario, real, captured.pids, data, profile)
        for path, why in captured.failed.items():
            paths[path.value] = without_prediction(scenario, why)
    return paths


def along_capture(
    scenario: Scenario,
    real: Sequence[PassResult],
    pids: Sequence[int],
    data: bytes,
    profile: Profile,
) -> PathVerdict:
    """The verdict on the prediction from a capture (.npz) of the scenario's processes.

    real: the engine's run of the scenario itself. Where it has the kernel's events, it tells of which
    table each of them is. pids: of the scenario's processes, in its order.
    """
    try:
        snapshot = read_snapshot(io.BytesIO(data), "capture")
        results = _predicted(scenario, snapshot, pids, profile, LIKELY)
    except ValueError as error:
        return without_prediction(scenario, str(error))
    place = {pid: place for place, pid in enumerate(pids)}
    size = scenario.geometry.pmd_addr

    def cause(number: int, table: Table) -> str:
        ours = real[number]
        known = [dict(each) for each in scenario.passes[number].events] == ours.events
        kernel = _tables(ours.trace, lambda pid: pid - FIRST_PID, size) if known else {}
        predicted = _tables(results[number].trace, place.get, size)
        absent = "not scanned" if known else "not told"
        return (
            f"kernel: {kernel.get(table, absent)}; predicted: {predicted.get(table, 'not scanned')}"
        )

    verdict = PathVerdict()
    _count(verdict, scenario, results, cause)
    missed = verdict.count.passes - verdict.count.agreed
    if missed and _leaves_open(snapshot):
        verdict.count.said_open = missed
        ends = [
            _predicted(scenario, snapshot, pids, profile, assumed)
            for assumed in _ends(snapshot, profile)
        ]
        verdict.count.within_range += _within(scenario, results, ends)
    return verdict


def _ends(snapshot: Snapshot, profile: Profile) -> list[Assumed]:
    """What is assumed at each end of the range that `mthp collapse` prints, and that khugepaged comes to the
    processes in reverse, which single passes may show."""
    tried: list[Assumed] = []

    def prepare(assumed: Assumed) -> tuple[BuiltWorld, Request]:
        tried.append(assumed)
        world = build_world(snapshot, profile, _settings(snapshot), assumed)
        return world, Request("", "", "", changes=False)

    world, request = prepare(LIKELY)
    with_bounds(run_world(world, request), request.windows, snapshot, LIKELY, prepare)
    by_age = sorted(snapshot.processes, key=lambda process: (process.started, process.pid))
    last_first = {process.pid: -place for place, process in enumerate(by_age)}
    return [*tried[1:], Assumed(registered=False), Assumed(places=last_first)]


def _within(
    scenario: Scenario, likely: Sequence[PassResult], ends: Sequence[Sequence[PassResult]]
) -> int:
    """The passes that the likely prediction has wrong, and of which the kernel made as much larger as lies
    between all predictions."""
    start = _codes([vma.initial for vma in scenario.vmas])

    def grown(states: Iterable[PagesState]) -> int:
        codes = _codes(states)
        return int(((codes > 0) & (_size(codes) > _size(start))).sum())

    count = 0
    for recorded, first, *others in zip(scenario.passes, likely, *ends, strict=True):
        if not recorded.killed and not _right(recorded, first):
            sizes = [grown(each.final) for each in (first, *others)]
            count += min(sizes) <= grown(recorded.final) <= max(sizes)
    return count


def _right(recorded: RecordedPass, predicted: PassResult) -> bool:
    """Whether every PTE maps what the kernel made it map, and errno is the same."""
    same = _codes(recorded.final) == _codes(predicted.final)
    return bool(same.all()) and recorded.errno == predicted.errno


def _leaves_open(snapshot: Snapshot) -> bool:
    """Whether `mthp collapse` says of a capture that it does not tell all that decides."""
    registered = (is_registered(snapshot, each, LIKELY) for each in snapshot.processes)
    return None in registered or any(unknowns(snapshot, LIKELY))


def without_prediction(scenario: Scenario, why: str) -> PathVerdict:
    """The verdict where a path gives no prediction."""
    verdict = PathVerdict(why=why)
    start = _codes([vma.initial for vma in scenario.vmas])
    for recorded in scenario.passes:
        verdict.count.passes += 1
        if not recorded.killed:
            verdict.count.nothing_changes += bool((start == _codes(recorded.final)).all())
    verdict.count.no_prediction = 1
    return verdict


def _settings(snapshot: Snapshot) -> Settings:
    settings = Settings.from_sysfs(snapshot.sysfs, snapshot.geometry)
    return settings.replace(pages_to_scan=ENDLESS_PAGES_TO_SCAN)


def _predicted(
    scenario: Scenario, snapshot: Snapshot, pids: Sequence[int], profile: Profile, assumed: Assumed
) -> list[PassResult]:
    """The passes over the scenario's mappings in the world of a capture.

    ValueError: it has not all of them.
    """
    world = build_world(snapshot, profile, _settings(snapshot), assumed)
    found = {(vma.vm_mm.number, vma.vm_start): vma for vma in world.vmas}
    try:
        vmas = [found[pids[vma.mm], vma.start] for vma in scenario.vmas]
    except KeyError as error:
        raise ValueError(f"the capture has no mapping {error}") from None
    return [run_pass(world, scenario, vmas) for _ in scenario.passes]


# --- PTEs -------------------------------------------------------------------------------------


def _codes(states: Iterable[PagesState]) -> NDArray[np.int16]:
    """What each PTE of these mappings maps: an order, or one of Mapped."""
    parts = [np.full(count, code, np.int16) for state in states for count, code in _runs(state)]
    return np.concatenate(parts)


def _size(codes: NDArray[np.int16]) -> NDArray[np.int16]:
    """Nothing is less than a zero page or a swap entry, and that less than a folio of any order."""
    return np.where(codes >= 0, codes + 1, np.where(codes == Mapped.NONE, -1, 0))


def _runs(state: PagesState) -> Iterator[tuple[int, int]]:
    entries = iter(state.entries)
    left, entry = next(entries)
    for count, token in state.folios:
        while count:
            part = min(count, left)
            yield part, _code(token, huge=entry.state is PteState.HUGE)
            count, left = count - part, left - part
            if not left:
                left, entry = next(entries, (0, entry))


def _code(token: FolioToken, *, huge: bool) -> int:
    if token.kind is not PageKind.FOLIO:
        return _CODES[token.kind]
    return Mapped.PMD if huge else token.order


def _keys(scenario: Scenario) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """For each PTE of the scenario's mappings the number of its table, and the tables by number."""
    tables: dict[tuple[int, int], int] = {}
    numbers = []
    geometry = scenario.geometry
    for vma in scenario.vmas:
        first = vma.start >> geometry.page_shift
        for page in range(first, first + vma.initial.pages):
            key = vma.mm, geometry.pmd_addr(page << geometry.page_shift)
            numbers.append(tables.setdefault(key, len(tables)))
    return np.array(numbers), list(tables)


def _count(
    verdict: PathVerdict,
    scenario: Scenario,
    results: Sequence[PassResult],
    cause: Cause,
) -> None:
    """Count every pass; a table's cause is that of the pass in which it was first predicted wrong."""
    count = verdict.count
    start = _codes([vma.initial for vma in scenario.vmas])
    first: dict[Table, str] = {}
    for number, result in enumerate(results):
        recorded = scenario.passes[number]
        count.passes += 1
        agrees = not any(compare(scenario, number, result))
        count.in_full += agrees
        if recorded.killed:
            count.agreed += agrees
            count.within_range += agrees
            continue
        real, predicted = _codes(recorded.final), _codes(result.final)
        wrong = real != predicted
        right = _right(recorded, result)
        count.agreed += right
        count.within_range += right
        count.ptes += int(((start != Mapped.NONE) | (real != Mapped.NONE)).sum())
        count.changed += int((start != real).sum())
        count.nothing_changes += bool((start == real).all())
        more = wrong & (_size(predicted) > _size(real))
        count.over += int(more.sum())
        count.under += int((wrong & ~more).sum())
        if wrong.any():
            numbers, keys = _keys(scenario)
            tables, ptes = np.unique(numbers[wrong], return_counts=True)
            for table, pages in zip(tables.tolist(), ptes.tolist(), strict=True):
                key = keys[table]
                if key not in first:
                    first[key] = cause(number, key)
                verdict.causes[first[key]] += pages


# --- what came of a table -----------------------------------------------------------------------


def _tables(
    trace: Iterable[Event], place: Callable[[int], int | None], table: Callable[[int], int]
) -> dict[Table, str]:
    """What the events say of each table: the scan's status, or each attempt's that came before it."""
    attempts: dict[Table, list[str]] = {}
    found: dict[Table, str] = {}
    for event in trace:
        if not isinstance(event, ScanPmd | CollapseHugePage):
            continue
        mm = place(event.mm)
        if mm is None:
            continue
        key = mm, table(event.address)
        if isinstance(event, CollapseHugePage):
            attempts.setdefault(key, []).append(f"{event.status.string} at order {event.order}")
        else:
            tried = Counter(attempts.get(key, ()))
            words = [f"{n} x {text}" if n > 1 else text for text, n in sorted(tried.items())]
            found[key] = ", ".join(words) or f"scan {event.status.string}"
    return found
