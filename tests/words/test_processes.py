# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers end with the process that started them, however it ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest

from mthp.words.processes import WorkerKilled, workers

MAIN = """
import os, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have it ignored
from mthp.words.processes import end_with_parent, workers
import subprocess
with workers(3) as pool:
    pids = {pool.submit(os.getpid).result() for _ in range(200)}
    running = [pool.submit(time.sleep, 100) for _ in range(3)]
    other = subprocess.Popen(["sleep", "100"], preexec_fn=end_with_parent())
    print(other.pid, *(child.pid for child in __import__("multiprocessing").active_children()))
    sys.stdout.flush()
    time.sleep(100)
"""


def runs(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def all_end(pids: list[int]) -> bool:
    end = time.monotonic() + 10
    while any(map(runs, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(map(runs, pids))


MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("INT", "QUIT", "ABRT", "SEGV")]


@pytest.mark.parametrize("ending", ["KILL", "TERM", "HUP", *MORE])
def test_nothing_outlives_the_main_process(ending: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAIN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as main:
        assert main.stdout is not None
        pids = [int(word) for word in main.stdout.readline().split()]
        assert len(pids) == 4 and all(map(runs, pids))
        time.sleep(random.random() / 50)
        os.kill(main.pid, getattr(signal, f"SIG{ending}"))
        main.wait(10)
        assert all_end(pids)


def test_a_worker_that_is_killed_is_said() -> None:
    with pytest.raises(WorkerKilled, match="one of the processes was killed"), workers(2) as pool:
        pool.submit(signal.raise_signal, signal.SIGKILL).result()
    assert not active_children()


def test_a_worker_that_is_killed_at_rest_is_not_waited_for() -> None:
    with workers(2) as pool:
        pid = pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        while runs(pid):
            time.sleep(0.001)
    assert not active_children()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_block_that_fails_does_not_wait(error: Callable[[], BaseException]) -> None:
    began = time.monotonic()
    with pytest.raises(error), workers(2) as pool:  # type: ignore[call-overload]
        pool.submit(time.sleep, 30)
        time.sleep(0.1)
        raise error()
    assert time.monotonic() - began < 5
    assert not active_children()


def test_each_begins_with_what_it_is_given() -> None:
    with workers(1, os.putenv, "MTHP_TEST", "x") as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
        assert pool.submit(os.getppid).result() == os.getpid()
