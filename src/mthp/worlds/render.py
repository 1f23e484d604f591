# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a world back as a scenario's state strings say it: the reverse of mthp.worlds.build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from mthp.image.runs import (
    FolioToken,
    PageKind,
    PagesState,
    PteState,
    PteToken,
    node_runs,
    parse_pte_token,
)
from mthp.image.snapshot import KPF_OF_LETTER
from mthp.mm.mm_types import Kernel, Vma
from mthp.mm.page_flags import PAGE_HWPOISON
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    PFN_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    Leaf,
    leaf_kind,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pte_pfn,
)
from mthp.mm.swap_table import swp_offset, swp_type
from mthp.mm.vm_flags import VM_SOFTDIRTY
from mthp.worlds.build import mapped_frame
from mthp.worlds.from_scenario import PTE_LETTERS
from mthp.worlds.swap_cache import PG_OF_KPF

_NONE = FolioToken(PageKind.NONE)
_NO_TABLE = PteToken(PteState.NO_TABLE)
_PTE_LETTERS = {**PTE_LETTERS, "U": UFFD_WP}
_PTE_SHOWN = sum(_PTE_LETTERS.values())
_PAGE_FLAGS = {letter: PG_OF_KPF.get(kpf, 0) for letter, kpf in KPF_OF_LETTER.items()}
_PAGE_SHOWN = sum(_PAGE_FLAGS.values())
_SPECIAL_TYPE = {Leaf.HWPOISON: 24, Leaf.MIGRATION: 26, Leaf.DEVICE: 28}


@lru_cache(maxsize=1 << 12)
def _flag_letters(flags: int, poisoned: int, large: bool) -> str:
    """The letters of a page's flags and of its folio's."""
    own = {"P": poisoned, "T": large}
    return "".join(letter for letter, flag in _PAGE_FLAGS.items() if own.get(letter, flags & flag))


@lru_cache(maxsize=1 << 12)
def _entry(pte: int, level: str) -> PteToken:
    """A present entry. level: H of a huge PMD, empty of a PTE."""
    letters = "".join(letter for letter, bit in _PTE_LETTERS.items() if pte & bit)
    return parse_pte_token(f"{level}P{letters}")


