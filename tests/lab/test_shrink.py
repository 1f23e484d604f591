# SPDX-License-Identifier: GPL-2.0-or-later
"""Shrinking: every candidate is legal and simpler in some way, and the search ends in a minimum."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mthp.image.scenario_values import Action
from mthp.lab.draw import FAMILIES, draw
from mthp.lab.program.declared import declare, problem
from mthp.lab.program.program import BASE, Draft, Target, parse
from mthp.lab.program.shrink import candidates, shrink, size
from mthp.words.settings import Enabled, Settings


def kinds(draft: Draft) -> set[str]:
    return {each.kind for each in (*draft.ops, *draft.finish)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_candidate_is_legal_and_another_draft(family: str) -> None:
    drawn = draw(3, 1, family)
    found = list(candidates(drawn))
    assert len(found) > 5
    assert drawn not in found
    assert len({str(each.to_json()) for each in found}) == len(found)
    for each in found[:: max(1, len(found) // 8)]:
        assert problem(each) == ""
        assert size(each) < size(drawn)


def test_the_first_candidates_remove_most() -> None:
    drawn = replace(draw(3, 1, "processes"), passes=3)
    passes = [each.passes for each in candidates(drawn)]
    assert passes[:3] == [1, 2, 3]
    sizes = [size(each)[1] for each in candidates(drawn) if each.passes == 3]
    assert sum(sizes[:3]) < sum(sizes[-3:])


@pytest.mark.parametrize("family", ["swap", "uffd", "processes", "moved", "madvise"])
def test_shrinking_ends_in_a_local_minimum(family: str) -> None:
    drawn = draw(4, 2, family)
    wanted = sorted(kinds(drawn) - {"new", "base", "mmap", "w", "munmap"})[-2:]

    def still_bad(each: Draft) -> bool:
        return set(wanted) <= kinds(each)

    smallest = shrink(drawn, still_bad, 5000)
    assert still_bad(smallest)
    assert problem(smallest) == ""
    assert size(smallest) < size(drawn)
    assert not any(still_bad(each) for each in candidates(smallest))


def test_it_finds_the_one_page_that_matters() -> None:
    """A stand-in for a disagreement: two pages of one table, one of them swapped."""
    lines = (
        "new",
        f"s base {BASE}",
        "s mmap 512 1024",
        "s wr 512 300",
        "s wr 900 400",
        "s adv 700 64 4",
        "s adv 600 100 21",
        "s adv 1000 10 21",
        "w /sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled madvise",
        "s mmap 2097152 1024",
        "s wr 2097152 1",
        "s adv 2097152 1024 14",
        "s munmap 2097152 1024",
    )
    settings = Settings(sizes={4: Enabled.ALWAYS, 5: Enabled.MADVISE}, max_ptes_swap=0)
    drawn = Draft("x", "test", parse(lines), settings=settings, passes=3)

    def still_bad(each: Draft) -> bool:
        inside = [vma for vma in declare(each).vmas if vma.holds(512) and vma.holds(1023)]
        out = any(op.kind == "adv 21" and op.start <= 1003 < op.end for op in each.ops)
        return bool(inside) and out and each.settings.sizes[4] is Enabled.ALWAYS

    smallest = shrink(drawn, still_bad, 5000)
    assert smallest.passes == 1
    assert "s mmap 512 512" in map(str, smallest.ops)
    assert "s adv 1003 1 21" in map(str, smallest.ops)
    assert "s adv 700 64 4" not in map(str, smallest.ops)
    assert not any(op.start in range(600, 700) for op in smallest.ops if op.kind == "adv 21")
    assert smallest.settings.max_ptes_swap == 64
    assert smallest.settings.sizes[5] is Enabled.NEVER


def test_the_budget_is_kept() -> None:
    asked = 0

    def still_bad(each: Draft) -> bool:
        nonlocal asked
        asked += 1
        return True

    drawn = draw(4, 2, "many_vmas")
    assert shrink(drawn, still_bad, 0) == drawn
    assert asked == 0
    shrink(drawn, still_bad, 7)
    assert asked == 7


def test_a_draft_that_is_bad_only_as_it_is_stays() -> None:
    drawn = draw(4, 2, "swap")
    assert shrink(drawn, lambda each: False, 10_000) == drawn


def test_a_process_goes_with_what_others_did_to_it() -> None:
    lines = (
        "new",
        f"s base {BASE}",
        "s mmap 512 512",
        "s wr 512 512",
        "s forkto t",
        "t padv s 512 512 20",
        "s wr 512 1",
    )
    drawn = Draft(
        "x",
        "test",
        parse(lines),
        action=Action.MADVISE_COLLAPSE,
        target=Target("s", 512, "t"),
    )
    found = [each for each in candidates(drawn) if len(declare(each).processes) == 1]
    assert tuple(map(str, found[0].ops)) == (*lines[:4], lines[6])
    assert found[0].target == Target("s", 512, "s")
