# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns of programs: the log, going on, and making small."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mthp.compare.program_campaign import (
    ProgramSpec,
    ProgramVerdict,
    open_program_campaign,
    run_program_campaign,
)
from mthp.compare.program_shrink import shrink_program
from mthp.lab.errors import LabError
from mthp.lab.kernels.kernels import CachedKernel
from mthp.report.fuzz import programs_text
from tests.lab.guests import kernel_or_skip

SPEC = ProgramSpec(1, 5, "7.3.4")
STEPS = [{"op": "s mmap 0 4", "delta": {}}, {"op": ["set", 16, 0], "delta": {"4.nr_anon": 1}}]
DIFFERS = {
    "id": "1-1",
    "step": 1,
    "operation": "x",
    "where": "pages[0]",
    "expected": "a",
    "got": "b",
}


def entries() -> list[dict[str, Any]]:
    document = {"id": "1-0"}
    record = {**document, "steps": STEPS}
    return [
        ProgramVerdict(document, record, "", 2, None).to_json(),
        ProgramVerdict({"id": "1-1"}, record, "", 1, DIFFERS).to_json(),
        ProgramVerdict({"id": "1-2"}, not_run="died of signal 11").to_json(),
    ]


def test_an_interrupted_campaign_goes_on_from_its_log(tmp_path: Path) -> None:
    open_program_campaign(SPEC, tmp_path)
    lines = "".join(json.dumps(each) + "\n" for each in entries())
    (tmp_path / "log.jsonl").write_text(lines + '{"id": "1-3", "oper')
    campaign = open_program_campaign(ProgramSpec(1, 9, "7.3.4"), tmp_path)
    document = campaign.to_json()
    assert (document["number"], document["programs"], document["agreed"]) == (3, 2, 1)
    assert (document["operations"], document["operations_agreed"]) == (4, 3)
    assert document["differences"] == [DIFFERS]
    assert document["not_run"] == [{"id": "1-2", "reason": "died of signal 11"}]
    assert document["coverage"] == {"operations": {"mmap": 2, "set": 2}, "counters": {"nr_anon": 2}}
    assert (tmp_path / "log.jsonl").read_text() == lines
    text = programs_text(document, [])
    assert "1 agree after every operation (50.00%)" in text and "differences: 1" in text


def test_a_folder_of_another_campaign_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    open_program_campaign(SPEC, tmp_path)
    with pytest.raises(LabError, match="holds another campaign"):
        open_program_campaign(ProgramSpec(2, 5, "7.3.4"), tmp_path)
    (tmp_path / "log.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(LabError, match="damaged"):
        open_program_campaign(SPEC, tmp_path)


@dataclass
class Ran:
    """What came of a program."""

    document: Mapping[str, Any]
    difference: Mapping[str, Any] | None


def test_a_program_is_made_small_as_long_as_it_differs() -> None:
    """It differs once `b` came after `a`, if a size is enabled."""
    tried: list[Mapping[str, Any]] = []

    def run(document: Mapping[str, Any]) -> Ran:
        tried.append(document)
        words = "".join(step["op"] for step in document["steps"])
        at = words.find("b", words.find("a")) if "a" in words and document["orders"] else -1
        return Ran(document, None if at < 0 else {"step": at})

    steps = [{"op": letter} for letter in "xxaxyxbzzz"]
    whole = {"id": "p", "orders": [4, 9], "pre": ["one", "two"], "steps": steps}
    small = shrink_program(whole, run, 100)
    assert [step["op"] for step in small.document["steps"]] == ["a", "b"]
    assert (small.document["orders"], small.document["pre"]) == ([9], [])
    assert len(tried) <= 101
    assert shrink_program({**whole, "orders": []}, run, 100).difference is None
    tried.clear()
    assert shrink_program(whole, run, 0).difference is not None and len(tried) == 1


@pytest.mark.lab
def test_programs_of_a_real_kernel_agree_after_every_operation(tmp_path: Path) -> None:
    kernel: CachedKernel = kernel_or_skip("7.3")
    campaign = open_program_campaign(ProgramSpec(11, 40, kernel.release), tmp_path)
    run_program_campaign(campaign, kernel, 1, lambda *_: None)
    assert campaign.programs == 40
    assert campaign.differences == []
