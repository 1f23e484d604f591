# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions that reviewers asked, each an edit of the protocol to be explored against every rival."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from mthp.races.edits import Edit
from mthp.races.mutants.rules import (
    ANON_VMA_EARLY,
    COLLAPSE,
    NO_BARRIER,
    NO_SEED_BARRIER,
    NO_VMA_LOCK,
)

FLUSH: Final = ("mm.pgtable", "pmdp_collapse_flush")
LOCK_FOLIO: Final = ("khugepaged.isolate", "lock_and_isolate")


@dataclass(frozen=True)
class Question:
    """What if? asked: in words. edits: the change."""

    id: str
    asked: str
    edits: tuple[Edit, ...]


# fmt: off
_QUESTIONS = (
    Question("flush-window", "May the flush cover the window alone?",
        (Edit(*FLUSH, "pmd_addr + mm.geometry.pmd_size", "pmd_addr + 2 * mm.geometry.page_size"),)),
    Question("no-flush", "Is the flush needed at all?", (Edit(*FLUSH, "flush_tlb_mm_range(...)"),)),
    Question("no-pmd-lock",
        'Is the pmd lock around pmdp_collapse_flush() needed ("probably unnecessary")?',
        (Edit(COLLAPSE, "_replace", "pmd_lock(pmd)"), Edit(*FLUSH, "pmd.page.ptl.assert_held()"))),
    Question("read-lock", "Would mmap_lock for reading do?",
        (Edit(COLLAPSE, "collapse_huge_page", "mm.mmap_write_lock()", "mm.mmap_read_lock()"), NO_VMA_LOCK)),
    Question("no-anon-vma", "Is anon_vma needed at all?",
        (Edit(COLLAPSE, "_replace", "with mmu_notifier_invalidate_range(...), pmd_lock(pmd): ...",
            "leaving.anon_vma.release()\n_"),
         Edit(COLLAPSE, "_replace", "if is_pmd_order: leaving.anon_vma.release()"))),
    Question("anon-vma-early", "May anon_vma be let go before the copy below PMD order?",
        (ANON_VMA_EARLY,)),
    Question("anon-vma-no-entries",
        "May it be let go once no neighbour in the table is a migration entry?",
        (Edit(COLLAPSE, "_replace", "if is_pmd_order: leaving.anon_vma.release()",
            "if is_pmd_order or not any(pteval and not pteval & 1 for pteval in pte.ptes.raw):\n"
            " leaving.anon_vma.release()"),)),
    Question("no-folio-lock", "Must the sources be locked?",
        (Edit(*LOCK_FOLIO, "if not mem.folio_trylock(folio): ...", "mem.folio_trylock(folio)"),)),
    Question("no-count-check", "Must the sources' references be counted?",
        (Edit(*LOCK_FOLIO, "mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio)", "False"),)),
    Question("no-second-revalidate", "Must the VMA be looked up again under mmap_lock for writing?",
        (Edit(COLLAPSE, "collapse_huge_page", "vma = hugepage_vma_revalidate(...)\nvma_start_write(vma)",
            "_2"),)),
    Question("no-barrier", "Is the barrier of __folio_mark_uptodate() needed?", (NO_BARRIER,)),
    Question("no-seed-barrier", "Is the seed's smp_wmb() before pmd_populate() needed?",
        (NO_SEED_BARRIER,)),
    Question("no-barriers", "And neither of the two?", (NO_BARRIER, NO_SEED_BARRIER)),
)
# fmt: on
QUESTIONS: Mapping[str, Question] = MappingProxyType({each.id: each for each in _QUESTIONS})
