# SPDX-License-Identifier: GPL-2.0-or-later
"""A program phase by phase: memory, what shrinkers give back; and HawkEye's case as it was in guests.

tests/data/bloat-7.3.4.tar.xz: what `mthp lab predict --recipe redis-bloat --shrink --json` said; captures.
"""

from __future__ import annotations

import dataclasses
import io
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from mthp.compare.forecast import compare, predict
from mthp.compare.phases import folio_bytes, memory_of
from mthp.compare.records import Forecast, PhaseMemory
from mthp.image.snapshot import Snapshot
from mthp.plan.planner import Planner
from mthp.plan.records import Underused
from mthp.report.forecast import render_forecasts
from mthp.report.phases import phases_svg, with_memory
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Settings
from mthp.worlds.build import arrays_of
from mthp.worlds.unseen import Young
from tests.compare.recorded import document, snapshot
from tests.compare.test_forecast import as_snapshot, before  # noqa: F401

ROOT = Path(__file__).parents[2]
RECORDED = "bloat-7.3.4.tar.xz"
PAGE, PICTURE = ROOT / "docs" / "bloat.md", ROOT / "docs" / "drawings" / "bloat.svg"
PHASES, NONE = ("4 kB values", "80 % deleted", "2 MB values"), (0, 64, 256, 511)


def test_folios_count_whole_and_once(before: Snapshot) -> None:  # noqa: F811
    (process,) = before.processes
    assert process.pfn is not None and process.folio_order is not None
    pte, pfn = np.zeros((2, 512), np.uint16), np.zeros((2, 512), np.uint64)
    order = np.zeros((2, 512), np.uint8)
    pte[:, 0], pte[0, 1:4], pte[0, 9] = 1, 1, 1 | 4
    pfn[0, :4], pfn[1, 0] = (1 << 9, (2 << 9) + 5, 7, 7), (2 << 9) + 100
    order[0, 1] = order[1, 0] = 9
    two = dataclasses.replace(
        process, table_address=process.table_address[:2], pte=pte, pfn=pfn, folio_order=order
    )
    image = dataclasses.replace(before, processes=(two, two))
    assert folio_bytes(image) == (1 + 512 + 1) * 4096
    with pytest.raises(ValueError, match="shows no folios"):
        folio_bytes(dataclasses.replace(before, processes=(dataclasses.replace(two, pfn=None),)))


def test_shrinkers_undo_what_holds_zeros(before: Snapshot) -> None:  # noqa: F811
    """All pages but eight of each table are zeros: what collapses is split again, and maps the zero page."""
    (process,) = before.processes
    filled = np.ones(process.pte.shape, np.uint8)
    filled[:, ::64] = 0
    settings = Settings(sizes={9: "always"}, max_ptes_none=64, shrink_underused=True)  # type: ignore[dict-item]
    image = dataclasses.replace(
        before,
        meta={**before.meta, "sysfs": settings.to_sysfs()},
        processes=(dataclasses.replace(process, zero_filled=filled),),
    )
    found = predict(image, Young.CAPTURED, shrink=True)
    collapsed, shrunk = found.grown
    assert shrunk < 0 <= collapsed
    memory = memory_of("x", image, found, (image, image))
    assert memory.shrunk == (memory.loaded + shrunk, memory.loaded)
    assert memory.split == memory.underused > 10
    forecast = compare(
        "x",
        image,
        as_snapshot(image, found.orders[1]),
        2,
        Young.CAPTURED,
        shrunk=True,
        memory=memory,
    )
    assert forecast.right == forecast.ptes and forecast.changed > 10_000
    kept = dataclasses.replace(image, meta={**image.meta, "sysfs": settings.replace(
        max_ptes_none=511).to_sysfs()})  # fmt: skip
    assert len(set(predict(kept, Young.CAPTURED, shrink=True).grown)) == 1


def test_what_settings_have_in_common_is_said_once() -> None:
    def one(none: int, **more: int) -> Forecast:
        settings = Settings(max_ptes_none=none, **more)  # type: ignore[arg-type]
        memory = PhaseMemory("x", 4096, (8192, 8192))
        return Forecast("p, x", "7.3.4", settings, 1, 1, 1, 1, 1, 1, 1, memory=memory)

    def names(*forecasts: Forecast) -> dict[str, list[str]]:
        return {program: [*settings] for program, settings in with_memory(forecasts).items()}

    assert names(one(64)) == {"p, 2048kB, max_ptes_none 64": [""]}
    assert names(one(64), one(0)) == {"p, 2048kB": ["max_ptes_none 64", "max_ptes_none 0"]}
    assert names(one(0), one(0, max_ptes_swap=1)) == {
        "p, 2048kB, max_ptes_none 0": ["", "max_ptes_swap 1"]
    }
    assert "<circle" in phases_svg([one(64), one(0)])


