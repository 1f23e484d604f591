# SPDX-License-Identifier: GPL-2.0-or-later
"""Distributions over machines, of answers that were written by hand, and the setting that is chosen."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from mthp.fleet.gather import Gathered
from mthp.fleet.records import FleetGroup, Spread, Swept
from mthp.fleet.schema import ANSWERS
from mthp.plan.records import Wanted, Wish

SETTINGS = [("", 511), ("64kB=always", 0), ("2048kB=always", 511)]


class Answers:
    """A folder of answers, and what is gathered of it."""

    def __init__(self, folder: Path) -> None:
        (folder / "answers").mkdir()
        self.folder, self.gathered = folder, Gathered(str(folder))

    def add(
        self, host: str | None, added: tuple[int, ...], large: tuple[int, ...], **more: str
    ) -> None:
        """A snapshot with 1,000 bytes mapped before: what each setting adds, and what is large then."""
        digest = more.pop("digest", f"{len(list(self.folder.rglob('*.parquet')))}")
        base = dict.fromkeys(ANSWERS.names)
        rows = [
            {
                **base, "current": k == 0, "enabled": enabled, "max_ptes_none": none, "front": k == 3,
                "mapped_before": 1000, "mapped": 1000, "large": large[k], "memory_added": added[k],
                "tlb_entries": 1000 - large[k], "reach": 0.5, "last_collapse_ms": None,
            }
            for k, (enabled, none) in enumerate([("madvise", 30), *SETTINGS])
        ]  # fmt: skip
        parquet.write_table(
            pa.Table.from_pylist(rows, ANSWERS), self.folder / "answers" / f"{digest}.parquet"
        )
        kernel, profile = more.get("kernel", "7.3.4"), more.get("profile", "7.3")
        part = f"{digest}.parquet"
        swept = Swept(f"/{digest}.npz", digest, host, kernel, profile, 4096, 2 << 20, part)
        self.gathered.add(swept)

    def only(self, wish: Wish) -> FleetGroup:
        (group,) = self.gathered.answer(wish)
        return group


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path)


def test_each_figure_is_some_machines_own(answers: Answers) -> None:
    for number in range(20):
        answers.add(f"h{number}", (0, 0, 0, 10 * number), (0, 0, 50, 900 - number))
    group = answers.only(Wish(added=0.05))
    assert group.machines == group.snapshots == 20
    last = group.settings[2]
    assert last.added == Spread(0.01, 0.09, 0.17, 0.19)
    assert last.large == Spread(0.882, 0.890, 0.898, 0.881)
    assert last.translations == Spread(101, 109, 117, 119)
    assert (last.holds, last.front, group.settings[1].front, group.now.holds) == (6, 20, 0, 20)
    assert group.now.settings is None


def test_the_choice_holds_on_the_most_machines_and_names_the_worst(answers: Answers) -> None:
    answers.add("a", (0, 0, 0, 20), (0, 0, 100, 900))
    answers.add("b", (0, 0, 0, 60), (0, 0, 200, 900))
    answers.add("c", (0, 0, 40, 80), (0, 0, 200, 900))
    group = answers.only(Wish(added=0.05, large=0.15))
    assert [each.holds for each in group.settings] == [0, 2, 1]
    assert group.chosen is group.settings[1] and group.now.holds == 0
    assert [(each.name, each.added) for each in group.worst] == [
        ("a", 0.0),
        ("c", 0.04),
        ("b", 0.0),
    ]
    assert [miss.wanted for miss in group.worst[0].misses] == [Wanted.LARGE]


def test_of_settings_that_hold_on_as_many_the_one_with_fewest_entries(answers: Answers) -> None:
    answers.add("a", (0, 0, 0, 20), (0, 0, 100, 900))
    answers.add("b", (0, 0, 0, 60), (0, 0, 200, 900))
    group = answers.only(Wish(added=0.06))
    assert group.chosen is group.settings[2]
    assert [each.name for each in group.worst] == ["b", "a"]
    group = answers.only(Wish(added=0.05))
    assert group.chosen is group.settings[1]
    group = answers.only(Wish(large=0.15))
    assert group.chosen is group.settings[2]
    group = answers.only(Wish(large=0.95))
    assert group.chosen is None
    assert [miss.wanted for miss in group.worst[0].misses] == [Wanted.LARGE]


def test_to_enable_no_size_is_no_answer(answers: Answers) -> None:
    answers.add("a", (0, 0, 9, 20), (0, 0, 100, 900))
    answers.add("b", (0, 0, 20, 60), (0, 0, 200, 900))
    group = answers.only(Wish(added=0.01))
    assert [each.holds for each in group.settings] == [2, 1, 0]
    assert group.chosen is group.settings[1]
    group = answers.only(Wish(added=0.001))
    assert group.settings[0].holds == 2 and group.chosen is None
    assert [(each.name, each.added) for each in group.worst] == [("b", 0.06), ("a", 0.02)]


def test_of_a_machine_its_worst_snapshot_counts(answers: Answers) -> None:
    answers.add("a", (0, 0, 10, 20), (0, 0, 100, 900))
    answers.add("a", (0, 0, 60, 10), (0, 0, 50, 950))
    answers.add(None, (0, 0, 0, 0), (0, 0, 0, 0))
    answers.add(None, (0, 0, 0, 0), (0, 0, 0, 0))
    group = answers.only(Wish())
    assert (group.machines, group.snapshots) == (3, 4)
    assert group.settings[1].added.worst == 0.06 and group.settings[2].added.worst == 0.02
    assert group.settings[2].translations.worst == 1000 and group.settings[2].large.p90 == 0.9
    assert group.settings[2].front == 3


def test_the_same_content_counts_once(answers: Answers) -> None:
    for _ in range(2):
        answers.add("a", (0, 0, 0, 0), (0, 0, 0, 0), digest="same")
    assert answers.only(Wish()).snapshots == 1
    assert answers.gathered.twice == 1


def test_kernels_that_collapse_otherwise_are_another_group(answers: Answers) -> None:
    answers.add("a", (0, 0, 0, 0), (0, 0, 0, 0))
    answers.add("b", (0, 0, 0, 0), (0, 0, 0, 0), kernel="7.2.1")
    answers.add("c", (0, 0, 0, 0), (0, 0, 0, 0), kernel="6.1", profile="pmd-only")
    groups = answers.gathered.answer(Wish())
    assert [(group.profile, dict(group.kernels)) for group in groups] == [
        ("7.3", {"7.2.1": 1, "7.3.4": 1}),
        ("pmd-only", {"6.1": 1}),
    ]
