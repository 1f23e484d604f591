# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep as one HTML file for a colleague: what to take and why, the memory page by page, every setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from itertools import groupby
from math import sqrt
from operator import attrgetter

from mthp.plan.records import BulkVerdict, Picture, Sweep
from mthp.report.basis import name_of
from mthp.report.phrases import percent, plural
from mthp.report.sweep import (
    boot_parameter,
    grounds_text,
    headline,
    more_text,
    note_texts,
    plan_name,
    sizes_text,
    sooner_text,
    wish_text,
    within_text,
)
from mthp.report.web.answer import now_text, reach_text, tiles
from mthp.report.web.how import WORDS, how_lines, rests_on
from mthp.report.web.memory_map import map_data, map_lines, mapping_lines
from mthp.report.web.page import page_text, scrolls, text_of
from mthp.report.web.time_curve import time_lines
from mthp.words.costs import PUBLISHED
from mthp.words.settings import Enabled, Settings
from mthp.words.units import human_bytes

NAMES_SHOWN = 6
_RANK = ("other", "on", "now", "take")
"""Classes of settings, from those that another betters to what is recommended."""
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 720, 100, 672, 48, 440, 540
"""Of the plot, and of its field: pixels, where the screen has so many."""


def html_text(sweep: Sweep, picture: Picture) -> str:
    """The whole file. picture: of what it recommends, or else comes nearest, or is set."""
    then = f"With {plan_name(_plan(sweep))}"
    data = map_data(picture)
    lines = (
        *_answer(sweep),
        *how_lines(sweep.base, _plan(sweep).settings if sweep.gains else sweep.base),
        *_sooner(sweep),
        *_notes(sweep),
        *map_lines(picture, then, data["every"]),
        *_plots(sweep),
        *time_lines(picture.outcome.timeline),
        *_bars(sweep),
        *mapping_lines(picture),
        *_settings(sweep),
        *rests_on(sweep.basis, grounds_text(sweep)),
    )
    title = f"{_title(sweep)}: {text_of(sweep.basis.target)}"
    return page_text(title, lines, data, sweep.base.geometry)


def _title(sweep: Sweep) -> str:
    if sweep.chosen is None:
        return "No setting gives what was asked for"
    if not sweep.gains:
        return "Recommended: leave the settings as they are"
    if not any(mode is not Enabled.NEVER for mode in sweep.chosen.settings.sizes.values()):
        return "Recommended: no huge pages by khugepaged"
    return f"Recommended: huge pages of {plan_name(sweep.chosen)}"


def _plan(sweep: Sweep) -> BulkVerdict:
    """What the page is about: what is recommended, or comes nearest."""
    return sweep.nearest if sweep.gains or sweep.chosen is None else sweep.now


def shown_settings(sweep: Sweep) -> Settings:
    """The settings that the page has a picture of."""
    return _plan(sweep).settings


def _kinds(sweep: Sweep) -> list[tuple[BulkVerdict, str, str]]:
    """Every plan, that for what is set first, with its class and its mark."""
    mark = "nearest" if sweep.chosen is None else "recommended"
    found = [(sweep.now, "now", "now set")]
    for plan, front in zip(sweep.plans, sweep.front, strict=True):
        if plan is _plan(sweep):
            found.append((plan, "take", mark))
        else:
            found.append((plan, "on", "front") if front else (plan, "other", ""))
    return found


def _figures(plan: BulkVerdict) -> str:
    share = plan.memory_added / max(sum(plan.before.values()), 1)
    return (
        f"{percent(plan.large, plan.mapped)} in large folios, {plan.translations:,} TLB entries, "
        f"{human_bytes(plan.memory_added)} ({100 * share:.2g} %) more memory"
    )


