# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions reviewers asked, each as an edit of the protocol to be explored against every rival."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mthp.races.mutants.collapse import COLLAPSE, NO_BARRIER
from mthp.races.variant import Edit


@dataclass(frozen=True)
class Question:
    """What if? asked: in words. edits: the change."""

    id: str
    asked: str
    edits: tuple[Edit, ...]


_QUESTIONS = (
    Question(
        "flush-window",
        "May the flush cover the window alone?",
        (
            Edit(
                "mm.pgtable",
                "    first = pmd_addr >> shift\n"
                "    last = first + mm.geometry.ptrs_per_pte\n"
                "    flush_tlb_range(",
                "    first = window[0] >> shift\n"
                "    last = first + (1 << window[1])\n"
                "    flush_tlb_range(",
            ),
        ),
    ),
    Question(
        "no-flush",
        "Is the flush needed at all?",
        (
            Edit(
                "mm.pgtable",
                "    flush_tlb_range(mm.kernel.cpus, mm.number, first, last, "
                "mm.kernel.this_cpu.number)\n    if pmd_is_table(old):",
                "    if pmd_is_table(old):",
            ),
        ),
    ),
    Question(
        "no-pmd-lock",
        'Is the pmd lock around pmdp_collapse_flush() needed ("probably unnecessary")?',
        (
            Edit(
                COLLAPSE,
                "        with mmu_notifier_invalidate_range(mm, start_addr, end_addr), pmd_lock(pmd):\n",
                "        with mmu_notifier_invalidate_range(mm, start_addr, end_addr):\n",
            ),
            Edit(
                "mm.pgtable",
                "    pmd.page.ptl.assert_held()\n    mm = vma.vm_mm\n    old =",
                "    mm = vma.vm_mm\n    old =",
            ),
        ),
    ),
    Question(
        "read-lock",
        "Would mmap_lock for reading do?",
        (
            Edit(
                COLLAPSE,
                "            with mm.mmap_write_lock():\n",
                "            with mm.mmap_read_lock():\n",
            ),
            Edit(COLLAPSE, "                vma_start_write(vma)\n", ""),
        ),
    ),
    Question(
        "no-anon-vma",
        "Is anon_vma needed at all?",
        (
            Edit(
                COLLAPSE,
                "    with _Leaving(kernel, anon_vma_lock_write(vma.anon_vma)) as leaving:\n",
                "    with _Leaving(kernel, anon_vma_lock_write(vma.anon_vma)) as leaving:\n"
                "        leaving.anon_vma.release()\n",
            ),
            Edit(COLLAPSE, "            leaving.anon_vma.release()\n\n", "            pass\n\n"),
        ),
    ),
    Question(
        "anon-vma-early",
        "May anon_vma be let go before the copy below PMD order?",
        (
            Edit(
                COLLAPSE,
                "        if is_pmd_order:\n            # Every",
                "        if True:\n            # Every",
            ),
        ),
    ),
    Question(
        "anon-vma-no-entries",
        "May it be let go once no neighbour in the table is a migration entry?",
        (
            Edit(
                COLLAPSE,
                "        if is_pmd_order:\n            # Every",
                "        if is_pmd_order or not any(\n"
                "            pteval and not pteval & 1 for pteval in pte.ptes.raw\n"
                "        ):\n            # Every",
            ),
        ),
    ),
    Question(
        "no-folio-lock",
        "Must the sources be locked?",
        (
            Edit(
                "khugepaged.isolate",
                "        if not mem.folio_trylock(folio):\n"
                "            raise Refused(ScanResult.PAGE_LOCK)\n",
                "        mem.folio_trylock(folio)\n",
            ),
        ),
    ),
    Question(
        "no-count-check",
        "Must the sources' references be counted?",
        (
            Edit(
                "khugepaged.isolate",
                "        if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio):\n",
                "        if False:\n",
            ),
        ),
    ),
    Question(
        "no-second-revalidate",
        "Must the VMA be looked up again under mmap_lock for writing?",
        (
            Edit(
                COLLAPSE,
                "                vma = hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)\n"
                "                vma_start_write(vma)\n",
                "                vma_start_write(vma)\n",
            ),
        ),
    ),
    Question("no-barrier", "Is the barrier of __folio_mark_uptodate() needed?", (NO_BARRIER,)),
    Question(
        "no-seed-barrier",
        "Is the seed's smp_wmb() before pmd_populate() needed?",
        (Edit("khugepaged.install", "            kernel.machine.smp_wmb()\n", ""),),
    ),
    Question(
        "no-barriers",
        "And neither of the two?",
        (NO_BARRIER, Edit("khugepaged.install", "            kernel.machine.smp_wmb()\n", "")),
    ),
)
QUESTIONS: Mapping[str, Question] = MappingProxyType({each.id: each for each in _QUESTIONS})
