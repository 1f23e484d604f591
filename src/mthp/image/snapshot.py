# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a snapshot that image/capture/ wrote, checked, as numpy arrays and frozen values.

The format is docs/snapshot-format.md. Kernel: fs/proc/task_mmu.c and fs/proc/page.c give the bits.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import pairwise
from types import MappingProxyType
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from mthp.image.capture.columns import WIDTH
from mthp.image.capture.resident import kind_of, resident_of
from mthp.image.capture.run import SCHEMA
from mthp.words.files import FileError
from mthp.words.reading import open_regular, parse_object
from mthp.words.resident import MappingKind, Resident
from mthp.words.units import Geometry


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
    """What the capture was allowed to see, and how it read."""

    root: bool
    pfn: bool
    kpageflags: bool
    pagemap_scan: bool
    exclusive: bool


@dataclass(frozen=True)
class SnapshotVma:
    """A VMA; addresses and sizes in bytes. skipped: why it is not anonymous.

    flags: the two-letter codes of smaps' VmFlags (rd, wr, hg, nh, lo, uw, ...). anonymous: as
    vma_is_anonymous() would answer. captured: the PTEs of its anonymous pages are in the snapshot.
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


@dataclass(frozen=True, eq=False)
class ProcessTables:
    """A process and its populated tables, ascending. Arrays but table_address are (n, PTRS).

    resident: what the kernel counted of it. table_address: (n,) first address of each table's range.
    pte: bits of Pte. The last four are
    None without root: pfn (0 where none; the swap entry's type | offset << 5 where swapped),
    kpageflags (bits of Kpf), kpagecount (mapcount), folio_order (0 where nothing or a base page).
    """

    pid: int
    name: str
    meta: Mapping[str, Any]
    vmas: tuple[SnapshotVma, ...]
    resident: Resident
    table_address: npt.NDArray[np.uint64]
    pte: npt.NDArray[np.uint16]
    pfn: npt.NDArray[np.uint64] | None = None
    kpageflags: npt.NDArray[np.uint64] | None = None
    kpagecount: npt.NDArray[np.uint32] | None = None
    folio_order: npt.NDArray[np.uint8] | None = None

    @property
    def thp_disabled(self) -> bool:
        """Whether PR_SET_THP_DISABLE is set, if status tells (not its EXCEPT_ADVISED mode)."""
        return bool(self.meta.get("thp_disable"))

    def count(self, bits: Pte) -> int:
        """How many PTEs have any of the bits set."""
        return int(np.count_nonzero(self.pte & np.uint16(bits)))

    def page_flag(self, flag: Kpf) -> npt.NDArray[np.bool_] | None:
        """Whether each page has the flag, as an (n, PTRS) array; None without root."""
        if self.kpageflags is None:
            return None
        return cast(npt.NDArray[np.bool_], (self.kpageflags >> np.uint64(flag)) & 1 != 0)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A whole file. meta: all that docs/snapshot-format.md lists, as read."""

    schema: str
    kernel: str
    geometry: Geometry
    meta: Mapping[str, Any]
    privilege: Privilege
    unseen: tuple[str, ...]
    frozen: bool
    redacted: bool
    processes: tuple[ProcessTables, ...]

    @property
    def sysfs(self) -> Mapping[str, str]:
        """The files under /sys/kernel/mm/transparent_hugepage by relative path."""
        return cast(Mapping[str, str], self.meta["sysfs"])

    @property
    def tearing(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.meta["tearing"])


# member -> bytes of a value, and whether it has a column per PTE
MEMBERS = {
    "meta": (1, False),
    "table_address": (8, False),
    "table_process": (2, False),
    **{name: (width, True) for name, width in WIDTH.items()},
}
REQUIRED = ("meta", "table_address", "table_process", "pte")

MAX_PAGE_ORDER = 10
MOST_NODES = 1 << 10
MOST_CPUS = 1 << 13
"""Kernel: include/linux/mmzone.h, MAX_PAGE_ORDER; CONFIG_NODES_SHIFT and CONFIG_NR_CPUS at most."""


def load(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot in a file; SnapshotError with one line where it is not one."""
    where = os.fspath(path)
    try:
        with open_regular(path) as file:
            return read_snapshot(file, where)
    except OSError as error:
        raise SnapshotError(f"{where}: {error.strerror or error}") from None


def read_snapshot(file: IO[bytes], where: str) -> Snapshot:
    """The snapshot in an open file, called `where` in what a SnapshotError says."""
    arrays = _read_members(file, where)
    try:
        return _build(parse_object(arrays.pop("meta").tobytes()), arrays)
    except FileError as error:
        raise SnapshotError(f"{where}: {error}") from None
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise SnapshotError(f"{where}: member meta is malformed: {what}") from None


def _read_members(file: IO[bytes], where: str) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    name = ""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {entry.removesuffix(".npy") for entry in archive.namelist()}
            for name in REQUIRED:
                if name not in names:
                    raise SnapshotError(f"{where}: not a snapshot (no member {name})")
            for name in MEMBERS:
                if name in names:
                    with archive.open(name + ".npy") as member:
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    except (SnapshotError, OSError):
        raise
    except zipfile.BadZipFile as error:
        about = f"member {name} is damaged" if name else "not a snapshot, or truncated"
        raise SnapshotError(f"{where}: {about} ({error})") from None
    except Exception as error:  # a damaged member makes numpy and zipfile raise nearly anything
        line = str(error).split("\n")[0]
        raise SnapshotError(
            f"{where}: member {name} is damaged ({line or type(error).__name__})"
        ) from None
    return arrays


def _build(meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Snapshot:
    if meta.get("schema") != SCHEMA:
        raise SnapshotError(f"schema {meta.get('schema')!r} is not {SCHEMA!r}")
    geometry = _geometry(meta["page_size"], meta["pmd_size"])
    _check_shapes(arrays, geometry, len(meta["processes"]))
    _check_host(meta, arrays, geometry)
    described = meta["privilege"]
    return Snapshot(
        schema=SCHEMA,
        kernel=str(meta["kernel"]),
        geometry=geometry,
        meta=MappingProxyType(meta),
        privilege=Privilege(**{k: bool(described[k]) for k in Privilege.__dataclass_fields__}),
        unseen=tuple(meta["unseen"]),
        frozen=bool(meta["frozen"]),
        redacted=bool(meta["redacted"]),
        processes=tuple(
            _process(index, entry, arrays, geometry)
            for index, entry in enumerate(meta["processes"])
        ),
    )


def _geometry(page_size: int, pmd_size: int) -> Geometry:
    page_shift, pmd_shift = int(page_size).bit_length() - 1, int(pmd_size).bit_length() - 1
    try:
        geometry = Geometry(page_shift, pmd_shift - page_shift)
    except ValueError as error:
        raise SnapshotError(str(error)) from None
    if (geometry.page_size, geometry.pmd_size) != (page_size, pmd_size):
        raise SnapshotError(f"page_size {page_size} and pmd_size {pmd_size} are not powers of two")
    return geometry


def _check_shapes(arrays: dict[str, npt.NDArray[Any]], geometry: Geometry, processes: int) -> None:
    rows = len(arrays["table_address"]) if arrays["table_address"].ndim else 0
    for name, array in arrays.items():
        width, wide = MEMBERS[name]
        shape = (rows, geometry.ptrs_per_pte) if wide else (rows,)
        if array.dtype.kind != "u" or array.dtype.itemsize != width:
            raise SnapshotError(f"member {name} is {array.dtype}, not u{width}")
        if array.shape != shape:
            raise SnapshotError(f"member {name} has shape {array.shape}, not {shape}")
        arrays[name] = array.astype(f"u{width}", copy=False)
    owner = arrays["table_process"].astype(np.int64)
    if rows and (np.any(np.diff(owner) < 0) or owner[-1] >= processes):
        raise SnapshotError(
            f"member table_process is not ascending indices of {processes} processes"
        )


def _check_host(
    meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]], geometry: Geometry
) -> None:
    """Check that what sizes a world is no larger than a kernel can be built for."""
    cpus = int(meta.get("cpus") or 1)
    if cpus > MOST_CPUS:
        raise SnapshotError(f"cpus: {cpus} are more than {MOST_CPUS}")
    for node in re.findall(r"Node\s+(\d+)", str(meta.get("buddyinfo"))):
        if len(node) > 4 or int(node) >= MOST_NODES:
            raise SnapshotError(f"buddyinfo: node {node[:20]} is not below {MOST_NODES}")
    order = int(arrays["folio_order"].max(initial=0)) if "folio_order" in arrays else 0
    if order > max(geometry.pmd_order, MAX_PAGE_ORDER):
        raise SnapshotError(f"member folio_order: no folio has order {order}")


def _process(
    index: int, entry: dict[str, Any], arrays: dict[str, npt.NDArray[Any]], geometry: Geometry
) -> ProcessTables:
    first, last = np.searchsorted(arrays["table_process"], [index, index + 1])
    own = {name: array[first:last] for name, array in arrays.items() if name != "table_process"}
    pid = int(entry["pid"])
    where = f"process {pid}"
    vmas = tuple(_vma(vma) for vma in entry["vmas"])
    for before, after in pairwise(vmas):
        if after.start < before.end:
            raise SnapshotError(f"{where}: VMAs overlap or are unsorted at {after.start:#x}")
    for vma in vmas:
        if vma.start >= vma.end or (vma.start | vma.end) % geometry.page_size:
            raise SnapshotError(f"{where}: impossible VMA {vma.start:#x}-{vma.end:#x}")
    _check_tables(where, own, vmas, geometry)
    name = str(entry.get("comm") or f"pid {pid}")
    resident = resident_of(entry)
    for what, size in resident.bytes().items():
        if size is not None and size < 0:
            raise SnapshotError(f"{where}: negative sizes add up to {size} bytes of {what}")
    return ProcessTables(
        pid=pid, name=name, meta=MappingProxyType(entry), vmas=vmas, resident=resident, **own
    )


def _vma(entry: dict[str, Any]) -> SnapshotVma:
    return SnapshotVma(
        start=int(entry["start"]),
        end=int(entry["end"]),
        perms=str(entry["perms"]),
        flags=frozenset(str(entry["flags"]).split()),
        name=str(entry["path"]),
        anonymous=entry["skipped"] is None,
        skipped=entry["skipped"],
        captured=bool(entry.get("captured", entry["skipped"] is None)),
        kind=kind_of(entry),
        anonymous_bytes=int(entry.get("anonymous", 0)),
        referenced=int(entry.get("referenced", 0)),
        swap_bytes=int(entry.get("swap", 0)),
    )


def _check_tables(
    where: str, own: dict[str, npt.NDArray[Any]], vmas: tuple[SnapshotVma, ...], geometry: Geometry
) -> None:
    address, pte = own["table_address"], own["pte"]
    if np.any(address % np.uint64(geometry.pmd_size)):
        raise SnapshotError(f"{where}: a table address is not a multiple of {geometry.pmd_size}")
    if len(address) > 1 and np.any(address[1:] <= address[:-1]):
        k = int(np.argmax(address[1:] <= address[:-1])) + 1
        raise SnapshotError(f"{where}: tables are not ascending at {int(address[k]):#x}")
    starts = np.array([vma.start for vma in vmas if vma.captured], np.uint64)
    ends = np.array([vma.end for vma in vmas if vma.captured], np.uint64)
    # the VMA that ends after the table begins must begin before the table ends
    after = np.asarray(np.searchsorted(ends, address, side="right"))
    starts = np.append(starts, np.array([2**64 - 1], np.uint64))
    outside = np.flatnonzero(starts[after] >= address + np.uint64(geometry.pmd_size))
    if len(outside):
        at = int(address[outside[0]])
        raise SnapshotError(f"{where}: the table at {at:#x} is in no VMA that was captured")
    both = pte & np.uint16(Pte.PRESENT | Pte.SWAPPED) == Pte.PRESENT | Pte.SWAPPED
    if both.any():
        row, column = np.unravel_index(int(np.argmax(both)), both.shape)
        at = int(address[row]) + int(column) * geometry.page_size
        raise SnapshotError(f"{where}: the PTE at {at:#x} is both present and swapped")
