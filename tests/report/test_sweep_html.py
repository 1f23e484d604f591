# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep as a page: it says what the sweep says, and what strangers wrote stays text."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mthp.cli import build_parser, main
from mthp.cli.planning import drawn, planning_of
from mthp.cli.sweep import sweep_of
from mthp.plan.records import Picture, Sweep, TlbKind
from mthp.report.phrases import percent
from mthp.report.sweep import boot_parameter, plan_name, tuned_lines, writes
from mthp.report.sweep_html import html_text, shown_settings
from mthp.words.units import human_bytes
from tests.report.html_page import HOSTILE, Page, stands_alone

REDIS = str(Path(__file__).parents[2] / "src/mthp/data/redis.npz")


@cache
def made_of(*flags: str) -> tuple[Sweep, Picture]:
    args = build_parser().parse_args(["sweep", REDIS, "--profile", "7.3", "--quiet", *flags])
    planning, began = planning_of(args)
    made = sweep_of(args, planning, began)
    return made, drawn(args, planning, shown_settings(made))


def sweep(*flags: str) -> Sweep:
    return made_of(*flags)[0]


def text_of(*flags: str) -> str:
    return html_text(*made_of(*flags))


WISHES = {
    "recommended": (),
    "nearest": ("--min-large", "99"),
    "leave": ("--max-added", "0", "--max-ptes-none", "0", "--enabled", "all=always,always"),
    "too much": ("--max-added", "0", "--enabled", "2048kB=always"),
}


@pytest.mark.parametrize("wish", WISHES)
def test_the_table_has_every_plan_with_its_figures(wish: str) -> None:
    made = sweep(*WISHES[wish])
    page = Page(text_of(*WISHES[wish]))
    found: list[tuple[str, list[float]]] = []
    for tag, attributes, _ in page.found:
        if tag == "tr":
            found.append((attributes.get("class", ""), []))
        elif tag == "td" and "data-v" in attributes:
            found[-1][1].append(float(attributes["data-v"]))
    marks = [mark for mark, _ in found if mark]
    rows = [row for mark, row in found if mark]
    figures = [(row[1], round(row[2], 9), *row[3:7]) for row in rows]
    assert Counter(figures) == Counter(
        (
            plan.settings.max_ptes_none,
            round(plan.large / plan.mapped, 9),
            plan.translations,
            plan.memory_added,
            plan.copied_bytes,
            plan.last_collapse_ms or 0,
        )
        for plan in (made.now, *made.plans)
    )
    assert [each for *_, each, _, _, _, _ in rows] == sorted(each[3] for each in rows)
    taken = wish != "leave"
    assert marks.count("take") == taken
    assert marks.count("on") == sum(made.front) - (
        taken and made.front[made.plans.index(made.nearest)]
    )
    assert marks.count("now") == 1


