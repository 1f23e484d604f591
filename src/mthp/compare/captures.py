# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two captures of the same processes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mthp.compare.forecast import Mapped, codes, name_of
from mthp.compare.records import (
    CaptureChange,
    MappingChange,
    PageCounts,
    ProcessChange,
    fate_of,
)
from mthp.image.snapshot import ProcessTables, Snapshot, SnapshotVma
from mthp.words.units import Geometry
from mthp.worlds.arrays import span

Codes = NDArray[np.int8]
CODES = 256
"""So many values a code can have."""


def compare_captures(names: tuple[str, str], was: Snapshot, now: Snapshot) -> CaptureChange:
    """Compare two captures by process, mapping and page.

    ValueError: they have nothing in common that could be compared.
    """
    if was.redacted or now.redacted:
        raise ValueError("--redact moved the addresses: two such captures cannot be compared")
    if was.geometry != now.geometry:
        raise ValueError("the captures have pages or PMDs of different sizes")
    processes = tuple(_process(a, b, was.geometry) for a, b in _pairs(was.processes, now.processes))
    total = [Counter[str](), Counter[str]()]
    changed: Counter[tuple[str, str]] = Counter()
    for process in processes:
        total[0].update(process.pages.was)
        total[1].update(process.pages.now)
        changed.update(process.pages.changed)
    paths = sorted({*was.sysfs, *now.sysfs})
    return CaptureChange(
        names=names,
        times=(str(was.meta.get("time", "")), str(now.meta.get("time", ""))),
        kernels=(was.kernel, now.kernel),
        geometry=was.geometry,
        sees_folios=was.privilege.kpageflags and now.privilege.kpageflags,
        settings={
            path: (was.sysfs.get(path), now.sysfs.get(path))
            for path in paths
            if was.sysfs.get(path) != now.sysfs.get(path) and _is_setting(path)
        },
        processes=processes,
        pages=PageCounts(total[0], total[1], changed),
    )


def _is_setting(path: str) -> bool:
    """Whether a file is written by people: counters only count."""
    name = path.rpartition("/")[2]
    return "/stats/" not in path and name not in ("full_scans", "pages_collapsed")


def _pairs(
    was: Sequence[ProcessTables], now: Sequence[ProcessTables]
) -> Iterator[tuple[ProcessTables | None, ProcessTables | None]]:
    """The processes of both by pid; one whose number another process has by now has ended."""
    left = {process.pid: process for process in was}
    for process in now:
        before = left.get(process.pid)
        births = before and (before.meta.get("started"), process.meta.get("started"))
        if births and (None in births or births[0] == births[1]):
            yield left.pop(process.pid), process
        else:
            yield None, process
    for process in left.values():
        yield process, None


def _process(
    was: ProcessTables | None, now: ProcessTables | None, geometry: Geometry
) -> ProcessChange:
    either = now or was
    assert either is not None
    tables: NDArray[np.uint64] = np.unique(
        np.concatenate([each.table_address for each in (was, now) if each is not None])
    )
    flat = _at(was, tables, geometry), _at(now, tables, geometry)
    mappings = []
    for parts in _overlapping(_vmas(was), _vmas(now)):
        start = min(vma.start for vma, _ in parts)
        end = max(vma.end for vma, _ in parts)
        place = span(tables, geometry, start, end)
        number = sum(not later for _, later in parts)
        mappings.append(
            MappingChange(
                start=start,
                end=end,
                name=parts[-1][0].name,
                mappings=(number, len(parts) - number),
                pages=_counts(flat[0][place], flat[1][place]),
            )
        )
    return ProcessChange(
        pid=either.pid,
        name=either.name,
        fate=fate_of(was is not None, now is not None),
        pages=_counts(*flat),
        folios=(_folios(was, geometry), _folios(now, geometry)),
        resident=(_resident(was), _resident(now)),
        mappings=tuple(mappings),
    )


def _vmas(process: ProcessTables | None) -> list[SnapshotVma]:
    return [vma for vma in process.vmas if vma.captured] if process is not None else []


def _at(process: ProcessTables | None, tables: NDArray[np.uint64], geometry: Geometry) -> Codes:
    """The codes of the PTEs of these tables, flat; a table that the process has not maps nothing."""
    found = np.full((len(tables), geometry.ptrs_per_pte), Mapped.NONE, np.int8)
    if process is not None:
        found[np.searchsorted(tables, process.table_address)] = codes(process)
    return found.reshape(-1)


def _overlapping(
    was: list[SnapshotVma], now: list[SnapshotVma]
) -> Iterator[list[tuple[SnapshotVma, bool]]]:
    """Mappings of both captures, in groups that share addresses: (mapping, whether it is of now).

    A mapping that grew, was split or joined is so in a group with what it was.
    """
    both = [*((vma, False) for vma in was), *((vma, True) for vma in now)]
    both.sort(key=lambda each: (each[0].start, each[1]))
    group: list[tuple[SnapshotVma, bool]] = []
    end = 0
    for vma, later in both:
        if group and vma.start >= end:
            yield group
            group = []
        group.append((vma, later))
        end = max(end, vma.end)
    if group:
        yield group


def _counts(was: Codes, now: Codes) -> PageCounts:
    differ = was != now
    pairs = was[differ].astype(np.int64) * CODES + now[differ]
    values, times = np.unique(pairs, return_counts=True)
    changed = {}
    for pair, pages in zip(values.tolist(), times.tolist(), strict=True):
        after = (pair + CODES // 2) % CODES - CODES // 2
        changed[name_of((pair - after) // CODES), name_of(after)] = pages
    return PageCounts(_pages(was), _pages(now), changed)


def _pages(flat: Codes) -> dict[str, int]:
    values, times = np.unique(flat[flat != Mapped.NONE], return_counts=True)
    return {name_of(code): n for code, n in zip(values.tolist(), times.tolist(), strict=True)}


def _folios(process: ProcessTables | None, geometry: Geometry) -> dict[int, int]:
    """Order -> distinct folios; without root each page is one, but under a huge PMD."""
    if process is None:
        return {}
    found = codes(process)
    if process.pfn is None or process.folio_order is None:
        pages = Counter(_pages(found.reshape(-1)))
        small, huge = pages["0"], pages["pmd"] >> geometry.pmd_order
        return {order: n for order, n in ((0, small), (geometry.pmd_order, huge)) if n}
    here = found >= 0
    orders = process.folio_order[here].astype(np.uint64)
    heads = process.pfn[here] >> orders
    folios: dict[int, int] = {}
    for order in np.unique(orders).tolist():
        folios[int(order)] = len(np.unique(heads[orders == order]))
    return folios


def _resident(process: ProcessTables | None) -> int | None:
    if process is None:
        return None
    status = process.meta.get("status") or {}
    match = re.match(r"(\d{1,15}) kB", str(status.get("VmRSS", "")))
    return int(match[1]) << 10 if match else None
