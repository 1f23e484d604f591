# SPDX-License-Identifier: GPL-2.0-or-later
"""The line on stderr that says how far a run is, and what Ctrl-C does to the run."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mthp.words.files import LINE_LENGTH
from mthp.words.streams import say


class ProgressLine:
    """One line on stderr, if that is a terminal and --quiet was not given."""

    def __init__(self, *, quiet: bool) -> None:
        self.is_shown = not quiet and sys.stderr.isatty()
        self.interrupted = False

    def say(self, text: str) -> None:
        """Replace the line."""
        if self.is_shown:
            width = min(shutil.get_terminal_size((80, 24)).columns - 1, LINE_LENGTH)
            end = "" if text else "\r"
            say(f"{text[:width]:{width}}", begin="\r", end=end)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Until the end of the block the first Ctrl-C is only noted, and a second kills.

        The run looks at `interrupted` and stops where it is; at the end the line is removed.
        """

        def on_signal(_: int, __: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        old = signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old)
            self.say("")
