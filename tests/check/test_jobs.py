# SPDX-License-Identifier: GPL-2.0-or-later
"""Many searches: stopped anywhere, they go on to the same results; the file they go on from."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mthp.check import rows as rows_module
from mthp.check.check import check_world
from mthp.check.jobs import Jobs
from mthp.check.rows import Result, Rows, engine
from mthp.check.scorecard import ScorecardRow
from mthp.check.search import Budget, By, SearchControl
from mthp.explore.part import NotThisSearch
from mthp.races.mutants.rules import HALVES, MUTANTS
from mthp.races.stage import Size
from mthp.races.world import RaceWorld
from mthp.words.files import FileError

PAIR = ScorecardRow(RaceWorld(Size.PMD, "7.3", ("store", "fault")), Budget())
SEVERAL = [
    PAIR,
    ScorecardRow(RaceWorld(Size.PMD, "7.3", ("gup",)), Budget()),
    ScorecardRow(RaceWorld(Size.PMD, "v16", ("migrate",)), Budget()),
    ScorecardRow(RaceWorld(Size.WINDOW, "7.3", ("migrate-neighbour",)), Budget(), "A16"),
    ScorecardRow(MUTANTS["A2"], Budget()),
    ScorecardRow(HALVES["A1-ipi"], Budget()),
]


def timeless(result: Result) -> Result:
    return replace(result, seconds=0.0)


def plain(jobs: Sequence[ScorecardRow]) -> dict[str, Result]:
    return {job.key: timeless(job.run()) for job in jobs}


def after(executions: int) -> Callable[[], bool]:
    """Stop when this has been asked so often."""
    asked = iter(range(executions))
    return lambda: next(asked, None) is None


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]
)
def test_a_world_goes_on_where_it_was_stopped(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    stops = 0
    while True:
        rows = Rows(tmp_path / "file", "one world")
        stop = after(source.randint(10, 100))
        found = list(Jobs([PAIR], processes=1, rows=rows, is_over=stop).run())
        if found:
            break
        stops += 1
        assert rows.unfinished.keys() == {PAIR.key}
    assert stops > 1
    assert {job.key: timeless(result) for job, result in found} == plain([PAIR])
    assert found[0][1].seconds > 0


@pytest.mark.slow
def test_several_worlds_go_on_on_all_cores(tmp_path: Path) -> None:
    found: list[tuple[ScorecardRow, Result]] = []
    turns = 0
    while len(found) < len(SEVERAL):
        rows = Rows(tmp_path / "file", "several")
        stop = after(3) if turns < 3 else after(10**9)
        found = list(Jobs(SEVERAL, processes=2, rows=rows, is_over=stop, turn=0.02).run())
        turns += 1
    assert turns > 1
    assert {job.key: timeless(result) for job, result in found} == plain(SEVERAL)
    again = list(Jobs(SEVERAL, processes=2, rows=Rows(tmp_path / "file", "several")).run())
    assert sorted(again, key=lambda row: row[0].key) == sorted(found, key=lambda row: row[0].key)


@pytest.mark.slow
def test_what_one_core_does_not_finish_all_do() -> None:
    jobs = Jobs(SEVERAL[:2], processes=2, turn=0.0)
    assert {job.key: timeless(result) for job, result in jobs.run()} == plain(SEVERAL[:2])


@pytest.mark.slow
def test_a_bound_can_be_moved(tmp_path: Path) -> None:
    def run(executions: int | None) -> Result:
        rows = Rows(tmp_path / "file", "one world")
        job = ScorecardRow(PAIR.what, Budget(executions))
        ((_, result),) = Jobs([job], processes=1, rows=rows).run()
        return result

    first = run(20)
    assert (first.covered.executions, first.covered.bound) == (20, "stopped after 20 executions")
    assert run(20) == first
    assert run(30).covered.executions == 30
    assert timeless(run(None)) == timeless(PAIR.run())


def test_the_file_is_refused_where_it_is_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    list(Jobs([PAIR], processes=1, rows=Rows(file, "one"), is_over=after(9)).run())
    kept = file.read_text(encoding="utf-8")
    with pytest.raises(FileError, match="it is of another check: one"):
        Rows(file, "other")
    monkeypatch.setattr(rows_module, "engine", lambda: "another")
    with pytest.raises(FileError, match="the engine has changed since"):
        Rows(file, "one")
    assert file.read_text(encoding="utf-8") == kept


def damaged(text: str) -> list[str]:
    document = json.loads(text)
    headless = json.loads(text)
    next(iter(headless["unfinished"].values()))["parts"] = []
    shapeless = json.loads(text)
    next(iter(shapeless["unfinished"].values()))["parts"] = [{"places": 1}]
    giant = json.loads(text)
    next(iter(giant["unfinished"].values()))["parts"][0]["places"][0][0] = 1 << 70
    foolish = {**document, "finished": {"x": {"kind": "WorldResult", "profile": "7.3"}}}
    nobody = {**document, "finished": {"x": {"kind": "Path"}}}
    whole = [headless, shapeless, giant, foolish, nobody, {"format": document["format"]}]
    return ["[]", "7", text[:-9], *map(json.dumps, whole)]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    list(Jobs([PAIR], processes=1, rows=Rows(file, "one"), is_over=after(9)).run())
    for text in damaged(file.read_text(encoding="utf-8")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(FileError, match=r"not a file of `mthp check`|bad JSON"):
            Rows(file, "one")
    file.write_text('{"format": "mthp-snapshot/1"}', encoding="utf-8")
    with pytest.raises(FileError, match="but 'mthp-snapshot/1'"):
        Rows(file, "one")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("profile", "\x1b]0;x\x07"),
        pytest.param("seconds", -1.0, marks=pytest.mark.slow),
        pytest.param("seconds", float("inf"), marks=pytest.mark.slow),
    ],
)
def test_a_forged_row_is_refused(name: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "file"
    list(Jobs([PAIR], processes=1, rows=Rows(file, "one")).run())
    document = json.loads(file.read_text(encoding="utf-8"))
    next(iter(document["finished"].values()))[name] = value
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(FileError, match=r"or damaged|Infinity is no number"):
        Rows(file, "one")


@pytest.mark.parametrize("by", [By.REFERENCE, By.COMPILED])
@pytest.mark.parametrize(("place", "task"), [(0, 5), (3, 2)])
def test_a_search_that_leads_nowhere_is_refused(
    by: By, place: int, task: int, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    list(Jobs([PAIR], processes=1, rows=Rows(file, "one"), is_over=after(9)).run())
    document = json.loads(file.read_text(encoding="utf-8"))
    (kept,) = document["unfinished"].values()
    kept["parts"][0]["places"][place][0] = task
    kept["parts"][0]["places"][place][1] = [task]
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(NotThisSearch):
        list(Jobs([PAIR], processes=1, rows=Rows(file, "one"), by=by).run())


def test_the_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(tmp_path / "file", "one")
    before = (tmp_path / "file").read_text(encoding="utf-8")

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space left"):
        rows.save()
    assert (tmp_path / "file").read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_engine_has_a_fingerprint() -> None:
    assert engine() == engine()
    assert len(engine()) == 16


@pytest.mark.slow
def test_a_search_keeps_what_it_needs_now_and_then() -> None:
    kept: list[object] = []
    told: list[object] = []
    control = SearchControl(keep=kept.append, every=0.01, tell=told.append)
    control._told -= 10
    assert isinstance(PAIR.what, RaceWorld)
    result = check_world(PAIR.what, control=control)
    assert kept and told
    assert control.rest is None
    assert timeless(result) == timeless(PAIR.run())
