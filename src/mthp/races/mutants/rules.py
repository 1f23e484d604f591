# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules taken away one at a time, each a bug the kernel had or would have, by what they are about."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mthp.races.edits import Edit
from mthp.races.mutants.mutant import Mutant
from mthp.races.world import RaceWorld

COLLAPSE: Final = "khugepaged.collapse"
INSTALL: Final = "khugepaged.install"
REVALIDATE: Final = "khugepaged.revalidate"
NO_SYNC: Final = Edit(COLLAPSE, "_replace", "tlb_remove_table_sync_one(...)")
NO_RECHECK: Final = (
    Edit("mm.gup", "pmd_unchanged", "return ...", "return True"),
    Edit("mm.gup", "pte_unchanged", "return ...", "return True"),
)
NO_SEED_BARRIER: Final = Edit(INSTALL, "install_ptes", "kernel.machine.smp_wmb()")
NO_BARRIER: Final = Edit(INSTALL, "__folio_mark_uptodate", "kernel.machine.smp_wmb()")
SWAP_IN: Final = ("khugepaged.swapin", "__collapse_huge_page_swapin")
FREE_AT_ONCE: Final = Edit(
    "mm.pgtable", "pte_free_defer", "table.state = TableState.DEFERRED", "pte_free(table)"
)
NO_VMA_LOCK: Final = Edit(COLLAPSE, "collapse_huge_page", "vma_start_write(vma)")
NO_NOTIFIER: Final = Edit(COLLAPSE, "_replace", "mmu_notifier_invalidate_range(...)")
ANON_VMA_EARLY: Final = Edit(
    COLLAPSE,
    "_replace",
    "if is_pmd_order: leaving.anon_vma.release()",
    "leaving.anon_vma.release()",
)


def _world(name: str, *rivals: str, profile: str = "7.3") -> RaceWorld:
    return RaceWorld.parse(name, profile, rivals)


# fmt: off
_DETACHING = (
    Mutant("A1", "70cbc3cc78a9 (v6.1)",
        "no IPI to GUP-fast walkers, and they do not look again once the page is pinned",
        _world("pmd", "gup"), (3,), (NO_SYNC, *NO_RECHECK)),
    Mutant("A2", "2ba99c5e0881 (v6.1)", "no tlb_remove_table_sync_one() after the PMD is cleared",
        _world("pmd", "gup", "zap"), (1, 6), (NO_SYNC,)),
    Mutant("A12", "4.4 to 4.6, February 2016", "the flush drops huge entries alone",
        _world("pmd", "store-twice"), (2,),
        (Edit("machine.cpu", "flush_tlb_range", "e.mm != mm", "e.order == 0 or _"),)),
    Mutant("A12-early", "the rule of pmdp_collapse_flush()", "the flush comes before the PMD is cleared",
        _world("pmd", "reuse"), (2,), (Edit("mm.pgtable", "pmdp_collapse_flush",
            "old = pmd.page.pmds.swap(...)\nflush_tlb_mm_range(...)", "_2\n_1"),)),
    Mutant("A13", "f0293cd1f4fc (RISC-V, v6.2)", "the flush spares the walk cache",
        _world("pmd", "store-both"), (1, 6),
        (Edit("machine.cpu", "flush_tlb_range", "cpu.walk_cache = ..."),)),
    Mutant("A16", "the rule of the mTHP series",
        "anon_vma is let go before the copy below PMD order too", _world("window", "migrate-neighbour"),
        (4,), (ANON_VMA_EARLY,)),
    Mutant("F1", "CVE-2022-48991 (4.8 to 6.1)", "secondary MMUs are not told", _world("pmd", "guest"),
        (1, 2), (NO_NOTIFIER,)),
    Mutant("A1-ipi", "70cbc3cc78a9 (v6.1)", "no IPI to GUP-fast walkers", _world("pmd", "gup"), (),
        (NO_SYNC,), "GUP-fast looks at the PMD again once the page is pinned"),
    Mutant("A1-recheck", "70cbc3cc78a9 (v6.1)", "GUP-fast does not look again once the page is pinned",
        _world("pmd", "gup"), (), NO_RECHECK,
        "the IPI waits for walkers before the references are counted"),
)

