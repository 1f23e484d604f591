# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions from captures, against what the kernel made of the same memory; and some tampered with.

captured-7.3.4.zip holds records.jsonl and captures/ of a campaign's folder, on 7.3.4+deb13-cloud-amd64;
unregistered-7.3.4.zip the first 12 states of `mthp lab fuzz --seed 41 --family unregistered`.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mthp.compare.fuzz import DraftRunner, compare_with_engine
from mthp.compare.paths import PathTotal, PathVerdict
from mthp.lab.draw import draw
from mthp.lab.program.program import SHMEM_ENABLED, Draft
from mthp.lab.session.captures import Captured, CapturePath, capture_tools
from tests.lab.guests import kernel_or_skip

DATA = Path(__file__).parent.parent / "data"
CAPTURED, UNREGISTERED = "captured-7.3.4.zip", "unregistered-7.3.4.zip"
PATHS = tuple(CapturePath)


@cache
def archive(name: str = CAPTURED) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """The records by id, and the captures by name."""
    with zipfile.ZipFile(DATA / name) as file:
        lines = file.read("records.jsonl").decode().splitlines()
        names = [name for name in file.namelist() if name.endswith(".npz")]
        captures = {name: file.read(name) for name in names}
    return {(record := json.loads(line))["id"]: record for line in lines}, captures


def of_family(family: str) -> dict[str, Any]:
    """A record of the family, to tamper with."""
    found = (each for each in archive()[0].values() if each["family"] == family)
    return copy.deepcopy(next(found))


def captured(record: dict[str, Any], *paths: CapturePath, name: str = CAPTURED) -> Captured:
    captures = archive(name)[1]
    files = {path: captures[f"captures/{record['id']}.{path}.npz"] for path in paths}
    return Captured(tuple(record["pids"]), files)


def verdicts(record: dict[str, Any], what: Captured) -> dict[str, PathVerdict]:
    draft = Draft(record["id"], record["family"], ())
    return dict(compare_with_engine(draft, record, what).paths)


def of(record: dict[str, Any], path: CapturePath, name: str = CAPTURED) -> PathVerdict:
    return verdicts(record, captured(record, path, name=name))[path.value]


@cache
def recorded(name: str, path: CapturePath) -> dict[str, PathVerdict]:
    """The verdict on each record of an archive, by id."""
    return {key: of(record, path, name) for key, record in archive(name)[0].items()}


@pytest.mark.parametrize("path", PATHS)
def test_every_pte_is_predicted(path: CapturePath) -> None:
    """But for those that the table names: what only a deep capture tells."""
    total = PathTotal()
    for key, record in archive()[0].items():
        total.add(record["family"], recorded(CAPTURED, path)[key].to_json())
    wrong = {name: (each.over, each.under) for name, each in total.families.items()}
    assert {name: each for name, each in wrong.items() if any(each)} == UNSEEN[path]
    assert not total.no_prediction
    assert total.count.nothing_changes < total.count.agreed
    assert total.count.within_range == total.count.passes, "what is wrong is between the ends"
    open_passes = total.count.passes - total.count.agreed
    assert total.count.said_open == open_passes == len(UNSEEN[path])


UNSEEN: dict[CapturePath, dict[str, tuple[int, int]]] = {
    CapturePath.SNAP: {"pinned": (512, 512), "unregistered": (512, 0)},
    CapturePath.DEEP: {},
}
"""Family -> PTEs predicted over and under, in one pass of each: of two full tables one has pages in a pipe;
khugepaged has not the process."""


def test_no_family_is_worse_than_that_nothing_changes() -> None:
    total = PathTotal()
    for name in (CAPTURED, UNREGISTERED):
        for key, record in archive(name)[0].items():
            total.add(record["family"], recorded(name, CapturePath.SNAP)[key].to_json())
    assert {"pinned", "unregistered", "lazyfree"} < total.families.keys()
    for family, count in total.families.items():
        if family != "unregistered":
            assert count.agreed >= count.nothing_changes, family
    count = total.families["unregistered"]
    assert (count.passes, count.agreed, count.nothing_changes, count.within_range) == (
        16,
        12,
        13,
        16,
    )


def test_a_process_that_was_there_before_any_size_was_enabled_is_not_scanned() -> None:
    """And nothing tells of one that was there before some were, while others kept khugepaged's thread."""
    records = archive(UNREGISTERED)[0]
    later = {key for key, each in records.items() if f"w {SHMEM_ENABLED} never" in each["built_by"]}
    for key, verdict in recorded(UNREGISTERED, CapturePath.SNAP).items():
        count = verdict.count
        assert count.within_range == count.passes
        assert count.agreed == count.passes * (key in later), key
    assert (len(later), len(records)) == (9, 12)


