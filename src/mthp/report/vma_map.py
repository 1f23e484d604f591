# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space by mapping, with a bar for the share of each folio size before and after."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from mthp.predict.records import Outcome, VmaUse
from mthp.report.phrases import SafeConsole, plural
from mthp.words.units import human_bytes

VMAS_SHOWN = 14
VMAS_ANYWAY = 4
SMALL = 500
"""Beyond the first few, a mapping that holds less than this part of the whole gets no row."""
_RAMP = "░▒▓"
_BASE, _HIGHEST = "·", "█"
_STYLES = {_BASE: "dim", "░": "blue", "▒": "cyan", "▓": "yellow", _HIGHEST: "green"}


def render_map(page: SafeConsole, outcome: Outcome, *, everything: bool) -> None:
    """Print a row a mapping, in address order; the largest alone unless everything is asked for."""
    vmas = [vma for vma in outcome.vmas if everything or _size(vma)]
    if not vmas:
        return
    shown = sorted(vmas, key=lambda vma: (-_size(vma), vma.pid, vma.start))
    if not everything:
        worth_a_row = sum(_size(vma) for vma in vmas) // SMALL
        few, more = shown[:VMAS_ANYWAY], shown[VMAS_ANYWAY:VMAS_SHOWN]
        shown = few + [vma for vma in more if _size(vma) >= worth_a_row]
    places = {(vma.pid, vma.start) for vma in shown}
    hidden = [vma for vma in outcome.vmas if (vma.pid, vma.start) not in places]
    shown.sort(key=lambda vma: (vma.pid, vma.start))
    glyphs = bar_glyphs(outcome)
    several = outcome.processes > 1
    fixed = 25 + 9 + 8 + (10 if several else 0)
    bar = max(6, min(32, (page.width - fixed - 34) // 2))
    page.heading("Map of the address space (bars: share of the mapping's memory by folio size)")
    rows: list[list[str | Text]] = []
    for vma in shown:
        row: list[str | Text] = [
            f"{vma.start:012x}-{vma.end:012x}",
            human_bytes(_size(vma)),
            share_bar(page, vma.before, glyphs, bar),
            share_bar(page, vma.after, glyphs, bar),
            _notes(page, vma),
        ]
        rows.append([str(vma.pid), *row] if several else row)
    columns = [("range", "keep"), ("memory", "right"), ("before", "keep"), ("after", "keep")]
    columns.append(("mapping", "left"))
    page.table([("pid", "right"), *columns] if several else columns, rows)
    page.line(_legend(outcome, glyphs), "dim", 2)
    if hidden:
        rest = human_bytes(sum(_size(vma) for vma in hidden))
        page.line(f"… {plural(len(hidden), 'mapping')} hidden, {rest}: --verbose", "dim", 2)


def bar_glyphs(outcome: Outcome) -> dict[int, str]:
    """The character that stands for each order. More than three sizes between share some."""
    orders = {order for vma in outcome.vmas for order in (*vma.before, *vma.after)}
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


def _notes(page: SafeConsole, vma: VmaUse) -> Text:
    """Gives the mapping's name, what is not in folios, and why it was turned away."""
    text = page.text(vma.name or "[anon]")
    if vma.swapped:
        text.append(page.clean(f", {human_bytes(vma.swapped)} swapped"))
    if vma.zero:
        text.append(page.clean(f", {human_bytes(vma.zero)} zero page"))
    if vma.gate:
        text.append(page.clean(f", {vma.gate}"), "yellow")
    return text


def _legend(outcome: Outcome, glyphs: Mapping[int, str]) -> str:
    names: dict[str, list[str]] = {}
    used = {order for vma in outcome.vmas for order in (*vma.before, *vma.after)}
    for order in sorted(used):
        names.setdefault(glyphs[order], []).append(outcome.settings.geometry.size_name(order))
    return "  ".join(f"{glyph} {'/'.join(sizes)}" for glyph, sizes in names.items())
