# SPDX-License-Identifier: GPL-2.0-or-later
"""The plans of docs/plan-measured.md, made anew from the captures, beside what guests did.

tests/data/planned-7.3.4.tar.xz: what `mthp lab predict --plan --json` said, and the captures made before.
"""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from functools import cache
from pathlib import Path

from rich.console import Console

from mthp.compare.planned import plan_beside
from mthp.compare.records import PlanBeside
from mthp.lab.session.pace import PacedRun
from mthp.report.measured import good_plan, measured_document, render_measured, setting_text
from mthp.report.page import SafeConsole
from mthp.words.settings import Settings
from mthp.worlds.unseen import Young
from tests.compare.recorded import document, snapshot

RECORDED = "planned-7.3.4.tar.xz"
PAGE = Path(__file__).parents[2] / "docs" / "plan-measured.md"


@cache
def recorded() -> tuple[tuple[str, PlanBeside], ...]:
    """The recorded runs, planned anew from the captures."""
    found = []
    seen: Counter[str] = Counter()
    for run in document(RECORDED)["predictions"]:
        program, guest = run["program"], run["measured"]["guest"]
        seen[program] += 1
        image = snapshot(RECORDED, f"{program}-under-{seen[program]}/before.npz")
        settings = Settings.from_json(run["measured"]["plan"]["settings"])
        sizes = {settings.geometry.size_name(order): order for order in range(10)}
        collapses = [(0, sizes[size]) for size, nr in guest["collapses"].items() for _ in range(nr)]
        collapses[-1:] = [(guest["last_collapse_ms"], order) for _, order in collapses[-1:]]
        paced = PacedRun(tuple(collapses), (0, guest["memory_added"]), 0)
        beside = plan_beside(image, image, settings, paced, Young.CAPTURED)
        after = {sizes[size]: nr for size, nr in guest["mapped_after"].items()}
        beside = dataclasses.replace(beside, after=after, pmds=guest["pmds"])
        assert measured_document(beside)["guest"] == guest
        found.append((f"{program}, {setting_text(settings)}", beside))
    return tuple(found)


def test_three_servers_under_four_settings_each() -> None:
    programs = [title.partition(",")[0] for title, _ in recorded()]
    assert {name: programs.count(name) for name in programs} == {
        "memcached": 4, "redis": 4, "postgres": 4,
    }  # fmt: skip


def test_every_plan_is_as_good_as_is_promised() -> None:
    for title, beside in recorded():
        assert good_plan(beside), title


def test_the_page_shows_them() -> None:
    out = io.StringIO()
    page = SafeConsole(Console(file=out, width=80))
    render_measured(page, recorded())
    shown = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    assert shown.strip() in PAGE.read_text(encoding="utf-8")
