# SPDX-License-Identifier: GPL-2.0-or-later
"""What shrinkers give back of pages that somebody saw to be zero while a program was recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mthp.cli import main
from mthp.life.recorded_pages import ZERO
from mthp.life.recorded_records import GivenBack, Shrunk
from mthp.life.recorded_replay import Meanwhile, RecordedReplay
from mthp.words.profiles import V7_3
from mthp.words.settings import parse_enabled_flag
from tests.life.recordings import OFF, TABLE, RecordedProgram, consistent
from tests.life.test_recorded_khugepaged import SECOND

DONTNEED, FREE = 4, 8
LIMIT, CLEARED = 200, 300
NOTHING = GivenBack(0, 0, 0)
ALL = GivenBack(1, CLEARED, CLEARED)


def cleared(tables: int = 1) -> RecordedProgram:
    """A program that uses all of a table, of which somebody saw that 300 pages were zero then."""
    program = RecordedProgram()
    program.mmap(0, tables * TABLE)
    program.write(0, TABLE)
    program.wait(SECOND)
    program.look(0, CLEARED, zero=True)
    program.look(CLEARED, TABLE - CLEARED, zero=False)
    program.wait(SECOND // 4)
    return program


def replayed(
    program: RecordedProgram, *seconds: float, sizes: str = "2MB=always"
) -> RecordedReplay:
    """Its life with huge pages, at the end of which, or after so many seconds, memory is asked for."""
    program.wait(4 * SECOND)
    program.munmap(8 * TABLE, 1)
    times = tuple(round(each * SECOND) for each in seconds or (3,))
    settings = OFF.with_enabled(parse_enabled_flag(sizes)).replace(max_ptes_none=LIMIT)
    meanwhile = Meanwhile(V7_3, pressure=times, scans=False)
    replay = RecordedReplay(program.recording(), settings, meanwhile)
    replay.run()
    consistent(replay)
    return replay


def given(program: RecordedProgram, *seconds: float) -> GivenBack:
    """What comes back of it then."""
    (answer,) = replayed(program, *seconds).shrunk
    return answer.given


def test_pages_that_were_zero_come_back_and_it_is_said_what_that_rests_on() -> None:
    replay = replayed(cleared())
    (answer,) = replay.shrunk
    assert answer == Shrunk(answer.time, {9: 1}, ALL, answer.seen)
    seen = answer.seen
    assert seen is not None and (seen.written, seen.looked, seen.zero) == (TABLE, TABLE, CLEARED)
    assert seen.newest == seen.oldest == pytest.approx(2 * SECOND, rel=0.01)
    assert seen.blind == NOTHING
    assert replay.pages.frames == TABLE - CLEARED


def test_what_is_seen_later_says_nothing_yet() -> None:
    assert given(cleared(), 0.9) == NOTHING
    assert given(cleared(), 1.1) == ALL


def test_a_look_that_is_not_over_when_memory_is_asked_for_says_nothing() -> None:
    """It may have seen what the program did after that moment."""
    for takes, answer in ((SECOND // 2, ALL), (3 * SECOND, NOTHING)):
        program = RecordedProgram()
        program.mmap(0, TABLE)
        program.write(0, TABLE)
        program.wait(SECOND)
        program.look(0, CLEARED, zero=True, takes=takes)
        assert given(program, 2) == answer


def _stored(program: RecordedProgram) -> None:
    program.write(0, CLEARED)


def _stored_one_by_one(program: RecordedProgram) -> None:
    for page in range(CLEARED):
        program.write(page)
        program.madvise(TABLE, 1, DONTNEED)  # so that no two faults are taken together


def _gone_and_come_again(program: RecordedProgram) -> None:
    program.madvise(0, TABLE, DONTNEED)
    program.write(0, TABLE)


def _seen_again(program: RecordedProgram) -> None:
    program.look(0, CLEARED, zero=False)


FORGOTTEN: list[Callable[[RecordedProgram], None]] = [
    _stored,
    _stored_one_by_one,
    _gone_and_come_again,
    _seen_again,
]


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_was_seen_before_says_nothing_any_more(
    what: Callable[[RecordedProgram], None],
) -> None:
    program = cleared()
    what(program)
    assert given(program) == NOTHING


def test_a_page_that_no_look_saw_counts_by_what_was_written() -> None:
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.write(0, TABLE - 150)
    program.wait(SECOND)
    program.look(0, 100, zero=True)
    replay = replayed(program)
    (answer,) = replay.shrunk
    assert answer.given == GivenBack(1, 250, 250) and answer.seen is not None
    assert (answer.seen.written, answer.seen.looked) == (TABLE - 150, 100)


def test_what_fork_copies_was_seen_in_both() -> None:
    """The parent's pages are copied when it stores to them; the child's are zero as they were."""
    program = cleared()
    child = program.fork()
    program.write(0, TABLE)
    program.madvise(0, TABLE, DONTNEED)
    replay = replayed(program)
    (answer,) = replay.shrunk
    assert answer.given == ALL
    assert child and replay.pages.frames == TABLE - CLEARED


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("by_parent", [False, True])
def test_of_a_page_that_two_share_the_last_look_counts(zero: bool, by_parent: bool) -> None:
    program = cleared()
    child = program.fork()
    program.look(0, CLEARED, zero=not zero, task=child if by_parent else 0)
    program.look(0, CLEARED, zero=zero, task=0 if by_parent else child)
    replay = replayed(program)
    (answer,) = replay.shrunk
    assert answer.given == (GivenBack(1, 2 * CLEARED, CLEARED) if zero else NOTHING)


def test_what_moves_was_seen_still() -> None:
    program = cleared()
    program.mremap(0, TABLE, TABLE, 2 * TABLE + 7)
    assert given(program) == GivenBack(1, CLEARED, CLEARED)


def test_of_a_partly_mapped_folio_no_page_of_zeroes_stays() -> None:
    program = cleared()
    program.munmap(TABLE - 100, 100)
    replay = replayed(program)
    (answer,) = replay.shrunk
    assert answer.given == GivenBack(0, CLEARED, CLEARED + 100)
    assert answer.seen is not None and answer.seen.blind == GivenBack(0, 0, 100)


def test_where_the_zero_page_stands_nothing_is_written() -> None:
    """So that what is collapsed again, and asked for again, comes back again."""
    replay = replayed(cleared())
    (space,) = replay.spaces.values()
    (row,) = space.tables.values()
    pages = replay.pages
    assert (pages.folio[row, :CLEARED] == ZERO).all() and not pages.written[row, :CLEARED].any()
    assert pages.written[row, CLEARED:].all()


def test_a_split_by_madv_free_leaves_no_page_of_zeroes() -> None:
    program = cleared()
    program.madvise(TABLE - 10, 10, FREE)
    replay = replayed(program, 0.5)
    assert replay.pages.frames == TABLE - CLEARED


def _unmapped(program: RecordedProgram) -> None:
    program.munmap(0, TABLE)
    program.mmap(0, TABLE)


def _given_up(program: RecordedProgram) -> None:
    program.madvise(0, TABLE, DONTNEED)


@pytest.mark.parametrize("what", [_unmapped, _given_up])
def test_of_a_huge_page_that_comes_again_nothing_was_seen(
    what: Callable[[RecordedProgram], None],
) -> None:
    program = cleared()
    what(program)
    program.write(0)
    assert given(program) == GivenBack(1, TABLE - 1, TABLE - 1)


def test_of_a_part_that_comes_again_nothing_was_seen() -> None:
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.write(0, 32)
    program.look(0, 32, zero=False)
    program.madvise(0, 16, DONTNEED)
    program.write(0)
    program.munmap(15, 1)
    (answer,) = replayed(program, sizes="64kB=always").shrunk
    assert answer.given == GivenBack(0, 14, 15)


def written(program: RecordedProgram, path: Path) -> Path:
    """Its file, with time after it."""
    program.wait(4 * SECOND)
    program.munmap(8 * TABLE, 1)
    path.write_bytes(program.packed())
    return path


def test_the_command_says_what_it_rests_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(cleared(), tmp_path / "a.npz")
    words = ["life", str(file), "--enabled", "2MB=always", "--max-ptes-none", str(LIMIT)]
    words += ["--no-khugepaged", "--pressure", "3s"]

    def page(*more: str) -> str:
        assert main([*words, *more]) == 0
        return " ".join(capsys.readouterr().out.split())

    said = page()
    assert (
        "Of the 512 pages written to there, 512 had been looked at, 2 s before: 300 were zero. Not "
        "knowing that, nothing would come back." in said
    )
    assert "between the last look at a page and the moment of pressure" in said
    early = page("--pressure", "500ms")
    assert (
        "None of the 512 pages written to there had been looked at: none counts as zero." in early
    )
    (answer,) = json.loads(page("--json"))["given"]["pressure"]
    assert answer["freed_bytes"] == CLEARED << 12
    seen = answer["seen"]
    assert seen["looked_at_pages"] == TABLE and seen["zero_pages"] == CLEARED
    assert seen["blind"] == {"underused": 0, "unmapped_bytes": 0, "freed_bytes": 0}
    assert "Not knowing" not in page("--max-ptes-none", "511")


def test_looks_that_change_nothing_are_said_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.write(0, TABLE)
    program.look(0, TABLE, zero=False)
    file = written(program, tmp_path / "a.npz")
    words = ["life", str(file), "--enabled", "2MB=always", "--max-ptes-none", "0"]
    assert main([*words, "--pressure", "1s"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 were zero. Not knowing that, the answer would be the same." in said


def test_the_example_of_the_documents_says_what_they_show(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = Path(__file__).parents[2] / "docs/examples/life/zeroes.npz"
    words = ["life", str(file), "--enabled", "2MB=always", "--max-ptes-none", "409"]
    assert main([*words, "--pressure", "3.9s"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    document = (file.parents[2] / "life.md").read_text(encoding="utf-8")
    shown = document[document.index("\n  39.9 MiB, 3.9 s after") :].partition("\n…")[0]
    assert " ".join(shown.split()) in said
