# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames looked up without NumPy, until so many are found to lie apart that loading it pays."""

from __future__ import annotations

from array import array
from typing import Any

from mthp.image.capture.frames import OTHER, Frames, runs_of
from mthp.image.capture.pagemap import PFN

MANY_ROWS = 160_000
"""So many rows of frames take longer to look up one by one than NumPy takes to load."""
_SAMPLE, _SOME = 1 << 14, 1 << 8
"""Bytes of pagemap that tell how frames lie, where so many frames are among them."""
_ROW = 16
"""Where so many frames and fewer lie in a row, NumPy may be worth loading."""


class FramesAsNeeded(Frames):
    """As Frames; where many frames lie apart, from then on as FramesAtOnce."""

    _twin: Frames | None = None

    def lie_apart(self, words: bytearray) -> bool:
        """As Frames.lie_apart()."""
        frames, rows = _rows_among(words)
        return frames >= _SOME and rows * _ROW > frames

    def ahead(self, words: list[bytearray]) -> Any:
        """As Frames.ahead()."""
        if self._twin is None:
            rows = sum(_rows_among(each)[1] * max(len(each) // _SAMPLE, 1) for each in words)
            if rows < MANY_ROWS:
                return None
            from mthp.image.frames_at_once import FramesAtOnce

            self._twin = FramesAtOnce(self.flags, self.counts, self.geometry, self.tells_huge)
        return self._twin.ahead(words)

    def look_up(
        self, pfns: array[int], low: bytes, known: Any = None
    ) -> tuple[bytes, bytes, bytes]:
        """As Frames.look_up()."""
        return (self._twin.look_up if self._twin else super().look_up)(pfns, low, known)


def _rows_among(words: bytearray) -> tuple[int, int]:
    """How many frames the first words of pagemap name, and in how many rows these lie."""
    named = array("Q", bytes(words[:_SAMPLE]))
    frames = array("Q", [word & PFN for word in named if word >> 63])
    return len(frames), runs_of(frames, b"\xff" * len(frames)).count(OTHER)
