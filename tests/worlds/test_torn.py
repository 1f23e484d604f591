# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables that changed while they were read: found, kept from doing harm, and said."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot, load
from mthp.predict.image import Image, capture
from mthp.report.text import render_outcome
from mthp.words.results import ScanResult
from mthp.words.settings import Enabled
from mthp.worlds.torn import settled

REDIS = Path(__file__).parents[2] / "src/mthp/data/redis.npz"
BASE = 0x7F0000000000
PMD = 2 << 20
LAST = 1 << 40


@pytest.fixture
def image() -> Snapshot:
    """Three full tables of base pages, in one mapping, the second shared with nobody either."""
    image = load(REDIS)
    process = image.processes[0]
    vma = next(vma for vma in process.vmas if vma.anonymous)
    shape = (3, 512)
    changed = dataclasses.replace(
        process,
        vmas=(vma._replace(start=BASE, end=BASE + 3 * PMD, anonymous_bytes=3 * PMD),),
        table_address=np.arange(BASE, BASE + 3 * PMD, PMD, dtype=np.uint64),
        table_torn=None,
        pte=np.full(shape, int(Pte.PRESENT | Pte.EXCLUSIVE), np.uint16),
        pfn=(2 * np.arange(3 * 512, dtype=np.uint64) + np.uint64(4096)).reshape(shape),
        kpageflags=np.full(shape, 1 << Kpf.ANON | 1 << Kpf.LRU | 1 << Kpf.SWAPBACKED, np.uint64),
        kpagecount=np.ones(shape, np.uint32),
        folio_order=np.zeros(shape, np.uint8),
    )
    return dataclasses.replace(image, processes=(changed,))


def arrays(
    process: ProcessTables,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    assert process.pfn is not None and process.kpageflags is not None
    assert process.kpagecount is not None and process.folio_order is not None
    return process.pte, process.pfn, process.kpageflags, process.kpagecount, process.folio_order


def huge(process: ProcessTables, row: int, pfn: int) -> None:
    """A PMD maps the whole table."""
    pte, frames, _, _, order = arrays(process)
    pte[row] |= int(Pte.HUGE)
    order[row] = 9
    frames[row] = np.arange(pfn, pfn + 512)


def torn(image: Snapshot) -> list[int]:
    """The tables that are torn, by number; what is repaired contradicts nothing any more."""
    repaired, tables = settled(image)
    again, _ = settled(repaired)
    for before, after in zip(repaired.processes, again.processes, strict=True):
        for old, new in zip(arrays(before), arrays(after), strict=True):
            np.testing.assert_array_equal(old, new)
    return sorted((address - BASE) // PMD for _, address in tables)


def test_nothing_is_torn_where_nothing_contradicts(image: Snapshot) -> None:
    huge(image.processes[0], 2, LAST)
    assert torn(image) == []
    assert settled(load(REDIS))[1] == frozenset()
    _, frames, _, counts, _ = arrays(image.processes[0])
    frames[1, 5] = frames[0, 5]
    counts[0, 5] = 2
    assert torn(image) == [], "mapped twice, as the later count says"


def test_what_the_capture_marked(image: Snapshot) -> None:
    marked = dataclasses.replace(image.processes[0], table_torn=np.array([0, 1, 0], np.uint8))
    assert torn(dataclasses.replace(image, processes=(marked,))) == [1]


def test_pages_that_cannot_be_so(image: Snapshot) -> None:
    pte, _, flags, counts, _ = arrays(image.processes[0])
    flags[0, 7] = 0
    assert torn(image) == [0]
    counts[1, 7] = 0
    assert torn(image) == [0, 1]
    pte[2, 7] |= int(Pte.FILE)
    assert torn(image) == [0, 1, 2]


def test_what_a_swap_entry_holds_is_no_frame(image: Snapshot) -> None:
    """Frames of pages that are repaired are numbered behind those that are mapped."""
    pte, frames, flags, counts, _ = arrays(image.processes[0])
    pte[1, 3], frames[1, 3], flags[1, 3], counts[1, 3] = Pte.SWAPPED, 2**64 - 1, 0, 0
    flags[0, 7] = 0
    assert torn(image) == [0]


def test_a_frame_in_two_tables(image: Snapshot) -> None:
    _, frames, _, _, _ = arrays(image.processes[0])
    frames[2, 9] = frames[0, 5]
    assert torn(image) == [0, 2]


def test_a_base_page_within_a_huge_one(image: Snapshot) -> None:
    huge(image.processes[0], 1, LAST)
    _, frames, _, _, _ = arrays(image.processes[0])
    frames[2, 9] = LAST + 100
    assert torn(image) == [1, 2]


def test_a_pmd_that_maps_no_whole_folio(image: Snapshot) -> None:
    huge(image.processes[0], 1, LAST)
    _, _, flags, _, _ = arrays(image.processes[0])
    flags[1, 9] = 0
    repaired, tables = settled(image)
    assert len(tables) == 1
    assert not (repaired.processes[0].pte & Pte.HUGE).any()


def test_the_answer_says_what_rests_on_them(image: Snapshot) -> None:
    """No refusal, no change; what is there and what collapses of it is told."""
    pte, _, flags, _, _ = arrays(image.processes[0])
    flags[0, :400] = 0
    pte[1, 3:] = 0
    kept = Image(image, "x", "y")
    settings = kept.settings.replace(enabled=Enabled.ALWAYS, max_ptes_none=0)
    outcome = kept.run(settings, changes=True).outcome
    assert outcome.torn.tables == 1 and outcome.torn.bytes == PMD
    assert outcome.torn.collapsed_bytes <= PMD
    assert {refusal.address for refusal in outcome.refusals} == {BASE + PMD}
    page = Console(file=io.StringIO(), width=100)
    render_outcome(outcome, page)
    assert isinstance(page.file, io.StringIO)
    assert "2 MiB lie in 1 page table that changed" in " ".join(page.file.getvalue().split())


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("redis-server") is None, reason="needs root and redis-server"
)
def test_redis_that_deletes_is_refused_nothing_for_pages_that_are_not_anonymous(
    tmp_path: Path,
) -> None:
    """Captures during bursts of deletes: three of eight told of such pages before."""
    path = tmp_path / "redis"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""]
    command += ["--enable-debug-command", "yes"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as server:
        try:
            while not path.exists():
                time.sleep(0.01)
            changed = 0
            for _ in range(8):
                with socket.socket(socket.AF_UNIX) as redis:
                    redis.connect(str(path))
                    redis.sendall(b"DEBUG POPULATE 100000 key 500\r\n")
                    assert redis.recv(99) == b"+OK\r\n"
                    redis.sendall(b"".join(b"DEL key:%d\r\n" % k for k in range(0, 100_000, 3)))
                    image = capture(server.pid)
                assert isinstance(image.data, Snapshot)
                changed += image.data.tearing["tables_changed"]
                refused = {refusal.status for refusal in image.run().refusals}
                assert ScanResult.PAGE_ANON not in refused
            assert changed
        finally:
            server.kill()
