# SPDX-License-Identifier: GPL-2.0-or-later
"""What a replay makes of touches and calls: folios, memory and faults, as the kernel's rules have it."""

from __future__ import annotations

import pytest

from mthp.life.recorded_replay import RecordedReplay
from mthp.words.settings import Enabled, Settings, parse_enabled_flag
from tests.life.recordings import MAP_ANON, MAP_POPULATE, MAP_STACK, TABLE, RecordedProgram, folios

HUGEPAGE, NOHUGEPAGE, DONTNEED, FREE, COLLAPSE, GUARD = 14, 15, 4, 8, 25, 102
DONTFORK, WIPEONFORK = 10, 18
ALL = "16kB=always,32kB=always,64kB=always,128kB=always,256kB=always,512kB=always,1MB=always,2MB=always"


def small(count: int = 1) -> tuple[dict[int, int], int]:
    return {0: count}, count


def of(replay: RecordedReplay) -> tuple[dict[int, int], int]:
    return folios(replay), replay.pages.rss


@pytest.mark.parametrize(
    ("enabled", "there", "rss", "faults"),
    [
        ("", {0: 40}, 40, 40),
        ("64kB=always", {4: 3}, 48, 3),
        ("16kB=always,64kB=always", {4: 3}, 48, 3),
        ("2MB=always", {9: 1}, 512, 1),
        (ALL, {9: 1}, 512, 1),
        ("64kB=madvise", {0: 40}, 40, 40),
        ("2MB=never,64kB=inherit,always", {4: 3}, 48, 3),
    ],
)
def test_the_largest_size_that_suits_is_brought(
    enabled: str, there: dict[int, int], rss: int, faults: int
) -> None:
    program = RecordedProgram()
    program.mmap(0, 1024)
    program.write(0, 40)
    replay = program.lived(enabled)
    assert of(replay) == (there, rss)
    assert replay.pages.work.faults == faults


def test_a_size_must_fit_into_the_mapping_and_find_nothing_there() -> None:
    program = RecordedProgram()
    program.mmap(3, 30)
    program.write(5)  # 64 kB would begin before the mapping: 16 kB at 4..7
    program.write(8)  # 32 kB at 8..15
    program.write(3)  # nothing but a page fits
    program.write(20)
    program.write(32)  # nothing but a page is left
    assert of(program.lived("16kB=always,32kB=always,64kB=always")) == (
        {0: 2, 2: 1, 3: 1, 4: 1},
        30,
    )


def test_advice_stacks_and_protection() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    program.mmap(TABLE, 16, flags=MAP_ANON | MAP_STACK)
    program.mmap(2 * TABLE, 16, prot=1)
    program.mmap(3 * TABLE, 16, flags=1 | MAP_ANON)
    program.madvise(0, 16, HUGEPAGE)
    for page in (0, TABLE, 2 * TABLE, 3 * TABLE, 9 * TABLE):
        program.write(page)
    replay = program.lived("64kB=madvise")
    assert of(replay) == ({0: 1, 4: 1}, 17)
    assert replay.nowhere == 2


def test_the_zero_page_keeps_larger_sizes_away() -> None:
    program = RecordedProgram()
    program.mmap(0, 32)
    program.read(3)
    program.write(4)
    program.write(3)
    assert of(program.lived("64kB=always")) == small(2)


def test_the_huge_zero_page_is_replaced_as_a_whole() -> None:
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.read(7, 3)
    program.write(100)
    replay = program.lived("2MB=always")
    assert of(replay) == ({9: 1}, TABLE)
    assert replay.pages.work.faults == 2


def test_without_the_zero_page_a_load_brings_a_huge_page() -> None:
    program = RecordedProgram()
    program.mmap(0, 2 * TABLE)
    program.read(5)
    settings = Settings(enabled=Enabled.NEVER, use_zero_page=False)
    replay = RecordedReplay(
        program.recording(), settings.with_enabled(parse_enabled_flag("2MB=always"))
    )
    replay.run()
    assert of(replay) == ({9: 1}, TABLE)


