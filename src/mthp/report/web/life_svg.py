# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded life as one SVG picture: its memory against time, as given and without huge pages."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mthp.life.recorded_records import Lived
from mthp.report.phrases import percent
from mthp.report.web.life_curves import CurveField, axes, step_path
from mthp.report.web.svg_page import EDGE, svg_page
from mthp.words.files import one_line
from mthp.words.units import human_bytes

_WIDTH, _HEIGHT = 760, 420
_STYLE = """
.axis{stroke:#d1d9e0;fill:none}.curve{fill:none;stroke-width:2.5}.given{stroke:#0969da}.added{stroke:#bc4c00}
.without{stroke:#59636e;stroke-dasharray:5 4;stroke-width:1.6}.dot{fill:#0969da}
@media(prefers-color-scheme:dark){.axis{stroke:#353c45}.given{stroke:#58a6ff}.added{stroke:#f0883e}
.without{stroke:#9aa4af}.dot{fill:#58a6ff}}"""


def life_svg_text(lived: Lived) -> str:
    """The whole file."""
    return svg_page(_WIDTH, _HEIGHT, [*_texts(lived)], _STYLE, _drawn(lived))


def _texts(lived: Lived) -> Iterator[str]:
    before, after, page = lived.recorded.peak, lived.given.peak, lived.geometry.page_size
    saved = percent(lived.recorded.faults - lived.given.faults, lived.recorded.faults)
    yield one_line(lived.command)
    yield lived.given.settings.describe().partition(", swap")[0]
    yield (
        f"{human_bytes(after.frames * page)} at the peak, {percent(after.huge, after.frames)} in large "
        f"folios; without huge pages {human_bytes(before.frames * page)}; {saved} of the faults saved"
    )


def _drawn(lived: Lived) -> Iterator[str]:
    """The curves, the peak, and what each is."""
    both = (lived.recorded.curve, lived.given.curve)
    most = max(1, *(int(np.max(each.frames, initial=0)) for each in both))
    field = CurveField(round(lived.seconds * 1e9), most, 96, _WIDTH - EDGE, 116, _HEIGHT - 84)
    yield from axes(field, lived.geometry.page_size)
    keys = {"given": "as given", "without": "without huge pages"}
    for kind, curve in zip(("without", "given"), both, strict=True):
        yield f'<path class="curve {kind}" d="{step_path(field, curve.time, curve.frames)}"/>'
    work, peak = lived.given.khugepaged, lived.given.peak
    if work is not None and work.points:
        times, added = np.array([(each.time, each.added) for each in work.points], np.int64).T
        yield f'<path class="curve added" d="{step_path(field, times, np.maximum(added, 0))}"/>'
        keys["added"] = "added by khugepaged"
    yield f'<circle class="dot" cx="{field.x(peak.time)}" cy="{field.y(peak.frames)}" r="5"/>'
    y = _HEIGHT - 34
    for k, (kind, name) in enumerate(keys.items()):
        x = 96 + 200 * k
        yield f'<path class="curve {kind}" d="M{x} {y - 5}h28"/><text x="{x + 36}" y="{y}">{name}</text>'
    yield (
        f'<text class="dim" x="{EDGE}" y="{_HEIGHT - 12}">Frames that anonymous folios take, of all '
        "processes. Predicted by mthp life.</text>"
    )
