# SPDX-License-Identifier: GPL-2.0-or-later
"""The map of an address space on a page: before and after, and what the script zooms in it by."""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.plan.records import NO_REASON, MappedTo, MemoryMap, Picture
from mthp.predict.records import Refusal, Verified
from mthp.report.phrases import plural
from mthp.report.refusals import change_text, reason_text, status_text
from mthp.report.web.colours import class_of, name_of_code
from mthp.report.web.page import scrolls, text_of
from mthp.report.web.tiles import COLUMNS, STEP, Axis, axis_of, rows_of, tile_paths, unit_of
from mthp.words.files import one_line
from mthp.words.units import Geometry, human_bytes

MOST_BYTES = 450_000
"""Of the runs, deflated. Beyond, the map is drawn by some of the pages alone."""
ROWS_SHOWN = 300
_PLANES = 6
"""Bytes of a number: no count of pages needs more."""


def map_data(picture: Picture) -> dict[str, Any]:
    """What the script needs: mappings, what pages have in common, reasons, and the runs.

    runs: of each run the pages that lie between it and the one before it, its own, and its kind: each a
    column of numbers, written as six columns of bytes, the lowest first; deflated, and in base 64.
    """
    outcome, axis = picture.outcome, axis_of(picture)
    geometry = outcome.settings.geometry
    names = {process.pid: one_line(process.name) for process in outcome.by_process}
    every, runs = _packed(axis, picture.map)
    codes = sorted({code for kind in picture.map.kinds for code in kind[:2]} | {MappedTo.NOTHING})
    vmas = [outcome.vmas[k] for k in axis.mappings.tolist()]
    return {
        "columns": COLUMNS,
        "rows": rows_of(axis),
        "page": geometry.page_size,
        "total": axis.total,
        "unit": unit_of(axis),
        "every": every,
        "codes": {code: [class_of(code), name_of_code(code, geometry)] for code in codes},
        "mappings": [
            [
                start,
                size,
                f"{vma.start:x}",
                f"{names.get(vma.pid, '')} ({vma.pid})",
                one_line(vma.name),
            ]
            for start, size, vma in zip(
                axis.starts.tolist(), axis.sizes.tolist(), vmas, strict=True
            )
        ],
        "kinds": [list(kind) for kind in picture.map.kinds],
        "reasons": [_reason(refusal, geometry) for refusal in picture.map.reasons],
        "runs": runs,
    }


def _reason(refusal: Refusal, geometry: Geometry) -> str:
    """Why, and what would change it."""
    order = "" if refusal.order is None else f" at {geometry.size_name(refusal.order)}"
    text = f"{reason_text(refusal, geometry)} ({status_text(refusal.status)}{order})"
    change = change_text(refusal.change, geometry)
    if not change or refusal.verified is Verified.NONE:
        return text
    return f"{text}; to change that, for example: {change}"


def _packed(axis: Axis, found: MemoryMap) -> tuple[int, str]:
    """The runs, and of how many pages each the first alone was looked at (1: all are there)."""
    every, position = 1, axis.position
    pages, kind = found.pages[axis.shown], found.kind[axis.shown]
    while True:
        gaps = position - np.append(0, (position + pages)[:-1])
        planes = b"".join(
            column.astype("<u8").view(np.uint8).reshape(-1, 8)[:, plane].tobytes()
            for column in (gaps, pages, kind)
            for plane in range(_PLANES)
        )
        packed = zlib.compress(planes, 9)
        if len(packed) <= MOST_BYTES:
            return every, b64encode(packed).decode()
        every *= 2
        position, pages, kind = _thinned(position, pages, kind, every)


