# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp check --protocol: what is said of a file, and tokens that name it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from mthp.cli import main
from tests.report.strict_ktap import read_ktap

NO_VMA_LOCK = "def vma_start_write(vma):\n    pass\n"
WORLD = ["--world", "pmd", "--rivals", "fault"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "my $(file): a@b"
    folder.mkdir()
    file = folder / "own 'é'.py"
    file.write_text(NO_VMA_LOCK, encoding="utf-8")
    return file


def test_what_it_replaced_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text("def trace_flush(mm, orig_pmd, start_addr, order):\n    pass\n", "utf-8")
    command = ["check", "--protocol", str(file), "--world", "pmd", "--rivals", "-"]
    assert main(command) == 0
    said = f"{file}: functions by their names\nreplaces khugepaged/collapse.py trace_flush\n"
    assert said in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["protocol"]
    assert document["file"] == str(file)
    assert document["replaces"] == ["khugepaged/collapse.py trace_flush"]


def test_the_command_that_runs_it_again_does(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--protocol", str(own), *WORLD]) == 4
    command = capsys.readouterr().out.split("run it again: mthp ")[1].splitlines()[0]
    words = shlex.split(command)
    verb, token, option, file = words
    assert (verb, option, file) == ("replay", "--protocol", str(own))
    assert shlex.quote(token) == token.replace("'", "%27")  # one word, as it stands
    assert main(words) == 4
    assert " is broken: " in capsys.readouterr().out


def test_as_ktap(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--protocol", str(own), *WORLD, "--ktap"]) == 4
    (world,) = read_ktap(capsys.readouterr().out)
    assert (world.name, world.passed) == ("7.3.pmd.fault", False)
    assert any(" is broken: " in note for note in world.notes)
    assert world.notes[-1].startswith("run it again: mthp replay ")


def test_a_token_is_refused_without_its_file_or_with_another(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--protocol", str(own), *WORLD, "--json"]) == 4
    (row,) = json.loads(capsys.readouterr().out)["profiles"]
    token = row["violation"]["replay"]
    other = tmp_path / "other.py"
    other.write_text(NO_VMA_LOCK + "\n", encoding="utf-8")
    for given in ([], ["--protocol", str(other)]):
        assert main(["replay", token, *given]) == 2
        err = capsys.readouterr().err
        assert f"the token is of the protocol {own}" in err and err.count("\n") == 1
    same = tmp_path / "same.py"
    same.write_text(NO_VMA_LOCK, encoding="utf-8")
    assert main(["replay", token, "--protocol", str(same)]) == 4
    capsys.readouterr()
    assert main(["replay", "as-is:7.3:pmd:fault:a1", "--protocol", str(own)]) == 2
    assert "the token is of no protocol file" in capsys.readouterr().err


def test_its_own_worlds_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    rival = 'RIVALS = [Rival("idle", "nothing")]\nWORLDS = ["pmd:idle"]\n'
    file.write_text("from mthp.races.protocol import Rival\n" + rival, encoding="utf-8")
    assert main(["check", "--protocol", str(file), "--world", "pmd", "--rivals", "idle"]) == 0
    assert "idle" in capsys.readouterr().out
    assert main(["check", "--protocol", str(file), "--list"]) == 0
    assert "  idle                nothing\n" in capsys.readouterr().out
    file.write_text("WORLDS = ['attic:idle']\n", encoding="utf-8")
    assert main(["check", "--protocol", str(file)]) == 2
    err = capsys.readouterr().err
    assert "WORLDS: no world 'attic'" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('x')", "line 1, in <module>: RuntimeError: x"),
        ("def collapse_huge_pages(mm, a):\n    return 1\n", "is collapse_huge_page meant?"),
        (
            "def collapse_huge_page(mm, start_addr, referenced, unmapped, cc, order):\n"
            "    from mthp.results import ScanResult\n",
            "line 2, in collapse_huge_page: ModuleNotFoundError",
        ),
    ],
)
@pytest.mark.parametrize("worlds", [WORLD, ["--world", "pmd", "--jobs", "2"]])
def test_a_fault_of_the_file_is_one_line(
    tmp_path: Path, text: str, said: str, worlds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(text, encoding="utf-8")
    assert main(["check", "--protocol", str(file), *worlds]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"mthp check: --protocol {file}: ") and said in err
