# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory whose every access userfaultfd tracks (RWP, Linux 7.3), in a guest and along every path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mthp.compare.fuzz import DraftRunner
from mthp.lab.draw.program_builder import DECOY
from mthp.lab.program.declared import problem
from mthp.lab.program.program import ALL_OFF, BASE, Draft, Operation, parse, registration, switch
from mthp.lab.session.captures import CapturePath, capture_tools
from mthp.words.settings import Enabled
from tests.lab.guests import kernel_or_skip

PATHS = tuple(CapturePath)
TRACKED = "s uffd 512 1536 8"
FULL = ("s wr 512 1024", TRACKED)
PROGRAMS: dict[str, tuple[tuple[str, ...], int, tuple[int, ...]]] = {
    "some pages of one table": ((*FULL, "s uffdwp 600 16 1"), 511, (9,)),
    "missing pages": (("s wr 512 500", "s wr 1024 512", "s wr 1536 511", TRACKED), 511, (9,)),
    "small sizes": ((*FULL, "s uffdwp 515 1 1", "s uffdwp 1024 100 1"), 511, (9, 4, 2)),
    "lifted again": ((*FULL, "s uffdwp 512 1024 1", "s uffdwp 512 512 0"), 0, (9, 6)),
    "swapped out": ((*FULL, "s uffdwp 700 30 1", "s adv 690 60 21"), 511, (9, 4)),
}
"""What is done to three tables, max_ptes_none, and the orders that are enabled then."""


def draft(name: str) -> Draft:
    lines, none, orders = PROGRAMS[name]
    sizes = {order: Enabled.ALWAYS if order in orders else Enabled.NEVER for order in range(2, 10)}
    ops = (*parse(("new", f"s base {BASE}", "s mmap 512 1536", *lines)), *registration("s", DECOY))
    return Draft(name, "rwp", ops, settings=ALL_OFF.replace(sizes=sizes, max_ptes_none=none))


def large(order: int) -> Iterator[Operation]:
    """Two tables of folios of an order, of which some pages are tracked, and one that is not."""
    yield from parse(("new", f"s base {BASE}", "s mmap 512 1536"))
    yield switch(order, Enabled.ALWAYS)
    yield from parse(("s wr 512 1024",))
    yield switch(order, Enabled.NEVER)
    yield from parse((TRACKED, "s uffdwp 512 512 1", "s uffdwp 1030 5 1", "s wr 1536 512"))
    yield from registration("s", DECOY)


def test_a_program_does_not_touch_what_would_hang() -> None:
    for name in PROGRAMS:
        assert problem(draft(name)) == ""
    protected = (*parse(("new", f"s base {BASE}", "s mmap 512 512", "s wr 512 512")),)
    for mode, reads in ((2, ""), (8, "an access to a page protected by userfaultfd hangs")):
        ops = (*protected, *parse((f"s uffd 512 512 {mode}", "s uffdwp 512 4 1", "s rd 515 2")))
        assert problem(Draft("x", "x", ops)).rpartition(": ")[2] == reads
    alone = (*protected, *parse(("s uffd 512 512 8", "s uffdwp 512 4 1", "s rd 516 4")))
    assert problem(Draft("x", "x", alone)) == ""


@pytest.mark.lab
def test_every_path_agrees() -> None:
    settings = ALL_OFF.replace(sizes={**ALL_OFF.sizes, 9: Enabled.ALWAYS, 5: Enabled.ALWAYS})
    drafts = [*map(draft, PROGRAMS)]
    drafts += [Draft(f"o{order}", "rwp", (*large(order),), settings=settings) for order in (4, 9)]
    with (
        capture_tools(PATHS) as tools,
        DraftRunner(kernel_or_skip("7.3"), tools) as runner,
    ):
        for each in drafts:
            verdict = runner(each)
            assert (verdict.not_built, list(verdict.mismatches)) == ("", [])
            assert verdict.record is not None and verdict.record["vmas"][0]["uffd_wp"]
            for path in (*PATHS, "scenario"):
                count = verdict.paths[path].count
                assert (count.passes, count.agreed) == (1, 1), (each.id, path)
            assert verdict.paths["deep"].count.in_full == 1
