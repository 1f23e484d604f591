# SPDX-License-Identifier: GPL-2.0-or-later
"""The public face: what `import mthp` offers. docs/guide.md shows it at work.

An Image is memory as it was captured or recorded. Running khugepaged over it gives a Run: its record,
its events, its folios, and why the rest did not collapse. Nothing on the host is changed by any of it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console

from mthp.check.check import check_world
from mthp.check.records import Violation, WorldResult
from mthp.check.search import Budget
from mthp.image.capture.proc import CaptureError
from mthp.predict.image import Image, MappedFolio, Run, capture, load
from mthp.predict.records import Change, ChangeKind, Outcome, Proposal, Refusal, VmaUse, WindowGate
from mthp.races.edits import Edit, source_of
from mthp.races.protocol import protocol as protocol_file
from mthp.races.variant import VariantError, applied, replaced
from mthp.races.world import RaceWorld
from mthp.report.check import violation_lines
from mthp.report.refusals import change_text, reason_text, status_text
from mthp.report.text import render_outcome
from mthp.words.events import (
    Attempt,
    CollapseHugePage,
    Copied,
    Event,
    Isolate,
    KhugepagedScan,
    OrderPolicy,
    OrderWalk,
    PmdFlush,
    ScanPmd,
    Slept,
    Swapin,
    ftrace,
)
from mthp.words.files import FileError
from mthp.words.profiles import Profile
from mthp.words.results import ScanResult
from mthp.words.settings import Enabled, Settings, SettingsError
from mthp.worlds.unseen import Young

__all__ = [
    "Attempt", "CaptureError", "Change", "ChangeKind", "CollapseHugePage", "Copied", "Edit",
    "Enabled", "Event", "FileError", "Image", "Isolate", "KhugepagedScan",
    "MappedFolio", "OrderPolicy", "OrderWalk", "Outcome", "PmdFlush", "Profile", "Proposal", "Refusal", "Run",
    "ScanPmd", "ScanResult", "Settings", "SettingsError", "Slept", "Swapin", "VariantError",
    "Violation", "VmaUse", "WindowGate", "WorldResult", "Young", "capture", "change_text",
    "check_protocol", "draw", "example", "ftrace", "load", "reason_text", "render", "source_of",
    "status_text",
]  # fmt: skip


def example() -> Image:
    """The bundled snapshot: a Redis server with 203,000 keys, captured on a 6.18 kernel."""
    with as_file(files("mthp") / "data" / "redis.npz") as path:
        return load(path)


def render(run: Run, width: int = 80) -> str:
    """Make the report of `mthp collapse` on a run, for a terminal of `width` columns."""
    text = io.StringIO()
    render_outcome(run.outcome, Console(file=text, width=width), verbose=False)
    return text.getvalue()


def check_protocol(
    *rivals: str,
    world: str = "window",
    profile: str = "7.3",
    protocol: str | os.PathLike[str] | Mapping[str, str] | Sequence[Edit] | None = None,
    executions: int | None = None,
) -> WorldResult:
    """Explore a collapse beside rivals, in every order of their steps that can differ.

    world: "pmd" or "window", with what RaceWorld.parse() takes after it. protocol: a file of functions
    that take the engine's place; or edits of the engine's functions; or texts by module
    ("khugepaged.copy"), such as source_of() gives, edited. executions: a bound; without one the search
    ends when it is exhaustive. Raises ValueError for a world or rival there is not and for an edit whose
    pattern is not met once, VariantError for a protocol that replaces nothing.
    """
    if executions is not None and executions < 1:
        raise ValueError(f"executions: {executions} is not 1 or more")
    recipe = RaceWorld.parse(world, profile, rivals)
    variant: AbstractContextManager[object] = nullcontext()
    if isinstance(protocol, str | os.PathLike):
        variant = protocol_file(Path(protocol))
    elif isinstance(protocol, Mapping):
        texts = dict(protocol)
        variant = replaced(texts)
        with suppress(ValueError):
            if all(text == source_of(module) for module, text in texts.items()):
                raise VariantError("the texts are the engine's own: they replace nothing")
    elif protocol is not None:
        variant = applied(protocol)
    with variant:
        return check_world(recipe, Budget(executions))


def draw(violation: Violation, width: int = 80) -> str:
    """Draw a violation as kernel lists do: a sentence, and a column for each CPU."""
    return "\n".join(violation_lines(violation, width))
