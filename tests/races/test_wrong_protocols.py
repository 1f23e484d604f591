# SPDX-License-Identifier: GPL-2.0-or-later
"""Wrong protocols of many kinds: each breaks a law in the world that is named, or it is said why it
breaks none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from mthp.check.search import Budget, search
from mthp.laws.table import LAWS
from mthp.races.edits import Edit
from mthp.races.findings import findings_of
from mthp.races.mutants.rules import COLLAPSE, INSTALL
from mthp.races.variant import applied
from mthp.races.world import RaceWorld

COLLAPSING: Final = (COLLAPSE, "collapse_huge_page")
REPLACING: Final = (COLLAPSE, "_replace")
BY_PMD: Final = ("mm.huge_memory", "map_anon_folio_pmd_nopf")
BY_PTES: Final = ("mm.memory", "map_anon_folio_pte_nopf")
COPIED: Final = ("khugepaged.copy", "__collapse_huge_page_copy_succeeded")
NOT_COPIED: Final = ("khugepaged.copy", "__collapse_huge_page_copy_failed")
COPYING: Final = ("khugepaged.copy", "__collapse_huge_page_copy")
ISOLATING: Final = ("khugepaged.isolate", "lock_and_isolate")
SWAP_IN: Final = ("khugepaged.swapin", "__collapse_huge_page_swapin")
FLUSH: Final = ("mm.pgtable", "pmdp_collapse_flush")
SCANNING: Final = ("khugepaged.scan", "collapse_scan_pmd")
REVALIDATING: Final = ("khugepaged.revalidate", "hugepage_vma_revalidate")
PMD_STATE: Final = ("khugepaged.revalidate", "check_pmd_state")
INSTALL_PMD: Final = (INSTALL, "install_pmd")
INSTALL_PTES: Final = (INSTALL, "install_ptes")
ALLOCATING: Final = ("khugepaged.alloc", "alloc_charge_folio")
MADVISING: Final = ("khugepaged.madvise", "_collapse_ranges")


@dataclass(frozen=True)
class Wrong:
    """what: is done. worlds: where it shows, or where it was looked for: names, with the rivals behind a
    colon. laws: any of them may say so. passes: why none does.
    """

    id: str
    what: str
    worlds: str
    laws: tuple[int, ...]
    edits: tuple[Edit, ...]
    passes: str = ""


# fmt: off
WRONG: Final = (
    # Addresses and indices
    Wrong("ptes-at-pmd-address", "the PTEs are taken at the PMD's address, not at the window's",
        "window+second", (15,),
        (Edit(*REPLACING,
            "pte_offset_map(kernel, orig_pmd, start_addr)",
            "pte_offset_map(kernel, orig_pmd, pmd_addr)"),)),
    Wrong("ptes-one-off", "the PTEs are taken one entry on",
        "pmd", (1, 3, 4, 5, 6, 8, 11),
        (Edit(*REPLACING,
            "pte_offset_map(kernel, orig_pmd, start_addr)",
            "pte_offset_map(kernel, orig_pmd, start_addr + kernel.geometry.page_size)"),)),
    Wrong("installed-at-pmd-address", "below PMD order, the folio has the index of the table's first page",
        "window+second", (15,),
        (Edit(*INSTALL_PTES,
            "with pte.table.ptl.lock(): ...",
            "with pte.table.ptl.lock():\n"
            " pmd_populate(pmd, pmd_pgtable(orig_pmd))\n"
            " map_anon_folio_pte_nopf(kernel, folio, pte, vma, "
            "kernel.geometry.pmd_addr(start_addr), uffd_wp=False)"),)),
    Wrong("index-one-on", "the huge page is given the index of the page behind its first",
        "pmd", (15,),
        (Edit(*BY_PMD,
            "folio_add_new_anon_rmap(...)",
            "folio_add_new_anon_rmap(kernel.mem, folio, vma, haddr + kernel.geometry.page_size, "
            "exclusive=True, pmd_mapped=True)"),)),
    Wrong("copied-to-first-page", "every page is copied to the new folio's first",
        "pmd:large", (3,),
        (Edit(*COPYING,
            "copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval))",
            "copy_mc_user_highpage(mem, folio, pte_pfn(pteval))"),)),
    Wrong("copied-the-other-way", "the pages are copied in reverse order",
        "pmd", (3,),
        (Edit(*COPYING,
            "copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval))",
            "copy_mc_user_highpage(mem, folio + (1 << order) - 1 - i, pte_pfn(pteval))"),)),
    Wrong("copied-from-head", "every page of a large folio is copied from its first",
        "pmd:large", (3,),
        (Edit(*COPYING,
            "copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval))",
            "copy_mc_user_highpage(mem, folio + i, mem.page_folio(pte_pfn(pteval)))"),)),
    Wrong("holes-not-zeroed", "holes are not filled with zeroes",
        "pmd", (3,),
        (Edit(*COPYING, "mem.content.write(folio + i, 0)"),)),
    Wrong("maps-second-page", "the huge PMD names the new folio's second page",
        "pmd", (3, 4, 15, 16),
        (Edit(*BY_PMD, "huge_pmd(folio, flags)", "huge_pmd(folio + 1, flags)"),)),
    Wrong("maps-all-but-last", "the last PTE of the window is not set",
        "window", (4, 5),
        (Edit(*BY_PTES, "set_ptes(...)", "set_ptes(pte, 0, mk_pte(folio, flags), nr - 1)"),)),
    Wrong("maps-one-on", "the PTEs are set one entry on",
        "window", (3, 4, 5, 8, 15),
        (Edit(*BY_PTES,
            "set_ptes(...)",
            "set_ptes(pte, pte.kernel.geometry.ptrs_per_pte > 2, mk_pte(folio, flags), nr)"),)),
    Wrong("scan-one-on", "the scan reads the PTEs of its table from the second on",
        "pmd+scan", (1,),
        (Edit(*SCANNING,
            "pte_offset_map(kernel, pmdp_get_lockless(pmd), start_addr)",
            "pte_offset_map(kernel, pmdp_get_lockless(pmd), start_addr + geometry.page_size)"),)),
    Wrong("windows-misaligned", "the walk attempts windows one page on",
        "pmd+scan", (9,),
        (Edit("khugepaged.order_walk", "mthp_collapse",
            "offset << kernel.geometry.page_shift",
            "(offset + 1) << kernel.geometry.page_shift"),)),
    Wrong("first-window-always", "the walk attempts the table's first window in every window's place",
        "window+scan window+second window+both window+daemon", (),
        (Edit("khugepaged.order_walk", "mthp_collapse",
            "address + (offset << kernel.geometry.page_shift)",
            "address"),),
        passes="which window is taken is a policy: whichever it is, it is collapsed properly"),
    Wrong("swapin-at-window-start", "each page is swapped in at the window's first address",
        "pmd:swapped pmd:swap-in-large pmd:swap-in", (),
        (Edit(*SWAP_IN, "start_addr + (i << mm.geometry.page_shift)", "start_addr"),),
        passes="do_swap_page() finds another entry at that address and does nothing; isolate refuses"),
    # Mappings and locks that a collapse has no business with
    Wrong("rights-given", "the mapping is made writable, so that the new entries may be",
        "pmd+read-only", (14,),
        (Edit(*COLLAPSING,
            "vma_start_write(vma)",
            "vma_start_write(vma)\nfrom mthp.mm.vm_flags import VM_WRITE\nvma.vm_flags |= VM_WRITE"),)),
    Wrong("offset-moved", "the mapping's offset is set to that of the window",
        "window+second", (14, 15),
        (Edit(*COLLAPSING,
            "vma_start_write(vma)",
            "vma_start_write(vma)\nvma.vm_pgoff = start_addr >> kernel.geometry.page_shift"),)),
    Wrong("taken-from-userfaultfd", "userfaultfd's registration is taken away",
        "pmd:uffd-register", (8,),
        (Edit(*COLLAPSING,
            "vma_start_write(vma)",
            "vma_start_write(vma)\nfrom mthp.mm.vm_flags import VM_UFFD_MISSING\n"
            "vma.vm_flags &= ~VM_UFFD_MISSING"),)),
    Wrong("waits-for-folio-lock", "a folio's lock is waited for, under the PTE lock and anon_vma",
        "pmd:migrate", (9,),
        (Edit(*ISOLATING,
            "if not mem.folio_trylock(folio): ...",
            "while not mem.folio_trylock(folio):\n mem.folio_wait_locked(folio)"),)),
    Wrong("lock-upgraded", "mmap_lock is taken for writing while it is held for reading",
        "pmd", (9,),
        (Edit(*COLLAPSING,
            "pmd = find_pmd_or_thp_or_none(mm, pmd_addr)",
            "pmd = find_pmd_or_thp_or_none(mm, pmd_addr)\nwith mm.mmap_write_lock(): pass"),)),
    Wrong("faults-under-mmap-lock", "memory is read at its addresses, with faults, under mmap_lock",
        "pmd", (3, 5, 6, 8, 9, 11),
        (Edit(*REPLACING,
            "__folio_mark_uptodate(kernel, folio)",
            "from mthp.mm.mmu import load\nload(mm, start_addr)\n_"),)),
    Wrong("restored-without-pmd-lock", "the table is put back without the pmd lock",
        "pmd:gup", (9,),
        (Edit(INSTALL, "restore_pmd",
            "with pmd_lock(pmd): ...",
            "guard_pmd_none(kernel, pmd)\npmd_populate(pmd, pmd_pgtable(orig_pmd))"),)),
    Wrong("refusal-tried-again", "an isolation that is refused is tried again under the same locks",
        "pmd:gup", (9,),
        (Edit(*REPLACING,
            "compound_pagelist = __collapse_huge_page_isolate(vma, start_addr, pte, cc, order)",
            "while True:\n"
            " try:\n"
            "  compound_pagelist = __collapse_huge_page_isolate(vma, start_addr, pte, cc, order)\n"
            "  break\n"
            " except Refused:\n"
            "  pass"),)),
    Wrong("marked-before-copy", "the new folio is marked up to date before it is filled",
        "pmd+weak:load", (3,),
        (Edit(*REPLACING, "__folio_mark_uptodate(kernel, folio)"),
         Edit(*COPYING,
            "mem = pte.kernel.mem",
            "mem = pte.kernel.mem\n"
            "from mthp.khugepaged.install import __folio_mark_uptodate as mark\n"
            "mark(pte.kernel, folio)"))),
    Wrong("new-folio-left-locked", "the new folio is locked and stays so",
        "pmd", (9,),
        (Edit(*REPLACING, "__folio_mark_uptodate(kernel, folio)", "_\nkernel.mem.folio_trylock(folio)"),)),
    Wrong("notifier-ended-early", "secondary MMUs may map again before the table is taken away",
        "pmd:guest", (1, 2, 3),
        (Edit(*REPLACING,
            "with mmu_notifier_invalidate_range(mm, start_addr, end_addr), pmd_lock(pmd): ...",
            "with mmu_notifier_invalidate_range(mm, start_addr, end_addr): pass\n"
            "with pmd_lock(pmd): orig_pmd = pmdp_collapse_flush(vma, pmd_addr, pmd)"),)),
    Wrong("counter-set", "the process's counter is set to what it was before the locks, and one more",
        "window:swap-out-neighbour", (5,),
        (Edit(*COLLAPSING, "kernel = mm.kernel", "_\nbefore = mm.counters['MM_ANONPAGES']"),
         Edit(*COLLAPSING, "new.installed = True", "_\nmm.counters['MM_ANONPAGES'] = before + 1"))),
    Wrong("mapped-in-children", "the huge PMD is set in a forked child as well",
        "pmd:fork", (9,),
        (Edit(*INSTALL_PMD,
            "map_anon_folio_pmd_nopf(...)",
            "_\n"
            "from mthp.mm.pgtable import pmd_ptr\n"
            "for other in kernel.mms[1:]:\n"
            " there = pmd_ptr(other, pmd_addr, create=True)\n"
            " there.page.pmds.write(there.slot, pmd.page.pmds.raw[pmd.slot])"),)),
    # Gates that are left out
    Wrong("second-revalidation-a-vma-exists", "the second revalidation is \"a VMA exists\"",
        "pmd:shrink", (14,),
        (Edit(*COLLAPSING,
            "vma = hugepage_vma_revalidate(...)\n"
            "vma_start_write(vma)",
            "vma = mm.find_vma(pmd_addr)\n"
            "if vma is None:\n"
            " raise Refused(ScanResult.VMA_NULL)\n"
            "_2"),)),
    Wrong("second-revalidation-vma-lookup", "the second revalidation is \"a VMA holds the address\"",
        "pmd:shrink", (14,),
        (Edit(*COLLAPSING,
            "vma = hugepage_vma_revalidate(...)\n"
            "vma_start_write(vma)",
            "vma = mm.vma_lookup(pmd_addr)\n"
            "if vma is None:\n"
            " raise Refused(ScanResult.VMA_NULL)\n"
            "_2"),)),
    Wrong("range-not-checked", "whether the VMA spans the table is not looked at",
        "window+two-vmas", (13,),
        (Edit(*REVALIDATING, "if not thp_vma_suitable_order(...): ..."),)),
    Wrong("range-of-the-window", "the VMA need only span the window, not the table",
        "window+two-vmas", (13,),
        (Edit(*REVALIDATING, "mm.geometry.pmd_order", "order"),)),
    Wrong("allowable-not-checked", "whether the VMA may be collapsed is not looked at",
        "pmd:exec", (13,),
        (Edit(*REVALIDATING, "if not thp_vma_allowable_orders(...): ..."),)),
    Wrong("anon-not-checked", "whether the VMA is anonymous is not looked at",
        "pmd+file", (3,),
        (Edit(*REVALIDATING, "if expect is Expect.ANON and ...: ..."),
         Edit(*REVALIDATING, "if not thp_vma_allowable_orders(...): ..."),)),
    Wrong("exit-not-checked", "whether the process has ended is not looked at",
        "pmd:exit pmd+daemon:exit", (),
        (Edit(*REVALIDATING, "if collapse_test_exit_or_disable(mm): ..."),),
        passes="exit_mmap() waits for mmap_lock, and leaves no VMA to be found"),
    Wrong("pmd-not-looked-at-again", "the PMD is not looked at again under mmap_lock for writing",
        "pmd:zap", (6, 11),
        (Edit(*COLLAPSING, "check_pmd_still_valid(...)"),)),
    Wrong("pmd-only-found-again", "the PMD is found again, and not that it points to a table",
        "pmd+huge", (3, 4, 5, 6, 7, 8, 11),
        (Edit("khugepaged.revalidate", "find_pmd_or_thp_or_none", "check_pmd_state(pmd)"),)),
    Wrong("pmd-none-passes", "a PMD that is none passes",
        "pmd:zap", (6, 11),
        (Edit(*PMD_STATE,
            "if pmd_none(pmdval): ...",
            "if pmd_none(pmdval):\n"
            " return"),)),
    Wrong("pmd-huge-passes", "a huge PMD passes",
        "pmd+huge", (3, 4, 5, 6, 7, 8, 11),
        (Edit(*PMD_STATE,
            "if pmd_trans_huge(pmdval): ...",
            "if pmd_trans_huge(pmdval):\n"
            " return"),)),
    Wrong("pmd-migration-passes", "a migration entry in a PMD passes for a table",
        "pmd+huge:move-pages", (3, 4, 5, 6, 7, 11),
        (Edit(*PMD_STATE,
            "if pmd_is_migration_entry(pmdval): ...",
            "if pmd_is_migration_entry(pmdval):\n"
            " return"),)),
    Wrong("presence-not-checked", "isolate takes entries that are not present for pages",
        "pmd:swap-out", (1,),
        (Edit("khugepaged.isolate", "take_page", "if not pte_present(pteval): ..."),)),
    Wrong("swap-entry-is-a-hole", "isolate takes a swap entry for a hole",
        "pmd:poisoned", (9, 11),
        (Edit("khugepaged.isolate", "isolate_ptes", "pte_none_or_zero(pteval)", "pteval & 1 == 0"),
         Edit(*COPYING, "pte_none_or_zero(pteval)", "pteval & 1 == 0"),
         Edit(*COPIED, "pte_none_or_zero(pteval)", "pteval & 1 == 0"),)),
    Wrong("uffd-not-checked", "isolate takes write-protected entries",
        "pmd:uffd-wp", (8,),
        (Edit("khugepaged.isolate", "take_page", "if pte_uffd(pteval): ..."),)),
    Wrong("uffd-range-not-checked", "holes are filled that userfaultfd has in charge",
        "pmd:uffd-register", (8,),
        (Edit("khugepaged.limits", "collapse_max_ptes_none", "userfaultfd_armed(vma)", "False"),)),
    Wrong("lazyfree-not-checked", "pages that MADV_FREE gave up are collapsed",
        "pmd:lazyfree window:lazyfree", (),
        (Edit("khugepaged.isolate", "take_page", "if refuses_lazyfree(...): ..."),),
        passes="a policy: what was given up is kept instead, and reads as one of both it may"),
    Wrong("sharing-not-checked", "pages that two processes map are collapsed, whatever the limit",
        "pmd:fork window:fork", (),
        (Edit("khugepaged.isolate", "take_shared", "if self.shared > self.max_ptes_shared: ..."),),
        passes="a policy: the process gets a page of its own sooner"),
    Wrong("large-again", "below PMD order, a folio that is large already is collapsed again",
        "window:large window:migrate-large", (),
        (Edit("khugepaged.isolate", "take_page", "if self.sub_pmd and ...: ..."),),
        passes="a policy: work for nothing, done properly"),
    Wrong("lock-not-checked", "a folio that another has locked is taken all the same",
        "pmd:poisoned", (5, 9, 11),
        (Edit(*ISOLATING, "if not mem.folio_trylock(folio): ...", "mem.folio_trylock(folio)"),)),
    Wrong("references-not-counted", "the sources' references are not counted",
        "pmd:gup", (3,),
        (Edit(*ISOLATING, "mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio)", "False"),)),
    Wrong("pins-only", "of the sources' references only pins count",
        "pmd:get", (2, 3),
        (Edit(*ISOLATING,
            "mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio)",
            "mem.folio_ref_count(folio) >= 1024"),)),
    Wrong("one-reference-more-is-fine", "one reference more than explained is let pass",
        "pmd:get", (2, 3),
        (Edit(*ISOLATING,
            "mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio)",
            "mem.folio_ref_count(folio) > mem.folio_expected_ref_count(folio) + 1"),)),
    Wrong("counted-before-locked", "the references are counted before the folio is locked",
        "pmd:migrate pmd:get pmd:swap-out", (),
        (Edit(*ISOLATING,
            "if not mem.folio_trylock(folio): ...\n"
            "if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio): ...",
            "if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio):\n"
            " raise Refused(ScanResult.PAGE_COUNT)\n"
            "_1"),),
        passes="who finds the folio on the LRU loses the race for it, and who has it mapped was "
        "flushed"),
    Wrong("lru-not-checked", "a folio that another has taken off the LRU is taken all the same",
        "pmd:poisoned", (5, 11),
        (Edit(*ISOLATING, "if not folio_isolate_lru(mem, folio): ...", "folio_isolate_lru(mem, folio)"),)),
    Wrong("poison-not-checked", "pages are copied whose memory failed",
        "pmd:poisoned", (17,),
        (Edit("khugepaged.copy", "copy_mc_user_highpage", "if mem.page_flags.test_bits(...): ..."),)),
    Wrong("result-of-copy-ignored", "a copy that failed is taken for done",
        "pmd:poisoned", (3,),
        (Edit(*COPYING,
            "copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval))",
            "copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval)) or True"),)),
    # Locks
    Wrong("vma-after-mmap-lock", "the VMA is used after mmap_lock was let go",
        "pmd", (10,),
        (Edit(*COLLAPSING,
            "with mm.mmap_write_lock(): ...",
            "with mm.mmap_write_lock():\n"
            " vma = hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)\n"
            " vma_start_write(vma)\n"
            " check_pmd_still_valid(mm, pmd_addr, pmd)\n"
            "_replace(vma, start_addr, pmd, new.folio, cc, order)\n"
            "new.installed = True"),)),
    Wrong("swapin-after-mmap-lock", "the VMA is swapped into after mmap_lock was let go",
        "pmd:swapped", (10,),
        (Edit(*COLLAPSING,
            "if unmapped: ...",
            "mmap_lock.release()\n"
            "_"),)),
    Wrong("first-vma-kept", "the VMA of the first lookup is used under mmap_lock for writing",
        "pmd:remap", (10,),
        (Edit(*COLLAPSING,
            "vma = hugepage_vma_revalidate(...)\n"
            "vma_start_write(vma)",
            "hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)\n"
            "_2"),)),
    Wrong("scan-vma-after-lock", "the scan asks the VMA once more after mmap_lock was let go",
        "pmd+scan", (10,),
        (Edit(*SCANNING,
            "mmap_lock.release()",
            "mmap_lock.release()\n"
            "scan.max_ptes_none = collapse_max_ptes_none(kernel, cc, vma, geometry.pmd_order)"),)),
    Wrong("scan-keeps-mmap-lock", "the scan collapses under mmap_lock",
        "pmd+scan", (9,),
        (Edit(*SCANNING, "mmap_lock.release()"),)),
    Wrong("read-lock", "mmap_lock is taken for reading",
        "pmd", (9,),
        (Edit(*COLLAPSING, "mm.mmap_write_lock()", "mm.mmap_read_lock()"),)),
    Wrong("vma-not-locked", "the VMA is not locked",
        "pmd", (13,),
        (Edit(*COLLAPSING, "vma_start_write(vma)"),)),
    Wrong("vma-locked-late", "the VMA is locked once the table is taken away",
        "pmd", (13,),
        (Edit(*COLLAPSING, "vma_start_write(vma)"),
         Edit(*REPLACING,
            "tlb_remove_table_sync_one(...)",
            "_\n"
            "vma_start_write(vma)"),)),
    Wrong("anon-vma-not-locked", "anon_vma is not locked",
        "pmd:poisoned", (4, 5),
        (Edit(*REPLACING,
            "with mmu_notifier_invalidate_range(...), pmd_lock(pmd): ...",
            "leaving.anon_vma.release()\n"
            "_"),
         Edit(*REPLACING, "if is_pmd_order: leaving.anon_vma.release()"),)),
    Wrong("anon-vma-of-another", "another anon_vma is locked",
        "window:ksm+migrate-neighbour", (4, 5),
        (Edit(*REPLACING, "anon_vma_lock_write(vma.anon_vma)",
            "anon_vma_lock_write(kernel.anon_vmas[-1])"),)),
    Wrong("anon-vma-let-go-early", "below PMD order anon_vma is let go before the copy",
        "window:migrate-neighbour", (4, 5),
        (Edit(*REPLACING, "if is_pmd_order: leaving.anon_vma.release()", "leaving.anon_vma.release()"),)),
    Wrong("anon-vma-let-go-before-isolate", "anon_vma is let go once the table is taken away",
        "pmd:poisoned", (4, 5),
        (Edit(*REPLACING,
            "tlb_remove_table_sync_one(...)",
            "_\n"
            "leaving.anon_vma.release()"),
         Edit(*REPLACING, "if is_pmd_order: leaving.anon_vma.release()"),)),
    Wrong("anon-vma-kept", "anon_vma is kept at PMD order too",
        "pmd:migrate pmd:swap-out", (),
        (Edit(*REPLACING, "if is_pmd_order: leaving.anon_vma.release()"),),
        passes="a lock held longer; it excludes more"),
    Wrong("isolated-without-pte-lock", "the pages are isolated without the PTE lock",
        "pmd:fault pmd:zap pmd:migrate pmd:gup pmd:store", (),
        (Edit(*REPLACING, "pte.table.ptl.lock()"),
         Edit("khugepaged.isolate", "__collapse_huge_page_isolate", "pte.table.ptl.assert_held()"),),
        passes="the table is in no PMD: mmap_lock, the VMA lock and anon_vma keep everybody out"),
    Wrong("taken-without-pmd-lock", "the table is taken away without the pmd lock",
        "pmd:fault pmd:zap pmd:migrate pmd:gup", (),
        (Edit(*REPLACING, "pmd_lock(pmd)"),
         Edit(*FLUSH, "pmd.page.ptl.assert_held()"),),
        passes="the kernel's own comment says 'probably unnecessary', and so does the search"),
    Wrong("installed-without-pmd-lock", "the huge PMD is set without the pmd lock",
        "pmd", (9,),
        (Edit(*INSTALL_PMD, "pmd_lock(pmd)"),
         Edit(*BY_PMD, "pmd.page.ptl.assert_held()"),
         Edit("mm.pgtable", "pgtable_trans_huge_deposit", "pmd.page.ptl.assert_held()"),)),
    Wrong("installed-without-pte-lock", "the PTEs are set without their lock once the table is back",
        "window", (9,),
        (Edit(*INSTALL_PTES, "pte.table.ptl.lock()"),)),
    Wrong("cleared-without-pte-lock", "the PTEs are cleared without their lock",
        "pmd:migrate pmd:fault pmd:gup window:migrate-neighbour", (),
        (Edit(*COPIED,
            "with ptl.lock():\n"
            " clear_ptes(...)\n"
            " ...",
            "clear_ptes(pte, i, nr_ptes)\n"
            "folio_remove_rmap_ptes(mem, cpu, src, page, nr_ptes, vma)"),),
        passes="the table is in no PMD, as with the PTE lock in isolate"),
    Wrong("folios-unlocked-before-copy", "the sources are unlocked before they are copied",
        "pmd pmd:split-large pmd:large pmd:gup-large pmd:uffd-move pmd:ksm", (),
        (Edit(*ISOLATING,
            "folio_mark_isolated(mem, folio)",
            "_\n"
            "mem.folio_unlock(folio)"),
         Edit("khugepaged.isolate", "release_pte_folio", "kernel.mem.folio_unlock(folio)"),
         Edit(*COPIED, "mem.folio_unlock(src)"),),
        passes="they are isolated from the LRU and nothing maps them: nobody who would lock them "
        "finds them"),
    Wrong("folio-left-locked", "a source with a reference too many is left locked",
        "pmd:poisoned", (9, 11),
        (Edit(*ISOLATING,
            "if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio): ...",
            "if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio):\n"
            " raise Refused(ScanResult.PAGE_COUNT)"),)),
    # What was given up
    Wrong("table-after-unmap-installed", "below PMD order the table is unmapped before its PTEs are set",
        "window", (3, 4, 5, 6, 8, 10, 11),
        (Edit(*REPLACING,
            "__folio_mark_uptodate(kernel, folio)",
            "_\n"
            "pte.unmap()\n"
            "leaving.pte = None"),)),
    Wrong("table-after-unmap-copied", "the table is unmapped once its pages are isolated",
        "pmd", (3, 4, 5, 6, 8, 9, 10, 11),
        (Edit(*REPLACING,
            "if is_pmd_order: leaving.anon_vma.release()",
            "_\n"
            "pte.unmap()\n"
            "leaving.pte = None"),)),
    Wrong("table-after-unmap-by-row", "the row of a table that was unmapped is used",
        "window", (3, 4, 5, 6, 8, 9, 10, 11),
        (Edit(*INSTALL_PTES,
            "with pmd_lock(pmd): ...",
            "ptes, ptl = pte.ptes, pte.table.ptl\n"
            "pte.unmap()\n"
            "pte.mapped = True\n"
            "pte.kernel.machine.current.maps.append(0)\n"
            "pte.kernel.machine.current.maps.remove(0)\n"
            "with ptl.lock():\n"
            " ptes.read(0)"),)),
    Wrong("swapin-after-unmap", "swap-in goes on with the table it unmapped",
        "pmd:swapped", (9,),
        (Edit(*SWAP_IN,
            "pte.unmap()\n"
            "pte = None",
            "pte.unmap()"),)),
    Wrong("swapin-leaves-mapped", "swap-in faults with the table mapped",
        "pmd:swapped", (9,),
        (Edit(*SWAP_IN,
            "pte.unmap()\n"
            "pte = None",
            "pte = None"),)),
    Wrong("scan-leaves-mapped", "the scan leaves the table mapped",
        "pmd+scan", (9,),
        (Edit(*SCANNING,
            "with pte, pte.table.ptl.lock(): ...",
            "with pte.table.ptl.lock():\n"
            " kernel.machine.path(scan_ptes)(scan, pte)\n"
            " scan.check_referenced()"),)),
    Wrong("scan-after-unmap", "the scan reads the table after it was unmapped",
        "pmd+scan", (10,),
        (Edit(*SCANNING,
            "scan.check_referenced()",
            "_\n"
            "pte.unmap()\n"
            "pte.get(0)"),)),
    Wrong("folio-used-after-put", "the last page's flags are looked at once it was let go",
        "pmd pmd:large", (),
        (Edit(*COPIED,
            "mem.folio_put(src, nr_ptes)",
            "_\n"
            "mem.test(src, 1)"),),
        passes="the LRU batch holds a reference of each source that was let go"),
    Wrong("new-folio-put-and-used", "the new folio is put before it is filled",
        "pmd", (1, 3, 5, 8, 11),
        (Edit(*COPYING,
            "for i in range(1 << order): ...",
            "mem.folio_put(folio)\n"
            "_"),)),
    # Rights, bits and flags
    Wrong("pmd-writable", "a huge PMD is made writable in a VMA that may not be",
        "pmd+read-only", (14,),
        (Edit(*BY_PMD, "WRITE if vma.vm_flags & VM_WRITE else 0", "WRITE"),)),
    Wrong("ptes-writable", "the PTEs are made writable in a VMA that may not be",
        "window+read-only", (14,),
        (Edit(*BY_PTES, "if vma.vm_flags & VM_WRITE: ...", "flags |= WRITE | DIRTY | SOFT_DIRTY"),)),
    Wrong("ptes-protected", "the new PTEs are write-protected for userfaultfd",
        "window", (14,),
        (Edit(*INSTALL_PTES,
            "with pte.table.ptl.lock(): ...",
            "with pte.table.ptl.lock():\n"
            " pmd_populate(pmd, pmd_pgtable(orig_pmd))\n"
            " map_anon_folio_pte_nopf(kernel, folio, pte, vma, start_addr, uffd_wp=True)"),)),
    Wrong("pmd-not-young", "the huge PMD is not young",
        "pmd", (16,),
        (Edit(*BY_PMD, "YOUNG | DIRTY | SOFT_DIRTY", "DIRTY | SOFT_DIRTY"),)),
    Wrong("pmd-not-dirty", "the huge PMD is not dirty",
        "pmd", (16,),
        (Edit(*BY_PMD, "YOUNG | DIRTY | SOFT_DIRTY", "YOUNG | SOFT_DIRTY"),)),
    Wrong("pmd-not-soft-dirty", "the huge PMD is not soft-dirty",
        "pmd", (8,),
        (Edit(*BY_PMD, "YOUNG | DIRTY | SOFT_DIRTY", "YOUNG | DIRTY"),)),
    Wrong("ptes-not-young", "the PTEs are not young",
        "window", (16,),
        (Edit(*BY_PTES, "flags = YOUNG", "flags = 0"),)),
    Wrong("ptes-not-dirty", "the PTEs are not dirty",
        "window", (16,),
        (Edit(*BY_PTES, "flags |= WRITE | DIRTY | SOFT_DIRTY", "flags |= WRITE | SOFT_DIRTY"),)),
    Wrong("ptes-not-soft-dirty", "the PTEs are not soft-dirty",
        "window", (8,),
        (Edit(*BY_PTES, "flags |= WRITE | DIRTY | SOFT_DIRTY", "flags |= WRITE | DIRTY"),)),
    Wrong("not-exclusive", "the new folio is not marked exclusive",
        "pmd", (16,),
        (Edit(*BY_PMD,
            "folio_add_new_anon_rmap(...)",
            "folio_add_new_anon_rmap(kernel.mem, folio, vma, haddr, exclusive=False, "
            "pmd_mapped=True)"),)),
    Wrong("not-exclusive-by-ptes", "the same of a folio mapped by PTEs",
        "window", (16,),
        (Edit(*BY_PTES,
            "folio_add_new_anon_rmap(...)",
            "folio_add_new_anon_rmap(mem, folio, vma, address, exclusive=False)"),)),
    Wrong("not-up-to-date", "the new folio is not marked up to date",
        "pmd", (3, 16),
        (Edit("khugepaged.install", "__folio_mark_uptodate",
            "kernel.mem.flags.store_bits(folio, PG_UPTODATE)"),)),
    Wrong("no-barrier", "no barrier stands between contents and mapping",
        "pmd+weak:load", (3,),
        (Edit("khugepaged.install", "__folio_mark_uptodate", "kernel.machine.smp_wmb()"),)),
    Wrong("not-swap-backed", "the new folio is not marked swap-backed",
        "pmd", (16,),
        (Edit("mm.rmap", "folio_add_new_anon_rmap", "if not vma.vm_flags & VM_DROPPABLE: ..."),)),
    Wrong("not-on-lru", "the new folio is not put on the LRU",
        "pmd", (5,),
        (Edit(*BY_PMD, "folio_add_lru_vma(...)"),)),
    Wrong("on-lru-twice", "the new folio is put on the LRU twice",
        "pmd", (3, 4, 5, 8, 9, 11),
        (Edit(*BY_PMD,
            "folio_add_lru_vma(...)",
            "_\n"
            "_"),)),
    Wrong("new-folio-merged", "the new folio is marked as merged",
        "pmd", (16,),
        (Edit("khugepaged.install", "__folio_mark_uptodate",
            "kernel.mem.flags.store_bits(folio, PG_UPTODATE)",
            "_\n"
            "kernel.mem.set(folio, 1 << 11)"),)),
    Wrong("pte-special", "the new PTEs are marked special",
        "window", (16,),
        (Edit(*BY_PTES, "flags = YOUNG", "flags = YOUNG | 64"),)),
    Wrong("pmd-no-access", "the huge PMD lets no access through",
        "pmd", (16,),
        (Edit(*BY_PMD, "YOUNG | DIRTY | SOFT_DIRTY", "YOUNG | DIRTY | SOFT_DIRTY | 512"),)),
    Wrong("not-mlocked", "the new folio of a locked VMA is not mlocked",
        "pmd+locked", (16,),
        (Edit("mm.folio", "folio_add_lru_vma",
            "vma.vm_flags & (VM_LOCKED | VM_SPECIAL) == VM_LOCKED",
            "False"),)),
    Wrong("sources-not-on-lru", "sources of an attempt that failed are not put back on the LRU",
        "pmd:poisoned", (5,),
        (Edit("khugepaged.isolate", "release_pte_folio",
            "folio_putback_lru(...)",
            "kernel.mem.folio_put(folio)"),)),
    Wrong("sources-left-isolated", "sources of an attempt that failed stay counted as isolated",
        "pmd:poisoned", (5,),
        (Edit("khugepaged.isolate", "release_pte_folio", "folio_clear_isolated(...)"),)),
    Wrong("sources-left-locked", "sources of an attempt that failed stay locked",
        "pmd", (3, 4, 5, 8, 11),
        (Edit("khugepaged.isolate", "release_pte_folio", "kernel.mem.folio_unlock(folio)"),)),
    Wrong("sources-young-lost", "the entries of an attempt that failed come back old",
        "pmd:poisoned", (9, 11),
        (Edit(*NOT_COPIED,
            "path(release_pte_pages)(...)",
            "for i in range(1 << order):\n"
            "  if pte.get(i) & 1:\n"
            "   pte.ptes.clear_bits(pte.base + i, 4)\n"
            "_"),)),
    # Counts and charges
    Wrong("references-not-added", "the new folio has one reference, however many PTEs map it",
        "window", (5,),
        (Edit(*BY_PTES, "mem.folio_ref_add(folio, nr - 1)"),)),
    Wrong("reference-too-many", "the new folio has a reference too many",
        "window", (5,),
        (Edit(*BY_PTES, "mem.folio_ref_add(folio, nr - 1)", "mem.folio_ref_add(folio, nr)"),)),
    Wrong("reference-put-after-install", "the allocation's reference is put though the folio was installed",
        "pmd", (1, 5, 11),
        (Edit(*COLLAPSING, "new.installed = True"),)),
    Wrong("folio-leaked", "the new folio is not put where the collapse is refused",
        "pmd:poisoned", (5,),
        (Edit(*COLLAPSING,
            "_replace(vma, start_addr, pmd, new.folio, cc, order)\n"
            "new.installed = True",
            "_2\n"
            "_1"),)),
    Wrong("source-reference-kept", "the sources' references are not put",
        "pmd", (5,),
        (Edit(*COPIED, "mem.folio_put(src, nr_ptes)"),)),
    Wrong("source-reference-put-once", "one reference of a source is put, however many PTEs mapped it",
        "pmd:large", (5,),
        (Edit(*COPIED, "mem.folio_put(src, nr_ptes)", "mem.folio_put(src)"),)),
    Wrong("rmap-kept", "the sources' mapcounts stay",
        "pmd", (3, 4, 5, 8, 11),
        (Edit(*COPIED, "folio_remove_rmap_ptes(...)"),)),
    Wrong("rmap-of-one-page", "one mapping of a source is taken off, however many PTEs are cleared",
        "pmd:large", (3, 5, 6, 8, 11),
        (Edit(*COPIED,
            "folio_remove_rmap_ptes(...)",
            "folio_remove_rmap_ptes(mem, cpu, src, page, 1, vma)"),)),
    Wrong("filled-not-counted", "pages filled from holes are not counted",
        "pmd", (5,),
        (Edit(*COPIED, "vma.vm_mm.counters[MM_ANONPAGES] += filled"),)),
    Wrong("all-pages-counted", "every page of the window is counted as new",
        "pmd", (5,),
        (Edit(*COPIED,
            "vma.vm_mm.counters[MM_ANONPAGES] += filled",
            "vma.vm_mm.counters[MM_ANONPAGES] += nr_pages"),)),
    Wrong("zero-page-not-cleared", "PTEs of the zero page are not cleared",
        "pmd:zero-fault", (6,),
        (Edit(*COPIED, "if not pte_none(pteval): ..."),)),
    Wrong("ptes-not-cleared", "the PTEs of the sources are not cleared",
        "pmd", (6,),
        (Edit(*COPIED, "clear_ptes(pte, i, nr_ptes)"),)),
    Wrong("first-pte-cleared", "of a batch only the first PTE is cleared",
        "pmd:large", (6,),
        (Edit(*COPIED, "clear_ptes(pte, i, nr_ptes)", "clear_ptes(pte, i, 1)"),)),
    Wrong("not-charged", "the new folio is charged to nobody",
        "pmd+memcg", (5,),
        (Edit(*ALLOCATING, "if not mem_cgroup_charge(...): ..."),)),
    Wrong("charged-twice", "the new folio is charged twice",
        "window+memcg:swap-out-neighbour", (5,),
        (Edit(*ALLOCATING,
            "if not mem_cgroup_charge(...): ...",
            "mem_cgroup_charge(folio, mm, Gfp.TRANSHUGE)\n"
            "_"),)),
    Wrong("charge-failed-leaks", "a folio that could not be charged is not put",
        "pmd+memcg:fault", (5,),
        (Edit(*ALLOCATING,
            "if not mem_cgroup_charge(...): ...",
            "if not mem_cgroup_charge(folio, mm, Gfp.TRANSHUGE):\n"
            " raise Refused(ScanResult.CGROUP_CHARGE_FAIL)"),)),
    Wrong("charge-failed-goes-on", "a folio that could not be charged is used all the same",
        "pmd+memcg:uffd-copy", (5,),
        (Edit(*ALLOCATING,
            "if not mem_cgroup_charge(...): ...",
            "mem_cgroup_charge(folio, mm, Gfp.TRANSHUGE)"),)),
    Wrong("swap-slot-kept", "a source's swap slot is not given up",
        "pmd:swap-in pmd:swapped pmd:writeback pmd:swap-out pmd:swap-cache-free", (),
        (Edit(*COPIED,
            "free_swap_cache(kernel, src)\n"
            "mem.folio_put(src, nr_ptes)",
            "_2"),),
        passes="the copy stays in the swap cache until reclaim gives it up, as after a zap"),
    # Flushes, IPIs and notifiers
    Wrong("flush-omitted", "nothing is flushed",
        "pmd:store", (2,),
        (Edit(*FLUSH, "flush_tlb_mm_range(...)"),)),
    Wrong("flush-one-page", "the first page alone is flushed",
        "window+second:store", (2,),
        (Edit(*FLUSH, "pmd_addr + mm.geometry.pmd_size", "pmd_addr + mm.geometry.page_size"),)),
    Wrong("flush-window", "the window alone is flushed",
        "window+second:store", (2,),
        (Edit(*FLUSH, "pmd_addr + mm.geometry.pmd_size", "pmd_addr + 2 * mm.geometry.page_size"),)),
    Wrong("flush-before-clear", "the flush comes before the PMD is cleared",
        "pmd:store", (2,),
        (Edit(*FLUSH,
            "old = pmd.page.pmds.swap(...)\n"
            "flush_tlb_mm_range(...)",
            "_2\n"
            "_1"),)),
    Wrong("ipi-omitted", "walkers without locks are not waited for",
        "pmd:gup+zap", (1,),
        (Edit(*REPLACING, "tlb_remove_table_sync_one(...)"),)),
    Wrong("ipi-before-clear", "walkers without locks are waited for before the PMD is cleared",
        "pmd:gup+zap", (1,),
        (Edit(*REPLACING,
            "with mmu_notifier_invalidate_range(...), pmd_lock(pmd): ...\n"
            "tlb_remove_table_sync_one(...)",
            "_2\n"
            "_1"),)),
    Wrong("notifier-omitted", "secondary MMUs are not told",
        "pmd:guest", (1, 2, 3),
        (Edit(*REPLACING, "mmu_notifier_invalidate_range(...)"),)),
    Wrong("notifier-of-nothing", "secondary MMUs are told of an empty range",
        "pmd:guest", (1, 2, 3),
        (Edit(*REPLACING,
            "mmu_notifier_invalidate_range(mm, start_addr, end_addr)",
            "mmu_notifier_invalidate_range(mm, start_addr, start_addr)"),)),
    Wrong("notifier-of-the-table-before", "secondary MMUs are told of the range before the window",
        "pmd:guest", (1, 2, 3),
        (Edit(*REPLACING,
            "mmu_notifier_invalidate_range(mm, start_addr, end_addr)",
            "mmu_notifier_invalidate_range(mm, start_addr - kernel.geometry.pmd_size, start_addr)"),)),
    # Orders, deposits and aborts
    Wrong("not-deposited", "the table is not deposited",
        "pmd", (6,),
        (Edit(*INSTALL_PMD, "pgtable_trans_huge_deposit(...)"),)),
    Wrong("another-table-deposited", "another table is deposited",
        "pmd", (6,),
        (Edit(*INSTALL_PMD,
            "pgtable_trans_huge_deposit(...)",
            "pgtable_trans_huge_deposit(pmd, kernel.new_table().number)"),)),
    Wrong("deposited-twice", "the table is deposited twice",
        "pmd", (6,),
        (Edit(*INSTALL_PMD,
            "pgtable_trans_huge_deposit(...)",
            "_\n"
            "_"),)),
    Wrong("deposited-full", "the table is deposited with its PTEs in it",
        "pmd", (6,),
        (Edit(*COPIED, "clear_ptes(pte, i, nr_ptes)"),)),
    Wrong("deposited-after-mapping", "the huge PMD is set before the table is deposited",
        "pmd pmd:gup pmd:zap pmd:move-pages", (),
        (Edit(*INSTALL_PMD,
            "pgtable_trans_huge_deposit(...)\n"
            "map_anon_folio_pmd_nopf(...)",
            "_2\n"
            "_1"),),
        passes="both are done under the pmd lock, and nobody looks at deposits without it"),
    Wrong("another-table-restored", "another table is put back after a refusal",
        "pmd:poisoned", (3, 4, 5, 6, 11),
        (Edit("khugepaged.install", "restore_pmd",
            "pmd_populate(...)",
            "pmd_populate(pmd, kernel.new_table().number)"),)),
    Wrong("not-restored", "the table is not put back after a refusal",
        "pmd:poisoned", (3, 4, 5, 6, 11),
        (Edit("khugepaged.install", "restore_pmd", "pmd_populate(...)"),)),
    Wrong("not-restored-after-copy", "the table is not put back after a copy that failed",
        "pmd:poisoned", (3, 4, 5, 6, 11),
        (Edit(*NOT_COPIED, "with pmd_lock(pmd): ..."),)),
    Wrong("restored-after-release", "after a copy that failed the sources go before the table is back",
        "pmd:poisoned pmd:hwpoison window:poisoned pmd:poisoned+swap-out pmd:store-poisoned", (),
        (Edit(*NOT_COPIED,
            "with pmd_lock(pmd): ...\n"
            "path(release_pte_pages)(...)",
            "_2\n"
            "_1"),),
        passes="walks by rmap that meet no table give up and leave the folio as it is"),
    Wrong("released-short", "a refusal lets go of all sources but the last",
        "pmd:swap-in", (5, 9, 11),
        (Edit("khugepaged.isolate", "release_pte_pages", "range(nr - 1, -1, -1)", "range(nr - 2, -1, -1)"),)),
    Wrong("released-too-many", "a refusal lets go of one source more than it took",
        "pmd:poisoned", (3, 4, 5, 6, 9),
        (Edit("khugepaged.isolate", "__collapse_huge_page_isolate",
            "if isolation.done: ...",
            "path(release_pte_pages)(pte, isolation.done + 1, isolation.compound_pagelist)"),)),
    Wrong("large-not-released", "a refusal lets go of no large folio",
        "pmd:large-poisoned", (5, 9, 11),
        (Edit("khugepaged.isolate", "release_pte_pages", "for folio in compound_pagelist: ..."),)),
    Wrong("large-released-once-a-page", "a refusal lets go of a large folio once for each of its PTEs",
        "pmd:large-poisoned", (9,),
        (Edit("khugepaged.isolate", "release_pte_pages",
            "if not mem.folio_test_large(folio): ...",
            "release_pte_folio(kernel, folio)"),)),
    Wrong("large-isolated-twice", "a large folio is isolated once for each of its PTEs",
        "pmd:large window:large", (),
        (Edit("khugepaged.isolate", "take_page",
            "if folio not in self.compound_pagelist: ...",
            "self.lock_and_isolate(folio)"),),
        passes="the second attempt at the lock fails: such windows are refused, never taken wrongly"),
    Wrong("published-before-copy", "the PMD is back before the pages are copied",
        "pmd", (7,),
        (Edit(*REPLACING,
            "if is_pmd_order: leaving.anon_vma.release()",
            "_\n"
            "restore_pmd(kernel, pmd, orig_pmd)"),)),
    Wrong("populated-twice", "below PMD order the table is linked twice",
        "window window:migrate-neighbour", (),
        (Edit(*INSTALL_PTES,
            "with pte.table.ptl.lock(): ...",
            "pmd_populate(pmd, pmd_pgtable(orig_pmd))\n"
            "_"),),
        passes="the same value is written twice"),
    Wrong("ptes-cleared-before-copy", "the PTEs are cleared before the pages are copied",
        "pmd", (3, 4, 5, 9),
        (Edit(*COPYING,
            "for i in range(1 << order): ...",
            "clear_ptes(pte, 0, 1 << order)\n"
            "_"),)),
    Wrong("retry-taken-for-done", "a swap-in that let go of mmap_lock is taken for done",
        "pmd:swap-in-large", (10,),
        (Edit(*SWAP_IN, "if fault is VmFault.RETRY: ...", "if fault is VmFault.RETRY: continue"),)),
    Wrong("swapin-error-taken-for-done", "a swap-in that failed is taken for done",
        "pmd:swapped pmd:swap-in", (),
        (Edit(*SWAP_IN, "if fault is VmFault.ERROR: ..."),),
        passes="the entry is still there: isolate refuses"),
    Wrong("batches-not-drained", "after a swap-in the batches are not emptied",
        "pmd:swapped pmd:swap-in", (),
        (Edit(*SWAP_IN, "if swapped_in: ..."),),
        passes="the pages that came in have a reference too many: isolate refuses"),
    Wrong("swapin-below-pmd-order", "below PMD order pages are swapped in too",
        "window:swapped window:swap-in", (),
        (Edit(*SWAP_IN, "if order != mm.geometry.pmd_order: ..."),),
        passes="a policy: the pages come in, and are collapsed properly"),
    # Scans, the daemon, MADV_COLLAPSE, and more of the above
    Wrong("scanned-without-pte-lock", "the scan takes no PTE lock",
        "pmd+scan:zap", (1,),
        (Edit(*SCANNING, "pte.table.ptl.lock()"),)),
    Wrong("scan-refusal-keeps-map", "a scan that is refused leaves the table mapped",
        "pmd+scan:zap-locked", (9,),
        (Edit(*SCANNING,
            "with pte, pte.table.ptl.lock(): ...",
            "with pte.table.ptl.lock():\n"
            " kernel.machine.path(scan_ptes)(scan, pte)\n"
            " scan.check_referenced()\n"
            "pte.unmap()"),)),
    Wrong("vma-unlocked-early", "the VMA is unlocked once the table is taken away",
        "pmd:fault", (9,),
        (Edit(*REPLACING,
            "tlb_remove_table_sync_one(...)",
            "_\n"
            "vma.vm_lock.unmark()"),)),
    Wrong("mmap-lock-let-go-before-install", "mmap_lock is let go before the new folio is installed",
        "pmd", (3, 5, 8, 10, 11),
        (Edit(*REPLACING,
            "__folio_mark_uptodate(kernel, folio)",
            "_\n"
            "next(h for h in kernel.machine.current.held if h.lock is mm.mmap_lock).release()"),)),
    Wrong("pmd-lock-of-another", "the lock of another page of PMDs is taken",
        "pmd", (9,),
        (Edit("mm.pgtable", "pmd_lock",
            "pmd.page.ptl.lock()",
            "pmd.page.ptl.__class__(pmd.page.ptl.machine, 'other', pmd.page.ptl.rank).lock()"),)),
    Wrong("wrong-table-locked", "the PTE lock of another table is taken",
        "pmd", (6,),
        (Edit(*REPLACING, "pte.table.ptl.lock()", "kernel.new_table().ptl.lock()"),
         Edit("khugepaged.isolate", "__collapse_huge_page_isolate", "pte.table.ptl.assert_held()"),)),
    Wrong("order-one-less", "the new folio is one order too small",
        "pmd", (1, 4, 15, 16),
        (Edit(*ALLOCATING,
            "kernel.mem.folio_alloc(order, node, cc.alloc_nmask, compact=compact)",
            "kernel.mem.folio_alloc(order - 1, node, cc.alloc_nmask, compact=compact)"),)),
    Wrong("order-one-more", "the new folio is one order too large",
        "window", (3, 4, 5, 7),
        (Edit(*ALLOCATING,
            "kernel.mem.folio_alloc(order, node, cc.alloc_nmask, compact=compact)",
            "kernel.mem.folio_alloc(order + 1, node, cc.alloc_nmask, compact=compact)"),)),
    Wrong("new-folio-put-twice", "where a collapse is refused, the new folio is put twice",
        "pmd:poisoned", (5,),
        (Edit("khugepaged.alloc", "__exit__",
            "self.kernel.mem.folio_put(self.folio)",
            "_\n"
            "_"),)),
    Wrong("old-folio-mapped", "below PMD order the old first page is mapped again beside the copy",
        "window", (5, 8, 16),
        (Edit(*COPIED,
            "vma.vm_mm.counters[MM_ANONPAGES] += filled",
            "_\n"
            "pte.ptes.write(pte.base, mem.prep_folio(0, 0) | 1)"),)),
    Wrong("sources-cleared", "the sources are overwritten before the copy is known to succeed",
        "pmd:store-poisoned", (3,),
        (Edit("khugepaged.copy", "copy_mc_user_highpage",
            "mem.content.write(to, mem.content.read(source))",
            "_\n"
            "mem.content.write(source, 0)"),)),
    Wrong("copied-before-isolated", "the pages are copied before they are locked and counted",
        "pmd:get", (2, 3),
        (Edit(*REPLACING,
            "pte = leaving.pte = pte_offset_map(...)",
            "_\n"
            "for i in range(1 << order):\n"
            "  if pte is not None and pte.get(i) & 1 and pte.get(i) >> 16:\n"
            "   kernel.mem.content.write(folio + i, kernel.mem.content.read(pte.get(i) >> 16))"),
         Edit("khugepaged.copy", "copy_mc_user_highpage",
            "mem.content.write(to, mem.content.read(source))"),)),
    Wrong("counted-after-copy-not-at-all", "counting stops at the first page",
        "pmd:get", (2, 3),
        (Edit(*ISOLATING,
            "mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio)",
            "self.done and mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio)"),)),
    Wrong("exclusive-kept-on-sources", "a copy that failed takes the sources' exclusive marks away",
        "pmd:poisoned", (16,),
        (Edit(*NOT_COPIED,
            "path(release_pte_pages)(...)",
            "for i in range(1 << order):\n"
            "  pte.kernel.mem.page_flags.clear_bits(pte.get(i) >> 16, 1)\n"
            "_"),)),
    Wrong("soft-dirty-lost-on-abort", "a copy that failed takes the soft-dirty marks away",
        "pmd:poisoned", (8, 11),
        (Edit(*NOT_COPIED,
            "path(release_pte_pages)(...)",
            "with pte.table.ptl.lock():\n"
            " for i in range(1 << order):\n"
            "  pte.ptes.clear_bits(pte.base + i, 16)\n"
            "_"),)),
    Wrong("abort-flags-referenced", "a refusal leaves the sources marked as referenced",
        "pmd:poisoned", (11,),
        (Edit("khugepaged.isolate", "release_pte_folio",
            "kernel.mem.folio_unlock(folio)",
            "kernel.mem.set(folio, 8)\n"
            "_"),)),
    Wrong("abort-counts", "a refusal counts pages as filled",
        "pmd:poisoned", (5,),
        (Edit(*NOT_COPIED,
            "path(release_pte_pages)(...)",
            "_\n"
            "pte.kernel.mms[0].counters[MM_ANONPAGES] += 1"),)),
    Wrong("daemon-keeps-dead-mm", "the daemon does not look whether the process has ended",
        "pmd+daemon:exit", (13,),
        (Edit("khugepaged.eligibility", "collapse_test_exit", "return ...", "return False"),)),
    Wrong("daemon-exit-no-wait", "khugepaged_exit() does not wait for the daemon",
        "pmd+daemon:exit pmd:exit", (),
        (Edit("khugepaged.daemon", "khugepaged_exit", "mm.mmap_write_lock()"),),
        passes="exit_mmap() takes mmap_lock itself, and the collapse asks for mm_users under it (E1)"),
    Wrong("daemon-cursor-unlocked", "the cursor moves without its lock",
        "pmd+daemon", (9,),
        (Edit("khugepaged.daemon", "collapse_scan_mm_slot",
            "with self.mm_lock.lock(): ...",
            "if finished or collapse_test_exit_or_disable(mm):\n"
            " self._advance(mm)"),)),
    Wrong("daemon-forgets-vma-end", "the daemon scans the table at a VMA's end whole",
        "window+two-vmas+daemon", (10,),
        (Edit("khugepaged.daemon", "_scan_vmas",
            "mm.geometry.pmd_addr(vma.vm_end)",
            "mm.geometry.pmd_align_up(vma.vm_end)"),)),
    Wrong("madvise-stale-end", "MADV_COLLAPSE keeps the end it had before mmap_lock was let go",
        "pmd+madvise:shrink-last", (10,),
        (Edit("khugepaged.madvise", "_collapse_ranges",
            "hend = min(hend, mm.geometry.pmd_addr(vma.vm_end))"),)),
    Wrong("madvise-stale-vma", "MADV_COLLAPSE keeps the VMA it had before mmap_lock was let go",
        "pmd+madvise:remap", (10,),
        (Edit("khugepaged.madvise", "_collapse_ranges",
            "vma = hugepage_vma_revalidate(...)",
            "hugepage_vma_revalidate(mm, address, Expect.ANY, cc, mm.geometry.pmd_order)"),)),
    Wrong("madvise-no-revalidation", "MADV_COLLAPSE does not look the VMA up again",
        "pmd+madvise:shrink-last", (10,),
        (Edit("khugepaged.madvise", "_collapse_ranges",
            "try: ...\n"
            "except Refused as refusal: ...\n"
            "hend = min(...)"),)),
    Wrong("rmap-order", "the new folio is mapped before rmap knows of it",
        "pmd", (4,),
        (Edit(*BY_PMD,
            "folio_add_new_anon_rmap(...)\n"
            "folio_add_lru_vma(...)\n"
            "pmd.page.pmds.write(...)",
            "_3\n"
            "_1\n"
            "_2"),)),
    Wrong("rmap-order-ptes", "the PTEs are set before rmap knows of the folio",
        "window", (4,),
        (Edit(*BY_PTES,
            "folio_add_new_anon_rmap(...)\n"
            "folio_add_lru_vma(...)\n"
            "set_ptes(...)",
            "_3\n"
            "_1\n"
            "_2"),)),
    Wrong("uptodate-after-mapping", "the new folio is marked up to date once it is mapped",
        "pmd+weak:load", (3,),
        (Edit(*REPLACING,
            "__folio_mark_uptodate(kernel, folio)\n"
            "if is_pmd_order: ...\n"
            "else: ...",
            "_2\n"
            "_1"),)),
    Wrong("counters-of-another", "filled pages are counted for the first process of all",
        "pmd:fork", (5,),
        (Edit(*COPIED,
            "vma.vm_mm.counters[MM_ANONPAGES] += filled",
            "kernel.mms[-1].counters[MM_ANONPAGES] += filled"),)),
    Wrong("flush-from-window", "the flush begins at the window, not at the table",
        "window+second:store-neighbour window+second:store", (),
        (Edit(*FLUSH, "flush_tlb_mm_range(...)", "_"),
         Edit(*REPLACING,
            "pmdp_collapse_flush(vma, pmd_addr, pmd)",
            "pmdp_collapse_flush(vma, start_addr, pmd)"),),
        passes="translations beside the window stay true, and links to the table are dropped whole"),
    Wrong("map-kept-in-the-end", "the table stays mapped in the end",
        "pmd", (9,),
        (Edit("khugepaged.collapse", "__exit__",
            "if self.pte is not None and self.order is UnmapOrder.BEFORE_ANON_VMA_UNLOCK: ..."),)),
    Wrong("anon-vma-kept-in-the-end", "anon_vma stays locked in the end",
        "window", (9,),
        (Edit("khugepaged.collapse", "__exit__", "if self.anon_vma.active: ..."),)),
    Wrong("not-linked-again", "below PMD order the table is not linked again",
        "window", (3, 4, 5, 6, 8),
        (Edit(*INSTALL_PTES,
            "with pte.table.ptl.lock(): ...",
            "with pte.table.ptl.lock():\n"
            " map_anon_folio_pte_nopf(kernel, folio, pte, vma, start_addr, uffd_wp=False)"),)),
    Wrong("another-table-linked", "below PMD order a new table is linked in the old one's place",
        "window", (3, 4, 5, 6, 8),
        (Edit(*INSTALL_PTES,
            "with pte.table.ptl.lock(): ...",
            "with pte.table.ptl.lock():\n"
            " pmd_populate(pmd, kernel.new_table().number)\n"
            " map_anon_folio_pte_nopf(kernel, folio, pte, vma, start_addr, uffd_wp=False)"),)),
    Wrong("anon-vma-assigned-wrong", "the new folio is given the anon_vma of another mapping",
        "pmd", (15,),
        (Edit("mm.rmap", "folio_add_new_anon_rmap",
            "mem.anon_vma.raw[folio] = vma.anon_vma.number",
            "mem.anon_vma.raw[folio] = vma.vm_mm.kernel.new_anon_vma().number"),)),
    Wrong("result-told-wrong", "a copy that failed is told as a success",
        "pmd:poisoned", (3, 4, 5, 6, 7),
        (Edit(*COPYING, "raise Refused(ScanResult.COPY_MC)", "return"),)),
    Wrong("pmd-order-of-a-window", "a window below PMD order is installed by the PMD",
        "window", (3, 4, 5, 6, 15, 16),
        (Edit(*REPLACING, "order == kernel.geometry.pmd_order", "True"),)),
    Wrong("ptes-for-a-table", "a whole table is installed by PTEs",
        "pmd", (),
        (Edit(*REPLACING, "order == kernel.geometry.pmd_order", "False"),),
        passes="what is read and counted is right; that the table is not huge costs speed alone"),
    # What was learnt is used later than it holds
    Wrong("pmd-read-after-flush", "the old value of the PMD is read once it is cleared",
        "pmd", (3, 4, 5, 6, 8, 11),
        (Edit(*REPLACING,
            "orig_pmd = pmdp_collapse_flush(vma, pmd_addr, pmd)",
            "pmdp_collapse_flush(vma, pmd_addr, pmd)\n"
            "from mthp.mm.pgtable import pmdp_get_lockless\n"
            "orig_pmd = pmdp_get_lockless(pmd)"),)),
    Wrong("flags-learnt-early", "the flags that the mapping had at the first lookup are used at the end",
        "window:mprotect", (14,),
        (Edit(*COLLAPSING, "pmd = find_pmd_or_thp_or_none(mm, pmd_addr)",
            "_\nearly = vma.vm_flags"),
         Edit(*COLLAPSING, "check_pmd_still_valid(mm, pmd_addr, pmd)",
            "_\nvma.vm_flags = early"),)),
    Wrong("ptes-learnt-before-flush", "the PTEs that are copied were read before the table was taken away",
        "pmd:swap-out", (1, 3, 5, 15, 16),
        (Edit(*REPLACING, "is_pmd_order = order == kernel.geometry.pmd_order",
            "_\n"
            "from mthp.mm.pgtable import pmdp_get_lockless\n"
            "with pte_offset_map(kernel, pmdp_get_lockless(pmd), start_addr) as seen:\n"
            " early = [seen.get(i) for i in range(1 << order)]"),
         Edit(*REPLACING, "pte = leaving.pte = pte_offset_map(kernel, orig_pmd, start_addr)",
            "_\n"
            "if pte is not None:\n"
            " with pte.table.ptl.lock():\n"
            "  for i in range(1 << order):\n"
            "   pte.ptes.write(pte.base + i, early[i])"),)),
    # Others are kept out too late, or not at all
    Wrong("ipi-after-isolate", "walkers without locks are waited for once the references are counted",
        "pmd:gup pmd:get pmd:perf", (),
        (Edit(*REPLACING, "tlb_remove_table_sync_one(...)"),
         Edit(*REPLACING, "if is_pmd_order: leaving.anon_vma.release()",
            "tlb_remove_table_sync_one(kernel.cpus, kernel.this_cpu.number)\n_"),),
        passes="GUP-fast looks at the PMD again once it holds its reference, and lets go of it; the table is "
        "not touched before the wait"),
    Wrong("flush-after-copy", "the TLBs are flushed once the pages are copied",
        "pmd:store", (2, 3),
        (Edit(*FLUSH, "flush_tlb_mm_range(...)"),
         Edit(*REPLACING, "__folio_mark_uptodate(kernel, folio)",
            "from mthp.mm.pgtable import flush_tlb_mm_range\n"
            "flush_tlb_mm_range(mm, pmd_addr, pmd_addr + kernel.geometry.pmd_size)\n_"),)),
    Wrong("flush-after-isolate", "the TLBs are flushed once the references are counted, before the copy",
        "pmd:store pmd:gup pmd:migrate pmd:store-both", (),
        (Edit(*FLUSH, "flush_tlb_mm_range(...)"),
         Edit(*REPLACING, "if is_pmd_order: leaving.anon_vma.release()",
            "from mthp.mm.pgtable import flush_tlb_mm_range\n"
            "flush_tlb_mm_range(mm, pmd_addr, pmd_addr + kernel.geometry.pmd_size)\n_"),),
        passes="stores that still come through a TLB reach the sources before they are copied"),
    Wrong("flush-of-another", "another process is flushed",
        "pmd:store", (2, 3),
        (Edit(*FLUSH, "flush_tlb_mm_range(mm, pmd_addr, pmd_addr + mm.geometry.pmd_size)",
            "flush_tlb_mm_range(mm.kernel.new_mm(9), pmd_addr, pmd_addr + mm.geometry.pmd_size)"),)),
    Wrong("anon-vma-for-reading", "anon_vma is locked for reading",
        "window:migrate-neighbour", (4, 5),
        (Edit(*REPLACING, "anon_vma_lock_write(vma.anon_vma)", "vma.anon_vma.rwsem.read()"),)),
    Wrong("notifier-never-ends", "secondary MMUs are never told that they may map again",
        "pmd:guest", (9,),
        (Edit(*REPLACING, "with mmu_notifier_invalidate_range(mm, start_addr, end_addr), pmd_lock(pmd): ...",
            "mmu_notifier_invalidate_range(mm, start_addr, end_addr).__enter__()\n"
            "with pmd_lock(pmd): orig_pmd = pmdp_collapse_flush(vma, pmd_addr, pmd)"),)),
    Wrong("restored-after-anon-vma", "a table is put back after a refusal once anon_vma is let go",
        "window:poisoned", (4, 5),
        (Edit(*REPLACING, "restore_pmd(kernel, pmd, orig_pmd)",
            "leaving.anon_vma.release()\n_"),)),
    # The wrong thing is taken
    Wrong("vma-behind", "the VMA behind the table's is locked and used",
        "pmd+madvise:remap-last", (13, 15),
        (Edit(*COLLAPSING, "vma_start_write(vma)",
            "vma = mm.find_vma(vma.vm_end) or vma\n_"),)),
    Wrong("vma-of-another-process", "the VMA is looked up in the process that was forked last",
        "pmd:fork", (9,),
        (Edit(*COLLAPSING, "vma = hugepage_vma_revalidate(...)\nvma_start_write(vma)",
            "vma = kernel.mms[-1].find_vma(pmd_addr)\n"
            "if vma is None:\n raise Refused(ScanResult.VMA_NULL)\n_2"),)),
    Wrong("copied-after-release", "the pages are copied once they are let go",
        "pmd:large", (1,),
        (Edit(*COPYING, "for i in range(1 << order): ...",
            "values = [pte.get(i) for i in range(1 << order)]\n"
            "done = __collapse_huge_page_copy_succeeded(pte, vma, order, compound_pagelist)\n"
            "for i, pteval in enumerate(values):\n"
            " if pte_none_or_zero(pteval):\n"
            "  mem.content.write(folio + i, 0)\n"
            " else:\n"
            "  copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval))"),
         Edit(*COPYING, "filled = __collapse_huge_page_copy_succeeded(...)", "filled = done"))),
    Wrong("zero-page-not-filled", "a PTE of the zero page is not counted as filled",
        "pmd:zero-fault", (5,),
        (Edit(*COPIED, "filled += 1", "filled += pte_none(pteval)"),)),
    Wrong("rights-of-first-page", "the new entry has the flags of the window's first PTE",
        "pmd+huge:zap-page", (8, 16),
        (Edit(*REPLACING, "__folio_mark_uptodate(kernel, folio)",
            "_\nkernel.first = first"),
         Edit(*REPLACING, "pte = leaving.pte = pte_offset_map(kernel, orig_pmd, start_addr)",
            "_\nfirst = pte.get(0) if pte is not None else 0"),
         Edit(*BY_PMD, "huge_pmd(folio, flags)", "huge_pmd(folio, kernel.first & 0xfffe)"),)),
    # What is not the collapse's to change
    Wrong("scan-clears-young", "the scan takes the young marks away that it counts",
        "pmd+scan", (11,),
        (Edit("khugepaged.scan", "take_page", "self.referenced += 1",
            "_\n"
            "for table in self.kernel.tables.values():\n"
            " if table.ptes.raw[i] == pteval:\n"
            "  table.ptes.clear_bits(i, 4)"),)),
    Wrong("isolate-clears-dirty", "isolate takes the dirty marks away",
        "pmd:poisoned", (11,),
        (Edit("khugepaged.isolate", "isolate_ptes",
            "pteval = pte.get(i)",
            "_\npte.ptes.clear_bits(pte.base + i, 8)"),)),
    Wrong("sources-cleaned", "the sources are marked clean before the copy is known to succeed",
        "pmd:poisoned", (11,),
        (Edit(*COPYING, "pteval = pte.get(i)",
            "_\nif not pte_none_or_zero(pteval):\n"
            " mem.flags.clear_bits(mem.page_folio(pte_pfn(pteval)), 16)"),)),
    Wrong("mlocked-anyway", "the new folio is marked as mlocked in a VMA that is not locked",
        "pmd", (16,),
        (Edit(*BY_PMD, "folio_add_lru_vma(...)", "_\nkernel.mem.set(folio, 128)"),)),
    Wrong("sources-not-munlocked", "the sources of a locked VMA are unmapped as if it were not",
        "pmd+locked window+locked", (),
        (Edit(*COPIED, "folio_remove_rmap_ptes(mem, cpu, src, page, nr_ptes, vma)",
            "flags, vma.vm_flags = vma.vm_flags, 0\n"
            "_\nvma.vm_flags = flags"),),
        passes="they are freed at once, and the mark goes with the last reference"),
    Wrong("table-freed-too", "the table is freed although it is deposited",
        "pmd", (6,),
        (Edit(*INSTALL_PMD, "pgtable_trans_huge_deposit(...)",
            "_\nfrom mthp.mm.pgtable import pte_free\n"
            "pte_free(kernel.tables[pmd_pgtable(orig_pmd)])"),)),
    Wrong("daemon-waits-under-spinlock", "the daemon waits for mmap_lock under khugepaged_mm_lock",
        "pmd+daemon", (9,),
        (Edit("khugepaged.daemon", "collapse_scan_mm_slot", "mmap_lock = mm.mmap_read_trylock()",
            "with self.mm_lock.lock():\n mmap_lock = mm.mmap_read_lock()"),)),
    Wrong("guard-omitted", "that the PMD is still none is not looked at before it is set",
        "pmd pmd:fault pmd:zap window", (),
        (Edit(*INSTALL_PMD, "guard_pmd_none(kernel, pmd)"),
         Edit(*INSTALL_PTES, "guard_pmd_none(kernel, pmd)"),
         Edit(INSTALL, "restore_pmd", "guard_pmd_none(kernel, pmd)"),),
        passes="it still is none: the guard only tells of the faults of others"),
    Wrong("two-lock-sections", "the pmd lock is let go between the deposit and the mapping",
        "pmd pmd:fault pmd:migrate pmd:zap", (),
        (Edit(*INSTALL_PMD, "with pmd_lock(pmd): ...",
            "with pmd_lock(pmd):\n pgtable_trans_huge_deposit(pmd, pmd_pgtable(orig_pmd))\n"
            "with pmd_lock(pmd):\n map_anon_folio_pmd_nopf(kernel, folio, pmd, vma, pmd_addr)"),),
        passes="every page is locked, and faults wait for the VMA: no task looks at the PMD meanwhile"),
    Wrong("lru-before-mapped", "the new folio is on the LRU before it is filled",
        "pmd pmd:migrate pmd:hwpoison", (),
        (Edit(*BY_PMD, "folio_add_lru_vma(...)"),
         Edit(*REPLACING, "tlb_remove_table_sync_one(...)",
            "_\nfrom mthp.mm.folio import folio_add_lru_vma\n"
            "folio_add_lru_vma(kernel.mem, kernel.this_cpu, folio, vma)"),),
        passes="no rival takes folios off the LRU but those that it finds by a mapping"),
    Wrong("next-slot", "the huge PMD is set in the next slot",
        "pmd", (6, 11),
        (Edit(*COLLAPSING, "_replace(vma, start_addr, pmd, new.folio, cc, order)",
            "from mthp.mm.pgtable import pmd_ptr\n"
            "slot = pmd_ptr(mm, pmd_addr + kernel.geometry.pmd_size, create=True)\n"
            "_replace(vma, start_addr, slot, new.folio, cc, order)"),)),
    # Once more of the above kinds
    Wrong("revalidated-at-window", "both revalidations are of the window's address",
        "window+two-vmas window+second:shrink window:shrink", (),
        (Edit(*COLLAPSING,
            "with mm.mmap_read_lock() as mmap_lock: ...",
            "with mm.mmap_read_lock() as mmap_lock:\n"
            " vma = hugepage_vma_revalidate(mm, start_addr, Expect.ANON, cc, order)\n"
            " pmd = find_pmd_or_thp_or_none(mm, pmd_addr)"),
         Edit(*COLLAPSING,
            "vma = hugepage_vma_revalidate(...)\n"
            "vma_start_write(vma)",
            "vma = hugepage_vma_revalidate(mm, start_addr, Expect.ANON, cc, order)\n"
            "_2"),),
        passes="whether the VMA spans the table is found from any address in it"),
    Wrong("revalidated-any", "the second revalidation lets a file's mapping pass",
        "pmd:remap-file", (3,),
        (Edit(*COLLAPSING,
            "vma = hugepage_vma_revalidate(...)\n"
            "vma_start_write(vma)",
            "vma = hugepage_vma_revalidate(mm, pmd_addr, Expect.ANY, cc, order)\n"
            "_2"),),),
    Wrong("pmd-pointer-kept", "that the same page of PMDs still stands there is not looked at",
        "pmd:remap pmd:mremap pmd:remap-tail", (),
        (Edit(*COLLAPSING,
            "check_pmd_still_valid(mm, pmd_addr, pmd)",
            "from mthp.khugepaged.revalidate import check_pmd_state\n"
            "check_pmd_state(pmd)"),),
        passes="no page of PMDs is freed before its process ends, and what is mapped meanwhile is refused"),
    Wrong("last-vma-of-mm", "the last VMA of the process is locked and used",
        "pmd+madvise:remap-last", (13, 15),
        (Edit(*COLLAPSING,
            "vma_start_write(vma)",
            "vma = mm.vmas[-1]\n"
            "_"),),),
    Wrong("madvise-lookup-only", "MADV_COLLAPSE only looks whether a VMA is there",
        "pmd+madvise:remap-last pmd+madvise:shrink-last", (),
        (Edit(*MADVISING,
            "vma = hugepage_vma_revalidate(...)",
            "vma = mm.find_vma(address)\n"
            "if vma is None:\n"
            " raise Refused(ScanResult.VMA_NULL)"),),
        passes="collapse_huge_page() looks at all of it again, under its own locks"),
    Wrong("madvise-no-lock", "MADV_COLLAPSE goes on without mmap_lock",
        "pmd+madvise", (10,),
        (Edit(*MADVISING,
            "if current is None or not current.active: ..."),),),
    Wrong("daemon-goes-on", "the daemon goes on in the VMA after mmap_lock was let go",
        "pmd+daemon", (10,),
        (Edit("khugepaged.daemon", "collapse_scan_tables",
            "if not mmap_lock.active or cc.progress >= progress_max: ...",
            "pass"),),),
    Wrong("ipi-to-one", "only the first CPU is waited for",
        "pmd:gup+zap", (1,),
        (Edit(*REPLACING,
            "tlb_remove_table_sync_one(kernel.cpus, kernel.this_cpu.number)",
            "tlb_remove_table_sync_one(kernel.cpus[:1], kernel.this_cpu.number)"),),),
    Wrong("copied-from-next", "each page is copied from the frame behind it",
        "pmd", (1, 3),
        (Edit(*COPYING,
            "copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval))",
            "copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval) + 1)"),),),
    Wrong("cleared-one-on", "the PTEs are cleared one entry on",
        "pmd", (6,),
        (Edit(*COPIED,
            "clear_ptes(pte, i, nr_ptes)",
            "clear_ptes(pte, (i + 1) % nr_pages, nr_ptes)"),),),
    Wrong("neighbours-cleared", "the whole table is cleared, not the window",
        "window+second", (3, 4, 5, 8),
        (Edit(*COPIED,
            "clear_ptes(pte, i, nr_ptes)",
            "_\n"
            "pte.ptes.fill(0, len(pte.ptes.raw), 0)"),),),
    Wrong("put-back-twice", "sources of an attempt that failed are put back on the LRU twice",
        "pmd:poisoned", (5,),
        (Edit("khugepaged.isolate", "release_pte_folio",
            "folio_putback_lru(kernel.mem, kernel.this_cpu, folio)",
            "_\n"
            "_"),),),
    Wrong("refused-keeps-exclusive", "isolate takes the exclusive marks away",
        "pmd:poisoned", (16,),
        (Edit(*ISOLATING,
            "folio_mark_isolated(mem, folio)",
            "_\n"
            "mem.page_flags.clear_bits(folio, 1)"),),),
    Wrong("sources-write-protected", "the sources' PTEs are write-protected for the copy, and stay so",
        "pmd:poisoned", (11,),
        (Edit(*COPYING,
            "mem = pte.kernel.mem",
            "_\n"
            "for i in range(1 << order):\n"
            " pte.ptes.clear_bits(pte.base + i, 2)"),),),
    Wrong("migration-entries", "the sources' PTEs are made migration entries before the copy, which nobody "
        "ends",
        "pmd:poisoned", (4, 5),
        (Edit(*COPYING,
            "mem = pte.kernel.mem",
            "_\n"
            "from mthp.mm.pgtable_types import Leaf, leaf_pte\n"
            "seen = [pte.get(i) for i in range(1 << order)]\n"
            "with pte.table.ptl.lock():\n"
            " for i in range(1 << order):\n"
            "  if seen[i] & 1:\n"
            "   pte.ptes.write(pte.base + i, leaf_pte(Leaf.MIGRATION, seen[i] >> 16))"),),),
    Wrong("frozen-sources", "the sources are frozen, and unfrozen with a reference less",
        "pmd:poisoned", (5,),
        (Edit("khugepaged.isolate", "release_pte_folio",
            "kernel.mem.folio_unlock(folio)",
            "kernel.mem.refcount.add(folio, -1)\n"
            "_"),),),
    Wrong("charged-to-child", "the new folio is charged to the group of the process that was forked last",
        "pmd+memcg:fork", (5,),
        (Edit(*ALLOCATING,
            "mem_cgroup_charge(folio, mm, Gfp.TRANSHUGE if compact else "
            "Gfp.TRANSHUGE_LIGHT)",
            "mem_cgroup_charge(folio, kernel.mms[-1], Gfp.TRANSHUGE if compact else "
            "Gfp.TRANSHUGE_LIGHT)"),),),
    Wrong("alloc-under-lock", "the new folio is allocated and its memory's group asked under mmap_lock for "
        "writing",
        "pmd pmd+memcg", (),
        (Edit(*COLLAPSING,
            "with alloc_charge_folio(mm, cc, order) as new: ...",
            "with mm.mmap_write_lock():\n"
            " with alloc_charge_folio(mm, cc, order) as new:\n"
            "  vma = hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)\n"
            "  pmd = find_pmd_or_thp_or_none(mm, pmd_addr)\n"
            "  vma_start_write(vma)\n"
            "  _replace(vma, start_addr, pmd, new.folio, cc, order)\n"
            "  new.installed = True"),),
        passes="memory may be allocated under mmap_lock, as faults do; others wait longer"),
    Wrong("swapin-forgets-lock", "mmap_lock is taken for writing after a swap-in, and was not let go",
        "pmd:swapped", (9,),
        (Edit(*COLLAPSING,
            "if unmapped: ...",
            "_\n"
            "if unmapped:\n"
            " mm.mmap_write_lock().release()"),),),
    Wrong("huge-in-window", "a window is installed by PTEs that say huge",
        "window", (16,),
        (Edit(*BY_PTES,
            "set_ptes(...)",
            "set_ptes(pte, 0, mk_pte(folio, flags | 128), nr)"),),),
    Wrong("uffd-asked-for-too-early", "whether userfaultfd has the VMA in charge is asked once, early",
        "pmd:uffd-register", (8,),
        (Edit(*COLLAPSING,
            "pmd = find_pmd_or_thp_or_none(mm, pmd_addr)",
            "_\n"
            "from mthp.khugepaged.limits import collapse_max_ptes_none\n"
            "kernel.kept = collapse_max_ptes_none(kernel, cc, vma, order)"),
         Edit("khugepaged.isolate", "__init__",
            "collapse_max_ptes_none(kernel, cc, vma, order)",
            "kernel.kept"),),),
)
# fmt: on
CAUGHT = [each for each in WRONG if not each.passes]
PASSING = [each for each in WRONG if each.passes]
PROFILE = "7.3"
EXECUTIONS = 200
"""At most so many in a world; all worlds named here have fewer before a law breaks."""


def broken(wrong: Wrong) -> set[int]:
    """The laws that it breaks in the first of its worlds where it does, besides what is known of it."""
    for name in wrong.worlds.split():
        kind, _, rivals = name.partition(":")
        world = RaceWorld.parse(kind, PROFILE, tuple(rivals.split("+")) if rivals else ())
        with applied(wrong.edits):
            outcome = search(world, Budget(EXECUTIONS), wrong.laws or LAWS)
        known = findings_of(world)
        laws = {
            each.broken.law
            for each in outcome.findings
            if not any(one.is_it(each.broken) for one in known)
        }
        if laws:
            return laws
    return set()


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(each, id=each.id, marks=[pytest.mark.slow] if n % 3 else [])
        for n, each in enumerate(CAUGHT)
    ],
)
def test_a_wrong_protocol_breaks_a_law(wrong: Wrong) -> None:
    assert broken(wrong) & set(wrong.laws)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", PASSING, ids=lambda wrong: wrong.id)
def test_another_breaks_none_for_the_reason_given(wrong: Wrong) -> None:
    assert broken(wrong) == set()


def test_each_is_there_once_and_most_are_caught() -> None:
    assert len({each.id for each in WRONG}) == len(WRONG)
    page = (Path(__file__).parents[2] / "docs/races-reference.md").read_text(encoding="utf-8")
    assert f"has {len(WRONG)} protocols" in page and f"of {len(PASSING)} it says why" in page
