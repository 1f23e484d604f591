# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a program phase by phase, as khugepaged and shrinkers leave it: a table, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from mthp.compare.records import Forecast, PhaseMemory
from mthp.report.measured import setting_text
from mthp.report.page import SafeConsole
from mthp.words.files import one_line
from mthp.words.units import human_bytes

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 84, 640, 92, 320, 860, 400
_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a")
_APART = 17
"""Pixels between two names of lines at least."""
_STYLE = """
svg{font:14px system-ui,sans-serif}.paper{fill:#fff}text{fill:#1f2328}.big{font-size:19px;font-weight:bold}
.dim{fill:#59636e}.axis{stroke:#d1d9e0;fill:none}.line{fill:none;stroke-width:2}.guest{fill:none;stroke-width:2}
@media(prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#e6edf3}.dim{fill:#9aa4af}.axis{stroke:#353c45}}"""


class _Moment(NamedTuple):
    """Memory at one moment, as predicted and as it was; what is captured is both."""

    phase: str
    name: str
    model: int
    guest: int


def with_memory(forecasts: Sequence[Forecast]) -> dict[str, dict[str, list[PhaseMemory]]]:
    """Program, with what all of its settings have in common -> the rest of each -> its phases; of the
    forecasts that know of memory."""
    found: dict[str, dict[str, list[PhaseMemory]]] = {}
    for each in forecasts:
        if each.memory is not None:
            program = each.target.partition(",")[0]
            of_program = found.setdefault(program, {})
            of_program.setdefault(setting_text(each.settings), []).append(each.memory)
    return {
        ", ".join((program, *common)): {
            ", ".join(part for part in text.split(", ") if part not in common): phases
            for text, phases in of_settings.items()
        }
        for program, of_settings in found.items()
        for common in [_common([*of_settings])]
    }


def _common(texts: Sequence[str]) -> list[str]:
    """The parts that all of the settings have."""
    parts = [text.split(", ") for text in texts]
    return [part for part in parts[0] if all(part in each for each in parts)]


def render_phases(page: SafeConsole, forecasts: Sequence[Forecast]) -> None:
    """Print a table of each program."""
    numbers = ("loaded", "collapsed", "guest", "shrunk", "guest", "split", "underused")
    columns = [("phase", "left"), ("", "keep"), *((name, "right") for name in numbers)]
    for program, of_settings in with_memory(forecasts).items():
        page.heading(f"Memory of {program}, phase by phase")
        rows: list[tuple[str, ...]] = []
        for settings, phases in of_settings.items():
            for each in phases:
                later = each.collapsed + (each.shrunk or ())
                cells = [human_bytes(size) for size in (each.loaded, *later)]
                if each.shrunk is not None:
                    cells += [f"{each.split:,}", f"{each.underused:,}"]
                rows.append((each.phase, settings, *cells, *[""] * (len(numbers) - len(cells))))
        # By phase first, so that settings stand side by side.
        order = list(dict.fromkeys(row[0] for row in rows))
        rows.sort(key=lambda row: order.index(row[0]))
        page.table(columns, rows, indent=0)
    page.line(
        "Whole folios behind anonymous pages. collapsed: when khugepaged has come to rest; shrunk: when "
        "shrinkers have been called then; each as predicted from the capture, and in the guest. split: large "
        "folios that they split, as predicted; underused: for their pages of zeros.",
        "dim",
    )


def _moments(phases: Sequence[PhaseMemory]) -> Iterator[_Moment]:
    for each in phases:
        yield _Moment(each.phase, "loaded", each.loaded, each.loaded)
        yield _Moment(each.phase, "collapsed", *each.collapsed)
        if each.shrunk is not None:
            yield _Moment(each.phase, "shrunk", *each.shrunk)


def phases_svg(forecasts: Sequence[Forecast]) -> str:
    """A picture of the first program's memory: a line for each settings, as predicted, with a ring where the
    guest was."""
    program, of_settings = next(iter(with_memory(forecasts).items()))
    lines = {name: [*_moments(phases)] for name, phases in of_settings.items()}
    first = next(iter(lines.values()))
    most = max(max(each.model, each.guest) for moments in lines.values() for each in moments)
    top = _round_up(most)
    kernel = next(each.kernel for each in forecasts if each.memory is not None)
    title = f"{escape(one_line(program))}: memory, phase by phase"
    what = f"lines: predicted from the capture at their beginning; rings: Linux {escape(kernel)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">{title}; {what}</title>',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text class="big" x="24" y="34">{title}</text>',
        f'<text class="dim" x="24" y="58">{what}</text>',
    ]

    def y_of(size: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * size / top, 1)

    xs = [round(_LEFT + (_RIGHT - _LEFT) * (k + 0.5) / len(first), 1) for k in range(len(first))]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = y_of(top * share)
        parts.append(f'<path class="axis" d="M{_LEFT} {y}H{_RIGHT}"/>')
        size = human_bytes(round(top * share))
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 5}" text-anchor="end">{size}</text>')
    parts += _phase_names(first, xs)
    ends = _spread_out([y_of(moments[-1].model) for moments in lines.values()])
    for k, (name, moments) in enumerate(lines.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        path = " ".join(f"{x},{y_of(each.model)}" for x, each in zip(xs, moments, strict=False))
        parts.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
        parts += [
            f'<circle class="guest" stroke="{colour}" cx="{x}" cy="{y_of(each.guest)}" r="5"/>'
            for x, each in zip(xs, moments, strict=False)
        ]
        parts.append(
            f'<text x="{_RIGHT + 8}" y="{ends[k] + 5}" style="fill:{colour}">{escape(one_line(name))}</text>'
        )
    return "\n".join((*parts, "</svg>", ""))


def _phase_names(moments: Sequence[_Moment], xs: Sequence[float]) -> Iterator[str]:
    """What stands below: each moment, and below those of a phase its name."""
    for x, each in zip(xs, moments, strict=True):
        yield f'<text class="dim" x="{x}" y="{_BOTTOM + 22}" text-anchor="middle">{each.name}</text>'
    for phase in dict.fromkeys(each.phase for each in moments):
        own = [x for x, each in zip(xs, moments, strict=True) if each.phase == phase]
        x = round(sum(own) / len(own), 1)
        name = escape(one_line(phase))
        yield f'<text x="{x}" y="{_BOTTOM + 48}" text-anchor="middle" font-weight="bold">{name}</text>'


def _spread_out(places: Sequence[float]) -> list[float]:
    """The places moved down as far as it takes to stand apart, in the order given."""
    found = [0.0] * len(places)
    last = -float(_APART)
    for k in sorted(range(len(places)), key=lambda k: places[k]):
        found[k] = last = max(places[k], last + _APART)
    return found


def _round_up(size: int) -> int:
    """The next size up that divides well by four: 1, 2, 4 or 8 times a power of ten of MiB, in quarters."""
    unit = 4 << 20
    while size > 10 * unit:
        unit *= 10 if size > 50 * unit else 2
    return -(-size // unit) * unit
