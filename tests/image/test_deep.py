# SPDX-License-Identifier: GPL-2.0-or-later
"""A deep capture's reading of a kernel's memory that was made by hand, by both looks at it."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mthp.image.capture import kernel
from mthp.image.capture.columns import Columns, redact
from mthp.image.capture.command import deep_line, main
from mthp.image.capture.deep import DeepReader
from mthp.image.capture.kernel import LiveKernel
from mthp.image.capture.pagemap import PRESENT, SWAPPED, ZERO, Batch
from mthp.image.capture.pages import Pages
from mthp.image.capture.proc import CaptureError, LeftOut
from mthp.image.pages_at_once import PagesAtOnce
from mthp.words.units import Geometry

from .made import BASE, made_deep
from .made import PMD as PMD_SIZE
from .made_kernel import DIRECT, PAGE, RAM, STRUCT_PAGES, MadeKernel, type_information

GEOMETRY = Geometry(12, 9)
PTRS = 512
HERE = 0x7F12_3460_0000
SMALL, FOLIO, PMD = 0x1000, 0x1400, 0x1800
"""Frames of small pages, of folios of order 2, and of one of order 9."""
KINDS = [Pages, PagesAtOnce]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MadeKernel]:
    it = MadeKernel(tmp_path)
    it.use(monkeypatch)
    yield it
    kernel.layout.cache_clear()
    os.close(it.file)


@pytest.fixture
def live(made: MadeKernel) -> Iterator[LiveKernel]:
    it = LiveKernel()
    yield it
    it.close()


def folio(it: MadeKernel, head: int, order: int, **fields: int) -> None:
    """A large folio that one mm maps whole, but for what is said."""
    nr = 1 << order
    usual = {
        "flags": 1 << 6, "_refcount": nr, "_large_mapcount": nr - 1, "_flags_1": order, "_mm_ids": 7,
        "_mm_id_mapcount": (nr - 1) | 0xFFFFFFFF << 32,
    }  # fmt: skip
    if order > 1:
        usual["_deferred_list"] = STRUCT_PAGES + head * 64 + 144
    it.struct_page(head, **{**usual, **fields})


def words(data: bytes, kind: Literal["H", "I", "Q"]) -> list[int]:
    return list(memoryview(data).cast(kind))


# The process, khugepaged, batches


def test_the_process_is_found_by_when_it_started(made: MadeKernel, live: LiveKernel) -> None:
    made.put(made.mm + 128, 1 << 24 | 1 << 27)
    mm = live.mm_of(os.getpid())
    assert (mm.address, mm.pgd, mm.mm_id) == (made.mm + DIRECT, made.pgd + DIRECT, 7)
    assert mm.pinned and mm.disable_thp == "completely"
    made.put(made.task + 40, 5)
    with pytest.raises(LeftOut, match="exited"):
        live.mm_of(os.getpid())


def test_bit_23_is_another_thing_before_mm_flags_t(made: MadeKernel, live: LiveKernel) -> None:
    made.put(made.mm + 128, 1 << 23)
    assert live.mm_of(os.getpid()).disable_thp == "no"


def test_the_list_of_khugepaged(made: MadeKernel, live: LiveKernel) -> None:
    reader = DeepReader(live, Pages(live, PTRS), GEOMETRY)
    reader.enter(os.getpid())
    assert reader.meta() == {"mms": 0, "at": None, "address": 0}
    assert reader.process()["registered"] is None
    made.registered(made.pgd, made.mm, made.task, at=2, address=HERE)
    reader = DeepReader(live, Pages(live, PTRS), GEOMETRY)
    reader.enter(os.getpid())
    assert reader.meta() == {"mms": 3, "at": 2, "address": HERE}
    assert reader.process()["registered"] == 1


@pytest.mark.parametrize("to", [8, (1 << 64) - 8])
def test_a_list_that_leads_nowhere_ends(made: MadeKernel, live: LiveKernel, to: int) -> None:
    made.put(made.at["khugepaged_scan"], to)
    with pytest.raises(CaptureError, match="has nothing at 0x"):
        live.khugepaged()


def test_a_list_without_end_ends(
    made: MadeKernel, live: LiveKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_MOST_TASKS", 1 << 10)
    alone = made.page()
    made.put(alone, alone + DIRECT)
    made.put(made.at["khugepaged_scan"], alone + DIRECT)
    made.put(made.task + 8, made.task + 8 + DIRECT)
    made.put(made.task + 40, 5)
    with pytest.raises(CaptureError, match="a list of khugepaged"):
        live.khugepaged()
    with pytest.raises(CaptureError, match="a list of processes that does not end"):
        live.mm_of(os.getpid())


def test_folios_that_wait_in_batches(made: MadeKernel, live: LiveKernel) -> None:
    base = made.page()
    made.put(made.at["__per_cpu_offset"], base)
    every, mlock = made.at["cpu_fbatches"] + base, made.at["mlock_fbatch"] + base
    made.put(every, 2, STRUCT_PAGES + 64 * SMALL, STRUCT_PAGES + 64 * FOLIO)
    made.put(every + 256, 1, STRUCT_PAGES + 64 * (SMALL + 1))
    made.put(every + 384, 0, STRUCT_PAGES + 64 * (SMALL + 2))
    made.put(mlock, 1, STRUCT_PAGES + 64 * SMALL | 2)
    assert live.batches() == {SMALL: 8 | 128, FOLIO: 8, SMALL + 1: 32}


def node_of_tree(it: MadeKernel, kind: int, pivots: list[int], slots: list[int]) -> int:
    """A node of a maple tree, as what stands above it names it. kind: 1 leaf, 2 range, 3 with gaps."""
    at, first = it.page(), 80 if kind == 3 else 128
    it.put(at + 8, *pivots)
    it.put(at + first, *slots)
    return at + DIRECT | kind << 3 | 4


def test_vmas_of_a_tree_of_three_levels(made: MadeKernel, live: LiveKernel) -> None:
    vmas = []
    for k in range(4):
        vma = made.page()
        made.put(vma, HERE + k * PAGE, HERE + (k + 1) * PAGE, 0, 0, 0, k % 2)
        vmas.append(vma + DIRECT)
    end = HERE + 2 * PAGE - 1
    low = node_of_tree(made, 1, [HERE - 1, HERE + PAGE - 1, end], [0, vmas[0], vmas[1], 0xBAD1])
    full = [end + 1 + k for k in range(15)]
    high = node_of_tree(made, 1, full, [vmas[2], *[0] * 14, vmas[3]])
    inner = node_of_tree(made, 2, [end], [low, high])
    root = node_of_tree(made, 3, [(1 << 63) - 1], [inner, node_of_tree(made, 1, [], [0])])
    made.put(made.mm + 72, root & ~4 | 2)
    mm = live.mm_of(os.getpid())
    expected = {(HERE + k * PAGE, HERE + (k + 1) * PAGE): k % 2 == 1 for k in range(4)}
    assert live.anon_vmas(mm) == expected
    made.put((inner & ~255) - DIRECT + 128, root)
    with pytest.raises(CaptureError, match="no tree of VMAs"):
        live.anon_vmas(mm)


# What a kernel or a host lacks


def test_what_it_lacks_is_named_in_one_line(made: MadeKernel) -> None:
    made.btf.write_bytes(type_information("_large_mapcount", "PG_partially_mapped"))
    made.write_symbols({name: at for name, at in made.at.items() if name != "mlock_fbatch"})
    with pytest.raises(CaptureError) as caught:
        LiveKernel()
    assert caught.value.code == 5
    assert str(caught.value) == (
        "--deep: this kernel lacks folio._large_mapcount, PG_partially_mapped, symbol mlock_fbatch"
    )


def test_a_kernel_without_mm_ids(made: MadeKernel) -> None:
    made.btf.write_bytes(type_information("mm_id", "_mm_ids", "_mm_id_mapcount"))
    live = LiveKernel()
    assert live.mm_of(os.getpid()).mm_id is None
    folio(made, FOLIO, 2)
    for kind in KINDS:
        found = kind(live, PTRS).look_up(array("Q", [FOLIO]), b"\2")
        assert words(found.members["mm_ids"], "Q") == [0] and found.broken == b"\0"
    live.close()


@pytest.mark.parametrize("name", ["core", "btf", "kallsyms"])
def test_a_file_that_is_not_there(made: MadeKernel, name: str) -> None:
    path: Path = getattr(made, name)
    path.unlink()
    with pytest.raises(CaptureError, match=f"--deep needs {path}: No such file") as caught:
        LiveKernel()
    assert caught.value.code == 5


def test_a_file_that_is_none(made: MadeKernel) -> None:
    made.btf.write_bytes(b"a")
    with pytest.raises(CaptureError, match="--deep: 1 bytes are no type information"):
        LiveKernel()


# Entries and pages


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("entry", "bits", "frame"),
    [
        (0x1234_5000 | 0x67, 0b0000111, 0x12345),
        (0x1234_5000 | 0x25, 0b0000001, 0x12345),
        (1 << 63 | 0x1234_5000 | 0x805, 0b0001000, 0x12345),
        (0x1234_5000 | 0xC25, 0b0011001, 0x12345),
        (1 << 58 | 0x1234_5000 | 0x25, 0b0000011, 0x12345),
        ((~0x1234_5000 & (1 << 52) - (1 << 12)) | 0x560, 0b0110011, 0x12345),
        (0, 0, 0),
        (1 << 58 | 0xA, 0b1001000, 0),
        (0x7FF_FFFF_F000 | 0x6, 0b0011000, 0),
    ],
)
def test_entries(live: LiveKernel, kind: type[Pages], entry: int, bits: int, frame: int) -> None:
    """young, dirty and writable; read-only; soft-dirty; uffd; dirty but saved; PROT_NONE with its frame
    turned over; nothing; swapped, exclusive; a marker."""
    found, frames = kind(live, PTRS).decode(entry.to_bytes(8, "little") * 2)
    assert list(found) == [bits] * 2 and list(frames) == [frame] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_folios(made: MadeKernel, live: LiveKernel, kind: type[Pages]) -> None:
    made.struct_page(SMALL, flags=1 << 11, _refcount=1, _mapcount=0)
    made.struct_page(SMALL + 1, flags=1 << 27 | 1 << 9, _refcount=1024 + 2, _mapcount=1)
    folio(made, FOLIO, 2, _refcount=9, _mm_ids=1 << 63 | 8 << 32 | 1 << 31 | 7, _pincount=1)
    made.struct_page(FOLIO + 1, flags=1 << 11 | 2)
    folio(made, PMD, 9, flags=1 << 27 | 1 << 6, _flags_1=9 | 1 << 16, _deferred_list=DIRECT)
    folio(made, PMD + 512, 9, _deferred_list=0xDEAD_0000_0000_0100)
    pages = kind(live, PTRS)
    pages.batches = {FOLIO: 8, SMALL: 32, SMALL + 1000: 64}
    frames = [SMALL, SMALL + 1, 0, FOLIO + 1, FOLIO + 2, PMD + 5, PMD + 512]
    found = pages.look_up(array("Q", frames), bytes([0, 0, 0, 2, 2, 9, 9]))
    members = found.members
    assert words(members["refcount"], "I") == [1, 1026, 0, 9, 9, 512, 512]
    assert words(members["folio_mapcount"], "I") == [1, 2, 0, 4, 4, 512, 512]
    assert words(members["folio_state"], "H") == [32, 512 | 256 | 4, 0, *2 * [4 | 8], 512 | 3, 0]
    both = 1 << 63 | 8 << 32 | 7
    assert words(members["mm_ids"], "Q") == [0, 0, 0, both, both, 7, 7]
    assert words(members["mm_id_mapcounts"], "Q")[3:6] == [0xFFFFFFFF << 32 | 3] * 2 + [
        0xFFFFFFFF << 32 | 511
    ]
    assert list(found.exclusive) == [1, 0, 0, 1, 0, 0, 0] and not any(found.broken)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_that_are_not_what_they_were(
    made: MadeKernel, live: LiveKernel, kind: type[Pages]
) -> None:
    made.struct_page(SMALL, _refcount=1, _mapcount=1)
    folio(made, FOLIO, 2, _flags_1=3)
    folio(made, FOLIO + 4, 2, flags=0)
    folio(made, FOLIO + 8, 2, _refcount=3)
    frames = [SMALL, FOLIO, FOLIO + 4, FOLIO + 8, 1 << 30]
    found = kind(live, PTRS).look_up(array("Q", frames), bytes([0, 2, 2, 2, 0]))
    assert found.broken == b"\1" * 5


some_folios = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 40), st.lists(st.integers(0, 3), min_size=8, max_size=8)),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(some_folios, st.data())
def test_both_looks_find_the_same(
    made: MadeKernel, live: LiveKernel, of: list[tuple[int, int, list[int]]], data: st.DataObject
) -> None:
    at, frames = 0x1000, {0: 0}
    for order, gap, values in of:
        head = at + gap + (-(at + gap) % (1 << order))
        at = head + (1 << order)
        flags = (1 << 6) * (order > 0) | values[0] << 9
        if order:
            folio(
                made, head, order, flags=flags, _flags_1=order | (values[1] == 3), _pincount=values[2],
                _deferred_list=values[3], _mm_ids=values[4] << 31, _large_mapcount=values[5] - 1,
            )  # fmt: skip
        else:
            made.struct_page(
                head, flags=flags, _refcount=1 << 5 * values[1], _mapcount=values[2] - 1
            )
        frames.update(dict.fromkeys(range(head, at), order))
    pfns = data.draw(st.lists(st.sampled_from(sorted(frames)), min_size=1, max_size=64))
    found = []
    for kind in KINDS:
        pages = kind(live, PTRS)
        pages.batches = {0x1000: 8, 0x1010: 16}
        found.append(pages.look_up(array("Q", pfns), bytes(frames[pfn] for pfn in pfns)))
    assert found[0] == found[1]
    raw = data.draw(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=32))
    packed = array("Q", raw).tobytes()
    assert Pages(live, PTRS).decode(packed) == PagesAtOnce(live, PTRS).decode(packed)


# Batches of tables


def batch_of(low: list[int]) -> Batch:
    return Batch([HERE + k * PTRS * PAGE for k in range(len(low) // PTRS)], bytearray(low), None)


def added(live: LiveKernel, batch: Batch, frames: list[int], order: int) -> dict[str, bytes]:
    reader = DeepReader(live, Pages(live, PTRS), GEOMETRY)
    reader.enter(os.getpid())
    parts: dict[str, bytes] = {}
    reader.add(parts, batch, array("Q", frames), bytes([order if frame else 0 for frame in frames]))
    return parts


def test_a_table_of_small_pages(made: MadeKernel, live: LiveKernel) -> None:
    for k in range(3):
        made.struct_page(SMALL + k, flags=1 << 11, _refcount=1, _mapcount=0)
    entries = [SMALL + k << 12 | 0x67 for k in range(3)]
    made.map(HERE, [*entries, 0x5 << 40 | 0x8, SMALL + 9 << 12 | 0x25, *[0] * 507])
    low = [PRESENT, PRESENT, PRESENT, SWAPPED, PRESENT | ZERO, *[0] * 507]
    frames = [SMALL, SMALL + 1, SMALL + 2, 0, SMALL + 9, *[0] * 507]
    batch = batch_of(low)
    parts = added(live, batch, frames, 0)
    assert list(parts["pte_bits"][:6]) == [71, 71, 71, 64, 1, 0]
    assert words(parts["refcount"], "I")[:6] == [1, 1, 1, 0, 0, 0] and not batch.misfits
    low[1] = 0
    parts = added(live, batch_of(low), [SMALL, 0, *frames[2:]], 0)
    assert list(parts["pte_bits"][:3]) == [71, 0, 71], "what is in no VMA is not told"


def test_pages_that_hold_nothing_but_zeros(made: MadeKernel, live: LiveKernel) -> None:
    zeros, more, filled, last = (made.page() for _ in range(4))
    made.put(filled + 8, 1)
    made.put(last + PAGE - 8, 1 << 63)
    frames = [0, *(page // PAGE for page in (zeros, more, filled, last, zeros)), 1 << 40]
    reader = DeepReader(live, Pages(live, PTRS), GEOMETRY)
    assert reader.zero_filled(array("Q", frames)) == bytes([0, 1, 1, 0, 0, 1, 0])


@pytest.mark.parametrize(
    ("entry", "bits"),
    [
        (PMD << 12 | 0xE7, 7),
        (1 << 63 | PMD << 12 | 0x18E7, 15),
        (((~PMD << 12) & ((1 << 52) - (1 << 21))) | 0x1E0, 35),
    ],
)
def test_a_huge_pmd_and_no_table_at_all(
    made: MadeKernel, live: LiveKernel, entry: int, bits: int
) -> None:
    folio(made, PMD, 9, _refcount=1, _large_mapcount=0)
    made.map(HERE, [entry])
    frames = [*range(PMD, PMD + 512), *[0] * 512]
    batch = batch_of([PRESENT] * 512 + [SWAPPED] + [0] * 511)
    parts = added(live, batch, frames, 9)
    assert parts["pte_bits"] == bytes([bits] * 512 + [0] * 512) and not batch.misfits


@pytest.mark.parametrize(
    "entry", [SMALL + 1 << 12 | 0x67, 0, SMALL << 12 | 0x66, RAM + (SMALL << 12) | 0x67]
)
def test_tables_that_pagemap_contradicts(made: MadeKernel, live: LiveKernel, entry: int) -> None:
    made.struct_page(SMALL, _refcount=1, _mapcount=0)
    made.map(HERE, [entry, *[0] * 511])
    batch = batch_of([PRESENT] + [0] * 511)
    added(live, batch, [SMALL, *[0] * 511], 0)
    assert batch.misfits == [0]


def test_tables_with_nothing_in_them(made: MadeKernel, live: LiveKernel) -> None:
    size = PTRS * PAGE
    for k in (0, 1, 2, 4, 600):
        made.map(HERE + k * size, [0] * 512)
    made.map(HERE + 3 * size, [PMD << 12 | 0xE7])
    reader = DeepReader(live, Pages(live, PTRS), GEOMETRY)
    reader.enter(os.getpid())
    windows = [(HERE, HERE + 5 * size), (HERE + 512 * size, HERE + 700 * size)]
    reader.note_empty(windows, {HERE})
    assert reader.process()["empty_tables"] == [
        [HERE + size, HERE + 3 * size], [HERE + 4 * size, HERE + 5 * size],
        [HERE + 600 * size, HERE + 601 * size],
    ]  # fmt: skip


def test_a_page_table_that_is_no_memory(made: MadeKernel, live: LiveKernel) -> None:
    made.map(HERE, [0] * 512)
    made.put(made.pgd + 8 * (HERE >> 39), 1 << 45 | 0x67)
    batch = batch_of([PRESENT] + [0] * 511)
    added(live, batch, [SMALL, *[0] * 511], 0)
    assert batch.misfits == [0]


# The command


def test_redacted_addresses_move_together() -> None:
    meta = made_deep().meta
    before = [process["vmas"][0]["start"] for process in meta["processes"]]
    columns = Columns(Geometry(12, 4), None, ["pte"])
    redact(meta, columns)
    columns.close()
    assert meta["deep"] == {"mms": 2, "at": 1, "address": 0}
    second = meta["processes"][1]
    moved = second["vmas"][0]["start"] - before[1]
    assert second["deep"]["empty_tables"] == [
        [BASE + 3 * PMD_SIZE + moved, BASE + 4 * PMD_SIZE + moved]
    ]


def test_what_is_said_of_it() -> None:
    it = made_deep()
    columns = Columns(Geometry(12, 4), None, ["pte", "pte_bits"])
    parts = {name: it.arrays[name].tobytes() for name in ("pte", "pte_bits")}
    columns.add(0, it.arrays["table_address"].tolist(), parts)
    said = deep_line(it.meta, columns)
    columns.close()
    assert said == (
        "deep: 38 of 39 pages are young; khugepaged's list has 2 mm(s), 1 of these 2 process(es) among them"
    )


def test_zeros_go_with_deep(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--pid", str(os.getpid()), "--zeros", "-o", str(tmp_path / "x.npz")]) == 2
    assert capsys.readouterr().err == "mthp-snap: --zeros goes with --deep\n"


@pytest.mark.skipif(os.path.exists(kernel.KCORE), reason="this host has it")
def test_a_host_without_the_kernels_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a.npz")
    assert main(["--pid", "self", "--deep", "-o", out]) == 5
    line = capsys.readouterr().err
    assert line.startswith("mthp-snap: --deep") and line.count("\n") == 1
    assert main(["--pid", "self", "--deep", "--no-exclusive", "-o", out]) == 2
    assert os.listdir(tmp_path) == []
