# SPDX-License-Identifier: GPL-2.0-or-later
"""A swap area: its slots, who names them, and the swap cache.

Kernel: mm/swapfile.c, mm/swap_state.c, mm/swap_table.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from mthp.machine.step import Access
from mthp.machine.task import Machine
from mthp.mm.swap_clusters import SWAPFILE_CLUSTER, SwapClusters
from mthp.words.units import Folio, Order, Pfn

_TYPE_SHIFT: Final = 41
_UNPLACED: Final = 1 << 40
_APART: Final = 2
"""Slots of unknown offset stand this far apart: no two of them are neighbours."""


def swp_entry(swap_type: int, offset: int) -> int:
    """The entry of a slot; offset in pages. Kernel: include/linux/swapops.h, swp_entry()."""
    return swap_type << _TYPE_SHIFT | offset


def unplaced_entry(swap_type: int, number: int) -> int:
    """An entry whose offset is unknown: it is next to no other and aligned with nothing else."""
    return swp_entry(swap_type, _UNPLACED | number * _APART)


def swp_type(entry: int) -> int:
    """Kernel: include/linux/swapops.h, swp_type()."""
    return entry >> _TYPE_SHIFT


def swp_offset(entry: int) -> int | None:
    """In pages; None of an unplaced entry. Kernel: include/linux/swapops.h, swp_offset()."""
    return None if entry & _UNPLACED else entry & (_UNPLACED - 1)


class SwapError(Enum):
    """Why a folio is not added to the swap cache."""

    EXISTS = "-EEXIST: the slot has a folio"
    GONE = "-ENOENT: nobody names the slot"
    BUSY = "-EBUSY: another slot of the range is not as this one"
    NO_MEMORY = "-ENOMEM"


@dataclass(slots=True)
class SwapDevice:
    """A swap area. Slots are named by the entry a PTE holds.

    What a method does is one step, about the slots it names: the kernel holds the cluster's lock, or
    reads one word. synchronous: SWP_SYNCHRONOUS_IO (zram): no readahead, and the swap cache copy is
    given up at once. contents, cache: entry -> content, entry -> folio in the swap cache. entry_of:
    folio in the swap cache -> its first entry; the folio's lock guards it. users: entry -> PTEs that
    name it, by far most often one. failing: entries that cannot be read. zeroes: entries of folios that
    held nothing but zeroes, which were not written. clusters: gives slots out, where the area is known.
    """

    machine: Machine
    synchronous: bool = True
    contents: dict[int, int] = field(default_factory=dict)
    cache: dict[int, Folio] = field(default_factory=dict)
    entry_of: dict[Folio, int] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    failing: set[int] = field(default_factory=set)
    zeroes: set[int] = field(default_factory=set)
    clusters: SwapClusters | None = None
    name: str = "swap"

    def _step(self, access: Access, entry: int, nr: int) -> None:
        slots = ((1 << nr) - 1) << entry % SWAPFILE_CLUSTER
        self.machine.step(access, self, entry // SWAPFILE_CLUSTER, slots)

    # Who names a slot

    def hold(self, entry: int) -> None:
        """A slot gets contents of its own if it has none, and one PTE more names it."""
        self.contents.setdefault(entry, -len(self.contents) - 1)
        self.add_user(entry)

    def add_user(self, entry: int) -> None:
        """One PTE more names the entry. Kernel: mm/swapfile.c, swap_dup_entry_direct()."""
        self._step(Access.RMW, entry, 1)
        self.users[entry] = self.users.get(entry, 0) + 1

    def put_users(self, entry: int, nr: int) -> bool:
        """One PTE less names each of nr entries; returns whether the swap cache alone has one of them now.

        Kernel: mm/swapfile.c, folio_put_swap(), swap_put_entries_cluster().
        """
        self._step(Access.RMW, entry, nr)
        is_cached = False
        for each in range(entry, entry + nr):
            left = self.users.pop(each, 1) - 1
            if left:
                self.users[each] = left
            else:
                is_cached |= each in self.cache
                self._give_back(each)
        return is_cached

    def _give_back(self, entry: int) -> None:
        """Let a slot be given out again, if nobody names it and the cache does not have it."""
        if self.clusters is not None and entry not in self.users and entry not in self.cache:
            self.clusters.put(entry)

    def count(self, entry: int) -> int:
        """How many PTEs name the entry. Kernel: mm/swapfile.c, __swap_count(), before Linux 7.2."""
        self._step(Access.READ, entry, 1)
        return self.users.get(entry, 0)

    def folio_maybe_swapped(self, folio: Folio, nr: int) -> bool:
        """Whether a PTE still names a slot of a swap cache folio. Caller holds its lock.

        Kernel: mm/swapfile.c, folio_maybe_swapped().
        """
        entry = self.entry_of[folio]
        self._step(Access.READ, entry, nr)
        return any(each in self.users for each in range(entry, entry + nr))

    # The swap cache

    def folio_at(self, entry: int) -> Folio | None:
        """The folio in the swap cache, which may be gone the next moment.

        Kernel: mm/swap_table.h, swap_table_get().
        """
        self._step(Access.READ, entry, 1)
        return self.cache.get(entry)

    def add_check(self, entry: int, nr: int) -> SwapError | None:
        """Whether a folio of nr slots could be added. Kernel: mm/swap_state.c, __swap_cache_alloc()."""
        self._step(Access.READ, entry & -nr, nr)
        return self._check(entry, nr)

    def add_folio(self, folio: Folio, entry: int, nr: int) -> SwapError | None:
        """Add a locked folio of nr slots, if it still can be.

        Kernel: mm/swap_state.c, __swap_cache_alloc().
        """
        self._step(Access.RMW, entry & -nr, nr)
        error = self._check(entry, nr)
        if error is None:
            self.add_to_cache(entry & -nr, folio, nr)
        return error

    def _check(self, entry: int, nr: int) -> SwapError | None:
        """Whether nr slots around the entry are all named by someone, and none is in the cache.

        Kernel: mm/swap_state.c, __swap_cache_add_check().
        Divergence: slots are taken to be of one cgroup.
        """
        if entry in self.cache:
            return SwapError.EXISTS
        if entry not in self.users:
            return SwapError.GONE
        slots = range(entry & -nr, (entry & -nr) + nr)
        alike = all(each in self.users and each not in self.cache for each in slots)
        are_zeroes = {each in self.zeroes for each in slots}
        return None if alike and len(are_zeroes) == 1 else SwapError.BUSY

    def alloc_slot(self, folio: Folio, entry: int) -> bool:
        """Whether the slot was free; it is the locked folio's then.

        Kernel: mm/swapfile.c, folio_alloc_swap().
        """
        self._step(Access.RMW, entry, 1)
        if entry in self.users or entry in self.cache:
            return False
        self.add_to_cache(entry, folio, 1)
        return True

    def alloc_slots(self, folio: Folio, order: Order) -> bool:
        """Whether there were slots for the locked folio, which are its own then.

        Kernel: mm/swapfile.c, folio_alloc_swap().
        """
        self.machine.step(Access.RMW, self)
        entry = self.clusters.alloc(order) if self.clusters is not None else None
        if entry is not None:
            self.add_to_cache(entry, folio, 1 << order)
        return entry is not None

    def add_to_cache(self, entry: int, folio: Folio, nr: int) -> None:
        """Not a step. Kernel: mm/swap_state.c, __swap_cache_do_add_folio()."""
        self.cache.update(dict.fromkeys(range(entry, entry + nr), folio))
        self.entry_of[folio] = entry

    def replace_folio(self, folio: Folio, nr: int) -> None:
        """Let each page of a folio that is split stand for its own slot; all are frozen. Not a step.

        Kernel: mm/swap_state.c, __swap_cache_replace_folio().
        """
        for i, entry in enumerate(range(self.entry_of[folio], self.entry_of[folio] + nr)):
            self.cache[entry] = page = Folio(Pfn(folio + i))
            self.entry_of[page] = entry

    def del_folio(self, folio: Folio, nr: int) -> None:
        """Caller holds the folio's lock. Kernel: mm/swap_state.c, __swap_cache_do_del_folio()."""
        entry = self.entry_of[folio]
        self._step(Access.RMW, entry, nr)
        del self.entry_of[folio]
        for each in range(entry, entry + nr):
            del self.cache[each]
            self._give_back(each)