_MAPPINGS = (
    Mutant("A3", "c131f751ab1a (v4.8)",
        "the VMA looked up before mmap_lock was let go is used after it was taken again",
        _world("pmd", "remap"), (1, 10),
        (Edit(COLLAPSE, "collapse_huge_page", "vma = hugepage_vma_revalidate(...)\nvma_start_write(vma)",
            "hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)\n_2"),)),
    Mutant("A4", "1f52e67e5e7f (v4.8)", "no check_pmd_still_valid() under mmap_lock for writing",
        _world("pmd", "madv-collapse"), (6, 7, 10),
        (Edit(COLLAPSE, "collapse_huge_page", "check_pmd_still_valid(...)"),)),
    Mutant("A6", "59ea6d06cfa9 (v5.2)", "one faulter takes neither mmap_lock nor the VMA lock",
        _world("pmd", "fault-unlocked"), (6, 10)),
    Mutant("A7", "write-lock VMA while collapsing (v6.4)", "no vma_start_write()",
        _world("pmd", "fault"), (3, 7), (NO_VMA_LOCK,)),
    Mutant("A7-huge", "write-lock VMA while collapsing (v6.4)",
        "no vma_start_write(), where the fault may give a huge page", _world("pmd", "any-fault"),
        (7,), (NO_VMA_LOCK,)),
    Mutant("A7-beside", "write-lock VMA while collapsing (v6.4)",
        "the same, where the fault is beside the window", _world("window", "large-fault-beside"),
        (7,), (NO_VMA_LOCK,)),
    Mutant("A8", "CVE-2024-50263",
        "fork registers the child with khugepaged before the copy is known to succeed",
        _world("pmd+daemon", "fork-fails"), (13,),
        (Edit("mm.fork", "register_if_complete", "complete", "True"),)),
    Mutant("A11", "CVE-2011-0999", "exec's temporary stack may be collapsed", _world("pmd", "exec"),
        (4, 13), (Edit("mm.huge_mm", "allowable_orders", "vm_flags & VM_STACK_INCOMPLETE", "False"),)),
    Mutant("E1", "the rule of __khugepaged_exit()", "khugepaged_exit() does not wait for the daemon",
        _world("pmd", "exit"), (),
        (Edit("khugepaged.daemon", "khugepaged_exit", "mm.mmap_write_lock()"),),
        "exit_mmap() takes mmap_lock itself, and the collapse asks for mm_users under it"),
    Mutant("V1", "the rule of hugepage_vma_revalidate(), expect_anon",
        "a file mapping where an anonymous one was is taken for it", _world("pmd", "remap-file"), (3,),
        (Edit(REVALIDATE, "hugepage_vma_revalidate", "not vma_is_anonymous(vma)", "False"),)),
    Mutant("V2", "the rule of hugepage_vma_revalidate(), PMD_ORDER",
        "a table of which another mapping has a part is collapsed", _world("pmd+two-vmas", "fault"),
        (3, 4, 6, 7),
        (Edit(REVALIDATE, "hugepage_vma_revalidate", "if not thp_vma_suitable_order(...): ..."),)),
    Mutant("V2-window", "the rule of hugepage_vma_revalidate(), PMD_ORDER",
        "the same, where the window itself is one mapping's",
        _world("window+two-vmas", "migrate-neighbour"), (4,),
        (Edit(REVALIDATE, "hugepage_vma_revalidate", "if not thp_vma_suitable_order(...): ..."),)),
    Mutant("V3", "4d24de9425f7 (v6.2)",
        "MADV_COLLAPSE goes on to the end that its mapping had before mmap_lock was let go",
        _world("pmd+madvise", "remap-last"), (10,),
        (Edit("khugepaged.madvise", "_collapse_ranges", "hend = min(...)"),)),
    Mutant("V4", "the rule of check_pmd_state()",
        "the migration entry of a huge page is taken for a table", _world("pmd+huge", "move-pages"),
        (4, 6, 7),
        (Edit(REVALIDATE, "check_pmd_state", "pmd_is_table(pmdval)",
            "pmd_is_table(pmdval) or pmd_is_migration_entry(pmdval)"),)),
)

_SWAP_IN = (
    Mutant("A14a", "8024ee2a09c6 (v4.8)",
        "a swap-in that let go of mmap_lock and says RETRY is taken for one that holds it",
        _world("pmd", "swap-read"), (1, 9),
        (Edit(*SWAP_IN, "if fault is VmFault.RETRY: ...", "if fault is VmFault.RETRY: continue"),
         Edit(COLLAPSE, "collapse_huge_page", "if ...:\n __collapse_huge_page_swapin(...)",
            "_\nmmap_lock.release()"))),
    Mutant("A14b", "982785c6b05a (v4.8)",
        "the PTE stays mapped where swap-in leaves early at a swap entry", _world("window", "swapped"),
        (9,),
        (Edit(*SWAP_IN, "result = refusal.result", "_\npte = None"),)),
    Mutant("W1", "the rule of folio_swapcache_freeable()",
        "a page's slot is given up while it is being written", _world("pmd", "writeback"), (1,),
        (Edit("mm.swapfile", "folio_free_swap", "PG_SWAPCACHE | PG_WRITEBACK", "PG_SWAPCACHE"),)),
)

