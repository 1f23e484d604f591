# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings that do not mean what they seem to: what was read, what it means, and what to write."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from mthp.plan.records import Checkup, SettingFinding
from mthp.report.basis import basis_values, render_basis
from mthp.report.page import SafeConsole
from mthp.report.phrases import plural
from mthp.report.sweep import short_names

SCHEMA_VERSION = 1


def command(finding: SettingFinding) -> str | None:
    """The one command that writes what a finding says; None where nothing needs to be written."""
    if finding.write is None:
        return None
    paths, value = finding.write
    how = ">" if len(paths) == 1 else "| tee"
    return f"echo {value} {how} {' '.join(paths)}"


def render_checkup(checkup: Checkup, console: Console) -> None:
    """Print what was found, and what was looked for."""
    page = SafeConsole(console)
    render_basis(page, checkup.basis)
    page.line(checkup.settings.describe())
    number = len(checkup.findings)
    if number:
        order = ", most costly first" if number > 1 else ""
        page.line(
            f"{plural(number, 'finding')}{order}: what is set does not mean what it may seem to.",
            "bold",
        )
    else:
        page.line(
            "Nothing found: what is set means what it seems to, as far as was looked.", "bold"
        )
    for place, finding in enumerate(checkup.findings, 1):
        _render(page, place, finding)
    page.console.print()
    page.line(f"Looked for: {'; '.join(checkup.looked_at)}.", "dim")
    for about, why in checkup.left_out:
        page.line(f"Not looked for: {about} ({why}).", "dim")


def _render(page: SafeConsole, place: int, finding: SettingFinding) -> None:
    page.heading(f"{place}. {', '.join(short_names(finding))}")
    line = command(finding)
    rows = [
        ("means", f"{finding.means}."),
        ("matters", f"{finding.matters}."),
        ("kernel", finding.kernel),
    ]
    if line is None:
        rows.append(("write", f"nothing: {finding.purpose}"))
    page.table([("", "keep"), ("", "left")], rows, grid=True)
    if line is not None:
        page.console.print(page.text(f"  write    {line}"), soft_wrap=True)
        page.line(finding.purpose, indent=11)


def checkup_document(checkup: Checkup) -> dict[str, Any]:
    """What was found as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        **basis_values(checkup.basis),
        "settings": checkup.settings.to_json(),
        "findings": [
            {
                "rule": finding.rule,
                "read": [{"file": path, "value": value} for path, value in finding.read],
                "means": finding.means,
                "matters": finding.matters,
                "kernel": finding.kernel,
                "write": command(finding),
                "purpose": finding.purpose,
            }
            for finding in checkup.findings
        ],
        "looked_for": list(checkup.looked_at),
        "not_looked_for": [{"what": about, "why": why} for about, why in checkup.left_out],
    }
