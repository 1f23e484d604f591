# SPDX-License-Identifier: GPL-2.0-or-later
"""One capture: what it can see, the columns it fills, and what it cannot see."""

from __future__ import annotations

import os
import secrets
import sys
import time
from array import array
from typing import Any, NamedTuple

from mthp.image.capture.columns import Columns
from mthp.image.capture.frames import KPF_THP, KPF_ZERO_PAGE, Frames
from mthp.image.capture.host import host_facts, host_geometry
from mthp.image.capture.pagemap import (
    EVEN,
    HUGE,
    LOW_7_BITS,
    NOT_SWAPPED,
    PRESENT,
    ZERO,
    Batch,
    as_zero,
    byte_of_word,
)
from mthp.image.capture.proc import LACKING, CaptureError, open_or_none, open_pagemap
from mthp.image.capture.scan import Scanner
from mthp.image.capture.tables import TableReader

SCHEMA = "mthp-snapshot/1"
TOOL = "mthp-snap 1"
AGAIN_TABLES = 512
"""At most this many tables of a process are read a second time to measure tearing."""
NEVER = "never visible: "


class CaptureOptions(NamedTuple):
    """How processes are captured.

    redact: without names, and with other addresses. exclusive: with the bit of pages that one
    process alone maps. reader: scan, pagemap or auto. freeze: stopped meanwhile. may_end: one that
    ends is left out, unless it is the last.
    """

    redact: bool = False
    exclusive: bool = True
    reader: str = "auto"
    freeze: bool = False
    may_end: bool = False


