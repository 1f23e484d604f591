# SPDX-License-Identifier: GPL-2.0-or-later
"""The worked example: a protocol on migration entries and frozen references is clean in every world, and
none of its traps can be stepped into without a law being broken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mthp.check.check import check_world
from mthp.check.scorecard import default_worlds
from mthp.check.search import Budget
from mthp.races.edits import Edit, edited
from mthp.races.protocol import protocol
from mthp.races.world import RaceWorld

FILE = Path(__file__).parents[2] / "docs" / "examples" / "migration_collapse.py"
TEXT = FILE.read_text(encoding="utf-8")
MOST = 8_000
"""Executions of a world, at most."""
PARTS = 4
"""In which all worlds are looked at."""
LARGE = {"slot-reuse", "swap-in-store"}
"""Rivals in whose worlds there are more."""


@pytest.fixture
def in_force() -> Iterator[None]:
    with protocol(FILE):
        yield


def edit(function: str, old: str, new: str = "") -> Edit:
    return Edit("example", function, old, new)


BROKEN: dict[str, tuple[Edit | tuple[Edit, ...], str, set[int]]] = {
    "soft-dirty bits are lost on abort": (
        edit("restore", "slot.found ^ changed", "(slot.found ^ changed) & ~SOFT_DIRTY"),
        "pmd:gup",
        {8, 11},
    ),
    "dirty bits are lost on abort": (
        edit("restore", "slot.found ^ changed", "(slot.found ^ changed) & ~DIRTY"),
        "pmd:gup",
        {11, 16},
    ),
    "the folios are not locked": (
        (
            edit("put_in_flight", "__collapse_huge_page_isolate(...)", "_\nunlock(window, pte)"),
            edit("let_go", "mem.folio_unlock(folio)"),
            edit(
                "roll_back",
                "release_pte_folio(window.kernel, folio)",
                "folio_clear_isolated(window.mem, folio)\n"
                "folio_putback_lru(window.mem, window.kernel.this_cpu, folio)",
            ),
        ),
        "pmd:",
        {9},
    ),
    "an entry that is gone is ignored by install": (
        edit("map_by_ptes", "sample_again(window, pte)"),
        "window:zap-page",
        {12},
    ),
    "a zapped slot is filled again": (
        (
            edit("restore", "not is_wanted(now, -pte_pfn(slot.found))", "False"),
            edit("restore", "now ^ slot.left", "0"),
        ),
        "window:zap-page",
        {11, 12},
    ),
    "the references stay frozen": (edit("roll_back", "thaw(window)"), "pmd:poisoned", {5}),
    "the pages are copied before they are frozen": (
        edit("replace", "freeze(window)\ncopy(window, new)", "_2\n_1"),
        "pmd:get",
        {2, 3},
    ),
    "a neighbour's entry is taken": (
        edit("put_in_flight", "range(1 << window.order)", "range((1 << window.order) + 1)"),
        "window:",
        {9},
    ),
    "a zero page is overwritten, and what has taken its place": (
        edit(
            "sample_again",
            "(pte.get(i) ^ slot.left) & ~(YOUNG | DIRTY)",
            "(slot.is_taken or not slot.found) and (pte.get(i) ^ slot.left) & ~(YOUNG | DIRTY)",
        ),
        "window:zero-store",
        {3, 7},
    ),
    "the old table is deposited, while a walker is in it": (
        (
            edit("map_by_pmd", "kernel.new_table()", "kernel.tables[pmdp_get_lockless(pmd) >> 16]"),
            edit("map_by_pmd", "del kernel.tables[deposit.number]"),
            edit("map_by_pmd", "pte_free_defer(old)"),
        ),
        "pmd:fault+zap",
        {1},
    ),
    "no CPU is told that its translations are gone": (
        edit("put_in_flight", "flush_tlb_mm_range(...)"),
        "pmd:store-twice",
        {2},
    ),
    "the PMD is none while it is replaced": (
        edit(
            "map_by_pmd",
            "sample_again(window, pte)",
            "_\npmd.page.pmds.swap(pmd.slot, 0)",
        ),
        "pmd:zap-page",
        {12},
    ),
    "a folio is frozen while it is written": (
        edit("freeze", "mem.test(folio, PG_WRITEBACK)"),
        "pmd:writeback",
        {5},
    ),
    "the new folio is mapped before it is filled": (
        edit("replace", "copy(window, new)"),
        "pmd:load",
        {3},
    ),
    "secondary MMUs are not told": (
        edit("put_in_flight", "mmu_notifier_invalidate_range(...)"),
        "pmd:guest",
        {1, 2, 3},
    ),
    "references of others do not matter": (
        edit(
            "freeze",
            "mem.folio_ref_freeze(folio, references)",
            "mem.folio_ref_freeze(folio, mem.folio_ref_count(folio))",
        ),
        "pmd:gup",
        {2, 3, 5},
    ),
}


UNLOCK = """


def unlock(window, pte):
    for i in range(1 << window.order):
        if not pte_none_or_zero(pte.get(i)):
            window.mem.folio_unlock(window.mem.page_folio(pte_pfn(pte.get(i))))
"""


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param(trap, marks=[pytest.mark.slow] if n % 2 else [])
        for n, trap in enumerate(BROKEN)
    ],
)
def test_a_trap_is_seen(trap: str, tmp_path: Path) -> None:
    change, name, laws = BROKEN[trap]
    changes = change if isinstance(change, tuple) else (change,)
    own = tmp_path / "broken.py"
    own.write_text(edited(changes, lambda _: TEXT)["example"] + UNLOCK, encoding="utf-8")
    size, _, rivals = name.partition(":")
    with protocol(own):
        world = RaceWorld.parse(size, "7.3", tuple(rivals.split("+")) if rivals else ())
        result = check_world(world, Budget(MOST))
    assert result.violation is not None
    assert {each.law for each in result.violation.breaches} & laws, result.violation.breaches


def test_the_page_lists_every_trap() -> None:
    page = (FILE.parents[1] / "protocols.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `(\w+)`(?:, `([\w+-]+)`)? \| ([\d, ]+) \|$", page, re.M)
    assert {trap: (f"{size}:{rivals}", laws) for trap, size, rivals, laws in rows} == {
        trap: (name, ", ".join(map(str, sorted(laws)))) for trap, (_, name, laws) in BROKEN.items()
    }


FAST = (
    "pmd:",
    "window:",
    "pmd:store",
    "pmd:fault",
    "pmd:gup",
    "window:zap-page",
    "window:zero-store",
)


@pytest.mark.parametrize("name", FAST)
def test_it_is_clean(name: str, in_force: None) -> None:
    size, _, rivals = name.partition(":")
    world = RaceWorld.parse(size, "7.3", tuple(rivals.split("+")) if rivals else ())
    result = check_world(world)
    assert result.clean and result.covered.kind == "exhaustive"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_it_is_clean_in_every_world(part: int, in_force: None) -> None:
    for world in default_worlds("7.3")[part::PARTS]:
        result = check_world(world, Budget(MOST))
        assert result.clean, (world.name, world.rivals, result.violation)
        is_bounded = result.covered.kind != "exhaustive"
        assert not is_bounded or LARGE.intersection(world.rivals), (world.name, world.rivals)