def test_what_lies_beyond_both_ends_is_not_in_the_range() -> None:
    """Of two tables with pages of one in a pipe the kernel collapsed one; by these settings none can be."""
    record = next(each for each in archive()[0].values() if each["id"] == "6-1")
    assert of(record, CapturePath.SNAP).count.within_range == 1
    known = captured(record, CapturePath.SNAP)
    with np.load(io.BytesIO(known.files[CapturePath.SNAP])) as file:
        members = dict(file)
    meta = json.loads(members["meta"].tobytes())
    for path in meta["sysfs"]:
        if path.endswith("kB/enabled"):
            meta["sysfs"][path] = "always inherit madvise [never]"
    members["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    changed = io.BytesIO()
    np.savez(changed, **members)
    what = Captured(known.pids, {CapturePath.SNAP: changed.getvalue()})
    count = verdicts(record, what)["snap"].count
    assert (count.said_open, count.agreed, count.within_range) == (1, 0, 0)


def test_the_scenario_path_is_counted_too() -> None:
    record = of_family("madvise")
    count = verdicts(record, captured(record))["scenario"].count
    assert (count.passes, count.agreed, count.in_full) == (2, 2, 2)
    assert (count.changed, count.over, count.under, count.nothing_changes) == (1024, 0, 0, 0)


def test_over_and_under_are_told_apart_with_what_became_of_the_table() -> None:
    record = of_family("plain")
    last = record["passes"][-1]
    assert last["final"] == [record["vmas"][0]["initial"]], "nothing changed"
    pages = record["vmas"][0]["pages"]
    runs = [run.split(":") for run in last["final"][0]["folios"].split()]
    last["final"][0] = {"folios": f"{pages}:-", "ptes": f"{pages}:-"}
    verdict = of(record, CapturePath.SNAP)
    assert verdict.count.passes - verdict.count.agreed == 1
    assert verdict.count.over == sum(int(n) for n, token in runs if token != "-") > 0
    assert verdict.count.under == 0
    assert verdict.count.nothing_changes == verdict.count.passes - 1
    (cause,) = verdict.causes
    assert cause == "kernel: not scanned; predicted: not scanned"


def test_a_capture_that_is_none_gives_no_prediction() -> None:
    record = of_family("plain")
    broken = Captured(tuple(record["pids"]), {CapturePath.SNAP: b"PK"})
    verdict = verdicts(record, broken)["snap"]
    assert "\n" not in verdict.why and verdict.why.startswith("capture: ")
    assert (verdict.count.no_prediction, verdict.count.agreed) == (1, 0)
    assert verdict.count.passes == verdict.count.nothing_changes == len(record["passes"])


def test_a_capture_that_failed_gives_no_prediction() -> None:
    record = of_family("plain")
    failed = Captured(tuple(record["pids"]), failed={CapturePath.DEEP: "mthp snap: no BTF"})
    total = PathTotal()
    total.add("plain", verdicts(record, failed)["deep"].to_json())
    assert total.to_json()["why_no_prediction"] == {"mthp snap: no BTF": 1}


def test_a_capture_of_another_process_gives_no_prediction() -> None:
    record = of_family("plain")
    other = Captured((1,), captured(record, CapturePath.SNAP).files)
    assert "the capture has no mapping" in verdicts(record, other)["snap"].why


def test_a_killed_process_leaves_its_events() -> None:
    record = of_family("madvise")
    record["passes"] = [{**record["passes"][0], "final": [], "killed": True}]
    draft = Draft(record["id"], record["family"], ())
    whole = compare_with_engine(draft, record, captured(record, CapturePath.SNAP))
    assert (whole.passes, whole.agreed) == (1, 1)
    count = whole.paths["snap"].count
    assert (count.passes, count.agreed, count.ptes) == (1, 1, 0)
    record["passes"][0]["events"][0]["order"] = 4
    assert compare_with_engine(draft, record).agreed == 0


# --- a real guest ---------------------------------------------------------------------------


@pytest.mark.lab
def test_every_state_is_captured_in_the_guest() -> None:
    with (
        capture_tools(PATHS) as tools,
        DraftRunner(kernel_or_skip(), tools) as runner,
    ):
        for family in ("plain", "lazyfree", "forks"):
            verdict = runner(draw(1, 0, family))
            assert (verdict.not_built, list(verdict.mismatches)) == ("", [])
            assert set(verdict.paths) == {"scenario", "snap", "deep"}
            for each in verdict.paths.values():
                assert (each.why, each.count.agreed) == ("", verdict.passes)
