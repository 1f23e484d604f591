# SPDX-License-Identifier: GPL-2.0-or-later
"""A small world with one table of a larger one, to try a change on."""

from __future__ import annotations

import hashlib
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mthp.khugepaged.daemon import Khugepaged
from mthp.khugepaged.eligibility import hugepage_enabled
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.mem_map import MemMap
from mthp.mm.mm_types import Kernel, Vma
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_flags import ON_LRU, PG_MAPPED_SHARED, PG_SWAPCACHE
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    PFN_SHIFT,
    PRESENT,
    PTE_FLAGS_MASK,
    YOUNG,
    Leaf,
    leaf_kind,
    mk_pte,
    pmd_is_table,
    pmd_pgtable,
)
from mthp.mm.rmap import new_anon_folio
from mthp.mm.swap_table import SwapDevice
from mthp.predict.measure import TlbModel, entries_of, translations_of
from mthp.predict.passes import Tally, run_full_scans
from mthp.vectorised.twins import TWINS
from mthp.words.units import Folio
from mthp.worlds.build import table_at

_COPIED_PAGES = ("content", "mapcount", "page_flags")
_COPIED_HEAD = (
    "flags",
    "refcount",
    "large_mapcount",
    "entire_mapcount",
    "nr_pages_mapped",
    "index",
)
_ALIKE = ("nid", "order", *_COPIED_HEAD[:-1], *_COPIED_PAGES[1:])
"""Rows that decide what becomes of a page: not what it contains, and its address counts from the table's."""
_TRIAL_FULL_SCANS = 20
"""More full scans than one table needs to come to rest at every order."""


