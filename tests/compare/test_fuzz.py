# SPDX-License-Identifier: GPL-2.0-or-later
"""Judging what a kernel did with a draft: records of a real one, and records tampered with."""

from __future__ import annotations

import copy
import json
import lzma
import os
import signal
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mthp.compare.fuzz import DraftRunner, DraftVerdict, compare_with_engine
from mthp.lab.draw import draw
from mthp.lab.program.program import Draft
from tests.lab.guests import children, exists, kernel_or_skip

DATA = Path(__file__).parent.parent / "data"
FILES = ("lab-7.3.4.jsonl.xz", "lab-mem-7.3.4.jsonl.xz", "linux-7.3.4-many-vmas.jsonl.xz")


@cache
def records(name: str) -> tuple[dict[str, Any], ...]:
    with lzma.open(DATA / name, "rt") as lines:
        return tuple(json.loads(line) for line in lines)


def judged(record: dict[str, Any]) -> DraftVerdict:
    return compare_with_engine(Draft(record["id"], "recorded", ()), record)


def of_khugepaged() -> dict[str, Any]:
    """A record to tamper with: one full scan, with a collapse."""
    return copy.deepcopy(
        next(
            each
            for each in records(FILES[0])
            if each["action"] == "khugepaged"
            and any(
                event["event"] == "mm_collapse_huge_page" for event in each["passes"][0]["events"]
            )
        )
    )


def of_madvise() -> dict[str, Any]:
    return copy.deepcopy(
        next(
            each for name in FILES for each in records(name) if each["action"] == "madvise_collapse"
        )
    )


@pytest.mark.parametrize("name", FILES)
def test_what_the_kernel_did_agrees(name: str) -> None:
    for record in records(name)[:5]:
        verdict = judged(record)
        assert (verdict.disagrees, verdict.not_built, list(verdict.mismatches)) == (False, "", [])
        assert verdict.passes == verdict.agreed == len(record["passes"])
        assert verdict.record is record
        assert [list(events) for events in verdict.engine] == [
            each["events"] for each in record["passes"]
        ]


def change_event(record: dict[str, Any]) -> str:
    events = record["passes"][0]["events"]
    place = next(i for i, each in enumerate(events) if each["event"] == "mm_collapse_huge_page")
    events[place]["status"] = "page_lru"
    return f"events[{place}]"


def add_event(record: dict[str, Any]) -> str:
    events = record["passes"][0]["events"]
    events.append(dict(events[-1]))
    return f"events[{len(events) - 1}]"


def change_page(record: dict[str, Any]) -> str:
    state = record["passes"][0]["final"][0]
    state["folios"] = state["folios"].replace("aB", "aBK", 1)
    return "final[0].folios"


def change_entry(record: dict[str, Any]) -> str:
    state = record["passes"][0]["final"][0]
    state["ptes"] = state["ptes"].replace(":PA", ":P", 1)
    return "final[0].ptes"


def change_counter(record: dict[str, Any]) -> str:
    record["passes"][0]["counters"]["khugepaged"]["pages_collapsed"] = 99
    return "counters"


@pytest.mark.parametrize(
    "tamper", [change_event, add_event, change_page, change_entry, change_counter]
)
def test_a_tampered_record_disagrees(tamper: Callable[[dict[str, Any]], str]) -> None:
    record = of_khugepaged()
    true = copy.deepcopy(record)
    where = tamper(record)
    verdict = judged(record)
    assert verdict.disagrees
    assert verdict.agreed == verdict.passes - 1
    assert [(each["id"], each["pass"]) for each in verdict.mismatches[:1]] == [(record["id"], 0)]
    assert where in [str(each["where"]).split(":")[0] for each in verdict.mismatches]
    assert list(verdict.engine[0]) == true["passes"][0]["events"], "the engine's own events"


def test_another_errno_disagrees() -> None:
    record = of_madvise()
    assert not judged(record).disagrees
    record["passes"][0]["errno"] -= 1
    (wrong,) = judged(record).mismatches
    assert wrong["where"] == "errno"
    assert wrong["expected"] == wrong["got"] - 1


def test_a_state_that_cannot_be_is_a_disagreement_without_events() -> None:
    record = of_khugepaged()
    record["vmas"][0]["initial"]["folios"] = "1:-"
    verdict = judged(record)
    (wrong,) = verdict.mismatches
    assert (wrong["id"], wrong["where"], wrong["expected"]) == (record["id"], "state", None)
    assert wrong["got"]
    assert (verdict.passes, verdict.agreed) == (len(record["passes"]), 0)
    assert [list(events) for events in verdict.engine] == [[] for _ in record["passes"]]


# --- a real guest ---------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.parametrize("kernel", ["7.3", "7.2", "6.18"])
def test_which_processes_large_folios_know_is_read(kernel: str) -> None:
    """A third process was forked from two that share folios, and the two ended: it counts as shared."""
    with DraftRunner(kernel_or_skip(kernel)) as runner:
        verdict = runner(draw(2, 1224))
    assert verdict.record is not None and not verdict.disagrees
    assert list(verdict.record["mm_ids"].values()) == [[]] * 32


@pytest.mark.lab
def test_a_guest_that_dies_in_the_middle_of_a_draft_is_booted_anew() -> None:
    """The draft is tried again in the new one; and no process is left."""
    with DraftRunner(kernel_or_skip()) as runner:
        assert runner(draw(1, 0, "plain")).record is not None
        (first,) = children()
        killer = threading.Timer(0.02, os.kill, (first, signal.SIGKILL))
        killer.start()
        verdicts = [runner(draw(1, index, "plain")) for index in range(4)]
        killer.join()
        assert [each.not_built for each in verdicts] == [""] * 4
        assert not any(each.disagrees for each in verdicts)
        (second,) = children()
        assert second != first
        assert not exists(first)
    assert children() == set()
    assert not exists(second)