class CaptureRun:
    """What one run can see, the columns it fills, and the sentences on what it cannot see.

    folder: for temporary files, None for the usual one.
    """

    def __init__(self, options: CaptureOptions, folder: str | None) -> None:
        self.options = options
        self.geometry = host_geometry()
        self.unseen: list[str] = []
        self._own = open_pagemap(os.getpid())
        self.frame_shift = 0
        self.frames: Frames | None = None
        self.privilege = self._privilege()
        if options.redact:
            self.frame_shift = (1 + secrets.randbelow(1 << 30)) * self.geometry.ptrs_per_pte
        members = ["pte"]
        if self.privilege["pfn"]:
            members.append("pfn")
        if self.frames is not None:
            members += ["kpageflags", "kpagecount", "folio_order"]
        self.columns = Columns(self.geometry, folder, members)
        self._say_what_is_unseen()

    def close(self) -> None:
        """Close what is open."""
        os.close(self._own)
        if self.frames is not None:
            self.frames.close()
        self.columns.close()

    def _privilege(self) -> dict[str, bool]:
        scanner = Scanner(self._own)
        scan = self.options.reader != "pagemap" and scanner.works()
        if self.options.reader == "scan" and not scan:
            raise CaptureError("this kernel has no PAGEMAP_SCAN (Linux 6.7)", LACKING)
        exclusive = self.options.exclusive or not scan
        anchor = array("Q", [1] * 16)
        word = os.pread(self._own, 8, anchor.buffer_info()[0] // self.geometry.page_size * 8)
        pfn = exclusive and array("Q", word)[0] & ((1 << 55) - 1) != 0
        flags = open_or_none("/proc/kpageflags") if pfn else None
        if flags is not None:
            self.frames = Frames(flags, open_or_none("/proc/kpagecount"), self.geometry)
        return {
            "root": os.geteuid() == 0,
            "pfn": pfn,
            "kpageflags": flags is not None,
            "pagemap_scan": scan,
            "exclusive": self.options.exclusive,
        }

    def not_seen(self, sentence: str) -> None:
        """Remember, once, a sentence on what could not be seen."""
        if sentence not in self.unseen:
            self.unseen.append(sentence)

    def _say_what_is_unseen(self) -> None:
        if self.frames is None:
            why = "" if self.privilege["exclusive"] else " or without the exclusive bit"
            self.not_seen(
                f"not root{why}: folio orders, folio flags (locked, referenced, on the LRU)"
            )
            self.not_seen("not root: how many processes share a page")
        if not self.privilege["exclusive"]:
            self.not_seen("--no-exclusive: which pages are mapped by this process alone")
        if not self.privilege["pagemap_scan"] and self.frames is None:
            self.not_seen("no PAGEMAP_SCAN: zero pages look like shared pages")
        for always in (
            "pins (GUP) and other extra references",
            "young and dirty bits of the PTEs",
            "folios waiting in per-CPU LRU batches",
            "locks held for a moment",
            "which VMAs already have an anon_vma although nothing was written",
        ):
            self.not_seen(NEVER + always)

    def table_reader(self, pid: int, pagemap: int) -> TableReader:
        """The reader of one process, by PAGEMAP_SCAN where it works."""
        scanner = None
        if self.privilege["pagemap_scan"]:
            scanner = Scanner(pagemap)
            scanner.works()
        exclusive = self.privilege["exclusive"]
        return TableReader(pid, pagemap, self.geometry, scanner, exclusive)

    def parts(
        self, batch: Batch, scanner: Scanner | None, physical: bool = True
    ) -> dict[str, bytes]:
        """A batch as the bytes of each member; clears the flags in batch.words on the way."""
        parts: dict[str, bytes] = {}
        if "pfn" in self.columns.files and batch.words is not None:
            words = batch.words
            words[byte_of_word(7) :: 8] = bytes(len(batch.low))
            if not words[byte_of_word(6) :: 8].isascii():
                words[byte_of_word(6) :: 8] = words[byte_of_word(6) :: 8].translate(LOW_7_BITS)
            pfns = array("Q", bytes(words))
            here = pfns
            if batch.low.translate(None, NOT_SWAPPED):
                here = array("Q", (p * (f & PRESENT) for p, f in zip(pfns, batch.low)))
            if physical and self.frames is not None:
                self._add_physical(parts, here, batch, scanner)
            if self.frame_shift:
                here = array("Q", (p + self.frame_shift if p else 0 for p in here))
                pfns = here
            parts["pfn"] = pfns.tobytes()
        flags = bytearray(2 * len(batch.low))
        first, second = (0, 1) if sys.byteorder == "little" else (1, 0)
        flags[first::2] = batch.low
        if batch.high is not None:
            flags[second::2] = batch.high
        parts["pte"] = bytes(flags)
        return parts

    def _add_physical(
        self, parts: dict[str, bytes], pfns: array[int], batch: Batch, scanner: Scanner | None
    ) -> None:
        assert self.frames is not None
        flags, counts, orders = self.frames.look_up(pfns)
        if scanner is None and flags[byte_of_word(3) :: 8].translate(None, EVEN):
            for k, flag in enumerate(memoryview(flags).cast("Q")):
                if flag & KPF_ZERO_PAGE:
                    batch.low[k] = as_zero(batch.low[k], ZERO | (HUGE if flag & KPF_THP else 0))
        parts["kpageflags"], parts["kpagecount"], parts["folio_order"] = flags, counts, orders

    def meta(self, processes: list[dict[str, Any]]) -> dict[str, Any]:
        """The document that describes the whole capture."""
        names = ("vmas_changed", "tables_changed", "pages_changed", "tables_read_again", "tables")
        tearing: dict[str, Any] = {
            name: sum(process["tearing"][name] for process in processes) for name in names
        }
        tearing["how"] = (
            f"after a process was read, its VMA list was read again, and so were all its tables, "
            f"or {AGAIN_TABLES} of them evenly spaced if it has more; tables empty the first time "
            "were not looked at again"
        )
        return {
            "schema": SCHEMA,
            "tool": TOOL,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **host_facts(),
            "page_size": self.geometry.page_size,
            "pmd_size": self.geometry.pmd_size,
            "privilege": self.privilege,
            "unseen": self.unseen,
            "tearing": tearing,
            "frozen": self.options.freeze,
            "redacted": self.options.redact,
            "processes": processes,
        }
