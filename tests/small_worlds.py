# SPDX-License-Identifier: GPL-2.0-or-later
"""Small worlds for tests: a kernel, processes, and page tables written down piece by piece.

    world = World(orders={4, 9}, max_ptes_none=0)
    vma = world.vma(small(16), hole(496))
    world.scan()

Pieces fill a VMA page by page; what they leave over stays unmapped, without a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from mthp.khugepaged.collapse import collapse_huge_page
from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.daemon import Khugepaged
from mthp.khugepaged.madvise import madvise_collapse
from mthp.laws.broken import Broken
from mthp.laws.census import Census, Outside
from mthp.laws.watch import check_aborted, check_collapse, check_quiescent
from mthp.machine.hold import Hold
from mthp.machine.step import Access
from mthp.machine.task import Task
from mthp.mm import page_flags as pg
from mthp.mm.memory import handle_user_fault
from mthp.mm.mm_types import MM_ANONPAGES, Kernel, Mm, PageTable, Vma
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_counter import MemCgroup
from mthp.mm.page_flags import ENTIRELY_MAPPED, PAGE_ANON_EXCLUSIVE, PAGE_HWPOISON
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    PFN_SHIFT,
    PMD_NONE,
    PRESENT,
    SOFT_DIRTY,
    SPECIAL,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    Pmd,
    Pte,
    huge_pmd,
    leaf_kind,
    leaf_pte,
    mk_pte,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pte_pfn,
    pte_present,
    zero_pte,
)
from mthp.mm.rmap import (
    MM_IDS,
    UNKNOWN_MM,
    folio_remove_rmap_ptes,
    new_anon_folio,
    share_large_folio,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.vectorised.twins import TWINS
from mthp.words.events import Attempt, CollapseHugePage, Event, Isolate, ScanPmd, Swapin
from mthp.words.profiles import V7_3, Profile
from mthp.words.results import ScanResult
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Folio, Geometry
from mthp.worlds.build import mapped_frame, table_at

USED = PRESENT | WRITE | YOUNG | DIRTY | SOFT_DIRTY
"""PTE bits of a page that was just written."""
ON_LRU = pg.ON_LRU | pg.PG_DIRTY
"""Flags of an anonymous folio in use."""
DEFAULT = Geometry()
BAD_PMD = Pmd(Pte(PRESENT | SPECIAL))
"""Present, and neither a table nor a leaf."""
TINY = Geometry(12, 4)
"""Sixteen PTEs a table, orders 2 to 4."""


class Kind(Enum):
    HOLE = auto()
    ZERO = auto()
    PAGE = auto()
    SWAP = auto()
    LEAF = auto()
    NO_TABLE = auto()
    HUGE = auto()


@dataclass(frozen=True)
class Piece:
    """A run of pages. pte, flags: bits of every entry and folio. elsewhere: mappings by processes
    that are no part of the world. refs: references of others (pins and such). order, first: a
    folio, of which pages `first` to `first + count` are mapped."""

    kind: Kind
    count: int = 1
    order: int = 0
    first: int = 0
    pte: int = USED
    flags: int = ON_LRU
    elsewhere: int = 0
    refs: int = 0
    nid: int = 0
    leaf: Leaf = Leaf.NONE
    poisoned: bool = False


def hole(count: int = 1) -> Piece:
    """Empty entries of a table."""
    return Piece(Kind.HOLE, count)


def no_table(count: int = 1) -> Piece:
    """Pages under a PMD that is none (if no other piece of the same table makes one)."""
    return Piece(Kind.NO_TABLE, count)


def zero(count: int = 1) -> Piece:
    """The shared zero page."""
    return Piece(Kind.ZERO, count)


def swap(count: int = 1, *, uffd: bool = False, shared: bool = False) -> Piece:
    """Swapped pages, each with its own slot."""
    bits = SOFT_DIRTY | (UFFD_WP if uffd else 0) | (0 if shared else SWP_EXCLUSIVE)
    return Piece(Kind.SWAP, count, pte=bits)


def leaf(kind: Leaf, count: int = 1) -> Piece:
    """Markers, migration and device entries."""
    return Piece(Kind.LEAF, count, leaf=kind, pte=0)


def small(
    count: int = 1,
    *,
    without: int = 0,
    plus: int = 0,
    flags_without: int = 0,
    flags: int = 0,
    **fields: Any,
) -> Piece:
    """Small folios in use, minus and plus some PTE bits and folio flags."""
    pte = (USED & ~without) | plus
    return Piece(Kind.PAGE, count, pte=pte, flags=(ON_LRU & ~flags_without) | flags, **fields)


def old(count: int = 1) -> Piece:
    """Small folios that nobody used lately."""
    return small(count, without=YOUNG)


def lazyfree(count: int = 1) -> Piece:
    """Pages given up by MADV_FREE and not written since."""
    return small(count, without=DIRTY, flags_without=pg.PG_SWAPBACKED | pg.PG_DIRTY)


def shared(count: int = 1) -> Piece:
    """Small folios that another process maps too, read-only as fork() leaves them."""
    return small(count, without=WRITE, elsewhere=1)


def large(order: int, count: int | None = None, first: int = 0, **fields: Any) -> Piece:
    """A folio of `order` mapped by PTEs, whole or from page `first` on."""
    count = (1 << order) - first if count is None else count
    return replace(small(count, **fields), order=order, first=first)


def huge(order: int, **fields: Any) -> Piece:
    """A folio mapped by a PMD."""
    return replace(small(1 << order, **fields), kind=Kind.HUGE, order=order)


class World:
    """A kernel with its daemon, and one process to begin with.

    orders: the sizes set to always; the global switch is madvise. knobs: other Settings.
    """

    def __init__(
        self,
        *,
        geometry: Geometry = DEFAULT,
        profile: Profile = V7_3,
        orders: Iterable[int] | None = None,
        free: dict[int, int] | None = None,
        nodes: Sequence[NodeState] | None = None,
        cpus: int = 1,
        enabled: Enabled = Enabled.MADVISE,
        **knobs: Any,
    ) -> None:
        orders = {geometry.pmd_order} if orders is None else orders
        sizes = dict.fromkeys(geometry.anon_orders, Enabled.NEVER)
        sizes |= dict.fromkeys(orders, Enabled.ALWAYS)
        settings = Settings(geometry=geometry, enabled=enabled, sizes=sizes, **knobs)
        self.kernel = Kernel(
            settings,
            profile,
            nr_cpus=cpus,
            nodes=nodes or (NodeState(free),),
            debug=True,
            twins=TWINS,
        )
        self.kernel.fault_orders = 0
        self.geometry = geometry
        self.mem = self.kernel.mem
        self.khugepaged = Khugepaged(self.kernel)
        self.mm = self.process()
        self._next_entry = 1
        self._next_content = 1

    # Building

    def process(self, memcg: MemCgroup | None = None) -> Mm:
        """Another address space, registered with the daemon."""
        mm = self.kernel.new_mm(1000 + len(self.kernel.mms), "test", memcg)
        self.khugepaged.khugepaged_enter(mm)
        return mm

    def settings(self, **knobs: Any) -> None:
        """Write to sysfs."""
        self.kernel.settings = self.kernel.settings.replace(**knobs)

    def vma(
        self,
        *pieces: Piece,
        mm: Mm | None = None,
        flags: int = VM_DEFAULT,
        at: int = 0x40000000,
        pages: int | None = None,
        anon_vma: bool = True,
    ) -> Vma:
        """Map and fill pages from `at` on; without `pages`, as many whole tables as are filled."""
        mm = mm or self.mm
        if pages is None:
            per_table = self.geometry.ptrs_per_pte
            pages = max(-(-sum(piece.count for piece in pieces) // per_table), 1) * per_table
        vma = mm.mmap(at, at + pages * self.geometry.page_size, flags)
        if anon_vma:
            mm.link_anon_vma(vma)
        self.fill(vma, 0, *pieces)
        return vma

    def fill(self, vma: Vma, page: int, *pieces: Piece) -> None:
        """Put pieces into a mapping, from a page of it on."""
        for piece in pieces:
            address = vma.vm_start + page * self.geometry.page_size
            page += piece.count
            if piece.kind is Kind.NO_TABLE:
                continue
            if piece.kind is Kind.HUGE:
                self._map_huge(vma, address, piece)
                continue
            pages = self._folios(vma, address, piece) if piece.kind is Kind.PAGE else []
            for i in range(piece.count):
                where = address + i * self.geometry.page_size
                table = table_at(vma.vm_mm, where)
                value = mk_pte(pages[i], piece.pte) if pages else self._entry(vma, piece)
                table.ptes.raw[self.geometry.pte_index(where)] = value
                vma.vm_mm.counters[MM_ANONPAGES] += bool(pages)

    def _entry(self, vma: Vma, piece: Piece) -> int:
        """The word of a piece that has no folio."""
        if piece.kind is Kind.ZERO:
            return zero_pte()
        if piece.kind is Kind.LEAF:
            return leaf_pte(piece.leaf)
        if piece.kind is Kind.HOLE:
            return 0
        # Two apart, so that nothing but a piece that says so lies side by side.
        entry, self._next_entry = self._next_entry, self._next_entry + 2
        self.kernel.swap.hold(entry)
        return leaf_pte(Leaf.SWAP, entry, piece.pte)

    def _folios(self, vma: Vma, address: int, piece: Piece) -> list[int]:
        """The pages of a piece, in folios of their own."""
        if piece.order:
            head = self.new_folio(vma, address - piece.first * self.geometry.page_size, piece)
            return list(range(head + piece.first, head + piece.first + piece.count))
        page_size = self.geometry.page_size
        return [
            self.new_folio(vma, address + i * page_size, replace(piece, count=1))
            for i in range(piece.count)
        ]

    def new_folio(self, vma: Vma, address: int, piece: Piece) -> Folio:
        """A folio of which a piece's pages are mapped from `address` on."""
        mem = self.mem
        number = 0 if vma.anon_vma is None else vma.anon_vma.number
        head = new_anon_folio(
            mem,
            piece.order,
            nid=piece.nid,
            mapcount=0,
            anon_vma=number,
            index=address >> self.geometry.page_shift,
        )
        flags = piece.flags
        if vma.vm_flags & VM_LOCKED:
            flags |= pg.PG_MLOCKED | pg.PG_UNEVICTABLE
        is_huge = piece.kind is Kind.HUGE
        mapped = piece.count * (1 + piece.elsewhere)
        for page in range(head, head + (1 << piece.order)):
            mem.content.raw[page] = self._next_content
            self._next_content += 1
            mem.page_flags.raw[page] = PAGE_HWPOISON if piece.poisoned else 0
        if not piece.elsewhere:
            for page in range(
                head + piece.first, head + piece.first + (1 if is_huge else piece.count)
            ):
                mem.page_flags.raw[page] |= PAGE_ANON_EXCLUSIVE
        if is_huge:
            mapped = 1 + piece.elsewhere
            mem.entire_mapcount.raw[head] = mapped
            mem.nr_pages_mapped.raw[head] = ENTIRELY_MAPPED
        else:
            for page in range(head + piece.first, head + piece.first + piece.count):
                mem.mapcount.raw[page] = 1 + piece.elsewhere
            if piece.order:
                mem.nr_pages_mapped.raw[head] = piece.count
        if piece.order:
            mem.large_mapcount.raw[head] = mapped
            if piece.elsewhere:
                own = mapped // (1 + piece.elsewhere)
                share_large_folio(mem, head, {vma.vm_mm.number: own, UNKNOWN_MM: mapped - own})
            elif piece.count < 1 << piece.order:
                flags |= pg.PG_PARTIALLY_MAPPED
        mem.flags.raw[head] = flags | mem.flags.raw[head] & pg.PG_MAPPED_SHARED
        if flags & pg.PG_PARTIALLY_MAPPED:
            mem.deferred_split.add(head, mem.sublist_of(head))
        mem.refcount.raw[head] = mapped + piece.refs
        return head

    def _map_huge(self, vma: Vma, address: int, piece: Piece) -> None:
        pmd = pmd_ptr(vma.vm_mm, address, create=True)
        assert pmd is not None and pmd_none(pmd.page.pmds.raw[pmd.slot])
        folio = self.new_folio(vma, address, piece)
        pmd.page.pmds.raw[pmd.slot] = huge_pmd(folio, piece.pte)
        pmd.page.deposited.setdefault(pmd.slot, []).append(self.kernel.new_table().number)
        vma.vm_mm.counters[MM_ANONPAGES] += self.geometry.ptrs_per_pte

    def fork(self, vma: Vma, memcg: MemCgroup | None = None) -> Vma:
        """A child that maps and shares everything of one VMA, read-only on both sides."""
        child = self.process(memcg)
        copy = child.mmap(vma.vm_start, vma.vm_end, vma.vm_flags)
        child.link_anon_vma(copy, vma.anon_vma)
        step = self.geometry.pmd_size
        for start in range(self.geometry.pmd_addr(vma.vm_start), vma.vm_end, step):
            pmd = pmd_ptr(vma.vm_mm, start)
            if pmd is None or pmd_none(pmd.page.pmds.raw[pmd.slot]):
                continue
            if pmd_is_table(pmd.page.pmds.raw[pmd.slot]):
                self._fork_table(vma, child, start)
            else:
                self._fork_huge(vma, child, start)
        return copy

    def _fork_table(self, vma: Vma, child: Mm, start: int) -> None:
        mine, theirs = self.table(vma, start), table_at(child, start)
        for i, pte in enumerate(mine.ptes.raw):
            if pte_present(pte) and pte_pfn(pte):
                self._share(pte_pfn(pte), vma.vm_mm, child, 1)
                pte = mine.ptes.raw[i] = Pte(pte & ~WRITE)
            elif not pte_present(pte) and leaf_kind(pte) is Leaf.SWAP:
                self.kernel.swap.add_user(pte_pfn(pte))
                pte = mine.ptes.raw[i] = Pte(pte & ~SWP_EXCLUSIVE)
            theirs.ptes.raw[i] = pte

    def _share(self, page: int, parent: Mm, child: Mm, count: int) -> None:
        """`count` pages from `page` on get one more PTE, in the child."""
        mem = self.mem
        folio = mem.head.raw[page]
        mem.refcount.raw[folio] += count
        for each in range(page, page + count):
            mem.mapcount.raw[each] += 1
            mem.page_flags.raw[each] &= ~PAGE_ANON_EXCLUSIVE
        child.counters[MM_ANONPAGES] += count
        if mem.order.raw[folio]:
            self._know(folio, parent, child, count)
            mem.large_mapcount.raw[folio] += count

    def _know(self, folio: Folio, parent: Mm, child: Mm, count: int) -> None:
        """A large folio gets `count` mappings more, of a child; it knows whose, of the first two."""
        mem = self.mem
        known = mem.mm_mapcounts.get(folio, {parent.number: mem.large_mapcount.raw[folio]})
        if child.number in known or len(known) < MM_IDS:
            known = {**known, child.number: known.get(child.number, 0) + count}
        share_large_folio(mem, folio, known)

    def _fork_huge(self, vma: Vma, child: Mm, start: int) -> None:
        """The child shares a PMD-mapped folio by a PMD of its own."""
        mem = self.mem
        pmd, copy = pmd_ptr(vma.vm_mm, start), pmd_ptr(child, start, create=True)
        assert pmd is not None and copy is not None
        value = pmd.page.pmds.raw[pmd.slot] = pmd.page.pmds.raw[pmd.slot] & ~WRITE
        folio = mem.page_folio(pte_pfn(value))
        copy.page.pmds.raw[copy.slot] = value
        copy.page.deposited.setdefault(copy.slot, []).append(self.kernel.new_table().number)
        mem.refcount.raw[folio] += 1
        mem.entire_mapcount.raw[folio] += 1
        self._know(folio, vma.vm_mm, child, 1)
        mem.large_mapcount.raw[folio] += 1
        mem.page_flags.raw[folio] &= ~PAGE_ANON_EXCLUSIVE
        child.counters[MM_ANONPAGES] += self.geometry.ptrs_per_pte

    def split_pmd(self, vma: Vma, address: int = 0) -> None:
        """Map a huge PMD's folio by PTEs of the deposited table. Kernel: __split_huge_pmd()."""
        mem = self.mem
        address = address or vma.vm_start
        pmd = pmd_ptr(vma.vm_mm, address)
        assert pmd is not None
        value = pmd.page.pmds.raw[pmd.slot]
        folio, nr = mem.page_folio(pte_pfn(value)), self.geometry.ptrs_per_pte
        table = self.kernel.tables[pmd.page.deposited[pmd.slot].pop()]
        del pmd.page.deposited[pmd.slot]
        exclusive = mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE
        for i in range(nr):
            table.ptes.raw[i] = mk_pte(folio + i, value & USED)
            mem.mapcount.raw[folio + i] += 1
            mem.page_flags.raw[folio + i] |= exclusive
        mem.refcount.raw[folio] += nr - 1
        mem.large_mapcount.raw[folio] += nr - 1
        mem.entire_mapcount.raw[folio] -= 1
        left = ENTIRELY_MAPPED if mem.entire_mapcount.raw[folio] else 0
        mem.nr_pages_mapped.raw[folio] = nr + left
        known = mem.mm_mapcounts.get(folio, {})
        if vma.vm_mm.number in known:
            known[vma.vm_mm.number] = nr
        pmd.page.pmds.raw[pmd.slot] = table.number << PFN_SHIFT | PRESENT

    def zap(self, vma: Vma, page: int, count: int) -> None:
        """MADV_DONTNEED of pages mapped by PTEs."""
        mem = self.mem
        for i in range(page, page + count):
            address = vma.vm_start + i * self.geometry.page_size
            table = self.table(vma, address)
            at = self.geometry.pte_index(address)
            pfn = pte_pfn(table.ptes.raw[at])
            folio = mem.head.raw[pfn]
            table.ptes.raw[at] = 0
            vma.vm_mm.counters[MM_ANONPAGES] -= 1
            folio_remove_rmap_ptes(mem, self.kernel.this_cpu, folio, pfn, 1, vma)
            mem.folio_put(folio)

    # Finding

    def table(self, vma: Vma, address: int = 0) -> PageTable:
        """The table at an address of a VMA."""
        pmd = pmd_ptr(vma.vm_mm, address or vma.vm_start)
        assert pmd is not None
        return self.kernel.tables[pmd_pgtable(pmd.page.pmds.raw[pmd.slot])]

    def pmd(self, vma: Vma, address: int = 0) -> Pmd:
        """The PMD word at an address of a VMA."""
        pmd = pmd_ptr(vma.vm_mm, address or vma.vm_start)
        return PMD_NONE if pmd is None else pmd.page.pmds.raw[pmd.slot]

    def set_pmd(self, vma: Vma, value: int) -> None:
        """Overwrite the first PMD of a VMA; a table waits under it, unless it is none or shows one."""
        pmd = pmd_ptr(vma.vm_mm, vma.vm_start, create=True)
        assert pmd is not None
        pmd.page.pmds.raw[pmd.slot] = value
        if not pmd_none(value) and not pmd_is_table(value):
            pmd.page.deposited[pmd.slot] = [self.kernel.new_table().number]

    def address(self, vma: Vma, page: int) -> int:
        return vma.vm_start + page * self.geometry.page_size

    def folio(self, vma: Vma, page: int) -> Folio:
        """The folio a page of a VMA maps."""
        pfn = mapped_frame(vma.vm_mm, self.address(vma, page))
        assert pfn
        return self.mem.head.raw[pfn]

    def orders(self, vma: Vma) -> list[int]:
        """The orders of the folios of a VMA, by address, each folio once; -1 for what has none."""
        found: list[int] = []
        last = None
        for page in range((vma.vm_end - vma.vm_start) >> self.geometry.page_shift):
            pfn = mapped_frame(vma.vm_mm, self.address(vma, page))
            folio = self.mem.head.raw[pfn] if pfn else None
            if folio is None:
                found.append(-1)
            elif folio != last:
                found.append(self.mem.order.raw[folio])
            last = folio
        return found

    # Meddling

    def pin(self, vma: Vma, page: int, refs: int = 1) -> None:
        """References of a long-lived GUP."""
        self.mem.refcount.raw[self.folio(vma, page)] += refs

    def lock(self, vma: Vma, page: int) -> None:
        """Somebody else has the folio lock."""
        self.mem.flags.raw[self.folio(vma, page)] |= pg.PG_LOCKED

    def off_lru(self, vma: Vma, page: int) -> None:
        """Somebody else isolated the folio."""
        self.mem.flags.raw[self.folio(vma, page)] &= ~pg.PG_LRU

    def poison(self, vma: Vma, page: int) -> None:
        """Memory failure under a page nobody touched yet."""
        pfn = mapped_frame(vma.vm_mm, self.address(vma, page))
        assert pfn
        self.mem.page_flags.raw[pfn] |= PAGE_HWPOISON

    def cache_swapped(self, vma: Vma, page: int, *, locked: bool = False) -> Folio:
        """Another process read a swapped page back: its folio stands in the swap cache."""
        entry = pte_pfn(
            self.table(vma, self.address(vma, page)).ptes.raw[
                self.geometry.pte_index(self.address(vma, page))
            ]
        )
        flags = (ON_LRU & ~pg.PG_ANON) | pg.PG_SWAPCACHE | (pg.PG_LOCKED if locked else 0)
        folio = new_anon_folio(self.mem, flags=flags, mapcount=0)
        self.mem.content.raw[folio] = self.kernel.swap.contents[entry]
        self.kernel.swap.add_to_cache(entry, folio, 1)
        return folio

    def held_by_another(self, take: Callable[[], Hold]) -> Hold:
        """A lock that another task holds."""
        mine, self.kernel.machine.current = self.kernel.machine.current, Task("another")
        hold = take()
        self.kernel.machine.current = mine
        return hold

    def before_lock(self, lock: object, nth: int, act: Callable[[], None]) -> None:
        """Do something just before a lock is taken for the n-th time (from 1) from now on."""
        seen = 0

        def hook(access: Access, word: object, index: int, bits: int) -> None:
            nonlocal seen
            if access in (Access.ACQUIRE, Access.TRY) and word is lock:
                seen += 1
                if seen == nth:
                    act()

        self.kernel.machine.on_step = hook

    # Running

    def scan(self, wakeups: int = 1) -> list[Event]:
        """Wake the daemon; the events of these wakeups."""
        at = len(self.kernel.events)
        for _ in range(wakeups):
            self.khugepaged.khugepaged_do_scan()
        return self.kernel.events[at:]

    def madvise(self, vma: Vma) -> int:
        """MADV_COLLAPSE over a whole VMA."""
        return madvise_collapse(vma, vma.vm_start, vma.vm_end)

    def collapse(
        self,
        vma: Vma,
        order: int | None = None,
        page: int = 0,
        *,
        unmapped: int = 0,
        caller: Caller = Caller.KHUGEPAGED,
    ) -> ScanResult:
        """collapse_huge_page() on one window."""
        order = self.geometry.pmd_order if order is None else order
        cc = CollapseControl(caller)
        address = self.address(vma, page)
        return collapse_huge_page(vma.vm_mm, address, 1, unmapped, cc, order)

    def census(self) -> Census:
        return Census(self.kernel)

    def check(self, outside: Outside) -> list[Broken]:
        """Laws at rest."""
        return check_quiescent(self.kernel, self.khugepaged, outside)

    def assert_sound(self, before: Census, *, aborted: bool = False) -> None:
        """No law is broken, now and since `before`."""
        assert self.check(before.outside) == []
        compare = check_aborted if aborted else check_collapse
        assert compare(before, self.kernel) == []


