# SPDX-License-Identifier: GPL-2.0-or-later
"""A fleet under a grid of settings: the setting that holds on the most machines, and how figures spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console

from mthp.fleet.records import FleetGroup, FleetMachine, FleetSetting, FleetSweep
from mthp.report.page import SafeConsole
from mthp.report.phrases import percent, plural
from mthp.report.sweep import boot_parameter, miss_text, sizes_text, wish_text
from mthp.words.units import format_size

SCHEMA_VERSION = 1
SHOWN = 8
"""Settings in the table without --verbose."""


def render_fleet(sweep: FleetSweep, console: Console, *, verbose: bool = False) -> None:
    """Print the answer of each group of machines that can be compared. verbose: every setting."""
    page = SafeConsole(console, verbose=verbose)
    page.line(headline(sweep), "bold")
    for group in sweep.groups:
        _render_group(page, sweep, group)
    page.console.print()
    page.line(
        "Each figure is a machine's own: what 10, 50 and 90 % of the machines are at or below, and the "
        "worst. Of a machine with several snapshots (the same host's name) its worst figure counts; a "
        "redacted snapshot counts as a machine. Every answer is in Parquet, snapshot by snapshot: "
        "docs/fleet.md. What each rests on: mthp sweep FILE.",
        "dim",
    )


def headline(sweep: FleetSweep) -> str:
    """What was found and done."""
    done = sum(group.snapshots for group in sweep.groups)
    parts = [f"{sweep.fleet}: {plural(sweep.found, 'snapshot')}, {done:,} answered"]
    if sweep.anew < done:
        parts.append(f"{done - sweep.anew:,} of them by an earlier run")
    if sweep.twice:
        parts.append(f"{sweep.twice:,} with the same content as another")
    if sweep.unusable:
        parts.append(f"{len(sweep.unusable):,} could not be used")
    if len(sweep.groups) > 1:
        parts.append(f"{len(sweep.groups)} groups that cannot be compared")
    return "; ".join(parts)


def _render_group(page: SafeConsole, sweep: FleetSweep, group: FleetGroup) -> None:
    kernels = [f"{name} ({number:,})" for name, number in group.kernels.items()]
    more = f" and {len(kernels) - 5} more" if len(kernels) > 5 and not page.verbose else ""
    shown = kernels if page.verbose else kernels[:5]
    page.heading(
        f"{plural(group.machines, 'machine')}, {plural(group.snapshots, 'snapshot')}: profile "
        f"{group.profile}, pages of {format_size(group.page_size)}, PMDs of {format_size(group.pmd_size)}"
    )
    page.line(f"kernels: {', '.join(shown)}{more}")
    page.line(group_text(group, sweep), "bold")
    if group.chosen is not None and group.chosen.settings is not None:
        page.line(f"at boot: {boot_parameter(group.chosen.settings)}", indent=2)
    page.bullets("Worst under it", [machine_text(each) for each in group.worst])
    page.heading("Settings that are on the most fronts" if not page.verbose else "Every setting")
    settings = sorted(group.settings, key=lambda each: -each.front)
    if not page.verbose:
        settings = [each for each in settings if each.front][:SHOWN]
        if group.chosen is not None and group.chosen not in settings:
            settings.append(group.chosen)
    titles = [("", "keep"), ("sizes (always)", "keep"), ("none", "right"), ("holds", "right"),
              ("front", "right"), ("", "keep"), ("p10", "right"), ("p50", "right"), ("p90", "right"),
              ("worst", "right")]  # fmt: skip
    rows = [row for each in (group.now, *settings) for row in _rows(group, each)]
    page.table(titles, rows, indent=0)
    page.line(
        "First row: as captured on each. none: max_ptes_none; holds: machines on which the wish does; "
        "front: on which no other setting betters it. added: memory, as a share of the anonymous memory; "
        "large: what is in folios of more than one page, as a share of it; TLB: entries that it needs. "
        "* enables a size and holds on the most machines.",
        "dim",
    )


def group_text(group: FleetGroup, sweep: FleetSweep) -> str:
    """What to take, on how many machines it holds to the wish, and what is set now beside it."""
    wish, all_ = wish_text(sweep.wish), plural(group.machines, "machine")
    if group.chosen is None:
        return f"Predicted: no setting that enables a size gives {wish} on any of {all_}."
    return (
        f"Predicted: of the settings that enable a size {setting_name(group.chosen)} holds on the most "
        f"machines, with {wish}: on "
        f"{group.chosen.holds:,} of {group.machines:,}; what is set now on {group.now.holds:,}."
    )


def setting_name(setting: FleetSetting) -> str:
    """The sizes and the limit."""
    if setting.settings is None:
        return "as captured"
    return f"{sizes_text(setting.settings)}, max_ptes_none={setting.settings.max_ptes_none}"


def machine_text(machine: FleetMachine) -> str:
    """A machine, and what it misses or what is added there."""
    missed = " and ".join(map(miss_text, machine.misses))
    return f"{machine.name}: {missed or f'{100 * machine.added:.3g} % more memory'}"


def _rows(group: FleetGroup, setting: FleetSetting) -> Iterator[tuple[str, ...]]:
    """A row for each figure; what it is of stands in the first."""
    known = setting.settings
    what: tuple[str, ...] = ("", "as captured", "", f"{setting.holds:,}", "")
    if known is not None:
        mark = "*" if setting is group.chosen else ""
        numbers = (f"{known.max_ptes_none}", f"{setting.holds:,}", f"{setting.front:,}")
        what = (mark, sizes_text(known), *numbers)
    for title, spread in (("added", setting.added), ("large", setting.large)):
        yield (*what, title, *(percent(each, 1) for each in spread))
        what = ("",) * len(what)
    yield (*what, "TLB", *(f"{each:,.0f}" for each in setting.translations))


def fleet_document(sweep: FleetSweep) -> dict[str, Any]:
    """A fleet's sweep as JSON values: shares of 1, times in milliseconds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "predicted": True,
        "fleet": sweep.fleet,
        "folder": sweep.folder,
        "wish": asdict(sweep.wish),
        "found": sweep.found,
        "same_content": sweep.twice,
        "done_anew": sweep.anew,
        "unusable": [each._asdict() for each in sweep.unusable],
        "groups": [
            {
                "profile": group.profile,
                "page_size": group.page_size,
                "pmd_size": group.pmd_size,
                "kernels": dict(group.kernels),
                "machines": group.machines,
                "snapshots": group.snapshots,
                "now": _setting_document(group.now),
                "settings": [
                    {**_setting_document(each), "chosen": each is group.chosen}
                    for each in group.settings
                ],
                "worst": [
                    {
                        "machine": each.name,
                        "added": each.added,
                        "missed": [asdict(miss) for miss in each.misses],
                    }
                    for each in group.worst
                ],
            }
            for group in sweep.groups
        ],
    }


def _setting_document(setting: FleetSetting) -> dict[str, Any]:
    known = setting.settings
    names = ("added", "large", "reach", "translations", "last_collapse_ms")
    return {
        "sizes": None if known is None else sizes_text(known),
        "max_ptes_none": None if known is None else known.max_ptes_none,
        "boot": None if known is None else boot_parameter(known),
        "holds": setting.holds,
        "front": setting.front,
        **{name: getattr(setting, name)._asdict() for name in names},
    }
