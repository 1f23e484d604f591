# SPDX-License-Identifier: GPL-2.0-or-later
"""The capture on real processes: what it reads, by both readers, and how it refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mthp.image import frames_at_once
from mthp.image.capture import host, proc, run
from mthp.image.capture.command import capture_into, main
from mthp.image.capture.frames import Frames
from mthp.image.capture.host import THP, zones
from mthp.image.capture.pagemap import Scanner
from mthp.image.capture.proc import SmapsEntry, state
from mthp.image.capture.run import CaptureOptions
from mthp.image.capture.tables import TableReader
from mthp.image.frames_at_once import FramesAtOnce, KnownFlags
from mthp.image.page_types import page_types
from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot, load
from mthp.image.zipped import write_zipapp

from .children import HUGE, MIXED, PAGE, SPARSE, TABLE, UFFD, child

root = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_thp = pytest.mark.skipif(not os.path.isdir(THP), reason="no THP in this kernel")
pytestmark = needs_thp

READERS = ("scan", "pagemap")


def snap(tmp_path: Path, pid: int, *options: str) -> Snapshot:
    out = tmp_path / f"{len(os.listdir(tmp_path))}.npz"
    assert main(["--pid", str(pid), "-o", str(out), "--quiet", *options]) == 0
    return load(out)


def table(process: ProcessTables, address: int) -> np.ndarray:
    """The 512 PTE flags of the table at address; zeros where it is not in the snapshot."""
    (rows,) = np.nonzero(process.table_address == address)
    return process.pte[rows[0]] if len(rows) else np.zeros(512, np.uint16)


def visible(pte: np.ndarray) -> np.ndarray:
    """Flags without soft-dirty, which depends on how the kernel was built."""
    return pte & ~np.uint16(Pte.SOFT_DIRTY)


def readers() -> list[str]:
    """The readers that this kernel supports."""
    scanner = Scanner(proc.open_pagemap(os.getpid()))
    return list(READERS) if scanner.works() else ["pagemap"]


@pytest.mark.parametrize("options", [[], ["--no-exclusive"]])
@pytest.mark.parametrize("reader", READERS)
def test_reads_what_the_process_did(tmp_path: Path, reader: str, options: list[str]) -> None:
    if reader not in readers():
        pytest.skip("no PAGEMAP_SCAN")
    with child(MIXED) as kid:
        process = snap(tmp_path, kid.pid, "--reader", reader, *options).processes[0]
    own = 1 if options else 1 | Pte.EXCLUSIVE
    knows_zero = reader == "scan" or process.kpageflags is not None
    expected = np.zeros(512, np.uint16)
    expected[0:16] = own
    expected[20:220:2] = own
    expected[300:307] = Pte.PRESENT | (Pte.ZERO if knows_zero else 0)
    expected[400:420] = own
    expected[405:408] = 0
    a = kid.facts["a"]
    np.testing.assert_array_equal(visible(table(process, a)), expected)
    assert (visible(table(process, a + TABLE)) == own).all()
    assert a + 2 * TABLE not in process.table_address.tolist()
    assert np.flatnonzero(table(process, a + 3 * TABLE)).tolist() == [511]
    assert np.flatnonzero(table(process, a + 4 * TABLE)).tolist() == [0]
    shared = visible(table(process, kid.facts["b"]))[:64]
    assert (shared[:32] == Pte.PRESENT).all() and (shared[32:] == own).all()
    between = np.flatnonzero(table(process, kid.facts["c"]))
    assert between.tolist() == [0, 1, 2, 3, 4, 6, 8, 9, 10, 11]  # 5 and 7 are the file's
    assert np.flatnonzero(table(process, kid.facts["d"])).tolist() == [5, 6, 7]


@pytest.mark.parametrize("reader", READERS)
def test_guard_regions(tmp_path: Path, reader: str) -> None:
    with child(MIXED) as kid:
        if not kid.facts["guard"] or reader not in readers():
            pytest.skip("no guard regions in this kernel")
        process = snap(tmp_path, kid.pid, "--reader", reader).processes[0]
        bare = snap(tmp_path, kid.pid, "--reader", reader, "--no-exclusive").processes[0]
    for one in (process, bare):
        guards = visible(table(one, kid.facts["a"] + 5 * TABLE))
        assert (guards[:4] == Pte.SWAPPED | Pte.GUARD).all() and not guards[4:].any()


@pytest.mark.parametrize("options", [[], ["--no-exclusive"]])
@pytest.mark.parametrize("reader", READERS)
def test_write_protected_by_userfaultfd(tmp_path: Path, reader: str, options: list[str]) -> None:
    with child(UFFD) as kid:
        if not kid.facts["ok"] or reader not in readers():
            pytest.skip("no userfaultfd write protection for us")
        process = snap(tmp_path, kid.pid, "--reader", reader, *options).processes[0]
    flags = table(process, kid.facts["u"])
    assert np.flatnonzero(flags & Pte.UFFD_WP).tolist() == list(range(16, 48))
    assert np.count_nonzero(flags & Pte.PRESENT) == 200
    assert any("uw" in vma.flags for vma in process.vmas)


def test_vmas_say_why_they_are_left_out(tmp_path: Path) -> None:
    with child(MIXED) as kid:
        process = snap(tmp_path, kid.pid).processes[0]
    why = {vma.name: vma.skipped for vma in process.vmas}
    assert why["/dev/zero"] is None
    assert why["/dev/zero (deleted)"] == "shared mapping"
    assert why["[vdso]"] == "special mapping"
    assert why[os.path.realpath(sys.executable)] == "file mapping"
    stack = next(vma for vma in process.vmas if vma.name == "[stack]")
    assert stack.anonymous and "gd" in stack.flags and stack.anonymous_bytes
    (nohuge,) = (vma for vma in process.vmas if vma.start == kid.facts["a"])
    assert "nh" in nohuge.flags and nohuge.end - nohuge.start >= 6 * TABLE


@root
@needs_root
@pytest.mark.parametrize("reader", READERS)
def test_huge_pages(tmp_path: Path, reader: str) -> None:
    with child(HUGE) as kid:
        if kid.facts["huge"] != TABLE >> 10 or reader not in readers():
            pytest.skip("MADV_COLLAPSE gave no huge page")
        process = snap(tmp_path, kid.pid, "--reader", reader).processes[0]
    h = kid.facts["h"]
    assert (visible(table(process, h)) & ~Pte.EXCLUSIVE == Pte.PRESENT | Pte.HUGE).all()
    split = visible(table(process, h + TABLE))
    assert split[7] == 0 and np.count_nonzero(split & Pte.PRESENT) == 511
    assert not (split & Pte.HUGE).any()
    assert not (table(process, h + 2 * TABLE) & Pte.HUGE).any()
    zero = visible(table(process, h + 3 * TABLE))
    assert zero[0] & Pte.ZERO
    assert zero[0] == Pte.PRESENT | Pte.ZERO or (
        (zero == Pte.PRESENT | Pte.ZERO | Pte.HUGE).all()  # use_zero_page
    )


@root
@needs_root
def test_root_sees_folios(tmp_path: Path) -> None:
    with child(HUGE) as kid:
        snapshot = snap(tmp_path, kid.pid)
    process = snapshot.processes[0]
    assert snapshot.privilege.kpageflags and process.pfn is not None
    assert process.folio_order is not None and process.kpagecount is not None
    lru, anon = process.page_flag(Kpf.LRU), process.page_flag(Kpf.ANON)
    assert lru is not None and anon is not None
    small = np.flatnonzero(process.table_address == kid.facts["h"] + 2 * TABLE)[0]
    assert (process.folio_order[small] == 0).all() and anon[small].all()
    assert (process.kpagecount[small] == 1).all()
    if kid.facts["huge"] == TABLE >> 10:
        for k in (0, 1):  # mapped by a PMD; by PTEs, its 8th page gone
            row = np.flatnonzero(process.table_address == kid.facts["h"] + k * TABLE)[0]
            here = process.pte[row] & Pte.PRESENT != 0
            assert (process.folio_order[row][here] == 9).all()
        places = np.flatnonzero(here)
        assert np.flatnonzero(~here).tolist() == [7]
        assert (process.pfn[row][here] == int(process.pfn[row][0]) + places).all()


@root
@needs_root
def test_only_tails_of_a_folio_are_mapped(tmp_path: Path) -> None:
    script = HUGE.replace(
        "advise(h + TABLE + 7 * PAGE, PAGE, MADV_DONTNEED)",
        "advise(h + TABLE, 500 * PAGE, MADV_DONTNEED)",
    )
    with child(script) as kid:
        process = snap(tmp_path, kid.pid).processes[0]
    if kid.facts["huge"] != TABLE >> 10:
        pytest.skip("MADV_COLLAPSE gave no huge page")
    row = np.flatnonzero(process.table_address == kid.facts["h"] + TABLE)[0]
    assert process.folio_order is not None
    assert process.folio_order[row].tolist() == [0] * 500 + [9] * 12


def test_readers_agree(tmp_path: Path) -> None:
    if len(readers()) < 2:
        pytest.skip("no PAGEMAP_SCAN")
    for script in (MIXED, HUGE):
        with child(script) as kid:
            for _ in range(10):  # until khugepaged, reclaim and the like leave it alone meanwhile
                scan, pagemap, again = (
                    snap(tmp_path, kid.pid, "--reader", reader).processes[0]
                    for reader in (*READERS, READERS[0])
                )
                bare = snap(tmp_path, kid.pid, "--reader", "scan", "--no-exclusive").processes[0]
                if np.array_equal(scan.pte, again.pte):
                    break
        np.testing.assert_array_equal(scan.table_address, pagemap.table_address)
        np.testing.assert_array_equal(scan.table_address, bare.table_address)
        np.testing.assert_array_equal(scan.pte & ~np.uint16(Pte.EXCLUSIVE), bare.pte)
        unknown = 0 if scan.kpageflags is not None else Pte.ZERO | Pte.HUGE
        np.testing.assert_array_equal(
            scan.pte & ~np.uint16(unknown), pagemap.pte & ~np.uint16(unknown)
        )
        if scan.pfn is not None and pagemap.pfn is not None:
            np.testing.assert_array_equal(scan.pfn, pagemap.pfn)


def test_scattered_and_long_runs_agree(tmp_path: Path) -> None:
    """Runs of every length, so that both ways of reading a window are taken."""
    script = """
