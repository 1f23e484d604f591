# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of one collapse."""

from __future__ import annotations

from mthp.predict.records import DrawnCall
from mthp.report.steps import render_steps
from tests.report.samples import console, golden, printed

MMAP, VMA, ANON = "mmap_lock (write)", "vma (write)", "anon_vma (write)"
STEPS = [
    DrawnCall(0, "collapse_huge_page", "window 0x7f0000010000, 64kB (order 4)", ()),
    DrawnCall(1, "alloc_charge_folio", "a folio of order 4, charged", ()),
    DrawnCall(1, "hugepage_vma_revalidate", "the mapping is still there", ("mmap_lock (read)",)),
    DrawnCall(1, "vma_start_write", "page faults under the VMA's own lock wait", (MMAP, VMA)),
    DrawnCall(
        1, "pmdp_collapse_flush", "the PMD is cleared, 2 MiB flushed", (MMAP, VMA, ANON, "pmd")
    ),
    DrawnCall(2, "pmdp_collapse_flush", "and again", (MMAP, VMA, ANON, "pmd")),
    DrawnCall(1, "pmdp_collapse_flush", "and again", (MMAP, VMA, ANON, "pmd")),
    DrawnCall(1, "pmdp_collapse_flush", "repeated: its name is not", (MMAP, VMA, ANON)),
    DrawnCall(0, "collapse_huge_page", "succeeded", ()),
]


def test_steps() -> None:
    page = console()
    render_steps(STEPS, page)
    golden("steps.txt", printed(page))


def test_no_steps() -> None:
    page = console()
    render_steps([], page)
    assert "no steps" in printed(page)
