# SPDX-License-Identifier: GPL-2.0-or-later
"""Several live processes as one target, and what is summed up of each."""

from __future__ import annotations

import json
import os
import signal

import pytest

from mthp.cli import main
from mthp.image.capture.host import THP
from mthp.image.capture.proc import text
from mthp.words.units import human_bytes
from tests.image.children import PAGE, child

pytestmark = pytest.mark.skipif(
    "[always]" in (text(f"{THP}/enabled") or "[always]"),
    reason="no THP in this kernel, or it collapses what is to be small",
)

SPARSE = """
a = reserve(8 * TABLE)
write(a, 0, 8 * 256, 2)
libc.prctl(15, b"spar\\tse", 0, 0, 0)
ready(a=a)
"""
"""Eight tables of which every second page is there."""
FULL = """
a = reserve(2 * TABLE)
write(a, 0, 2 * 512)
ready(a=a)
"""
SHARED = """
a = reserve(2 * TABLE)
write(a, 0, 300)
write(a, 512, 300)
"""
ALWAYS = ["--profile", "7.3", "--enabled", "2048kB=always,always", "--no-changes"]


def collapse(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["collapse", *argv]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


def test_several_processes_are_summed_up_each(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with child(SPARSE) as sparse, child(FULL) as full:
        pids = ["--pid", str(sparse.pid), "--pid", str(full.pid)]
        document = json.loads(collapse(capfd, *pids, *ALWAYS, "--json"))
        printed = collapse(capfd, *pids, *ALWAYS)
    assert document["processes"] == 2
    of = {each["pid"]: each for each in document["by_process"]}
    assert sorted(of) == sorted((sparse.pid, full.pid))
    assert document["memory_added"] == sum(each["memory_added"] for each in of.values())
    for pid, each in of.items():
        own = [vma for vma in document["vmas"] if vma["pid"] == pid]
        assert each["memory_added"] == sum(vma["memory_added"] for vma in own)
        assert each["after"]["9"] == sum(vma["after"].get("9", 0) for vma in own)
    added = {(vma["pid"], vma["start"]): vma["memory_added"] for vma in document["vmas"]}
    assert added[sparse.pid, sparse.facts["a"]] == 8 * 256 * PAGE
    assert added[full.pid, full.facts["a"]] == 0
    (row,) = [line.split() for line in printed.splitlines() if f" {sparse.pid}  spar?se " in line]
    mine = of[sparse.pid]
    sizes = [human_bytes(mine["after"]["9"]), human_bytes(mine["memory_added"])]
    assert " ".join(row[-5:]) == "→ " + " ".join(sizes)


def test_what_is_shared_is_added_by_the_first_that_collapses_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After fork both hold 300 pages of each table: the first copies them, the second moves its own."""
    script = SHARED + "pid = os.fork()\nif pid == 0: time.sleep(60)\nready(a=a, child=pid)"
    with child(script) as kid:
        both = sorted((kid.pid, kid.facts["child"]))
        argv = [word for pid in both for word in ("--pid", str(pid))]
        argv += [*ALWAYS, "--max-ptes-shared", "300", "--assume-young", "all", "--json"]
        document = json.loads(collapse(capfd, *argv))
        os.kill(kid.facts["child"], signal.SIGKILL)
    added = [vma["memory_added"] for vma in document["vmas"] if vma["start"] == kid.facts["a"]]
    assert added == [2 * 512 * PAGE, 2 * 212 * PAGE]
    assert [each["pid"] for each in document["by_process"]] == both
    assert document["memory_added"] == sum(each["memory_added"] for each in document["by_process"])
