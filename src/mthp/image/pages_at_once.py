# SPDX-License-Identifier: GPL-2.0-or-later
"""The fast twin of a deep capture's look at entries and struct pages: NumPy does a batch at once.

Hosts that have nothing but Python look by image/capture/pages.py, which comes to the same.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.kcore import CoreError
from mthp.image.capture.pages import (
    DIRTY,
    GLOBAL,
    LIST_POISON,
    MAYBE_PINNED,
    ON_DEFERRED_LIST,
    PAGE_SHIFT,
    PARTIALLY_MAPPED,
    PIN,
    PRESENT_BIT,
    SAVED_DIRTY,
    UNLOCKED,
    BitsOfEntry,
    Found,
    Pages,
)

NEAR = 64
"""Frames that are no further apart are read by one call, with what is between them."""
Words = NDArray[np.uint64]
Kind = TypeVar("Kind", np.uint32, np.uint64)


@cache
def _bits() -> NDArray[np.uint8]:
    """pte_bits of each value of an entry's low 12 bits."""
    of_entry = BitsOfEntry()
    return np.array([of_entry[low] for low in range(1 << PAGE_SHIFT)], np.uint8)


class PagesAtOnce(Pages):
    """As Pages; what is asked together is read and worked out together."""

    batch_bytes = 1 << 21

    def decode(self, words: bytes) -> tuple[bytes, array[int]]:
        """As Pages.decode()."""
        entries = np.frombuffer(words, np.uint64)
        bits = _bits()[entries & np.uint64((1 << PAGE_SHIFT) - 1)]
        present = entries & np.uint64(PRESENT_BIT) != 0
        no_access = ~present & (entries & np.uint64(GLOBAL) != 0)
        frames = np.where(no_access, ~entries, entries) & np.uint64(self.frame)
        frames[~(present | no_access)] = 0
        frames >>= np.uint64(PAGE_SHIFT)
        bits[(present | no_access) & (entries & np.uint64(SAVED_DIRTY) != 0)] |= DIRTY
        found = array("Q")
        found.frombytes(frames.tobytes())
        return bits.tobytes(), found

    def look_up(self, pfns: array[int], orders: bytes) -> Found:
        """As Pages.look_up()."""
        frames, at, inverse = np.unique(
            np.frombuffer(pfns, np.uint64), return_index=True, return_inverse=True
        )
        order = np.where(frames == 0, 0, np.frombuffer(orders, np.uint8)[at]).astype(np.uint64)
        own, unread = self.struct_pages(frames)
        flags = self.field(own, "page.flags", np.uint64)
        bit = flags >> np.uint64(self.kernel.flags["PG_anon_exclusive"])
        exclusive = np.asarray(bit & np.uint64(1), np.uint8)
        references = self.field(own, "page._refcount", np.uint32)
        mapped = self.field(own, "page._mapcount", np.uint32)
        mapped += np.uint32(1)
        state = self._flag_states(flags)
        state |= (references >= PIN) * np.uint16(MAYBE_PINNED)
        ids, its_counts = np.zeros_like(frames), np.zeros_like(frames)
        broken: NDArray[np.uint8] = unread.astype(np.uint8)
        heads = frames & (~np.uint64(0) << order)
        (large,) = order.nonzero()
        if len(large):
            folios, first, of = np.unique(heads[large], return_index=True, return_inverse=True)
            sizes = order[large][first]
            whole = self._folios(folios, sizes)
            flags = self.field(whole, "page.flags", np.uint64)
            refs = self.field(whole, "page._refcount", np.uint32)
            maps = self.field(whole, "folio._large_mapcount", np.uint32) + np.uint32(1)
            second = self.field(whole, "folio._flags_1", np.uint64)
            states = self._states(folios, sizes, whole, flags, second)
            is_head = flags >> np.uint64(self.kernel.flags["PG_head"]) & np.uint64(1) != 0
            unlike = ~is_head | (second & np.uint64(0xFF) != sizes) | (refs < maps)
            references[large], mapped[large], state[large] = refs[of], maps[of], states[of]
            broken[large] = unlike[of]
            if self.kernel.known.keeps_mm_ids:
                words = self.field(whole, "folio._mm_ids", np.uint64) & np.uint64(UNLOCKED)
                ids[large] = words[of]
                its_counts[large] = self.field(whole, "folio._mm_id_mapcount", np.uint64)[of]
        small = order == 0
        broken[small & (references < mapped)] = 1
        for head, bits in self.batches.items():
            state[heads == np.uint64(head)] |= np.uint16(bits)
        node = np.zeros(len(frames), np.uint8)
        for begin, end, number in self.kernel.nodes:
            node[(frames >= np.uint64(begin)) & (frames < np.uint64(end))] = number
        columns: dict[str, NDArray[Any]] = {
            "refcount": references, "folio_mapcount": mapped, "mm_ids": ids,
            "mm_id_mapcounts": its_counts, "folio_state": state, "node": node,
        }  # fmt: skip
        for column in (*columns.values(), exclusive):
            column[unread | (frames == 0)] = 0
        broken[frames == 0] = 0
        members = {name: column[inverse].tobytes() for name, column in columns.items()}
        return Found(members, exclusive[inverse].tobytes(), broken[inverse].tobytes())

    def _states(
        self, folios: Words, order: Words, whole: NDArray[np.uint8], flags: Words, second: Words
    ) -> NDArray[np.uint16]:
        """folio_state of large folios, but for batches."""
        kernel = self.kernel
        state = self._flag_states(flags)
        state |= (self.field(whole, "folio._pincount", np.uint32) > 0) * np.uint16(MAYBE_PINNED)
        of_queue = order > np.uint64(1)
        following = self.field(whole, "folio._deferred_list", np.uint64)
        itself = folios * np.uint64(kernel.page_bytes)
        itself += np.uint64(kernel.vmemmap + kernel.at["folio._deferred_list"])
        listed = (following != 0) & (following != itself) & (following != np.uint64(LIST_POISON))
        state |= (of_queue & listed) * np.uint16(ON_DEFERRED_LIST)
        partly = second >> np.uint64(kernel.flags["PG_partially_mapped"]) & np.uint64(1) != 0
        state |= (of_queue & partly) * np.uint16(PARTIALLY_MAPPED)
        return state

    def _flag_states(self, flags: Words) -> NDArray[np.uint16]:
        state = np.zeros(len(flags), np.uint16)
        for name, bit in self.states.items():
            is_set = flags >> np.uint64(self.kernel.flags[name]) & np.uint64(1)
            state |= is_set.astype(np.uint16) * np.uint16(bit)
        return state

    def _folios(self, folios: Words, order: Words) -> NDArray[np.uint8]:
        """The struct pages that hold a struct folio, side by side; zeros for the third of two pages."""
        parts = [self.struct_pages(folios + np.uint64(k))[0] for k in range(3)]
        parts[2][order < np.uint64(2)] = 0
        return np.concatenate(parts, axis=1)

    def struct_pages(self, frames: Words) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The struct pages of ascending frames, a row each, and which have none."""
        size = self.kernel.page_bytes
        raw, unread = bytearray(len(frames) * size), np.zeros(len(frames), np.bool_)
        rows = np.frombuffer(raw, np.uint8).reshape(-1, size)
        starts = np.flatnonzero(np.diff(frames.astype(np.int64), prepend=-NEAR - 1) > NEAR)
        nr = np.diff(starts, append=len(frames))
        firsts, lasts = frames[starts], frames[starts + nr - 1]
        places = (frames - np.repeat(firsts, nr)).astype(np.int64)
        with memoryview(raw) as whole:
            for i, end, first, last in zip(
                starts.tolist(),
                (starts + nr).tolist(),
                firsts.tolist(),
                lasts.tolist(),
                strict=True,
            ):
                try:
                    part = self._raw_pages(first, last + 1 - first)
                except CoreError:
                    unread[i:end] = True
                    continue
                if end - i == last + 1 - first:
                    whole[i * size : end * size] = part
                else:
                    rows[i:end] = np.frombuffer(part, np.uint8).reshape(-1, size)[places[i:end]]
        return rows, unread

    def field(self, rows: NDArray[np.uint8], name: str, kind: type[Kind]) -> NDArray[Kind]:
        """A field of each struct page or folio."""
        at, width = self.kernel.at[name], np.dtype(kind).itemsize
        return np.ascontiguousarray(rows[:, at : at + width]).view(kind)[:, 0]
