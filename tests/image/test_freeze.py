# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes are stopped while they are read, run on however the capture ends, and are otherwise left
alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mthp.image.capture import freeze, run
from mthp.image.capture.command import main
from mthp.image.capture.proc import CaptureError
from mthp.image.snapshot import load
from mthp.image.zipped import write_zipapp
from tests.image.children import MIXED, PRELUDE, child

COUNTING = """
import threading
a = reserve(8 * TABLE)
write(a, 0, 2048)
def count(k):
    while True:
        ctypes.memset(a + k * PAGE, k & 0x7f, 1)
        k = (k + 1) % 2048
        time.sleep(0.0002)
for k in range(7):
    threading.Thread(target=count, args=(k,), daemon=True).start()
ready()
"""
"""A process of eight threads, of which seven write all the time."""


def states(pid: int) -> set[str]:
    """The states of all its threads, but of those that end while they are looked at."""
    found = set()
    for tid in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add(Path(f"/proc/{pid}/task/{tid}/stat").read_text().rpartition(") ")[2][0])
    return found


def wait_until(pid: int, wanted: str) -> None:
    """Until all threads are in one of these states; within 10 seconds."""
    end = time.monotonic() + 10
    while not (found := states(pid)) or not found <= set(wanted):
        assert time.monotonic() < end, found
        time.sleep(0.001)


def goes_on(pid: int) -> None:
    """Assert that it runs."""
    wait_until(pid, "RSD")


def snap(tmp_path: Path, *pids: int) -> int:
    chosen = [word for pid in pids for word in ("--pid", str(pid))]
    return main([*chosen, "-o", str(tmp_path / "x"), "--freeze", "--yes", "--quiet"])


def test_every_thread_stops_and_goes_on(tmp_path: Path) -> None:
    with child(COUNTING) as kid, child(COUNTING) as other:
        with freeze.frozen([kid.pid, other.pid]):
            assert states(kid.pid) == states(other.pid) == {"t"}
        goes_on(kid.pid)
        goes_on(other.pid)
        assert snap(tmp_path, kid.pid, other.pid) == 0
        snapshot = load(tmp_path / "x")
        assert snapshot.frozen and snapshot.tearing["pages_changed"] == 0
        goes_on(kid.pid)
        goes_on(other.pid)


def test_threads_that_start_others_all_the_time_stop_too() -> None:
    script = """
import threading
def start():
    while True:
        thread = threading.Thread(target=time.sleep, args=(0.001,))
        thread.start()
for k in range(2):
    threading.Thread(target=start, daemon=True).start()
ready()
"""
    with child(script) as kid:
        for _ in range(5):
            with freeze.frozen([kid.pid]):
                before = os.listdir(f"/proc/{kid.pid}/task")
                time.sleep(0.01)
                assert os.listdir(f"/proc/{kid.pid}/task") == before
                assert states(kid.pid) <= {"t", "Z", "X"}


def test_what_somebody_else_stops_stays_stopped(tmp_path: Path) -> None:
    """Before the capture, and meanwhile."""
    with child(COUNTING) as kid:
        os.kill(kid.pid, signal.SIGSTOP)
        wait_until(kid.pid, "T")
        assert snap(tmp_path, kid.pid) == 0
        wait_until(kid.pid, "T")
        os.kill(kid.pid, signal.SIGCONT)
        goes_on(kid.pid)
        with freeze.frozen([kid.pid]):
            os.kill(kid.pid, signal.SIGSTOP)
        wait_until(kid.pid, "T")
        with freeze.frozen([kid.pid]):
            os.kill(kid.pid, signal.SIGCONT)
            time.sleep(0.02)
            assert states(kid.pid) == {"t"}, "nobody else lets it go while it is read"
        goes_on(kid.pid)