_SOURCES = (
    Mutant("A9", "dd47ac428c3f (v6.3)", "no userfaultfd test in isolate", _world("pmd", "uffd-wp"),
        (8,), (Edit("khugepaged.isolate", "take_page", "pte_uffd(pteval)", "False"),)),
    Mutant("A21", "a stable fix of 2026",
        "the scan's tracepoint reads the folio after the PTE lock was let go",
        _world("pmd+scan", "zap-locked"), (1,),
        (Edit("khugepaged.scan", "collapse_scan_pmd", "kernel.trace(...)",
            "if scan.failed_pfn > 0: kernel.mem.test(scan.failed_pfn, PG_LRU)\n_"),)),
    Mutant("U1", "the rule of collapse_max_ptes_none()",
        "empty PTEs are filled where userfaultfd has them in charge", _world("pmd", "uffd-register"),
        (8,),
        (Edit("khugepaged.limits", "collapse_max_ptes_none", "userfaultfd_armed(vma)", "False"),)),
    Mutant("L1", "the rule of __collapse_huge_page_copy_failed()",
        "a copy that fails leaves the folios as isolate took them", _world("pmd", "hwpoison"), (11,),
        (Edit("khugepaged.copy", "__collapse_huge_page_copy_failed", "path(release_pte_pages)(...)"),)),
)

_PUBLISHING = (
    Mutant("X3", "the barrier in __folio_mark_uptodate()",
        "no write barrier between the contents of the new folio and the store that maps it",
        _world("pmd+weak", "load"), (3,), (NO_BARRIER,)),
    Mutant("X4", "the order of v16", "no write barrier between the PTEs and the PMD that shows them",
        _world("window+lkmm+ptes", "fault", profile="v16"), (9,), (NO_SEED_BARRIER,)),
    Mutant("X5", "the rule of folio_set_lru()",
        "a flag of a folio that others reach is set by a plain store of the whole word",
        _world("window+lkmm+flags", "hwpoison"), (9,),
        (Edit("mm.folio", "folio_batch_move_lru", "mem.flags.set_bits(folio, PG_LRU)",
            "mem.flags.store_bits(folio, PG_LRU)"),)),
    Mutant("A18a", "review of the merged version; the order of v16",
        "PTEs are set before pmd_populate(), where update_mmu_cache_range() walks the table",
        _world("window+hook", profile="v16"), (7, 9)),
    Mutant("A18b", "a form rejected in review",
        "pmd_populate() first, and the PTEs set without the PTE lock",
        _world("window", "migrate-neighbour"), (9,),
        (Edit(INSTALL, "install_ptes", "pte.table.ptl.lock()"),)),
    Mutant("S2", "the rule of map_anon_folio_pmd_nopf()",
        "the huge PMD does not carry the soft-dirty marks of what it replaces",
        _world("pmd", "soft-dirty"), (8,),
        (Edit("mm.huge_memory", "map_anon_folio_pmd_nopf", "YOUNG | DIRTY | SOFT_DIRTY", "YOUNG | DIRTY"),)),
    Mutant("X3-tso", "the barrier in __folio_mark_uptodate()",
        "no write barrier before the mapping store, on x86", _world("pmd+tso", "load"), (),
        (NO_BARRIER,), "stores are seen in order there"),
    Mutant("X3-lkmm", "the barrier in __folio_mark_uptodate()",
        "no write barrier before the mapping store, in the kernel's memory model",
        _world("pmd+lkmm", "load"), (), (NO_BARRIER,),
        "the sources' references are put, and the PTE lock is given back and the pmd lock taken, "
        "between copy and mapping store"),
)

