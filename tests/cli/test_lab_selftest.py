# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab selftest: what it prints without a guest, and one line where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mthp.cli import main
from mthp.image.scenario import load
from mthp.lab.kernels.kernels import add_copy
from tests.cli.test_bad_input import refused
from tests.lab.synthetic import bzimage
from tests.report.strict_ktap import read_ktap


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_engines_side(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "selftest", "--engine", "--order", "3", "--order", "8"]) == 0
    heading, titles, *rows = capfd.readouterr().out.splitlines()
    assert heading == "engine 7.3: 31 of 31 ok"
    assert titles.split() == ["case", "context", "order", "engine"]
    assert rows[0].split() == ["collapse_full", "khugepaged", "9", "ok"]
    assert rows[-1].split() == ["collapse_single_mthp", "mthp_khugepaged", "8", "ok"]
    assert {row.split()[-1] for row in rows} == {"ok"}


def test_one_document(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "selftest", "--engine", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["schema_version"] == 1
    assert (document["kernel"], document["profile"]) == (None, "7.3")
    assert (document["passed"], document["complaints"]) == (True, [])
    assert len(document["cases"]) == 28
    assert document["cases"][-1] == {
        "case": "collapse_single_mthp",
        "context": "mthp_khugepaged",
        "order": 4,
        "kernel": None,
        "engine": "ok",
        "recorded": None,
    }


def test_as_ktap(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "selftest", "--engine", "--ktap"]) == 0
    (engine,) = read_ktap(capfd.readouterr().out)
    assert (engine.name, engine.passed, len(engine.parts)) == ("engine", True, 28)
    assert engine.parts[-1].name == "collapse_single_mthp.mthp_khugepaged.4"


def test_the_states_as_scenarios(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "states.jsonl"
    assert main(["lab", "selftest", "--engine", "--scenarios", str(file)]) == 0
    scenarios = {scenario.id: scenario for scenario in load(file)}
    assert len(scenarios) == 31
    capfd.readouterr()
    assert main(["collapse", f"{file}#collapse_single_mthp/mthp_khugepaged/order-4"]) == 0
    assert "64kB (order 4)" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--order", "9"], "--order: '9' is not a whole number from 2 to 8, and not 'all'"),
        (["--order", "1"], "--order: '1'"),
        (["--order", "four"], "--order: 'four'"),
        (["--engine", "--yes"], "--engine needs no guest"),
        (["--engine", "--kernel", "7.3"], "--engine needs no guest"),
        (["--engine", "--record", "x"], "--engine needs no guest"),
        (["--engine", "--scenarios", "/nowhere/x"], "/nowhere/x: No such file or directory"),
    ],
)
def test_bad_input(capfd: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    assert says in refused(capfd, "lab", "selftest", *argv)


def fake_qemu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "qemu-system-x86_64").write_text("#!/bin/sh\nexit 1\n")
    (folder / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_host_without_qemu(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "qemu-system-x86_64 is not installed" in refused(capfd, "lab", "selftest", code=5)


def test_a_cache_without_a_kernel(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu(tmp_path / "bin", monkeypatch)
    assert "no kernel in the cache" in refused(capfd, "lab", "selftest", code=5)


def test_a_source_that_is_none(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu(tmp_path / "bin", monkeypatch)
    image = tmp_path / "image"
    image.write_bytes(bzimage("7.3.4"))
    add_copy(image, None)
    says = refused(capfd, "lab", "selftest", "--source", str(tmp_path))
    assert "no tools/testing/selftests/mm/khugepaged.c in it" in says
