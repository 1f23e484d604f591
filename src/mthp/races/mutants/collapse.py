# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of the collapse, taken away one at a time: each a bug the kernel had, or would have.

A mutant is an edit of the protocol, the world in which that shows, and the laws that may say so.
A rule whose loss alone shows nothing, because another still covers it, is a Half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from mthp.machine.store_buffer import Model
from mthp.races.cast.all import Start
from mthp.races.mutants.mutant import Half, Mutant
from mthp.races.mutants.rivals import MORE, MORE_HALVES
from mthp.races.stage import Size
from mthp.races.variant import Edit
from mthp.races.world import Hook, RaceWorld

COLLAPSE = "khugepaged.collapse"
NO_SYNC = Edit(
    COLLAPSE,
    "        tlb_remove_table_sync_one(kernel.cpus, kernel.this_cpu.number)\n",
    "",
)
NO_RECHECK = (
    Edit("mm.gup", "    return pmdp_get_lockless(pmd) == pmdval\n", "    return True\n"),
    Edit("mm.gup", "    return now == pteval\n", "    return True\n"),
)
NO_BARRIER = Edit(
    "khugepaged.install", "    kernel.machine.smp_wmb()\n    kernel.mem.set(", "    kernel.mem.set("
)
PROFILE = "7.3"


def _world(
    size: Size, *rivals: str, hook: Hook = Hook.NOTHING, profile: str = PROFILE
) -> RaceWorld:
    return RaceWorld(size, profile, rivals, hook)


PMD, WINDOW = Size.PMD, Size.WINDOW

