# SPDX-License-Identifier: GPL-2.0-or-later
"""One capture: what it can see, what it reads of each process, and what it cannot see."""

from __future__ import annotations

import bisect
import glob
import os
import re
import sys
import time
from array import array
from collections import Counter
from random import SystemRandom
from typing import Any, NamedTuple

from mthp.image.capture.columns import DEEP_WIDTH, NEVER, SCHEMA, WIDTH, ZERO_FILLED, Columns
from mthp.image.capture.deep import DeepReader
from mthp.image.capture.frames import BROKEN, KPF_THP, KPF_ZERO_PAGE, Frames, open_frames
from mthp.image.capture.host import THP, host_facts, host_geometry, memcg_of, other_processes
from mthp.image.capture.kernel import LiveKernel
from mthp.image.capture.pagemap import (
    BATCH_BYTES,
    EVEN,
    HUGE,
    LOW_7_BITS,
    PFN,
    PRESENT,
    SWAP_ENTRIES,
    ZERO,
    ZERO_PAGES,
    Batch,
    Scanner,
    as_zero,
    byte_of_word,
    without,
)
from mthp.image.capture.pages import Pages
from mthp.image.capture.pins import held_memory
from mthp.image.capture.proc import (
    CAP_SYS_ADMIN,
    LACKING,
    CaptureError,
    SmapsEntry,
    forked,
    has_capability,
    hides_processes,
    identities,
    open_pagemap,
    read_vmas,
    shows_nothing,
    started,
    text,
)
from mthp.image.capture.resident import mapping_kind, rollup, shmem_devices
from mthp.image.capture.tables import TableReader
from mthp.words.files import naming
from mthp.words.units import Geometry

TOOL = "mthp-snap 1"
MOST_READINGS = 8
"""So often a table that changes is read again, before it is marked as torn."""
SECONDS_AGAIN = 1.0
"""So long a process's tables may be read again, beyond as long as reading them took."""
TEARING = ("vmas_changed", "tables", "tables_changed", "pages_changed", "tables_torn")
"""What is counted of each process, and in all."""
LOCKS = "locks held for a moment"
HIDDEN = (
    "pins (GUP) and other extra references",
    "young and dirty bits of the PTEs",
    "folios waiting in per-CPU LRU batches",
    "which VMAs already have an anon_vma although nothing was written",
)
"""What only a deep capture sees."""
NO_MM_IDS = "which mms map a large folio: this kernel keeps no mm ids"


class CaptureOptions(NamedTuple):
    """How processes are captured.

    redact: names are left out and addresses moved. exclusive: the bit of pages that one process
    alone maps is read. reader: scan, pagemap or auto. freeze: the processes are stopped meanwhile.
    hidden: so many more were meant, which have no number in our PID namespace. frames: what looks them up.
    deep: the kernel's own memory is read, too; pages: what looks struct pages up. zeros: it is looked which
    pages hold nothing but zeros.
    """

    redact: bool = False
    exclusive: bool = True
    reader: str = "auto"
    freeze: bool = False
    hidden: int = 0
    frames: type[Frames] = Frames
    deep: bool = False
    zeros: bool = False
    pages: type[Pages] = Pages
    level: int = 1


