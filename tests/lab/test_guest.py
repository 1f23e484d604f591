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

from mthp.image.zipped import sources_of
from mthp.lab import guest

GUEST = Path(next(iter(guest.__path__)))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Path]:
    """A folder that the helper serves."""
    scripts = tmp_path / "lab"
    scripts.mkdir()
    for name in ("helper.py", "register.py"):
        (scripts / name).write_bytes((GUEST / name).read_bytes())
    for name, text in sources_of().items():
        (scripts / name).parent.mkdir(parents=True, exist_ok=True)
        (scripts / name).write_bytes(text)
    folder = tmp_path / "jobs"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-S", scripts / "helper.py", folder])
    yield folder
    process.kill()
    process.wait()


def done(jobs: Path, number: int, **job: object) -> tuple[str, str]:
    """What a job's .done says, and its output."""
    (jobs / f"{number}.json").write_text(json.dumps(job))
    (jobs / f"{number}.go").touch()
    file = jobs / f"{number}.done"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if file.exists() and (word := file.read_text()):
            return word, (jobs / f"{number}.out").read_text()
        time.sleep(0.02)
    raise AssertionError("the helper does not answer")


def program(code: str, **more: object) -> dict[str, object]:
    """A job that runs Python code."""
    argv = [sys.executable, "-c", code]
    return {"argv": argv, "user": [0, 0], "folder": "/tmp", "path": "/x:/y", **more}


def test_the_helper_does_jobs_one_after_the_other(jobs: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['PATH']); raise SystemExit(3)"
    assert done(jobs, 1, **program(code)) == ("done 3", "/tmp /x:/y\n")
    lost = {**program(""), "argv": ["/nowhere"]}
    assert done(jobs, 2, **lost) == ("done 127", "/nowhere: No such file or directory\n")
    lost = program("", folder="/nowhere")
    assert done(jobs, 3, **lost) == ("done 127", f"{sys.executable}: No such file or directory\n")
    (jobs / "data").write_bytes(b"abcdefg")
    assert done(jobs, 4, call="split", args=[str(jobs / "data"), "3"]) == ("done 0", "3\n")
    assert [(jobs / f"data.{k}").read_bytes() for k in range(3)] == [b"abc", b"def", b"g"]


def test_the_helper_captures(jobs: Path) -> None:
    out = jobs / "snap.npz"
    args = ["--pid", str(os.getpid()), "-o", str(out)]
    word, said = done(jobs, 1, call="mthp.image.capture.command", args=args)
    assert word == "done 0", said
    assert out.stat().st_size > 1000


def test_what_runs_in_the_background_is_not_waited_for(jobs: Path) -> None:
    """Its output is there at once, it runs when that is said, and its end is told."""
    job = program("import time; time.sleep(600)", background=True)
    word, pid = done(jobs, 1, **job)[0].split()
    assert word == "started"
    assert Path(f"/proc/{pid}/exe").samefile(sys.executable), "executed by then"
    assert done(jobs, 2, **program("print(2)")) == ("done 0", "2\n")
    os.kill(int(pid), signal.SIGKILL)
    end = time.monotonic() + 20
    while (told := (jobs / "1.done").read_text()) != "ended -9":
        assert told == f"started {pid}" and time.monotonic() < end, "whole at any moment"


def test_of_a_long_output_the_end_is_kept(jobs: Path) -> None:
    code = "for n in range(40):\n print(str(n) * 300000, flush=True)\ntime.sleep(1); print('end')"
    assert done(jobs, 1, **program(f"import time\n{code}"))[0] == "done 0"
    out = (jobs / "1.out").read_bytes()
    assert len(out) < 8 << 20 and out.endswith(b"939\nend\n")


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
