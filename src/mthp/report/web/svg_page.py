# SPDX-License-Identifier: GPL-2.0-or-later
"""What SVG pictures of memory have alike: the paper, light or dark, with a title and lines below it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

EDGE = 24
"""Around the picture, in pixels."""
_CHARACTERS = 94
"""Of a line of text at most."""
_STYLE = """
svg{font:14px system-ui,sans-serif}.paper{fill:#fff}text{fill:#1f2328}.big{font-size:19px;font-weight:bold}
.dim{fill:#59636e}.ground{fill:#d1d9e0;opacity:.55}.caption{font-weight:bold}
@media(prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#e6edf3}.dim{fill:#9aa4af}.ground{fill:#353c45}}"""


def svg_page(
    width: int, height: int, texts: Sequence[str], style: str, parts: Iterable[str]
) -> str:
    """The whole file. texts: the title, and lines below it, from 34 pixels below the top on and every 20 from
    58 on. style: rules of its own. parts: what is drawn."""
    title, *lines = _shortened(texts)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="title">',
        f'<title id="title">{title}: {"; ".join(lines)}</title>',
        f"<style>{_STYLE}{style}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        f'<text class="big" x="{EDGE}" y="34">{title}</text>',
    ]
    head += [
        f'<text class="dim" x="{EDGE}" y="{58 + 20 * k}">{line}</text>'
        for k, line in enumerate(lines)
    ]
    return "\n".join((*head, *parts, "</svg>", ""))


def _shortened(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield escape(text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…")
