# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot out of a dump: what a deep capture of the live processes would have had in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from mthp.image.capture.columns import Columns, redact
from mthp.image.capture.deep import DeepReader
from mthp.image.capture.kcore import CoreError
from mthp.image.capture.proc import USAGE, CaptureError, SmapsEntry
from mthp.image.capture.resident import mapping_kind
from mthp.image.capture.run import (
    NO_MM_IDS,
    TEARING,
    CaptureOptions,
    SnapshotRun,
)
from mthp.image.pages_at_once import PagesAtOnce
from mthp.image.vmcore.dump import open_dump
from mthp.image.vmcore.frames import DumpFrames
from mthp.image.vmcore.host import host_facts, memcg_of
from mthp.image.vmcore.structures import PF_FORKNOEXEC, DumpedProcess, DumpKernel
from mthp.image.vmcore.tables import DumpTables
from mthp.image.vmcore.vmas import MappingReader
from mthp.words.units import Geometry

GEOMETRY = Geometry(12, 9)
"""Of x86-64."""
NOT_READ = (
    "not read of a dump: pages of shared memory that are swapped out, what cgroups can reclaim, NUMA "
    "policies, pageblocks by type, statistics of huge pages"
)
HOW = "nothing runs in a dump; tables that their frames contradict are marked in table_torn"
_MOST_OF_ARGUMENTS = 4096
MOST_PROCESSES = 65535
"""Of a file, which numbers them by 16 bits."""
_STATES = {
    0: "R (running)",
    1: "S (sleeping)",
    2: "D (disk sleep)",
    4: "T (stopped)",
    8: "t (tracing stop)",
}