class Trial:
    """One table of a mapping in a world of its own. table and vma are the copies.

    written: pages that changes have written anew; copied: those of them that were copies.
    """

    def __init__(self, vma: Vma, pmd_addr: int) -> None:
        source = vma.vm_mm.kernel
        nodes = [
            NodeState(
                {order: len(blocks) + unborn for order, (blocks, unborn) in enumerate(
                    zip(node.blocks, node.unborn, strict=True)
                )}
                if not node.endless
                else None,
                node.reserve,
                node.largest,
                node.reclaimable,
                node.pcp_high,
            )
            for node in source.mem.allocator.nodes
        ]  # fmt: skip
        self.kernel = Kernel(source.settings, source.profile, nr_cpus=1, nodes=nodes, twins=TWINS)
        self.kernel.node_reclaim = source.node_reclaim
        self.kernel.node_reclaim_distance = source.node_reclaim_distance
        self.kernel.distances = source.distances
        self.kernel.order_policy = source.order_policy
        self.pmd_addr = pmd_addr
        self.written = self.copied = 0
        memcg = vma.vm_mm.memcg
        if memcg is not None:
            copied = self.kernel.new_memcg(memcg.name, memcg.limit, memcg.usage.value)
            copied.reclaimable, copied.defer = memcg.reclaimable, memcg.defer
            copied.stock = memcg.stock
        self.mm = self.kernel.new_mm(
            vma.vm_mm.number, vma.vm_mm.comm, self.kernel.memcgs[0] if memcg else None
        )
        self.mm.flags.value = vma.vm_mm.flags.value & ~1
        end = pmd_addr + source.geometry.pmd_size
        self.vma = self.mm.mmap(
            max(vma.vm_start, pmd_addr), min(vma.vm_end, end), vma.vm_flags, file=vma.file
        )
        if vma.anon_vma is not None:
            self.mm.link_anon_vma(self.vma)
        self._copy_table(vma, pmd_addr)

    def _copy_table(self, vma: Vma, pmd_addr: int) -> None:
        source = vma.vm_mm.kernel
        pmd = pmd_ptr(vma.vm_mm, pmd_addr)
        value = pmd.page.pmds.raw[pmd.slot] if pmd is not None else 0
        if not pmd_is_table(value):
            return
        table = table_at(self.mm, pmd_addr)
        self.ptes = table.ptes.raw
        first = source.geometry.pte_index(self.vma.vm_start)
        pages = (self.vma.vm_end - self.vma.vm_start) >> source.geometry.page_shift
        part = slice(first, first + pages)
        words = source.tables[pmd_pgtable(value)].ptes.view()[part].copy()
        pfns = words >> PFN_SHIFT
        mapped = (words & PRESENT != 0) & (pfns != 0)
        heads = source.mem.head.view()[pfns[mapped]].astype(np.int64)
        distinct, firsts, places = np.unique(heads, return_index=True, return_inverse=True)
        met = firsts.argsort()
        ours = np.empty_like(distinct)
        ours[met] = _copy_folios(source.mem, distinct[met], self.kernel.mem)
        if self.mm.memcg is not None:
            self.kernel.mem.memcg.view()[ours] = self.mm.memcg.number
        words[mapped] += (ours - distinct)[places] << PFN_SHIFT
        table.ptes.view()[part] = words
        for word in words[(words != 0) & (words & PRESENT == 0)].tolist():
            if leaf_kind(word) is Leaf.SWAP:
                slot = word >> PFN_SHIFT
                self.kernel.swap.users[slot] = source.swap.users[slot]
        self._copy_swap_cache(source.swap, distinct[met].tolist(), ours[met].tolist())
        self.kernel.swap.synchronous = source.swap.synchronous
        self.kernel.swap.failing = set(source.swap.failing)

    def _copy_swap_cache(self, source: SwapDevice, theirs: list[Folio], ours: list[Folio]) -> None:
        """Copy the slots of the table's own folios; folios of others are not in a trial world."""
        for head, our in zip(theirs, ours, strict=True):
            if head in source.entry_of:
                entry, nr = source.entry_of[head], self.kernel.mem.folio_nr_pages(our)
                self.kernel.swap.add_to_cache(entry, our, nr)
                named = {
                    slot: source.users[slot]
                    for slot in range(entry, entry + nr)
                    if slot in source.users
                }
                self.kernel.swap.users |= named

    def likeness(self) -> bytes:
        """A digest of all that a run depends on, but for the settings and what the whole mm has: two
        trials of one mm that have the same before anything is changed or run end alike.
        """
        mem, swap, vma = self.kernel.mem, self.kernel.swap, self.vma
        whole = hashlib.blake2b()
        whole.update(
            repr(
                (
                    vma.vm_start - self.pmd_addr, vma.vm_end - self.pmd_addr, vma.vm_flags,
                    vma.file, vma.anon_vma is not None, sorted(mem.mm_mapcounts.items()),
                    sorted(swap.users.items()), sorted(swap.entry_of.items()),
                )
            ).encode()
        )  # fmt: skip
        whole.update(self.ptes)
        for name in _ALIKE:
            whole.update(getattr(mem, name).raw[: mem.nr_frames])
        index = mem.index.view()[: mem.nr_frames]
        first = self.pmd_addr >> self.kernel.geometry.page_shift
        whole.update(np.where(index, index - first, 0).tobytes())
        return whole.digest()

    def frame(self, i: int) -> int:
        """The frame that PTE i maps, 0 for none or the zero page."""
        word = self.ptes[i]
        return word >> PFN_SHIFT if word & PRESENT else 0

    def folio(self, i: int) -> Folio:
        """The folio that PTE i maps, 0 for none."""
        return self.kernel.mem.head.raw[self.frame(i)]

    def write_new(self, i: int) -> None:
        """PTE i maps a small page of its own; the flags and bits of a page that was there stay."""
        mem = self.kernel.mem
        flags, bits = ON_LRU, YOUNG | DIRTY
        self.written += 1
        if self.frame(i):
            self.copied += 1
            flags = mem.flags.raw[self.folio(i)] & ~(PG_MAPPED_SHARED | PG_SWAPCACHE)
            bits = self.ptes[i] & PTE_FLAGS_MASK
        self.ptes[i] = mk_pte(new_anon_folio(mem, flags=flags), bits)

    def _is_huge(self) -> bool:
        pmd = pmd_ptr(self.mm, self.pmd_addr)
        value = pmd.page.pmds.raw[pmd.slot] if pmd is not None else 0
        return value != 0 and not pmd_is_table(value)

    def orders(self) -> NDArray[np.int8]:
        """The order of the folio behind each PTE, -1 where there is none."""
        if self._is_huge():
            nr, order = self.kernel.geometry.ptrs_per_pte, self.kernel.geometry.pmd_order
            return np.full(nr, order, np.int8)
        mem, words = self.kernel.mem, np.array(self.ptes, np.int64)
        frames = np.where(words & PRESENT, words >> PFN_SHIFT, 0)
        return np.where(frames, mem.order.view()[mem.head.view()[frames]], np.int8(-1))

    def frames_out(self) -> int:
        """What two calls tell the change of the frames in use by, but for those written anew."""
        lru_add_drain_all(self.kernel.mem, self.kernel.cpus)
        return self.kernel.mem.allocator.frames_out()

    def translations(self, tlb: TlbModel) -> int:
        """How many translations the mapping needs now."""
        if tlb is not TlbModel.PLAIN:
            return sum(translations_of(each, tlb) for each in entries_of(self.kernel, [self.vma]))
        if self._is_huge():
            return 1
        return int(np.count_nonzero(np.array(self.ptes, np.int64) & PRESENT))

    def run(self) -> Tally:
        """Scan until nothing changes."""
        daemon = Khugepaged(self.kernel)
        tally = Tally(self.kernel)
        if hugepage_enabled(self.kernel):
            daemon.khugepaged_enter(self.mm)
        self.kernel.settings = self.kernel.settings.replace(pages_to_scan=2**32 - 1)
        run_full_scans(self.kernel, daemon, tally, passes=None, most=_TRIAL_FULL_SCANS)
        return tally


def _copy_folios(source: MemMap, heads: NDArray[np.int64], target: MemMap) -> NDArray[np.int64]:
    """Copy folios with their flags and counts, and the references they have, to other frames."""
    orders = source.order.view()[heads]
    made: list[int] = []
    kinds = zip(source.nid.view()[heads].tolist(), orders.tolist(), strict=True)
    for (nid, order), alike in groupby(kinds):
        nr = len(list(alike))
        first = target.new_frames(nid, order, nr)
        made += range(first, first + (nr << order), 1 << order)
    ours = np.array(made, np.int64)
    sizes = np.int64(1) << orders
    within = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
    frames = np.repeat(ours, sizes) + within
    target.head.view()[frames] = np.repeat(ours, sizes)
    target.order.view()[ours] = orders
    for name in _COPIED_HEAD:
        getattr(target, name).view()[ours] = getattr(source, name).view()[heads]
    for name in _COPIED_PAGES:
        getattr(target, name).view()[frames] = getattr(source, name).view()[
            np.repeat(heads, sizes) + within
        ]
    if source.mm_mapcounts:
        for theirs, our in zip(heads.tolist(), ours.tolist(), strict=True):
            counts = source.mm_mapcounts.get(theirs)
            if counts is not None:
                target.mm_mapcounts[our] = dict(counts)
    return ours
