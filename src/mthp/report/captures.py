# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two captures: in all, by process, by what pages map, and by mapping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from mthp.compare.records import CaptureChange, Fate, MappingChange, PageCounts, ProcessChange
from mthp.report.page import SafeConsole
from mthp.report.phrases import percent, plural
from mthp.words.units import Geometry, human_bytes

SHOWN = 20
_WORDS = {"none": "nothing", "zero": "zero page", "swapped": "swapped"}


def order_of(what: str, geometry: Geometry) -> int | None:
    """The order of the folio that a page maps; None where it maps none."""
    return geometry.pmd_order if what == "pmd" else int(what) if what.isdigit() else None


def moves(pages: PageCounts, geometry: Geometry) -> Counter[str]:
    """How many pages are now in larger or smaller folios, gone, new, swapped out or back."""
    found: Counter[str] = Counter()
    for (was, now), number in pages.changed.items():
        before, after = order_of(was, geometry), order_of(now, geometry)
        if was == "none":
            found["new"] += number
        elif now == "none":
            found["gone"] += number
        elif now == "swapped":
            found["swapped_out"] += number
        elif was == "swapped":
            found["swapped_in"] += number
        elif before is not None and after is not None and before != after:
            found["larger" if after > before else "smaller"] += number
    return found


def _anonymous(pages: Mapping[str, int], geometry: Geometry) -> tuple[int, int]:
    """Bytes in folios, and of those the bytes in folios of more than a page."""
    sizes: Counter[bool] = Counter()
    for what, number in pages.items():
        order = order_of(what, geometry)
        if order is not None:
            sizes[order > 0] += number << geometry.page_shift
    return sizes[True] + sizes[False], sizes[True]


def render_captures(change: CaptureChange, console: Console, *, verbose: bool) -> None:
    """Print what changed; verbose: every mapping that did."""
    page, geometry = SafeConsole(console, verbose=verbose), change.geometry
    made = [f"{name} ({time}, kernel {kernel})" for name, time, kernel in zip(
        change.names, change.times, change.kernels, strict=True)]  # fmt: skip
    page.line(f"{made[0]} → {made[1]}", "bold")
    page.line(_headline(change), "bold")
    if not change.sees_folios:
        page.line("Not root: folios that no PMD maps are taken to be of one page.", "yellow")
    settings = (
        f"{path}: {'not there' if was is None else was} → {'not there' if now is None else now}"
        for path, (was, now) in change.settings.items()
    )
    page.bullets("Settings that changed", settings)
    if not change.settings:
        page.line("No setting changed.")
    _processes(page, change)
    rows = [
        (_words(was, geometry), "→", _words(now, geometry), f"{number:,}",
         human_bytes(number << geometry.page_shift))
        for (was, now), number in sorted(change.pages.changed.items(), key=lambda item: -item[1])
    ]  # fmt: skip
    if rows:
        page.heading("Pages by what they map")
        page.table([("was", "left"), ("", "left"), ("is", "left"), ("pages", "right"),
                    ("memory", "right")], rows[: None if verbose else SHOWN])  # fmt: skip
    _mappings(page, change)


def _headline(change: CaptureChange) -> str:
    found = moves(change.pages, change.geometry)
    if not change.pages.changed:
        return "Observed: no page changed."
    words = {
        "larger": "in larger folios", "smaller": "in smaller folios", "new": "new", "gone": "gone",
        "swapped_out": "swapped out", "swapped_in": "back from swap",
    }  # fmt: skip
    shift = change.geometry.page_shift
    parts = [
        f"{human_bytes(found[key] << shift)} {text}" for key, text in words.items() if found[key]
    ]
    (was, large), (now, larger) = (
        _anonymous(pages, change.geometry) for pages in (change.pages.was, change.pages.now)
    )
    return (
        f"Observed: {', '.join(parts) or 'nothing that has a size'}; {percent(large, was)} → "
        f"{percent(larger, now)} of the anonymous memory is in folios of more than a page."
    )


def _words(what: str, geometry: Geometry) -> str:
    order = order_of(what, geometry)
    if order is None:
        return _WORDS[what]
    return geometry.size_name(order) + " by its PMD" * (what == "pmd")


