# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import signal
import threading

from mthp.machine.clock import ticking


def test_the_outer_block_is_called_again_after_the_inner_one() -> None:
    called: list[str] = []
    with ticking(lambda: called.append("outer")):
        with ticking(lambda: called.append("inner")):
            signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGVTALRM)
    assert [each for at, each in enumerate(called) if each not in called[:at]] == ["inner", "outer"]
    assert (
        signal.getitimer(signal.ITIMER_REAL)[1] == signal.getitimer(signal.ITIMER_VIRTUAL)[1] == 0
    )


def test_another_thread_is_not_interrupted() -> None:
    before = signal.getsignal(signal.SIGALRM)
    done: list[bool] = []

    def other() -> None:
        with ticking(lambda: None):
            done.append(signal.getsignal(signal.SIGALRM) is before)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert done == [True]
