# SPDX-License-Identifier: GPL-2.0-or-later
"""Page faults: under the VMA lock first, under mmap_lock otherwise. Kernel: mm/memory.c."""

from __future__ import annotations

from mthp.mm.folio import PAGE_ANON_EXCLUSIVE, PG_SWAPBACKED, PG_UPTODATE
from mthp.mm.kernel import Kernel
from mthp.mm.lru import folio_add_lru_vma
from mthp.mm.mm_struct import MM_ANONPAGES, Mm
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pagetable import (
    PmdPtr,
    map_anon_folio_pte_nopf,
    pmd_lock,
    pmd_ptr,
    pmdp_get_lockless,
    pte_offset_map,
    pte_offset_map_lock,
)
from mthp.mm.pte import (
    DIRTY,
    NO_ACCESS,
    PTE_NONE,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_kind,
    mk_pte,
    pmd_is_migration_entry,
    pmd_none,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
    pte_protnone,
    pte_write,
    table_pmd,
    zero_pte,
)
from mthp.mm.rmap import folio_add_new_anon_rmap, folio_remove_rmap_ptes
from mthp.mm.swap import do_swap_page
from mthp.mm.vma import VM_SOFTDIRTY, VM_UFFD_MISSING, VM_UFFD_WP, VM_WRITE, Vma
from mthp.rivals.huge import (
    do_huge_pmd_anonymous_page,
    do_huge_pmd_fault,
    pmd_migration_entry_wait,
)
from mthp.rivals.walk import flush_tlb_page, unlocked_after


def lock_vma_under_rcu(mm: Mm, address: int) -> Vma | None:
    """The VMA of address, locked for reading, or None: take mmap_lock.

    Kernel: mm/mmap_lock.c, lock_vma_under_rcu().
    """
    mm.mm_mt.read()
    vma = mm.find_vma(address)
    if vma is None or address < vma.vm_start or not vma.vm_lock.try_enter():
        return None
    if vma not in mm.vmas or vma.anon_vma is None:
        vma.vm_lock.leave()
        return None
    return vma


def handle_user_fault(mm: Mm, address: int, *, write: bool) -> None:
    """One fault; the access is tried again afterwards. Kernel: do_user_addr_fault()."""
    vma = lock_vma_under_rcu(mm, address)
    if vma is not None:
        done = handle_mm_fault(vma, address, write=write)
        vma.vm_lock.leave()
        if done:
            return
    fault_under_mmap_lock(mm, address, write=write)


def handle_huge_fault(mm: Mm, address: int) -> None:
    """A fault, where the settings give huge pages to whoever touches an empty table's range.

    Kernel: mm/memory.c, __handle_mm_fault(), create_huge_pmd().
    """
    vma = lock_vma_under_rcu(mm, address)
    if vma is None:
        return
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    if pmd_none(pmdp_get_lockless(pmd)):
        do_huge_pmd_anonymous_page(vma, address, pmd)
    else:
        handle_mm_fault(vma, address, write=True)
    vma.vm_lock.leave()


def fault_under_mmap_lock(mm: Mm, address: int, *, write: bool) -> None:
    """The fault's second way. Kernel: lock_mm_and_find_vma()."""
    with mm.mmap_read_lock() as mmap_lock:
        vma = mm.find_vma(address)
        if vma is None or address < vma.vm_start:
            return
        pmd = pmd_ptr(mm, address, create=True)
        assert pmd is not None
        swapped = _swapped(vma, address, pmd)
        if swapped is not None:
            do_swap_page(mm, vma, address, pmd, swapped, mmap_lock)
        else:
            handle_mm_fault(vma, address, write=write)


def _swapped(vma: Vma, address: int, pmd: PmdPtr) -> int | None:
    """The swap entry of address, if one stands there."""
    pte = pte_offset_map(vma.vm_mm.kernel, pmdp_get_lockless(pmd), address)
    if pte is None:
        return None
    with pte:
        value = pte.get(0)
    is_swap = not pte_none(value) and not pte_present(value) and leaf_kind(value) is Leaf.SWAP
    return value if is_swap else None


def handle_mm_fault(vma: Vma, address: int, *, write: bool) -> bool:
    """Whether it was handled here; False: mmap_lock is needed. Kernel: handle_pte_fault()."""
    mm = vma.vm_mm
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    pmdval = pmdp_get_lockless(pmd)
    if pmd_is_migration_entry(pmdval):
        pmd_migration_entry_wait(mm.kernel, pmd)
        return True
    if pmd_trans_huge(pmdval):
        if do_huge_pmd_fault(vma, address, pmd, pmdval, write=write):
            return True
        pmdval = pmdp_get_lockless(pmd)
    orig_pte = PTE_NONE
    if not pmd_none(pmdval):
        pte = pte_offset_map(mm.kernel, pmdval, address)
        if pte is None:
            return True
        with pte:
            orig_pte = pte.get(0)
    if pte_none(orig_pte):
        do_anonymous_page(vma, address, pmd, write=write)
    elif not pte_present(orig_pte):
        return migration_entry_wait(mm.kernel, orig_pte)
    elif pte_protnone(orig_pte):
        do_numa_page(vma, address, pmd, orig_pte)
    elif write and not pte_write(orig_pte):
        do_wp_page(vma, address, pmd, orig_pte)
    return True


