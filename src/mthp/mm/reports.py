# SPDX-License-Identifier: GPL-2.0-or-later
"""What functions of the memory manager report: laws need it, and no word of memory holds it."""

from __future__ import annotations

from typing import NamedTuple

from mthp.mm.mm_types import Mm, Vma
from mthp.words.units import Address, Pfn


class StoredTo(NamedTuple):
    """A store by user space, or through a pin or a secondary MMU, reached memory."""

    mm: Mm
    address: Address
    value: int
    by: str


class LoadedFrom(NamedTuple):
    """A load by user space, and what it saw."""

    mm: Mm
    address: Address
    value: int
    by: str


class WalkedNothing(NamedTuple):
    """The architecture's hook looked for a PTE under a PMD that points to no table."""

    mm: Mm
    address: Address
    by: str


class Zapping(NamedTuple):
    """[start, end) is being emptied: a load may see nothing there from here on."""

    mm: Mm
    start: Address
    end: Address


class Zapped(NamedTuple):
    """MADV_DONTNEED returned: [start, end) is empty from here on."""

    mm: Mm
    start: Address
    end: Address
    by: str


class Pinned(NamedTuple):
    """A page of an address is pinned. exclusive: it is that address's alone."""

    mm: Mm
    address: Address
    page: Pfn
    exclusive: bool
    by: str


class Scanning(NamedTuple):
    """[start, end) is looked at, as a part of this mapping."""

    vma: Vma
    start: Address
    end: Address
    by: str


class WriteProtected(NamedTuple):
    """UFFDIO_WRITEPROTECT returned: no store to address may go unseen."""

    mm: Mm
    address: Address


class StoresForbidden(NamedTuple):
    """mprotect() took the right to store to a mapping away."""

    mm: Mm
    vma: Vma


class Halfway(NamedTuple):
    """An mm is (or is no longer) half built: only the task that makes it may walk it."""

    mm: Mm
    building: bool


class Forked(NamedTuple):
    """fork() returned: what is stored in one of the mms from here on, the other does not see."""

    mm: Mm
    child: Mm
    by: str


class InstructionEnds(NamedTuple):
    """A CPU holds these translations after a walk."""

    cpu: int


class Discarding(NamedTuple):
    """MADV_FREE of [start, end): a load may see nothing there from here on, or what there was."""

    mm: Mm
    start: Address
    end: Address
    by: str


class Poisoned(NamedTuple):
    """The memory of a page failed. Its folio keeps a reference for ever.

    unmapped: nothing maps it any more, and nothing may do so again.
    """

    page: Pfn
    unmapped: bool


class SoftDirtyCleared(NamedTuple):
    """Stores to [start, end) from here on leave a mark again."""

    mm: Mm
    start: Address
    end: Address
    by: str


class Moving(NamedTuple):
    """The pages of [start, start + length) move to `to`: what is read there is what was read here."""

    mm: Mm
    start: Address
    to: int
    length: int
    by: str


class Registered(NamedTuple):
    """UFFDIO_REGISTER returned: what is missing in [start, end) is the monitor's to fill."""

    mm: Mm
    start: Address
    end: Address


class Gone(NamedTuple):
    """An mm has no page tables any more: no task may walk them."""

    mm: Mm
