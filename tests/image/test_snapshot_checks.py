# SPDX-License-Identifier: GPL-2.0-or-later
"""What no kernel can have shown is refused before anything runs; what a live capture may have is not."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mthp.image.capture.pagemap import EXCLUSIVE, GUARD, HUGE, PRESENT, SWAPPED, ZERO
from mthp.image.snapshot import DisableThp, PteBit, Snapshot, SnapshotError, read_snapshot

from .made import BASE, FRAME, PMD, PMD_FRAME, Made, made, made_deep

Change = Callable[[Made], Any]


def read(data: bytes) -> Snapshot:
    return read_snapshot(io.BytesIO(data), "a.npz")


def refused(data: bytes, says: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        read(data)
    line = str(caught.value)
    assert says in line and line.isprintable() and line.startswith("a.npz: "), line


def test_it_is_lawful_as_it_was_made() -> None:
    snapshot = read(made().packed())
    assert [len(process.pte) for process in snapshot.processes] == [3, 1]
    assert snapshot.processes[1].pfn is not None and snapshot.processes[1].pfn[0, 10] == FRAME + 10


def entry(name: str, row: int, columns: int | slice, value: object) -> Change:
    """A change of some values of a member."""

    def change(it: Made) -> None:
        it.arrays[name][row, columns] = value

    return change


def meta(path: str, value: object) -> Change:
    """A change of one value of the document, by its path: cpus, processes.0.pid."""

    def change(it: Made) -> None:
        where: Any = it.meta
        *above, last = (int(part) if part.isdigit() else part for part in path.split("."))
        for part in above:
            where = where[part]
        where[last] = value

    return change


def torn(row: int) -> Change:
    """A table that changed while it was read."""

    def change(it: Made) -> None:
        it.arrays["table_torn"][row] = 1

    return change


def both(*changes: Change) -> Change:
    def change(it: Made) -> None:
        for each in changes:
            each(it)

    return change


VMA = "processes.0.vmas.0"
KINDS: dict[str, tuple[Change, str]] = {
    "more CPUs than any kernel has": (meta("cpus", 100_000_000), "cpus: 100000000 is outside"),
    "fewer than none": (meta("cpus", -3), "cpus: -3 is outside"),
    "a node of no kernel": (meta("buddyinfo", "Node 9999, zone N 1"), "buddyinfo"),
    "blocks without end": (meta("buddyinfo", "Node 0, zone N " + "9" * 5000), "buddyinfo"),
    "a zone without blocks": (meta("pagetypeinfo", "Node 0, zone N, type Movable"), "pagetypeinfo"),
    "types of a node of no kernel": (
        meta("pagetypeinfo", "Node 9999, zone N, type Movable 1"), "pagetypeinfo"
    ),
    "zones that are no list": (meta("zones", 3), "zones: not a list of zones"),
    "a zone of a node of no kernel": (
        meta("zones", [{"node": 9999, "zone": "N", "min": 1, "kept": 0, "pcp_high": 0}]),
        "zones[0].node: 9999",
    ),
    "a zone without a name": (meta("zones", [{"node": 0}]), "zones[0].zone: missing"),
    "a zone that keeps less than nothing": (
        meta("zones", [{"node": 0, "zone": "N", "min": 1, "kept": -1, "pcp_high": 0}]),
        "zones[0].kept: -1",
    ),
    "a number for the types": (meta("pagetypeinfo", 3), "pagetypeinfo: 3 is not text"),
    "a file of sysfs with an escape": (meta("sysfs", {"a\n\x1b[31m/enabled": "x"}), "sysfs"),
    "a number for a text": (meta("kernel", 7), "kernel: 7 is not text"),
    "an amount below 0": (meta("meminfo.MemFree", -1), "meminfo.MemFree"),
    "twice the same process": (meta("processes.1.pid", 100), "processes: one is there twice"),
    "no process's number": (meta("processes.1.pid", 1 << 30), "processes[1].pid"),
    "half an address": (meta(f"{VMA}.start", BASE + 0.5), f"{float(BASE + 0.5)} is not a whole"),
    "a size below 0": (meta(f"{VMA}.swap", -3), "vmas[0].swap: -3"),
    "true for a number": (meta(f"{VMA}.rss", True), "vmas[0].rss: True"),
    "no permissions": (meta(f"{VMA}.perms", "rwxrwx"), "vmas[0].perms"),
    "a VMA that is none": (meta(VMA, None), "vmas[0]: None is not an object"),
    "no VMA where entries are": (meta(f"{VMA}.end", BASE + 2 * PMD + 4096), "is in no VMA"),
    "an entry beside its VMA": (meta(f"{VMA}.start", BASE + 4096), "is in no VMA"),
    "VMAs from back to front": (meta("processes.0.vmas.1.start", BASE), "overlap or are unsorted"),
    "an address no process has": (
        both(meta("processes.0.vmas.1.start", 1 << 48), meta("processes.0.vmas.1.end", (1 << 48) + 4096)),
        "no process has the addresses",
    ),
    "more referenced than there are addresses": (
        meta("processes.0.vmas.0.referenced", 1 << 63),
        "processes[0].vmas[0].referenced: 9223372036854775808 is not a whole number from 0 up, below",
    ),
    "a thread's start in letters": (meta("khugepaged", {"started": "3"}), "khugepaged.started: '3'"),
    "a thread that started before boot": (meta("khugepaged", {"started": -1}), "khugepaged.started: -1"),
    "a node's distances": (meta("nodes.distance", {"0": "10"}), "nodes.distance.0: '10'"),
    "a mode in letters": (meta("nodes.zone_reclaim_mode", "0"), "nodes.zone_reclaim_mode: '0'"),
    "privilege without its members": (meta("privilege.root", 3), "privilege.root: 3"),
    "members without privilege": (meta("privilege.kpageflags", False), "privilege.kpageflags is False"),
    "bits that mean nothing": (entry("pte", 0, 0, 1 << 15 | PRESENT), "bits that mean nothing"),
    "present and swapped": (entry("pte", 0, 0, PRESENT | SWAPPED), "both present and swapped"),
    "a guard that is present": (entry("pte", 0, 0, PRESENT | GUARD), "is a guard"),
    "huge and swapped": (entry("pte", 2, slice(None), SWAPPED | HUGE), "under a huge PMD, and not"),
    "half a huge PMD": (entry("pte", 2, 3, PRESENT | EXCLUSIVE), "is not under the huge PMD"),
    "a zero page of one process alone": (entry("pte", 1, 12, PRESENT | ZERO | EXCLUSIVE), "zero page"),
    "bits of what is not there": (entry("pte", 0, 15, EXCLUSIVE), "neither present nor swapped"),
    "more mappings than are counted": (entry("kpagecount", 0, 0, 1 << 27), "mapped more often"),
    "no frame": (entry("pfn", 0, 0, 0), "its frame is 0"),
    "a frame beyond memory": (entry("pfn", 0, 0, 1 << 50), "beyond any memory"),
    "a huge PMD of scattered frames": (entry("pfn", 2, 5, PMD_FRAME + 6), "not in its row"),
    "an order that cannot be": (entry("folio_order", 0, 0, 255), "of no such order"),
    "an order above the PMD's": (entry("folio_order", 0, 0, 5), "of no such order"),
    "an anonymous folio of two pages": (entry("folio_order", 0, 0, 1), "of an anonymous folio"),
    "small folios under a huge PMD": (entry("folio_order", 2, slice(None), 3), "a smaller folio"),
    "two orders in one folio": (entry("folio_order", 1, slice(0, 2), 0), "two folios on one frame"),
    "a folio in another's frames": (
        entry("pfn", 0, 0, PMD_FRAME + 3),
        "nothing changed meanwhile",
    ),
    "more folios than memory": (meta("meminfo.MemTotal", 4096), "the host has 4 KiB"),
    "a table with nothing in it": (entry("pte", 3, slice(None), 0), "a table with nothing in it"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_is_refused(kind: str) -> None:
    it = made()
    change, says = KINDS[kind]
    change(it)
    refused(it.packed(), says)


@pytest.mark.parametrize(
    "change",
    [
        both(meta("processes.0.tearing.pages_changed", 1), entry("pfn", 0, 0, PMD_FRAME + 3)),
        both(meta("redacted", True), entry("pfn", 0, 0, 1 << 40)),
        meta("cpus", None),
        both(torn(2), entry("pfn", 2, 5, PMD_FRAME + 6)),
        lambda it: it.arrays.pop("kpagecount"),
        meta("what_a_later_capture_adds", [1, {"a": None}]),
        both(meta("la57", True), meta("processes.0.vmas.1.end", 1 << 55)),
        both(
            meta("processes.0.vmas.1", {**made().meta["processes"][0]["vmas"][1]}),
            meta("processes.0.vmas.1.start", 0xFFFF_FFFF_FF60_0000),
            meta("processes.0.vmas.1.end", 0xFFFF_FFFF_FF60_1000),
            meta("processes.0.vmas.1.path", "[vsyscall]"),
        ),
    ],
)  # fmt: skip
def test_what_can_be_is_read(change: Change) -> None:
    it = made()
    change(it)
    read(it.packed())


DEEP_KINDS: dict[str, tuple[Change, str]] = {
    "deep without its members": (lambda it: it.arrays.pop("mm_ids"), "is True, and the file lacks"),
    "members without deep": (meta("privilege.deep", False), "is False, and the file has"),
    "deep without a list": (lambda it: it.meta.pop("deep"), "deep: missing"),
    "a place that is not on the list": (meta("deep.at", 2), "deep.at: 2 is outside 0..1"),
    "nothing of a process": (lambda it: it.meta["processes"][1].pop("deep"), "processes[1].deep: missing"),
    "an mm id that none has": (meta("processes.0.deep.mm_id", 1 << 31), "processes[0].deep.mm_id"),
    "a place that no mm has": (meta("processes.0.deep.registered", -1), "processes[0].deep.registered"),
    "what prctl cannot set": (meta("processes.0.deep.disable_thp", "some"), "disable_thp: 'some'"),
    "tables from back to front": (meta("processes.0.deep.empty_tables", [[BASE, BASE]]), "empty_tables: ["),
    "a VMA of which it is not known": (meta(f"{VMA}.anon_vma", None), "vmas[0].anon_vma: None"),
    "bits of nothing": (entry("pte_bits", 0, 15, 8), "is nothing, and its entry has bits"),
    "bits that mean nothing": (entry("pte_bits", 0, 0, 128), "mean nothing"),
    "young and swapped": (entry("pte_bits", 1, 8, 1), "is young or the like, and not present"),
    "references to what is swapped": (entry("refcount", 1, 8, 1), "of no folio, which has a refcount"),
    "a node of the zero page": (entry("node", 1, 12, 1), "of no folio, which has a node"),
    "a state that means nothing": (entry("folio_state", 0, 0, 1 << 9), "in a state that means nothing"),
    "mm ids of a small folio": (entry("mm_ids", 0, 0, 5), "of a small folio, which has mm_ids"),
    "mm ids that are locked": (entry("mm_ids", 1, 0, 1 << 31 | 5), "no such mm ids"),
    "mapped by nobody": (entry("folio_mapcount", 0, 0, 0), "of a folio that is not mapped"),
    "mapped more often than referenced": (entry("refcount", 0, 10, 2), "more often than referenced"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP_KINDS)
def test_what_no_deep_capture_shows_is_refused(kind: str) -> None:
    it = made_deep()
    read(it.packed())
    change, says = DEEP_KINDS[kind]
    change(it)
    refused(it.packed(), says)


def test_what_a_deep_capture_says() -> None:
    it = made_deep()
    both(torn(0), entry("refcount", 0, 10, 2), meta("processes.0.deep.mm_id", None))(it)
    snapshot = read(it.packed())
    first, second = snapshot.processes
    assert snapshot.privilege.deep and first.deep and second.deep
    assert (first.deep.mm_id, first.deep.registered, second.deep.registered) == (None, None, 1)
    assert second.deep.empty_tables == ((BASE + 3 * PMD, BASE + 4 * PMD),)
    assert second.deep.disable_thp is DisableThp.EXCEPT_ADVISED and not second.deep.pinned
    assert [vma.anon_vma for vma in first.vmas] == [True, False]
    assert first.pte_bits is not None and first.refcount is not None
    assert first.pte_bits[0, 0] == PteBit.YOUNG | PteBit.DIRTY | PteBit.WRITABLE | PteBit.EXCLUSIVE
    assert first.refcount[0, 10] == 2 and read(made().packed()).processes[0].deep is None


# Bombs


def zipped(change: Callable[[zipfile.ZipFile], Any], *left_out: str) -> bytes:
    """The file with some members taken out, and others put in."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(made().packed())) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            if name not in left_out:
                after.writestr(name, before.read(name))
        change(after)
    return out.getvalue()


