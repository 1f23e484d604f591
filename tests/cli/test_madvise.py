# SPDX-License-Identifier: GPL-2.0-or-later
"""`mthp collapse --madvise-collapse`: what each call would return, and what it does.

tests/compare/test_real_madvise.py holds the answers against the kernel that runs here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mthp.cli import main
from tests.cli.test_bad_input import REDIS, SCENARIO, refused
from tests.image.made import made


def calls(capfd: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["collapse", *argv, "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    document: dict[str, Any] = json.loads(out)
    for call in document["ranges"]:
        refused = sum(each["windows"] for each in call["refused"])
        told = call["collapsed"] + call["already_huge"] + refused + call["torn"] + call["not_tried"]
        assert told == call["windows"] and call["not_tried"] >= 0
        assert (call["returns"] == -1) == (call["errno"] is not None)
    assert document["memory_added"] == sum(call["memory_added"] for call in document["ranges"])
    return document


def test_every_anonymous_mapping(capfd: pytest.CaptureFixture[str]) -> None:
    """The target may follow the option: it is no range."""
    document = calls(capfd, str(REDIS), "--madvise-collapse")
    again = calls(capfd, "--madvise-collapse", str(REDIS))
    assert document["ranges"] == again["ranges"]
    assert len(document["ranges"]) == 25
    collapsed = sum(call["collapsed"] for call in document["ranges"])
    huge = document["orders_after"]["9"]
    assert collapsed == huge["folios"] > 5 and "9" not in document["orders_before"]
    assert document["memory_added"] > 0
    added = sum(use["bytes"] for use in document["orders_after"].values())
    before = sum(use["bytes"] for use in document["orders_before"].values())
    assert added - before == document["memory_added"], "no page of it is shared"


HEAP = 0xB52FBDA5C00000
"""Two windows of which the second has no page table, and more after it."""


def test_a_range(capfd: pytest.CaptureFixture[str]) -> None:
    for asked in (f"{HEAP:x}+400000", f"{HEAP:#x}-{HEAP + 0x400000:#x}"):
        (call,) = calls(capfd, str(REDIS), "--madvise-collapse", asked)["ranges"]
        assert (call["start"], call["end"]) == (HEAP, HEAP + 0x400000)
        assert (call["returns"], call["errno"], call["gate"]) == (-1, "EINVAL", None)
        assert (call["windows"], call["collapsed"]) == (2, 1)
        assert [each["status"] for each in call["refused"]] == ["no_pte_table"]
    (call,) = calls(capfd, str(REDIS), "--madvise-collapse", f"{HEAP:x}+200000")["ranges"]
    assert (call["returns"], call["errno"], call["collapsed"]) == (0, None, 1)


def test_profiles_go_on_or_end_behind_a_missing_table(capfd: pytest.CaptureFixture[str]) -> None:
    argv = [str(REDIS), "--madvise-collapse", f"{HEAP:x}+2c00000", "--profile"]
    (old,) = calls(capfd, *argv, "pmd-only")["ranges"]
    (new,) = calls(capfd, *argv, "7.3")["ranges"]
    assert old["not_tried"] > 0 == new["not_tried"] and new["collapsed"] > old["collapsed"]


def test_what_ends_a_call(capfd: pytest.CaptureFixture[str]) -> None:
    def one(start: int, end: int) -> dict[str, Any]:
        asked = f"{start:x}-{end:x}"
        call: dict[str, Any]
        (call,) = calls(capfd, str(REDIS), "--madvise-collapse", asked)["ranges"]
        return call

    unmapped = one(0x10000, 0x20000)
    assert (unmapped["errno"], unmapped["mappings"]) == ("ENOMEM", 0)
    unaligned = one(HEAP + 1, HEAP + 0x200001)
    assert (unaligned["errno"], unaligned["gate"], unaligned["collapsed"]) == ("EINVAL", None, 0)
    beyond = one(HEAP, 2**64)
    assert (beyond["errno"], beyond["gate"], beyond["collapsed"]) == ("EINVAL", None, 0)
    assert main(["collapse", str(REDIS), "--madvise-collapse", "0-10000000000000000"]) == 0
    assert "not whole pages, or beyond" in " ".join(capfd.readouterr().out.split())


def test_what_is_torn_and_what_every_capture_has_is_said_apart(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second table maps page cache: it changed while it was read, and why it stays says nothing."""
    file = tmp_path / "made.npz"
    file.write_bytes(made().packed())
    argv = [str(file), "--madvise-collapse"]
    document = calls(capfd, *argv)
    assert document["torn"]["tables"] == 1 and sum(c["torn"] for c in document["ranges"]) == 1
    assert main(["collapse", *argv]) == 0
    short = " ".join(capfd.readouterr().out.split())
    assert "1 in tables that changed while they were read" in short
    assert "that every capture has: --verbose" in short and "(GUP)" not in short
    assert main(["collapse", *argv, "--verbose"]) == 0
    assert "(GUP)" in " ".join(capfd.readouterr().out.split())


