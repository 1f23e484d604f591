# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan as one SVG picture: memory before and after as tiles, and what that comes to in two lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from mthp.plan.records import Comparison, MappedTo, Picture
from mthp.report.phrases import more_memory, percent
from mthp.report.sweep import sizes_text, within_text
from mthp.report.web.colours import class_of, colour_rules, name_of_code
from mthp.report.web.memory_map import held_bytes
from mthp.report.web.svg_page import EDGE, svg_page
from mthp.report.web.tiles import COLUMNS, STEP, axis_of, rows_of, tile_paths, unit_of
from mthp.words.files import one_line
from mthp.words.units import human_bytes

_GAP, _TOP, _LINE = 32, 118, 24
_WIDTH = 2 * EDGE + _GAP + 2 * COLUMNS * STEP


def picture_svg(comparison: Comparison, picture: Picture) -> str:
    """The whole file. picture: of the settings given."""
    axis, geometry = axis_of(picture), picture.outcome.settings.geometry
    keys = [*_keys(picture)]
    below = _TOP + rows_of(axis) * STEP + 30
    height = below + _LINE * -(-len(keys) // 3) + _LINE
    parts = []
    for after, name in ((False, "Now"), (True, "Then")):
        x = EDGE + after * (COLUMNS * STEP + _GAP)
        parts.append(f'<text class="caption" x="{x}" y="{_TOP - 10}">{name}</text>')
        parts.append(f'<g transform="translate({x} {_TOP})">')
        parts += tile_paths(axis, picture.map, after=after)
        parts.append("</g>")
    column = (_WIDTH - 2 * EDGE) / 3
    for k, (kind, text) in enumerate(keys):
        x, y = EDGE + round(k % 3 * column), below + k // 3 * _LINE
        parts.append(f'<rect class="{kind}" x="{x}" y="{y - 11}" width="12" height="12"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{text}</text>')
    square = human_bytes(unit_of(axis) * geometry.page_size)
    parts.append(
        f'<text class="dim" x="{EDGE}" y="{height - 14}">A square is {square} of addresses, filled by the '
        "size of folio that maps it. Predicted by mthp plan.</text>"
    )
    return svg_page(_WIDTH, height, [*_texts(comparison)], colour_rules(geometry), parts)


def _texts(comparison: Comparison) -> Iterator[str]:
    """The title, and lines below it."""
    now, given = comparison.now, comparison.given
    name = one_line(PurePath(comparison.basis.target).name)
    yield from (
        f"{name}: {percent(given.large, given.mapped)} of {human_bytes(given.mapped)} in large folios",
        f"with {sizes_text(given.settings)}, max_ptes_none {given.settings.max_ptes_none}; as set now "
        f"{percent(now.large, now.mapped)}",
        f"{given.translations:,} TLB entries instead of {now.translations:,}; "
        f"{more_memory(given.memory_added)}; the last collapse within {within_text(given)}",
    )


def _keys(picture: Picture) -> Iterator[tuple[str, str]]:
    """The colours that are there, and how much memory each is before and after."""
    geometry = picture.outcome.settings.geometry
    for code, before, after in held_bytes(picture):
        name = (
            geometry.size_name(code - MappedTo.FOLIO)
            if code < MappedTo.ZERO
            else name_of_code(code, geometry)
        )
        yield class_of(code), f"{name}: {human_bytes(before)} → {human_bytes(after)}"
