# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space by mapping, with a bar for the share of each folio size before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from itertools import groupby

from rich.text import Text

from mthp.predict.records import Outcome, VmaUse
from mthp.report.page import SafeConsole
from mthp.report.phrases import plural
from mthp.words.units import human_bytes

VMAS_SHOWN = 14
VMAS_ANYWAY = 4
BAR = 6
"""Columns of a bar at least."""
SMALL = 500
"""Beyond the first few, a mapping that holds less than this part of the whole gets no row."""
_RAMP = "░▒▓"
_BASE, _HIGHEST = "·", "█"
_STYLES = {_BASE: "dim", "░": "blue", "▒": "cyan", "▓": "yellow", _HIGHEST: "green"}


def render_map(page: SafeConsole, outcome: Outcome) -> None:
    """Print a row a mapping, in address order; the largest alone unless the page is verbose.

    Those that are turned away stand together under what turns them away.
    """
    sizes = [*map(_size, outcome.vmas)]
    total = sum(sizes)
    if not (sizes if page.verbose else total):
        return
    shown = [*outcome.vmas]
    if not page.verbose:
        held = ((size, vma) for size, vma in zip(sizes, shown, strict=True) if size)
        first = nsmallest(VMAS_SHOWN, held, key=lambda each: (-each[0], each[1].pid, each[1].start))
        shown = [
            vma for k, (size, vma) in enumerate(first) if k < VMAS_ANYWAY or size >= total // SMALL
        ]
    hidden = len(sizes) - len(shown)
    gates = Counter({"": sum(map(_size, shown)) + 1})
    for vma in shown:
        gates[vma.gate] += _size(vma)
    shown.sort(key=lambda vma: (-gates[vma.gate], vma.gate, vma.pid, vma.start))
    page.heading("Map of the address space (bars: share of the mapping's memory by folio size)")
    _rows(page, outcome, shown)
    glyphs = bar_glyphs(outcome)
    page.line(_legend(outcome, glyphs), "dim", 2)
    if hidden:
        rest = human_bytes(total - sum(map(_size, shown)))
        page.line(f"… {plural(hidden, 'mapping')} hidden, {rest}: --verbose", "dim", 2)


def _rows(page: SafeConsole, outcome: Outcome, shown: Sequence[VmaUse]) -> None:
    """Print mappings, gate by gate; the columns of all are as wide. The first bar goes where there is no
    room for two.
    """
    glyphs = bar_glyphs(outcome)
    several = outcome.processes > 1
    pids = max(3, *(len(str(vma.pid)) for vma in shown))
    ranges = max(25, *(len(_range(vma)) for vma in shown))
    room = page.width - ranges - (pids + 2) * several
    bar = max(BAR, min(32, (room - 51) // 2))
    columns = [("range", "keep"), ("memory", "right"), ("before", "keep"), ("after", "keep")]
    columns.append(("mapping", "left"))
    if room < 35:
        del columns[2]
    titled = False
    for gate, vmas in groupby(shown, key=lambda vma: vma.gate):
        if gate:
            page.line(f"passed by: {gate}", "yellow", 2)
        rows: list[list[str | Text]] = []
        for vma in vmas:
            cells: dict[str, str | Text] = {
                "range": _range(vma).ljust(ranges),
                "memory": human_bytes(_size(vma)).rjust(8),
                "before": share_bar(page, vma.before, glyphs, bar),
                "after": share_bar(page, vma.after, glyphs, bar),
                "mapping": _notes(vma),
            }
            row = [cells[title] for title, _ in columns]
            rows.append([str(vma.pid).rjust(pids), *row] if several else row)
        page.table([("pid", "right"), *columns] if several else columns, rows, grid=titled)
        titled = True


def bar_glyphs(outcome: Outcome) -> dict[int, str]:
    """The character that stands for each order. More than three sizes between share some."""
    orders = {*outcome.orders_before, *outcome.orders_after}
    between = sorted(orders - {0, outcome.pmd_order})
    glyphs = {
        order: _RAMP[place * len(_RAMP) // max(len(between), len(_RAMP))]
        for place, order in enumerate(between)
    }
    return {0: _BASE, **glyphs, outcome.pmd_order: _HIGHEST}


def share_bar(
    page: SafeConsole, use: Mapping[int, int], glyphs: Mapping[int, str], width: int
) -> Text:
    """A bar of width characters; each size that is there gets one at least."""
    present = {order: size for order, size in sorted(use.items()) if size}
    total = sum(present.values())
    cells = {order: max(1, width * size // total) for order, size in present.items()}
    while cells and sum(cells.values()) != width:
        short = sum(cells.values()) < width
        # What is furthest from its share gives or takes, but nothing that is there disappears.
        able = [order for order in cells if short or cells[order] > 1]
        if not able:
            break
        off = {order: present[order] * width / total - cells[order] for order in able}
        order = max(off, key=lambda o: off[o]) if short else min(off, key=lambda o: off[o])
        cells[order] += 1 if short else -1
    bar = Text()
    for order, number in cells.items():
        bar.append(page.clean(glyphs[order] * number), _STYLES[glyphs[order]])
    bar.append(" " * (width - sum(cells.values())))
    return bar


def _size(vma: VmaUse) -> int:
    return max(sum(vma.before.values()), sum(vma.after.values()), vma.swapped + vma.zero)


def _range(vma: VmaUse) -> str:
    return f"{vma.start:012x}-{vma.end:012x}"


def _notes(vma: VmaUse) -> str:
    """Gives the mapping's name, and what is not in folios."""
    words = vma.name or "[anon]"
    if vma.swapped:
        words += f", {human_bytes(vma.swapped)} swapped"
    if vma.zero:
        words += f", {human_bytes(vma.zero)} zero page"
    return words


def _legend(outcome: Outcome, glyphs: Mapping[int, str]) -> str:
    names: dict[str, list[str]] = {}
    for order in sorted({*outcome.orders_before, *outcome.orders_after}):
        names.setdefault(glyphs[order], []).append(outcome.settings.geometry.size_name(order))
    return "  ".join(f"{glyph} {'/'.join(sizes)}" for glyph, sizes in names.items())
