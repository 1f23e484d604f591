# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp check --litmus on the command line, with and without a herd7."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mthp.cli import main
from mthp.races.litmus import PATTERNS


def program(folder: Path, body: str) -> None:
    """A herd7 of our own, first on the path."""
    herd = folder / "herd7"
    herd.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    herd.chmod(0o755)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a memory model."""
    folder = tmp_path / "memory-model"
    folder.mkdir()
    (folder / "linux-kernel.cfg").write_text("model linux-kernel.cat\n")
    return folder


def test_our_own_verdicts_need_no_herd7(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["check", "--litmus"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert "ours: lkmm" in heading
    assert [row.split()[0] for row in rows] == list(PATTERNS)
    assert all(" agree " in row for row in rows)


def test_no_herd7_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["check", "--litmus", "--herd"]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "herd7 is not on this host" in captured.err


def test_a_herd7_that_differs(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    says = "\n".join(f"echo 'Observation {name} Never 0 2'" for name in PATTERNS)
    program(tmp_path, says)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    arguments = ["check", "--litmus", "--herd", "--memory-model", str(model)]
    assert main(arguments) == 3
    assert "DIFFER" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 3
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["litmus"]}
    assert (rows["publish-wmb"]["herd7"], rows["publish-wmb"]["agrees"]) == ("Never", True)
    assert (rows["publish-lock"]["herd7"], rows["publish-lock"]["agrees"]) == ("Never", False)
    assert rows["publish-lock"]["ours"]["lkmm"] == "Sometimes"


def test_a_herd7_that_fails(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program(tmp_path, "echo 'no such model' >&2; exit 2")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert main(["check", "--litmus", "--herd", "--memory-model", str(model)]) == 1
    assert "herd7 on publish-wmb: no such model" in capsys.readouterr().err


def test_no_memory_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert main(["check", "--litmus", "--herd", "--memory-model", str(tmp_path)]) == 2
    assert "no linux-kernel.cfg in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--herd"], "--herd and --memory-model are for --litmus"),
        (["--litmus", "--yes"], "--memory-model and --yes are for --herd"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    assert complaint in capsys.readouterr().err
