# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages in a real Chromium: used by pointer, by keys, in the dark, on paper and on a small screen."""

from __future__ import annotations

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mthp.cli import main
from tests.report.browser import Browser, browser, missing

REDIS = str(Path(__file__).parents[2] / "src/mthp/data/redis.npz")
TREE = str(Path(__file__).parents[2] / "docs/examples/life/tree.npz")
FLAGS = [REDIS, "--profile", "7.3", "--quiet", "--html"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not on this host: {missing()}"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "sweep.html"
    assert main(["sweep", *FLAGS, str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def plan_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "plan.html"
    assert (
        main(["plan", *FLAGS, str(file), "--enabled", "64kB=always", "--max-ptes-none", "0"]) == 0
    )
    return file


@pytest.fixture(scope="module")
def life_pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a life, and of its sweep."""
    folder = tmp_path_factory.mktemp("page")
    flags = [TREE, "--enabled", "all=always", "--profile", "7.3", "--scan-sleep-millisecs", "100"]
    files = folder / "life.html", folder / "sweep.html"
    assert main(["life", *flags, "--html", str(files[0])]) == 0
    assert main(["life", *flags, "--sweep", "--html", str(files[1])]) == 0
    return files


def test_a_life_is_read_by_keys_in_the_dark_on_paper_and_on_a_small_screen(
    chromium: Browser, life_pages: tuple[Path, Path]
) -> None:
    life, sweep = life_pages
    chromium.open(life, prefers_color_scheme="dark")
    chromium.run("document.querySelector('figure.plot .dot[tabindex=\"0\"]').focus()")
    first = chromium.text("figure.plot output")
    chromium.press("ArrowLeft")
    last = chromium.text("figure.plot output")
    assert "in use" in first and "2.09 s after the beginning" in last
    stroke = "return getComputedStyle(document.querySelector('.curve.given')).stroke"
    assert chromium.run(stroke) == "rgb(74, 194, 107)"
    shown = "return [...document.querySelectorAll('svg')].map(e=>e.getBoundingClientRect().height)"
    assert len(chromium.run(shown)) == 2 and min(chromium.run(shown)) > 200
    chromium.open(life, medium="print", prefers_color_scheme="dark")
    assert chromium.run(stroke) == "rgb(26, 127, 55)"
    for page in life_pages:
        chromium.open(page, 400)
        assert chromium.run("return document.documentElement.scrollWidth") <= 400
        for node in chromium.devtools("Accessibility.getFullAXTree")["nodes"]:
            if node.get("role", {}).get("value") in {"button", "image"} and not node["ignored"]:
                assert node.get("name", {}).get("value"), node
    chromium.open(sweep)
    assert len(chromium.run(shown)) == 12
    column = "return [...document.querySelectorAll('tbody tr')].map(r=>+r.cells[1].dataset.v)"
    chromium.click("table.sorts th:nth-child(2) button")
    assert chromium.run(column) == sorted(chromium.run(column))
    assert chromium.errors() == []


def unit(page: Browser) -> str:
    return page.text("#unit")


@pytest.mark.parametrize("kind", ["sweep", "plan"])
def test_the_map_comes_closer_down_to_single_pages_and_back(
    chromium: Browser, kind: str, sweep_page: Path, plan_page: Path
) -> None:
    chromium.open(sweep_page if kind == "sweep" else plan_page)
    whole = chromium.run("return document.querySelectorAll('svg.map')[1].innerHTML")
    assert unit(chromium) == "256 KiB"
    chromium.point("svg.map", 0.5, 0.25)
    assert re.match(r"0x[0-9a-f]+000: 256 KiB of anonymous memory", chromium.text("#map-read"))
    for size in ("32 KiB", "4 KiB", "4 KiB"):
        chromium.point("svg.map", 0.5, 0.25, click=True)
        assert unit(chromium) == size
    assert "4 KiB in folios of 4kB" in chromium.text("#map-read")
    chromium.click(".buttons button:nth-child(2)")
    assert unit(chromium) == "32 KiB"
    chromium.click(".buttons button:nth-child(3)")
    assert unit(chromium) == "256 KiB"
    chromium.point("svg.map", 0.99, 0.01)
    again = chromium.run("return document.querySelectorAll('svg.map g')[1].innerHTML")
    # What the script draws is what was there without it, but for the digits of numbers.
    assert [re.sub("[0-9.]+", "", each) for each in re.findall("<path[^>]*", whole)] == [
        re.sub("[0-9.]+", "", each) for each in re.findall("<path[^>]*", again)
    ]
    assert chromium.errors() == []


def test_the_map_goes_by_keys_alone_and_says_where_it_is(
    chromium: Browser, plan_page: Path
) -> None:
    chromium.open(plan_page)
    reached = ""
    for _ in range(12):
        chromium.press("Tab")
        reached = chromium.run("return document.activeElement.id")
        if reached == "map":
            break
    assert reached == "map"
    said = chromium.text("#map-read")
    chromium.press("ArrowDown", "ArrowDown", "ArrowRight")
    assert chromium.text("#map-read") != said
    chromium.press("+", "Enter")
    assert unit(chromium) == "4 KiB"
    chromium.press("Escape")
    assert unit(chromium) == "32 KiB"
    chromium.press("Home")
    assert unit(chromium) == "256 KiB"
    named = chromium.run("return document.activeElement.getAttribute('aria-label')")
    assert named.startswith("Map of the memory")
    assert (
        chromium.run("return document.getElementById('map-read').getAttribute('aria-live')")
        == "polite"
    )


def test_a_square_says_why_it_stays_and_what_to_do(chromium: Browser, plan_page: Path) -> None:
    chromium.open(plan_page)
    said = set()
    for x in range(32):
        chromium.point("svg.map", (x + 0.5) / 32, 0.96)
        said.add(chromium.text("#map-read"))
    assert any("Why " in each and "to change that, for example: " in each for each in said)


def test_tables_sort_both_ways_and_a_row_leads_to_the_map(
    chromium: Browser, plan_page: Path
) -> None:
    chromium.open(plan_page)
    column = (
        "return [...document.querySelectorAll('.mappings tbody tr')].map(r=>+r.cells[1].dataset.v)"
    )
    first = chromium.run(column)
    assert first == sorted(first, reverse=True)
    chromium.click(".mappings th:nth-child(2) button")
    assert chromium.run(column) == sorted(first)
    label = "return document.querySelector('.mappings th:nth-child(2)').getAttribute('aria-sort')"
    assert chromium.run(label) == "ascending"
    chromium.click(".mappings th:nth-child(2) button")
    assert chromium.run(column) == first
    address = chromium.text(".mappings tbody tr code")
    chromium.click(".mappings tbody tr button.show")
    assert chromium.text("#map-read").startswith("0x" + address[:8])


def test_dots_are_reached_by_tab_and_arrows(chromium: Browser, sweep_page: Path) -> None:
    chromium.open(sweep_page)
    chromium.run("document.querySelector('figure.plot .dot[tabindex=\"0\"]').focus()")
    before = chromium.text("figure.plot output")
    assert "large folios" in before
    chromium.press("ArrowRight")
    assert chromium.text("figure.plot output") not in ("", before)


def test_in_the_dark_on_paper_and_on_a_small_screen(chromium: Browser, sweep_page: Path) -> None:
    shade = "return getComputedStyle(document.body).backgroundColor"
    chromium.open(sweep_page, prefers_color_scheme="light")
    assert chromium.run(shade) == "rgb(255, 255, 255)"
    chromium.open(sweep_page, prefers_color_scheme="dark")
    assert chromium.run(shade) == "rgb(13, 17, 23)"
    chromium.open(sweep_page, medium="print", prefers_color_scheme="dark")
    assert chromium.run(shade) == "rgb(255, 255, 255)"
    hidden = "return [...document.querySelectorAll('button')].every(b=>!b.checkVisibility())"
    assert chromium.run(hidden)
    paper = chromium.devtools("Page.printToPDF", printBackground=True)["data"]
    assert b64decode(paper).startswith(b"%PDF")
    chromium.open(sweep_page, 400)
    assert chromium.run("return document.documentElement.scrollWidth") <= 400


def test_everything_that_can_be_used_has_a_name(
    chromium: Browser, sweep_page: Path, plan_page: Path
) -> None:
    for file in (sweep_page, plan_page):
        chromium.open(file)
        tree = chromium.devtools("Accessibility.getFullAXTree")["nodes"]
        named = {"button", "image", "graphics-document", "application", "region", "img"}
        for node in tree:
            if node.get("role", {}).get("value") in named and not node["ignored"]:
                assert node.get("name", {}).get("value"), node
        roles = Counter(node.get("role", {}).get("value") for node in tree)
        assert roles["button"] > 8
        assert roles["application"] == 1
        assert chromium.errors() == []


def test_all_is_there_without_the_script(
    chromium: Browser, plan_page: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.html"
    text = plan_page.read_text("utf-8")
    bare.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL), "utf-8")
    chromium.open(bare)
    assert chromium.run("return document.querySelectorAll('svg.map path').length") > 4
    assert chromium.run("return document.querySelectorAll('.mappings tbody tr').length") > 4
    assert not chromium.run("return document.querySelector('.script').checkVisibility()")
