# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep as a page: it says what the sweep says, and what strangers wrote stays text."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import Counter
from dataclasses import replace
from functools import cache
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mthp.cli import build_parser, main
from mthp.cli.sweep import sweep_of
from mthp.plan.records import Sweep
from mthp.report.phrases import percent
from mthp.report.sweep import boot_parameter, plan_name, tuned_lines, writes
from mthp.report.sweep_html import html_text
from mthp.words.units import human_bytes

REDIS = str(Path(__file__).parents[2] / "src/mthp/data/redis.npz")
VOID = {"meta", "br"}
HOSTILE = (
    "</title></pre><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e&amp;"
)


class Page(HTMLParser):
    """A page as its elements: (tag, attributes, text inside of it, tags around it)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs))
        element: tuple[str, dict[str, str], list[str]] = (
            tag,
            {name: value or "" for name, value in attrs},
            [],
        )
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def texts(self, tag: str, kind: str = "") -> list[str]:
        """What is inside of the elements of a tag, and a class."""
        return [
            "".join(text)
            for found, attributes, text in self.found
            if found == tag and kind in attributes.get("class", "")
        ]


@cache
def sweep(*flags: str) -> Sweep:
    return sweep_of(
        build_parser().parse_args(["sweep", REDIS, "--profile", "7.3", "--quiet", *flags])
    )


WISHES = {
    "recommended": (),
    "nearest": ("--min-large", "99"),
    "leave": ("--max-added", "0", "--max-ptes-none", "0", "--enabled", "all=always,always"),
    "too much": ("--max-added", "0", "--enabled", "2048kB=always"),
}


@pytest.mark.parametrize("wish", WISHES)
def test_the_table_has_every_plan_with_its_figures(wish: str) -> None:
    made = sweep(*WISHES[wish])
    page = Page(html_text(made))
    rows: list[list[float]] = []
    marks: list[str] = []
    for tag, attributes, _ in page.found:
        if tag == "tr" and attributes.get("class"):
            rows.append([])
            marks.append(attributes["class"])
        elif tag == "td" and "data-v" in attributes:
            rows[-1].append(float(attributes["data-v"]))
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
    page = Page(html_text(made))
    dots = [attributes for tag, attributes, _ in page.found if tag == "circle"]
    assert [each["aria-label"] for each in dots] == page.texts("title")[1:]
    assert len(dots) == 1 + len({(*plan.price[:3], plan.large) for plan in made.plans})
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
    page = Page(html_text(made))
    assert page.texts("h1") == [f"Recommended: huge pages of {plan_name(made.chosen)}"]
    lines = writes(made.base, made.chosen.settings)
    assert page.texts("pre") == [
        "\n".join(f"echo {value} > {path}" for path, value in lines),
        "\n".join(f"w {path} - - - - {value}" for path, value in lines),
        "\n".join(tuned_lines(lines)),
        boot_parameter(made.chosen.settings),
    ]
    text = " ".join(page.texts("main"))
    for order, size in made.chosen.after.items():
        assert f"{made.base.geometry.size_name(order)}: {human_bytes(size)}" in text
    for (pid, start), size in made.chosen.added_by_vma.items():
        assert f"({pid}) anonymous at {start:#x}{human_bytes(size)}" in text
    for each in (*made.basis.assumptions, *made.basis.unseen):
        assert each in page.texts("li")
    assert "prediction" in text
    assert "Page faults, which also make large folios" in text


def test_it_says_when_there_is_nothing_to_write() -> None:
    for wish, title in (
        ("nearest", "No setting gives what was asked for"),
        ("leave", "Recommended: leave the settings as they are"),
    ):
        page = Page(html_text(sweep(*WISHES[wish])))
        assert page.texts("h1") == [title]
        assert not page.texts("pre")


def test_what_is_set_is_not_recommended_where_it_adds_more_than_asked_for() -> None:
    made = sweep(*WISHES["too much"])
    assert made.wish.missed_by(made.now) > 0
    assert made.chosen is not None
    assert made.now.translations < made.chosen.translations
    page = Page(html_text(made))
    assert page.texts("h1") == [f"Recommended: huge pages of {plan_name(made.chosen)}"]
    assert "What is set now does not: 92% in large folios" in " ".join(page.texts("p"))


def test_what_strangers_wrote_stays_text() -> None:
    plain, made = Page(html_text(sweep())), sweep()
    basis = replace(
        made.basis,
        target=HOSTILE,
        source=HOSTILE,
        profile_reason=HOSTILE,
        assumptions=(HOSTILE,) * len(made.basis.assumptions),
        unseen=(HOSTILE,) * len(made.basis.unseen),
    )
    hostile = replace(made, basis=basis, names=dict.fromkeys(made.names, (HOSTILE, HOSTILE)))
    text = html_text(hostile)
    page = Page(text)
    assert [tag for tag, *_ in page.found] == [tag for tag, *_ in plain.found]
    assert page.texts("li").count(HOSTILE.replace("\x1b", "?").replace("\u202e", "?")) > 3
    assert not re.search("[\x1b\u202e]", text)


def test_it_loads_nothing_and_runs_its_own_script_alone() -> None:
    text = html_text(sweep())
    assert len(text.encode()) < 100_000
    assert not re.search(
        r"\w://|//\w|@import|url\(|\s(src|href|on\w+)=|<(link|img|iframe|object)", text
    )
    page = Page(text)
    (script,) = page.texts("script")
    policy = next(
        attributes["content"]
        for tag, attributes, _ in page.found
        if tag == "meta" and "http-equiv" in attributes
    )
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


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
    assert file.read_text(encoding="utf-8") == html_text(
        replace(sweep(), basis=replace(sweep().basis, target=REDIS))
    )
