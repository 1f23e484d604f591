# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap slots of a scenario: those its entries name, and those its folios stand for."""

from __future__ import annotations

from mthp.image.runs import FolioToken, PageKind
from mthp.image.scenario import Scenario
from mthp.mm.mm_types import Kernel
from mthp.mm.pgtable_types import SOFT_DIRTY, SWP_EXCLUSIVE, UFFD_WP, Leaf, leaf_pte
from mthp.mm.swap_table import swp_entry, unplaced_entry

_SPECIAL = {"hwpoison": Leaf.HWPOISON, "migration": Leaf.MIGRATION, "device": Leaf.DEVICE}


class SwapSlots:
    """Hands out the slots while a world is built.

    A folio in the swap cache does not say which slots it stands for. Where another process still
    names one at the same address, as after fork(), they are those; else they are some of its own.
    """

    def __init__(self, kernel: Kernel, scenario: Scenario) -> None:
        self._swap = kernel.swap
        self._next = 1
        self._outside: dict[int, int] = {}
        self._cached: dict[int, tuple[int, int | None]] = {}
        self._named = _shared_slots(scenario)

    def pte(self, token: FolioToken) -> int:
        """The word of an entry that is not present. One whose offset is unknown has a slot of its
        own."""
        wp = UFFD_WP if "w" in token.swap_letters else 0
        special = token.special_swap
        if special == "marker":
            return leaf_pte(Leaf.UFFD_WP_MARKER, 0, wp)
        if special is not None:
            return leaf_pte(_SPECIAL[special], 0, wp)
        entry = _entry(token)
        if entry is None:
            entry = self._unplaced(token.swap_type or 0, 1)
        self._swap.hold(entry)
        if token.swap_outside:
            self._outside[entry] = token.swap_outside
        exclusive = 0 if "f" in token.swap_letters else SWP_EXCLUSIVE
        dirty = 0 if "c" in token.swap_letters else SOFT_DIRTY
        return leaf_pte(Leaf.SWAP, entry, wp | exclusive | dirty)

    def meet(self, folio: int, nr: int, index: int, address: int) -> None:
        """A page of a folio in the swap cache is mapped at address; nr: the folio's pages."""
        named = self._named.get(address)
        if named is not None:
            self._cached[folio] = nr, named - index
        else:
            self._cached.setdefault(folio, (nr, None))

    def finish(self) -> None:
        """When everything has been met: who else names slots, and the swap cache."""
        for entry, users in self._outside.items():
            self._swap.users[entry] += users
        for folio, (nr, first) in self._cached.items():
            if first is None:
                first = self._unplaced(0, nr)
                if self._swap.synchronous:
                    # Somebody outside names it: else it would not be in the swap cache any more.
                    self._swap.add_user(first)
            self._swap.add_to_cache(first, folio, nr)

    def _unplaced(self, swap_type: int, nr: int) -> int:
        number, self._next = self._next, self._next + nr
        return unplaced_entry(swap_type, number)


def _entry(token: FolioToken) -> int | None:
    if token.kind is not PageKind.SWAP or token.swap_offset is None or token.swap_type is None:
        return None
    return swp_entry(token.swap_type, token.swap_offset)


def _shared_slots(scenario: Scenario) -> dict[int, int]:
    """Address -> the slot that an entry there names, of those shared by fork()."""
    shift = scenario.geometry.page_shift
    found: dict[int, int] = {}
    for vma in scenario.vmas:
        page = 0
        for count, token in vma.initial.folios:
            entry = _entry(token) if "f" in token.swap_letters else None
            if entry is not None:
                start = vma.start + (page << shift)
                found |= {start + (i << shift): entry + i for i in range(count)}
            page += count
    return found