class Renderer:
    """Renders VMAs of one world; folio identities are numbered in the order they are met."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.identities: dict[int, int] = {}

    def pages(self, vma: Vma, start: int, end: int) -> tuple[list[FolioToken], list[PteToken]]:
        """Yield two tokens for every page of [start, end) of a mapping, in bytes."""
        folios: list[FolioToken] = []
        entries: list[PteToken] = []
        geometry = self.kernel.geometry
        while start < end:
            first = geometry.pte_index(start)
            count = min(geometry.ptrs_per_pte - first, (end - start) >> geometry.page_shift)
            pmd = pmd_ptr(vma.vm_mm, start)
            value = pmd.page.pmds.raw[pmd.slot] if pmd is not None else 0
            if pmd_none(value):
                folios += [_NONE] * count
                entries += [_NO_TABLE] * count
            elif pmd_is_table(value):
                ptes = self.kernel.tables[pmd_pgtable(value)].ptes.raw[first : first + count]
                folios += [self.folio_token(vma, pte) for pte in ptes]
                entries += map(self.pte_token, ptes)
            else:
                folios += self.huge(vma, value, first, count)
                entries += [_entry(value & _PTE_SHOWN, "H")] * count
            start += count << geometry.page_shift
        return folios, entries

    def huge(self, vma: Vma, pmd: int, first: int, count: int) -> list[FolioToken]:
        """Yield the pages behind a huge PMD. pagemap says of all of them "mapped exclusively" or
        not as it is with the first: the walk does not move on to the next page for that.

        Kernel: fs/proc/task_mmu.c, pagemap_pmd_range_thp()
        """
        pfn = pmd >> PFN_SHIFT
        if not pfn:
            return [FolioToken(PageKind.HUGE_ZERO)] * count
        tokens = [self.page(vma, pfn + i, pmd) for i in range(first, first + count)]
        exclusive = "x" if "x" in tokens[0].pagemap else ""
        return [
            token
            if (pagemap := exclusive + token.pagemap.replace("x", "")) == token.pagemap
            else replace(token, pagemap=pagemap)
            for token in tokens
        ]

    def pte_token(self, pte: int) -> PteToken:
        """Say what the page table says."""
        if pte == 0:
            return parse_pte_token("-")
        return _entry(pte & _PTE_SHOWN, "") if pte & PRESENT else parse_pte_token("s")

    def folio_token(self, vma: Vma, pte: int) -> FolioToken:
        """Say what pagemap, kpageflags and kpagecount say."""
        if pte == 0:
            return _NONE
        if pte & PRESENT:
            pfn = pte >> PFN_SHIFT
            return self.page(vma, pfn, pte) if pfn else FolioToken(PageKind.ZERO)
        kind = leaf_kind(pte)
        if kind is Leaf.GUARD:
            return FolioToken(PageKind.GUARD)
        return self.swap_token(vma, kind, pte)

    def swap_token(self, vma: Vma, kind: Leaf, pte: int) -> FolioToken:
        """Say what an entry is that is not present."""
        wp = "w" if pte & UFFD_WP else ""
        if kind is not Leaf.SWAP:
            return FolioToken(PageKind.SWAP, swap_type=_SPECIAL_TYPE.get(kind, 31), swap_letters=wp)
        entry = pte_pfn(pte)
        clean = not (pte & SOFT_DIRTY or vma.vm_flags & VM_SOFTDIRTY)
        return FolioToken(
            PageKind.SWAP,
            swap_type=swp_type(entry),
            swap_letters=wp + ("" if pte & SWP_EXCLUSIVE else "f") + ("c" if clean else ""),
            swap_offset=swp_offset(entry),
        )

    def page(self, vma: Vma, pfn: int, pte: int) -> FolioToken:
        """Say what is seen of one mapped page of a folio."""
        mem = self.kernel.mem
        head = mem.head.raw[pfn]
        order = mem.order.raw[head]
        flags = mem.flags.raw[head]
        poisoned = mem.page_flags.raw[pfn] & PAGE_HWPOISON
        letters = _flag_letters(flags & _PAGE_SHOWN, poisoned, order > 0)
        mapcount = mem.mapcount.raw[pfn] + mem.entire_mapcount.raw[head]
        pagemap = "x" if mapcount == 1 else ""
        pagemap += "w" if pte & UFFD_WP else ""
        pagemap += "s" if pte & SOFT_DIRTY or vma.vm_flags & VM_SOFTDIRTY else ""
        if not order:
            return FolioToken(PageKind.FOLIO, 0, letters, pagemap, mapcount)
        identity = self.identities.setdefault(head, len(self.identities))
        return FolioToken(PageKind.FOLIO, order, letters, pagemap, mapcount, identity, pfn - head)


def render_state(kernel: Kernel, vmas: list[Vma]) -> list[PagesState]:
    """The state of each VMA, folio identities shared among them; with nodes if there are several."""
    renderer = Renderer(kernel)
    states = [
        PagesState.of_pages(
            *renderer.pages(vma, vma.vm_start, vma.vm_end), vma.vm_start, kernel.geometry
        )
        for vma in vmas
    ]
    if len(kernel.mem.allocator.nodes) == 1:
        return states
    return [
        replace(state, nodes=node_runs(_nodes(kernel, vma)))
        for state, vma in zip(states, vmas, strict=True)
    ]


def _nodes(kernel: Kernel, vma: Vma) -> Iterator[tuple[int, int | None]]:
    """Each page by itself, with the node of its folio."""
    for address in range(vma.vm_start, vma.vm_end, kernel.geometry.page_size):
        pfn = mapped_frame(vma.vm_mm, address)
        yield 1, kernel.mem.nid.raw[pfn] if pfn else None


def canonical(states: list[PagesState]) -> list[PagesState]:
    """The same states with folio identities numbered as they appear, and flags in one order. Offsets
    of swap entries stay: nothing moves a slot."""
    names: dict[int, int] = {}
    result = []
    for state in states:
        runs = []
        for count, token in state.folios:
            # A base page is its own folio: a record may name it (KSM), the comparison need not.
            identity = token.folio if token.order else None
            if identity is not None:
                identity = names.setdefault(identity, len(names))
            flags = "".join(sorted(token.flags))
            # Who else names a slot is known of a record by what it shows, not for itself.
            runs.append((count, replace(token, folio=identity, flags=flags, swap_outside=0)))
        result.append(replace(state, folios=tuple(runs)))
    return result
