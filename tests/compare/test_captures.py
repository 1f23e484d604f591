# SPDX-License-Identifier: GPL-2.0-or-later
"""`mthp diff` of two captures: what a process did between them, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from mthp.cli import main
from mthp.compare.captures import compare_captures
from mthp.compare.records import Fate
from mthp.image.capture import command as capture
from mthp.image.capture.host import THP
from mthp.image.capture.proc import text
from mthp.image.snapshot import Snapshot, load
from tests.image.children import PAGE, PRELUDE, TABLE

pytestmark = [
    pytest.mark.skipif(
        "[always]" in (text(f"{THP}/enabled") or "[always]"),
        reason="no THP in this kernel, or it collapses what is to be small",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: folios"),
    pytest.mark.root,
]

STEPS = """
a = reserve(4 * TABLE); write(a, 0, 1024)
b = reserve(TABLE); write(b, 0, 64)
d = reserve(TABLE); write(d, 0, 16)
c = reserve(TABLE)
libc.munmap(ctypes.c_void_p(c), ctypes.c_size_t(TABLE))
print(json.dumps(dict(a=a, b=b, c=c, d=d)), flush=True)
sys.stdin.readline()
ok = advise(a, TABLE, MADV_COLLAPSE)
advise(a + TABLE, 100 * PAGE, MADV_DONTNEED)
write(a, 1024, 50)
read(a, 1536, 3)
libc.munmap(ctypes.c_void_p(b), ctypes.c_size_t(TABLE))
assert libc.mmap(c, TABLE, 3, 0x4032, -1, 0) == c
write(c, 0, 32)
libc.mprotect(ctypes.c_void_p(d + 4 * PAGE), 4 * PAGE, 1)
print(json.dumps(dict(ok=ok)), flush=True)
sys.stdin.read()
"""


@contextmanager
def process() -> Iterator[tuple[int, dict[str, int], Callable[[], dict[str, int]]]]:
    """A child before its steps: its pid, where its mappings are, and what makes it take them."""
    command = [sys.executable, "-c", PRELUDE + STEPS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdin is not None and p.stdout is not None
        stdin, stdout = p.stdin, p.stdout

        def go() -> dict[str, int]:
            stdin.write("\n")
            stdin.flush()
            return dict(json.loads(stdout.readline()))

        try:
            yield p.pid, json.loads(stdout.readline()), go
        finally:
            stdin.close()
            p.kill()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, int]]:
    """Captures before and after the child's steps, and where its mappings are."""
    files = [tmp_path_factory.mktemp("captures") / name for name in ("a.npz", "b.npz")]
    with process() as (pid, places, go):
        assert capture.main(["--pid", str(pid), "-o", str(files[0]), "--quiet"]) == 0
        if not go()["ok"]:
            pytest.skip("MADV_COLLAPSE found no free block")
        assert capture.main(["--pid", str(pid), "-o", str(files[1]), "--quiet"]) == 0
    return files[0], files[1], places


def document(capfd: pytest.CaptureFixture[str], *argv: object) -> Any:
    assert main(["diff", *map(str, argv), "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return json.loads(out)


def changed(pages: dict[str, Any]) -> dict[tuple[str, str], int]:
    return {(each["before"], each["after"]): each["pages"] for each in pages["changed"]}


def test_what_each_mapping_did(
    both: tuple[Path, Path, dict[str, int]], capfd: pytest.CaptureFixture[str]
) -> None:
    a, b, at = both
    (child,) = document(capfd, a, b)["processes"]
    assert child["fate"] == "in both" and all(size > 0 for size in child["rss"])
    of = {mapping["start"]: mapping for mapping in child["mappings"]}
    big = of[at["a"]]
    assert changed(big) == {
        ("0", "pmd"): 512, ("0", "none"): 100, ("none", "0"): 50, ("none", "zero"): 3
    }  # fmt: skip
    assert big["moves"] == {"larger": 512, "gone": 100, "new": 53}
    assert big["anonymous"] == [1024 * PAGE, (1024 - 100 + 50) * PAGE]
    assert big["large"] == [0, TABLE] and big["pages"][1]["zero"] == 3
    assert of[at["b"]]["fate"] == "gone" and of[at["b"]]["anonymous"] == [64 * PAGE, 0]
    assert of[at["c"]]["fate"] == "new" and of[at["c"]]["anonymous"] == [0, 32 * PAGE]
    assert of[at["d"]]["mappings"] == [1, 3] and changed(of[at["d"]]) == {}
    assert child["folios"][1]["9"] == child["folios"][0].get("9", 0) + 1


def test_sums_agree(
    both: tuple[Path, Path, dict[str, int]], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = document(capfd, both[0], both[1])
    (child,) = whole["processes"]
    assert whole["sees_folios"] and whole["changed"] == child["changed"]
    for k in (0, 1):
        pages = sum(child["pages"][k].values())
        assert pages == sum(sum(each["pages"][k].values()) for each in child["mappings"])
        assert child["anonymous"][k] == sum(each["anonymous"][k] for each in child["mappings"])
    moved = sum(child["moves"].values())
    assert moved == sum(sum(each["moves"].values()) for each in child["mappings"])
    assert changed(document(capfd, both[0], both[0])) == {}
    back = changed(document(capfd, both[1], both[0]))
    assert back == {(now, was): n for (was, now), n in changed(whole).items()}


def test_the_text(
    both: tuple[Path, Path, dict[str, int]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["diff", str(both[0]), str(both[1])]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "Observed: 2 MiB in larger folios" in shown and "No setting changed." in shown
    assert "4kB → 2048kB by its PMD 512 2 MiB" in shown
    assert ", gone" in shown and ", new" in shown and "1 mapping → 3" in shown
    assert main(["diff", str(both[0]), str(both[0])]) == 0
    assert "Observed: no page changed." in capfd.readouterr().out


def altered(snapshot: Snapshot, **meta: object) -> Snapshot:
    """The snapshot with some of the first process's description replaced."""
    (process,) = snapshot.processes
    other = replace(process, meta=MappingProxyType({**process.meta, **meta}))
    return replace(snapshot, processes=(other,))


def test_a_number_that_another_process_has(both: tuple[Path, Path, dict[str, int]]) -> None:
    was, now = load(both[0]), load(both[1])
    change = compare_captures(("a", "b"), was, altered(now, started=1))
    assert sorted(each.fate for each in change.processes) == [Fate.ENDED, Fate.NEW]
    change = compare_captures(("a", "b"), was, altered(now, started=None))
    assert [each.fate for each in change.processes] == [Fate.BOTH], "an older capture tells not"


def test_settings_that_changed(both: tuple[Path, Path, dict[str, int]]) -> None:
    was = load(both[0])
    sysfs = {**was.sysfs, "enabled": "[always] madvise never", "khugepaged/full_scans": "999999"}
    sysfs["hugepages-64kB/stats/swpout"] = "7"
    now = replace(was, meta=MappingProxyType({**was.meta, "sysfs": sysfs}))
    change = compare_captures(("a", "b"), was, now)
    assert list(change.settings) == ["enabled"], "counters are no settings"
    assert change.settings["enabled"] == (was.sysfs["enabled"], "[always] madvise never")
    assert change.pages.changed == {}