def _thinned(
    position: NDArray[np.int64], pages: NDArray[np.int64], kind: NDArray[np.int64], every: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """What is left where each `every` pages are taken to be what the first of them is."""
    first, end = (-(-at // every) for at in (position, position + pages))
    some = end > first
    first, end, kind = first[some], end[some], kind[some]
    joins = np.append(False, (first[1:] == end[:-1]) & (np.diff(kind) == 0))[: len(kind)]
    begins = np.flatnonzero(~joins)
    size = np.add.reduceat(end - first, begins) if len(begins) else end[:0]
    return first[begins] * every, size * every, kind[begins]


def map_lines(picture: Picture, then: str, every: int) -> Iterator[str]:
    """The section of the page: two maps that are one, and what the colours are. then: what the second is.
    every: as map_data() has it."""
    axis, found, geometry = axis_of(picture), picture.map, picture.outcome.settings.geometry
    unit = human_bytes(unit_of(axis) * geometry.page_size)
    left = f" {plural(axis.left_out, 'small mapping')} more have no place." if axis.left_out else ""
    if every > 1:
        left += (
            f" Close by, of each {every} pages the first alone is looked at: there are too many."
        )
    yield (
        "<h2>The memory, page by page</h2><p>Every square is a part of the program's memory, in the order of "
        f'addresses; here <output id="unit">{unit}</output> each.{left} Its filling says by what size of '
        "folio that part is mapped: grey for single pages, blue for the largest folios.</p>"
    )
    yield (
        '<div id="map" class="maps" role="application" tabindex="0" aria-label="Map of the memory, before '
        'and after" aria-describedby="map-help">'
    )
    for after, name in ((False, "Now"), (True, then)):
        yield (
            f'<figure><figcaption>{name}</figcaption><svg class="map" role="img" aria-label="{name}: memory '
            f'by size of folio" viewBox="-1 -1 {COLUMNS * STEP + 1} {rows_of(axis) * STEP + 1}">'
            f"<g>{''.join(tile_paths(axis, found, after=after))}</g></svg></figure>"
        )
    yield '</div><p id="map-read" class="read" aria-live="polite"></p>'
    yield (
        '<p id="map-help" class="dim script">Point at a square to see what it is, why it stays as it is, and '
        "what would change that; click to look closer, down to single pages. By keyboard: arrows, + and "
        "&minus;, Home for all of it.</p>"
    )
    yield from _legend(picture)


def _legend(picture: Picture) -> Iterator[str]:
    """The colours with bytes before and after."""
    geometry = picture.outcome.settings.geometry
    yield '<ul class="legend">'
    for code, *sizes in held_bytes(picture):
        before, after = map(human_bytes, sizes)
        yield (
            f'<li><span class="key {class_of(code)}"></span>{name_of_code(code, geometry)}: '
            f"{before} &rarr; {after}</li>"
        )
    yield "</ul>"


def held_bytes(picture: Picture) -> Iterator[tuple[int, int, int]]:
    """(code, bytes before, after) of what pages are mapped to; those that several map count as often."""
    found, page_size = picture.map, picture.outcome.page_size
    sums = np.zeros((2, MappedTo.OTHER + 1), np.int64)
    pages = np.bincount(found.kind, found.pages, len(found.kinds)).astype(np.int64)
    for kind, number in zip(found.kinds, pages.tolist(), strict=True):
        sums[0, kind.before] += number
        sums[1, kind.after] += number
    for code in range(MappedTo.FOLIO, MappedTo.OTHER + 1):
        if sums[:, code].any():
            before, after = (sums[:, code] * page_size).tolist()
            yield code, before, after


def mapping_lines(picture: Picture) -> Iterator[str]:
    """A table of mappings, the largest first: what each was and will be, and what keeps the rest."""
    outcome, axis, found = picture.outcome, axis_of(picture), picture.map
    held = np.bincount(found.mapping, found.pages, len(outcome.vmas)).astype(np.int64)
    largest = [k for k in np.argsort(-held, kind="stable").tolist() if held[k]]
    place = dict(zip(axis.mappings.tolist(), axis.starts.tolist(), strict=True))
    reasons = _main_reasons(picture)
    names = {process.pid: process.name for process in outcome.by_process}
    yield "<h2>Mapping by mapping</h2>"
    heads = ("memory", "large now", "large then", "added")
    table = ['<table class="sorts mappings"><thead><tr><th scope="col">mapping</th>']
    for head in heads:
        order = "descending" if head == "memory" else "none"
        table.append(f'<th scope="col" aria-sort="{order}">{head}</th>')
    table.append('<th scope="col">what keeps most of the rest</th></tr></thead><tbody>')
    for k in largest[:ROWS_SHOWN]:
        vma = outcome.vmas[k]
        size = max(sum(vma.before.values()), sum(vma.after.values()), vma.swapped + vma.zero)
        large = [
            100 * sum(nr for order, nr in use.items() if order) / max(sum(use.values()), 1)
            for use in (vma.before, vma.after)
        ]
        cells = ((size, human_bytes(size)), *((share, f"{share:.0f}%") for share in large),
                 (vma.memory_added, human_bytes(vma.memory_added)))  # fmt: skip
        name = text_of(vma.name) or "anonymous"
        if len(names) > 1:
            name += f", {text_of(names.get(vma.pid, ''))} ({vma.pid})"
        pages = (vma.end - vma.start) // outcome.page_size
        at = f' data-axis="{place[k]}" data-pages="{pages}"' if k in place else ""
        row = "".join(f'<td data-v="{value}">{text}</td>' for value, text in cells)
        table.append(
            f"<tr><td{at}><code>{vma.start:x}</code> {name}</td>{row}"
            f"<td>{reasons.get(k, '')}</td></tr>"
        )
    table.append("</tbody></table>")
    yield from scrolls("Mappings", table)
    if rest := largest[ROWS_SHOWN:]:
        more = human_bytes(sum(int(held[k]) for k in rest) * outcome.page_size)
        yield f'<p class="dim">{plural(len(rest), "mapping")} more, with {more}.</p>'


def _main_reasons(picture: Picture) -> dict[int, str]:
    """Of mappings, the reason that most of their pages met."""
    found, geometry = picture.map, picture.outcome.settings.geometry
    if not found.reasons:
        return {}
    reason = np.array([kind.reason for kind in found.kinds])[found.kind]
    some = reason != NO_REASON
    width = len(found.reasons)
    keys, place = np.unique(found.mapping[some] * width + reason[some], return_inverse=True)
    pages = np.bincount(place, found.pages[some], len(keys)).astype(np.int64)
    texts = {}
    for at in np.argsort(pages, kind="stable").tolist():
        mapping, which = divmod(int(keys[at]), width)
        size = human_bytes(int(pages[at]) * geometry.page_size)
        texts[mapping] = f"{size}: {text_of(_reason(found.reasons[which], geometry))}"
    return texts
