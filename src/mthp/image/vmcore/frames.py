# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc/kpageflags and kpagecount would say of frames, out of their struct pages in a dump.

Kernel: fs/proc/page.c, stable_page_flags() and get_kpage_count(); include/linux/page-flags.h.
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.frames import (
    BROKEN,
    KPF_ANON,
    KPF_HEAD,
    KPF_TAIL,
    KPF_THP,
    KPF_ZERO_PAGE,
    Frames,
)
from mthp.image.capture.pagemap import PRESENT
from mthp.image.pages_at_once import PagesAtOnce
from mthp.image.vmcore.structures import DumpKernel
from mthp.words.units import Geometry

Words = NDArray[np.uint64]
_KPF_MMAP, _KPF_SWAPCACHE, _KPF_KSM = 1 << 11, 1 << 13, 1 << 21
_BITS = {
    "PG_locked": 0, "PG_referenced": 2, "PG_uptodate": 3, "PG_dirty": 4, "PG_lru": 5, "PG_active": 6,
    "PG_writeback": 8, "PG_reclaim": 9, "PG_swapbacked": 14, "PG_unevictable": 18, "PG_idle": 25,
    "PG_reserved": 32, "PG_mlocked": 33, "PG_owner_2": 34, "PG_private": 35, "PG_private_2": 36,
    "PG_owner_priv_1": 37, "PG_arch_1": 38, "PG_arch_2": 41, "PG_arch_3": 42,
}  # fmt: skip
"""A flag of the folio -> its bit in kpageflags. Kernel: include/uapi/linux/kernel-page-flags.h."""
_HWPOISON = 19
_MAPPING_ANON, _MAPPING_KSM = 1, 2
_ORDER_BITS = np.uint64(0xFF)
_MASK_OR_NEITHER = np.uint64((1 << 64) - (1 << 30))
"""All bits above a mask's; an address of a struct page never has them all."""


class FrameFacts(NamedTuple):
    """Of each frame: its word of kpageflags, how often it is mapped, the order of its folio (BROKEN where
    head and tail do not fit), and whether its folio is young."""

    flags: Words
    counts: NDArray[np.uint32]
    orders: NDArray[np.uint8]
    young: NDArray[np.bool_]


