# SPDX-License-Identifier: GPL-2.0-or-later
"""One process: its tables into the columns, and what it says of itself."""

from __future__ import annotations

import bisect
import glob
import operator
import os
import re
import sys
from array import array
from typing import Any

from mthp.image.capture.cgroups import memcg_of
from mthp.image.capture.columns import WIDTH
from mthp.image.capture.maps import SmapsEntry, read_vmas
from mthp.image.capture.pagemap import HUGE, PRESENT, ZERO
from mthp.image.capture.proc import USAGE, CaptureError, open_pagemap, text
from mthp.image.capture.run import AGAIN_TABLES, CaptureRun
from mthp.image.capture.tables import TableReader

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
        self.tearing = {"vmas_changed": 0, "tables_changed": 0, "pages_changed": 0}
        self.tearing.update(tables_read_again=0, tables=0)

    def read(self) -> None:
        """Read the whole process: mappings, tables, and what changed meanwhile."""
        session = self.session
        self.vmas = read_vmas(self.pid, "smaps")
        if not self.vmas:
            raise CaptureError(f"process {self.pid} has no address space (kernel thread)", USAGE)
        anonymous = [vma for vma in self.vmas if vma.skipped is None]
        if not session.privilege["pagemap_scan"]:
            anonymous = self._leave_out_blind(anonymous)
        pagemap = open_pagemap(self.pid)
        try:
            reader = session.table_reader(self.pid, pagemap)
            first = len(session.columns.address)
            for batch in reader.batches(reader.windows(anonymous)):
                session.columns.add(self.index, batch, session.parts(batch, reader.scanner))
            rows = range(first, len(session.columns.address))
            if reader.scanner is None:
                self._deduce_huge(anonymous, rows)
            self._measure_tearing(reader, rows)
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
        """Without PAGEMAP_SCAN: full tables of a VMA are huge if AnonHugePages counts them all."""
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
        columns.rewind()

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

    def _measure_tearing(self, reader: TableReader, rows: range) -> None:
        """Look at VMAs and tables once more, and count what is no longer as it was read."""
        columns, pmd = self.session.columns, self.geometry.pmd_size
        now = {vma.identity for vma in read_vmas(self.pid, "maps")}
        before = {vma.identity for vma in self.vmas}
        step = max(1, -(-len(rows) // AGAIN_TABLES))
        sample = {columns.address[k]: k for k in rows[::step]}
        self.tearing["vmas_changed"] = len(now ^ before)
        self.tearing["tables"] = len(rows)
        self.tearing["tables_read_again"] = len(sample)
        windows = [(address, address + pmd) for address in sample]
        for batch in reader.batches(windows):
            parts = self.session.parts(batch, reader.scanner, physical=False)
            for k, address in enumerate(batch.addresses):
                if address in sample:
                    self._compare(sample.pop(address), k, parts)
        for k in sample.values():
            self._compare(k, 0, {"pte": bytes(2 * self.geometry.ptrs_per_pte)})
        columns.rewind()

    def _compare(self, row: int, k: int, parts: dict[str, bytes]) -> None:
        changed = 0
        for name, data in parts.items():
            size = self.geometry.ptrs_per_pte * WIDTH[name]
            kind = "H" if name == "pte" else "Q"
            old = array(kind, self.session.columns.row(name, row))
            new = array(kind, bytes(data[k * size : (k + 1) * size]))
            if name == "pte" and not self.session.privilege["pagemap_scan"]:
                old = array(kind, (flags & ~(HUGE | ZERO) for flags in old))
                new = array(kind, (flags & ~(HUGE | ZERO) for flags in new))
            if old != new:
                changed = max(changed, sum(map(operator.ne, old, new)))
        self.tearing["tables_changed"] += bool(changed)
        self.tearing["pages_changed"] += changed


def numa_policies(pid: int) -> dict[str, list[str]]:
    """VMA start (hex) -> policy and pages per node, from numa_maps; {} on a one-node host."""
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
    for vma in reader.vmas:
        entry: dict[str, Any] = {
            "start": vma.start, "end": vma.end, "perms": vma.perms, "offset": vma.offset,
            "dev": vma.dev, "inode": vma.inode, "path": vma.path, "flags": vma.flags,
            **vma.sizes, "skipped": vma.skipped,
        }  # fmt: skip
        if f"{vma.start:x}" in policies:
            entry["numa"] = policies[f"{vma.start:x}"]
        vmas.append(entry)
    thp = status.get("THP_enabled")
    return {
        "pid": pid,
        "comm": status["Name"],
        "cmdline": command.split("\0")[:-1],
        "exe": exe,
        "cgroup": cgroup,
        "memcg": memcg,
        "status": status,
        "thp_disable": None if thp is None else thp == "0",
        "tearing": reader.tearing,
        "vmas": vmas,
    }
