# SPDX-License-Identifier: GPL-2.0-or-later
"""`mthp snap --every`: when it captures, what it calls the files, and what ends it."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mthp.image.capture.command import main
from mthp.image.capture.host import THP
from mthp.image.capture.proc import LeftOut
from mthp.image.capture.series import Series, Survivors, duration, name_at
from mthp.image.snapshot import load
from mthp.image.zipped import write_zipapp
from tests.image.children import child

pytestmark = pytest.mark.skipif(not os.path.isdir(THP), reason="no THP in this kernel")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60", 60), ("60s", 60), ("5m", 300), ("10min", 600), ("1h", 3600), ("2d", 172800)],
)
def test_times(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "1.5h", "1w", "5 m", "٣", "1e3", "9" * 20])
def test_bad_times(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time such as"):
        duration(text)
    assert main(["--pid", "self", "--every", text, "-o", "x.npz"]) == 2


def test_names(tmp_path: Path) -> None:
    assert name_at("a/redis.npz", 0) == "a/redis-19700101T000000Z.npz"
    assert name_at("redis", 3661) == "redis-19700101T010101Z.npz"
    assert name_at("new/", 0) == "new/snap-19700101T000000Z.npz"
    assert name_at(str(tmp_path), 0) == f"{tmp_path}/snap-19700101T000000Z.npz"


def test_it_neither_drifts_nor_overlaps(tmp_path: Path) -> None:
    """The second of five takes two turns and a half: the two that would overlap are skipped."""
    every, began = 0.2, time.monotonic()
    moments: list[float] = []
    said: list[str] = []

    def capture(pids: list[int], output: str) -> str:
        moments.append((time.monotonic() - began) / every)
        time.sleep(2.5 * every if len(moments) == 2 else every / 4)
        return f"{pids} {output}"

    end = Series(every, 5 * every, lambda: [7], capture, said.append).run(f"{tmp_path}/x.npz")
    assert [int(moment) for moment in moments] == [0, 1, 4, 5]
    assert all(moment % 1 < 0.5 for moment in moments), moments
    assert [line for line in said if "skipped" in line] == [
        "2 skipped: the last capture took longer than --every"
    ]
    assert end == "4 capture(s); 1.0 s are over"


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    said: list[str] = []

    def capture(pids: list[int], output: str) -> str:
        Path(output).write_text("once")
        return "written"

    # All turns within one second, as where the clock was set back.
    while time.time() % 1 > 0.5:
        time.sleep(0.01)
    Series(0.1, 0.2, lambda: [7], capture, said.append).run(f"{tmp_path}/x.npz")
    assert said[0] == "written" and all("is there already" in line for line in said[1:])
    assert len(said) == 3 and len(os.listdir(tmp_path)) == 1


def test_it_ends_with_its_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with child("ready()") as kid:
        survivors = Survivors([kid.pid, os.getpid()], print)
        assert survivors() == [kid.pid, os.getpid()]

        def capture(pids: list[int], output: str) -> str:
            os.kill(kid.pid, signal.SIGKILL)
            os.waitid(os.P_PID, kid.pid, os.WEXITED)
            return "written"

        alone = Survivors([kid.pid], print)
        end = Series(0.05, None, alone, capture, print).run(str(tmp_path))
        assert end == f"1 capture(s); process {kid.pid} has ended"
        assert survivors() == [os.getpid()]
        assert f"process {kid.pid} has ended; the others go on" in capsys.readouterr().out
        with pytest.raises(LeftOut, match="has ended"):
            Survivors([kid.pid], print)()


def test_a_signal_ends_it_cleanly(tmp_path: Path) -> None:
    """As hosts have it, in one file; what was written by then is whole."""
    program, folder = tmp_path / "mthp-snap.pyz", tmp_path / "out"
    write_zipapp(program)
    folder.mkdir()
    with child("ready()") as kid:
        command = [sys.executable, "-I", "-S", str(program), "--pid", str(kid.pid)]
        command += ["--every", "1", "-o", str(folder)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as snapping:
            assert snapping.stderr is not None
            first = snapping.stderr.readline()
            snapping.terminate()
            rest = snapping.stderr.read()
    assert snapping.returncode == 0
    (name,) = os.listdir(folder)
    assert name in first and re.fullmatch(r"snap-\d{8}T\d{6}Z\.npz", name)
    assert rest == "mthp-snap: 1 capture(s); stopped by a signal\n"
    assert load(folder / name).processes[0].pid == kid.pid
