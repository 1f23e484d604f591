# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the resident memory of processes is, what of it is not modelled, and how that is said.

The capture takes this module along to hosts: the standard library of Python 3.8, and nothing else.
Kernel: fs/proc/task_mmu.c (smaps, smaps_rollup, status).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from mthp.words.units import human_bytes

SHOWN = 5
"""Unmodelled mappings, and processes, that are named one by one."""


class MappingKind(Enum):
    """What is behind the pages of a mapping."""

    ANONYMOUS = "anonymous"
    FILE = "file"
    SHMEM = "shmem"
    SHARED = "shared"
    """Of a file or of shared memory: a snapshot without kinds and names does not tell."""
    HUGETLB = "hugetlb"
    DEVICE = "device"
    SPECIAL = "special"


_COUNTED_IN = {
    MappingKind.ANONYMOUS: "RssAnon",
    MappingKind.FILE: "RssFile",
    MappingKind.SPECIAL: "RssFile",
    MappingKind.SHMEM: "RssShmem",
    MappingKind.SHARED: "RssShmem or RssFile",
    MappingKind.HUGETLB: "Hugetlb",
    MappingKind.DEVICE: "device memory",
}
"""Where the kernel counts what a mapping of the kind holds beside anonymous pages."""


class Unmodelled(NamedTuple):
    """Resident bytes, of all mappings with one name and kind, that no world has."""

    kind: MappingKind
    name: str
    bytes: int


class Resident(NamedTuple):
    """Where resident memory is, in bytes; None where it is not known.

    rss and pss are the kernel's own sums. anonymous: in anonymous mappings; anonymous_in_files: in
    private mappings of files, written over. shmem, file: what else Rss counts. hugetlb and device
    are not in Rss; device is the size of what devices map, of which the kernel counts nothing.
    swap: swapped out, shared memory included. held_unmapped: of folios of which other pages are
    mapped. unmodelled: all but the anonymous memory that the tables of the capture have.
    """

    rss: int | None = 0
    pss: int | None = 0
    anonymous: int | None = 0
    anonymous_in_files: int | None = 0
    shmem: int | None = 0
    file: int | None = 0
    hugetlb: int | None = 0
    device: int | None = 0
    swap: int | None = 0
    page_tables: int | None = 0
    held_unmapped: int | None = 0
    unmodelled: int | None = 0
    mappings: tuple[Unmodelled, ...] = ()

    def bytes(self) -> dict[str, int | None]:
        """Every number by its name."""
        numbers = self._asdict()
        del numbers["mappings"]
        return numbers


def total(parts: Iterable[Resident]) -> Resident:
    """The sums over several processes; unknown where one of them is. Mappings are those of all."""
    parts = list(parts)
    numbers: dict[str, int | None] = {}
    for name in Resident().bytes():
        each = [getattr(part, name) for part in parts]
        numbers[name] = None if None in each else sum(each)
    sizes: Counter[tuple[MappingKind, str]] = Counter()
    for part in parts:
        for mapping in part.mappings:
            sizes[mapping.kind, mapping.name] += mapping.bytes
    return Resident(**numbers, mappings=by_size(sizes))


def by_size(sizes: Counter[tuple[MappingKind, str]]) -> tuple[Unmodelled, ...]:
    """What the names hold, the largest first."""
    found = [Unmodelled(kind, name, size) for (kind, name), size in sizes.items() if size]
    return tuple(sorted(found, key=lambda each: (-each.bytes, each.name, each.kind.value)))


def resident_lines(whole: Resident, processes: Sequence[tuple[str, Resident]]) -> Iterator[str]:
    """What the kernel counts, in all and of each process, and what of it is not modelled, by mapping;
    the largest first. processes: what each is called.
    """
    yield _sums(whole)
    if len(processes) > 1:
        largest = sorted(processes, key=lambda each: -(each[1].rss or 0))
        for name, resident in largest[:SHOWN]:
            yield f"{name}: {_sums(resident)}"
        if len(largest) > SHOWN:
            others = sum(resident.rss or 0 for _, resident in largest[SHOWN:])
            yield f"and {len(largest) - SHOWN} more processes, Rss {human_bytes(others)} in all"
    shown, hidden = whole.mappings[:SHOWN], whole.mappings[SHOWN:]
    for each in shown:
        yield f"{unmodelled_text(each)}: not modelled"
    if hidden:
        rest = human_bytes(sum(each.bytes for each in hidden))
        yield f"and {len(hidden)} more, {rest} in all: not modelled"


def unmodelled_text(each: Unmodelled) -> str:
    """What the mappings of one name hold, and where the kernel counts it."""
    return f"{_COUNTED_IN[each.kind]} {human_bytes(each.bytes)} in {name_of(each)}"


def name_of(each: Unmodelled, most: int = 80) -> str:
    """The last letters of the mappings' name, or what they are. Whoever prints them makes them safe."""
    if not each.name:
        written_over = each.kind is MappingKind.ANONYMOUS
        return f"{'private file' if written_over else each.kind.value} mappings without a name"
    return each.name if len(each.name) <= most else f"…{each.name[-most:]}"


def _sums(resident: Resident) -> str:
    sums = f"Rss {_size(resident.rss)}, Pss {_size(resident.pss)}: "
    return sums + ", ".join(_parts(resident))


def _parts(resident: Resident) -> Iterator[str]:
    yield f"{_size(resident.anonymous)} anonymous"
    yield f"{_size(resident.anonymous_in_files)} anonymous in private file mappings"
    if resident.shmem is None:
        yield "shmem and file pages not told apart"
    else:
        yield f"{_size(resident.shmem)} shmem"
        yield f"{_size(resident.file)} file"
    beside = {
        "hugetlb": resident.hugetlb,
        "of devices": resident.device,
        "swapped out": resident.swap,
        "page tables": resident.page_tables,
    }
    others = [f"{_size(size)} {what}" for what, size in beside.items() if size != 0]
    if others:
        yield "beside Rss " + ", ".join(others)


def _size(size: int | None) -> str:
    return "unknown" if size is None else human_bytes(size)