class DumpRun(SnapshotRun):
    """A run over processes of a dump. folder: for temporary files, None for the usual one.

    CaptureError (2): it is no dump, or one that is damaged; (5): its kernel or this host lacks something.
    """

    deep: DeepReader

    def __init__(self, path: str, options: CaptureOptions, folder: str | None) -> None:
        super().__init__(options, GEOMETRY)
        self.path = path
        dump = open_dump(path)
        try:
            if options.zeros and not dump.memory.has_contents:
                why = f"--zeros: the dump leaves out pages ({dump.memory.left_out})"
                raise CaptureError(f"{path}: {why}", USAGE)
            self.kernel = DumpKernel(dump, path)
            pages = PagesAtOnce(self.kernel, GEOMETRY.ptrs_per_pte)
            self.frames = DumpFrames(self.kernel, pages, GEOMETRY)
            self.deep = DeepReader(self.kernel, pages, GEOMETRY)
        except CoreError as error:
            dump.close()
            raise CaptureError(f"{path}: {error}", USAGE) from None
        except BaseException:
            dump.close()
            raise
        self.privilege = {
            "root": True, "pfn": True, "kpageflags": True, "pagemap_scan": False, "exclusive": True,
            "deep": True,
        }  # fmt: skip
        self.columns = Columns(GEOMETRY, folder, self.members(), options.level)

    def close(self) -> None:
        """Close the files that are open."""
        self.kernel.close()
        self.columns.close()

    def read(self, task: DumpedProcess, index: int) -> dict[str, Any]:
        """Read a process into the columns; returns its entry in the document."""
        deep, frames = self.deep, self.frames
        assert isinstance(frames, DumpFrames)
        deep.enter(task.pid)
        assert deep.mm is not None
        tables = DumpTables(task.pid, deep, frames, GEOMETRY)
        mappings = MappingReader(self.kernel, deep.mm, GEOMETRY)
        vmas = mappings.read(tables)
        windows = tables.windows([vma for vma in vmas if vma.captured])
        first, torn = len(self.columns.address), 0
        for batch in tables.batches(windows):
            parts = self.parts(batch, None)
            row = len(self.columns.address)
            self.columns.add(index, batch.addresses, parts)
            for k in batch.misfits:
                self.columns.torn[row + k] = 1
            torn += len(batch.misfits)
        known = self.columns.address[first:]
        deep.note_empty(windows, set(known))
        tearing = {**dict.fromkeys(TEARING, 0), "tables": len(known), "tables_torn": torn}
        tearing["tables_changed"] = torn
        return self._described(task, vmas, mappings.shmem, tearing)

    def read_all(self, tasks: Sequence[DumpedProcess]) -> list[dict[str, Any]]:
        """Read processes; of several, those that are damaged are left out, counted and said. CoreError: all
        are."""
        found: list[dict[str, Any]] = []
        for task in tasks:
            rows = len(self.columns.address)
            try:
                found.append(self.read(task, len(found)))
            except CoreError as error:
                if len(tasks) == 1 or (task is tasks[-1] and not found):
                    raise
                self.columns.truncate(rows)
                self.left_out["damaged in the dump"] += 1
                self.not_seen(f"process {task.pid}, left out: the dump {error}")
        return found

    def _described(
        self, task: DumpedProcess, vmas: list[SmapsEntry], shmem: set[str], tearing: dict[str, int]
    ) -> dict[str, Any]:
        kernel, deep = self.kernel, self.deep
        cgroup, memcg = memcg_of(kernel, task)
        anon_vmas = deep.anon_vmas()
        status = self._status(task, vmas, shmem)
        exe = kernel.field(task.mm, "mm_struct.exe_file")
        flags = kernel.field(task.address, "task_struct.flags", 4)
        entries = [
            {
                "start": vma.start, "end": vma.end, "perms": vma.perms, "offset": vma.offset,
                "dev": vma.dev, "inode": vma.inode, "path": vma.path, "flags": vma.flags, **vma.sizes,
                "skipped": vma.skipped, "captured": vma.captured,
                "kind": mapping_kind(vma, shmem).value,
                "anon_vma": anon_vmas.get((vma.start, vma.end), False),
            }
            for vma in vmas
        ]  # fmt: skip
        return {
            "pid": task.pid,
            "started": task.start,
            "forked": bool(flags & PF_FORKNOEXEC),
            "comm": task.name,
            "cmdline": self._arguments(task),
            "exe": kernel.path_of(exe) if exe else None,
            "cgroup": cgroup,
            "memcg": memcg,
            "status": status,
            "rollup": {name: sum(vma.sizes[name] for vma in vmas) for name in ("rss", "pss")},
            "thp_disable": status["THP_enabled"] == "0",
            "deep": deep.process(),
            "tearing": tearing,
            "vmas": entries,
        }

    def _status(
        self, task: DumpedProcess, vmas: list[SmapsEntry], shmem: set[str]
    ) -> dict[str, str]:
        """The lines of /proc/PID/status, with the sizes as they were counted page by page."""
        kernel, mm = self.kernel, self.deep.mm
        assert mm is not None
        sums = dict.fromkeys(("RssAnon", "RssFile", "RssShmem"), 0)
        for vma in vmas:
            other = "RssShmem" if vma.dev in shmem and vma.inode else "RssFile"
            sums["RssAnon"] += vma.sizes["anonymous"]
            sums[other] += vma.sizes["rss"] - vma.sizes["anonymous"]
        sums["VmRSS"] = sum(sums.values())
        sums["VmSwap"] = sum(vma.sizes["swap"] for vma in vmas)
        sums["VmPTE"] = kernel.field(task.mm, "mm_struct.pgtables_bytes")
        for name, member in (
            ("VmLck", "locked_vm"), ("VmPin", "pinned_vm"), ("HugetlbPages", "hugetlb_usage"),
        ):  # fmt: skip
            sums[name] = kernel.field(task.mm, f"mm_struct.{member}") << GEOMETRY.page_shift
        cred = kernel.field(task.address, "task_struct.cred")
        uids = [kernel.field(cred, f"cred.{name}", 4) for name in ("uid", "euid", "suid", "fsuid")]
        signal = kernel.field(task.address, "task_struct.signal")
        enabled = mm.disable_thp != "completely"
        state = 0
        if "task_struct.__state" in kernel.at:
            state = kernel.field(task.address, "task_struct.__state", 4)
        return {
            "Name": task.name,
            "State": _STATES.get(state & 0xF, "S (sleeping)"),
            "Uid": "\t".join(map(str, uids)),
            "Threads": str(kernel.field(signal, "signal_struct.nr_threads", 4)),
            "THP_enabled": str(int(enabled)),
            **{name: f"{size >> 10} kB" for name, size in sums.items()},
        }

    def _arguments(self, task: DumpedProcess) -> list[str]:
        """The process's arguments, as far as their pages are in the dump."""
        start, end = (
            self.kernel.field(task.mm, f"mm_struct.{name}") for name in ("arg_start", "arg_end")
        )
        if not start < end:
            return []
        raw, at = b"", start
        end = min(end, start + _MOST_OF_ARGUMENTS)
        while at < end:
            page, size = at & -GEOMETRY.page_size, GEOMETRY.page_size
            table = self.deep.table(at)
            _, frames = self.deep.pages.decode(table[at >> 9 & 0xFF8 :][:8])
            if not frames[0]:
                break
            try:
                data = self.kernel.core.physical(frames[0] * size, size)
            except CoreError:
                break
            here = min(end, page + size)
            raw += data[at - page : here - page]
            at = here
        if not raw.strip(b"\0"):  # left out of the dump
            return []
        return raw.decode("utf-8", "replace").split("\0")[:-1]

    def meta(self, processes: list[dict[str, Any]]) -> dict[str, Any]:
        """The document of the file."""
        taken = {process["pid"] for process in processes}
        sizes = [
            self.kernel.anonymous(task) for task in self.kernel.processes() if task.pid not in taken
        ]
        large = [size for size in sizes if size >= GEOMETRY.pmd_size]
        memory = self.kernel.dump.memory
        self.not_seen(NOT_READ)
        if not self.kernel.known.keeps_mm_ids:
            self.not_seen(NO_MM_IDS)
        if memory.zeros:
            self.not_seen(
                f"{memory.zeros} pages that the dump leaves out ({memory.left_out}) were taken as zeros"
            )
        others = {"processes": len(large), "anonymous": sum(large)}
        host = host_facts(self.kernel, GEOMETRY)
        return self.document(processes, host, HOW, others)