_MUTANTS = (
    Mutant(
        "A1",
        "70cbc3cc78a9 (v6.1)",
        "no IPI to GUP-fast walkers, and they do not look again once the page is pinned",
        (NO_SYNC, *NO_RECHECK),
        _world(PMD, "gup"),
        frozenset({3}),
    ),
    Mutant(
        "A2",
        "2ba99c5e0881 (v6.1)",
        "no tlb_remove_table_sync_one() after the PMD is cleared",
        (NO_SYNC,),
        _world(PMD, "gup", "zap"),
        frozenset({1, 6}),
    ),
    Mutant(
        "A3",
        "c131f751ab1a (v4.8)",
        "the VMA looked up before mmap_lock was let go is used after it was taken again",
        (
            Edit(
                COLLAPSE,
                "                vma = hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)\n"
                "                vma_start_write(vma)\n",
                "                hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)\n"
                "                vma_start_write(vma)\n",
            ),
        ),
        _world(PMD, "remap"),
        frozenset({1, 10}),
    ),
    Mutant(
        "A4",
        "1f52e67e5e7f (v4.8)",
        "no check_pmd_still_valid() under mmap_lock for writing",
        (Edit(COLLAPSE, "                check_pmd_still_valid(mm, pmd_addr, pmd)\n", ""),),
        _world(PMD, "madv-collapse"),
        frozenset({6, 7, 10}),
    ),
    Mutant(
        "A6",
        "59ea6d06cfa9 (v5.2)",
        "one faulter takes neither mmap_lock nor the VMA lock",
        (),
        _world(PMD, "fault-unlocked"),
        frozenset({6, 10}),
    ),
    Mutant(
        "A7",
        "write-lock VMA while collapsing (v6.4)",
        "no vma_start_write()",
        (Edit(COLLAPSE, "                vma_start_write(vma)\n", ""),),
        _world(PMD, "fault"),
        frozenset({3, 7}),
    ),
    Mutant(
        "A8",
        "CVE-2024-50263",
        "fork registers the child with khugepaged before the copy is known to succeed",
        (Edit("mm.fork", "    if complete:\n", "    if True:\n"),),
        replace(_world(PMD, "fork-fails"), start=Start.DAEMON),
        frozenset({13}),
    ),
    Mutant(
        "A9",
        "dd47ac428c3f (v6.3)",
        "no userfaultfd test in isolate",
        (Edit("khugepaged.isolate", "        if pte_uffd(pteval):\n", "        if False:\n"),),
        _world(PMD, "uffd-wp"),
        frozenset({8}),
    ),
    Mutant(
        "A11",
        "CVE-2011-0999",
        "exec's temporary stack may be collapsed",
        (
            Edit(
                "mm.huge_mm",
                "    if vm_flags & VM_STACK_INCOMPLETE:\n",
                "    if False:\n",
            ),
        ),
        _world(PMD, "exec"),
        frozenset({4, 13}),
    ),
    Mutant(
        "A12",
        "4.4 to 4.6, February 2016",
        "the flush drops huge entries alone",
        (
            Edit(
                "machine.cpu",
                "            if e.mm != mm or e.vpn >= last_vpn or",
                "            if e.order == 0 or e.mm != mm or e.vpn >= last_vpn or",
            ),
        ),
        _world(PMD, "store-twice"),
        frozenset({2}),
    ),
    Mutant(
        "A13",
        "f0293cd1f4fc (RISC-V, v6.2)",
        "the flush spares the walk cache",
        (
            Edit(
                "machine.cpu",
                "        cpu.walk_cache = tuple(link for link in cpu.walk_cache if link[0] != mm)\n",
                "",
            ),
        ),
        _world(PMD, "store-both"),
        frozenset({1, 6}),
    ),
    Mutant(
        "A14a",
        "8024ee2a09c6 (v4.8)",
        "a swap-in that let go of mmap_lock and says RETRY is taken for one that holds it",
        (
            Edit(
                "khugepaged.swapin",
                "            if fault is VmFault.RETRY:\n"
                "                raise Refused(ScanResult.PAGE_LOCK)\n",
                "            if fault is VmFault.RETRY:\n                continue\n",
            ),
            Edit(
                COLLAPSE,
                "                    __collapse_huge_page_swapin(\n"
                "                        mm, vma, start_addr, pmd, referenced, order, mmap_lock\n"
                "                    )\n",
                "                    __collapse_huge_page_swapin(\n"
                "                        mm, vma, start_addr, pmd, referenced, order, mmap_lock\n"
                "                    )\n"
                "                mmap_lock.release()\n",
            ),
        ),
        _world(PMD, "swap-read"),
        frozenset({1, 9}),
    ),
    Mutant(
        "A14b",
        "982785c6b05a (v4.8)",
        "the PTE stays mapped where swap-in leaves early at a swap entry",
        (
            Edit(
                "khugepaged.swapin",
                "        result = refusal.result\n",
                "        result = refusal.result\n        pte = None\n",
            ),
        ),
        _world(WINDOW, "swapped"),
        frozenset({9}),
    ),
    Mutant(
        "A16",
        "the rule of the mTHP series",
        "anon_vma is let go before the copy below PMD order too",
        (
            Edit(
                COLLAPSE,
                "        if is_pmd_order:\n            # Every",
                "        if True:\n            # Every",
            ),
        ),
        _world(WINDOW, "migrate-neighbour"),
        frozenset({4}),
    ),
    Mutant(
        "A18a",
        "review of the merged version; the order of v16",
        "PTEs are set before pmd_populate(), where update_mmu_cache_range() walks the table",
        (),
        _world(WINDOW, hook=Hook.WALKS, profile="v16"),
        frozenset({7, 9}),
    ),
    Mutant(
        "A18b",
        "a form rejected in review",
        "pmd_populate() first, and the PTEs set without the PTE lock",
        (
            Edit(
                "khugepaged.install",
                "            with pte.table.ptl.lock():\n"
                "                pmd_populate(pmd, pmd_pgtable(orig_pmd))\n"
                "                map_anon_folio_pte_nopf("
                "kernel, folio, pte, vma, start_addr, uffd_wp=False)\n",
                "            pmd_populate(pmd, pmd_pgtable(orig_pmd))\n"
                "            map_anon_folio_pte_nopf("
                "kernel, folio, pte, vma, start_addr, uffd_wp=False)\n",
            ),
        ),
        _world(WINDOW, "migrate-neighbour"),
        frozenset({9}),
    ),
    Mutant(
        "A21",
        "a stable fix of 2026",
        "the scan's tracepoint reads the folio after the PTE lock was let go",
        (
            Edit(
                "khugepaged.scan",
                "    kernel.trace(\n        ScanPmd(",
                "    if scan.failed_pfn > 0:\n"
                "        kernel.mem.test(scan.failed_pfn, PG_LRU)\n"
                "    kernel.trace(\n        ScanPmd(",
            ),
        ),
        replace(_world(PMD, "zap-locked"), start=Start.SCAN),
        frozenset({1}),
    ),
    Mutant(
        "X3",
        "the barrier in __folio_mark_uptodate()",
        "no write barrier between the contents of the new folio and the store that maps it",
        (NO_BARRIER,),
        replace(_world(PMD, "load"), memory=Model.WEAK),
        frozenset({3}),
    ),
    Mutant(
        "F1",
        "CVE-2022-48991 (4.8 to 6.1)",
        "secondary MMUs are not told",
        (
            Edit(
                COLLAPSE,
                "        with mmu_notifier_invalidate_range(mm, start_addr, end_addr), pmd_lock(pmd):\n",
                "        with pmd_lock(pmd):\n",
            ),
        ),
        _world(PMD, "guest"),
        frozenset({1, 2}),
    ),
)
MUTANTS: Mapping[str, Mutant] = MappingProxyType(
    {mutant.id: mutant for mutant in (*_MUTANTS, *MORE)}
)


HALVES = (
    Half(
        "A1-ipi",
        "no IPI to GUP-fast walkers",
        (NO_SYNC,),
        _world(PMD, "gup"),
        "GUP-fast looks at the PMD again once the page is pinned",
    ),
    Half(
        "A1-recheck",
        "GUP-fast does not look again once the page is pinned",
        NO_RECHECK,
        _world(PMD, "gup"),
        "the IPI waits for walkers before the references are counted",
    ),
    Half(
        "X3-tso",
        "no write barrier before the mapping store, on x86",
        (NO_BARRIER,),
        replace(_world(PMD, "load"), memory=Model.TSO),
        "stores are seen in order there",
    ),
    Half(
        "X3-lkmm",
        "no write barrier before the mapping store, in the kernel's memory model",
        (NO_BARRIER,),
        replace(_world(PMD, "load"), memory=Model.LKMM),
        "the sources' references are put, and the PTE lock is given back and the pmd lock taken, between "
        "copy and mapping store",
    ),
    *MORE_HALVES,
)
