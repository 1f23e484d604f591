# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a snapshot that image/capture/ wrote, checked, as numpy arrays and frozen values.

The format is docs/snapshot-format.md. Kernel: fs/proc/task_mmu.c and fs/proc/page.c give the bits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag, StrEnum
from itertools import pairwise, repeat
from types import MappingProxyType
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from mthp.image.capture.columns import SCHEMA, WIDTH
from mthp.image.capture.resident import kind_of, resident_of
from mthp.image.fields import Fields, short
from mthp.image.members import Members
from mthp.image.snapshot_checks import (
    MOST_PID,
    Entries,
    address_limit,
    check_addresses,
    check_khugepaged,
    check_memory_held,
    check_meta,
    check_privilege,
    check_process,
    check_vma_fields,
    check_vma_ranges,
    folios_of,
    take_ranges,
)
from mthp.image.sparse import Packing, SparseColumn, is_worth_it, kept
from mthp.words.files import FileError
from mthp.words.reading import check_memory, open_regular, parse_object
from mthp.words.resident import MappingKind, Resident
from mthp.words.units import Geometry, human_bytes


class SnapshotError(FileError):
    """A file that is no snapshot, or one that contradicts itself; one line says where."""


class Pte(IntFlag):
    """Bits of Process.pte. SWAPPED: not present and not none (swap, migration, marker, guard)."""

    PRESENT = 1
    SWAPPED = 2
    FILE = 4
    ZERO = 8
    HUGE = 16
    SOFT_DIRTY = 32
    UFFD_WP = 64
    EXCLUSIVE = 128
    GUARD = 256


class PteBit(IntFlag):
    """Bits of ProcessTables.pte_bits: of the entry itself."""

    YOUNG = 1
    DIRTY = 2
    WRITABLE = 4
    SOFT_DIRTY = 8
    UFFD = 16
    PROT_NONE = 32
    EXCLUSIVE = 64


class FolioState(IntFlag):
    """Bits of ProcessTables.folio_state; the last of them are the CPUs' batches that a folio waits in."""

    ON_DEFERRED_LIST = 1
    PARTIALLY_MAPPED = 2
    MAYBE_PINNED = 4
    LRU_ADD = 8
    LRU_DEACTIVATE = 16
    LRU_LAZYFREE = 32
    LRU_ACTIVATE = 64
    MLOCK = 128
    WORKINGSET = 256
    YOUNG = 512


class Kpf(IntEnum):
    """The bit numbers of ProcessTables.kpageflags that are looked at.

    Kernel: include/uapi/linux/kernel-page-flags.h.
    """

    LOCKED = 0
    REFERENCED = 2
    UPTODATE = 3
    DIRTY = 4
    LRU = 5
    ACTIVE = 6
    ANON = 12
    SWAPCACHE = 13
    SWAPBACKED = 14
    UNEVICTABLE = 18
    HWPOISON = 19
    KSM = 21
    THP = 22
    IDLE = 25
    MLOCKED = 33


KPF_OF_LETTER = {
    "l": Kpf.LOCKED, "R": Kpf.REFERENCED, "D": Kpf.DIRTY, "L": Kpf.LRU, "A": Kpf.ACTIVE,
    "a": Kpf.ANON, "C": Kpf.SWAPCACHE, "B": Kpf.SWAPBACKED, "V": Kpf.UNEVICTABLE,
    "P": Kpf.HWPOISON, "K": Kpf.KSM, "T": Kpf.THP, "I": Kpf.IDLE, "M": Kpf.MLOCKED,
}  # fmt: skip
"""kpageflags letters of the scenario format, in the order in which a state is rendered."""


@dataclass(frozen=True)
class Privilege:
    """What the capture was allowed to see, and how it read. deep: by the kernel's own memory, too."""

    root: bool
    pfn: bool
    kpageflags: bool
    pagemap_scan: bool
    exclusive: bool
    deep: bool = False


class DisableThp(StrEnum):
    """Which huge pages prctl keeps from a process. Kernel: kernel/sys.c, PR_SET_THP_DISABLE."""

    NO = "no"
    COMPLETELY = "completely"
    EXCEPT_ADVISED = "except advised"