@contextlib.contextmanager
def captured_of_dump(
    path: str, pids: Sequence[int] | None, options: CaptureOptions, folder: str | None = None
) -> Iterator[tuple[dict[str, Any], Columns]]:
    """Read processes of a dump: the document of the file, and its columns, which then are gone.

    pids: None or empty for all that have memory. CaptureError: the dump or a process cannot be read.
    """
    with contextlib.closing(DumpRun(path, options, folder)) as session:
        try:
            tasks = [
                session.kernel.task_of(pid)
                for pid in pids or [task.pid for task in session.kernel.processes()]
            ]
            if len(tasks) > MOST_PROCESSES:
                raise CaptureError(f"more than {MOST_PROCESSES} processes", USAGE)
            meta = session.meta(session.read_all(tasks))
        except CoreError as error:
            raise CaptureError(f"{path}: {error}", USAGE) from None
        if options.redact:
            redact(meta, session.columns)
        yield meta, session.columns


def processes_of_dump(path: str) -> tuple[str, list[tuple[DumpedProcess, int]]]:
    """The release of a dump's kernel, and its processes that have memory, each with the bytes of it that are
    anonymous as the kernel counts them, those with most first. CaptureError as captured_of_dump()."""
    with contextlib.closing(DumpRun(path, CaptureOptions(deep=True), None)) as session:
        kernel = session.kernel
        try:
            found = [(task, kernel.anonymous(task)) for task in kernel.processes()]
        except CoreError as error:
            raise CaptureError(f"{path}: {error}", USAGE) from None
        return kernel.dump.release, sorted(found, key=lambda each: (-each[1], each[0].pid))