# --- recorded in guests -----------------------------------------------------------------------


@cache
def recorded() -> tuple[Forecast, ...]:
    """What was recorded, predicted anew from the captures."""
    found = []
    for number in range(len(NONE)):
        for k, phase in enumerate(PHASES, 1):
            before_, after, shrunk = (
                snapshot(RECORDED, f"redis-bloat-under-{number + 1}/{name}{f'-{k}' * (k > 1)}.npz")
                for name in ("before", "after", "shrunk")
            )
            prediction = predict(before_, Young.CAPTURED, shrink=True)
            memory = memory_of(phase, before_, prediction, (after, shrunk))
            for last, later in ((False, after), (True, shrunk)):
                found.append(
                    compare(
                        f"redis-bloat, {phase}{', shrunk' * last}", before_, later, 0, Young.CAPTURED,
                        shrunk=last, found=prediction, memory=memory if last else None,
                    )
                )  # fmt: skip
    return tuple(found)


def test_every_page_is_where_it_was_predicted() -> None:
    assert len(recorded()) == 2 * len(PHASES) * len(NONE)
    for each in recorded():
        assert (each.right, each.right_changed, each.misses) == (each.ptes, each.changed, ()), (
            each.target
        )


def test_memory_is_what_it_was_predicted_to_be() -> None:
    phases = [each.memory for each in recorded() if each.memory is not None]
    assert [each.phase for each in phases] == [*PHASES] * len(NONE)
    for each in phases:
        assert each.collapsed[0] == each.collapsed[1]
        assert each.shrunk is not None and each.shrunk[0] == each.shrunk[1]


def test_a_plan_knows_what_shrinkers_give_back() -> None:
    """Where khugepaged finds nothing to do: what is mapped in part, and pages of zeros."""
    for number in (1, 2):
        for phase in ("-2", "-3"):
            image = snapshot(RECORDED, f"redis-bloat-under-{number}/before{phase}.npz")
            found = predict(image, Young.CAPTURED, shrink=True)
            settings = Settings.from_sysfs(image.sysfs, image.geometry)
            profile = profile_for_release(image.kernel)
            planner = Planner(arrays_of(image), profile, settings)
            underused = planner.underused(settings)
            assert underused is not None and found.grown[0] == 0
            assert planner.partly_mapped.reclaimable + underused.zeros == -found.grown[1]
            assert (
                planner.partly_mapped.folios + underused.folios,
                underused.folios,
            ) == found.split
            assert planner.underused(settings.replace(max_ptes_none=511)) == Underused(0, 0)


def test_it_is_what_was_said_then() -> None:
    said = [each["memory"] for each in document(RECORDED)["predictions"] if each["memory"]]
    ours = [dataclasses.asdict(each.memory) for each in recorded() if each.memory is not None]
    assert [PhaseMemory(**each) for each in ours] == [
        PhaseMemory(
            each["phase"],
            each["loaded"],
            tuple(each["collapsed"]),
            tuple(each["shrunk"]),
            each["split"],
            each["underused"],
        )
        for each in said
    ]


def test_the_page_shows_it() -> None:
    out = io.StringIO()
    render_forecasts(recorded(), Console(file=out, width=100))
    shown = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    table = shown[shown.index("Memory of redis-bloat") :].rpartition("\n")[0]
    assert table in PAGE.read_text(encoding="utf-8")


def test_the_picture_is_of_it() -> None:
    picture = phases_svg(recorded())
    assert PICTURE.read_text(encoding="utf-8") == picture
    tree = ElementTree.fromstring(picture)
    lines = [each for each in tree.iter() if each.tag.endswith("polyline")]
    rings = [each for each in tree.iter() if each.tag.endswith("circle")]
    assert len(lines) == len(NONE) and len(rings) == 9 * len(NONE)
    assert [*with_memory(recorded())["redis-bloat, 2048kB"]] == [f"max_ptes_none {n}" for n in NONE]
