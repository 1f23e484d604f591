# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan as one SVG picture: memory before and after as tiles, and what that comes to in two lines."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import PurePath

from mthp.plan.records import Comparison, MappedTo, Picture
from mthp.report.phrases import more_memory, percent
from mthp.report.sweep import sizes_text, within_text
from mthp.report.web.colours import class_of, colour_rules, name_of_code
from mthp.report.web.memory_map import held_bytes
from mthp.report.web.tiles import COLUMNS, STEP, axis_of, rows_of, tile_paths, unit_of
from mthp.words.files import one_line
from mthp.words.units import human_bytes

_EDGE, _GAP, _TOP, _LINE = 24, 32, 118, 24
_WIDTH = 2 * _EDGE + _GAP + 2 * COLUMNS * STEP
_CHARACTERS = 94
"""Of a line of text at most."""
_STYLE = """
svg{font:14px system-ui,sans-serif}.paper{fill:#fff}text{fill:#1f2328}.big{font-size:19px;font-weight:bold}
.dim{fill:#59636e}.ground{fill:#d1d9e0;opacity:.55}.caption{font-weight:bold}
@media(prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#e6edf3}.dim{fill:#9aa4af}.ground{fill:#353c45}}"""


def picture_svg(comparison: Comparison, picture: Picture) -> str:
    """The whole file. picture: of the settings given."""
    axis, geometry = axis_of(picture), picture.outcome.settings.geometry
    keys = [*_keys(picture)]
    below = _TOP + rows_of(axis) * STEP + 30
    height = below + _LINE * -(-len(keys) // 3) + _LINE
    title, *lines = _texts(comparison)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" role="img" aria-labelledby="title">',
        f'<title id="title">{title}: {"; ".join(lines)}</title>',
        f"<style>{_STYLE}{colour_rules(geometry)}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
        f'<text class="big" x="{_EDGE}" y="34">{title}</text>',
    ]
    parts += [
        f'<text class="dim" x="{_EDGE}" y="{58 + 20 * k}">{line}</text>'
        for k, line in enumerate(lines)
    ]
    for after, name in ((False, "Now"), (True, "Then")):
        x = _EDGE + after * (COLUMNS * STEP + _GAP)
        parts.append(f'<text class="caption" x="{x}" y="{_TOP - 10}">{name}</text>')
        parts.append(f'<g transform="translate({x} {_TOP})">')
        parts += tile_paths(axis, picture.map, after=after)
        parts.append("</g>")
    column = (_WIDTH - 2 * _EDGE) / 3
    for k, (kind, text) in enumerate(keys):
        x, y = _EDGE + round(k % 3 * column), below + k // 3 * _LINE
        parts.append(f'<rect class="{kind}" x="{x}" y="{y - 11}" width="12" height="12"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{text}</text>')
    square = human_bytes(unit_of(axis) * geometry.page_size)
    parts.append(
        f'<text class="dim" x="{_EDGE}" y="{height - 14}">A square is {square} of addresses, filled by the '
        "size of folio that maps it. Predicted by mthp plan.</text>"
    )
    return "\n".join((*parts, "</svg>", ""))


def _texts(comparison: Comparison) -> Iterator[str]:
    """The title, and lines below it."""
    now, given = comparison.now, comparison.given
    name = one_line(PurePath(comparison.basis.target).name)
    texts = (
        f"{name}: {percent(given.large, given.mapped)} of {human_bytes(given.mapped)} in large folios",
        f"with {sizes_text(given.settings)}, max_ptes_none {given.settings.max_ptes_none}; as set now "
        f"{percent(now.large, now.mapped)}",
        f"{given.translations:,} TLB entries instead of {now.translations:,}; "
        f"{more_memory(given.memory_added)}; the last collapse within {within_text(given)}",
    )
    for text in texts:
        yield escape(text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…")


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
