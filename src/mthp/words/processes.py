# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that end with the one that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

PR_SET_PDEATHSIG = 1


class WorkerKilled(Exception):
    """One of the processes was killed, probably for want of memory."""

    def __str__(self) -> str:
        return "one of the processes was killed (out of memory?)"


def end_with_parent() -> Callable[[], None]:
    """What a process started from here is to call first: it is killed then when we end.

    Kernel: the signal comes when the thread that started it ends. kernel/exit.c
    """
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


@contextmanager
def workers(
    count: int, begin: Callable[..., object] = lambda: None, *args: Any
) -> Iterator[ProcessPoolExecutor]:
    """Forked processes that do what is submitted. begin: called in each of them first, with args.

    What was changed in the engine holds in them too. Where the block fails they are killed.
    WorkerKilled: one of them was.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(
        count, get_context("fork"), _begin, (end_with_parent(), begin, *args)
    )
    # The pool forgets them once it is broken, and may wait for ever for one that is left.
    processes = pool._processes
    failed = True
    try:
        yield pool
        failed = False
    except BrokenProcessPool:
        raise WorkerKilled from None
    finally:
        children = list(processes.values())
        if failed or not all(each.is_alive() for each in children):
            for each in children:
                each.kill()
        pool.shutdown(cancel_futures=True)


def _begin(bind: Callable[[], None], begin: Callable[..., object], *args: Any) -> None:
    """Each ends with its parent; only the parent hears what the terminal or the user sends."""
    bind()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    begin(*args)
