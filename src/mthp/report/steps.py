# SPDX-License-Identifier: GPL-2.0-or-later
"""One collapse, step by step, with the locks held at each: what a reviewer draws on paper."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from mthp.predict.records import DrawnCall
from mthp.report.page import SafeConsole


def render_steps(steps: Iterable[DrawnCall], console: Console) -> None:
    """Print a table: number, indented call, what happens, locks held there.

    Consecutive steps of one function at one depth name it once.
    """
    page = SafeConsole(console)
    rows: list[list[str | Text]] = []
    before: tuple[str, ...] = ()
    called = ""
    for number, step in enumerate(steps, 1):
        locks = tuple(step.locks)
        held = Text()
        for lock in locks:
            held.append(", " if held else "")
            # What was just taken stands out, the rest is context.
            held.append(page.clean(lock), "" if lock in before else "bold")
        call = f"{'  ' * step.depth}{step.function}"
        rows.append(
            [str(number), call if call != called else "", step.what, held or page.text("–", "dim")]
        )
        before, called = locks, call
    if not rows:
        page.line("No collapse was attempted here: there are no steps.")
        return
    columns = [("step", "right"), ("call", "keep"), ("what happens", "left")]
    page.table([*columns, ("locks held", "left")], rows)
