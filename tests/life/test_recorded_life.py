# SPDX-License-Identifier: GPL-2.0-or-later
"""What `mthp life` says of a recording: of programs that were never run, and of a real one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from mthp.cli import main
from mthp.image.recording import load_recording, read_recording
from mthp.life.recorded_life import held_against, live, lived, sweep_life
from mthp.report.life import fault_time
from mthp.words.costs import Cost, CostTable
from mthp.words.settings import Settings, parse_enabled_flag
from tests.image import test_record as real
from tests.image.made_recording import made_recording, made_there
from tests.life.recordings import OFF, TABLE, RecordedProgram
from tests.life.test_recorded_khugepaged import SECOND, touched


def test_the_peak_is_found_and_what_made_it() -> None:
    program = RecordedProgram()
    program.mmap(0, 2 * TABLE)
    program.write(0, 100)
    program.munmap(0, TABLE)
    program.write(TABLE, 10)
    program.end()
    answer = lived(program.recording(), "made", OFF.with_enabled(parse_enabled_flag("64kB=always")))
    assert (answer.recorded.peak.rss, answer.given.peak.rss) == (100, 112)
    assert (answer.recorded.end.rss, answer.given.end.rss) == (10, 16)
    assert answer.given.peak.folios == {4: 7}
    (mapping,) = answer.given.mappings
    assert (mapping.rss, mapping.written, mapping.huge) == (112, 100, 112)
    (site,) = answer.given.sites
    assert (site.ip, site.faults, site.pages) == (0x40, 8, 128)
    assert answer.given.faults == 8 and answer.recorded.faults == 110


def test_what_a_process_had_stays_as_it_was() -> None:
    recording = read_recording(io.BytesIO(made_there().packed()), "a")
    answer = lived(recording, "a", OFF.with_enabled(parse_enabled_flag("16kB=always")))
    had, *_ = [each for each in answer.recorded.mappings if each.name == "[heap]"]
    assert (had.rss, had.huge) == (5, 3)
    assert any("3 of the 6 pages" in each for each in answer.unseen)


def test_as_recorded_and_without_huge_pages_are_the_same_life() -> None:
    program = RecordedProgram()
    program.mmap(0, 64)
    program.write(0, 64)
    answer = lived(program.recording(), "made", Settings(enabled="never"))  # type: ignore[arg-type]
    assert answer.given.peak == answer.recorded.peak


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    path.write_bytes(made_recording().packed())
    return path


def test_the_command_prints_a_page_or_a_document(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["life", str(file), "--enabled", "16kB=always"]) == 0
    page = capsys.readouterr().out
    assert "Predicted: 24 KiB at the peak" in page and "Nothing: no process comes onto" in page
    assert main(["life", str(file), "--no-khugepaged"]) == 0
    assert "khugepaged is not run" in capsys.readouterr().out
    assert main(["life", str(file), "--enabled", "16kB=always", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["given"]["peak"]["folios"] == {"2": 1}
    assert document["without_huge_pages"]["peak"]["rss"] == document["given"]["peak"]["rss"]


def test_what_khugepaged_does_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(touched(100).packed())
    words = ["life", str(path), "--enabled", "64kB=madvise", "--profile", "7.3"]
    assert main(words) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "It wakes up 7 times and scans 3,605 pages (7 full scans)." in page
    assert "7 of 64kB (order 4). For these it copies 400 KiB and adds 48 KiB of zeroes" in page
    assert "42 folios more are allocated for nothing" in page
    assert main([*words, "--json"]) == 0
    work = json.loads(capsys.readouterr().out)["given"]["khugepaged"]
    assert work["collapsed"] == {"4": 7} and work["added_bytes"] == 12 << 12
    assert work["curve"]["added"] == [12 << 12]
    assert main([*words[:-1], "pmd-only"]) == 0
    assert "no process comes onto its list" in capsys.readouterr().out


def scarce(tmp_path: Path) -> Path:
    """A program that uses a page of one table, all of another, and half of what it had of a third."""
    program = RecordedProgram()
    program.mmap(0, 3 * TABLE)
    program.write(0, 1)
    program.write(TABLE, 2 * TABLE)
    program.wait(2 * SECOND)
    program.munmap(5 * TABLE // 2, TABLE // 2)
    program.wait(2 * SECOND)
    program.munmap(0, 1)
    path = tmp_path / "scarce.npz"
    path.write_bytes(program.packed())
    return path


@pytest.mark.parametrize(("limit", "underused", "freed"), [(510, 1, 511 + 256), (511, 0, 256)])
def test_shrinkers_give_back_what_is_partly_mapped_or_underused(
    limit: int,
    underused: int,
    freed: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "life",
        str(scarce(tmp_path)),
        "--enabled",
        "2MB=always",
        "--max-ptes-none",
        str(limit),
    ]
    times = ["--pressure", "1000ms", "--pressure", "3s"]
    assert main([*words, "--no-khugepaged", *times, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["given"]["pressure"]
    assert first["split"] == ({"9": underused} if underused else {})
    assert second["split"] == {"9": 1} and first["underused"] == underused
    assert first["unmapped_bytes"] == 511 * underused << 12
    assert first["freed_bytes"] + second["freed_bytes"] == freed << 12
    assert main([*words, *times]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert (
        "1 MiB, 3 s after the beginning, of folios that are split: 1 of 2048kB (order 9)." in page
    )
    said = "1 of them was underused, and the zero page stands for 2.0 MiB now."
    assert (said in page) is bool(underused)
    assert ("Nothing, 1 s after the beginning: no folio is partly mapped" in page) is not underused


@pytest.mark.parametrize("time", ["4.5s", "1h", "-1", "1e3", ""])
def test_a_time_of_pressure_that_is_none_is_refused(
    time: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["life", str(scarce(tmp_path)), f"--pressure={time}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sweep_has_a_row_for_each_size(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["life", str(file), "--sweep", "--json", "--enabled", "64kB=always"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = [row["sizes"] for row in rows]
    assert names[0] == "none" and names[-3:] == ["all below", "all", "as given"]
    assert len(names) == 12 and rows[0]["peak"]["folios"] == {}
    assert rows[names.index("64kB")]["peak"] == rows[-1]["peak"]
    assert main(["life", str(file), "--sweep"]) == 0
    said = capsys.readouterr().out
    assert "Predicted, by the sizes that are always" in said and "fault time" not in said


def test_a_picture_has_both_curves_and_what_khugepaged_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = touched(100)
    path, svg = tmp_path / "a.npz", tmp_path / "a.svg"
    path.write_bytes(program.packed())
    words = ["life", str(path), "--svg", str(svg), "--enabled"]
    assert main([*words, "64kB=madvise", "--profile", "7.3"]) == 0
    root = ElementTree.fromstring(svg.read_text())
    said = " ".join("".join(each.itertext()) for each in root.iter() if each.tag.endswith("text"))
    assert "448 KiB at the peak" in said and "without huge pages 400 KiB" in said
    kinds = [each.get("class") for each in root.iter() if each.tag.endswith("path")]
    for kind in ("given", "without", "added"):
        assert kinds.count(f"curve {kind}") == 2  # the curve, and its key
    assert main([*words, "64kB=never"]) == 0
    assert "curve added" not in svg.read_text()
    assert main([*words, "64kB=never", "--sweep"]) == 2
    assert main(["life", str(path), "--svg", str(tmp_path / "no" / "a.svg")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_the_picture_of_the_documents_is_what_is_drawn(tmp_path: Path) -> None:
    docs, svg = Path(__file__).parents[2] / "docs", tmp_path / "a.svg"
    words = ["life", str(docs / "examples/life/tree.npz"), "--enabled", "64kB=always"]
    words += ["--profile", "7.3", "--scan-sleep-millisecs", "100", "--svg", str(svg)]
    assert main(words) == 0
    assert svg.read_text() == (docs / "drawings/life-tree.svg").read_text()  # make picture


def test_there_is_a_column_of_fault_times_where_their_costs_are_known(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, costs = tmp_path / "a.html", tmp_path / "costs.json"
    known = {
        name: {"ns": 100.0, "source": ""} for name in ("fault_page", "fault_pmd", "clear_page")
    }
    costs.write_text(json.dumps({"schema_version": 1, "costs": known}))
    for words in ([], ["--costs", str(costs)]):
        assert main(["life", str(file), "--sweep", "--html", str(page), *words]) == 0
        assert ("fault time" in capsys.readouterr().out) is bool(words)
        assert (">fault time</th>" in page.read_text()) is bool(words)
        assert "–</td>" not in page.read_text()


def test_the_time_of_faults_is_by_the_table_of_costs() -> None:
    program = RecordedProgram()
    program.mmap(0, 2 * TABLE)
    program.write(0, 20)
    sweep = sweep_life(program.recording(), "made", OFF)
    costs = CostTable({name: Cost(ns, "") for name, ns in
                       (("fault_page", 100.0), ("fault_pmd", 9000.0), ("clear_page", 10.0))})  # fmt: skip
    times = {title: fault_time(each, 9, costs) for title, each in sweep.rows}
    assert times["none"] == 20 * 100
    assert times["64kB"] == 2 * 100 + 30 * 10
    assert times["2048kB"] == 9000
    assert fault_time(sweep.rows[0][1], 9, CostTable({})) is None


@pytest.mark.parametrize("words", [["life", "nosuch.npz"], ["life", "{file}", "--enabled", "x=y"]])
def test_what_is_no_recording_is_refused(
    words: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([each.format(file=file) for each in words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.root
@pytest.mark.usefixtures("alone_in_tracefs")
@pytest.mark.skipif(not real.CAN_TRACE, reason="needs root, and tracefs with page fault events")
def test_a_real_program_is_replayed_to_the_page(tmp_path: Path) -> None:
    recording, said = real.recorded(
        tmp_path / "a.npz",
        """
