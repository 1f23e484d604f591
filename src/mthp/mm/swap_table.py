# SPDX-License-Identifier: GPL-2.0-or-later
"""A swap area: its slots, who names them, and the swap cache.

Kernel: mm/swapfile.c, mm/swap_state.c, mm/swap_table.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mthp.words.units import Folio

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


@dataclass(slots=True)
class SwapDevice:
    """A swap area. Slots are named by the entry a PTE holds.

    synchronous: SWP_SYNCHRONOUS_IO (zram): no readahead, and the swap cache copy is given up at
    once. contents, cache: entry -> content, entry -> folio in the swap cache. entry_of: folio in
    the swap cache -> its first entry. users: entry -> PTEs that name it, by far most often one.
    failing: entries that cannot be read.
    """

    synchronous: bool = True
    contents: dict[int, int] = field(default_factory=dict)
    cache: dict[int, Folio] = field(default_factory=dict)
    entry_of: dict[Folio, int] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    failing: set[int] = field(default_factory=set)
    name: str = "swap"

    def hold(self, entry: int) -> None:
        """A slot gets contents of its own if it has none, and one PTE more names it. Not a step."""
        self.contents.setdefault(entry, -len(self.contents) - 1)
        self.add_user(entry)

    def add_user(self, entry: int) -> None:
        """One PTE more names the entry. Kernel: mm/swapfile.c, swap_dup_entry_direct()."""
        self.users[entry] = self.users.get(entry, 0) + 1

    def put_users(self, entry: int, nr: int) -> None:
        """One PTE less names each of nr entries. Kernel: mm/swapfile.c, folio_put_swap()."""
        for each in range(entry, entry + nr):
            left = self.users.pop(each, 1) - 1
            if left:
                self.users[each] = left

    def add_check(self, entry: int, nr: int) -> bool:
        """Whether nr slots from entry on are all named by someone, and none is in the cache.

        Kernel: mm/swap_state.c, __swap_cache_add_check().
        Divergence: slots are taken to be of one cgroup, and all or none of them to hold zeroes.
        """
        slots = range(entry, entry + nr)
        return all(each in self.users and each not in self.cache for each in slots)

    def add_to_cache(self, entry: int, folio: Folio, nr: int) -> None:
        """Kernel: mm/swap_state.c, __swap_cache_do_add_folio()."""
        self.cache.update(dict.fromkeys(range(entry, entry + nr), folio))
        self.entry_of[folio] = entry

    def remove_from_cache(self, folio: Folio, nr: int) -> None:
        """Kernel: mm/swap_state.c, __swap_cache_do_del_folio()."""
        entry = self.entry_of.pop(folio)
        for each in range(entry, entry + nr):
            del self.cache[each]

    def folio_maybe_swapped(self, folio: Folio, nr: int) -> bool:
        """Whether a PTE still names a slot of a swap cache folio.

        Kernel: mm/swapfile.c, folio_maybe_swapped().
        """
        entry = self.entry_of[folio]
        return any(each in self.users for each in range(entry, entry + nr))
