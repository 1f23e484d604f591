# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp check and mthp replay on the command line."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mthp.cli import main
from mthp.races.variant import applied
from tests.check.test_self_check import JUDGED_AT_ONCE

ONE_WORLD = ["--world", "pmd", "--rivals", "gup"]


def test_a_clean_world(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *ONE_WORLD]) == 0
    out = capsys.readouterr().out
    assert "clean" in out
    assert "exhaustive in this world with these tasks: 5 executions" in out


def test_a_mutant_is_drawn_and_replays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["check", "--mutant", "A16"]) == 4
    out = capsys.readouterr().out
    assert "CPU0 khugepaged" in out
    assert "CPU1 migrate-neighbour" in out
    assert "pmdp_collapse_flush(): PMD: table 1 -> none" in out
    assert "law 4 is broken: a migration entry of page 2 is stranded" in out
    token = out.split("mthp replay ")[1].strip()
    assert main(["replay", token]) == 4
    assert "law 4 is broken: a migration entry of page 2 is stranded" in capsys.readouterr().out
    assert main(["replay", token, "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["replay"] == token
    assert document["race"]["sentence"].endswith("law 4: a migration entry of page 2 is stranded")
    drawn = [each["number"] for each in document["race"]["steps"] if each["drawn"]]
    assert drawn == sorted({n for pair in document["race"]["conflicts"] for n in pair} | {*drawn})
    assert len(drawn) < len(document["race"]["steps"]) == document["steps"]
    assert {each["law"] for each in document["laws"]} == {4, 5}


def test_all_of_a_race_and_a_picture_of_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "race.svg"
    assert main(["check", "--mutant", "A14b", "--full", "--svg", str(picture)]) == 4
    out = capsys.readouterr().out
    assert "[mmap_lock (read)]" in out
    assert picture.read_text(encoding="utf-8").startswith("<svg ")
    token = out.split("mthp replay ")[1].strip()
    assert main(["replay", token, "--svg", str(picture)]) == 4
    assert "mmap_read_unlock()" in capsys.readouterr().out
    assert main(["replay", token, "--svg", str(tmp_path)]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_a_picture_is_of_one_race(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flags in (
        ["--svg", str(tmp_path / "race.svg")],
        ["--full"],
        ["--itf", str(tmp_path / "x")],
    ):
        assert main(["check", "--all", *flags]) == 2
        assert f"{flags[0]} is for one violation" in capsys.readouterr().err
    assert main(["check", *ONE_WORLD, "--svg", str(tmp_path / "race.svg")]) == 0
    assert "no law is broken" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_same_schedule_without_the_mutant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "as-is:7.3:window:migrate-neighbour:b8a44b11"]) == 0
    assert "no law is broken in this execution" in capsys.readouterr().out


def test_json_says_what_was_covered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *ONE_WORLD, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["profiles"]
    assert row["name"] == "7.3"
    assert row["world"] == "pmd"
    assert row["tasks"] == ["khugepaged", "gup"]
    assert (row["clean"], row["expected_finding"]) == (True, None)
    assert row["coverage"]["kind"] == "exhaustive"
    assert row["coverage"]["executions"] == 5
    assert main(["check", "--mutant", "A14b", "--json"]) == 4
    (mutant,) = json.loads(capsys.readouterr().out)["mutants"]
    assert (mutant["id"], mutant["verdict"], mutant["laws"]) == ("A14b", "caught", [9])
    assert main(["replay", mutant["replay"]]) == 4


def test_bounds_and_samples_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    world = ["--world", "pmd", "--rivals", "migrate"]
    assert main(["check", *world, "--executions", "7"]) == 0
    assert "bounded: 7 executions; stopped after 7 executions" in capsys.readouterr().out
    assert main(["check", *world, "--sample", "5", "--seed", "3"]) == 0
    assert "sampled: 5 executions from seed 3" in capsys.readouterr().out


def test_v16_with_a_walking_hook_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--profile", "v16", "--world", "window+hook", "--rivals", "-"]) == 0
    assert "A18a, expected" in capsys.readouterr().out


def test_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--mutant", "read-lock", "--world", "pmd", "--rivals", "fault"]) == 4
    assert "BROKEN" in capsys.readouterr().out


def test_the_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--list"]) == 0
    out = capsys.readouterr().out
    for word in ("migrate-neighbour", "+two-vmas", "A18b", "flush-window", "swap cache"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["check", "--mutant", "A99"], "no mutant 'A99'"),
        (["check", "--world", "attic"], "no world 'attic'"),
        (["check", "--rivals", "nobody"], "no rival 'nobody'"),
        (["check", "--executions", "x"], "--executions: 'x' is not a whole number from 1 up"),
        (["check", "--mutant", "A1", "--all"], "exclude one another"),
        (["check", "--protocol", "/nonexistent.py"], "No such file"),
        (["replay", "nonsense"], "not a token"),
        (["replay", "A1:7.3:pmd:gup:x"], "not a schedule"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def test_a_protocol_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.py"
    own.write_text("def vma_start_write(vma):\n    pass\n", encoding="utf-8")
    assert main(["check", "--protocol", str(own), "--world", "pmd", "--rivals", "fault"]) == 4
    assert " is broken: " in capsys.readouterr().out


def test_bounds_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *ONE_WORLD, "--preemptions", "0"]) == 0
    assert "bounded: 2 executions; 0 preemptions;" in capsys.readouterr().out
    assert main(["check", *ONE_WORLD, "--preemptions", "1", "--executions", "5"]) == 0
    assert "5 executions; 1 preemptions; stopped after 5 executions" in capsys.readouterr().out
    assert main(["check", *ONE_WORLD, "--steps", "30", "--json"]) == 0
    coverage = json.loads(capsys.readouterr().out)["profiles"][0]["coverage"]
    assert coverage["kind"] == "bounded"
    assert coverage["bound"].endswith("executions cut off after 30 steps")


def test_two_preemptions_are_enough_for_a_mutant(capsys: pytest.CaptureFixture[str]) -> None:
    world = ["--mutant", "A1", "--world", "pmd", "--rivals", "gup"]
    assert main(["check", *world, "--preemptions", "1"]) == 0
    assert main(["check", *world, "--preemptions", "2"]) == 4
    capsys.readouterr()


LARGE = ["check", "--world", "pmd", "--rivals", "store+swap-in-store"]


def test_ctrl_c_keeps_what_is_known(tmp_path: Path) -> None:
    file = tmp_path / "file"
    command = [sys.executable, "-m", "mthp", *LARGE, "--resume", str(file)]
    counted = [0]
    for _ in range(2):
        file.touch()
        before = file.stat().st_ino
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            while file.stat().st_ino == before:
                time.sleep(0.02)
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, "")
        assert "(estimated), depth " in err
        assert err.endswith("the same command goes on\n")
        (rest,) = json.loads(file.read_text(encoding="utf-8"))["unfinished"].values()
        counted.append(sum(part["counts"][0] for part in rest["parts"]))
        assert rest["seconds"] > 0
    assert counted == sorted(set(counted))


