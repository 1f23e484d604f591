# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command prints: golden pages, documents by the schema, exit codes, conformance."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mthp.cli import main
from tests.cli.test_bad_input import ENV, MTHP, RECORDS, REDIS, ROOT, SCENARIO

GOLDEN = Path(__file__).parent / "golden"
REDIS_ALL = ["collapse", "src/mthp/data/redis.npz", "--profile", "7.3", "--enabled", "64kB=always"]
SMALL_SCENARIO = "tests/data/linux-7.3.4-many-vmas.jsonl.xz#ext-0"


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Width 100, no colour, names as they are in the project."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.chdir(ROOT)


def run(capfd: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(argv) == code
    out, err = capfd.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("redis.txt", REDIS_ALL),
        ("scenario.txt", ["collapse", SMALL_SCENARIO]),
        ("why.txt", [*REDIS_ALL, "--why", "0xb52fbda6a05000"]),
        ("steps.txt", [*REDIS_ALL, "--steps", "b52fbda6a00000"]),
        ("events.txt", ["collapse", SMALL_SCENARIO, "--events", "ftrace"]),
        ("oom.txt", ["collapse", "docs/findings/oom-order-2.jsonl"]),
        ("madvise.txt", ["collapse", "src/mthp/data/redis.npz", "--madvise-collapse"]),
        (
            "plan.txt",
            [
                "plan",
                "src/mthp/data/redis.npz",
                "--profile",
                "7.3",
                "--thp-anon",
                "64K,2M:always",
                "--max-ptes-none",
                "0",
            ],
        ),
        ("sweep.txt", ["sweep", "src/mthp/data/redis.npz", "--profile", "7.3"]),
        (
            "doctor.txt",
            [
                "doctor",
                "src/mthp/data/redis.npz",
                "--profile",
                "7.3",
                "--enabled",
                "16kB=always,32kB=always,2048kB=never,global=never",
                "--max-ptes-none",
                "64",
            ],
        ),
        ("diff.txt", ["diff", "v16", "7.3", SMALL_SCENARIO]),
    ],
)
def test_golden(capfd: pytest.CaptureFixture[str], name: str, argv: list[str]) -> None:
    printed = "".join(f"{line.rstrip()}\n" for line in run(capfd, *argv).splitlines())
    assert "\x1b" not in printed
    file = GOLDEN / name
    if os.environ.get("MTHP_GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(printed)
    assert printed == file.read_text()


@pytest.mark.parametrize("argv", [REDIS_ALL, ["collapse", SMALL_SCENARIO, "--tlb", "contpte"]])
def test_json_keeps_its_schema(capfd: pytest.CaptureFixture[str], argv: list[str]) -> None:
    document = json.loads(run(capfd, *argv, "--json"))
    schema = json.loads((ROOT / "docs/schema/collapse.schema.json").read_text())
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(document, schema)
    assert document["schema_version"] and document["refusals"]


LINE = re.compile(r" {6}khugepaged-42 +\[000\] \.{5} +\d+\.\d{6}: (\w+): (.*)")
STATUS = "status=[a-z_]+"
PRINTK = {
    "collapse_huge_page": r"\(collapse_huge_page\) address=0x[0-9a-f]+ order=\d",
    "mm_khugepaged_scan_pmd": r"mm=\w+, scan_pfn=0x[0-9a-f]+, referenced=\d+, none_or_zero=\d+, "
    rf"{STATUS}, unmapped=\d+, address=0x[0-9a-f]+",
    "mm_collapse_huge_page": rf"mm=\w+, isolated=\d, {STATUS}, order=\d, address=0x[0-9a-f]+",
    "mm_collapse_huge_page_isolate": r"scan_pfn=0x[0-9a-f]+, none_or_zero=\d+, referenced=\d+, "
    rf"{STATUS}, order=\d, address=0x[0-9a-f]+",
    "mm_collapse_huge_page_swapin": r"mm=\w+, swapped_in=\d+, referenced=\d+, ret=\d+, order=\d, "
    "address=0x[0-9a-f]+",
    "mm_khugepaged_scan": r"mm=\w+, progress=\d+, full_scan_finished=[01]",
}
"""TP_printk of include/trace/events/huge_memory.h, the address added."""


def test_events_are_the_kernels_text(capfd: pytest.CaptureFixture[str]) -> None:
    seen = set()
    for line in run(capfd, "collapse", SCENARIO, "--events", "ftrace").splitlines():
        match = LINE.fullmatch(line)
        assert match is not None, line
        assert re.fullmatch(PRINTK[match[1]], match[2]), line
        seen.add(match[1])
    assert len(seen) >= 4


def test_why_on_a_file_mapping(capfd: pytest.CaptureFixture[str]) -> None:
    out = run(capfd, "collapse", str(REDIS), "--why", "b505cc09daa000")
    assert "file mapping" in out or "FILE" in out or "not anonymous" in out


def doctored(tmp_path: Path) -> tuple[Path, Path]:
    """One record as it is, and one whose first event was changed."""
    with lzma.open(RECORDS, "rt") as file:
        record = json.loads(file.readline())
    right, wrong = tmp_path / "right.jsonl", tmp_path / "wrong.jsonl"
    right.write_text(json.dumps(record) + "\n")
    record["passes"][0]["events"][0]["order"] = 2
    wrong.write_text(json.dumps(record) + "\n")
    return right, wrong


def test_conformance(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    right, wrong = doctored(tmp_path)
    agreed = json.loads(run(capfd, "collapse", "--conformance", str(right), "--json"))
    assert agreed["passes"] == agreed["agreed"] > 0 and agreed["mismatches"] == []
    run(capfd, "collapse", "--conformance", str(right))
    differs = json.loads(run(capfd, "collapse", "--conformance", str(wrong), "--json", code=3))
    assert differs["agreed"] == differs["passes"] - 1
    (mismatch,) = differs["mismatches"]
    assert set(mismatch) == {"id", "pass", "where", "expected", "got"}
    assert mismatch["where"] == "events[0]"
    assert "events[0]" in run(capfd, "collapse", "--conformance", str(wrong), code=3)


def test_the_command_line_needs_no_numpy() -> None:
    code = "import sys, mthp.cli; mthp.cli.build_parser(); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.stdout == "False\n"


def interrupted(*argv: str) -> tuple[int, str, str]:
    """Interrupt it when it shows how far it is: exit code, stdout, what its terminal got by then."""
    terminal, stderr = pty.openpty()
    with subprocess.Popen([*MTHP, *argv], env=ENV, stdout=subprocess.PIPE, stderr=stderr) as p:
        os.close(stderr)
        shown = b""
        while b"full scan" not in shown:  # the end of the terminal, if it dies, is an OSError
            shown += os.read(terminal, 1000)
        p.send_signal(signal.SIGINT)
        out, _ = p.communicate(timeout=60)
        with contextlib.suppress(OSError):
            while more := os.read(terminal, 1000):
                shown += more
        os.close(terminal)
        return p.returncode, out.decode(), shown.decode()


def test_an_interrupt_prints_what_is_known() -> None:
    code, out, shown = interrupted("collapse", SCENARIO, "--passes", "1000000", "--json")
    document: dict[str, Any] = json.loads(out)
    assert code == 1
    assert all(line.startswith("full scan") for line in shown.split("\r") if line.strip())
    assert not shown.split("\r")[-2].strip(), "the line is removed"
    assert document["orders_before"] and document["refusals"]
