# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of programs are read strictly: what is wrong is said in one line, with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mthp.image.fields import ScenarioError
from mthp.life.program import (
    DropCaches,
    Fork,
    FullScan,
    Kill,
    Knob,
    Madvise,
    Mmap,
    Mprotect,
    Mremap,
    Munmap,
    SetSizes,
    Touches,
    Touching,
    load,
    parse_operation,
)
from mthp.words.files import FileError

THP = "/sys/kernel/mm/transparent_hugepage"


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("s mmap 0 1000", Mmap("s", 0, 1000)),
        ("s munmap 92 1", Munmap("s", 92, 1)),
        ("s adv 0 500 14", Madvise("s", 0, 500, 14)),
        ("t mprotect 1 2 3", Mprotect("t", 1, 2, 3)),
        ("s mremap 593 7 2100", Mremap("s", 593, 7, 2100)),
        ("s wr 0 512", Touches("s", Touching.WRITE, 0, 512)),
        ("s wr 0 512 2", Touches("s", Touching.WRITE, 0, 512, 2)),
        ("s rd 3 4", Touches("s", Touching.READ, 3, 4)),
        ("s fill 3 4 0", Touches("s", Touching.ZERO, 3, 4)),
        ("s fork 0", Fork("s", "0")),
        ("s forkto t", Fork("s", "t")),
        ("s forkkill 0", Kill("s", "0")),
        ("t exit", Kill("t", "t")),
        ("scan", FullScan()),
        ("w /proc/sys/vm/drop_caches 2", DropCaches(2)),
        (f"w {THP}/defrag never", Knob("defrag", "never")),
        (["set", 528, 64], SetSizes(528, 64)),
    ],
)
def test_what_operations_say(text: object, operation: object) -> None:
    assert parse_operation(text) == operation


@pytest.mark.parametrize(
    "text",
    [
        "", "s", "s mmap", "s mmap 0", "s mmap 0 0", "s mmap -1 2", "s mmap 0 99999999", "s wr 1 1 0",
        "s fill 0 1 7", "s fill 0 1", "s mprotect 0 1 8", "s adv 0 1 999", "s walk 0 1", "scan now",
        "w /etc/passwd x", "w /proc/sys/vm/drop_caches 9", ["set", 1, 0], ["set", 16, 512], ["set", 16],
        ["set", "a", 0], None, 7, {"op": 1}, "s rd 0 ²",
    ],
)  # fmt: skip
def test_what_is_no_operation(text: object) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_operation(text)
    assert "\n" not in str(error.value)


GOOD = {"id": "p", "orders": [4], "max_ptes_none": 0, "pre": [], "steps": [{"op": "scan"}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 7}, "id"),
        ({"orders": [1]}, "orders"),
        ({"orders": "4"}, "orders"),
        ({"max_ptes_none": 512}, "max_ptes_none"),
        ({"pre": ["scan"]}, "pre"),
        ({"pre": [f"w {THP}/defrag"]}, "defrag"),
        ({"steps": [{"op": "scan now"}]}, "steps[0]"),
        ({"steps": [{}]}, "steps[0]"),
        ({"steps": [{"op": "scan", "layout": ["1:F"]}]}, "layout"),
        ({"steps": [{"op": "scan", "layout": [1]}]}, "layout"),
        ({"steps": [{"op": "scan", "delta": {"4.nr_anon": "1"}}]}, "delta"),
        ({"steps": [{"op": "scan", "ok": False, "msg": "no"}]}, "msg"),
        ({"steps": [{"op": "scan", "processes": {"s": [{}]}}]}, "processes.s[0]"),
        ({"steps": 3}, "steps"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": "q", **change}) + "\n")
    with pytest.raises(FileError) as error:
        list(load(path))
    text = str(error.value)
    assert f"{path}:2: " in text and said in text and "\n" not in text


def test_a_name_is_used_once(tmp_path: Path) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 2)
    with pytest.raises(FileError, match="used twice"):
        list(load(path))
