# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's Python parts, run on this host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mthp.image.zipped import capture_sources
from mthp.lab import guest

GUEST = Path(next(iter(guest.__path__)))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Path]:
    """A folder that the helper serves."""
    scripts = tmp_path / "lab"
    scripts.mkdir()
    for name in ("helper.py", "register.py"):
        (scripts / name).write_bytes((GUEST / name).read_bytes())
    for name, text in capture_sources().items():
        (scripts / name).parent.mkdir(parents=True, exist_ok=True)
        (scripts / name).write_bytes(text)
    folder = tmp_path / "jobs"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-S", scripts / "helper.py", folder])
    yield folder
    process.kill()
    process.wait()


def done(folder: Path, number: int, **job: object) -> tuple[str, str]:
    """What a job's .done says, and its output."""
    (folder / f"{number}.json").write_text(json.dumps(job))
    (folder / f"{number}.go").touch()
    file = folder / f"{number}.done"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if file.exists() and (word := file.read_text()):
            return word, (folder / f"{number}.out").read_text()
        time.sleep(0.02)
    raise AssertionError("the helper does not answer")


def test_the_helper_does_jobs_one_after_the_other(jobs: Path) -> None:
    code = "import os; print(os.getcwd()); raise SystemExit(3)"
    argv = [sys.executable, "-c", code]
    said = done(jobs, 1, argv=argv)
    assert said == ("done 3", "/tmp\n")
    assert done(jobs, 2, argv=["/nowhere"])[0] == "done 1"
    (jobs / "data").write_bytes(b"abcdefg")
    assert done(jobs, 3, call="split", args=[str(jobs / "data"), "3"]) == ("done 0", "3\n")
    assert [(jobs / f"data.{k}").read_bytes() for k in range(3)] == [b"abc", b"def", b"g"]


def test_the_helper_captures(jobs: Path) -> None:
    out = jobs / "snap.npz"
    args = ["--pid", str(os.getpid()), "-o", str(out)]
    word, said = done(jobs, 1, call="mthp.image.capture.command", args=args)
    assert word == "done 0", said
    assert out.stat().st_size > 1000


def test_what_runs_in_the_background_is_not_waited_for(jobs: Path) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    (jobs / "1.out").touch()
    word, pid = done(jobs, 1, argv=argv, background=True)[0].split()
    assert word == "started"
    os.kill(int(pid), signal.SIGKILL)


COUNTS = "import sys\nfor line in sys.stdin:\n    print(int(line) + 1, flush=True)\n"


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="x86-64")
def test_registering_leaves_the_process_as_it_is() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write("1\n")
        process.stdin.flush()
        assert process.stdout.readline() == "2\n"
        os.kill(process.pid, signal.SIGSTOP)
        maps = Path(f"/proc/{process.pid}/maps")
        before = maps.read_text()
        ran = subprocess.run(
            [sys.executable, "-c", "import register, sys; sys.exit(register.main(sys.argv[1:]))",
             str(process.pid)],
            cwd=GUEST, capture_output=True, text=True,
        )  # fmt: skip
        if ran.returncode and "not permitted" in ran.stdout + ran.stderr:
            pytest.skip("ptrace is not permitted here")
        assert ran.returncode == 0, ran.stderr
        assert maps.read_text() == before
        os.kill(process.pid, signal.SIGCONT)
        process.stdin.write("41\n")
        process.stdin.flush()
        assert process.stdout.readline() == "42\n"
    finally:
        process.kill()
        process.wait()


def test_registering_nobody_is_an_error() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "import register, sys; sys.exit(register.main(['999999999']))"],
        cwd=GUEST, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("register: ") and ran.stderr.count("\n") == 1