def test_several_processes_have_no_range(capfd: pytest.CaptureFixture[str]) -> None:
    """Every call has its process; a range would be meant for one."""
    document = calls(capfd, SCENARIO, "--madvise-collapse")
    assert {call["pid"] for call in document["ranges"]} and document["complete"]
    assert "START-END" in refused(capfd, "collapse", SCENARIO, "--madvise-collapse", "x-y")


def share(capfd: pytest.CaptureFixture[str], reached: str, *argv: str) -> dict[str, Any]:
    """The answer about a share, whose parts come to the whole."""
    code = main(["collapse", *argv, "--json", "--quiet"])
    found: dict[str, Any] = json.loads(capfd.readouterr().out)["huge_share"]
    assert (found["reached"], code) == (reached, int(reached == "no"))
    parts = found["huge"] + found["not_tried"] + found["at_edges"] + sum(found["refused"].values())
    assert parts == found["total"]
    return found


def test_whether_a_share_comes_to_be_huge_and_if_not_why(capfd: pytest.CaptureFixture[str]) -> None:
    asked = [str(REDIS), "--profile", "7.3", "--madvise-collapse"]
    all_of_it = share(capfd, "no", *asked, "--reach", "95%")
    assert all_of_it["huge_before"] == 0 < all_of_it["huge"] < 0.95 * all_of_it["total"]
    assert all_of_it["at_edges"] > 0
    old = [*asked[:2], "pmd-only", asked[3]]
    assert (
        share(capfd, "no", *old, "--reach", "95")["not_tried"] > 30 << 20 > all_of_it["not_tried"]
    )
    heap = f"{HEAP + 0x600000:x}+2000000"
    some = share(capfd, "yes", *asked, heap, "--reach", "95%")
    assert some["huge"] == some["total"] == some["needed_blocks"] << 21
    assert some["free_blocks"] >= some["needed_blocks"]


def test_what_is_free_in_pieces_has_to_be_compacted(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Three blocks of 2 MiB and one of 4 MiB are free, and much in single pages."""
    arrays = dict(np.load(REDIS))
    meta = json.loads(arrays["meta"].tobytes())
    meta["buddyinfo"] = "Node 0, zone   Normal  90000 0 0 0 0 0 0 0 0 3 1\n"
    meta["meminfo"]["MemFree"] = (90000 + 5 * 512) * 4096
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    pieces = tmp_path / "pieces.npz"
    np.savez(pieces, **arrays)
    asked = [str(pieces), "--profile", "7.3", "--madvise-collapse", f"{HEAP + 0x600000:x}+2000000"]
    found = share(capfd, "if_compacted", *asked, "--reach", "95")
    assert (found["free_blocks"], found["needed_blocks"]) == (5, 12)
    assert found["least_huge"] == 5 << 21
    assert share(capfd, "yes", *asked, "--reach", "40")["least_huge"] == 5 << 21
    assert main(["collapse", *asked, "--reach", "95"]) == 0
    assert "? If compaction makes the blocks" in " ".join(capfd.readouterr().out.split())


def test_blocks_by_the_type_of_their_pageblocks(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of five free blocks one is kept for atomic allocations; the two of 4 MiB are claimed from reclaimable
    pageblocks. Compaction may make eight, or three and no more."""
    arrays = dict(np.load(REDIS))
    meta = json.loads(arrays["meta"].tobytes())
    meta["buddyinfo"] = "Node 0, zone   Normal  90000 0 0 0 0 0 0 0 0 3 1\n"
    meta["meminfo"]["MemFree"] = (90000 + 5 * 512) * 4096
    pieces = tmp_path / "pieces.npz"
    asked = [str(pieces), "--profile", "7.3", "--madvise-collapse", f"{HEAP + 0x600000:x}+2000000"]
    for movable, reached in ((8, "no"), (12, "if_compacted")):
        meta["pagetypeinfo"] = f"""\
Page block order: 9
Node    0, zone   Normal, type      Movable  90000  0 0 0 0 0 0 0 0 2 0
Node    0, zone   Normal, type  Reclaimable      0  0 0 0 0 0 0 0 0 0 1
Node    0, zone   Normal, type   HighAtomic      0  0 0 0 0 0 0 0 0 1 0

Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic
Node 0, zone   Normal           12         {movable}            2            1
"""
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        np.savez(pieces, **arrays)
        found = share(capfd, reached, *asked, "--reach", "95")
        assert (found["free_blocks"], found["needed_blocks"]) == (4, 12)
        assert found["free_blocks_by_type"] == {
            "movable": 2, "claimed": {"Reclaimable": 2}, "kept": {"HighAtomic": 1},
            "pageblocks_emptied": movable, "pageblocks": movable + 15,
        }  # fmt: skip
        assert main(["collapse", *asked, "--reach", "95"]) == int(reached == "no")
        said = " ".join(capfd.readouterr().out.split())
        assert "2 in movable pageblocks; 2 in reclaimable ones" in said
        assert "1 that it does not get (HighAtomic)" in said
        assert f"compaction empties movable pageblocks alone, {movable} of {movable + 15}" in said
        assert ("if every one comes free" in said) == (reached == "no")
        assert "of the free memory 2 MiB are kept for atomic allocations or isolated" in said


def test_a_share_is_asked_of_madvise_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--madvise-collapse" in refused(capsys, "collapse", str(REDIS), "--reach", "95")