@dataclass(frozen=True)
class DeepProcess:
    """What a deep capture says of a process. mm_id: None on kernels without. registered: its place on
    khugepaged's list, None if it is not there. pinned: its mm has pinned pages at some time.
    empty_tables: (start, end) in bytes of tables that are there with nothing in them."""

    mm_id: int | None
    registered: int | None
    disable_thp: DisableThp
    pinned: bool
    empty_tables: tuple[tuple[int, int], ...]


class SnapshotVma(NamedTuple):
    """A VMA; addresses and sizes in bytes. skipped: why it is not anonymous.

    flags: the two-letter codes of smaps' VmFlags (rd, wr, hg, nh, lo, uw, ...). anonymous: as
    vma_is_anonymous() would answer. captured: the PTEs of its anonymous pages are in the snapshot.
    anon_vma: whether it has one; None where the capture was not deep.
    lazyfree: of pages that MADV_FREE gave up and nobody wrote since. thp_eligible: as smaps says.
    nodes: (NUMA node, pages there), as numa_maps says on hosts of several.
    """

    start: int
    end: int
    perms: str
    flags: frozenset[str]
    name: str
    anonymous: bool
    skipped: str | None
    captured: bool
    kind: MappingKind
    anonymous_bytes: int = 0
    referenced: int = 0
    swap_bytes: int = 0
    anon_vma: bool | None = None
    lazyfree: int = 0
    thp_eligible: bool | None = None
    nodes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class ProcessTables(Packing):
    """A process and its populated tables, ascending. Arrays but table_address are (n, PTRS).

    resident: what the kernel counted of it. pins: (start, end) in bytes of memory that it pinned, as
    far as that can be seen; piped: the bytes in each pipe that it can write to, which may be its memory.
    table_address: (n,) first address of each table's range. pte: bits of Pte.
    table_torn: (n,) 1 where the table changed each time it was read; None in old files. The last four
    are None without root: pfn (0 where none; the swap entry's type | offset << 5 where swapped),
    kpageflags (bits of Kpf), kpagecount (mapcount; None where it alone was masked), folio_order (0
    where nothing or a base page). deep and what follows are None but in deep captures: pte_bits (of
    PteBit), of each page's folio the refcount, the folio_mapcount, the folio_state (of FolioState), mm_ids
    and mm_id_mapcounts (as the kernel keeps two of each in a word), and its node. zero_filled: 1 where the
    page holds nothing but zeros; None where nobody looked.
    """

    pid: int
    name: str
    meta: Mapping[str, Any]
    vmas: tuple[SnapshotVma, ...]
    resident: Resident
    pins: tuple[tuple[int, int], ...]
    piped: tuple[int, ...]
    table_address: npt.NDArray[np.uint64]
    pte: npt.NDArray[np.uint16]
    table_torn: npt.NDArray[np.uint8] | None = None
    pfn: npt.NDArray[np.uint64] | None = None
    kpageflags: npt.NDArray[np.uint64] | None = None
    kpagecount: npt.NDArray[np.uint32] | None = None
    folio_order: npt.NDArray[np.uint8] | None = None
    deep: DeepProcess | None = None
    pte_bits: npt.NDArray[np.uint8] | None = None
    refcount: npt.NDArray[np.uint32] | None = None
    folio_mapcount: npt.NDArray[np.uint32] | None = None
    folio_state: npt.NDArray[np.uint16] | None = None
    mm_ids: npt.NDArray[np.uint64] | None = None
    mm_id_mapcounts: npt.NDArray[np.uint64] | None = None
    node: npt.NDArray[np.uint8] | None = None
    zero_filled: npt.NDArray[np.uint8] | None = None

    @property
    def thp_disabled(self) -> bool:
        """Whether PR_SET_THP_DISABLE is set, if status tells (not its EXCEPT_ADVISED mode)."""
        return bool(self.meta.get("thp_disable"))

    @property
    def forked(self) -> bool:
        """Whether its address space is a copy of its parent's; old files do not tell."""
        return bool(self.meta.get("forked"))

    @property
    def started(self) -> int:
        """When it started, in ticks since boot; 0 where that is not known."""
        return int(self.meta.get("started") or 0)

    def count(self, bits: Pte) -> int:
        """How many PTEs have any of the bits set."""
        return int(np.count_nonzero(self.pte & np.uint16(bits)))

    def page_flag(self, flag: Kpf) -> npt.NDArray[np.bool_] | None:
        """Whether each page has the flag, as an (n, PTRS) array; None without root."""
        flags = kept(self, "kpageflags")
        if flags is None:
            return None
        bit = np.uint64(1 << flag)
        if isinstance(flags, SparseColumn):
            return flags.marks(flags.values & bit != 0)
        return cast(npt.NDArray[np.bool_], flags & bit != 0)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A whole file. meta: all that docs/snapshot-format.md lists, as read. free_memory: bytes that are
    put in the place of what it says of free memory.
    """

    schema: str
    kernel: str
    geometry: Geometry
    meta: Mapping[str, Any]
    privilege: Privilege
    unseen: tuple[str, ...]
    frozen: bool
    redacted: bool
    processes: tuple[ProcessTables, ...]
    free_memory: int | None = None

    @property
    def sysfs(self) -> Mapping[str, str]:
        """The files under /sys/kernel/mm/transparent_hugepage by relative path."""
        return cast(Mapping[str, str], self.meta["sysfs"])

    @property
    def khugepaged_began(self) -> int | None:
        """When khugepaged's thread started, in ticks since boot; None where that is not known."""
        thread: Mapping[str, int | None] = self.meta.get("khugepaged") or {}
        return thread.get("started")

    @property
    def tearing(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.meta["tearing"])