import random
random.seed(int(7))
a = reserve(200 * TABLE)
advise(a, 200 * TABLE, MADV_NOHUGEPAGE)
at = 0
while at < 200 * 512:
    long = random.choice((1, 1, 2, 3, 60, 700, 3000))
    for k in range(at, min(at + long, 200 * 512)):
        (write if random.random() < 0.9 else read)(a, k)
    at += long + random.choice((1, 1, 5, 1000, 6000))
ready(a=a)
"""
    with child(script) as kid:
        every = [snap(tmp_path, kid.pid, "--reader", r, *o).processes[0]
                 for r in readers() for o in ((), ("--no-exclusive",))]  # fmt: skip
    first = every[0]
    assert first.count(Pte.PRESENT) > 10_000
    for other in every[1:]:
        np.testing.assert_array_equal(first.table_address, other.table_address)
        mask = np.uint16(Pte.PRESENT | Pte.SWAPPED)
        np.testing.assert_array_equal(first.pte & mask, other.pte & mask)


class FewTablesABatch(FramesAtOnce):
    """Two tables a batch, which are read ahead as those of a large process are."""

    batch_bytes = 1 << 13
    read: ClassVar[set[int]] = set()

    def lie_apart(self, words: bytearray) -> bool:
        return True

    def ahead(self, words: list[bytearray]) -> KnownFlags | None:
        self.read.add(len(words))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frames_at_once, "_FEW", 1)
            known: KnownFlags | None = super().ahead(words)
            return known


@root
@needs_root
def test_batches_whose_frames_lie_apart_are_read_together(tmp_path: Path) -> None:
    """And come to what each comes to by itself."""
    script = """
