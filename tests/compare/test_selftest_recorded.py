# SPDX-License-Identifier: GPL-2.0-or-later
"""The cases' states as a real 7.3.4 was brought into them, and what it did then."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mthp.compare.selftest import findings, same_state
from mthp.compare.selftest_cases import Case, SelftestStep, cases
from mthp.image.scenario import parse_scenario
from mthp.lab.program.declared import declare
from mthp.lab.program.program import Verb
from mthp.words.profiles import PROFILES, V7_3

RECORDS = Path(__file__).parent.parent / "data/selftest/linux-7.3.4.jsonl.xz"
STEPS = [(case, step) for order in (None, 4) for case in cases(order) for step in case.steps]
ALL = [pytest.param(case, step, id=step.id) for case, step in STEPS]


@cache
def records() -> dict[str, dict[str, Any]]:
    with lzma.open(RECORDS, "rt") as file:
        documents = [json.loads(line) for line in file]
    return {document["id"]: document for document in documents}


def step(name: str) -> SelftestStep:
    return next(step for _, step in STEPS if step.id == name)


def test_every_step_is_recorded() -> None:
    assert set(records()) == {step.id for _, step in STEPS}
    assert {document["kernel"] for document in records().values()} == {"7.3.4+deb13-cloud-amd64"}


@pytest.mark.parametrize(("case", "each"), ALL)
def test_the_kernel_did_what_the_engine_does(case: Case, each: SelftestStep) -> None:
    """From the same state: the same events, addresses, counters, errno and layout."""
    assert list(findings(each, parse_scenario(records()[each.id]), V7_3)) == []


@pytest.mark.parametrize(("case", "each"), ALL)
def test_programs_are_legal_and_declare_the_state(case: Case, each: SelftestStep) -> None:
    draft = each.draft
    declared = declare(draft)
    assert draft.passes == each.passes
    assert (draft.action.value, draft.id) == (each.document["action"], each.id)
    assert [(vma.start, vma.pages, vma.anon_vma, vma.mm) for vma in declared.vmas] == [
        (vma["start"], vma["pages"], vma["anon_vma"], vma["mm"]) for vma in each.document["vmas"]
    ]
    if each.succeeds is not None:
        assert declared.target == each.document["target"]
    assert not any(op.verb is Verb.WRITE_FILE for op in draft.ops)


FULL = "collapse_full/mthp_khugepaged/order-4"


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**records()[name], **fields}


def test_another_state_is_noticed() -> None:
    """One page of 512 is old."""
    vma = dict(records()[FULL]["vmas"][0])
    vma["initial"] = {**vma["initial"], "ptes": "511:PWAD 1:PWD"}
    recorded = parse_scenario(changed(FULL, vmas=[vma]))
    assert same_state(step(FULL), parse_scenario(records()[FULL]))
    assert not same_state(step(FULL), recorded)
    assert "the guest's state is not the one the engine starts from" in findings(
        step(FULL), recorded, V7_3
    )


def test_another_outcome_is_noticed() -> None:
    """A kernel that left everything as it was."""
    document = records()[FULL]
    unchanged = {"events": [], "final": [document["vmas"][0]["initial"]]}
    recorded = parse_scenario(changed(FULL, passes=[unchanged]))
    found = list(findings(step(FULL), recorded, V7_3))
    assert found[0] == "vma 0: 0 folio of order 4 mapped whole, expected 32"
    assert found[1].startswith("pass 1, events[0]: kernel None, engine {'event': 'attempt'")


def test_another_errno_is_noticed() -> None:
    name = "collapse_empty/madvise/order-9"
    passes = [{**each, "errno": 0} for each in records()[name]["passes"]]
    found = list(findings(step(name), parse_scenario(changed(name, passes=passes)), V7_3))
    assert found[0] == "call 1: MADV_COLLAPSE returned 0, expected an error"
    assert found[1] == "pass 1, errno: kernel 0, engine -22"


def test_another_engine_is_noticed() -> None:
    recorded = parse_scenario(records()[FULL])
    assert list(findings(step(FULL), recorded, PROFILES["pmd-only"]))
