# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m benchmarks.lives: what was seen of real programs, and what is predicted of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.lives import __main__ as lives
from benchmarks.lives.plot import picture_of
from benchmarks.lives.programs import PROGRAMS
from benchmarks.lives.seen import PRESSURE, AtMark, Seen, Under, read_seen, thinned
from benchmarks.lives.seen import predicted as life_under
from benchmarks.lives.table import asked_of, folios_off_by, marks_of, off_by, table_of

from mthp.image.recording import load_recording
from mthp.lab.kernels.kernels import find

ROOT = Path(__file__).parent.parent.parent
KEPT = ROOT / "docs/examples/lives"
NAMES = sorted(str(path.relative_to(KEPT))[:-5] for path in KEPT.rglob("*.json"))
PAGE = (ROOT / "docs/life.md").read_text() + (ROOT / "docs/findings.md").read_text()
DRAWN = [name for name in NAMES if f"drawings/life-{name}.svg" in PAGE]


OWN_MIND = {"g1": 1, "redis": 1, "node": 1}
"""Programs that do something at their marks, as threads and clocks have it: by how many per cent they may be
off."""


def held(seen: Seen, most: float = 0) -> None:
    """Check what is claimed: peak and end within one per cent of what was seen, folios within two, or what is
    allowed; and the recorded run itself, if it stood still."""
    for title, predicted in seen.predicted.items():
        real = seen.real[title]
        peaks = [[life.peak for life in lives] for lives in (predicted, real)]
        ends = [[life.marks[-1].rss for life in lives] for lives in (predicted, real)]
        assert abs(off_by(*peaks)) <= max(1, most), title
        assert abs(off_by(*ends)) <= max(1, most), title
        assert abs(folios_off_by(predicted, real)) <= max(2, most), title
    for marks, life in zip(seen.recorded, seen.predicted["none"], strict=True):
        for one, other in zip(marks, life.marks, strict=True):
            assert most or abs(one.rss - other.rss) <= 2


def test_stacks_are_as_predicted() -> None:
    seen = read_seen(KEPT, "stacks-glibc")
    held(seen)
    assert all(row in PAGE for row in table_of(seen))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_programs_are_as_predicted(name: str) -> None:
    seen = read_seen(KEPT, name)
    assert seen.title == PROGRAMS[Path(name).name].title
    held(seen, OWN_MIND.get(name, 0))
    assert all(row in PAGE for row in (asked_of(seen) if seen.asked else table_of(seen)))
    rows = [row for row in PAGE.splitlines() if row.startswith(f"| {seen.title} | ")]
    known = {*table_of(seen), *marks_of(seen)}
    assert all(row in known for row in rows)


@pytest.mark.slow
def test_every_mark_of_hawkeyes_case_is_as_predicted() -> None:
    seen = read_seen(KEPT, "hawkeye")
    worst = 0.0
    for title, (life,) in seen.predicted.items():
        for mark, *real in zip(life.marks, *(each.marks for each in seen.real[title]), strict=True):
            worst = max(worst, abs(off_by([mark.rss], [each.rss for each in real])))
            worst = max(worst, abs(off_by([mark.frames], [each.frames for each in real])))
    assert worst < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_as_drawn(name: str) -> None:
    assert (
        picture_of(read_seen(KEPT, name)) == (ROOT / f"docs/drawings/life-{name}.svg").read_text()
    )


@pytest.mark.parametrize(
    ("predicted", "real", "off"),
    [
        ([5], [4, 6], 0),
        ([110], [100, 100], 10),
        ([99], [100, 200], -1),
        ([3, 7], [4, 6], 0),
        ([7, 5], [4, 6], 0),
        ([120, 105, 110], [90, 100], 5),
        ([90, 98], [100, 120], -2),
    ],
)
def test_what_lies_between_is_not_off(predicted: list[int], real: list[int], off: float) -> None:
    assert off_by(predicted, real) == pytest.approx(off)


def test_a_curve_keeps_its_peak_and_its_end() -> None:
    time = np.arange(10_000)
    pages = np.where(time == 5_001, 77, time // 1_000)
    marks = tuple(AtMark("", at, 0, {}, {}) for at in (2_500, 9_999))
    curve = thinned(time, pages, marks)
    assert max(height for _, height in curve) == 77
    assert curve[-1] == (2.0, 9) and len(curve) < 1_300
    assert [at for at, _ in curve] == sorted(at for at, _ in curve)


def test_shrinkers_are_asked_between_the_last_two_marks() -> None:
    recording = load_recording(ROOT / "docs/examples/life/zeroes.npz")
    before, after = (
        AtMark("all", 3_899_900_000, 0, {}, {}),
        AtMark(PRESSURE, 3_900_100_000, 0, {}, {}),
    )
    under = Under("2MB=always", 409)
    first, last = life_under(recording, under, (before, after)).marks
    assert (first.folios[9], last.folios[9]) == (31, 11)
    assert first.frames - last.frames == 20 * 512 - 16
    assert (
        life_under(recording, Under("2MB=always"), (before, after)).marks[1].frames == first.frames
    )


@pytest.mark.lab
def test_a_guest_runs_a_program(tmp_path: Path) -> None:
    lives.run_program(PROGRAMS["stacks-glibc"], find("7.3"), 1, tmp_path)
    held(read_seen(tmp_path, "stacks-glibc"))