class SnapshotRun:
    """What becomes of tables that were read: the columns of a file, and its document, with the sentences on
    what could not be seen.

    geometry: of the machine that they are of.
    """

    columns: Columns
    privilege: dict[str, bool]

    def __init__(self, options: CaptureOptions, geometry: Geometry) -> None:
        self.options = options
        self.geometry = geometry
        self.unseen: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.frame_shift = 0
        self.frames: Frames | None = None
        self.deep: DeepReader | None = None
        if options.redact:
            self.frame_shift = (1 + SystemRandom().randrange(1 << 30)) * self.geometry.ptrs_per_pte

    def members(self) -> list[str]:
        """The members that the file will have, by what can be seen."""
        members = ["pte"]
        if self.privilege["pfn"]:
            members.append("pfn")
        if self.frames is not None:
            members += ["kpageflags", "folio_order"]
            if self.frames.counts is not None:
                members.append("kpagecount")
        if self.privilege["deep"]:
            members += DEEP_WIDTH
            if self.options.zeros:
                members.append(ZERO_FILLED)
        return members

    def not_seen(self, sentence: str) -> None:
        """Remember a sentence, once, on what could not be seen."""
        if sentence not in self.unseen:
            self.unseen.append(sentence)

    def parts(self, batch: Batch, scanner: Scanner | None) -> dict[str, bytes]:
        """Turn a batch into the bytes of each member; clears the flags in batch.words on the
        way, and finds what does not fit."""
        parts: dict[str, bytes] = {}
        if "pfn" in self.columns.files and batch.words is not None:
            words = batch.words
            words[byte_of_word(7) :: 8] = bytes(len(batch.low))
            if not words[byte_of_word(6) :: 8].isascii():
                words[byte_of_word(6) :: 8] = words[byte_of_word(6) :: 8].translate(LOW_7_BITS)
            pfns = array("Q", bytes(words))
            if self.frames is not None:
                self._add_physical(parts, pfns, batch, scanner)
            if self.frame_shift:
                here = without(SWAP_ENTRIES, pfns, batch.low)
                pfns = array("Q", (p + self.frame_shift if p else 0 for p in here))
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
        with naming("/proc/kpageflags or kpagecount"):
            found = self.frames.look_up(pfns, bytes(batch.low), batch.known)
        flags, counts, orders = found
        if scanner is None and flags[byte_of_word(3) :: 8].translate(None, EVEN):
            for k, flag in enumerate(memoryview(flags).cast("Q")):
                if flag & KPF_ZERO_PAGE:
                    batch.low[k] = as_zero(batch.low[k], ZERO | (HUGE if flag & KPF_THP else 0))
        batch.misfits = self.frames.misfits(batch.low, *found)
        if batch.misfits:
            orders = orders.replace(bytes((BROKEN,)), b"\0")
        parts["kpageflags"], parts["folio_order"] = flags, orders
        if self.deep is not None:
            present = without(SWAP_ENTRIES, pfns, batch.low)
            with naming("/proc/kcore"):
                self.deep.add(parts, batch, present, orders)
                if self.options.zeros:
                    zeros = without(ZERO_PAGES, present, batch.low)
                    parts[ZERO_FILLED] = self.deep.zero_filled(zeros)
        if self.frames.counts is not None:
            parts["kpagecount"] = counts

    def document(
        self,
        processes: list[dict[str, Any]],
        host: dict[str, Any],
        how: str,
        others: dict[str, int],
    ) -> dict[str, Any]:
        """The document that describes the whole capture. host: what is told of it; how: in which way it was
        seen to that tables are whole; others: what the processes that are not captured have."""
        tearing: dict[str, Any] = {
            name: sum(process["tearing"][name] for process in processes) for name in TEARING
        }
        tearing["how"] = how
        return {
            "schema": SCHEMA,
            "tool": TOOL,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **host,
            "page_size": self.geometry.page_size,
            "pmd_size": self.geometry.pmd_size,
            "privilege": self.privilege,
            "unseen": self.unseen,
            "tearing": tearing,
            "frozen": self.options.freeze,
            "redacted": self.options.redact,
            "left_out": dict(self.left_out),
            **({} if self.deep is None else {"deep": self.deep.meta()}),
            "others": others,
            "processes": processes,
        }