def test_no_signal_is_lost_and_none_is_sent() -> None:
    """Handlers run for what others send, once each; neither SIGCONT nor SIGCHLD comes from us."""
    script = """
seen = []
for number in (signal.SIGCONT, signal.SIGUSR1, signal.SIGCHLD):
    signal.signal(number, lambda number, _: seen.append(number))
print("{}", flush=True)
while sum(number == signal.SIGUSR1 for number in seen) < 10:
    time.sleep(0.001)
print(*[int(n) for n in seen], flush=True)
"""
    command = [sys.executable, "-c", PRELUDE + script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as kid:
        assert kid.stdout is not None and kid.stdout.readline()
        for _ in range(10):
            with freeze.frozen([kid.pid]):
                os.kill(kid.pid, signal.SIGUSR1)
            time.sleep(0.02)
        assert kid.communicate(timeout=10)[0].split() == [str(int(signal.SIGUSR1))] * 10


def test_an_error_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        assert states(kid.pid) == {"t"}
        raise KeyboardInterrupt

    monkeypatch.setattr(run.ProcessReader, "read", fail)
    with child(COUNTING) as kid:
        assert snap(tmp_path, kid.pid) == 1
        goes_on(kid.pid)
    assert not os.listdir(tmp_path)


def test_a_process_that_dies_while_it_is_stopped(tmp_path: Path) -> None:
    with child(COUNTING) as kid:
        with freeze.frozen([kid.pid]):
            os.kill(kid.pid, signal.SIGKILL)
        wait_until(kid.pid, "Z")
        with freeze.frozen([kid.pid]):
            pass  # nothing to stop
        assert snap(tmp_path, kid.pid) == 2


def test_this_process_is_not_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert snap(tmp_path, os.getpid()) == 2
    assert f"process {os.getpid()} is this one" in capfd.readouterr().err
    assert not os.listdir(tmp_path)


def test_no_process_above_this_one_is_stopped(tmp_path: Path) -> None:
    below = [sys.executable, "-m", "mthp", "snap", "--pid", str(os.getpid()), "--freeze", "--yes"]
    ran = subprocess.run([*below, "-o", tmp_path / "a.npz"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert f"process {os.getpid()} is this one, or one that it runs below" in ran.stderr
    assert not os.listdir(tmp_path)


def test_what_a_debugger_holds_is_refused() -> None:
    with child(MIXED) as kid, freeze.frozen([kid.pid]):
        with pytest.raises(CaptureError, match="a debugger holds it"), freeze.frozen([kid.pid]):
            pass
        assert states(kid.pid) == {"t"}


ENDINGS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT]
ENDINGS += [signal.SIGABRT, signal.SIGPIPE, signal.SIGSEGV, signal.SIGALRM, signal.SIGUSR1]


@contextlib.contextmanager
def snapping(program: Path, tmp_path: Path, pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """The capture, as on a host: one file, and slow enough to be met in the middle."""
    command = [sys.executable, str(program), "--pid", str(pid), "--freeze", "--yes", "--quiet"]
    command += ["--reader", "pagemap", "-o", str(tmp_path / "x.npz")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as capture:
        yield capture


def killed_at_random(tmp_path: Path, endings: list[signal.Signals], draw: random.Random) -> None:
    """Whatever ends the capture, whenever: the process runs on, an older file is whole, and nothing
    is left that the next capture does not clear."""
    program, folder = tmp_path / "mthp-snap.pyz", tmp_path / "out"
    write_zipapp(program)
    folder.mkdir()
    with child(COUNTING) as kid:
        assert snap(folder, kid.pid) == 0
        (folder / "x").rename(folder / "x.npz")
        for ending in endings:
            with snapping(program, folder, kid.pid) as capture:
                end = time.monotonic() + 20
                while states(kid.pid) != {"t"} and capture.poll() is None:
                    assert time.monotonic() < end
                time.sleep(draw.random() * 0.06)
                with suppress(ProcessLookupError):  # it is done already
                    os.killpg(capture.pid, ending)  # its group: no process of ours would be left
            goes_on(kid.pid)
            load(folder / "x.npz")
        with snapping(program, folder, kid.pid) as capture:
            assert capture.wait(60) == 0
        assert os.listdir(folder) == ["x.npz"]
        goes_on(kid.pid)


def test_a_capture_is_not_suspended_while_others_wait(tmp_path: Path) -> None:
    """Ctrl-Z would stop the capture alone, and what it reads would stay stopped."""
    handler = signal.getsignal(signal.SIGTSTP)
    with child(COUNTING) as kid:
        with freeze.frozen([kid.pid]):
            os.kill(os.getpid(), signal.SIGTSTP)
        goes_on(kid.pid)
    assert signal.getsignal(signal.SIGTSTP) is handler


def test_the_kernel_lets_go_however_the_capture_ends(tmp_path: Path) -> None:
    killed_at_random(tmp_path, ENDINGS[:2], random.Random(1))


@pytest.mark.slow
def test_the_kernel_lets_go_at_any_moment(tmp_path: Path) -> None:
    killed_at_random(tmp_path, ENDINGS * 20, random.Random(2))


def test_a_thread_of_the_caller_that_ends_lets_go() -> None:
    """A program that captures from a thread of its own, which is lost."""

    def hold() -> None:
        freeze._stop([kid.pid])

    with child(COUNTING) as kid:
        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()
        goes_on(kid.pid)
