# SPDX-License-Identifier: GPL-2.0-or-later
"""Races as pictures. docs/drawings/ has some whole, and tests/test_docs.py makes them again."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from mthp.check.records import Violation
from mthp.report.race import change_of, function_of, headline, rows
from mthp.report.svg import svg_text
from tests.report.test_race import RACES, race

SVG = "{http://www.w3.org/2000/svg}"


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", RACES)
def test_it_says_what_the_text_says(name: str) -> None:
    violation = race(name)
    root = ElementTree.fromstring(svg_text(violation))
    found = texts(root)
    for row in rows(violation.race):
        if row.drawn is None:
            counts = [f"... {n} step{'s' * (n > 1)}" for n in row.folded.values()]
            assert set(counts) & set(found)
        else:
            assert function_of(row.drawn) in " ".join(found)
            assert change_of(row.drawn) in " ".join(found)
    assert f"mthp replay {violation.replay}" in found
    assert root.findtext(f"{SVG}desc") == headline(violation)
    assert root.findtext(f"{SVG}title")


def test_an_arrow_a_conflict_and_a_mark_at_each_breach() -> None:
    violation = race("A2")
    root = ElementTree.fromstring(svg_text(violation))
    arrows = root.findall(f"{SVG}path[@class='arrow']")
    assert len(arrows) == len(violation.race.conflicts)
    breaches = root.findall(f"{SVG}rect[@class='breach']")
    assert len(breaches) == 1 + sum(
        bool(step.breaks and step.drawn) for step in violation.race.steps
    )
    bars = {each.findtext(f"{SVG}title") for each in root.findall(f"{SVG}rect[@class='bar']")}
    assert {"mmap_lock (write)", "mmap_lock (read)", "VMA lock (write)", "pmd lock"} <= bars


def test_it_loads_nothing_and_runs_nothing() -> None:
    for name in RACES:
        text = svg_text(race(name))
        addresses = set(re.findall(r"\w+://[^\"]*", text))
        assert addresses == {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<script|<image|@import|@font-face|href|\son\w+=", text)
        assert re.findall(r"url\(([^)]*)\)", text) == ["#head"] * text.count("url(")


def test_dark_paper_has_colours_of_its_own() -> None:
    style = re.findall(r"<style>(.*?)</style>", svg_text(race("A2")))[0]
    light, dark = style.split("@media (prefers-color-scheme:dark)")
    names = re.findall(r"\.(\w+)\{(?:fill|stroke):", light)
    assert names
    assert set(names) == set(re.findall(r"\.(\w+)\{", dark))


def hostile() -> Violation:
    violation = race("A16")
    breach = replace(violation.breaches[1], text="<&\x1b[31m\x00 ]]> \ud800")
    return replace(violation, breaches=(violation.breaches[0], breach))


def test_whatever_a_protocol_says_it_is_xml() -> None:
    root = ElementTree.fromstring(svg_text(hostile()).encode())
    assert any("<&?[31m? ]]> ?" in each for each in texts(root))
