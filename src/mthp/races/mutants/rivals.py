# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that a rival makes visible: of the collapse, or of the rival itself beside a collapse."""

from __future__ import annotations

from mthp.races.mutants.mutant import Half, Mutant
from mthp.races.stage import Size
from mthp.races.variant import Edit
from mthp.races.world import RaceWorld


def _world(size: Size, *rivals: str) -> RaceWorld:
    return RaceWorld(size, "7.3", rivals)


PMD, WINDOW = Size.PMD, Size.WINDOW

MORE = (
    Mutant(
        "U1",
        "the rule of collapse_max_ptes_none()",
        "empty PTEs are filled where userfaultfd has them in charge",
        (
            Edit(
                "khugepaged.limits",
                "    if vma is not None and userfaultfd_armed(vma):\n",
                "    if False:\n",
            ),
        ),
        _world(PMD, "uffd-register"),
        frozenset({8}),
    ),
    Mutant(
        "W1",
        "the rule of folio_swapcache_freeable()",
        "a page's slot is given up while it is being written",
        (
            Edit(
                "mm.swapfile",
                "mem.flags.test_bits(folio, PG_SWAPCACHE | PG_WRITEBACK)",
                "mem.flags.test_bits(folio, PG_SWAPCACHE)",
            ),
        ),
        _world(PMD, "writeback"),
        frozenset({1}),
    ),
    Mutant(
        "S2",
        "the rule of map_anon_folio_pmd_nopf()",
        "the huge PMD does not carry the soft-dirty marks of what it replaces",
        (
            Edit(
                "mm.huge_memory",
                "    flags = YOUNG | DIRTY | SOFT_DIRTY | (WRITE if",
                "    flags = YOUNG | DIRTY | (WRITE if",
            ),
        ),
        _world(PMD, "soft-dirty"),
        frozenset({8}),
    ),
    Mutant(
        "L1",
        "the rule of __collapse_huge_page_copy_failed()",
        "a copy that fails leaves the folios as isolate took them",
        (
            Edit(
                "khugepaged.copy",
                "    release_pte_pages(pte, 1 << order, compound_pagelist)\n",
                "",
            ),
        ),
        _world(PMD, "hwpoison"),
        frozenset({11}),
    ),
    Mutant(
        "R1",
        "PVMW_SYNC in remove_migration_pte()",
        "migration passes over entries that somebody moves just now",
        (Edit("mm.migrate", "-page, Lookup.SYNC)", "-page)"),),
        _world(WINDOW, "mremap-ptes", "migrate-neighbour"),
        frozenset({4}),
    ),
    Mutant(
        "R2",
        "rmap locks in should_take_rmap_locks() (v5.14)",
        "mremap() moves a table without the rmap locks",
        (
            Edit(
                "mm.mremap",
                "    with rmap_locks(vma):\n        if not pmd_none",
                "    with nullcontext():\n        if not pmd_none",
            ),
        ),
        _world(PMD, "mremap", "migrate"),
        frozenset({4}),
    ),
    Mutant(
        "R3",
        "ptep_clear_flush() in write_protect_page()",
        "ksmd counts references while GUP-fast can still pin the page",
        (
            Edit(
                "mm.ksm",
                "            swapped = mem.test(folio, PG_SWAPCACHE)\n"
                "            entry = ptep_clear_flush(mm, pte, address)\n"
                "            used = mem.folio_mapcount(folio) + 1 + swapped"
                " != mem.folio_ref_count(folio)\n",
                "            swapped = mem.test(folio, PG_SWAPCACHE)\n"
                "            used = mem.folio_mapcount(folio) + 1 + swapped"
                " != mem.folio_ref_count(folio)\n"
                "            entry = ptep_clear_flush(mm, pte, address)\n",
            ),
            Edit(
                "mm.ksm",
                "    if folio_maybe_dma_pinned(kernel, kernel.mem.page_folio(page)):\n",
                "    if False:\n",
            ),
        ),
        _world(PMD, "ksm", "gup"),
        frozenset({3}),
    ),
    Mutant(
        "R4",
        "is_pte_pages_stable() in UFFDIO_MOVE",
        "UFFDIO_MOVE does not look at the PMD again once it holds the locks",
        (
            Edit(
                "mm.userfaultfd",
                "            and pmdp_get_lockless(dst_pmd) == self.dst_pmdval\n",
                "",
            ),
        ),
        _world(PMD, "uffd-move-in", "zap-vma"),
        frozenset({4, 6}),
    ),
    Mutant(
        "R5",
        "sync_with_folio_pmd_zap()",
        "migration does not wait for whoever moves a huge page just now",
        (
            Edit(
                "mm.page_vma_mapped",
                "            if lookup is Lookup.SYNC:\n"
                "                sync_with_folio_pmd_zap(mm, pmd, abs(wanted))\n",
                "",
            ),
        ),
        _world(PMD, "mremap", "move-pages"),
        frozenset({4}),
    ),
)

MORE_HALVES = (
    Half(
        "E1",
        "khugepaged_exit() does not wait for the daemon",
        (
            Edit(
                "khugepaged.daemon",
                "            with mm.mmap_write_lock():\n                pass\n",
                "            pass\n",
            ),
        ),
        _world(PMD, "exit"),
        "exit_mmap() takes mmap_lock itself, and the collapse asks for mm_users under it",
    ),
)