def _sizes(pages: PageCounts, geometry: Geometry) -> list[str]:
    cells = []
    was, now = (_anonymous(each, geometry) for each in (pages.was, pages.now))
    for before, after in zip(was, now, strict=True):
        cells += [human_bytes(before), "→", human_bytes(after)]
    return cells


_SIZE_TITLES = [("anonymous", "right"), ("", "left"), ("now", "right")]
_SIZE_TITLES += [("large folios", "right"), ("", "left"), ("now", "right")]


def _processes(page: SafeConsole, change: CaptureChange) -> None:
    rows = []
    for process in change.processes:
        swapped = (each.get("swapped", 0) for each in (process.pages.was, process.pages.now))
        was, now = (human_bytes(number << change.geometry.page_shift) for number in swapped)
        name = process.name + ("" if process.fate is Fate.BOTH else f", {process.fate.value}")
        rows.append(
            [str(process.pid), *_sizes(process.pages, change.geometry), was, "→", now, name]
        )
    page.heading("By process")
    titles = [("pid", "right"), *_SIZE_TITLES, ("swapped", "right"), ("", "left"), ("now", "right")]
    page.table([*titles, ("name", "left")], rows)


def _mappings(page: SafeConsole, change: CaptureChange) -> None:
    changed = [
        (process, mapping)
        for process in change.processes
        for mapping in process.mappings
        if mapping.pages.changed or mapping.mappings[0] != mapping.mappings[1]
    ]
    by_pages = sorted(changed, key=lambda each: -sum(each[1].pages.changed.values()))
    shown = by_pages if page.verbose else by_pages[:SHOWN]
    several = len(change.processes) > 1
    rows: list[list[str | Text]] = []
    for process, mapping in sorted(shown, key=lambda each: (each[0].pid, each[1].start)):
        name = f"pid {process.pid} " * several + (mapping.name or "[anon]") + _fate(mapping)
        where = page.text(f"{mapping.start:x}-{mapping.end:x}")
        words = Text("\n").join([where, page.text(name)])
        rows.append([*_sizes(mapping.pages, change.geometry), words])
    if rows:
        page.heading("Mappings that changed")
        page.table([*_SIZE_TITLES, ("range, mapping", "left")], rows)
    if len(shown) < len(changed):
        page.line(f"… {plural(len(changed) - len(shown), 'mapping')} more: --verbose", "dim", 2)


def _fate(mapping: MappingChange) -> str:
    was, now = mapping.mappings
    if mapping.fate is not Fate.BOTH:
        return f", {mapping.fate.value}"
    return "" if was == now else f", {plural(was, 'mapping')} → {now}"


def captures_document(change: CaptureChange) -> dict[str, Any]:
    """The comparison as JSON values: bytes and addresses as numbers."""
    return {
        "schema_version": 1,
        "captures": [
            {"name": name, "time": time, "kernel": kernel}
            for name, time, kernel in zip(change.names, change.times, change.kernels, strict=True)
        ],
        "page_size": change.geometry.page_size,
        "pmd_order": change.geometry.pmd_order,
        "sees_folios": change.sees_folios,
        "settings": [
            {"path": path, "before": was, "after": now}
            for path, (was, now) in change.settings.items()
        ],
        **_pages_document(change.pages, change.geometry),
        "processes": [_process_document(each, change.geometry) for each in change.processes],
    }


def _process_document(process: ProcessChange, geometry: Geometry) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "name": process.name,
        "fate": process.fate.value,
        "rss": list(process.resident),
        "folios": [{str(k): n for k, n in each.items()} for each in process.folios],
        **_pages_document(process.pages, geometry),
        "mappings": [
            {
                "start": mapping.start,
                "end": mapping.end,
                "name": mapping.name,
                "fate": mapping.fate.value,
                "mappings": list(mapping.mappings),
                **_pages_document(mapping.pages, geometry),
            }
            for mapping in process.mappings
        ],
    }


def _pages_document(pages: PageCounts, geometry: Geometry) -> dict[str, Any]:
    was, now = (_anonymous(each, geometry) for each in (pages.was, pages.now))
    return {
        "anonymous": [was[0], now[0]],
        "large": [was[1], now[1]],
        "pages": [dict(pages.was), dict(pages.now)],
        "moves": dict(moves(pages, geometry)),
        "changed": [
            {"before": before, "after": after, "pages": number}
            for (before, after), number in pages.changed.items()
        ],
    }
