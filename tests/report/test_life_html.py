# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded life as a page: its curves are those of the replay, and it loads nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mthp.cli import main
from mthp.image.recording import load_recording
from mthp.life.recorded_life import lived
from mthp.life.recorded_replay import Meanwhile
from mthp.report.life_html import life_html_text
from mthp.report.web.life_curves import COLUMNS, CurveField, step_path, thinned
from mthp.words.profiles import V7_3
from mthp.words.settings import Settings, parse_enabled_flag
from tests.life.recordings import OFF, TABLE
from tests.life.test_recorded_khugepaged import SECOND, touched
from tests.report.html_page import HOSTILE, Page, stands_alone

MiB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    program = touched(300, step=2)
    program.munmap(0, TABLE)
    program.wait(SECOND)
    program.munmap(0, 1)
    path = tmp_path / "a.npz"
    path.write_bytes(program.packed())
    return path


FLAGS = ["--enabled", "64kB=madvise", "--profile", "7.3"]


def test_a_page_says_what_the_settings_cost_and_shows_the_curves(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "life.html"
    assert main(["life", str(file), *FLAGS, "--html", str(out)]) == 0
    text = out.read_text("utf-8")
    page = stands_alone(text)
    # 300 pages at every second place are 38 windows of 16: 304 pages more.
    assert page.texts("h1") == ["These settings cost this program 103 % more memory"]
    assert "without huge pages: 1.2 MiB" in " ".join(page.texts("li"))
    dots = [a for tag, a, _ in page.found if tag == "circle"]
    assert [dot["tabindex"] for dot in dots] == ["0"] + ["-1"] * (len(dots) - 1)
    (peak,) = [dot for dot in dots if dot["class"] == "dot take"]
    assert re.match(
        r"The peak, .* after the beginning: 2\.4 MiB in use, .*, 100% in large", peak["aria-label"]
    )
    paths = {
        a["class"]: a["d"] for tag, a, _ in page.found if tag == "path" and "curve" in a["class"]
    }
    assert set(paths) == {"curve without", "curve given", "curve added"}
    assert "khugepaged does meanwhile" in text and "64kB (order 4)" in text


def test_a_sweep_has_a_small_curve_and_a_row_for_each_setting(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep.html"
    assert main(["life", str(file), "--sweep", *FLAGS, "--html", str(out)]) == 0
    page = stands_alone(out.read_text("utf-8"))
    assert len(page.texts("svg")) == 12 == len(page.texts("tr")) - 1
    assert page.texts("tr")[12].startswith("as given2.4 MiB+102.7 %")


def test_strangers_texts_are_escaped(file: Path) -> None:
    settings = OFF.with_enabled(parse_enabled_flag("64kB=madvise"))
    made = lived(load_recording(file), "a", settings, Settings(), Meanwhile(V7_3))
    plain = Page(life_html_text(made, Settings()))
    mappings = tuple(replace(each, process=HOSTILE, name=HOSTILE) for each in made.given.mappings)
    given = replace(made.given, mappings=mappings)
    answer = replace(
        made, name=HOSTILE, command=HOSTILE, kernel=HOSTILE, unseen=(HOSTILE,), given=given
    )
    text = life_html_text(answer, Settings())
    page = Page(text)
    tags = [[tag for tag, *_ in each.found if tag != "li"] for each in (plain, page)]
    assert tags[0] == tags[1] and not re.search("[\x1b\u202e]", text)


def test_a_page_is_written_to_regular_files_alone(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["life", str(file), "--html", str(tmp_path)]) == 2
    assert "not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("points", [1, 2, 959, 960, 961, 5000, 20_000])
def test_a_thinned_curve_keeps_its_peak_its_end_and_its_order(points: int) -> None:
    source = np.random.default_rng(points)
    time = np.sort(source.integers(0, 10**10, points))
    sizes = source.integers(0, 10**6, points)
    kept_time, kept = thinned(time, sizes, int(time[-1]))
    assert len(kept) <= 2 * COLUMNS and (np.diff(kept_time) >= 0).all()
    assert kept.max() == sizes.max() and kept[-1] == sizes[-1]


def test_a_curve_steps_and_goes_on_to_the_end() -> None:
    field = CurveField(100, 10, left=0, right=100, top=0, bottom=10)
    assert (
        step_path(field, np.array([20, 50]), np.array([4, 10]))
        == "M0.0 10.0H20.0V6.0H50.0V0.0H100.0"
    )
