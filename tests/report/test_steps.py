# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of one collapse."""

from __future__ import annotations

from typing import NamedTuple

from mthp.report.steps import render_steps, steps_document
from tests.report.samples import console, golden, printed


class Step(NamedTuple):
    """As the run makes them."""

    depth: int
    function: str
    what: str
    locks: tuple[str, ...]


MMAP, VMA, ANON = "mmap_lock (write)", "vma (write)", "anon_vma (write)"
STEPS = [
    Step(0, "collapse_huge_page", "window 0x7f0000010000, 64kB (order 4)", ()),
    Step(1, "alloc_charge_folio", "a folio of order 4, charged", ()),
    Step(1, "hugepage_vma_revalidate", "the mapping is still there", ("mmap_lock (read)",)),
    Step(1, "vma_start_write", "page faults under the VMA's own lock wait", (MMAP, VMA)),
    Step(1, "pmdp_collapse_flush", "the PMD is cleared, 2 MiB flushed", (MMAP, VMA, ANON, "pmd")),
    Step(2, "pmdp_collapse_flush", "and again", (MMAP, VMA, ANON, "pmd")),
    Step(1, "pmdp_collapse_flush", "and again", (MMAP, VMA, ANON, "pmd")),
    Step(1, "pmdp_collapse_flush", "repeated: its name is not", (MMAP, VMA, ANON)),
    Step(0, "collapse_huge_page", "succeeded", ()),
]


def test_steps() -> None:
    page = console()
    render_steps(STEPS, page)
    golden("steps.txt", printed(page))


def test_no_steps() -> None:
    page = console()
    render_steps([], page)
    assert "no steps" in printed(page)


def test_document() -> None:
    document = steps_document(STEPS)
    assert [step["locks"] for step in document["steps"]] == [list(step.locks) for step in STEPS]
