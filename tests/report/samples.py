# SPDX-License-Identifier: GPL-2.0-or-later
"""Outcomes made by hand, and what is needed to print them and compare with a golden file."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mthp.mm.huge_mm import VmaGate
from mthp.predict.records import (
    Basis,
    Change,
    ChangeKind,
    Clock,
    Effort,
    OrderUse,
    Others,
    Outcome,
    PartlyMapped,
    Price,
    ProcessUse,
    Proposal,
    Refusal,
    RefusedAt,
    TimePoint,
    Verified,
    VmaUse,
    WindowGate,
)
from mthp.words.resident import MappingKind, Resident, Unmodelled
from mthp.words.results import ScanResult
from mthp.words.settings import Enabled, Settings

GOLDEN = Path(__file__).parent / "golden"
MIB = 1024 * 1024


def console(width: int = 100) -> Console:
    """No colour, into memory."""
    return Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)


def printed(page: Console) -> str:
    """What was printed; blanks at the ends of lines are padding."""
    assert isinstance(page.file, io.StringIO)
    return "".join(line.rstrip() + "\n" for line in page.file.getvalue().splitlines())


def golden(name: str, text: str) -> None:
    """Compare with a golden file. UPDATE_GOLDEN=1 writes it instead."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def vma(start: int, pages: int, name: str, before: dict[int, int], after: dict[int, int]) -> VmaUse:
    """A mapping nothing of which is swapped or zero."""
    end = start + pages * 4096
    return VmaUse(812, start, end, name, "", before, after, swapped=0, zero=0)


def raising(knob: str, value: int) -> Proposal:
    """A limit that would let all pages in."""
    change = Change(ChangeKind.RAISE_KNOB, knob=knob, value=value)
    return Proposal((change,), 1, 1, Price(value * 4096, -500, 12 * 4096))


def refused(address: int, pages: int, **fields: object) -> Refusal:
    """A run of pages refused for its holes, unless fields say otherwise."""
    values: dict[str, object] = {
        "pid": 812,
        "address": address,
        "span": pages + 4,
        "pages": pages,
        "mapped": pages,
        "distinct": pages,
        "order": 9,
        "stage": RefusedAt.OCCUPANCY,
        "status": WindowGate.TOO_FEW,
        "allowed_empty": 0,
        "change": raising("max_ptes_none", 511),
        "verified": Verified.GROUP,
    }
    return Refusal(**{**values, **fields})  # type: ignore[arg-type]


VMAS = (
    vma(0x55D0_0000_0000, 33, "[heap]", {0: 132 * 1024}, {0: 132 * 1024}),
    vma(0x7F00_0000_0000, 16384, "", {0: 40 * MIB, 4: 4 * MIB}, {0: 2 * MIB, 4: MIB, 9: 48 * MIB}),
    VmaUse(
        812,
        0x7F10_0000_0000,
        0x7F10_0080_0000,
        "[anon: jemalloc arena with a very long name indeed]",
        "",
        {0: 4 * MIB},
        {0: MIB, 4: 3 * MIB},
        swapped=2 * MIB,
        zero=8192,
    ),
    VmaUse(
        812,
        0x7F20_0000_0000,
        0x7F20_0020_0000,
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
        "a file mapping",
        {},
        {},
        swapped=0,
        zero=0,
    ),
    vma(0x7FFC_0000_0000, 33, "[stack]", {0: 64 * 1024}, {0: 64 * 1024}),
)

REFUSALS = (
    refused(0x7F00_0100_0000, 200),
    refused(0x7F00_0200_0000, 100, verified=Verified.RUN),
    refused(
        0x7F10_0000_0000,
        16,
        order=4,
        stage=RefusedAt.ATTEMPT,
        status=ScanResult.PAGE_COUNT,
        change=Proposal((Change(ChangeKind.CLEAR_PINS, (3,)),), 16, 16, Price(0, 0, 65536)),
        verified=Verified.RUN,
    ),
    refused(
        0x55D0_0000_0000,
        33,
        order=None,
        stage=RefusedAt.VMA,
        status=VmaGate.TOO_SHORT,
        change=None,
        verified=Verified.NONE,
    ),
    refused(
        0x7F10_0040_0000,
        8,
        stage=RefusedAt.SCAN,
        status=ScanResult.EXCEED_SWAP_PTE,
        change=raising("max_ptes_swap", 128),
        verified=Verified.NONE,
    ),
)

