# SPDX-License-Identifier: GPL-2.0-or-later
"""What is behind a mapping's pages, by what maps and smaps say of it."""

from __future__ import annotations

import mmap
import os
from typing import Any

import pytest

from mthp.image.capture.proc import SmapsEntry, parse_smaps
from mthp.image.capture.resident import kind_of, mapping_kind, resident_of, rollup, shmem_devices
from mthp.words.resident import MappingKind

MIB = 1 << 20
SMAPS = b"""\
7f0000000000-7f0000200000 rw-s 00000000 00:0f 7 /anon_hugepage (deleted)
Rss:                   0 kB
Anonymous:             0 kB
Shared_Hugetlb:     1024 kB
Private_Hugetlb:    1024 kB
VmFlags: rd wr sh mr mw me ms de ht
7f0000200000-7f0000300000 rw-s 00000000 00:06 9 /dev/gpu0
Rss:                   0 kB
VmFlags: rd wr sh mr mw me ms pf io de
7f0000300000-7f0000304000 r--p 00000000 00:00 0 [vvar]
Rss:                   0 kB
VmFlags: rd mr pf io de dd
7f0000400000-7f0000600000 rw-s 00000000 00:19 3 /run/of-a-tmpfs
Rss:                2048 kB
Anonymous:             0 kB
Swap:                 12 kB
VmFlags: rd wr sh mr mw me ms
7f0000600000-7f0000800000 rw-p 00000000 fe:00 3 /data/image
Rss:                2048 kB
Anonymous:          1536 kB
VmFlags: rd wr mr mw me
7f0000800000-7f0000a00000 r--p 00000000 fe:00 3 /data/image
Rss:                 100 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
"""
KINDS = [
    MappingKind.HUGETLB,
    MappingKind.DEVICE,
    MappingKind.SPECIAL,
    MappingKind.SHMEM,
    MappingKind.FILE,
    MappingKind.FILE,
]


def entries() -> list[SmapsEntry]:
    return parse_smaps(SMAPS)


def test_a_mapping_has_no_thousand_rows() -> None:
    with pytest.raises(ValueError, match="no VMA"):
        parse_smaps(SMAPS.splitlines(keepends=True)[0] + b"Row: 1 kB\n" * 1000)


def described(**more: object) -> dict[str, Any]:
    """A process of the file that has these mappings."""
    vmas = [
        {
            "start": vma.start, "end": vma.end, "path": vma.path, "skipped": vma.skipped,
            "captured": vma.captured, "kind": mapping_kind(vma, {"00:19"}).value, **vma.sizes,
        }
        for vma in entries()
    ]  # fmt: skip
    return {"vmas": vmas, "status": {"VmPTE": "100 kB"}, "rollup": {"pss": 5 * MIB}, **more}


def test_kinds() -> None:
    assert [mapping_kind(vma, {"00:19"}) for vma in entries()] == KINDS
    assert [vma.captured for vma in entries()] == [False] * 4 + [True, False]


def test_the_sums() -> None:
    known = resident_of(described())
    assert known.bytes() == {
        "rss": 2 * 2 * MIB + (100 << 10),
        "pss": 5 * MIB,
        "anonymous": 0,
        "anonymous_in_files": 3 * MIB // 2,
        "shmem": 2 * MIB,
        "file": MIB // 2 + (100 << 10),
        "hugetlb": 2 * MIB,
        "device": MIB,
        "swap": 12 << 10,
        "page_tables": 100 << 10,
        "held_unmapped": None,
        "unmodelled": 2 * MIB + MIB // 2 + (100 << 10) + 2 * MIB + MIB,
    }
    assert [(each.kind, each.name) for each in known.mappings] == [
        (MappingKind.HUGETLB, "/anon_hugepage (deleted)"),
        (MappingKind.SHMEM, "/run/of-a-tmpfs"),
        (MappingKind.DEVICE, "/dev/gpu0"),
        (MappingKind.FILE, "/data/image"),
    ]


def test_an_old_file_says_what_its_names_tell() -> None:
    """There a tmpfs file cannot be told from another, hugetlb was not counted, and no file's anonymous
    page was captured."""
    process = described()
    for vma in process["vmas"]:
        for key in ("kind", "captured", "hugetlb"):
            vma.pop(key, None)
    del process["rollup"]
    known = resident_of(process)
    assert (known.pss, known.hugetlb, known.unmodelled) == (None, None, None)
    assert (known.shmem, known.anonymous_in_files) == (0, 3 * MIB // 2)
    assert any(each.kind is MappingKind.ANONYMOUS for each in known.mappings)


@pytest.mark.parametrize(
    ("skipped", "path", "kind"),
    [
        ("shared mapping", "/memfd:guest (deleted)", MappingKind.SHMEM),
        ("shared mapping", "/dev/zero (deleted)", MappingKind.SHMEM),
        ("shared mapping", "/SYSV00000000 (deleted)", MappingKind.SHMEM),
        ("shared mapping", "", MappingKind.SHARED),
        ("shared mapping", "/var/lib/db", MappingKind.FILE),
        ("file mapping", "", MappingKind.FILE),
        ("hugetlb", "/SYSV00000000 (deleted)", MappingKind.HUGETLB),
        (None, "[heap]", MappingKind.ANONYMOUS),
    ],
)
def test_kinds_by_name(skipped: str | None, path: str, kind: MappingKind) -> None:
    assert kind_of({"skipped": skipped, "path": path}) is kind


def test_this_process() -> None:
    with mmap.mmap(-1, 4 * mmap.PAGESIZE) as shared:
        shared[:] = b"x" * len(shared)
        devices = shmem_devices(os.getpid())
        with open("/proc/self/smaps", "rb") as lines:
            mine = [vma for vma in parse_smaps(lines.read()) if vma.path == "/dev/zero (deleted)"]
    assert mine and all(mapping_kind(vma, devices) is MappingKind.SHMEM for vma in mine)
    sums = rollup(os.getpid())
    assert 0 < sums["pss"] <= sums["rss"] and sums["anonymous"] > 0
    assert rollup(0) == {}


def test_the_sums_of_smaps_stand_for_smaps_rollup_where_rounding_loses_little() -> None:
    """Each mapping's Pss is rounded down to KiB: ten may lose 10 KiB, and of 200 MiB that is little."""
    (entry,) = parse_smaps(b"1000-2000 rw-p 0 00:00 0 \nRss: 30000 kB\nPss: 20480 kB\n")
    assert rollup(0, [entry] * 10) == {"rss": 300_000 << 10, "pss": 204_800 << 10}
    (less,) = parse_smaps(b"1000-2000 rw-p 0 00:00 0 \nRss: 30000 kB\nPss: 9999 kB\n")
    assert rollup(0, [less] * 10) == {}
