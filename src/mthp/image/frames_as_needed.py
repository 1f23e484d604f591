# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames looked up without NumPy, until so many are found to lie apart that loading it pays."""

from __future__ import annotations

from array import array

from mthp.image.capture.frames import Frames, Mirror, rows_among

MANY_ROWS = 250_000
"""So many rows of frames take longer to look up one by one than NumPy takes to load."""


class FramesAsNeeded(Frames):
    """As Frames; where many frames lie apart, from then on as FramesAtOnce."""

    _twin: Frames | None = None

    def ahead(self, words: list[bytearray]) -> Mirror | None:
        """As Frames.ahead()."""
        if self._twin is None:
            frames, rows = rows_among(words[0])
            if rows * sum(map(len, words)) // 8 >= MANY_ROWS * max(frames, 1):
                from mthp.image.frames_at_once import FramesAtOnce

                self._twin = FramesAtOnce(self.flags, self.counts, self.geometry, self.tells_huge)
        known: Mirror | None = (self._twin.ahead if self._twin else super().ahead)(words)
        return known

    def look_up(
        self, pfns: array[int], low: bytes, known: Mirror | None = None
    ) -> tuple[bytes, bytes, bytes]:
        """As Frames.look_up()."""
        return (self._twin.look_up if self._twin else super().look_up)(pfns, low, known)