# member -> bytes of a value, and whether it has a column per PTE
MEMBERS = {
    "meta": (1, False),
    "table_address": (8, False),
    "table_process": (2, False),
    "table_torn": (1, False),
    **{name: (width, True) for name, width in WIDTH.items()},
}
REQUIRED = ("meta", "table_address", "table_process", "pte")
META_BYTES = 128 << 20
"""Of the document: several hundred thousand VMAs."""
WORLD_BYTES_OF_A_PAGE = 64
"""What a page of a large folio takes in a world, about."""


def load(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot in a file; SnapshotError with one line where it is not one."""
    where = os.fspath(path)
    try:
        with open_regular(path) as file:
            return read_snapshot(file, where)
    except OSError as error:
        raise SnapshotError(f"{where}: {error.strerror or error}") from None


def read_snapshot(file: IO[bytes], where: str, meta: dict[str, Any] | None = None) -> Snapshot:
    """The snapshot in an open file, called `where` in what a SnapshotError says. meta: its document, where
    there is none in the file.

    The document comes first, and each member only when it is as long as the document lets it be.
    """
    try:
        members = Members(file, MEMBERS)
        _check_members(members)
        meta = _read_meta(members) if meta is None else meta
        geometry = _geometry(meta)
        snapshot = _described(meta, members, geometry)
        _check_lengths(members, snapshot)
        return _with_tables(snapshot, members)
    except FileError as error:
        raise SnapshotError(f"{where}: {error}") from None


def _check_members(members: Members) -> None:
    for name in REQUIRED:
        if name not in members.found:
            raise FileError(f"not a snapshot (no member {name})")
    for name, member in members.found.items():
        if member.dtype.itemsize != MEMBERS[name][0]:
            raise FileError(f"member {name} is {member.dtype}, not u{MEMBERS[name][0]}")


def _read_meta(members: Members) -> dict[str, Any]:
    if members.found["meta"].size > META_BYTES:
        raise FileError(f"member meta: more than {human_bytes(META_BYTES)}")
    meta = parse_object(members.array("meta").tobytes())
    if meta.get("schema") != SCHEMA:
        raise FileError(f"schema {short(meta.get('schema'))} is not {SCHEMA!r}")
    return meta


def _geometry(meta: dict[str, Any]) -> Geometry:
    fields = Fields(meta)
    page_size, pmd_size = (fields.number(name, 1, 2**40) for name in ("page_size", "pmd_size"))
    page_shift, pmd_shift = page_size.bit_length() - 1, pmd_size.bit_length() - 1
    try:
        geometry = Geometry(page_shift, pmd_shift - page_shift)
    except ValueError as error:
        raise FileError(str(error)) from None
    if (geometry.page_size, geometry.pmd_size) != (page_size, pmd_size):
        raise FileError(f"page_size {page_size} and pmd_size {pmd_size} are not powers of two")
    return geometry


def _described(meta: dict[str, Any], members: Members, geometry: Geometry) -> Snapshot:
    """The snapshot as its document has it, the tables not yet read."""
    fields = Fields(meta)
    check_meta(fields)
    privilege = Fields(fields.take("privilege", dict), "privilege.")
    names = Privilege.__dataclass_fields__
    seen = {
        name: privilege.take(name, bool, *([False] if name == "deep" else [])) for name in names
    }
    check_privilege(seen, members.found)
    limit = address_limit(meta)
    if seen["deep"]:
        check_khugepaged(Fields(fields.take("deep", dict), "deep."))
    processes = [
        _process(each, geometry, limit, seen["deep"])
        for each in fields.objects("processes", "a list of processes")
    ]
    pids = [process.pid for process in processes]
    if len(set(pids)) != len(pids) or not pids:
        raise FileError("processes: one is there twice" if pids else "processes: empty")
    return Snapshot(
        schema=SCHEMA,
        kernel=meta["kernel"],
        geometry=geometry,
        meta=MappingProxyType(meta),
        privilege=Privilege(**seen),
        unseen=tuple(meta["unseen"]),
        frozen=bool(meta["frozen"]),
        redacted=bool(meta["redacted"]),
        processes=tuple(processes),
    )


def _process(fields: Fields, geometry: Geometry, limit: int, deep: bool) -> ProcessTables:
    check_process(fields)
    entry = fields.document
    pid, vmas = entry["pid"], fields.take("vmas", list)
    columns = check_vma_fields(vmas, f"{fields.where}vmas", deep)
    check_vma_ranges(f"process {pid}", columns, geometry, limit)
    nothing = np.zeros((0, geometry.ptrs_per_pte), np.uint16)
    return ProcessTables(
        pid=pid,
        name=entry.get("comm") or f"pid {pid}",
        meta=MappingProxyType(entry),
        vmas=tuple(_vmas(vmas, columns)),
        resident=resident_of(entry),
        pins=tuple((start, end) for start, end in entry.get("pins", ())),
        piped=tuple(entry.get("piped", ())),
        table_address=np.zeros(0, np.uint64),
        pte=nothing,
        deep=_deep(Fields(fields.take("deep", dict), f"{fields.where}deep.")) if deep else None,
    )


def _deep(fields: Fields) -> DeepProcess:
    mm_id, registered = (
        None if fields.is_null(name) else fields.number(name, low, high)
        for name, low, high in (("mm_id", 1, 2**31 - 1), ("registered", 0, MOST_PID))
    )
    disable_thp, pinned = fields.choice("disable_thp", DisableThp), fields.take("pinned", bool)
    empty = take_ranges(fields, "empty_tables", [])
    return DeepProcess(mm_id, registered, disable_thp, pinned, empty)


def _vmas(entries: list[dict[str, Any]], of: Mapping[str, list[Any]]) -> Iterator[SnapshotVma]:
    """The VMAs of a process. of: their fields."""
    codes = {each: frozenset(each.split()) for each in {*of["flags"]}}
    anonymous = [each is None for each in of["skipped"]]
    captured = map(dict.get, entries, repeat("captured"), anonymous)
    eligible = [entry.get("thp_eligible") for entry in entries]
    columns = zip(
        of["start"], of["end"], of["perms"], [codes[each] for each in of["flags"]],
        of["path"], anonymous, of["skipped"], captured, map(kind_of, entries), of["anonymous"],
        of["referenced"], of["swap"], of["anon_vma"], of["lazyfree"],
        (None if each is None else bool(each) for each in eligible),
        (tuple(_nodes(words)) if words else () for words in of["numa"]), strict=True,
    )  # fmt: skip
    return map(SnapshotVma._make, columns)


def _nodes(words: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(node, pages) of a line of numa_maps; nodes beyond what a file has of a page are left out."""
    for word in words:
        match = re.fullmatch(r"N(\d{1,4})=(\d{1,15})", word)
        if match and int(match[1]) < 256:
            yield int(match[1]), int(match[2])


def _check_lengths(members: Members, snapshot: Snapshot) -> None:
    """Check that there are no more tables than the mappings have, and a row for each everywhere."""
    geometry = snapshot.geometry
    vmas = [vma for process in snapshot.processes for vma in process.vmas if vma.captured]
    most = sum(
        geometry.pmd_align_up(vma.end) - geometry.pmd_addr(vma.start) >> geometry.pmd_shift
        for vma in vmas
    )
    shape = members.found["table_address"].shape
    rows = shape[0] if shape else 0
    if rows > most:
        raise FileError(f"{rows} tables are more than the {most} of what was captured")
    for name, member in members.found.items():
        wanted = (rows, geometry.ptrs_per_pte) if MEMBERS[name][1] else (rows,)
        if name != "meta" and member.shape != wanted:
            raise FileError(f"member {name} has shape {member.shape}, not {wanted}")
    check_memory(2 * sum(member.size for member in members.found.values()))


def _column(members: Members, name: str, pte: npt.NDArray[np.uint16]) -> Any:
    """A member of the tables, kept as it is best kept."""
    dtype = members.found[name].dtype.newbyteorder("=")
    if len(members.found[name].shape) == 2 and is_worth_it(pte, dtype):
        return SparseColumn.of(members.rows(name), pte.shape[1], dtype)
    return members.array(name)


def _with_tables(snapshot: Snapshot, members: Members) -> Snapshot:
    """The snapshot with its tables, each looked at."""
    geometry = snapshot.geometry
    owner = members.array("table_process").astype(np.int64)
    count = len(snapshot.processes)
    if len(owner) and (np.any(np.diff(owner) < 0) or owner[-1] >= count):
        raise FileError(f"member table_process is not ascending indices of {count} processes")
    edges = np.searchsorted(owner, np.arange(count + 1)).tolist()
    rows_of = [slice(*edge) for edge in pairwise(edges)]
    address = members.array("table_address")
    for process, rows in zip(snapshot.processes, rows_of, strict=True):
        check_addresses(f"process {process.pid}", address[rows], geometry)
    if not all(rows.any(axis=1).all() for rows in members.rows("pte")):
        raise FileError("member pte: a table with nothing in it")
    others = members.found.keys() - {"meta", "table_address", "table_process"}
    columns: dict[str, Any] = {"table_address": address, "pte": members.array("pte")}
    for name in others - {"pte"}:
        columns[name] = _column(members, name, columns["pte"])
    parts: list[dict[str, Any]] = []
    folios = []
    for process, rows in zip(snapshot.processes, rows_of, strict=True):
        own = {
            name: column.part(rows) if isinstance(column, SparseColumn) else column[rows]
            for name, column in columns.items()
        }
        spans = [(vma.start, vma.end) for vma in process.vmas if vma.captured]
        starts, ends = np.array(spans, np.uint64).reshape(-1, 2).T
        where = f"process {process.pid}"
        some = cast(Mapping[str, npt.NDArray[Any]], own)  # of which they ask rows alone
        Entries(where, some, geometry, redacted=snapshot.redacted).check(starts, ends)
        parts.append(own)
        if "folio_order" in own:
            folios.append(folios_of(where, some, process.meta["tearing"]))
    total = (snapshot.meta.get("meminfo") or {}).get("MemTotal", 0)
    pages = check_memory_held(folios, total, geometry.page_shift)
    check_memory(pages * WORLD_BYTES_OF_A_PAGE)
    return replace(
        snapshot,
        processes=tuple(
            replace(process, **own) for process, own in zip(snapshot.processes, parts, strict=True)
        ),
    )