_RIVALS = (
    Mutant("R1", "PVMW_SYNC in remove_migration_pte()",
        "migration passes over entries that are being moved",
        _world("window", "mremap-ptes", "migrate-neighbour"), (4,),
        (Edit("mm.migrate", "remove_migration_pte", "Lookup.SYNC"),)),
    Mutant("R2", "rmap locks in should_take_rmap_locks() (v5.14)",
        "mremap() moves a table without the rmap locks", _world("pmd", "mremap", "migrate"), (4,),
        (Edit("mm.mremap", "move_normal_pmd", "rmap_locks(vma)"),)),
    Mutant("R3", "ptep_clear_flush() in write_protect_page()",
        "ksmd counts references while GUP-fast can still pin the page", _world("pmd", "ksm", "gup"),
        (3,),
        (Edit("mm.ksm", "write_protect_page", "entry = ptep_clear_flush(...)\nused = ...", "_2\n_1"),
         Edit("mm.ksm", "folio_try_share_anon_rmap_pte", "folio_maybe_dma_pinned(...)", "False"))),
    Mutant("R6", "pte_dirty() in ttu_anon_lazyfree_folio()",
        "reclaim drops a page that was stored to after MADV_FREE", _world("pmd", "lazyfree-store"), (3,),
        (Edit("mm.vmscan", "_discard", "if any(map(pte_dirty, old)): ..."),)),
    Mutant("R7", "the flush of madvise_free_single_vma()",
        "CPUs go on to store through translations from before MADV_FREE, which make nothing dirty",
        _world("pmd", "lazyfree-store"), (3,),
        (Edit("mm.madvise_pages", "madvise_free_single_vma", "flush_tlb_mm_range(...)"),)),
    Mutant("R4", "is_pte_pages_stable() in UFFDIO_MOVE",
        "UFFDIO_MOVE does not look at the PMD again once it holds the locks",
        _world("pmd", "uffd-move-in", "zap-vma"), (4, 6),
        (Edit("mm.userfaultfd", "is_stable", "pmdp_get_lockless(dst_pmd) == self.dst_pmdval"),)),
    Mutant("R5", "sync_with_folio_pmd_zap()",
        "migration does not wait while a huge page is being moved",
        _world("pmd", "mremap", "move-pages"), (4,),
        (Edit("mm.page_vma_mapped", "page_vma_mapped_walk", "if lookup is Lookup.SYNC: ..."),)),
)

_FAULTS = (
    Mutant("P1", "pte_range_none() in do_anonymous_page()",
        "a fault does not look again whether the PTEs are none that its folio is for",
        _world("window", "large-fault-beside", "store-neighbour"), (4, 5),
        (Edit("mm.memory", "do_anonymous_page", "pte_range_none(pte, 0, 1 << order)", "True"),)),
    Mutant("P2", "pmd_none() in __do_huge_pmd_anonymous_page()",
        "a fault does not look again whether the PMD is none, once it has the lock",
        _world("pmd", "huge-fault", "fault"), (7,),
        (Edit("mm.huge_memory", "do_huge_pmd_anonymous_page", "pmd_none(pmdp_get_lockless(pmd))",
            "True"),)),
    Mutant("P3", "pmd_same() in pte_offset_map_lock()",
        "the PMD is not looked at again, once the lock of its table is held",
        _world("window", "large-fault", "zap-vma"), (4, 5),
        (Edit("mm.pgtable", "pte_offset_map_lock", "pmdp_get_lockless(pmd) == pmdval", "True"),)),
    Mutant("P4", "the PTE lock in do_anonymous_page()", "a fault lets the PTE lock go before it maps",
        _world("window", "large-fault-beside"), (9,),
        (Edit("mm.memory", "do_anonymous_page", "if found is None: kernel.mem.folio_put(folio); return",
            "_\nfound[1].release()"),)),
    Mutant("P5", "pmd_same() in do_huge_zero_wp_pmd()",
        "a store takes the huge zero page to be there still, once it has the lock",
        _world("pmd", "huge-zero-fault", "zap-vma"), (6,),
        (Edit("mm.huge_memory", "do_huge_zero_wp_pmd", "pmdp_get_lockless(pmd) == orig_pmd", "True"),)),
    Mutant("P6", "pmd_same() in do_huge_pmd_wp_page()",
        "a store takes the huge page to be there still, once it has the lock",
        _world("pmd+huge", "reuse", "zap-page-vma"), (7,),
        (Edit("mm.huge_memory", "do_huge_pmd_wp_page",
            "if pmdp_get_lockless(pmd) != orig_pmd: ptl.release(); return True"),)),
    Mutant("P7", "pte_same() in wp_page_copy()",
        "the copy takes the place of whatever is there by then",
        _world("pmd", "fork-store", "zap-page-vma"), (4, 5),
        (Edit("mm.memory_wp", "wp_page_copy", "pte.get(0) == orig_pte", "True"),)),
    Mutant("P8", "ptep_clear_flush() in wp_page_copy()",
        "CPUs may go on reading the page that was copied", _world("pmd", "fork-store", "load"), (2,),
        (Edit("mm.memory_wp", "wp_page_copy", "flush_tlb_page(mm, address)"),)),
    Mutant("P9", "the rule of wp_can_reuse_anon_folio()",
        "a page is stored to that the child of a fork maps too", _world("pmd", "fork-store"), (3,),
        tuple(Edit("mm.memory_wp", "wp_can_reuse_anon_folio", *each) for each in (
            ("mem.folio_ref_count(folio) > most + in_lru_cache", "False"),
            ("mem.folio_ref_count(folio) > most", "False"),
            ("mem.folio_ref_count(folio) == 1", "True")))),
    Mutant("P10", "the rule of __wp_can_reuse_large_anon_folio()",
        "the same of a page of a large folio", _world("pmd", "fork-store-large"), (3, 7),
        (Edit("mm.memory_wp", "wp_can_reuse_large_anon_folio", "mem.test(folio, PG_MAPPED_SHARED)",
            "False"),)),
    Mutant("P11", "the rule of do_huge_pmd_wp_page()", "the same of a huge page",
        _world("pmd+huge", "fork-store"), (3, 7),
        tuple(Edit("mm.huge_memory", "_is_alone", f"mem.folio_ref_count(folio) {each}", "False")
            for each in ("> 1 + cached", "!= 1"))),
    Mutant("P12", "anon_vma_lock_write() in __folio_split()",
        "the shrinker splits a folio while khugepaged has its table", _world("window", "deferred-split"),
        (9, 10), (Edit("mm.huge_memory_split", "_folio_split", "anon_vma_lock_write(...)"),)),
)

