# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans beside what a guest's khugepaged did: folios of each size, memory added, the last collapse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mthp.compare.records import PlanBeside
from mthp.report.page import SafeConsole
from mthp.report.phrases import duration, plural
from mthp.report.sweep import plan_values, sizes_text
from mthp.words.settings import LIMITS, Enabled, Settings
from mthp.words.units import human_bytes

MEMORY_ENOUGH = 0.01
"""How far off the memory added may be, as a share of it."""
_COLUMNS = [("", "left"), *((name, "right") for name in ("before", "plan", "guest", "off"))]


def setting_text(settings: Settings) -> str:
    """The enabled sizes, unless all are; max_ptes_none; and what else limits and is not the default."""
    every = all(mode is not Enabled.NEVER for mode in settings.sizes.values())
    parts = [] if every else [sizes_text(settings)]
    parts.append(f"max_ptes_none {settings.max_ptes_none}")
    default = Settings(geometry=settings.geometry)
    for name in (*LIMITS, "defrag"):
        value = getattr(settings, name)
        if name != "max_ptes_none" and value != getattr(default, name):
            parts.append(f"{name} {int(value)}")
    return ", ".join(parts)


def good_plan(measured: PlanBeside) -> bool:
    """Whether it is as accurate as is promised: folios exact, the memory added within MEMORY_ENOUGH."""
    return measured.folios_exact and abs(measured.memory_error) <= MEMORY_ENOUGH


def render_measured(page: SafeConsole, found: Sequence[tuple[str, PlanBeside]]) -> None:
    """Print a table of each program under each settings. found: what it is called, and how it went."""
    for title, measured in found:
        page.heading(f"{title}{_pace(measured.plan.settings)}")
        page.table(_COLUMNS, _rows(measured), indent=0)
    page.console.print()
    exact = sum(each.folios_exact for _, each in found)
    memory = max((abs(each.memory_error) for _, each in found), default=0.0)
    plans = _spread([each.time_error(each.plan.last_collapse_ms) for _, each in found])
    engines = _spread([each.time_error(each.engine_ms) for _, each in found])
    page.line(
        f"{plural(len(found), 'plan')}: folios exact in {exact}; memory added at most {100 * memory:.2g} % "
        f"off; the time of the last collapse {plans} off by the plan's bound, and {engines} by the clock of "
        "mthp collapse.",
        "bold",
    )
    page.line(
        "Folios that are mapped, by size. Memory added: in the guest what the cgroup of the program is "
        "charged for (memory.stat, anon). Time: from one scan_sleep before khugepaged's first wakeup; in the "
        "guest by the kernel's trace.",
        "dim",
    )


def _pace(settings: Settings) -> str:
    """khugepaged's pace, where it is not the kernel's default."""
    pace, sleep = settings.pages_to_scan, settings.scan_sleep_millisecs
    default = Settings(geometry=settings.geometry)
    if (pace, sleep) == (default.pages_to_scan, default.scan_sleep_millisecs):
        return ""
    return f", {pace:,} pages every {duration(sleep)}"


def _rows(measured: PlanBeside) -> Iterator[tuple[str, ...]]:
    plan = measured.plan
    geometry = plan.settings.geometry
    for order in sorted({*plan.before, *plan.after, *measured.after}):
        counts = (each.get(order, 0) for each in (plan.before, plan.after, measured.after))
        before, ours, real = (size // geometry.order_bytes(order) for size in counts)
        off = f"{ours - real:+,}" if ours != real else "exact"
        yield f"folios of {geometry.size_name(order)}", f"{before:,}", f"{ours:,}", f"{real:,}", off
    pmds = plan.pmds - plan.windows.get(geometry.pmd_order, 0)
    off = f"{plan.pmds - measured.pmds:+,}" if plan.pmds != measured.pmds else "exact"
    yield "mapped by a PMD", f"{pmds:,}", f"{plan.pmds:,}", f"{measured.pmds:,}", off
    more, added = plan.memory_added, measured.memory_added
    off = "exact" if more == added else _signed(measured.memory_error)
    yield "memory added", "", human_bytes(more), human_bytes(added), off
    late = measured.last_collapse_ms
    times = {"within": plan.last_collapse_ms, "at (mthp collapse)": measured.engine_ms}
    for name, at in times.items():
        off = _signed(measured.time_error(at))
        yield f"last collapse {name}", "", _time(at), _time(late), off


def _spread(shares: Sequence[float]) -> str:
    """From the least to the most."""
    ends = dict.fromkeys((_signed(min(shares)), _signed(max(shares))))
    return " to ".join(ends)


def _time(milliseconds: int | None) -> str:
    return "–" if milliseconds is None else duration(milliseconds)


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def measured_document(measured: PlanBeside) -> dict[str, Any]:
    """A plan and what was measured, as JSON values."""
    names = measured.plan.settings.geometry.size_name
    return {
        "plan": plan_values(measured.plan),
        "guest": {
            "collapses": {names(order): nr for order, nr in measured.windows.items()},
            "mapped_after": {names(order): size for order, size in measured.after.items()},
            "pmds": measured.pmds,
            "memory_added": measured.memory_added,
            "last_collapse_ms": measured.last_collapse_ms,
        },
        "folios_exact": measured.folios_exact,
        "memory_error": measured.memory_error,
        "engine_last_collapse_ms": measured.engine_ms,
        "time_error": measured.time_error(measured.plan.last_collapse_ms),
        "engine_time_error": measured.time_error(measured.engine_ms),
    }
