# SPDX-License-Identifier: GPL-2.0-or-later
"""What a stranger may name: no name reaches a terminal as anything but letters, in no view of any verb."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mthp.cli import main
from tests.cli.test_bad_input import RECORDS, refused
from tests.image.made import BASE, made

EVIL = "a\x1b[31m\x1b]0;x\x07\x00\r\x9b2J\u202e\u200b\ufeff\u3164[bold]\ud83d"
"""An escape, a title, a bell, a return, C1, bidi, three without width, markup, half a character."""
VIEWS = (
    ["collapse"],
    ["collapse", "--verbose"],
    ["collapse", "--timeline"],
    ["collapse", "--json"],
    ["collapse", "--why", f"{BASE:x}"],
    ["collapse", "--steps", f"{BASE:x}"],
    ["collapse", "--events", "ftrace"],
    ["collapse", "--csv"],
    ["collapse", "--csv-processes"],
    ["collapse", "--madvise-collapse"],
    ["diff", "v16", "7.3"],
)


def check_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for text in capfd.readouterr():
        lines = text.split("\n")
        assert all(line.isprintable() and "\u3164" not in line for line in lines), ascii(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A snapshot whose every name is a stranger's."""
    it = made()
    it.meta.update(kernel=f"7.3{EVIL}", hostname=EVIL, unseen=[EVIL], swaps=f"Filename\n{EVIL}")
    for process in it.meta["processes"]:
        process.update(comm=EVIL, exe=EVIL, cgroup=EVIL, cmdline=[EVIL])
        process["memcg"] = {"limit": 1 << 30, "usage": 1 << 29, "reclaimable": 0, "path": EVIL}
        for vma in process["vmas"]:
            vma["path"] = f"[anon:{EVIL}]" if vma["skipped"] is None else EVIL
    path = tmp_path / "a.npz"
    path.write_bytes(it.packed())
    return path


@pytest.mark.parametrize("view", VIEWS, ids=" ".join)
def test_names_in_a_snapshot(
    capfd: pytest.CaptureFixture[str], file: Path, view: list[str]
) -> None:
    assert main([*view, str(file)]) == 0
    check_printed(capfd)


def test_names_of_files(capfd: pytest.CaptureFixture[str], file: Path) -> None:
    name = f"{file.parent}/" + EVIL.replace("\0", "").replace("\ud83d", "\udcff")
    refused(capfd, "collapse", name)
    refused(capfd, "check", "--protocol", name)
    refused(capfd, "check", "--resume", f"{name}/b")
    os.link(file, f"{name}.npz")
    assert main(["collapse", f"{name}.npz"]) == 0
    check_printed(capfd)
    Path(f"{name}.py").write_text("WORLDS = ['pmd:nobody']", encoding="utf-8")
    assert main(["check", "--protocol", f"{name}.py"]) == 2
    check_printed(capfd)


def test_names_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    for argv in (
        [EVIL], ["collapse", "--enabled", EVIL, f"{RECORDS}#ext-0"], ["collapse", f"{RECORDS}#{EVIL}"],
        ["replay", EVIL], ["replay", f"as-is:7.3:pmd:{EVIL}:a1"], ["check", "--world", EVIL],
        ["check", "--mutant", EVIL], ["check", "--rivals", EVIL], ["collapse", "--pid", EVIL],
        ["collapse", "--thp-anon", EVIL, f"{RECORDS}#ext-0"],
    ):  # fmt: skip
        refused(capfd, *argv)


def test_names_in_a_scenario(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "schema": "mthp-scenario/1", "id": EVIL, "kernel": EVIL, "action": "khugepaged", "settings": {},
        "vmas": [{"start": 1 << 30, "pages": 1, "initial": {"folios": "1:-", "ptes": "1:-"}}],
        "passes": [{"events": [{"event": EVIL, EVIL: EVIL}], "counters": {EVIL: {EVIL: EVIL}},
            "final": [{"folios": "1:-", "ptes": None}]}],
    }  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(document))
    assert main(["collapse", str(path)]) == 0
    check_printed(capfd)
    assert main(["collapse", "--conformance", str(path)]) == 3
    check_printed(capfd)


@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/zero"])
def test_what_is_no_file_is_not_waited_for(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a.jsonl" if kind != "/dev/zero" else Path(kind)
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    name = str(path)
    for argv in (
        ["collapse", name], ["collapse", "--conformance", name], ["diff", "v16", "7.3", name],
        ["check", "--protocol", name], ["check", "--resume", name, "--rivals", "gup"],
        ["replay", "--protocol", name, "as-is:7.3:pmd:gup:a1"],
    ):  # fmt: skip
        assert "not a regular file" in refused(capfd, *argv) or kind == "folder"


def test_a_token_has_an_end(capfd: pytest.CaptureFixture[str]) -> None:
    assert "more than" in refused(capfd, "replay", "as-is:7.3:pmd:gup:a99999999999")
    assert "not a token" in refused(capfd, "replay", "a" * 100_000)
