# SPDX-License-Identifier: GPL-2.0-or-later
"""A page in one file: it loads nothing, and all is there without its script too.

The script sorts tables, copies lines, zooms the map and moves about the dots. Texts of strangers are
escaped, and the page's own policy lets no script run but ours.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from mthp.report.web.colours import colour_rules
from mthp.words.files import one_line
from mthp.words.units import Geometry

_WORDS = """
<h2>The words</h2><dl>
<dt>Folio</dt><dd>A block of memory that Linux handles as one. A small one is a single page; large ones are
less work, and let one TLB entry reach more where the processor can.</dd>
<dt>TLB entry</dt><dd>What the processor keeps of where memory is. It has a few thousand; where they do not
reach, programs wait. Counted here: one for each page, one for each huge page of a whole page table.</dd>
<dt>khugepaged</dt><dd>The kernel's thread that merges small pages of running programs.</dd>
<dt>max_ptes_none</dt><dd>How many empty pages such a merge of a whole page table may fill up: the more, the
more is merged, and the more memory is used. For smaller folios only 0 and the most count.</dd></dl>"""


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return files("mthp.report.web").joinpath(name).read_text("utf-8")


def page_text(title: str, lines: Iterable[str], data: Any, geometry: Geometry) -> str:
    """The whole file. title: escaped. lines: what stands in it. data: what the script reads, as JSON."""
    script = asset("page.js")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    values = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>{asset('page.css')}{colour_rules(geometry)}</style>\n</head>\n<body>\n<main>",
            *lines,
            f"{_WORDS}\n</main>",
            f'<script type="application/json" id="data">{values}</script>',
            f"<script>{script}</script>\n</body>\n</html>\n",
        )
    )


def text_of(text: str) -> str:
    """A stranger's text as the page may have it."""
    return escape(one_line(text))


def scrolls(name: str, table: Iterable[str]) -> Iterable[str]:
    """A wide table, which can be scrolled by keys too."""
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
    yield from table
    yield "</div>"
