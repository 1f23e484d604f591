# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the resident memory of a captured process is, from what the file says of its mappings.

Kernel: fs/proc/task_mmu.c (smaps), mm/shmem.c; a mapping's kind follows from its file system.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from typing import Any, Mapping, Sequence

from mthp.image.capture.proc import SmapsEntry, text
from mthp.words.resident import MappingKind, Resident, by_size

_SHARED_MEMORY = ("/memfd:", "/SYSV", "/dev/zero", "/dev/shm/")
"""Names that only shared memory has."""
_DELETED = " (deleted)"
_KINDS = {kind.value: kind for kind in MappingKind}


def shmem_devices(pid: int) -> set[str]:
    """The devices, as maps prints them, whose files are shared memory: tmpfs as the process has it
    mounted, and the kernel's own mount, from which memfd and shared anonymous memory come."""
    found = set()
    for line in (text(f"/proc/{pid}/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("tmpfs "):
            major, _, minor = before.split()[2].partition(":")
            found.add(f"{int(major):02x}:{int(minor):02x}")
    with mmap.mmap(-1, mmap.PAGESIZE):
        maps = text("/proc/self/maps") or ""
    return found.union(re.findall(r"(?m)^\S+ \S+s \S+ (\S+) \d+ +/dev/zero \(deleted\)$", maps))


def mapping_kind(vma: SmapsEntry, shmem: set[str]) -> MappingKind:
    """What is behind a mapping's pages. shmem: devices of shared memory."""
    if vma.skipped is None:
        return MappingKind.ANONYMOUS
    if vma.skipped == "hugetlb":
        return MappingKind.HUGETLB
    if vma.path.startswith("["):  # vvar maps the kernel's own pages
        return MappingKind.SPECIAL
    if vma.skipped == "device or pfn mapping":
        return MappingKind.DEVICE
    return MappingKind.SHMEM if vma.dev in shmem else MappingKind.FILE


_PARTS_OF_PSS = 10_000
"""One of so many may be missing of the sum of what smaps rounds down to KiB for each mapping."""


def rollup(pid: int, vmas: Sequence[SmapsEntry] = ()) -> dict[str, int]:
    """The sums of smaps_rollup in bytes, by their names in small letters; {} before Linux 4.14.

    For it the kernel walks through all tables once more. Where the sums of smaps are near enough, they do:
    rss and pss of these VMAs.
    """
    known = {name: sum(vma.sizes.get(name, 0) for vma in vmas) for name in ("rss", "pss")}
    if known["pss"] > (len(vmas) << 10) * _PARTS_OF_PSS:
        return known
    lines = re.findall(r"(?m)^(\w+): +(\d+) kB$", text(f"/proc/{pid}/smaps_rollup") or "")
    return {name.lower(): int(kib) << 10 for name, kib in lines}


def kind_of(vma: Mapping[str, Any]) -> MappingKind:
    """The kind of a mapping of the file; in files that do not have kinds, as far as its name tells."""
    if "kind" in vma:
        return _KINDS[vma["kind"]]
    skipped, path = vma["skipped"], vma["path"]
    if skipped is None:
        return MappingKind.ANONYMOUS
    if path.startswith(_SHARED_MEMORY) and skipped != "hugetlb":
        return MappingKind.SHMEM
    named = {
        "hugetlb": MappingKind.HUGETLB,
        "special mapping": MappingKind.SPECIAL,
        "file mapping": MappingKind.FILE,
        "device or pfn mapping": MappingKind.DEVICE if path[:1] == "/" else MappingKind.SPECIAL,
    }
    return named.get(skipped, MappingKind.FILE if path else MappingKind.SHARED)


def kib_of(status: Mapping[str, str], name: str) -> int | None:
    """The bytes of a line of status; None where it has no such line."""
    kib = re.fullmatch(r"(\d{1,15}) kB", status.get(name, ""))
    return int(kib[1]) << 10 if kib else None


def resident_of(process: Mapping[str, Any]) -> Resident:
    """The resident memory of a process of the file, by what smaps said of each mapping."""
    numbers: dict[str, int | None] = dict.fromkeys(Resident().bytes(), 0)
    sizes: Counter[tuple[MappingKind, str]] = Counter()

    def add(name: str, amount: int | None) -> None:
        before = numbers[name]
        numbers[name] = None if before is None or amount is None else before + amount

    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for vma in process["vmas"]:
        what = vma.get("kind"), vma["skipped"], vma["path"], vma.get("captured")
        alike.setdefault(what, []).append(vma)
    for vmas in alike.values():
        kind, path = kind_of(vmas[0]), vmas[0]["path"]
        if path.startswith(_SHARED_MEMORY) and path.endswith(_DELETED):
            path = path[: -len(_DELETED)]  # it never had another name
        held = [(vma.get("rss", 0), vma.get("anonymous", 0)) for vma in vmas]
        anonymous = sum(written for _, written in held)
        other: int | None = sum(rss - written for rss, written in held if rss > written)
        add("rss", sum(rss for rss, _ in held))
        add("swap", sum(vma.get("swap", 0) for vma in vmas))
        own = "anonymous" if kind is MappingKind.ANONYMOUS else "anonymous_in_files"
        add(own, anonymous)
        if not vmas[0].get("captured", kind is MappingKind.ANONYMOUS):
            add("unmodelled", anonymous)
            sizes[MappingKind.ANONYMOUS, path] += anonymous
        if kind is MappingKind.HUGETLB:
            of_each: list[Any] = [vma.get("hugetlb") for vma in vmas]
            other = None if None in of_each else sum(of_each)
            add("hugetlb", other)
        elif kind is MappingKind.SHARED:
            for name in ("shmem", "file"):
                add(name, None if other else 0)
        else:
            add("shmem" if kind is MappingKind.SHMEM else "file", other)
        add("unmodelled", other)
        sizes[kind, path] += other or 0
        if kind is MappingKind.DEVICE:
            size = sum(vma["end"] - vma["start"] for vma in vmas)
            add("device", size)
            add("unmodelled", size)
            sizes[kind, path] += size
    numbers.update(
        pss=process.get("rollup", {}).get("pss"),
        page_tables=kib_of(process["status"], "VmPTE"),
        held_unmapped=None,
    )
    return Resident(**numbers, mappings=by_size(sizes))