def _answer(sweep: Sweep) -> Iterator[str]:
    """What is recommended, in plain words, and why."""
    plan, now, tried = _plan(sweep), sweep.now, plural(len(sweep.plans), "setting")
    yield f'<p class="dim">Huge pages for {text_of(name_of(sweep.basis))}</p><h1>{_title(sweep)}</h1>'
    lead = escape(headline(sweep))
    if sweep.gains:
        lead = (
            "This tells Linux how far to merge small pages into larger ones. Predicted: "
            f"{percent(plan.large, plan.mapped)} of {human_bytes(plan.mapped)} will be in large folios, and "
            f"the processor needs {plan.translations:,} TLB entries to reach all of it instead of "
            f"{now.translations:,}. {reach_text(plan, now)} That takes {human_bytes(plan.memory_added)} more "
            "memory."
        )
    yield f'<p class="lead">{lead}</p>{WORDS}'
    yield from tiles(plan, now, PUBLISHED)
    setting = f"{plan_name(now)} (enabled={sweep.base.enabled}, {boot_parameter(sweep.base)})"
    yield f'<p class="dim">As set now: {setting}.{now_text(now)}</p>'
    if not sweep.gains:
        return
    hold = sum(not sweep.wish.missed_by(each) for each in sweep.plans)
    why = (
        f"Why: {hold:,} of {tried} tried hold to what was asked for: {wish_text(sweep.wish)}. Of these, "
        f"{plan_name(plan)} needs the fewest TLB entries; among equals, it has the least in small folios."
    )
    if sweep.wish.missed_by(now):
        why += f" What is set now does not: {_figures(now)}."
    if fewer := [each for each in sweep.plans if each.translations < plan.translations]:
        other = min(fewer, key=lambda each: (-each.translations, each.price))
        why += f" The next with fewer, {plan_name(other)}, does not hold to it: {_figures(other)}."
    yield f"<p>{escape(why)}</p>"


def _sooner(sweep: Sweep) -> Iterator[str]:
    """How the same is had sooner."""
    if sweep.gains and sweep.sooner:
        plan = _plan(sweep)
        texts = (sooner_text(plan, each).removeprefix("sooner: ") for each in sweep.sooner)
        items = "".join(f"<li>{escape(text)}</li>" for text in texts)
        yield (
            "<p>It is done by khugepaged, a part of Linux that goes through memory a little at a time. The "
            f"same is had sooner, for as much work in less time, with</p><ul>{items}</ul>"
        )


def _notes(sweep: Sweep) -> Iterator[str]:
    """What the recommended settings mean beside."""
    if sweep.gains and sweep.notes:
        items = "".join(f"<li>{escape(text)}</li>" for text in note_texts(sweep))
        yield f"<h2>What else these settings mean</h2><ul>{items}</ul>"


# --- the plots --------------------------------------------------------------------------------


def _share(plan: BulkVerdict) -> float:
    return plan.large / max(plan.mapped, 1)


