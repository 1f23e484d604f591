# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump made by hand becomes the snapshot that it should; what is no such dump is one line, and soon."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mthp.cli import main
from mthp.image.capture.proc import LACKING, USAGE, CaptureError
from mthp.image.capture.run import CaptureOptions
from mthp.image.snapshot import Kpf, Pte, PteBit, Snapshot, load
from mthp.image.vmcore.dump import START_KERNEL_MAP, ElfMemory
from mthp.image.vmcore.run import captured_of_dump, processes_of_dump
from mthp.predict.image import of_dump

from .made_dump import CODE, FIRST, HUGE, HUGE_FRAME, PID, RAM, SMALL, TABLE, MadeDump
from .made_kernel import DIRECT, PAGE, core_file

FORMS: dict[str, Callable[[MadeDump, Path], Path]] = {
    "elf": MadeDump.elf,
    "kdump": MadeDump.kdump,
    "flattened": lambda made, path: made.kdump(path, flat=True),
    "stored": lambda made, path: made.kdump(path, packed=0),
}


def snapshot_of(path: Path) -> Snapshot:
    data = of_dump(str(path), PID).data
    assert isinstance(data, Snapshot)
    return data


@pytest.mark.parametrize("form", FORMS)
def test_tables_and_folios(form: str, tmp_path: Path) -> None:
    (process,) = snapshot_of(FORMS[form](MadeDump(), tmp_path / "a")).processes
    assert process.table_address.tolist() == [SMALL, HUGE, CODE]
    small, huge, code = process.pte
    usual = Pte.PRESENT | Pte.EXCLUSIVE | Pte.SOFT_DIRTY
    special = {5: 0, 6: Pte.PRESENT | Pte.ZERO, 7: Pte.SWAPPED}
    assert {k: Pte(int(v)) for k, v in enumerate(small) if v != usual} == special
    assert (huge == usual | Pte.HUGE).all()
    assert code.tolist() == [0, Pte.PRESENT | Pte.EXCLUSIVE] + [0] * 510
    assert process.pfn is not None and process.folio_order is not None
    assert process.pfn[0][[0, 7, 9]].tolist() == [FIRST, 0x77 << 5, FIRST + 9]
    assert (process.pfn[1] == HUGE_FRAME + np.arange(512)).all()
    assert [set(row.tolist()) for row in process.folio_order] == [{0}, {9}, {0}]
    assert process.pte_bits is not None and process.kpagecount is not None
    young = process.pte_bits[0] & PteBit.YOUNG != 0
    assert np.flatnonzero(~young).tolist() == [5, 7, 8]
    assert set(process.kpagecount[1].tolist()) == {1}
    anon, thp = (process.page_flag(flag) for flag in (Kpf.ANON, Kpf.THP))
    assert anon is not None and thp is not None and anon[1].all() and thp[1].all()
    assert np.flatnonzero(~anon[0]).tolist() == [5, 6, 7]


def test_what_else_the_kernel_says(tmp_path: Path) -> None:
    snapshot = snapshot_of(MadeDump().elf(tmp_path / "a"))
    (process,) = snapshot.processes
    assert snapshot.kernel == "7.3.4-made" and snapshot.meta["hostname"] == "made"
    assert snapshot.privilege.deep and process.deep is not None
    assert (process.deep.registered, process.deep.mm_id, process.forked) == (0, 7, True)
    sysfs = snapshot.sysfs
    assert sysfs["enabled"] == "[always] madvise never"
    assert sysfs["defrag"] == "always defer defer+madvise [madvise] never"
    assert sysfs["hugepages-64kB/enabled"] == "[always] inherit madvise never"
    assert sysfs["hugepages-128kB/enabled"] == "always inherit [madvise] never"
    assert sysfs["hugepages-2048kB/enabled"] == "always [inherit] madvise never"
    assert sysfs["khugepaged/max_ptes_swap"] == "64" and sysfs["shrink_underused"] == "1"
    assert snapshot.meta["buddyinfo"].split() == ["Node", "0,", "zone", "DMA32"] + [
        str(order + 1) for order in range(11)
    ]
    assert snapshot.meta["meminfo"]["MemFree"] == 5000 * PAGE
    assert snapshot.meta["khugepaged"] == {"started": 500}
    small, huge, code = process.vmas
    assert (small.name, small.perms, "hg" in small.flags) == ("[anon:small]", "rw-p", True)
    assert "sd" in huge.flags and small.anonymous_bytes == 509 * PAGE
    assert (small.swap_bytes, small.referenced) == (PAGE, 508 * PAGE)
    assert (code.name, code.skipped, code.captured) == ("/program", "file mapping", True)
    assert process.meta["vmas"][1]["anon_huge"] == TABLE
    assert process.meta["status"]["VmRSS"] == f"{(509 + 512 + 2) * 4} kB"
    assert any("not read of a dump" in sentence for sentence in snapshot.unseen)


