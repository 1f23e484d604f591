# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan as a page: what it says of the settings given, and that it loads nothing."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mthp.cli import build_parser, main
from mthp.cli.planning import planning_of
from mthp.report.web.answer import now_text
from tests.report.html_page import stands_alone

TRADE = "These settings are a trade for this program"
ROOT = Path(__file__).parents[2]
REDIS = str(ROOT / "src/mthp/data/redis.npz")


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        (
            ("--enabled", "64kB=always", "--max-ptes-none", "0"),
            "These settings are better for this program",
        ),
        (
            ("--thp-anon", "64K:always", "--max-ptes-none", "511"),
            "These settings are a trade for this program",
        ),
        (("--scan-sleep-millisecs", "100"), "These settings change nothing here"),
        ((), "What the settings as they are will come to"),
    ],
)
def test_the_verdict_stands_first(flags: tuple[str, ...], title: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    command = ["plan", REDIS, "--profile", "7.3", "--quiet", "--html", str(file), *flags]
    assert main(command) == 0
    text = file.read_text("utf-8")
    page = stands_alone(text)
    assert page.texts("h1") == [title]
    assert [tag for tag, *_ in page.found].index("h1") < 12
    assert len(text.encode()) < 150_000
    assert bool(page.texts("pre")) == bool(flags)


def test_a_page_is_written_to_regular_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", REDIS, "--quiet", "--html", str(tmp_path)]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_the_picture_is_what_the_makefile_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time to the last byte."""
    rule = re.search(r"\npicture: venv\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"))
    assert rule is not None
    first, *_ = rule[1].replace("\\\n", "").splitlines()
    words = shlex.split(first)
    assert words[:3] == ["$(BIN)/python", "-m", "mthp"]
    monkeypatch.chdir(ROOT)
    made = tmp_path / "made.svg"
    kept = words[-1]
    assert main([*words[3:-1], str(made)]) == 0
    text = made.read_text("utf-8")
    assert text == (ROOT / kept).read_text("utf-8"), "make picture"
    assert kept in (ROOT / "README.md").read_text("utf-8")
    assert not re.search(r"href|url\(|<script|<image", text)
    root = ElementTree.fromstring(text)
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert "91% of 52.7 MiB in large folios" in str(title.text)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (("--enabled", "all=never,never"), "every size is off"),
        (("--enabled", "2048kB=inherit,madvise"), "asks it for (madvise)"),
        (("--enabled", "2048kB=always"), ""),
    ],
)
def test_it_says_why_nothing_is_merged_as_set(now: tuple[str, ...], why: str) -> None:
    """As far as the settings say; nothing where something is merged."""
    args = build_parser().parse_args(["plan", REDIS, "--profile", "7.3", "--quiet", *now])
    planning, _ = planning_of(args)
    plan = planning.planner.plan(planning.given)
    assert bool(plan.windows) == (not why)
    assert why in now_text(plan) and bool(now_text(plan)) == bool(why)