def test_a_table_that_is_there_is_not_mapped_by_a_huge_page() -> None:
    program = RecordedProgram()
    program.mmap(0, 1)
    program.write(0)
    program.munmap(0, 1)
    program.mmap(0, TABLE)
    program.write(0)
    assert of(program.lived("2MB=always")) == ({9: 1}, TABLE), "its table was freed"
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.madvise(0, TABLE, NOHUGEPAGE)
    program.write(5)
    program.madvise(0, TABLE - 1, DONTNEED)
    program.madvise(0, TABLE, HUGEPAGE)
    program.write(5)
    assert of(program.lived("2MB=always")) == small(), "a part of it was emptied, and it stays"


def test_what_dontneed_empties_as_a_whole_may_be_huge_again() -> None:
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.write(0)
    program.madvise(0, TABLE, DONTNEED)
    program.write(0)
    replay = program.lived("2MB=always")
    assert of(replay) == ({9: 1}, TABLE)
    assert replay.pages.work.brought == {9: 2}


def test_a_folio_stays_until_its_last_page_goes() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    program.write(0)
    program.munmap(0, 15)
    replay = program.lived("64kB=always")
    assert of(replay) == ({4: 1}, 1)
    assert replay.pages.frames == 16
    program.munmap(15, 1)
    replay = program.lived("64kB=always")
    assert of(replay) == ({}, 0) and replay.pages.frames == 0


def test_madv_free_splits_what_it_cuts_and_pages_never_written_are_given_back() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    program.write(0, 3)
    program.madvise(0, 2, FREE)
    replay = program.lived("64kB=always")
    assert of(replay) == small(3)
    assert replay.pages.frames == 3


@pytest.mark.parametrize("enabled", ["", "64kB=always", "2MB=always"])
def test_after_fork_pages_are_shared_and_copied_small(enabled: str) -> None:
    program = RecordedProgram()
    program.mmap(0, TABLE)
    program.write(0, 8)
    child = program.fork()
    program.write(0, 1, child)
    program.write(1, 1)
    replay = program.lived(enabled)
    held = {"": 8, "64kB=always": 16, "2MB=always": TABLE}[enabled]
    assert replay.pages.rss == 2 * held
    assert replay.pages.work.copied == 2
    assert replay.pages.frames == held + 2


def test_a_page_that_is_ours_alone_again_is_not_copied() -> None:
    program = RecordedProgram()
    program.mmap(0, 32)
    program.write(0, 32)
    program.end(program.fork())
    program.write(0, 4)
    replay = program.lived("64kB=always")
    assert replay.pages.work.copied == 0
    assert of(replay) == ({4: 2}, 32)


def test_the_last_page_of_a_large_folio_is_copied() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    program.write(0, 16)
    program.munmap(1, 15)
    program.end(program.fork())
    program.write(0)
    replay = program.lived("64kB=always")
    assert replay.pages.work.copied == 1
    assert of(replay) == small()


def test_what_does_not_go_to_children() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    program.mmap(TABLE, 16)
    program.mmap(2 * TABLE, 16)
    program.write(0)
    program.write(TABLE)
    program.write(2 * TABLE)
    program.madvise(0, 16, DONTFORK)
    program.madvise(TABLE, 16, WIPEONFORK)
    program.fork()
    assert of(program.lived()) == ({0: 3}, 4)


def test_threads_share_and_the_last_one_ends_it() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    thread = program.thread()
    program.write(0, 4, thread)
    program.end(0)
    replay = program.lived()
    assert of(replay) == small(4)
    assert replay.end is not None and replay.end.rss == 4
    program.end(thread)
    assert of(program.lived()) == ({}, 0)


def test_another_program_begins_with_nothing() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    program.write(0, 4)
    program.program()
    program.mmap(0, 4)
    program.write(0)
    assert of(program.lived()) == small()