def huge_fault(mm: Mm, address: int) -> None:
    """A store faults, where a fault may give a whole table's page, and no other large one."""
    kernel = mm.kernel
    kernel.fault_orders = 1 << kernel.geometry.pmd_order
    handle_user_fault(mm, address, write=True)
    kernel.fault_orders = 0


def scans(events: Iterable[Event]) -> list[ScanResult]:
    """The statuses of mm_khugepaged_scan_pmd."""
    return [event.status for event in events if isinstance(event, ScanPmd)]


def attempts(events: Iterable[Event]) -> list[tuple[int, ScanResult]]:
    """(order, status) of every attempt that ended."""
    return [(e.order, e.status) for e in events if isinstance(e, CollapseHugePage)]


def isolations(events: Iterable[Event]) -> list[ScanResult]:
    return [event.status for event in events if isinstance(event, Isolate)]


def swapins(events: Iterable[Event]) -> list[ScanResult]:
    return [event.ret for event in events if isinstance(event, Swapin)]


def windows(events: Iterable[Event], vma: Vma) -> list[tuple[int, int]]:
    """(page of the VMA, order) of every attempt that began."""
    shift = vma.vm_mm.geometry.page_shift
    return [
        ((e.address - vma.vm_start) >> shift, e.order) for e in events if isinstance(e, Attempt)
    ]


__all__ = [
    "SPECIAL",
    "TINY",
    "Piece",
    "World",
    "attempts",
    "hole",
    "huge",
    "huge_fault",
    "isolations",
    "large",
    "lazyfree",
    "leaf",
    "no_table",
    "old",
    "scans",
    "shared",
    "small",
    "swap",
    "swapins",
    "windows",
    "zero",
]
