# SPDX-License-Identifier: GPL-2.0-or-later
"""benchmarks/run.py: which benches run, with which arguments, and what their failures come to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent.parent / "benchmarks" / "run.py"
PARSES = "import argparse\ndef main(): argparse.ArgumentParser().parse_args(); print('ran')\n"
LACKS = "def main(): raise PermissionError('not root')\n"
FAILS = "def main(): raise ValueError('wrong')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of benches that take no time."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    shutil.copy(RUN, folder)
    (folder / "__init__.py").touch()
    for name, text in (("one", PARSES), ("two", PARSES), ("lacks", LACKS), ("fails", FAILS)):
        (folder / f"bench_{name}.py").write_text(text)
    return folder


def run(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "run.py"), *names]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_bench_does_not_get_the_names_of_benches_as_its_arguments(folder: Path) -> None:
    ended = run(folder, "one", "bench_two")
    assert (ended.returncode, ended.stdout.count("ran")) == (0, 2), ended.stderr


def test_a_bench_that_cannot_run_here_is_skipped(folder: Path) -> None:
    ended = run(folder, "lacks", "one")
    assert ended.returncode == 0
    assert "skipped: not root" in ended.stdout and "ran" in ended.stdout


def test_one_that_fails_does_not_stop_the_others(folder: Path) -> None:
    ended = run(folder)
    assert ended.returncode == 1
    assert ended.stdout.count("ran") == 2 and "ValueError: wrong" in ended.stderr


def test_an_unknown_name_is_said(folder: Path) -> None:
    ended = run(folder, "three")
    assert ended.returncode == 2
    assert "no such bench: bench_three" in ended.stderr
