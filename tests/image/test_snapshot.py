# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading: what a good file gives, and how every kind of bad file is refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mthp.image.capture.columns import WIDTH
from mthp.image.capture.command import main
from mthp.image.capture.host import THP
from mthp.image.snapshot import Pte, Snapshot, SnapshotError, load
from mthp.words.units import Geometry

from .children import MIXED, child

pytestmark = pytest.mark.skipif(not os.path.isdir(THP), reason="no THP in this kernel")

Members = dict[str, Any]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshot") / "good.npz"
    with child(MIXED) as kid:
        assert main(["--pid", str(kid.pid), "-o", str(path), "--quiet"]) == 0
    return path


def members(file: Path) -> Members:
    with np.load(file) as archive:
        return dict(archive)


def refused(path: Path, word: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and word in line and "\n" not in line, line


def altered(tmp_path: Path, file: Path, change: Callable[[Members, dict[str, Any]], None]) -> Path:
    """A copy whose members and meta the function changed."""
    arrays = members(file)
    meta = json.loads(arrays["meta"].tobytes())
    change(arrays, meta)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    path = tmp_path / "altered.npz"
    np.savez(path, **arrays)
    return path


def test_a_good_file(file: Path) -> None:
    snapshot = load(file)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.kernel == os.uname().release
    page = os.sysconf("SC_PAGE_SIZE")
    assert snapshot.geometry.page_size == page
    assert isinstance(snapshot.geometry, Geometry)
    (process,) = snapshot.processes
    assert process.pte.shape == (len(process.table_address), snapshot.geometry.ptrs_per_pte)
    assert process.count(Pte.PRESENT) > 900 and process.vmas
    anonymous = sum(vma.anonymous_bytes for vma in process.vmas) // page
    small = process.pte & (Pte.PRESENT | Pte.ZERO) == Pte.PRESENT
    assert not process.count(Pte.FILE), "a file's pages are left out"
    assert np.count_nonzero(small) == anonymous
    assert snapshot.unseen and snapshot.tearing["tables"] == len(process.pte)


def test_every_pte_lies_in_a_captured_vma(file: Path) -> None:
    snapshot = load(file)
    (process,) = snapshot.processes
    inside = np.zeros(process.pte.shape, bool)
    page, pmd = snapshot.geometry.page_size, snapshot.geometry.pmd_size
    for row, address in enumerate(process.table_address.tolist()):
        for vma in process.vmas:
            if vma.captured and vma.start < address + pmd and vma.end > address:
                first, last = max(vma.start - address, 0), min(vma.end - address, pmd)
                inside[row, first // page : last // page] = True
    assert not process.pte[~inside].any()
    assert process.pte.any(axis=1).all(), "no empty table is kept"


def test_not_a_snapshot(tmp_path: Path, file: Path) -> None:
    refused(tmp_path / "none.npz", "No such file")
    refused(tmp_path, "Is a directory")
    path = tmp_path / "x.npz"
    for data in (b"", b"garbage" * 100, b"PK\x03\x04" + bytes(500)):
        path.write_bytes(data)
        refused(path, "not a snapshot")
    np.savez(path, a=np.arange(3))
    refused(path, "no member meta")
    np.savez(path, **{k: v for k, v in members(file).items() if k != "pte"})
    refused(path, "no member pte")


def test_every_truncation_is_noticed(tmp_path: Path, file: Path) -> None:
    data = file.read_bytes()
    path = tmp_path / "x.npz"
    for size in range(0, len(data), max(1, len(data) // 200)):
        path.write_bytes(data[:size])
        refused(path, "")


def test_damage_is_noticed_or_harmless(tmp_path: Path, file: Path) -> None:
    """A flipped byte gives an error of one line, or (in what nothing reads) nothing at all."""
    data = bytearray(file.read_bytes())
    path = tmp_path / "x.npz"
    for at in range(7, len(data), max(1, len(data) // 300)):
        data[at] ^= 0x55
        path.write_bytes(data)
        data[at] ^= 0x55
        try:
            load(path)
        except SnapshotError as error:
            assert "\n" not in str(error)


def _set(name: str, value: Any) -> Callable[[Members, dict[str, Any]], None]:
    def change(arrays: Members, meta: dict[str, Any]) -> None:
        meta[name] = value

    return change


def _array(name: str, make: Callable[[Any], Any]) -> Callable[[Members, dict[str, Any]], None]:
    def change(arrays: Members, meta: dict[str, Any]) -> None:
        arrays[name] = make(arrays[name])

    return change


def _vma(k: int, name: str, value: int) -> Callable[[Members, dict[str, Any]], None]:
    def change(arrays: Members, meta: dict[str, Any]) -> None:
        meta["processes"][0]["vmas"][k][name] = value

    return change


def _no_vmas(arrays: Members, meta: dict[str, Any]) -> None:
    meta["processes"][0]["vmas"] = []


def _no_pid(arrays: Members, meta: dict[str, Any]) -> None:
    del meta["processes"][0]["pid"]


def _overlap(arrays: Members, meta: dict[str, Any]) -> None:
    vmas = meta["processes"][0]["vmas"]
    vmas[3]["start"] = vmas[2]["start"]


def _both(pte: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    pte[1, 7] = 3
    return pte


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_set("schema", "mthp-snapshot/2"), "schema 'mthp-snapshot/2'"),
        (_set("schema", None), "schema None"),
        (_set("page_size", 4097), "4097"),
        (_set("pmd_size", 1), "geometry"),
        (_set("pmd_size", 4 << 20), "shape"),
        (_set("page_size", "4K"), "page_size: '4K' is not a whole number"),
        (_set("processes", []), "processes: empty"),
        (_set("processes", 3), "processes: not a list"),
        (_set("privilege", {}), "privilege.root: missing"),
        (_no_pid, "processes[0].pid: missing"),
        (_no_vmas, "more than the 0 of what was captured"),
        (_overlap, "VMAs overlap"),
        (_vma(0, "end", 0), "VMA"),
        (_vma(0, "start", 5), "impossible VMA"),
        (_array("pte", lambda pte: pte[:-1]), "member pte has shape"),
        (_array("pte", lambda pte: pte.astype(np.float32)), "member pte is <f4, not unsigned"),
        (_array("pte", lambda pte: pte.astype(np.uint32)), "member pte is uint32"),
        (_array("pte", _both), "both present and swapped"),
        (_array("table_address", lambda a: a[::-1].copy()), "not ascending"),
        (_array("table_address", lambda a: a + np.uint64(4096)), "not a multiple"),
        (_array("table_address", lambda a: a[0]), "shape"),
        (_array("table_address", lambda a: a & np.uint64(0)), "not ascending"),
        (_array("table_process", lambda a: a + np.uint16(1)), "table_process"),
    ],
)
def test_contradictions(
    tmp_path: Path, file: Path, change: Callable[[Members, dict[str, Any]], None], word: str
) -> None:
    refused(altered(tmp_path, file, change), word)


def test_meta_that_is_no_json(tmp_path: Path, file: Path) -> None:
    for text in (b"{", b"\xff\xfe", b"[1]", b"3"):
        arrays = members(file) | {"meta": np.frombuffer(text, np.uint8)}
        np.savez(tmp_path / "x.npz", **arrays)
        refused(tmp_path / "x.npz", "bad JSON")


def test_pickles_are_not_opened(tmp_path: Path, file: Path) -> None:
    arrays: dict[str, Any] = members(file) | {"pte": np.array([{}, print], object)}
    np.savez(tmp_path / "x.npz", **arrays)
    refused(tmp_path / "x.npz", "member pte is |O, not unsigned")


def _of_first_vma(key: str, value: object) -> Callable[[Members, dict[str, Any]], None]:
    def change(_: Members, meta: dict[str, Any]) -> None:
        meta["processes"][0]["vmas"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("kind", "tape", "tape"),
        ("kind", 7, "7"),
        ("captured", 1, "captured: 1"),
        ("rss", -(1 << 40), "rss: -1099511627776 is not a whole number"),
        ("rss", "much", "rss: 'much' is not a whole number"),
        ("anonymous", [], "anonymous: [] is not a whole number"),
    ],
)
def test_sizes_and_kinds_that_cannot_be(
    tmp_path: Path, file: Path, key: str, value: object, word: str
) -> None:
    refused(altered(tmp_path, file, _of_first_vma(key, value)), word)


def _no_kinds(_: Members, meta: dict[str, Any]) -> None:
    for vma in meta["processes"][0]["vmas"]:
        del vma["kind"], vma["captured"]
    del meta["processes"][0]["rollup"]


def test_a_file_from_before_there_were_kinds(tmp_path: Path, file: Path) -> None:
    """It has nothing of what lies in file mappings, as old captures had not."""
    arrays = members(file)
    meta = json.loads(arrays["meta"].tobytes())
    _no_kinds(arrays, meta)
    snapshot = load(file)
    anonymous = [vma for vma in snapshot.processes[0].vmas if vma.anonymous]
    page = snapshot.geometry.page_size
    pages = (
        arrays["table_address"][:, None]
        + np.arange(arrays["pte"].shape[1]).astype(np.uint64) * page
    )
    inside = np.zeros(pages.shape, bool)
    for vma in anonymous:
        inside |= (pages >= vma.start) & (pages < vma.end)
    arrays |= {
        name: np.where(inside, arrays[name], 0).astype(f"u{width}")
        for name, width in WIDTH.items()
        if name in arrays
    }
    keep = arrays["pte"].any(axis=1)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    path = tmp_path / "old.npz"
    np.savez(path, **{k: v if k == "meta" else v[keep] for k, v in arrays.items()})
    (process,) = load(path).processes
    assert process.resident.pss is None and process.resident.rss
    assert [vma.captured for vma in process.vmas] == [vma.anonymous for vma in process.vmas]