RESIDENT = Resident(
    rss=60 * MIB,
    pss=58 * MIB,
    anonymous=48 * MIB,
    anonymous_in_files=MIB,
    shmem=8 * MIB,
    file=3 * MIB,
    swap=2 * MIB,
    page_tables=MIB // 4,
    held_unmapped=2 * MIB,
    unmodelled=11 * MIB,
    mappings=(
        Unmodelled(MappingKind.SHMEM, "/memfd:cache", 8 * MIB),
        *(Unmodelled(MappingKind.FILE, f"/usr/lib/lib{k}.so", MIB // 2) for k in range(6)),
    ),
)

OUTCOME = Outcome(
    basis=Basis(
        "redis-server, pid 812",
        "snapshot redis.npz",
        "7.3",
        "default: captured kernel 6.18 knows no multi-size collapse",
        assumptions=("young: from smaps' Referenced per mapping",),
        unseen=("no root: folio orders; base pages are assumed",),
        usual=frozenset({"young: from smaps' Referenced per mapping"}),
    ),
    settings=Settings(max_ptes_none=0, sizes={4: Enabled.ALWAYS, 9: Enabled.ALWAYS}),
    page_size=4096,
    pmd_order=9,
    highest_order=9,
    processes=1,
    orders_before={0: OrderUse(11313, 44 * MIB + 196 * 1024), 4: OrderUse(64, 4 * MIB)},
    orders_after={
        0: OrderUse(817, 3 * MIB + 196 * 1024),
        4: OrderUse(64, 4 * MIB),
        9: OrderUse(24, 48 * MIB),
    },
    memory_added=7 * MIB,
    copied_bytes=44 * MIB,
    collapsed_bytes=51 * MIB,
    swapped_in_bytes=0,
    successes=Effort(72, 144 * MIB, 72, 17_408, 51 * MIB),
    refused=Effort(5, 8 * MIB, 4, 1984, 4 * MIB),
    tlb="plain",
    tlb_before=12_337,
    tlb_after=1865,
    clock=Clock(3, 7, 70_000, 60_000, work_ms=12, last_collapse_ms=100_012),
    fixed_point=True,
    complete=True,
    attempts={
        (9, ScanResult.SUCCEED): 24,
        (4, ScanResult.SUCCEED): 48,
        (4, ScanResult.PAGE_COUNT): 3,
        (9, ScanResult.PTE_NON_PRESENT): 1,
        (9, ScanResult.ALLOC_HUGE_PAGE_FAIL): 1,
    },
    counters={"vmstat": {"thp_collapse_alloc": 28}, "khugepaged": {"full_scans": 3}},
    refusals=REFUSALS,
    vmas=VMAS,
    by_process=(
        ProcessUse(812, "redis-server", {0: 44 * MIB}, {9: 44 * MIB}, 2 * MIB, 7 * MIB, RESIDENT),
    ),
    resident=RESIDENT,
    partly_before=PartlyMapped(3, 2 * MIB, MIB),
    warnings=("3 pages changed while they were read",),
    timeline=(
        TimePoint(10_004, 2 * MIB, 16 * MIB),
        TimePoint(20_008, 6 * MIB, 40 * MIB),
        TimePoint(100_012, 7 * MIB, 51 * MIB),
    ),
    others=Others(23, 1200 * MIB, scanned=False),
    seconds=1.25,
)

ALTERNATIVES = {
    "enabled=always": OUTCOME,
    "enabled=always, max_ptes_none=0": replace(
        OUTCOME, orders_after=OUTCOME.orders_before, memory_added=0, clock=Clock(1, 1, 0, 0)
    ),
}
