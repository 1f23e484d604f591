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
from mthp.lab.kernels.kernels import find
from mthp.lab.kernels.tools import QEMU
from tests.cli.test_bad_input import refused

LOAD = "blocks = [bytearray(100000) for n in range(200)]\nwhile True: pass\n"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ((), "--recipe NAME"),
        (("--recipe", "redis", "--", "sleep", "1"), "--recipe NAME"),
        (("--recipe", "oracle"), "no 'oracle'"),
        (("--recipe", "redis", "--with", "/etc"), "--with"),
        (("--load", "'", "--", "sleep", "1"), "--load"),
        (("--load", " ", "--", "sleep", "1"), "empty command"),
        (("--settle", "x", "--", "sleep", "1"), "--settle"),
        (("--memory", "1", "--recipe", "redis"), "--memory"),
        (("--max-ptes-none", "0,600", "--recipe", "redis"), "max_ptes_none"),
        (("--max-ptes-none", "", "--recipe", "redis"), "max-ptes-none"),
        (("--enabled", "65kB=always", "--recipe", "redis"), "65K"),
    ],
)
def test_bad_input(capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], word: str) -> None:
    assert word in refused(capfd, "lab", "predict", *argv)


def test_no_kernel(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path))
    assert "mthp lab setup" in refused(capfd, "lab", "predict", "--recipe", "redis", code=5)


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