def test_symbols_by_a_base(tmp_path: Path) -> None:
    """Before Linux 7 the table has offsets from a base."""
    release, found = processes_of_dump(str(MadeDump(relative=True).elf(tmp_path / "a")))
    assert release == "7.3.4-made" and [task.pid for task, _ in found] == [PID]


def test_pages_that_were_left_out(tmp_path: Path) -> None:
    """Pages of zeros may be left out, and are taken as such; where others are, what is needed is missed."""
    made = MadeDump()
    zeros = [k for k in range(256) if not any(made.ram[k * PAGE :][:PAGE])]
    snapshot = snapshot_of(made.kdump(tmp_path / "a", left_out=zeros, level=1))
    assert len(snapshot.processes) == 1
    made.map(made.pgd, HUGE, [0, 0])
    empty = made.free // PAGE - 1
    snapshot = snapshot_of(made.kdump(tmp_path / "b", left_out=[empty], level=31))
    (said,) = [sentence for sentence in snapshot.unseen if "leaves out" in sentence]
    assert said.startswith("1 pages") and "pages of zeros, page cache" in said
    of_zeros = captured_of_dump(str(tmp_path / "b"), [PID], CaptureOptions(zeros=True))
    with pytest.raises(CaptureError, match="--zeros: the dump leaves out pages"), of_zeros:
        pass
    with pytest.raises(CaptureError, match="leaves out the page at") as caught:
        snapshot_of(made.kdump(tmp_path / "c", left_out=[made.mm // PAGE], level=8))
    assert caught.value.code == USAGE


def test_pages_that_drgn_unpacks(tmp_path: Path) -> None:
    pytest.importorskip("drgn")
    made = MadeDump()
    packed, stored = (
        snapshot_of(made.kdump(tmp_path / str(how), packed=how)).processes[0] for how in (2, 0)
    )
    assert packed.pfn is not None and stored.pfn is not None
    assert (packed.pfn == stored.pfn).all() and (packed.pte == stored.pte).all()


def test_where_drgn_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drgn", None)
    path = MadeDump().kdump(tmp_path / "a", packed=2)
    with pytest.raises(
        CaptureError, match=r"packed by LZO.*pip install 'mthp\[vmcore\]'"
    ) as caught:
        processes_of_dump(str(path))
    assert caught.value.code == LACKING


# --- what is none


@cache
def elf() -> bytes:
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    path = MadeDump().elf(folder / "mthp-made-dump")
    try:
        return path.read_bytes()
    finally:
        path.unlink()


def put(at: int, value: int, width: int = 8) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at : at + width] = value.to_bytes(width, "little")

    return change


def cut(size: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[size:]

    return change


def without_info(data: bytearray) -> None:
    data[:] = data.replace(b"OSRELEASE", b"OSRELEASF")


_LOAD = 64 + 56
_HOSTILE = {
    "another machine": (put(18, 183, 2), "is no core file of x86-64"),
    "no core": (put(16, 2, 2), "is no core file of x86-64"),
    "segments without end": (put(56, 0xFFFF, 2), "is no core file of x86-64"),
    "no VMCOREINFO": (without_info, "has no VMCOREINFO"),
    "nothing but its header": (cut(64), "ends before what it is said to have"),
    "half of it": (cut(64 << 10), "ends before what it is said to have"),
    "a segment beyond the file": (put(_LOAD + 8, 1 << 40), "ends before what it is said to have"),
    "a segment beyond any file": (put(_LOAD + 8, (1 << 64) - 4096), "has a place that no file reaches"),
    "memory elsewhere": (put(_LOAD + 24, 1 << 40), "has no memory at the physical address"),
}  # fmt: skip


def test_segments_that_overlap(tmp_path: Path) -> None:
    """The one that begins first counts, and many of them take no longer than one."""
    made = MadeDump()
    ram, middle = bytes(made.ram), RAM // 2
    segments: list[tuple[int, int, bytes | int]] = [(0, 0, ram[:middle]), (0, middle, ram[middle:])]
    lies = [(0, PAGE * k, 3 * PAGE) for k in range(1, 100)] * 100
    core_file(tmp_path / "a", [*segments, *lies], made.vmcoreinfo)
    file = os.open(tmp_path / "a", os.O_RDONLY)
    memory = ElfMemory(file)
    try:
        assert memory.read(0, RAM) == ram
        assert len(memory._parts) == 2
    finally:
        memory.close()


def test_sizes_that_lie(tmp_path: Path) -> None:
    """A bitmap, a note, and a symbol's table as large as can be said are not made room for."""
    changes = {
        "no size that there can be": put(424 + 12, (1 << 32) - 1, 4),
        "ends before": put(424 + 12, 1 << 17, 4),
        "has no VMCOREINFO": put(PAGE + 40, 1 << 40),
        "has blocks of": put(424 + 4, 1 << 16, 4),
        "of a machine 'aarch64'": put(272, int.from_bytes(b"aarch64\0", "little")),
        "one of several parts": put(PAGE + 12, 1, 4),
    }
    for says, change in changes.items():
        data = bytearray(MadeDump().kdump(tmp_path / "a").read_bytes())
        change(data)
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(CaptureError, match=says) as caught:
            processes_of_dump(str(tmp_path / "a"))
        assert caught.value.code == USAGE


@pytest.mark.parametrize("case", _HOSTILE)
def test_what_is_no_dump(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, says = _HOSTILE[case]
    data = bytearray(elf())
    change(data)
    (tmp_path / "a").write_bytes(data)
    assert main(["collapse", str(tmp_path / "a"), "--pid", str(PID)]) == USAGE
    out, err = capfd.readouterr()
    assert out == "" and says in err and err.count("\n") == 1, err


@pytest.mark.parametrize(("path", "says"), [("no", "No such file"), (".", "is no regular file")])
def test_what_is_no_file(
    path: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = str(tmp_path / path)
    assert main(["snap", "--vmcore", where, "--all", "-o", str(tmp_path / "a")]) == USAGE
    assert capfd.readouterr().err.startswith(f"mthp snap: {where}: {says}")
    assert not (tmp_path / "a").exists()


def test_structures_that_lie(tmp_path: Path) -> None:
    """Lists that do not end, counts that no kernel has, trees in a circle: a line each."""

    def no_end_of_tasks(made: MadeDump) -> None:
        made.put(made.task + 8, made.task + 8 + DIRECT)

    def no_end_of_mms(made: MadeDump) -> None:
        scan = made.at["khugepaged_scan"]
        slot = int.from_bytes(made.ram[scan : scan + 8], "little") - DIRECT
        made.put(slot, slot + DIRECT)

    def tree_in_a_circle(made: MadeDump) -> None:
        node = int.from_bytes(made.ram[made.mm + 72 :][:8], "little") & ~255
        made.put(made.mm + 72, node | 2 << 3)
        made.put(node - DIRECT + 128, *[node | 2 << 3] * 16)

    def many_symbols(made: MadeDump) -> None:
        at = int(made.info["SYMBOL(kallsyms_num_syms)"], 16) - START_KERNEL_MAP
        made.put(at, (1 << 32) - 1, width=4)

    def far_top(made: MadeDump) -> None:
        made.info["SYMBOL(swapper_pg_dir)"] = "ffffffffffffffff"

    def far_mm(made: MadeDump) -> None:
        made.put(made.task + 32, 0x1234_5678_0000_0000)

    def folders_in_a_circle(made: MadeDump) -> None:
        file = int.from_bytes(made.ram[made.mm + 200 :][:8], "little") - DIRECT
        entry = int.from_bytes(made.ram[file + 8 :][:8], "little") - DIRECT
        other = made.take(64)
        made.put(other, entry + DIRECT, made.text("x"), 1)
        made.put(entry, other + DIRECT)

    for lie, says in (
        (no_end_of_tasks, "list of processes that does not end"),
        (no_end_of_mms, "list of khugepaged's that does not end"),
        (tree_in_a_circle, "no tree of VMAs"),
        (many_symbols, "4294967295 symbols"),
        (far_top, "swapper_pg_dir is no page"),
        (far_mm, "has nothing at 0x12345678"),
        (folders_in_a_circle, "below folders without end"),
    ):
        made = MadeDump()
        lie(made)
        with pytest.raises(CaptureError, match=says) as caught:
            snapshot_of(made.elf(tmp_path / "a"))
        assert caught.value.code == USAGE and "\n" not in str(caught.value)


def test_one_of_several_that_is_damaged(tmp_path: Path) -> None:
    made = MadeDump()
    zombie = int.from_bytes(made.ram[made.task + 8 :][:8], "little") - DIRECT - 8
    other = made.take(512)
    made.ram[other : other + 512] = made.ram[made.mm : made.mm + 512]
    made.put(other + 72, 0)
    made.set("task_struct", zombie, mm=other + DIRECT)
    data = of_dump(str(made.elf(tmp_path / "a"))).data
    assert isinstance(data, Snapshot)
    assert [process.pid for process in data.processes] == [PID]
    assert data.meta["left_out"] == {"damaged in the dump": 1}
    assert "process 43, left out: the dump has no tree of VMAs there" in data.unseen


def test_a_kernel_that_lacks_names(tmp_path: Path) -> None:
    path = MadeDump("pgtables_bytes", "thp").elf(tmp_path / "a")
    with pytest.raises(
        CaptureError, match=r"this kernel lacks mm_struct\.pgtables_bytes"
    ) as caught:
        processes_of_dump(str(path))
    assert caught.value.code == LACKING


# --- the command


def test_it_lists_processes_and_takes_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(MadeDump().elf(tmp_path / "a.vmcore"))
    assert main(["collapse", path]) == USAGE
    out, err = capfd.readouterr()
    assert out.splitlines()[-1].split() == ["42", "4.0", "MiB", "made"]
    assert err == f"mthp collapse: {path} is a dump: say which process with --pid N, or --all\n"
    file = tmp_path / "a.npz"
    assert main(["snap", "--vmcore", path, "--pid", str(PID), "-o", str(file), "--quiet"]) == 0
    assert load(file).processes[0].name == "made" and file.stat().st_mode & 0o777 == 0o600
    assert main(["snap", "--vmcore", path, "--all", "-o", str(file), "--redact"]) == 0
    assert load(file).redacted
    capfd.readouterr()
    assert main(["snap", "--vmcore", path, "--pid", "43", "-o", str(file)]) == USAGE
    assert "process 43 has ended (zombie)" in capfd.readouterr().err
    assert main(["snap", "--vmcore", path, "--pid", "7", "-o", str(file)]) == USAGE
    assert "process 7 is a kernel thread" in capfd.readouterr().err
    assert main(["snap", "--vmcore", path, "--all", "--freeze", "-o", str(file)]) == USAGE
    assert "--freeze is for live processes" in capfd.readouterr().err
    assert main(["plan", path, "--pid", str(PID), "--quiet"]) == 0