class CaptureRun(SnapshotRun):
    """A run over live processes. folder: for temporary files, None for the usual one."""

    def __init__(self, options: CaptureOptions, folder: str | None) -> None:
        super().__init__(options, host_geometry())
        self._own = os.open("/proc/self/pagemap", os.O_RDONLY)
        self.privilege = self._privilege()
        if options.deep:
            if self.frames is None:
                raise CaptureError(f"--deep: {self._why_no_frames()}", LACKING)
            with naming("/proc/kcore"):
                kernel = LiveKernel()
            pages = options.pages(kernel, self.geometry.ptrs_per_pte)
            self.deep = DeepReader(kernel, pages, self.geometry)
        self.columns = Columns(self.geometry, folder, self.members(), options.level)
        self._say_what_is_unseen()

    def close(self) -> None:
        """Close the files that are open."""
        os.close(self._own)
        if self.frames is not None:
            self.frames.close()
        if self.deep is not None:
            self.deep.kernel.close()
        self.columns.close()

    def _privilege(self) -> dict[str, bool]:
        scanner = Scanner(self._own)
        scan = self.options.reader != "pagemap" and scanner.works()
        if self.options.reader == "scan" and not scan:
            raise CaptureError("this kernel has no PAGEMAP_SCAN (Linux 6.7)", LACKING)
        exclusive = self.options.exclusive or not scan
        anchor = array("Q", [1] * 16)
        with naming("/proc/self/pagemap"):
            word = os.pread(self._own, 8, anchor.buffer_info()[0] // self.geometry.page_size * 8)
        if len(word) < 8:
            raise CaptureError("/proc/self/pagemap is masked: nothing can be read from it", LACKING)
        pfn = array("Q", word)[0] & PFN if exclusive else 0
        flags = open_frames("/proc/kpageflags", pfn)
        if flags is not None:
            counts = open_frames("/proc/kpagecount", pfn)
            self.frames = self.options.frames(flags, counts, self.geometry, tells_huge=scan)
        return {
            "root": os.geteuid() == 0,
            "pfn": pfn != 0,
            "kpageflags": flags is not None,
            "pagemap_scan": scan,
            "exclusive": self.options.exclusive,
            "deep": self.options.deep,
        }

    def _say_what_is_unseen(self) -> None:
        if self.frames is None:
            why = self._why_no_frames()
            self.not_seen(f"{why}: folio orders, folio flags (locked, referenced, on the LRU)")
            self.not_seen(f"{why}: how many processes share a page")
        elif self.frames.counts is None:
            self.not_seen("/proc/kpagecount is masked: how many processes share a page")
        if self.options.hidden:
            self.left_out["in another PID namespace"] = self.options.hidden
            self.not_seen(f"{self.options.hidden} processes left out: in another PID namespace")
        if text(THP + "/enabled") is None:
            self.not_seen(f"{THP} is masked: the settings")
        if hides_processes():
            self.not_seen("other users' processes: this /proc hides them (hidepid)")
        if not self.privilege["exclusive"]:
            self.not_seen("--no-exclusive: which pages are mapped by this process alone")
        if not self.privilege["pagemap_scan"] and self.frames is None:
            self.not_seen("no PAGEMAP_SCAN: zero pages look like shared pages")
        if self.deep is not None and not self.deep.kernel.known.keeps_mm_ids:
            self.not_seen(NO_MM_IDS)
        for always in (LOCKS,) if self.options.deep else (*HIDDEN, LOCKS):
            self.not_seen(NEVER + always)

    def _why_no_frames(self) -> str:
        if self.privilege["pfn"]:
            return "/proc/kpageflags is masked"
        if not self.privilege["exclusive"]:
            return "--no-exclusive"
        if not self.privilege["root"]:
            return "not root"
        if not has_capability(CAP_SYS_ADMIN):
            return "CAP_SYS_ADMIN is missing, as in a container"
        return "root of a user namespace only"

    def table_reader(self, pid: int, pagemap: int) -> TableReader:
        """Make what reads the tables of one process, with PAGEMAP_SCAN where that works."""
        scanner = None
        if self.privilege["pagemap_scan"]:
            scanner = Scanner(pagemap)
            scanner.works()
        exclusive = self.privilege["exclusive"]
        looked = self.frames if self.deep is None else self.deep.pages
        size = BATCH_BYTES if looked is None else looked.batch_bytes
        return TableReader(pid, pagemap, self.geometry, scanner, exclusive, self.frames, size)

    def meta(self, processes: list[dict[str, Any]]) -> dict[str, Any]:
        """The document of the file."""
        how = (
            "after the frames of some tables were looked up, pagemap was read again; tables that had "
            f"changed, or that their frames contradict, were read again, up to {MOST_READINGS} times, "
            "and those that did not come to rest are marked in table_torn; then the VMA list was read "
            "again"
        )
        captured = {process["pid"] for process in processes}
        others = other_processes(captured, self.geometry.pmd_size)
        return self.document(processes, host_facts(), how, others)


BLIND_BYTES = 16 << 30
"""Without PAGEMAP_SCAN, larger VMAs with neither Rss nor Swap are taken as empty."""


class ProcessReader:
    """Reads one process into the columns of a session."""

    def __init__(self, pid: int, index: int, session: CaptureRun) -> None:
        self.pid = pid
        self.index = index
        self.session = session
        self.geometry = session.geometry
        self.vmas: list[SmapsEntry] = []
        self.shmem: set[str] = set()
        self.rollup: dict[str, int] = {}
        self.tearing = dict.fromkeys(TEARING, 0)
        self._began = time.monotonic()
        self._again = 0.0

    def read(self) -> None:
        """Read the whole process: mappings, tables, and what changed meanwhile."""
        session = self.session
        self.shmem = shmem_devices(self.pid)
        self.vmas = read_vmas(self.pid)
        self.rollup = rollup(self.pid, self.vmas)
        if not self.vmas:
            raise shows_nothing(self.pid, "smaps")
        if session.deep is not None:
            with naming("/proc/kcore"):
                session.deep.enter(self.pid)
        captured = [vma for vma in self.vmas if vma.captured]
        if not session.privilege["pagemap_scan"]:
            captured = self._leave_out_blind(captured)
        pagemap = open_pagemap(self.pid)
        try:
            reader = session.table_reader(self.pid, pagemap)
            first = len(session.columns.address)
            windows = reader.windows(captured)
            for batch in reader.batches(windows):
                parts = session.parts(batch, reader.scanner)
                self._add_settled(reader, batch, parts)
            rows = range(first, len(session.columns.address))
            if reader.scanner is None:
                self._deduce_huge(captured, rows)
            if session.deep is not None:
                known = session.columns.address[rows.start : rows.stop]
                session.deep.note_empty(windows, set(known))
            self._look_at_vmas_again()
            self.tearing["tables"] = len(rows)
        finally:
            os.close(pagemap)

    def _leave_out_blind(self, vmas: list[SmapsEntry]) -> list[SmapsEntry]:
        big = [
            vma
            for vma in vmas
            if vma.end - vma.start > BLIND_BYTES
            and not (vma.sizes.get("rss") or vma.sizes.get("swap"))
        ]
        if big:
            self.session.not_seen(
                f"process {self.pid}: {len(big)} VMAs over {BLIND_BYTES >> 30} GiB without Rss or "
                "Swap were taken as empty (no PAGEMAP_SCAN): zero pages and guards in them"
            )
        return [vma for vma in vmas if vma not in big]

    def _deduce_huge(self, vmas: list[SmapsEntry], rows: range) -> None:
        """Without PAGEMAP_SCAN, full tables of a VMA are huge if AnonHugePages counts them all."""
        columns, down, up = self.session.columns, self.geometry.pmd_addr, self.geometry.pmd_align_up
        pmd, ptrs = self.geometry.pmd_size, self.geometry.ptrs_per_pte
        addresses = columns.address[rows.start : rows.stop]
        for vma in vmas:
            claimed = vma.sizes.get("anon_huge", 0) // pmd
            i = bisect.bisect_left(addresses, up(vma.start))
            j = bisect.bisect_left(addresses, down(vma.end))
            if not claimed or i >= j:
                continue
            full = [k for k in range(rows.start + i, rows.start + j) if self._looks_huge(k)]
            if len(full) != claimed:
                self.session.not_seen(
                    f"process {self.pid}: which {claimed} of {len(full)} full tables are mapped by "
                    f"a huge PMD (no PAGEMAP_SCAN)"
                )
                continue
            for k in full:
                row = int.from_bytes(columns.row("pte", k), sys.byteorder)
                mark = int.from_bytes(array("H", [HUGE] * ptrs).tobytes(), sys.byteorder)
                columns.patch("pte", k, (row | mark).to_bytes(2 * ptrs, sys.byteorder))

    def _looks_huge(self, k: int) -> bool:
        columns, ptrs = self.session.columns, self.geometry.ptrs_per_pte
        flags = array("H", columns.row("pte", k))
        if not all(flag & (PRESENT | ZERO) == PRESENT for flag in flags):
            return False
        if "pfn" not in columns.files:
            return True
        pfns = array("Q", columns.row("pfn", k))
        orders = columns.row("folio_order", k) if "folio_order" in columns.files else b""
        consecutive = pfns == array("Q", range(pfns[0], pfns[0] + ptrs))
        return consecutive and (not orders or 1 << orders[0] == ptrs)

    def _add_settled(self, reader: TableReader, batch: Batch, parts: dict[str, bytes]) -> None:
        """Append a batch's tables. Those that changed while they were read, or that their frames
        contradict, are read again one by one until they come to rest, or else marked."""
        columns, ptrs = self.session.columns, self.geometry.ptrs_per_pte
        changed = reader.changed(batch)
        doubtful = {*changed, *(batch.addresses[k] for k in batch.misfits)}
        self.tearing["tables_changed"] += len(doubtful)
        self.tearing["pages_changed"] += sum(changed.values())
        if not doubtful:
            columns.add(self.index, batch.addresses, parts)
            return
        for k, address in enumerate(batch.addresses):
            row: dict[str, bytes] | None = {
                name: data[k * ptrs * WIDTH[name] : (k + 1) * ptrs * WIDTH[name]]
                for name, data in parts.items()
            }
            torn = False
            if address in doubtful:
                row, torn = self._read_again(reader, address, row)
            if row is not None:
                columns.add(self.index, [address], row)
                columns.torn[-1] = torn
                self.tearing["tables_torn"] += torn

    def _read_again(
        self, reader: TableReader, address: int, row: dict[str, bytes] | None
    ) -> tuple[dict[str, bytes] | None, bool]:
        """One table as it was read last (None: it is empty), and whether it was still changing."""
        for _ in range(MOST_READINGS):
            began = time.monotonic()
            if self._again > SECONDS_AGAIN + began - self._began - self._again:
                break
            row, torn = None, False
            for batch in reader.batches([(address, address + self.geometry.pmd_size)]):
                row = self.session.parts(batch, reader.scanner)
                torn = bool(batch.misfits or reader.changed(batch))
            self._again += time.monotonic() - began
            if not torn:
                return row, False
        return row, True

    def _look_at_vmas_again(self) -> None:
        before = {vma.identity for vma in self.vmas}
        self.tearing["vmas_changed"] = len(before ^ identities(self.pid))


def numa_policies(pid: int) -> dict[str, list[str]]:
    """From numa_maps: VMA start (hex) -> policy and pages per node; {} on a host of one node."""
    if len(glob.glob("/sys/devices/system/node/node[0-9]*")) < 2:
        return {}
    lines = [line.split() for line in (text(f"/proc/{pid}/numa_maps") or "").splitlines()]
    return {w[0]: [w[1], *(x for x in w[2:] if re.match(r"N\d+=", x))] for w in lines if w}


def describe_process(reader: ProcessReader, status: dict[str, str], command: str) -> dict[str, Any]:
    """The entry of one process in meta. command: as /proc/PID/cmdline has it."""
    pid = reader.pid
    cgroup, memcg = memcg_of(pid)
    policies = numa_policies(pid)
    try:
        exe: str | None = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        exe = None
    vmas = []
    deep = reader.session.deep
    anon_vmas = {} if deep is None else deep.anon_vmas()
    for vma in reader.vmas:
        entry: dict[str, Any] = {
            "start": vma.start, "end": vma.end, "perms": vma.perms, "offset": vma.offset,
            "dev": vma.dev, "inode": vma.inode, "path": vma.path, "flags": vma.flags,
            **vma.sizes, "skipped": vma.skipped, "captured": vma.captured,
            "kind": mapping_kind(vma, reader.shmem).value,
        }  # fmt: skip
        if policies and f"{vma.start:x}" in policies:
            entry["numa"] = policies[f"{vma.start:x}"]
        if deep is not None:
            entry["anon_vma"] = anon_vmas.get((vma.start, vma.end), False)
        vmas.append(entry)
    thp = status.get("THP_enabled")
    return {
        "pid": pid,
        "started": started(pid),
        "forked": forked(pid),
        "comm": status["Name"],
        "cmdline": command.split("\0")[:-1],
        "exe": exe,
        "cgroup": cgroup,
        "memcg": memcg,
        "status": status,
        "rollup": reader.rollup,
        **held_memory(pid, status.get("VmPin", "0 kB") != "0 kB")._asdict(),
        "thp_disable": None if thp is None else thp == "0",
        **({} if deep is None else {"deep": deep.process()}),
        "tearing": reader.tearing,
        "vmas": vmas,
    }
