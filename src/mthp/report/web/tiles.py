# SPDX-License-Identifier: GPL-2.0-or-later
"""An address space as tiles: each stands for as many pages, filled with what these are mapped to.

Mappings that hold something stand one behind the other, each at the place that its address has within a
PMD's range, so that a tile of that size is one page table's. What lies between them is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.plan.records import MappedTo, MemoryMap, Picture
from mthp.report.web.colours import class_of

COLUMNS, MOST_ROWS = 32, 24
STEP, SIDE = 10, 9
"""From tile to tile, and the side of one."""
MOST_MAPPINGS = 2000
"""The largest are shown."""


class Axis(NamedTuple):
    """Where everything is on the way through all tiles, in pages. mappings: places in the outcome, in order.
    starts, sizes: of each. position: of each run of the map that is shown, shown: which runs are. total: the
    end of it all. left_out: mappings that hold something and have no place.
    """

    mappings: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    position: NDArray[np.int64]
    shown: NDArray[np.bool_]
    total: int
    left_out: int


def axis_of(picture: Picture) -> Axis:
    """Lay out the mappings that hold something."""
    outcome, found = picture.outcome, picture.map
    shift = outcome.settings.geometry.page_shift
    ptrs = outcome.settings.geometry.ptrs_per_pte
    held = np.bincount(found.mapping, found.pages, len(outcome.vmas))
    largest = np.argsort(-held, kind="stable")[:MOST_MAPPINGS]
    mappings = np.sort(largest[held[largest] > 0])
    starts, sizes, at = [], [], 0
    for k in mappings.tolist():
        vma = outcome.vmas[k]
        at += ((vma.start >> shift) - at) % ptrs
        starts.append(at)
        sizes.append((vma.end - vma.start) >> shift)
        at += sizes[-1]
    place = np.full(len(outcome.vmas) + 1, -1, np.int64)
    place[mappings] = starts
    own = place[found.mapping]
    shown = own >= 0
    return Axis(
        mappings,
        np.array(starts, np.int64),
        np.array(sizes, np.int64),
        (own + found.first)[shown],
        shown,
        at,
        int(np.count_nonzero(held)) - len(mappings),
    )


def unit_of(axis: Axis) -> int:
    """Pages of a tile such that all have room."""
    unit = 1
    while unit * COLUMNS * MOST_ROWS < axis.total:
        unit *= 2
    return unit


def rows_of(axis: Axis) -> int:
    """How many rows of tiles all takes."""
    return max(-(-axis.total // (COLUMNS * unit_of(axis))), 1)


def shares(axis: Axis, found: MemoryMap, *, after: bool) -> NDArray[np.int64]:
    """(tiles, codes): how many pages of each tile are mapped to what."""
    unit = unit_of(axis)
    codes = np.array([kind.after if after else kind.before for kind in found.kinds] or [0])
    code, pages = (
        codes[found.kind[axis.shown]] if len(found.kinds) else found.kind,
        found.pages[axis.shown],
    )
    first = axis.position // unit
    spans = (axis.position + pages - 1) // unit - first + 1
    run = np.repeat(np.arange(len(pages)), spans)
    tile = np.arange(spans.sum()) - np.repeat(spans.cumsum() - spans - first, spans)
    begin = np.maximum(axis.position[run], tile * unit)
    end = np.minimum((axis.position + pages)[run], (tile + 1) * unit)
    width = MappedTo.OTHER + 1
    tiles = COLUMNS * rows_of(axis)
    flat = np.bincount(tile * width + code[run], end - begin, tiles * width)
    return flat.astype(np.int64).reshape(tiles, width)


def tile_paths(axis: Axis, found: MemoryMap, *, after: bool) -> Iterator[str]:
    """All of it as SVG paths, one for each thing that pages are mapped to, and one for the ground."""
    unit = unit_of(axis)
    ground = np.zeros(COLUMNS * rows_of(axis), np.bool_)
    for start, size in zip(axis.starts.tolist(), axis.sizes.tolist(), strict=True):
        ground[start // unit : (start + size - 1) // unit + 1] = True
    squares = "".join(
        f"M{k % COLUMNS * STEP} {k // COLUMNS * STEP}h{SIDE}v{SIDE}h-{SIDE}z"
        for k in np.flatnonzero(ground).tolist()
    )
    yield f'<path class="ground" d="{squares}"/>'
    counts = shares(axis, found, after=after)
    counts[:, MappedTo.NOTHING] = 0
    low = np.zeros(len(counts))
    for code in (
        *range(MappedTo.ZERO - 1, MappedTo.FOLIO - 1, -1),
        *range(MappedTo.ZERO, MappedTo.OTHER + 1),
    ):
        there = np.flatnonzero(counts[:, code]).tolist()
        path = ""
        for k in there:
            high = low[k] + SIDE * counts[k, code] / unit
            x, y = k % COLUMNS * STEP, k // COLUMNS * STEP + SIDE - high
            path += f"M{x} {y:.4g}h{SIDE}v{high - low[k]:.3g}h-{SIDE}z"
            low[k] = high
        if path:
            yield f'<path class="{class_of(code)}" d="{path}"/>'