import random, threading
chosen = random.Random(1)
at = reserve(16 * TABLE)
for _ in range(4000):
    write(at, chosen.randrange(16 * 512))
advise(at, 2 * TABLE, MADV_DONTNEED)
libc.munmap(ctypes.c_void_p(at + 5 * TABLE), ctypes.c_size_t(TABLE + 3 * PAGE))
kept = [bytes(chosen.randrange(1, 200_000)) for _ in range(200)]
del kept[::3]
thread = threading.Thread(target=write, args=(at, 0, 50))
thread.start(); thread.join()
if not os.fork():
    write(at, 0, 30)
    os._exit(0)
os.wait()
write(at, 10, 30)
[anon] = [line for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous:")]
print(int(anon.split()[1]) // 4, flush=True)
os._exit(0)
""",
    )
    answer = lived(recording, "a", Settings(enabled="never"))  # type: ignore[arg-type]
    assert answer.held.worst == 0
    assert abs(answer.recorded.end.rss - int(said)) <= 16  # it goes on for a moment after it looked
    assert load_recording(tmp_path / "a.npz").meta["signal"] is None


def test_the_peak_is_of_what_folios_take() -> None:
    program = RecordedProgram()
    program.mmap(0, 200)
    program.write(0, 64)
    child = program.fork()  # 128 pages are mapped, of 64 folios
    program.end(child)
    program.write(64, 40)
    program.munmap(0, 200)
    program.end()
    answer = live(program.recording(), OFF)
    assert (answer.peak.frames, answer.peak.rss) == (104, 104)
    assert sum(mapping.rss for mapping in answer.mappings) == 104


@pytest.mark.parametrize(("said", "off"), [(1, -1), (2, 0), (3, 0), (4, 0), (5, 1)])
def test_a_sample_may_lie_before_the_page_of_the_last_fault_is_there(said: int, off: int) -> None:
    """It was read at the moment of the third of six faults: two to four pages are there then."""
    program = RecordedProgram()
    program.mmap(0, 10)
    program.write(0, 6)
    recording = program.recording()
    third = recording.time[-4:-3]
    sampled = replace(
        recording,
        sample_time=third.astype(np.uint64),
        sample_until=third.astype(np.uint64),
        sample_process=np.zeros(1, np.uint32),
        sample_anon=np.array([said], np.uint64),
        sample_swap=np.zeros(1, np.uint64),
    )
    held = held_against(sampled, OFF)
    assert (held.samples, held.worst) == (1, off)