@pytest.mark.parametrize("wish", WISHES)
def test_each_plan_is_in_a_dot_with_the_same_figures(wish: str) -> None:
    made = sweep(*WISHES[wish])
    page = Page(text_of(*WISHES[wish]))
    every = [attributes for tag, attributes, _ in page.found if tag == "circle"]
    assert [each["aria-label"] for each in every] == page.texts("title")[1:]
    # Memory and large folios, then work and reach.
    dots, others = every[: len(every) // 2], every[len(every) // 2 :]
    assert [each["aria-label"] for each in dots] == [each["aria-label"] for each in others]
    assert len(dots) == 1 + len(
        {(*plan.price[:3], plan.large, plan.pmds, plan.collapsed_bytes) for plan in made.plans}
    )
    for plan in (made.now, *made.plans):
        figures = (
            f": {percent(plan.large, plan.mapped)} in large folios, {plan.translations:,} TLB entries, "
            f"{human_bytes(plan.memory_added)} ("
        )
        assert any(figures in each["aria-label"] for each in dots)
    at = {(each["class"], each["tabindex"]) for each in dots}
    assert {("dot now", "0"), ("dot on", "0"), ("dot other", "-1")} <= at
    (line,) = (attributes for tag, attributes, _ in page.found if tag == "polyline")
    assert len(line["points"].split()) == sum(made.front)


def test_it_says_what_to_take_and_how_to_write_it() -> None:
    made = sweep()
    assert made.chosen is not None
    page = Page(text_of())
    assert page.texts("h1") == [f"Recommended: huge pages of {plan_name(made.chosen)}"]
    lines = writes(made.base, made.chosen.settings)
    assert page.texts("pre") == [
        "\n".join(f"echo {value} > {path}" for path, value in lines),
        "\n".join(
            f"echo {value} > {path}" for path, value in writes(made.chosen.settings, made.base)
        ),
        "\n".join(f"w {path} - - - - {value}" for path, value in lines),
        "\n".join(tuned_lines(lines)),
        boot_parameter(made.chosen.settings),
    ]
    text = " ".join(page.texts("main"))
    for order, size in made.chosen.after.items():
        assert f"{made.base.geometry.size_name(order)}: {human_bytes(size)}" in text
    for each in (*made.basis.assumptions, *made.basis.unseen):
        assert each in page.texts("li")
    assert "prediction" in text
    assert "Page faults, which also make large folios" in text
    assert f"which reach {percent(made.chosen.reached(TlbKind.X86), made.chosen.mapped)} of" in text
    assert "not measured" in text and "Longest stop" in text


def test_it_says_when_there_is_nothing_to_write() -> None:
    for wish, title in (
        ("nearest", "No setting gives what was asked for"),
        ("leave", "Recommended: leave the settings as they are"),
    ):
        page = Page(text_of(*WISHES[wish]))
        assert page.texts("h1") == [title]
        assert not page.texts("pre")


def test_what_is_set_is_not_recommended_where_it_adds_more_than_asked_for() -> None:
    made = sweep(*WISHES["too much"])
    assert made.wish.missed_by(made.now) > 0
    assert made.chosen is not None
    assert made.now.translations < made.chosen.translations
    page = Page(text_of(*WISHES["too much"]))
    assert page.texts("h1") == [f"Recommended: huge pages of {plan_name(made.chosen)}"]
    assert "What is set now does not: 92% in large folios" in " ".join(page.texts("p"))


def test_what_strangers_wrote_stays_text() -> None:
    plain, (made, picture) = Page(text_of()), made_of()
    basis = replace(
        made.basis,
        target=HOSTILE,
        source=HOSTILE,
        profile_reason=HOSTILE,
        assumptions=(HOSTILE,) * len(made.basis.assumptions),
        unseen=(HOSTILE,) * len(made.basis.unseen),
    )
    vmas = tuple(vma._replace(name=HOSTILE) for vma in picture.outcome.vmas)
    of = tuple(process._replace(name=HOSTILE) for process in picture.outcome.by_process)
    outcome = replace(picture.outcome, vmas=vmas, by_process=of)
    text = html_text(replace(made, basis=basis), replace(picture, outcome=outcome))
    page = Page(text)
    assert [tag for tag, *_ in page.found] == [tag for tag, *_ in plain.found]
    assert page.texts("li").count(HOSTILE.replace("\x1b", "?").replace("\u202e", "?")) > 3
    assert not re.search("[\x1b\u202e]", text)


def test_it_loads_nothing_and_runs_its_own_script_alone() -> None:
    text = text_of()
    assert len(text.encode()) < 150_000
    stands_alone(text)


def test_it_is_written_beside_the_answer_and_to_regular_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, link = tmp_path / "page.html", tmp_path / "link.html"
    link.symlink_to(file)
    command = ["sweep", REDIS, "--profile", "7.3", "--quiet", "--json", "--html"]
    for place in (link, Path("/dev/null"), tmp_path):
        assert main([*command, str(place)]) == 2
        assert f"{place}: not a regular file" in capsys.readouterr().err
    assert main([*command, str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"] is True
    assert file.read_text(encoding="utf-8") == text_of()