_UNMAPPING = (
    Mutant("T1", "the order of tlb_flush_mmu()", "tables are freed before the flush", _world("pmd", "remap"),
        (6,), (Edit("mm.mmu_gather", "tlb_finish_mmu", "flush_tlb_mm_range(...)\ntlb_table_flush(tlb)",
            "_2\n_1"), FREE_AT_ONCE)),
    Mutant("T2", "tlb_remove_table_free(), by RCU",
        "tables are freed while walkers without locks may be inside", _world("pmd", "gup", "zap"), (1,),
        (FREE_AT_ONCE,)),
    Mutant("T3", "the order of tlb_flush_mmu()", "pages are put before the flush",
        _world("pmd", "store-twice", "zap"), (1,), (Edit("mm.mmu_gather", "tlb_finish_mmu",
            "flush_tlb_mm_range(...)\n...\nfree_pages_and_swap_cache(tlb)", "_3\n_1\n_2"),)),
    Mutant("T4", "vma_start_write() in vms_gather_munmap_vmas()",
        "faults under the VMA's lock go on while it is unmapped", _world("pmd", "zero-fault", "remap"), (10,),
        tuple(Edit(*each, "vma_start_write(vma)") for each in (
            ("mm.vma", "vms_gather_munmap_vmas"), ("mm.memory_zap", "free_pgtables")))),
    Mutant("T5", "floor in free_pgd_range()", "a table goes of which the mapping before has a part",
        _world("window", "shrink"), (3, 4),
        (Edit("mm.memory_zap", "free_pgd_range", "if start < floor: ..."),)),
    Mutant("T6", "ceiling in free_pgd_range()", "a table goes of which the mapping after has a part",
        _world("window+two-vmas", "remap"), (3, 4),
        (Edit("mm.memory_zap", "free_pgd_range", "if end > geometry.pmd_addr(ceiling): ..."),)),
    Mutant("T7", "unlink_anon_vmas() in free_pgtables()",
        "walks by rmap find a mapping that is freed", _world("pmd", "remap", "migrate"), (10,),
        (Edit("mm.memory_zap", "free_pgtables", "unlink_anon_vmas(vma)"),)),
)
# fmt: on

SUBJECTS: Final[Mapping[str, tuple[Mutant, ...]]] = MappingProxyType(
    {
        "detaching the table": _DETACHING,
        "mms and mappings": _MAPPINGS,
        "swap": _SWAP_IN,
        "sources": _SOURCES,
        "publishing the new folio": _PUBLISHING,
        "rivals beside a collapse": _RIVALS,
        "faults of every order, and splits": _FAULTS,
        "mappings that go": _UNMAPPING,
    }
)
_EVERY = {each.id: each for mutants in SUBJECTS.values() for each in mutants}
MUTANTS: Final = MappingProxyType({id: each for id, each in _EVERY.items() if not each.masked_by})
"""Each shows in its world."""
HALVES: Final = MappingProxyType({id: each for id, each in _EVERY.items() if each.masked_by})
"""Each shows nothing alone, because another rule covers it too."""