def test_mremap_moves_folios_and_huge_pages_whole_or_by_ptes() -> None:
    program = RecordedProgram()
    program.mmap(0, 2 * TABLE)
    program.write(0)
    program.write(TABLE)
    program.mremap(0, TABLE, TABLE, 8 * TABLE)
    program.mremap(TABLE, TABLE, TABLE, 16 * TABLE + 5)
    replay = program.lived("2MB=always")
    assert of(replay) == ({9: 2}, 2 * TABLE)
    (space,) = replay.spaces.values()
    assert [int(replay.pages.how[row]) for _, row in sorted(space.tables.items())] == [1, 0, 0]


def test_mremap_grows_and_shrinks() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    program.write(0, 16)
    program.mremap(0, 16, 64, 0)
    program.write(16, 16)
    assert of(program.lived("64kB=always")) == ({4: 2}, 32)
    program.mremap(0, 64, 8, 0)
    assert of(program.lived("64kB=always")) == ({4: 1}, 8)


def test_mappings_that_are_alike_become_one() -> None:
    program = RecordedProgram()
    program.mmap(0, 8)
    program.mmap(8, 8)
    program.write(0)
    assert of(program.lived("64kB=always")) == ({4: 1}, 16)
    program = RecordedProgram()
    program.mmap(0, 16, prot=0)
    program.mprotect(0, 8, 3)
    program.write(0)
    program.mprotect(8, 8, 3)
    program.write(8)
    assert of(program.lived("32kB=always,64kB=always")) == ({3: 2}, 16)


def test_brk_makes_the_heap() -> None:
    program = RecordedProgram()
    program.brk(0)
    program.brk(20)
    program.write(0, 20)
    assert of(program.lived("64kB=always")) == ({0: 4, 4: 1}, 20)
    program.brk(4)
    assert of(program.lived("64kB=always")) == ({4: 1}, 4)


def test_populated_memory_needs_no_faults() -> None:
    program = RecordedProgram()
    program.mmap(0, 20, flags=MAP_ANON | MAP_POPULATE)
    program.mmap(TABLE, 20)
    program.call(0, "mlock", 0x7F00_0000_0000 + TABLE * 4096, 20 * 4096)
    replay = program.lived()
    assert of(replay) == small(40)


def test_guards_keep_pages_and_sizes_away() -> None:
    program = RecordedProgram()
    program.mmap(0, 32)
    program.madvise(0, 1, GUARD)
    program.write(0)
    program.write(1)
    program.write(16)
    assert of(program.lived("64kB=always")) == ({0: 1, 4: 1}, 17)


def test_madv_collapse_makes_a_huge_page() -> None:
    program = RecordedProgram()
    program.mmap(0, 2 * TABLE)
    program.write(0, 5)
    program.madvise(0, 2 * TABLE, COLLAPSE)
    assert of(program.lived()) == ({9: 1}, TABLE)


def test_calls_that_failed_did_nothing() -> None:
    program = RecordedProgram()
    program.mmap(0, 16)
    program.write(0, 16)
    program.madvise(0, 16, DONTNEED, result=2**64 - 22)
    program.call(0, "munmap", 0x7F00_0000_0000, 1 << 16, result=2**64 - 22)
    assert of(program.lived()) == small(16)


def test_many_faults_at_once_are_what_they_are_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    program = RecordedProgram()
    program.mmap(0, 2000)
    program.mmap(4096, 700, flags=MAP_ANON | MAP_STACK)
    program.read(0, 50)
    program.write(0, 400, step=3)
    program.write(4096, 700)
    program.write(0, 400, step=2)
    child = program.fork()
    program.write(0, 300, child, 4)
    program.write(0, 300, 0, 4)
    for enabled in ("", "64kB=always", ALL):
        together = program.lived(enabled)
        with monkeypatch.context() as patch:
            patch.setattr("mthp.life.recorded_replay.FEW", 1 << 30)
            single = program.lived(enabled)
        assert of(together) == of(single)
        assert together.pages.work == single.pages.work
        assert together.site_pages.tolist() == single.site_pages.tolist()
