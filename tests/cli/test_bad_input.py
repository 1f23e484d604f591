# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever is wrong with the input: one line on stderr, exit code 2, nothing on stdout."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mthp.cli import main

ROOT = Path(__file__).parents[2]
REDIS = ROOT / "src/mthp/data/redis.npz"
RECORDS = ROOT / "tests/data/linux-7.3.4-many-vmas.jsonl.xz"
SCENARIO = f"{RECORDS}#ext-0"
MTHP = [sys.executable, "-m", "mthp"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def refused(capfd: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """Run it; the one line it says."""
    try:
        got = main(argv)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        got = stop.code
    out, err = capfd.readouterr()
    assert (got, out) == (code, ""), err
    assert err.endswith("\n") and err.count("\n") == 1, err
    assert err.startswith("mthp")
    return err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "required: VERB"),
        (("nope",), "invalid choice: 'nope'"),
        (("collapse",), "give a target"),
        (("collapse", "--pid", "1", "x.npz"), "give one of"),
        (("collapse", "--all", "--pid", "1"), "give one of"),
        (("collapse", "--cgroup", ""), "no cgroup ''"),
        (("collapse", "--cgroup", "0::/no/such"), "no cgroup 0::/no/such"),
        (("collapse", "/nonexistent.npz"), "No such file"),
        (("collapse", "/tmp"), "directory"),
        (("collapse", str(RECORDS)), "which one?"),
        (("collapse", f"{RECORDS}#nope"), "no scenario 'nope'"),
        (("collapse", "--pid", "0"), "neither a process's number"),
        (("collapse", "--pid", "x"), "neither a process's number"),
        (("collapse", "--pid", "٣"), "neither a process's number"),
        (("collapse", "--pid", "4194999"), "no process"),
        (("collapse", "--conformance", "/nonexistent"), "No such file"),
        (("collapse", "--conformance", str(REDIS)), "damaged"),
        (("collapse", "--conformance", str(RECORDS), SCENARIO), "no other target"),
        (("collapse", "--conformance", str(RECORDS), "--why", "0"), "--why has no place"),
        (("collapse", "--conformance", str(RECORDS), "--passes", "1"), "--passes has no place"),
        (("collapse", "--conformance", str(RECORDS), "--max-ptes-none", "0"), "has no place"),
        (("diff", "v16"), "required: B"),
        (("diff", "v16", "9"), "'9' is not a profile"),
        (("diff", str(REDIS), "7.3"), "is not a profile, as the other is"),
        (("diff", str(REDIS), "/nonexistent.npz"), "/nonexistent.npz: No such file"),
        (("diff", str(REDIS), str(REDIS), "--pid", "self"), "compared as they are"),
        (("diff", str(REDIS), str(REDIS), "--max-ptes-none", "0"), "compared as they are"),
        (("diff", str(REDIS), str(REDIS)), "--redact moved the addresses"),
        (("diff", "v16", "7.3", "--max-ptes-none", "0"), "need a target"),
        (("snap",), "required"),
        (("snap", "--pid", "x", "-o", "y.npz"), "neither a process's number"),
    ],
)
def test_bad_commands(capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str) -> None:
    assert says in refused(capfd, *argv)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--passes 0", "from 1 to"),
        ("--passes -1", "from 1 to"),
        ("--passes 99999999999999999999999", "from 1 to"),
        ("--max-ptes-none 512", "outside 0..511"),
        ("--max-ptes-none ²", "whole number"),
        ("--max-ptes-swap 512", "outside 0..511"),
        ("--max-ptes-shared -1", "whole number"),
        ("--pages-to-scan 0", "outside 1.."),
        ("--pages-to-scan 4294967296", "outside 1.."),
        ("--scan-sleep-millisecs 1e3", "whole number"),
        ("--enabled 65kB=always", "not a power of two"),
        ("--enabled 8kB=always", "no anonymous folio of 8K"),
        ("--enabled 64kB=maybe", "not one of"),
        ("--enabled inherit", "not one of"),
        ("--enabled 64kB=always,64kB=never", "both always and never"),
        ("--thp-anon garbage", "thp_anon"),
        ("--defrag 2", "invalid choice"),
        ("--profile 9", "invalid choice"),
        ("--tlb x", "invalid choice"),
        ("--json --why 0", "exclude one another"),
        ("--events ftrace --steps 0", "exclude one another"),
        ("--why 0x1000", "in no mapping"),
        ("--why zz", "not a hexadecimal address"),
        ("--why -5", "not a hexadecimal address"),
        ("--steps 0x1000", "nothing was attempted"),
        ("--assume-young all", "for captures"),
        ("--madvise-collapse nonsense", "neither START-END nor START+LENGTH"),
        ("--madvise-collapse 1000-1000", "is empty"),
        ("--madvise-collapse 2000-1000", "is empty"),
        ("--madvise-collapse 1000", "neither START-END nor"),
        ("--madvise-collapse --why 0", "has no --events, --why"),
        ("--madvise-collapse --passes 1", "has no --events, --why"),
        ("--madvise-collapse --timeline", "and --timeline"),
        ("--csv --timeline", "--timeline is a part of the report"),
    ],
)
def test_bad_options(capfd: pytest.CaptureFixture[str], options: str, says: str) -> None:
    assert says in refused(capfd, "collapse", SCENARIO, *options.split())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.npz", REDIS.read_bytes()[:3000]),
        ("noise.npz", b"\x93NUMPY" + bytes(range(256)) * 9),
        ("empty.npz", b""),
        ("noise.jsonl", b"\xff\xfe\x00\n"),
        ("garbage.jsonl", b"garbage\n"),
        ("empty.jsonl", b""),
        ("schema.jsonl", b'{"schema": "mthp-scenario/9", "id": "a"}\n'),
        ("cut.jsonl.xz", RECORDS.read_bytes()[:2000]),
        ("noise.jsonl.gz", b"\x1f\x8b" + bytes(99)),
        ("fields.jsonl", b'{"schema": "mthp-scenario/1", "id": "a"}\n'),
        ("list.jsonl", b"[1]\n"),
    ],
)
def test_damaged_files(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert name in refused(capfd, "collapse", str(path))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_impossible_states(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with lzma.open(RECORDS, "rt") as file:
        record = json.loads(file.readline())
    path = tmp_path / "impossible.jsonl.gz"
    pages = record["vmas"][0]["pages"]
    for folios, ptes in (
        (f"2:F4.LaBT.x.m1.f0.i0 {pages - 2}:-", f"2:PWAD {pages - 2}:-"),  # one frame twice
        (f"1:F0.LaB.x.m0 {pages - 1}:-", f"1:PWAD {pages - 1}:-"),  # mapped, and mapcount 0
        (f"1:F0.LaB.x.m1 {pages - 1}:-", f"1:- {pages - 1}:-"),  # a page behind no PTE
        (f"{pages + 1}:-", f"{pages}:-"),  # longer than the VMA
    ):
        wrong = {**record["vmas"][0], "initial": {"folios": folios, "ptes": ptes}}
        if "m1.f0" in folios:
            wrong["initial"]["folios"] = f"1:F4.LaBT.x.m1.f0.i0 1:F4.LaBT.x.m1.f0.i0 {pages - 2}:-"
        with gzip.open(path, "wt") as file:
            file.write(json.dumps({**record, "vmas": [wrong], "passes": []}) + "\n")
        refused(capfd, "collapse", str(path))


def test_stdout_that_cannot_be_written() -> None:
    """A full disk, a closed descriptor and a reader that left: no traceback."""
    for shell, code in ((">/dev/full", 1), (">&-", 1), ("| true", 0)):
        line = f"'{sys.executable}' -m mthp collapse '{SCENARIO}' --json {shell}"
        done = subprocess.run(["bash", "-c", line], env=ENV, capture_output=True, text=True)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == (1 if code else 0), done.stderr


def test_conformance_of_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.touch()
    assert "no recorded pass" in refused(capfd, "collapse", "--conformance", str(path))