def do_numa_page(vma: Vma, address: int, pmd: PmdPtr, orig_pte: int) -> None:
    """A NUMA hint was hit: let the access through again, where the page already is.

    Divergence: the page is never found to be misplaced. Kernel: mm/memory.c, do_numa_page().
    """
    found = pte_offset_map_lock(vma.vm_mm, pmd, address)
    if found is None:
        return
    with unlocked_after(vma.vm_mm.kernel, found) as pte:
        if pte.get(0) == orig_pte:
            page = pte_pfn(orig_pte)
            alone = vma.vm_mm.kernel.mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE
            writable = WRITE if vma.vm_flags & VM_WRITE and alone else 0
            if orig_pte & UFFD_WP or pte_needs_soft_dirty_wp(vma, orig_pte):
                writable = 0
            pte.ptes.write(pte.base, orig_pte & ~NO_ACCESS | YOUNG | writable)


def pte_needs_soft_dirty_wp(vma: Vma, pteval: int) -> bool:
    """Whether stores must fault, so that soft-dirty sees them. Kernel: mm/internal.h."""
    return not vma.vm_flags & VM_SOFTDIRTY and not pteval & SOFT_DIRTY


def migration_entry_wait(kernel: Kernel, entry: int) -> bool:
    """Wait for the end of a migration, if that is what the entry says; the access is tried again.

    Kernel: mm/migrate.c, migration_entry_wait().
    """
    if leaf_kind(entry) is Leaf.MIGRATION:
        kernel.mem.folio_wait_locked(pte_pfn(entry))
        return True
    return False


def pte_alloc(mm: Mm, pmd: PmdPtr) -> None:
    """Put an empty table into a slot that is none. Kernel: mm/memory.c, __pte_alloc()."""
    if not pmd_none(pmdp_get_lockless(pmd)):
        return
    table = mm.kernel.new_table()
    with pmd_lock(pmd):
        if pmd_none(pmdp_get_lockless(pmd)):
            pmd.page.pmds.write(pmd.slot, table_pmd(table.number))
            return
    del mm.kernel.tables[table.number]


def do_anonymous_page(vma: Vma, address: int, pmd: PmdPtr, *, write: bool) -> None:
    """A zeroed page where there was nothing. Kernel: mm/memory.c, do_anonymous_page()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    if vma.vm_flags & VM_UFFD_MISSING:
        return  # handle_userfault(): the monitor fills it, and the access waits for that
    pte_alloc(mm, pmd)
    if not write:
        found = pte_offset_map_lock(mm, pmd, address)
        if found is not None:
            with unlocked_after(kernel, found) as pte:
                if pte_none(pte.get(0)):
                    pte.ptes.write(pte.base, zero_pte())
        return
    folio = new_anon_folio(kernel, 0)
    found = pte_offset_map_lock(mm, pmd, address)
    if found is None:
        kernel.mem.folio_put(folio)
        return
    with unlocked_after(kernel, found) as pte:
        if pte_none(pte.get(0)):
            mm.counters[MM_ANONPAGES] += 1
            map_anon_folio_pte_nopf(kernel, folio, pte, vma, address, uffd_wp=False)
            return
    kernel.mem.folio_put(folio)


def new_anon_folio(kernel: Kernel, content: int) -> int:
    """A small folio with its contents written before anybody can reach it."""
    mem = kernel.mem
    folio = mem.folio_alloc(0)
    assert folio is not None
    mem.content.write(folio, content)
    kernel.machine.smp_wmb()
    mem.flags.set_bits(folio, PG_UPTODATE | PG_SWAPBACKED)
    return folio


def do_wp_page(vma: Vma, address: int, pmd: PmdPtr, orig_pte: int) -> None:
    """A store to a page that may not be written: reuse it or copy. Kernel: do_wp_page()."""
    if not vma.vm_flags & VM_WRITE:
        return  # SIGSEGV
    if vma.vm_flags & VM_UFFD_WP and orig_pte & UFFD_WP:
        return  # handle_userfault(): the monitor decides, and the access waits for it
    kernel = vma.vm_mm.kernel
    mem = kernel.mem
    page = pte_pfn(orig_pte)
    if page and mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE:
        found = pte_offset_map_lock(vma.vm_mm, pmd, address)
        if found is not None:
            with unlocked_after(kernel, found) as pte:
                pte.ptes.replace(pte.base, orig_pte, orig_pte | WRITE | DIRTY | YOUNG | SOFT_DIRTY)
        return
    wp_page_copy(vma, address, pmd, orig_pte)


def wp_page_copy(vma: Vma, address: int, pmd: PmdPtr, orig_pte: int) -> None:
    """Copy on write. Kernel: mm/memory.c, wp_page_copy()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    old = pte_pfn(orig_pte)
    if old and not mem.folio_try_get(mem.page_folio(old)):
        return
    folio = new_anon_folio(kernel, mem.content.read(old) if old else 0)
    size = kernel.geometry.page_size
    copied = False
    with mmu_notifier_invalidate_range(mm, address, address + size):
        found = pte_offset_map_lock(mm, pmd, address)
        if found is not None:
            with unlocked_after(kernel, found) as pte:
                if pte.get(0) == orig_pte:
                    pte.ptes.write(pte.base, PTE_NONE)
                    flush_tlb_page(mm, address)
                    folio_add_new_anon_rmap(mem, folio, vma, address, exclusive=True)
                    folio_add_lru_vma(mem, kernel.this_cpu, folio, vma)
                    flags = WRITE | DIRTY | YOUNG | SOFT_DIRTY
                    pte.ptes.write(pte.base, mk_pte(folio, flags))
                    if not old:
                        mm.counters[MM_ANONPAGES] += 1
                    else:
                        head = mem.page_folio(old)
                        folio_remove_rmap_ptes(mem, kernel.this_cpu, head, old, 1, vma)
                    copied = True
    if not copied:
        mem.folio_put(folio)
    if old:
        mem.folio_put(mem.page_folio(old), 2 if copied else 1)