def npy(kind: str, *shape: int) -> bytes:
    """The header of an array."""
    file = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def test_what_is_packed_is_not_unpacked_further_than_the_mappings_reach() -> None:
    """Zeros without end in a small file: no member of them is read."""

    def bomb(archive: zipfile.ZipFile) -> None:
        for name, kind, shape in (("pte", "<u2", (_MANY, 16)), ("table_address", "<u8", (_MANY,))):
            data = npy(kind, *shape) + bytes(int(np.prod(shape)) * int(kind[2]))
            archive.writestr(f"{name}.npy", data, zipfile.ZIP_DEFLATED, 1)

    data = zipped(bomb, "pte.npy", "table_address.npy")
    tracemalloc.start()
    refused(data, f"{_MANY} tables are more than the 4 of what was captured")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) < 1 << 20 and peak < 4 << 20


_MANY = 1 << 21


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npy("<u2", 4, 16) + bytes(127), "is damaged"),
        (npy("<u2", 4, 16) + bytes(129), "is damaged"),
        (npy("<u2", 1 << 39, 16), "is damaged"),
        (npy("<f2", 4, 16) + bytes(128), "is <f2, not unsigned"),
        (npy("|O", 4, 16) + bytes(128), "is |O, not unsigned"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "does not begin as an array"),
        (b"\x93NUMPY\x01\x00\x00\x10" + b"(" * 4096, "does not begin as an array"),
        (b"", "does not begin as an array"),
    ],
)
def test_members_that_are_no_arrays(data: bytes, says: str) -> None:
    refused(zipped(lambda archive: archive.writestr("pte.npy", data), "pte.npy"), says)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_ways_of_packing(method: int) -> None:
    data = zipped(lambda archive: archive.writestr("pte.npy", npy("<u2", 4, 16), method), "pte.npy")
    refused(data, "packed in a way that no snapshot is")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_is_there_once() -> None:
    refused(zipped(lambda archive: archive.writestr("pte.npy", b"")), "twice")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"cpus": ' + "9" * 5000 + "}", "number without end"),
        ('{"cpus": NaN}', "NaN is no number"),
        ('{"cpus": -Infinity}', "-Infinity is no number"),
        ('{"schema": 1, "schema": 2}', "the key 'schema' is there twice"),
        ('{"schema": "\x00"}', "bad JSON"),
        ("[" + "{}," * (1 << 23) + "{}]", "more than 8388608 values"),
    ],
)
def test_documents_that_are_none(document: str, says: str) -> None:
    text = document.encode()
    data = npy("|u1", len(text)) + text
    refused(zipped(lambda archive: archive.writestr("meta.npy", data), "meta.npy"), says)