def seen_on_a_terminal(*arguments: str) -> str:
    """What a check of a large world, stopped soon, prints on stderr where that is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mthp", *LARGE, "--executions", "250", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        try:
            while more := os.read(ours, 4096):
                seen += more
        except OSError:  # how a terminal says that nobody writes to it any more
            pass
        os.close(ours)
    assert process.returncode == 0
    return seen.decode()


@pytest.mark.slow
def test_a_terminal_sees_how_far_it_is() -> None:
    lines = [line.strip() for line in seen_on_a_terminal().split("\r") if line.strip()]
    pattern = r"[\d,]+ of about [\d,]+ \(estimated\), depth \d+, \d+ choices left: as-is:7.3:pmd:"
    assert lines
    assert all(re.match(pattern, line) and len(line) < 80 for line in lines)
    assert seen_on_a_terminal("--quiet") == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sample", "3", "--preemptions", "1"], "--sample and --preemptions exclude"),
        (["--sample", "3", "--resume", "x"], "--resume goes on with neither"),
        (["--preemptions", "1", "--resume", "x"], "--resume goes on with neither"),
        (["--steps", "0"], "--steps: '0' is not a whole number from 1 up"),
        (["--preemptions", "-1"], "--preemptions: '-1' is not a whole number from 0 up"),
        (["--jobs", "0"], "--jobs: '0' is not a whole number from 1 up"),
        (["--resume", "/nonexistent/file"], ": /nonexistent/file: No such file"),
        (["--resume", "/"], ": /: "),
    ],
)
def test_bad_ways_to_search(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *ONE_WORLD, *arguments]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def test_a_file_of_another_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "file")
    assert main(["check", *ONE_WORLD, "--resume", file]) == 0
    first = capsys.readouterr().out
    assert main(["check", *ONE_WORLD, "--resume", file]) == 0
    assert capsys.readouterr().out == first
    for other in (["--rivals", "zap"], ["--profile", "v16"], ["--mutant", "A16"]):
        assert main(["check", *ONE_WORLD, *other, "--resume", file]) == 2
        err = capsys.readouterr().err
        assert "it is of another check: as-is:7.3:pmd:gup" in err
        assert err.count("\n") == 1


def test_the_checker_checks_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--self-check", *ONE_WORLD, "--seed", "3"]) == 0
    first, holds = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 executions from seed 3, [01] steps moved", first)
    assert "commute" in holds
    assert main(["check", "--self-check", *ONE_WORLD, "--seconds", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["executions"] > 1 and document["defects"] == []


def test_what_is_not_as_claimed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    look = ["check", "--self-check", "--world", "pmd", "--rivals", "store-poisoned", "--seed"]
    missed = "as-is:7.3:pmd:store-poisoned: law 2 is broken, and the search does not find it"

    def said(seed: int) -> bool:
        code = main([*look, str(seed)])
        return missed in capsys.readouterr().out and code == 1

    with applied([JUDGED_AT_ONCE]):
        assert any(said(seed) for seed in range(160, 660))


def test_the_self_check_looks_at_a_protocol_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that copies pages by accesses that are no steps, and does not flush."""
    own = tmp_path / "own.py"
    own.write_text(
        "from mthp.mm.pgtable_types import PMD_NONE\n"
        "def pmdp_collapse_flush(vma, address, pmd):\n"
        "    return pmd.page.pmds.swap(pmd.slot, PMD_NONE)\n"
        "def copy_mc_user_highpage(mem, to, source):\n"
        "    mem.content.raw[to] = mem.content.raw[source]\n"
        "    return True\n"
    )
    world = ["--world", "pmd", "--rivals", "store", "--protocol", str(own)]
    assert main(["check", "--self-check", "--seed", "1", *world]) == 1
    assert "content[1]: touched by" in capsys.readouterr().out
    assert main(["check", "--self-check", "--mutant", "A2"]) == 2
    assert "--self-check takes worlds, or --protocol" in capsys.readouterr().err


def test_seconds_are_for_the_self_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *ONE_WORLD, "--seconds", "1"]) == 2
    assert "--seconds is for --self-check" in capsys.readouterr().err
