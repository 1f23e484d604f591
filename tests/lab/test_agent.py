# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's agent: it compiles without a warning, and only once."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from mthp.lab import guest
from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.vm.initramfs import FLAGS, SOURCES, build_agent

GUEST = Path(next(iter(guest.__path__)))
COMPILER = shutil.which("cc") or shutil.which("gcc")


@cache
def _lacking() -> str:
    """What this host lacks to link the agent; empty where it can."""
    if COMPILER is None:
        return "no C compiler"
    command = [COMPILER, "-static", "-x", "c", "-", "-o", os.devnull]
    tried = subprocess.run(command, input=b"int main(void){}", capture_output=True)
    return "no static C library (libc6-dev)" if tried.returncode else ""


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toolchain() -> None:
    if lacking := _lacking():
        pytest.skip(lacking)


def test_the_sources_are_all_there_is_of_it() -> None:
    assert sorted(SOURCES) == sorted(path.name for path in GUEST.glob("*.[ch]"))


@pytest.mark.usefixtures("toolchain")
def test_it_compiles_without_a_word(tmp_path: Path) -> None:
    assert COMPILER is not None
    assert {"-Wall", "-Wextra"} <= set(FLAGS)
    units = [str(GUEST / name) for name in SOURCES if name.endswith(".c")]
    done = subprocess.run(
        [COMPILER, "-static", "-O2", *FLAGS, "-o", str(tmp_path / "agent"), *units],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.usefixtures("toolchain")
def test_it_is_compiled_once(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent()
    assert os.access(agent, os.X_OK)
    assert agent.read_bytes()[:4] == b"\x7fELF"
    assert list((cache_folder / "agent").iterdir()) == [agent], "nothing is left beside it"
    made = agent.stat()
    monkeypatch.setenv("PATH", "/nonexistent")
    again = build_agent()
    assert again == agent
    assert (again.stat().st_ino, again.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LabError, match="no C compiler") as caught:
        build_agent()
    assert caught.value.code == HOST_LACKS


def test_a_compiler_that_cannot(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "cc").write_text("#!/bin/sh\necho warming up >&2\necho no libc.a >&2\nexit 1\n")
    (tools / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(LabError, match="agent: no libc") as caught:
        build_agent()
    assert caught.value.code == HOST_LACKS
    assert list((cache_folder / "agent").iterdir()) == []
