# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab predict: refusals, and a real one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from mthp.cli import main
from mthp.lab.errors import LabError
from mthp.lab.kernels.kernels import add_copy, find
from mthp.lab.kernels.tools import QEMU
from tests.cli.test_bad_input import refused
from tests.lab.synthetic import bzimage
from tests.report.strict_ktap import read_ktap

LOAD = "blocks = [bytearray(100000) for n in range(200)]\nwhile True: pass\n"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ((), "--recipe NAME"),
        (("--recipe", "redis", "--", "sleep", "1"), "--recipe NAME"),
        (("--recipe", "oracle"), "no 'oracle'"),
        (("--recipe", "redis", "--with", "/etc"), "--with"),
        (("--recipe", "redis", "--user", "root"), "--user"),
        (("--user", "nobody-at-all", "--", "sleep", "1"), "nobody is called nobody-at-all"),
        (("--ready", "0", "--", "sleep", "1"), "--ready"),
        (("--load", "'", "--", "sleep", "1"), "--load"),
        (("--load", " ", "--", "sleep", "1"), "empty command"),
        (("--settle", "x", "--", "sleep", "1"), "--settle"),
        (("--memory", "1", "--recipe", "redis"), "--memory"),
        (("--max-ptes-none", "0,600", "--recipe", "redis"), "max_ptes_none"),
        (("--max-ptes-none", "", "--recipe", "redis"), "max-ptes-none"),
        (("--enabled", "65kB=always", "--recipe", "redis"), "65K"),
        (("--recipe", "redis", "--under", "--enabled 65kB=always"), "65K"),
        (("--recipe", "redis", "--under", "--memory 4"), "--under: unrecognized arguments"),
        (("--recipe", "redis", "--under", " "), "--under: nothing in it"),
        (("--recipe", "redis", "--under", "--defrag 0", "--defrag", "1"), "none beside it"),
        (("--recipe", "redis", "--under", "--max-ptes-none 600"), "max_ptes_none"),
        (("--recipe", "redis", "--then", "true"), "--then"),
        (("--then", "'", "--", "sleep", "1"), "--then"),
        (("--recipe", "redis", "--svg", "a.svg"), "--svg goes with"),
        (("--recipe", "redis-bloat", "--svg", "/gone/a.svg"), "no folder /gone"),
    ],
)
def test_bad_input(capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], word: str) -> None:
    assert word in refused(capfd, "lab", "predict", *argv)


def test_no_kernel(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path))
    assert "mthp lab setup" in refused(capfd, "lab", "predict", "--recipe", "redis", code=5)


def test_a_program_that_is_not_there(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bzImage").write_bytes(bzimage("7.4.0-mine"))
    add_copy(tmp_path / "bzImage", None)
    assert main(["lab", "predict", "--json", "--", "./gone"]) == 2
    out, err = capfd.readouterr()
    assert err == f"mthp lab predict: gone: no program {tmp_path}/gone\n"
    reason = f"no program {tmp_path}/gone"
    failed: dict[str, object] = {
        "program": "gone",
        "settings": None,
        "max_ptes_none": None,
        "reason": reason,
        "output": [],
    }
    assert json.loads(out) == {"schema_version": 1, "predictions": [], "failed": [failed]}
    assert main(["lab", "predict", "--ktap", "--", "./gone"]) == 2
    (gone,) = read_ktap(capfd.readouterr().out)
    assert (gone.name, gone.parts[0].directive, gone.parts[0].data) == ("gone", "ERROR", reason)


def _lacking() -> str:
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed"
    try:
        find("7.3")
    except LabError as error:
        return str(error)
    return ""


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.skipif(bool(_lacking()), reason=_lacking() or "all there")
def test_a_real_program(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    code = main(
        ["lab", "predict", "--json", "--quiet", "--release", "7.3", "--memory", "1024",
         "--max-ptes-none", "0", "--settle", "8", "--keep", str(tmp_path),
         "--", program, "-S", "-c", LOAD]
    )  # fmt: skip
    out, err = capfd.readouterr()
    assert code == 0, out + err
    (found,) = json.loads(out)["predictions"]
    assert found["good"] and found["changed"] > 1000
    assert found["baseline"] < 0.7
    assert len(list(tmp_path.glob("*/*.npz"))) == 2


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.skipif(bool(_lacking()), reason=_lacking() or "all there")
def test_a_program_that_ends_is_told_for_each_guest(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script and its data lie under /tmp, and its interpreter is a link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shell").symlink_to("/bin/sh")
    (tmp_path / "data").write_text("kept\n")
    script = "read word < $1\necho one; echo $word in $PWD >&2; exit 3\n"
    (tmp_path / "run").write_text(f"#!{tmp_path}/shell\n{script}")
    (tmp_path / "run").chmod(0o755)
    argv = ["lab", "predict", "--json", "--quiet", "--release", "7.3", "--memory", "768"]
    assert main([*argv, "--settle", "1", "--", "./run", "data"]) == 2
    out, err = capfd.readouterr()
    first, second = json.loads(out)["failed"]
    assert (first["max_ptes_none"], second["max_ptes_none"]) == (0, 511)
    assert first["reason"] == "it ended with exit status 3 before it was to be stopped"
    assert first["output"] == second["output"] == ["one", f"kept in {tmp_path}"]
    assert err.splitlines()[1:3] == [
        "mthp lab predict:   | one", f"mthp lab predict:   | kept in {tmp_path}",
    ]  # fmt: skip


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.skipif(bool(_lacking()), reason=_lacking() or "all there")
def test_a_plan_of_a_real_program(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    pace = "--pages-to-scan 2048 --scan-sleep-millisecs 2000"
    code = main(
        ["lab", "predict", "--plan", "--json", "--quiet", "--release", "7.3", "--memory", "1024",
         "--under", f"--enabled 64kB=always --max-ptes-none 511 {pace}", "--settle", "8",
         "--keep", str(tmp_path), "--", program, "-S", "-c", LOAD]
    )  # fmt: skip
    out, err = capfd.readouterr()
    assert code == 0, out + err
    (found,) = json.loads(out)["predictions"]
    measured = found["measured"]
    assert measured["folios_exact"] and abs(measured["memory_error"]) <= 0.01
    assert measured["guest"]["collapses"]["64kB"] > 100
    assert measured["guest"]["last_collapse_ms"] > 2000
    assert [path.name for path in tmp_path.iterdir()] == [f"{Path(program).name}-under-1"]


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.skipif(bool(_lacking()), reason=_lacking() or "all there")
def test_phases_of_a_real_program_and_shrinkers(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its memory is zeros, which shrinkers give back; in its second phase the rest of it is as it was."""
    program = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    code = main(
        ["lab", "predict", "--shrink", "--json", "--quiet", "--release", "7.3", "--memory", "1024",
         "--under", "--enabled 2048kB=always --max-ptes-none 64", "--settle", "8", "--then", "sh -c :",
         "--svg", str(tmp_path / "a.svg"), "--", program, "-S", "-c", LOAD]
    )  # fmt: skip
    out, err = capfd.readouterr()
    assert code == 0, out + err
    found = json.loads(out)["predictions"]
    first, second = (each["memory"] for each in found if each["memory"] is not None)
    assert (len(found), first["phase"], second["phase"]) == (4, "first", "sh -c :")
    assert first["shrunk"][1] < first["collapsed"][1] / 2
    assert all(
        each[0] == each[1] for each in (*first.values(), *second.values()) if isinstance(each, list)
    )
    assert (tmp_path / "a.svg").read_text().count("<circle") == 6
