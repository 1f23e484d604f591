# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own cases on the engine, beside what a real 7.3.4 said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mthp.compare.selftest import CaseRun, SelftestRow, run_case, side_by_side
from mthp.compare.selftest_cases import Case, MappedWhole, cases
from mthp.lab.session.selftest import CaseVerdict, Output, parse_output
from mthp.words.profiles import PROFILES, V7_3

SAVED = Path(__file__).parent.parent / "data/selftest"
ORDERS = (None, *range(2, 9))
ALL = [pytest.param(case, id=case.steps[0].id) for order in ORDERS for case in cases(order)]


def saved(order: int | None) -> Output:
    name = "default" if order is None else f"mthp-{order}"
    return parse_output((SAVED / f"linux-7.3.4-{name}.txt").read_text())


def case(name: str, order: int | None = None) -> Case:
    return next(case for case in cases(order) if case.name == name)


@pytest.mark.parametrize("each", ALL)
def test_the_engine_passes_the_kernels_case(each: Case) -> None:
    run = run_case(each, V7_3)
    assert run.findings == ()
    assert run.verdict is CaseVerdict.OK


@pytest.mark.parametrize("order", [None, 4])
def test_no_case_is_left_out(order: int | None) -> None:
    """Every case the real test ran with memory of ours, in its order."""
    ran = [(result.name, result.context) for result in saved(order).cases if result.context]
    assert [(each.name, each.context.value) for each in cases(order)] == ran


def test_ids_are_unique() -> None:
    ids = [step.id for order in ORDERS for each in cases(order) for step in each.steps]
    assert len(ids) == len(set(ids)) == 49


@pytest.mark.parametrize(
    ("name", "look", "says"),
    [
        ("collapse_full", MappedWhole(0, 9, 3), "vma 0: 4 PMD mapped whole, expected 3"),
        ("collapse_empty", MappedWhole(0, 9, 1), "vma 0: 0 PMD mapped whole, expected 1"),
        ("collapse_fork", MappedWhole(1, 9, 1), "vma 1: 0 PMD mapped whole, expected 1"),
        (
            "collapse_full",
            MappedWhole(0, 3, 1),
            "vma 0: 0 folio of order 3 mapped whole, expected 1",
        ),
    ],
)
def test_a_wrong_outcome_is_found(name: str, look: MappedWhole, says: str) -> None:
    each = case(name)
    step = replace(each.steps[0], looks=(look,))
    run = run_case(replace(each, steps=(step,)), V7_3)
    assert run.findings == (f"{step.id}: {says}",)
    assert run.verdict is CaseVerdict.NOT_OK


def test_only_whole_folios_count() -> None:
    each = case("collapse_single_mthp", 4)
    for order in range(2, 9):
        step = replace(each.steps[0], looks=(MappedWhole(0, order, int(order == 4)),))
        assert run_case(replace(each, steps=(step,)), V7_3).findings == ()


def test_a_wrong_errno_is_found() -> None:
    each = next(each for each in cases() if each.steps[0].succeeds is False)
    step = replace(each.steps[0], succeeds=True)
    (finding,) = run_case(replace(each, steps=(step,)), V7_3).findings
    assert finding.endswith("call 1: MADV_COLLAPSE returned -22, expected 0")


def test_kernels_without_smaller_sizes_fail_those_cases_alone() -> None:
    profile = PROFILES["pmd-only"]
    assert run_case(case("collapse_max_ptes_swap"), profile).verdict is CaseVerdict.OK
    verdicts = {each.name: run_case(each, profile).verdict for each in cases(4)}
    assert verdicts == {
        "collapse_full": CaseVerdict.NOT_OK,
        "collapse_empty": CaseVerdict.OK,
        "collapse_single_mthp": CaseVerdict.NOT_OK,
    }


# --- side by side ---------------------------------------------------------------------------


def passing(order: int | None) -> list[CaseRun]:
    return [CaseRun(each, ()) for each in cases(order)]


def test_rows_pair_the_same_case_and_context() -> None:
    rows = side_by_side(saved(4), passing(4), 4)
    ok = CaseVerdict.OK
    assert rows == [
        SelftestRow("allocate on fault and split", "", None, kernel=ok),
        SelftestRow("collapse_full", "mthp_khugepaged", 4, ok, ok),
        SelftestRow("collapse_empty", "mthp_khugepaged", 4, ok, ok),
        SelftestRow("collapse_single_mthp", "mthp_khugepaged", 4, ok, ok),
    ]
    assert all(row.passed for row in rows)
    assert len(side_by_side(saved(None), passing(None), None)) == 26


def test_a_case_the_kernel_did_not_come_to() -> None:
    output = Output(26, saved(None).cases[:3], "why")
    *_, last = side_by_side(output, passing(None), None)
    assert (last.kernel, last.engine, last.passed) == (CaseVerdict.NOT_RUN, CaseVerdict.OK, False)


def test_rows_without_a_guest() -> None:
    rows = side_by_side(None, passing(None), None)
    assert {row.kernel for row in rows} == {None}
    assert all(row.passed for row in rows)


def test_rows_with_records() -> None:
    first, second, third = cases(4)
    records = {first.steps[0].id: (), second.steps[0].id: ("something",)}
    rows = side_by_side(None, passing(4), 4, records)
    assert [row.recorded for row in rows] == [
        CaseVerdict.OK,
        CaseVerdict.NOT_OK,
        CaseVerdict.NOT_RUN,
    ]
    assert [row.passed for row in rows] == [True, False, False]
    assert third.name == rows[2].name