class _Field:
    """Where things are on a plot: shares to the right, bytes upwards."""

    def __init__(
        self,
        plans: list[BulkVerdict],
        share: Callable[[BulkVerdict], float] = _share,
        size: Callable[[BulkVerdict], int] = attrgetter("memory_added"),
    ) -> None:
        self.share, self.size = share, size
        sizes = sorted(map(size, plans))
        least, most = min(0, sizes[0]), max(0, sizes[-1]) or 1 << 20
        self.step = 1 << max((most - least) // 4, 1023).bit_length()
        self.low, self.high = least // self.step, -(-most // self.step)
        self.most = max(1, *(plan.translations for plan in plans))

    def x(self, share: float) -> float:
        return round(_LEFT + 20 + share * (_RIGHT - _LEFT - 20), 1)

    def y(self, size: float) -> float:
        part = (size / self.step - self.low) / (self.high - self.low)
        return round(_BOTTOM - part * (_BOTTOM - _TOP), 1)

    def place(self, plan: BulkVerdict) -> tuple[float, float]:
        """The middle of a plan's dot."""
        return self.x(self.share(plan)), self.y(self.size(plan))

    def dot(self, equal: list[tuple[BulkVerdict, str, str]]) -> str:
        """One dot for plans of one price, the area as the TLB entries. That of note comes first."""
        plan, kind, mark = equal[0]
        names = "; ".join(plan_name(each) for each, *_ in equal[:NAMES_SHOWN])
        more = f" and {len(equal) - NAMES_SHOWN} more" if len(equal) > NAMES_SHOWN else ""
        text = escape(f"{mark}{': ' if mark else ''}{names}{more}: {_figures(plan)}")
        x, y = self.place(plan)
        radius = max(12 * sqrt(plan.translations / self.most), 7 if kind == "take" else 3.5)
        stop = -1 if kind == "other" else 0
        return (
            f'<circle class="dot {kind}" tabindex="{stop}" role="img" aria-label="{text}" cx="{x}" '
            f'cy="{y}" r="{radius:.1f}"><title>{text}</title></circle>'
        )

    def label(self, plan: BulkVerdict, kind: str, mark: str) -> str:
        """The name of a dot: above it, and below it for what is set now."""
        (x, y), off = self.place(plan), 28 if kind == "now" else -14
        side = "end" if x > _WIDTH * 0.8 else "start" if x < _WIDTH * 0.2 else "middle"
        return f'<text class="name {kind}" x="{x}" y="{y + off}" text-anchor="{side}">{mark}</text>'

    def axes(self, up: str, right: str) -> Iterator[str]:
        """Lines and numbers. up, right: what they are of."""
        for tick in range(self.low, self.high + 1):
            y, name = self.y(tick * self.step), human_bytes(tick * self.step)
            yield f'<path class="axis" d="M{_LEFT} {y}H{_RIGHT}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 5}" text-anchor="end">{name}</text>'
        for share in (0, 25, 50, 75, 100):
            x = self.x(share / 100)
            yield f'<path class="axis" d="M{x} {_TOP}V{_BOTTOM}"/>'
            yield f'<text x="{x}" y="{_BOTTOM + 58}" text-anchor="middle">{share}%</text>'
        yield f'<text x="0" y="{_TOP - 20}">{up}</text>'
        yield f'<text x="{_RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{right}</text>'

    def dots(self, kinds: list[tuple[BulkVerdict, str, str]]) -> Iterator[str]:
        """A dot for all settings of one price, what is of note above the others; and the names of these."""
        groups = [
            sorted(equal, key=lambda each: -_RANK.index(each[1]))
            for _, equal in groupby(sorted(kinds[1:], key=_same), key=_same)
        ]
        groups.append(kinds[:1])
        groups.sort(key=lambda equal: (_RANK.index(equal[0][1]) // 2, -equal[0][0].translations))
        yield from map(self.dot, groups)
        yield from (self.label(*each) for each in kinds if each[1] in ("now", "take"))


def _plots(sweep: Sweep) -> Iterator[str]:
    """All settings: memory added against the share in large folios, and work against reach."""
    kinds = _kinds(sweep)
    plans = [plan for plan, *_ in kinds]
    field = _Field(plans)
    yield (
        '<h2>What every setting gives and costs</h2><figure class="plot">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" aria-label="Memory added against the share in '
        'large folios, a dot for each setting; the last table has the same figures">'
    )
    yield from field.axes("memory added", "in large folios")
    yield from _limits(sweep, field)
    front = [plan for plan, on in zip(sweep.plans, sweep.front, strict=True) if on]
    front.sort(key=lambda plan: (plan.memory_added, plan.large))
    points = " ".join("{},{}".format(*field.place(plan)) for plan in front)
    yield f'<polyline class="front" points="{points}"/>'
    yield from field.dots(kinds)
    yield (
        "</svg><figcaption>Better is further to the right, further down, and a smaller dot: the area is the "
        "number of TLB entries. Blue, and joined, is the front: no other setting is as good in all three and "
        "better in one. Point at a dot, or use the Tab and arrow keys."
        "<br><output></output></figcaption></figure>"
    )
    work = _Field(plans, attrgetter("reach"), attrgetter("collapsed_bytes"))
    yield (
        f'<figure class="plot"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" aria-label="Work, once, '
        'against the share that huge pages of a whole page table map, a dot for each setting">'
    )
    yield from work.axes("copied and cleared, once", "mapped by PMDs")
    yield from work.dots(kinds)
    yield (
        "</svg><figcaption>The same settings by the work they take: what khugepaged copies and clears until "
        "it is done, against what huge pages of a whole page table map, of which each needs one TLB entry. "
        "Better is further to the right and further down.<br><output></output></figcaption></figure>"
    )


def _same(each: tuple[BulkVerdict, str, str]) -> tuple[float, ...]:
    """What settings have in common that are one dot."""
    return (*each[0].price[:3], each[0].large, each[0].reach, each[0].collapsed_bytes)


def _limits(sweep: Sweep, field: _Field) -> Iterator[str]:
    """Where what was asked for ends."""
    most = sweep.wish.added
    if most is not None and (y := field.y(most * sum(sweep.now.before.values()))) > _TOP:
        yield f'<path class="over" d="M{_LEFT} {_TOP}H{_RIGHT}V{y}H{_LEFT}z"/>'
        yield f'<path class="limit" d="M{_LEFT} {y}H{_RIGHT}"/>'
        name = f"more than was asked for: {100 * most:g} %"
        yield f'<text class="name now" x="{_LEFT + 30}" y="{_TOP + 32}">{name}</text>'
    if sweep.wish.large is not None:
        x = field.x(sweep.wish.large)
        yield f'<path class="over" d="M{_LEFT} {_TOP}H{x}V{_BOTTOM}H{_LEFT}z"/>'
        yield f'<path class="limit" d="M{x} {_TOP}V{_BOTTOM}"/>'


# --- bars and tables ----------------------------------------------------------------------------


def _bars(sweep: Sweep) -> Iterator[str]:
    """Memory by size of folio, as it is and as it will be."""
    geometry, plan, now = sweep.base.geometry, _plan(sweep), sweep.now
    bars = [("As captured", now.before), (f"With {plan_name(plan)}", plan.after)]
    if plan is not now and now.after != now.before:
        bars.insert(1, (f"As set now, {plan_name(now)}, at the end", now.after))
    widest = max(1, *(sizes.total() for _, sizes in bars))
    yield "<h2>Memory by size of folio</h2>"
    for name, sizes in bars:
        parts = keys = ""
        for order in sorted(+sizes):
            share = 100 * sizes[order] / widest
            parts += f'<span class="o{order}" style="width:{share:.2f}%"></span>'
            keys += (
                f'<span><span class="key o{order}"></span>{geometry.size_name(order)}: '
                f"{human_bytes(sizes[order])}</span> "
            )
        yield (
            f'<figure>{name}<div class="bar">{parts}</div><figcaption class="keys">{keys}</figcaption>'
            "</figure>"
        )


def _is_usual(sweep: Sweep, plan: BulkVerdict) -> bool:
    """Whether it differs from what is set in sizes and max_ptes_none alone; what --within raised apart."""
    base, settings = sweep.base, plan.settings
    return (settings.defrag, settings.scan_sleep_millisecs) == (
        base.defrag,
        base.scan_sleep_millisecs,
    )


def _settings(sweep: Sweep) -> Iterator[str]:
    """Every setting, fewest TLB entries first."""
    heads = ("sizes", "max_ptes_none", "large", "TLB entries", "added", "copied", "within", "")
    yield "<h2>All settings</h2>"
    table = ['<table class="sorts"><thead><tr>']
    for head in heads:
        order = "ascending" if head == "TLB entries" else "none"
        table.append(f'<th scope="col" aria-sort="{order}">{head or "mark"}</th>')
    table.append("</tr></thead><tbody>")
    kinds = [each for each in _kinds(sweep) if each[1] != "other" or _is_usual(sweep, each[0])]
    for plan, kind, mark in sorted(kinds, key=lambda each: each[0].translations):
        settings = plan.settings
        sizes = [order for order, mode in settings.sizes.items() if mode is not Enabled.NEVER]
        cells = (
            (sum(1 << order for order in sizes), sizes_text(settings) + more_text(settings)),
            (settings.max_ptes_none, settings.max_ptes_none),
            (plan.large / max(plan.mapped, 1), percent(plan.large, plan.mapped)),
            (plan.translations, f"{plan.translations:,}"),
            (plan.memory_added, human_bytes(plan.memory_added)),
            (plan.copied_bytes, human_bytes(plan.copied_bytes)),
            (plan.last_collapse_ms or 0, within_text(plan)),
            (_RANK.index(kind), mark),
        )
        row = "".join(f'<td data-v="{value}">{text}</td>' for value, text in cells)
        table.append(f'<tr class="{kind}">{row}</tr>')
    table.append("</tbody></table>")
    yield from scrolls("All settings", table)
