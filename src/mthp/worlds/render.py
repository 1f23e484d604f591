# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a world back as a scenario's state strings say it: the reverse of mthp.worlds.build."""

from __future__ import annotations

from dataclasses import replace

from mthp.image.runs import (
    FolioToken,
    PageKind,
    PagesState,
    PteState,
    PteToken,
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
from mthp.worlds.build import PG_OF_KPF
from mthp.worlds.from_scenario import PTE_LETTERS

_NONE = FolioToken(PageKind.NONE)
_NO_TABLE = PteToken(PteState.NO_TABLE)
_PTE_LETTERS = {**PTE_LETTERS, "U": UFFD_WP}
_PAGE_FLAGS = {letter: PG_OF_KPF.get(kpf, 0) for letter, kpf in KPF_OF_LETTER.items()}
_SPECIAL_TYPE = {Leaf.HWPOISON: 24, Leaf.MIGRATION: 26, Leaf.DEVICE: 28}


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
                entries += [parse_pte_token("H" + self.letters(value))] * count
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
            replace(token, pagemap=exclusive + token.pagemap.replace("x", "")) for token in tokens
        ]

    def letters(self, pte: int) -> str:
        """The letters P W A D U of a present entry."""
        return "P" + "".join(letter for letter, bit in _PTE_LETTERS.items() if pte & bit)

    def pte_token(self, pte: int) -> PteToken:
        """Say what the page table says."""
        if pte == 0:
            return parse_pte_token("-")
        return parse_pte_token(self.letters(pte) if pte & PRESENT else "s")

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
        own = {"P": mem.page_flags.raw[pfn] & PAGE_HWPOISON, "T": order}
        letters = "".join(
            letter for letter, flag in _PAGE_FLAGS.items() if own.get(letter, flags & flag)
        )
        mapcount = mem.mapcount.raw[pfn] + mem.entire_mapcount.raw[head]
        pagemap = "x" if mapcount == 1 else ""
        pagemap += "w" if pte & UFFD_WP else ""
        pagemap += "s" if pte & SOFT_DIRTY or vma.vm_flags & VM_SOFTDIRTY else ""
        if not order:
            return FolioToken(PageKind.FOLIO, 0, letters, pagemap, mapcount)
        identity = self.identities.setdefault(head, len(self.identities))
        return FolioToken(PageKind.FOLIO, order, letters, pagemap, mapcount, identity, pfn - head)


def render_state(kernel: Kernel, vmas: list[Vma]) -> list[PagesState]:
    """The state of each VMA, folio identities shared among them."""
    renderer = Renderer(kernel)
    return [
        PagesState.of_pages(
            *renderer.pages(vma, vma.vm_start, vma.vm_end), vma.vm_start, kernel.geometry
        )
        for vma in vmas
    ]


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