class DumpFrames(Frames):
    """The frames of a dump: nothing of them is in files of /proc."""

    def __init__(self, kernel: DumpKernel, pages: PagesAtOnce, geometry: Geometry) -> None:
        super().__init__(-1, -1, geometry)
        self.kernel, self.pages = kernel, pages
        zero = kernel.symbol("zero_page_pfn") or kernel.symbol("zero_pfn")
        huge = kernel.symbol("huge_zero_pfn")
        self.zero = (1 << 64) - 1 if zero is None else zero
        self.huge_zero = (1 << 64) - 1 if huge is None else huge
        self.swap_files = min(kernel.symbol("nr_swapfiles", 4) or 0, 31)
        self._bits = {kernel.flags[k]: bit for k, bit in _BITS.items() if k in kernel.flags}

    def close(self) -> None:
        """No file is open."""

    def lie_apart(self, words: bytearray) -> bool:
        """As Frames.lie_apart(): what is asked together is found together."""
        return False

    def look_up(
        self, pfns: array[int], low: bytes, known: Any = None
    ) -> tuple[bytes, bytes, bytes]:
        """As Frames.look_up()."""
        asked = np.frombuffer(pfns, np.uint64)
        there = np.frombuffer(low, np.uint8) & PRESENT != 0
        facts = self.facts(asked[there])
        flags, counts = np.zeros(len(asked), np.uint64), np.zeros(len(asked), np.uint32)
        orders = np.zeros(len(asked), np.uint8)
        flags[there], counts[there], orders[there] = facts.flags, facts.counts, facts.orders
        return flags.tobytes(), counts.tobytes(), orders.tobytes()

    def facts(self, pfns: Words) -> FrameFacts:
        """What there is of frames in any order; nothing of those without a struct page."""
        frames, inverse = np.unique(pfns, return_inverse=True)
        kernel, pages = self.kernel, self.pages
        own, unread = pages.struct_pages(frames)
        flags = pages.field(own, "page.flags", np.uint64)
        mapped = _mapped(pages.field(own, "page._mapcount", np.uint32))
        is_tail, heads = self._heads(frames, own)
        firsts, of = np.unique(heads, return_inverse=True)
        first, lost = pages.struct_pages(firsts)
        of_head = pages.field(first, "page.flags", np.uint64)
        is_head = self._has(of_head, "PG_head")
        second, _ = pages.struct_pages(firsts + is_head.astype(np.uint64))
        more = pages.field(second, "page.flags", np.uint64)
        order = np.where(is_head, more & _ORDER_BITS, np.uint64(0)).astype(np.uint8)
        mapping = pages.field(first, "folio.mapping", np.uint64)
        both = np.concatenate([first, second], axis=1)
        entire = _one_more(pages.field(both, "folio._entire_mapcount", np.uint32))
        large = _one_more(pages.field(both, "folio._large_mapcount", np.uint32))
        small = _mapped(pages.field(first, "page._mapcount", np.uint32))
        anon = mapping & np.uint64(_MAPPING_ANON) != 0
        words = np.zeros(len(firsts), np.uint64)
        for place, bit in self._bits.items():
            words |= (of_head >> np.uint64(place) & np.uint64(1)) << np.uint64(bit)
        words |= np.where(np.where(is_head, large, small) > 0, np.uint64(_KPF_MMAP), np.uint64(0))
        words |= np.where(anon, np.uint64(KPF_ANON), np.uint64(0))
        ksm = anon & (mapping & np.uint64(_MAPPING_KSM) != 0)
        words |= np.where(ksm, np.uint64(_KPF_KSM), np.uint64(0))
        cached = self._has(of_head, "PG_swapbacked") & self._has(of_head, "PG_owner_priv_1")
        words |= np.where(cached, np.uint64(_KPF_SWAPCACHE), np.uint64(0))
        thp = is_head & self._has(more, "PG_workingset")  # Kernel: PG_large_rmappable
        words |= np.where(thp, np.uint64(KPF_THP), np.uint64(0))
        young = self._has(of_head, "PG_young") | self._has(of_head, "PG_referenced")
        broken = lost | (is_head & ((order == 0) | (order > 63)))
        order = np.where(broken, BROKEN, order).astype(np.uint8)
        beyond = (frames - heads) >> np.minimum(order[of], 63).astype(np.uint64) != 0
        orders = np.where(beyond | is_tail & ~is_head[of], BROKEN, order[of]).astype(np.uint8)
        result = words[of]
        result |= np.where(is_tail, np.uint64(KPF_TAIL), np.uint64(0))
        result |= np.where(~is_tail & is_head[of], np.uint64(KPF_HEAD), np.uint64(0))
        if "PG_hwpoison" in kernel.flags:
            result |= self._has(flags, "PG_hwpoison").astype(np.uint64) << np.uint64(_HWPOISON)
        counts = mapped + np.where(is_head[of], entire[of], 0).astype(np.uint32)
        in_huge = self.in_huge_zero(frames)
        zeros = np.uint64(KPF_ZERO_PAGE)
        result[in_huge] |= zeros | np.uint64(KPF_THP)
        result[frames == np.uint64(self.zero)] |= zeros
        result[unread], counts[unread], orders[unread] = 0, 0, 0
        return FrameFacts(
            result[inverse], counts[inverse], orders[inverse], (young[of] & ~unread)[inverse]
        )

    def in_huge_zero(self, frames: Words) -> NDArray[np.bool_]:
        """Which frames are of the huge zero folio; none where it was never made, and so has the last pfn."""
        first = np.uint64(self.huge_zero)
        return np.asarray((frames >= first) & (frames - first < np.uint64(self.block)))

    def _heads(self, frames: Words, own: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], Words]:
        """Which frames are tails, and the first frame of each one's folio.

        A tail's word names its head's struct page, or (Linux 7.1) masks its own to that.
        """
        kernel = self.kernel
        name = "compound_info" if "page.compound_info" in kernel.at else "compound_head"
        info = self.pages.field(own, f"page.{name}", np.uint64)
        is_tail = info & np.uint64(1) != 0
        size, base = np.uint64(kernel.page_bytes), np.uint64(kernel.vmemmap)
        itself = frames * size + base
        is_mask = info & _MASK_OR_NEITHER == _MASK_OR_NEITHER
        head = np.where(is_mask, itself & info, info - np.uint64(1))
        heads = np.where(is_tail, (head - base) // size, frames)
        return is_tail, heads

    def _has(self, words: Words, flag: str) -> NDArray[np.bool_]:
        """Whether each word of flags has one; never where this kernel has no such flag."""
        bit = self.kernel.flags.get(flag)
        if bit is None:
            return np.zeros(len(words), np.bool_)
        return np.asarray(words >> np.uint64(bit) & np.uint64(1) != 0)


def _one_more(counts: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return counts + np.uint32(1)


def _mapped(counts: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """How often pages are mapped; 0 where the word is the page's type. Kernel: page_mapcount_is_type()."""
    more = _one_more(counts)
    return np.where(more >> np.uint32(31) != 0, np.uint32(0), more)