import random
a = reserve(60 * TABLE)
advise(a, 60 * TABLE, MADV_NOHUGEPAGE)
some = random.Random(3).sample(range(60 * 512), 9000)
for k in some: write(a, k)
advise(a, 60 * TABLE, MADV_HUGEPAGE)
advise(a, 6 * TABLE, MADV_COLLAPSE)
if not os.fork():
    sys.stdin.read()
    os._exit(0)
for k in some[:2000]: write(a, k)
ready(a=a)
"""
    found = []
    with child(script) as kid:
        for kind in (Frames, FewTablesABatch):
            with open(tmp_path / "a.npz", "w+b") as file:
                capture_into(file, [kid.pid], CaptureOptions(frames=kind))
            found.append(load(tmp_path / "a.npz").processes[0])
    assert max(FewTablesABatch.read) >= 30
    first, *others = found
    for other in others:
        for name in ("table_address", "pte", "pfn", "folio_order", "kpagecount"):
            np.testing.assert_array_equal(getattr(first, name), getattr(other, name))
        np.testing.assert_array_equal(first.page_flag(Kpf.ANON), other.page_flag(Kpf.ANON))


@pytest.mark.parametrize("reader", READERS)
def test_a_sparse_tebibyte(tmp_path: Path, reader: str) -> None:
    if reader not in readers():
        pytest.skip("no PAGEMAP_SCAN")
    with child(SPARSE) as kid:
        began = time.process_time()
        process = snap(tmp_path, kid.pid, "--reader", reader).processes[0]
        took = time.process_time() - began
    mine = process.table_address >= kid.facts["s"]
    mine &= process.table_address < kid.facts["s"] + (1 << 40)
    assert np.count_nonzero(mine) == 64
    assert np.count_nonzero(process.pte[mine]) == 128
    assert took < (2 if reader == "scan" else 30)


LAST = """
top = (1 << 47) - 2 * PAGE  # the last page but one that a process may have
assert libc.mmap(ctypes.c_void_p(top), 2 * PAGE - PAGE, 3, 0x100022, -1, 0) == top
write(top, 0)
ready(top=top)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="where addresses end is x86-64's")
@pytest.mark.parametrize("options", [[], ["--no-exclusive"]])
@pytest.mark.parametrize("reader", READERS)
def test_the_last_addresses_that_there_are(tmp_path: Path, reader: str, options: list[str]) -> None:
    """The last table ends beyond them: PAGEMAP_SCAN says EFAULT of that, and pagemap nothing. So it is with
    the stack of each process that gdb starts, or setarch -R."""
    if reader not in readers():
        pytest.skip("no PAGEMAP_SCAN")
    with child(LAST) as kid:
        (process,) = snap(tmp_path, kid.pid, "--reader", reader, *options).processes
    assert process.table_address[-1] == (1 << 47) - TABLE
    assert np.flatnonzero(process.pte[-1]).tolist() == [510]


