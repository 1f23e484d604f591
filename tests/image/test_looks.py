# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at real processes: which pages are looked at, and which are zero."""

from __future__ import annotations

import os

import pytest

from mthp.image.record import looks as module
from mthp.image.record.looks import Looks
from mthp.words.units import Geometry
from tests.image.children import MIXED, PAGE, child

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
CLEARED = """
at = reserve(2 * TABLE)
advise(at, 2 * TABLE, MADV_NOHUGEPAGE)
write(at, 0, 600)
ctypes.memset(at + 50 * PAGE, 0, 100 * PAGE)
for k in range(300, 340, 2):
    ctypes.memset(at + k * PAGE, 0, PAGE)
advise(at + 580 * PAGE, 5 * PAGE, MADV_DONTNEED)
ready(at=at)
"""


def whole(pids: list[int]) -> Looks:
    """One look at processes."""
    looks = Looks(1.0, Geometry())
    while not looks.count and not looks.full:
        looks.due = 0.0
        looks.go_on(pids)
    return looks


def seen(looks: Looks, first: int, count: int) -> dict[int, bool]:
    """Pages of a range -> whether they were zero."""
    found: dict[int, bool] = {}
    for page, pages, zero in zip(looks.page, looks.pages, looks.zero, strict=True):
        for each in range(max(page, first), min(page + pages, first + count)):
            assert each - first not in found
            found[each - first] = bool(zero)
    return found


def test_each_page_that_is_there_is_looked_at_once() -> None:
    with child(CLEARED) as process:
        looks = whole([process.pid])
    found = seen(looks, process.facts["at"] // PAGE, 1024)
    assert {*found} == {*range(580), *range(585, 600)}
    zero = {page for page, is_zero in found.items() if is_zero}
    assert zero == {*range(50, 150), *range(300, 340, 2)}
    assert sum(looks.runs) == len(looks.page) and {*looks.pid} == {process.pid}
    assert all(one <= other for one, other in zip(looks.time, looks.until, strict=True))


def test_pagemaps_words_say_the_same_as_pagemap_scan() -> None:
    looks = Looks(1.0, Geometry())
    with child(MIXED) as process:
        pagemap = os.open(f"/proc/{process.pid}/pagemap", os.O_RDONLY)
        try:
            by_scan = {
                page + k
                for page, pages in looks._present(process.pid, pagemap)
                for k in range(pages)
            }
            for name, pages, zero_pages in (("a", 6 * 512, 7), ("b", 512, 0), ("c", 12, 0)):
                first = process.facts[name] // PAGE
                here = {each for each in by_scan if first <= each < first + pages}
                runs = looks._by_words(pagemap, first, first + pages)
                by_words = {page + k for page, count in runs for k in range(count)}
                assert here <= by_words and len(by_words - here) == zero_pages and here
        finally:
            os.close(pagemap)


def test_what_is_gone_or_was_never_there_is_passed_over() -> None:
    looks = whole([0x3FFFFF, os.getpid()])
    assert looks.read and {*looks.pid} == {os.getpid()}


def test_more_runs_than_are_kept_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RUNS", 20)
    with child(CLEARED) as process:
        looks = whole([process.pid])
    assert looks.full and 20 <= len(looks.page) <= 20 + module.CHUNK_PAGES
    assert looks.due == float("inf") and looks.told()["full"]


def test_a_last_look_sees_what_is_there_now() -> None:
    asked = []
    with child(CLEARED) as process:
        looks = Looks(3600.0, Geometry())
        looks.once_more([process.pid], lambda: asked.append(0))
    assert looks.count == 1 and asked
    assert len(seen(looks, process.facts["at"] // PAGE, 1024)) == 595
