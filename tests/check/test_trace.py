# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions written down state by state: what happened and what the world was after it."""

from __future__ import annotations

import pytest

from mthp.check.check import hunt
from mthp.check.drawing import replay
from mthp.check.records import Entry, LateStore, Trace, WorldState
from mthp.check.trace import trace
from mthp.races.mutants.rules import MUTANTS


@pytest.fixture(scope="module")
def stranded() -> Trace:
    """A migration entry that outlives its migration."""
    violation = hunt(MUTANTS["A16"]).violation
    assert violation is not None
    return trace(violation.replay)


def pmd(state: WorldState) -> Entry:
    return dict(state.pmds)["mm1.pmd4[0]"]


def pte(state: WorldState, index: int) -> Entry:
    return state.tables[0].entries[index]


def test_a_state_for_each_step_and_two_for_the_ends(stranded: Trace) -> None:
    assert len(stranded.states) == replay(stranded.replay).steps + 2
    assert (stranded.states[0].access, stranded.states[-1].access) == ("begin", "end")
    assert {each.task for each in stranded.states[1:-1]} == set(stranded.tasks)


def test_the_last_state_has_the_laws_and_only_it(stranded: Trace) -> None:
    *before, last = stranded.states
    assert 4 in {breach.law for breach in last.broken}
    assert last.broken == replay(stranded.replay).breaches
    assert not any(each.broken for each in before)
    assert pte(last, 2).kind == "migration"


def test_the_pmd_is_cleared_by_the_flush_and_comes_back(stranded: Trace) -> None:
    changes = [
        (now.function, pmd(before).kind, pmd(now).kind)
        for before, now in zip(stranded.states, stranded.states[1:], strict=False)
        if pmd(before) != pmd(now)
    ]
    assert changes == [
        ("pmdp_collapse_flush()", "table", "none"),
        ("pmd_populate()", "none", "table"),
    ]


def test_a_word_changes_in_the_step_that_changes_it(stranded: Trace) -> None:
    for before, now in zip(stranded.states, stranded.states[1:], strict=False):
        if pte(before, 2) != pte(now, 2):
            assert now.word == "table1[2]"
            assert "table1.ptl(write)" in dict(now.held)[now.task]
    assert {pte(each, 2).kind for each in stranded.states} == {"page", "none", "migration"}


def test_locks_and_counts_are_those_of_the_moment(stranded: Trace) -> None:
    for each in stranded.states:
        if each.access == "acquire" and each.word == "mm1.mmap_lock":
            assert dict(each.held)[each.task][-1].startswith("mm1.mmap_lock(")
    (marked,) = (each for each in stranded.states if each.function == "__vma_start_write()")
    assert dict(marked.vma_locks) == {"vma40000.vm_lock": -1}
    first = {folio.frame: folio for folio in stranded.states[0].folios}
    last = {folio.frame: folio for folio in stranded.states[-1].folios}
    assert (first[1].refcount, first[1].mapcount) == (1, 1)
    assert (last[1].refcount, last[1].mapcount) == (0, 0)
    assert [page.contents for page in last[16].pages] == [100, 0]


def test_translations_and_late_stores() -> None:
    stored = trace("as-is:7.3:pmd:store:b0")
    tlbs = [cpu.tlb for state in stored.states for cpu in state.cpus if cpu.number == 1]
    assert any(each and each[0].entry.kind == "page" for each in tlbs)
    assert tlbs[0] == ()
    late = trace("no-barrier:7.3:pmd+weak:load:a0")
    held = [state.cpus[0].late for state in late.states]
    assert (LateStore(16, 100),) in held
    assert any(each.law == 3 for each in late.states[-1].broken)


def test_no_token() -> None:
    with pytest.raises(ValueError, match="not a token"):
        trace("nonsense")