@pytest.mark.parametrize(
    ("call", "what"), [("preadv", "pagemap"), ("ioctl", "pagemap"), ("pread", "kpageflags")]
)
def test_what_the_system_refuses_names_its_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    what: str,
) -> None:
    """Reads by a descriptor have no name in their errors, and one file is not another's to blame."""
    if what == "kpageflags" and os.geteuid():
        pytest.skip("needs root")
    module = fcntl if call == "ioctl" else os
    as_ever = getattr(module, call)

    def refused(file: int, *more: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{file}")
        if path.endswith(what) and "self" not in path and f"/{os.getpid()}/" not in path:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return as_ever(file, *more)

    with child("a = reserve(TABLE)\nwrite(a, 0, 512)\nready()") as kid:
        monkeypatch.setattr(module, call, refused)
        code = main(["--pid", str(kid.pid), "-o", str(tmp_path / "a.npz")])
    file = f"/proc/{kid.pid}/pagemap" if what == "pagemap" else "/proc/kpageflags"
    assert (code, capsys.readouterr().err) == (1, f"mthp-snap: {file}: Bad address\n")
    assert not list(tmp_path.iterdir())


def test_the_file_needs_numpy_alone_and_is_private(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    with child(MIXED) as kid:
        assert main(["--pid", str(kid.pid), "-o", str(out), "--quiet"]) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["x.npz"]
    with np.load(out) as file:
        assert file["meta"].dtype == np.uint8
        assert file["pte"].dtype == np.uint16 and file["pte"].shape[1] == 512
        assert file["table_address"].dtype == np.uint64


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that hosts get."""
    path = tmp_path_factory.mktemp("pyz") / "mthp-snap.pyz"
    write_zipapp(path)
    return path


def test_one_file_runs_alone_without_numpy_and_mthp(program: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(program), "--pid", str(os.getpid())]
    out = tmp_path / "x.npz"
    done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and not done.stdout
    assert done.stderr.startswith(f"mthp-snap: {out}: 1 process(es), ")
    assert re.search(r"\n  Rss \S+ [MG]iB, Pss ", done.stderr)
    assert re.search(r"\n  Rss\w+ \S+ [KMG]iB in .*: not modelled\n", done.stderr)
    assert load(out).processes[0].pid == os.getpid()
    assert os.access(program, os.X_OK)


def test_redaction_leaves_no_name(tmp_path: Path) -> None:
    with child(MIXED) as kid:
        clear = snap(tmp_path, kid.pid)
        hidden = snap(tmp_path, kid.pid, "--redact")
        again = snap(tmp_path, kid.pid)
    before, after = clear.processes[0], hidden.processes[0]
    said = str(dict(hidden.meta))
    for name in (before.name, *before.meta["cmdline"], before.meta["exe"], clear.meta["hostname"]):
        if len(name) > 3:  # "-c", "vm": too short to look for
            assert name not in said, name
    assert "/usr" not in said and "/lib" not in said
    assert hidden.meta["hostname"] is None and after.meta["cgroup"] is None
    shift = int(after.table_address[0]) - int(before.table_address[0])
    assert shift % TABLE == 0 and shift != 0
    np.testing.assert_array_equal(
        before.table_address + np.uint64(shift % 2**64), after.table_address
    )
    still = before.pte == again.processes[0].pte  # the host may change a bit meanwhile
    assert still.mean() > 0.9
    np.testing.assert_array_equal(before.pte[still], after.pte[still])
    assert [v.end - v.start for v in after.vmas] == [
        v.end - v.start for v in before.vmas if v.end < 1 << 56
    ]
    if before.pfn is not None and after.pfn is not None:
        here = (before.pte & Pte.PRESENT) != 0
        stay = here & still & (before.pfn == again.processes[0].pfn)  # it may move a page, too
        moved = np.unique(after.pfn[stay] - before.pfn[stay])
        assert len(moved) == 1 and moved[0] % 512 == 0 and moved[0]
        assert not after.pfn[~here & still].any()


def test_several_processes_and_duplicates(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    with child(MIXED) as one, child(MIXED) as two:
        pids = [str(pid) for pid in (one.pid, two.pid, one.pid)]
        argv = [word for pid in pids for word in ("--pid", pid)]
        assert main([*argv, "-o", str(out), "--quiet"]) == 0
        snapshot = load(out)
    assert [process.pid for process in snapshot.processes] == sorted((one.pid, two.pid))
    for kid, process in zip(
        sorted((one, two), key=lambda kid: kid.pid), snapshot.processes, strict=True
    ):
        assert (visible(table(process, kid.facts["a"] + TABLE)) & Pte.PRESENT).all()


def gone_for(pid: int) -> Callable[[int], int]:
    """open_pagemap as it fails when the process ends just before."""
    real = proc.open_pagemap

    def open_pagemap(asked: int) -> int:
        if asked == pid:
            raise proc.gone(pid)
        return real(asked)

    return open_pagemap


def kernel_threads() -> list[int]:
    """Those that are not zombies."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    status = {pid: proc.text(f"/proc/{pid}/status") or "VmSize" for pid in pids}
    return [pid for pid in pids if "VmSize" not in status[pid] and state(pid) not in "ZX?"]


def test_of_several_those_that_cannot_be_had_are_counted(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    gone = [4194398, 4194399]
    kernel = kernel_threads()[:2]
    with child(MIXED) as kid, out.open("wb") as file:
        pids = host.every_pid()
        assert kid.pid in pids and os.getpid() not in pids and not set(gone) & set(pids)
        said = capture_into(file, [*kernel, kid.pid, *gone], CaptureOptions())
    snapshot = load(out)
    assert [process.pid for process in snapshot.processes] == [kid.pid]
    assert snapshot.processes[0].meta["started"]
    expected = {"kernel threads": len(kernel)} if kernel else {}
    assert snapshot.meta["left_out"] == {**expected, "ended meanwhile": 2}
    assert "2 processes left out: ended meanwhile" in snapshot.unseen and "2 processes" in said[0]


@root
@needs_root
def test_a_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = host.cgroup_mounts().get("", "")
    group = Path(mount) / f"mthp-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no writable cgroup v2")
    out = tmp_path / "x.npz"
    try:
        assert main(["--cgroup", str(group), "-o", str(out), "--quiet"]) == 2
        with child(MIXED) as kid:
            (group / "cgroup.procs").write_text(str(kid.pid))
            for path in (str(group), group.name, f"/{group.name}", f"0::/{group.name}"):
                assert main(["--cgroup", path, "-o", str(out), "--quiet"]) == 0
                assert [process.pid for process in load(out).processes] == [kid.pid]
            assert load(out).processes[0].meta["cgroup"]
            with child(MIXED) as other:
                (group / "cgroup.procs").write_text(str(other.pid))
                monkeypatch.setattr(run, "open_pagemap", gone_for(max(kid.pid, other.pid)))
                argv = ["--cgroup", str(group), "-o", str(out), "--quiet"]
                assert main(argv) == 0
                assert [p.pid for p in load(out).processes] == [min(kid.pid, other.pid)]
                assert any("exited" in sentence for sentence in load(out).unseen)
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.02)


CHANGING = """
a = reserve(TABLE)
advise(a, TABLE, MADV_NOHUGEPAGE)
write(a, 0, 512)
gone = 0
def drop(*_):
    global gone
    advise(a + gone * PAGE, PAGE, MADV_DONTNEED)
    gone += 1
signal.signal(signal.SIGUSR1, drop)
ready(a=a)
"""
"""Gives up one page more at each signal."""


@root
@needs_root
@pytest.mark.parametrize(("times", "torn"), [(0, 0), (3, 0), (1000, 1)])
def test_a_table_that_changes_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, torn: int
) -> None:
    """It changes after pagemap was read, before its frames are looked up."""
    look_up = Frames.look_up
    with child(CHANGING) as kid, open(f"/proc/{kid.pid}/pagemap", "rb", buffering=0) as pagemap:
        gone = 0

        def entry(k: int) -> int:
            pagemap.seek((kid.facts["a"] + k * PAGE) // PAGE * 8)
            return int.from_bytes(pagemap.read(8), sys.byteorder)

        def look_up_late(
            self: Frames, pfns: array[int], low: bytes, known: Any = None
        ) -> tuple[bytes, bytes, bytes]:
            nonlocal gone
            if gone < times and entry(511) & ((1 << 55) - 1) in pfns:
                os.kill(kid.pid, signal.SIGUSR1)
                while entry(gone):
                    time.sleep(0.0001)
                gone += 1
            return look_up(self, pfns, low, known)

        monkeypatch.setattr(Frames, "look_up", look_up_late)
        snapshot = snap(tmp_path, kid.pid)
    (process,) = snapshot.processes
    assert process.table_torn is not None
    (row,) = np.flatnonzero(process.table_address == kid.facts["a"])
    assert process.table_torn[row] == torn and snapshot.tearing["tables_torn"] == torn
    assert snapshot.tearing["tables_changed"] >= (times > 0)
    assert gone == (1 + run.MOST_READINGS if torn else times)
    assert (np.flatnonzero(process.pte[row] == 0) == np.arange(gone - torn)).all()


CHURN = """
import threading
a = reserve(8 * TABLE)
advise(a, 8 * TABLE, MADV_NOHUGEPAGE)
write(a, 0, 8 * 512)
def churn():
    while True:
        for k in range(8):
            advise(a + k * TABLE, TABLE, MADV_DONTNEED)
            ctypes.memset(a + k * TABLE, 1, TABLE)
threading.Thread(target=churn, daemon=True).start()
ready(a=a)
"""


@root
@needs_root
def test_what_is_not_marked_contradicts_nothing(tmp_path: Path) -> None:
    """Of a process that throws its pages away and writes them again all the time."""
    changed = 0
    with child(CHURN) as kid:
        for _ in range(2):
            snapshot = snap(tmp_path, kid.pid)
            changed += snapshot.tearing["tables_changed"]
            (process,) = snapshot.processes
            anon = process.page_flag(Kpf.ANON)
            assert anon is not None and process.kpagecount is not None
            assert process.table_torn is not None
            here = (process.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
            wrong = (here & (~anon | (process.kpagecount == 0))).any(axis=1)
            assert not wrong[process.table_torn == 0].any()
    assert changed


@pytest.mark.parametrize("options", [[], ["--no-exclusive"]])
def test_a_process_at_rest_has_no_mark(tmp_path: Path, options: list[str]) -> None:
    for script in (MIXED, HUGE):
        with child(script) as kid:
            for _ in range(5):  # until the host leaves it alone meanwhile
                snapshot = snap(tmp_path, kid.pid, *options)
                if not snapshot.tearing["tables_changed"]:
                    break
        assert not snapshot.tearing["tables_changed"] and not snapshot.tearing["tables_torn"]
        assert snapshot.tearing["tables"] and snapshot.tearing["how"]


def fails(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, word: str) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert not out and word in err
    assert len(err.strip().splitlines()) == 1, err


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["-o", str(tmp_path / "x.npz")]
    fails(capsys, ["--pid", "4194399", *out], 2, "no process 4194399")
    done = subprocess.Popen([sys.executable, "-c", ""])
    while state(done.pid) != "Z":
        time.sleep(0.001)
    fails(capsys, ["--pid", str(done.pid), *out], 2, "zombie")
    done.wait()
    fails(capsys, ["--pid", str(done.pid), *out], 2, "no process")
    fails(capsys, ["--cgroup", "/nonexistent", *out], 2, "no cgroup /nonexistent")
    fails(capsys, ["--pid", "self", "--pid", "4194399", *out], 2, "no process 4194399")
    fails(capsys, ["--all", "--freeze", "--yes", *out], 2, "--freeze with --all")
    fails(capsys, ["--pid", "self", "--for", "1h", *out], 2, "--for needs --every")
    me = ["--pid", "self", "-o"]
    fails(capsys, [*me, str(tmp_path / "no" / "x")], 2, "No such file or directory")
    fails(capsys, [*me, str(tmp_path)], 2, "not a regular file")
    fails(capsys, [*me, "/dev/null"], 2, "not a regular file")
    assert not os.listdir(tmp_path)
    assert main(["--pid", "-3", *out]) == 2
    assert main(["--pid", "one", *out]) == 2
    assert main(out) == 2


def test_a_process_whose_first_thread_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel calls it a zombie and shows nothing of it; its memory is the other threads'."""
    script = """
import threading
a = reserve(TABLE)
write(a, 0, 100)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
print(json.dumps({"a": a}), flush=True)
libc.pthread_exit(None)
"""
    with child(script) as kid:
        while state(kid.pid) != "Z":
            time.sleep(0.001)
        assert main(["--pid", str(kid.pid), "-o", str(tmp_path / "a.npz")]) == 2
        said = capsys.readouterr().err
        assert re.fullmatch(
            rf"mthp-snap: process {kid.pid} goes on without its first thread: its memory is shown as that "
            rf"of (\d+) \(--pid \1\)\n",
            said,
        )
        (process,) = snap(tmp_path, int(re.findall(r"\d+", said)[-1])).processes
    assert np.count_nonzero(table(process, kid.facts["a"])) == 100


def test_threads_and_kernel_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["-o", str(tmp_path / "x.npz")]
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    fails(capsys, ["--pid", str(other.native_id), *out], 2, f"capture its process {os.getpid()}")
    over.set()
    for pid in kernel_threads()[:1]:
        fails(capsys, ["--pid", str(pid), *out], 2, "kernel thread")


def test_a_process_that_exits_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after its VMAs were read, and after its first tables were."""
    out = ["-o", str(tmp_path / "x.npz")]
    windows = TableReader.windows
    for reader in readers():
        with child(MIXED) as kid:

            def kill_first(
                self: TableReader, vmas: list[SmapsEntry], pid: int = kid.pid
            ) -> list[tuple[int, int]]:
                os.kill(pid, signal.SIGKILL)
                while state(pid) != "Z":
                    time.sleep(0.001)
                return windows(self, vmas)

            monkeypatch.setattr(TableReader, "windows", kill_first)
            argv = ["--pid", str(kid.pid), "--reader", reader, *out]
            fails(capsys, argv, 1, "exited")
        monkeypatch.setattr(TableReader, "windows", windows)
    assert not os.listdir(tmp_path)


@root
@needs_root
def test_without_root(program: Path, tmp_path: Path) -> None:
    """Our own child as nobody: the tables, not the folios; a process of root's is refused."""
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    python = "/usr/bin/python3"
    if not (shutil.which("setpriv") and os.access(python, os.X_OK)):
        pytest.skip("no setpriv or no /usr/bin/python3")
    tmp_path.chmod(0o777)
    script = tmp_path / "mthp-snap.pyz"
    shutil.copy(program, script)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    out = tmp_path / "x.npz"
    inner = f"{python} {script} --pid $$ -o {out} --quiet"
    subprocess.run([*nobody, "sh", "-c", f"{inner}; exit $?"], check=True, cwd=tmp_path)
    snapshot = load(out)
    process = snapshot.processes[0]
    assert not snapshot.privilege.root and not snapshot.privilege.pfn
    assert process.pfn is None and process.folio_order is None
    assert process.count(Pte.PRESENT) and process.count(Pte.EXCLUSIVE)
    assert any(sentence.startswith("not root: folio orders") for sentence in snapshot.unseen)
    done = subprocess.run(
        [*nobody, python, str(script), "--pid", str(os.getpid()), "-o", str(out)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"mthp-snap: process {os.getpid()} is not ours to read " + (
        "(run as its user or as root)\n"
    )


def test_what_the_host_says(tmp_path: Path) -> None:
    snapshot = snap(tmp_path, os.getpid())
    assert "[" in snapshot.sysfs["enabled"]
    assert snapshot.sysfs["khugepaged/max_ptes_none"].isdigit()
    assert snapshot.sysfs["hpage_pmd_size"] == str(snapshot.geometry.pmd_size)
    meta = snapshot.meta
    assert meta["meminfo"]["MemTotal"] > 1 << 20 and "Node 0" in meta["buddyinfo"]
    if os.geteuid() == 0:
        assert page_types(meta["pagetypeinfo"]) is not None
    assert meta["nodes"]["online"] and meta["cpus"] >= 1
    assert snapshot.processes[0].name == Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert not snapshot.processes[0].thp_disabled
    assert sum(sentence.startswith("never visible") for sentence in snapshot.unseen) == 5


def test_pages_of_the_constant() -> None:
    assert os.sysconf("SC_PAGE_SIZE") == PAGE


@pytest.mark.parametrize(
    ("stat", "spare"),
    [
        ("anon 8192\nactive_file 4096\ninactive_file 8192\nslab_reclaimable 100\n", 12388),
        ("active_file 1\ntotal_active_file 4096\ntotal_inactive_file 8192\n", 12288),
        ("", None),
    ],
)
def test_what_a_cgroup_can_give_back(tmp_path: Path, stat: str, spare: int | None) -> None:
    """memory.stat of cgroup v2, and of v1 with the sums over its children."""
    (tmp_path / "memory.stat").write_text(stat)
    assert host.reclaimable(str(tmp_path / "memory.stat")) == spare


def test_other_processes_are_counted(tmp_path: Path) -> None:
    """A child is among them, unless it is captured itself; others may come meanwhile."""
    with child(MIXED) as kid:
        size = (
            int((proc.text(f"/proc/{kid.pid}/status") or "").split("RssAnon:")[1].split()[0]) << 10
        )
        for _ in range(20):
            pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
            alone = host.other_processes(pids - {kid.pid}, PAGE)
            none = host.other_processes(pids, PAGE)
            if (alone["processes"], none["processes"]) == (1, 0):
                break
        assert alone == {"processes": 1, "anonymous": size}
        assert none == {"processes": 0, "anonymous": 0}
        assert host.other_processes(set(), 1 << 60) == {"processes": 0, "anonymous": 0}
        others = snap(tmp_path, kid.pid).meta["others"]
        assert others["processes"] >= 0 <= others["anonymous"]


def test_when_khugepaged_began_is_noted(tmp_path: Path) -> None:
    """Its thread is a kernel's, of which there is one while any size is enabled."""
    named = "libc.prctl(15, b'khugepaged', 0, 0, 0)\n"
    with child(named + MIXED) as kid:
        assert proc.text(f"/proc/{kid.pid}/comm") == "khugepaged"
        threads = [
            int(pid)
            for pid in filter(str.isdigit, os.listdir("/proc"))
            if proc.text(f"/proc/{pid}/comm") == "khugepaged" and proc.parent_of(int(pid)) == 2
        ]
        began = proc.started(threads[0]) if threads else None
        meta = snap(tmp_path, kid.pid).meta
        assert meta["khugepaged"] == {"started": began}
        assert meta["processes"][0]["started"] != began


def test_processes_without_huge_pages_are_not_scanned() -> None:
    disable = "libc.prctl(41, 1, 0, 0, 0)\n"
    with child(disable + MIXED) as kid:
        others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - {kid.pid}
        assert host.other_processes(others, PAGE)["processes"] == 0


def test_a_python_too_old_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 7, 16))
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("mthp.image.capture", run_name="__main__")
    assert (ended.value.code, capsys.readouterr().err) == (
        5,
        "mthp-snap: Python 3.8 or newer is needed\n",
    )


ZONEINFO = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 6
  pages free     2816
        boost    0
        min      11
        low      18
        high     25
        managed  3840
        protection: (0, 2966, 31844, 31844, 31844)
  pagesets
    cpu: 0
              count:    0
              high:     0
              batch:    1
Node 0, zone    DMA32
  pages free     759000
        min      2095
        managed  759296
        protection: (0, 0, 28877, 28870, 28877)
  pagesets
    cpu: 0
              count:    9
              high:     1000
    cpu: 1
              high:     1300
Node 0, zone   Normal
        min      20400
        managed  7392768
        protection: (0, 0, 0, 0, 0)
Node 0, zone  Movable
        min      32
        managed  0
        protection: (0, 0, 0, 0, 0)
Node 0, zone   Device
        min      0
        managed  0
        protection: (0, 0, 0, 0, 0)
"""


def test_what_zones_keep() -> None:
    """Of `protection` that counts which is against allocations from the movable zone down."""
    assert zones(ZONEINFO) == [
        {"node": 0, "zone": "DMA", "min": 11, "kept": 31844, "pcp_high": 0},
        {"node": 0, "zone": "DMA32", "min": 2095, "kept": 28870, "pcp_high": 1300},
        {"node": 0, "zone": "Normal", "min": 20400, "kept": 0, "pcp_high": 0},
    ]
    assert zones("") == [] and zones("Node 0, zone X\n  nothing\n") == []
