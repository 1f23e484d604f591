# SPDX-License-Identifier: GPL-2.0-or-later
"""Something is called now and then, in the middle of whatever runs, whether it computes or sleeps.

Python looks at signals in the main thread alone: elsewhere nothing is called.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

_COMPUTING: Final = 0.125
_ASLEEP: Final = 0.5
"""Seconds of CPU time, and by the clock, between two calls."""
_TIMERS: Final = (
    (signal.SIGVTALRM, signal.ITIMER_VIRTUAL, _COMPUTING),
    (signal.SIGALRM, signal.ITIMER_REAL, _ASLEEP),
)


class _Clock:
    """tick: what is called. others: how the signals were handled before."""

    tick: Callable[[], None] | None = None
    others: dict[int, Any] = {}  # noqa: RUF012 (there is one clock)


def _on_signal(number: int, frame: Any) -> None:
    if _Clock.tick is not None:
        _Clock.tick()
    elif callable(other := _Clock.others.get(number)):
        other(number, frame)


@contextmanager
def ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Until the end of the block. The signals are never given back: one may still be on its way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number, _, _ in _TIMERS:
        if signal.getsignal(number) is not _on_signal:
            _Clock.others[number] = signal.signal(number, _on_signal)
    outer, _Clock.tick = _Clock.tick, tick
    before = [signal.setitimer(timer, seconds, seconds) for _, timer, seconds in _TIMERS]
    try:
        yield
    finally:
        _Clock.tick = outer
        for (_, timer, _), (left, interval) in zip(_TIMERS, before, strict=True):
            signal.setitimer(timer, left, interval)
