# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of the kernel's ring buffers, taken apart into records with their times.

A page begins with a time and with how much of it is used; each record with how many words it has and how
much later it is. Kernel: kernel/trace/ring_buffer.c, include/linux/ring_buffer.h.
"""

from __future__ import annotations

import struct
from typing import IO, Iterator, Tuple

from mthp.image.capture.proc import CaptureError
from mthp.image.record.formats import PageLayout

PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31
_MISSED_EVENTS, _MISSED_STORED = 1 << 31, 1 << 30
_USED = (1 << 20) - 1
_WORD = struct.Struct("<I")
_TIME = struct.Struct("<Q")
_KEPT_TIME_BITS = 0xF8 << 56
"""Bits of a time that an absolute time in the buffer lacks. Kernel: TS_MSB."""

Record = Tuple[int, bytes, int, int]
"""When; the page it lies in; where in it; and how many bytes it has."""


class RingPages:
    """The records of one CPU, in order. missed: events that the kernel says were lost between pages."""

    def __init__(self, file: IO[bytes], layout: PageLayout) -> None:
        self._file, self._layout = file, layout
        self.missed = 0

    def records(self) -> Iterator[Record]:
        """Yield every record. CaptureError: a page is damaged."""
        self._file.seek(0)
        size = self._layout.size
        while True:
            page = self._file.read(size)
            if len(page) < size:
                return
            yield from self._of_page(page)

    def _of_page(self, page: bytes) -> Iterator[Record]:
        commit = int.from_bytes(
            page[self._layout.commit.offset :][: self._layout.commit.size], "little"
        )
        at = self._layout.data
        end = at + (commit & _USED)
        if end > len(page):
            raise CaptureError("a page of the trace says that more is in it than it can hold")
        if commit & _MISSED_EVENTS:
            stored = commit & _MISSED_STORED and end + 8 <= len(page)
            self.missed += _TIME.unpack_from(page, end)[0] if stored else 1
        now: int = _TIME.unpack_from(page, 0)[0]
        word, unpack = 0, _WORD.unpack_from
        while at < end:
            word = unpack(page, at)[0]
            kind, later = word & 31, word >> 5
            if 0 < kind < PADDING:
                now += later
                yield now, page, at + 4, kind << 2
                at += 4 + (kind << 2)
            elif kind == 0:
                now += later
                size = unpack(page, at + 4)[0]
                if size < 4 or at + 4 + size > end:
                    raise CaptureError("a record of the trace is longer than its page")
                yield now, page, at + 8, size - 4
                at += 4 + (size + 3 & ~3)
            elif kind == PADDING:
                if not later:
                    return
                at += 4 + unpack(page, at + 4)[0]
            else:
                whole = (unpack(page, at + 4)[0] << 27) + later
                now = now + whole if kind == TIME_EXTEND else whole | now & _KEPT_TIME_BITS
                at += 8
