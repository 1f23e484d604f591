# SPDX-License-Identifier: GPL-2.0-or-later
"""--itf on the command line: real traces keep the published schema, and files are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mthp.cli import main
from mthp.machine.step import Access

SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "itf.schema.json"


def valid(path: Path) -> Any:
    """The document, held against the schema."""
    document = json.loads(path.read_text(encoding="utf-8"))
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text(encoding="utf-8")))
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
    return document


def numbers(value: Any) -> bool:
    """Whether there is a JSON number, which the format forbids outside #meta."""
    if isinstance(value, dict):
        return any(numbers(each) for key, each in value.items() if key != "#meta")
    if isinstance(value, list):
        return any(numbers(each) for each in value)
    return isinstance(value, int | float)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--mutant", "A16"],
        ["check", "--mutant", "read-lock", "--world", "pmd", "--rivals", "fault"],
        ["replay", "no-barrier:7.3:pmd+weak:load:a0"],
        ["replay", "F1:7.3:pmd:guest:a0"],
        ["replay", "A2:7.3:pmd:gup+zap:a0"],
    ],
)
def test_traces_keep_the_schema(arguments: list[str], tmp_path: Path) -> None:
    main([*arguments, "--itf", str(tmp_path / "trace.itf.json")])
    document = valid(tmp_path / "trace.itf.json")
    assert not numbers(document)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.itf.json"]


def test_the_schema_names_every_access() -> None:
    state = json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]["state"]
    named = set(state["properties"]["access"]["enum"])
    assert named == {"begin", "end"} | {each.value for each in Access if each is not Access.BARRIER}


def test_check_and_replay_write_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    assert main(["check", "--mutant", "A16", "--itf", str(first)]) == 4
    token = capsys.readouterr().out.split("mthp replay ")[1].strip()
    assert main(["replay", token, "--itf", str(second)]) == 4
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(first.read_text())["#meta"]["source"] == f"mthp replay {token}"


def test_nothing_broken_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "none"
    assert main(["check", "--world", "pmd", "--rivals", "gup", "--itf", str(file)]) == 0
    assert "no law is broken: " in capsys.readouterr().err
    assert not file.exists()


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    own, file = tmp_path / "own.py", tmp_path / "trace"
    own.write_text("def vma_start_write(vma):\n    pass\n", encoding="utf-8")
    world = ["--world", "pmd", "--rivals", "fault"]
    assert main(["check", "--protocol", str(own), *world, "--itf", str(file)]) == 4
    laws = {each["law"]["#bigint"] for each in valid(file)["states"][-1]["broken"]}
    assert laws & {"7", "13"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["check", "--itf", "/nonexistent/x"], ": /nonexistent/x: No such file"),
        (["replay", "A1:7.3:pmd:gup:a0", "--itf", "/"], ": /: not a regular file"),
        (["check", "--all", "--itf", "x"], "--itf is for one violation"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1
