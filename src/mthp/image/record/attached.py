# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that runs already, recorded from now on: what it has is captured once the trace is on.

So what it does meanwhile is in both, and comes to the same: a page that is there already is touched again,
what is unmapped is not there.
"""

from __future__ import annotations

import os
import time
from array import array
from typing import Any

from mthp.image.capture.columns import Columns
from mthp.image.capture.command import captured
from mthp.image.capture.pagemap import FILE, HUGE, PRESENT, ZERO
from mthp.image.capture.proc import FAILED, USAGE, CaptureError, read_status, state, text
from mthp.image.capture.run import CaptureOptions

NO_FOLIO = 0
ZERO_PAGE = 0x80
"""Bit of start_order: the zero page."""


class Attached:
    """A process. span: seconds after which it is enough; None for no end.

    vmas: its first mappings. page, order, folio: each anonymous page that it had, the order of its folio,
    and the folio's number where it is large. has_frames: whether this host shows folios below PMD size.
    """

    def __init__(self, pid: int, span: float | None) -> None:
        read_status(pid)
        if pid == os.getpid():
            raise CaptureError("cannot record itself", USAGE)
        self.pid = pid
        self.vmas: list[dict[str, Any]] | None = None
        self.arguments = None
        self.page = array("Q")
        self.order = bytearray()
        self.folio = array("Q")
        self.began = 0
        self.known: list[int] = []
        self.huge_pages_off = False
        self.has_frames = False
        self._until = None if span is None else time.monotonic() + span
        self._told = False

    def tasks(self) -> list[int]:
        """Its threads; the recording begins with asking for them."""
        self.began = time.monotonic_ns()
        try:
            self.known = sorted(int(each) for each in os.listdir(f"/proc/{self.pid}/task"))
            return self.known
        except OSError:
            raise CaptureError(f"process {self.pid} ended before it was recorded", FAILED) from None

    def begin(self) -> None:
        """Capture what it has. CaptureError: it cannot be read."""
        with captured([self.pid], CaptureOptions(exclusive=False, level=0)) as (meta, columns):
            (process,) = meta["processes"]
            names = ("start", "end", "perms", "offset", "inode", "path", "flags")
            self.vmas = [{name: vma[name] for name in names} for vma in process["vmas"]]
            self.huge_pages_off = bool(process["thp_disable"])
            self._take(columns)

    def _take(self, columns: Columns) -> None:
        ptrs, shift = columns.geometry.ptrs_per_pte, columns.geometry.page_shift
        self.has_frames = has_frames = "folio_order" in columns.files
        for row, address in enumerate(columns.address):
            bits = array("H", columns.row("pte", row))
            orders = columns.row("folio_order", row) if has_frames else bytes(ptrs)
            frames = (
                array("Q", columns.row("pfn", row)) if has_frames else array("Q", bytes(8 * ptrs))
            )
            for index, bit in enumerate(bits):
                if bit & PRESENT and not bit & FILE:
                    order, frame = orders[index], frames[index]
                    if (
                        bit & HUGE and not has_frames
                    ):  # that much pagemap says of frames that it hides
                        order, frame = columns.geometry.pmd_order, address >> shift
                    self.page.append((address >> shift) + index)
                    self.order.append(ZERO_PAGE if bit & ZERO else order)
                    self.folio.append(frame >> order if order else NO_FOLIO)

    def ended(self) -> bool:
        """Whether it has, or it is enough."""
        over = self._until is not None and time.monotonic() >= self._until
        return over or self._told or state(self.pid) in "ZX?"

    def tell(self, _: int) -> None:
        """Hear a signal that would end us: it is enough."""
        self._told = True

    def command(self) -> list[str]:
        """The words of its command, as far as they can be read."""
        words = (text(f"/proc/{self.pid}/cmdline") or "").rstrip("\0").split("\0")
        return [word for word in words if word] or [text(f"/proc/{self.pid}/comm") or "?"]
