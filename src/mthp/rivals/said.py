# SPDX-License-Identifier: GPL-2.0-or-later
"""What rivals tell the kernel's witness: the facts that laws are about and no word holds."""

from __future__ import annotations

from typing import NamedTuple

from mthp.mm.mm_struct import Mm


class Stored(NamedTuple):
    """A store by user space, or through a pin or a secondary MMU, reached memory."""

    mm: Mm
    address: int
    value: int
    by: str


class Loaded(NamedTuple):
    """A load by user space, and what it saw."""

    mm: Mm
    address: int
    value: int
    by: str


class Zapping(NamedTuple):
    """[start, end) is being emptied: a load may see nothing there from here on."""

    mm: Mm
    start: int
    end: int


class Zapped(NamedTuple):
    """MADV_DONTNEED returned: [start, end) is empty from here on."""

    mm: Mm
    start: int
    end: int
    by: str


class Pinned(NamedTuple):
    """A page of an address is pinned. exclusive: it is that address's alone."""

    mm: Mm
    address: int
    page: int
    exclusive: bool


class WriteProtected(NamedTuple):
    """UFFDIO_WRITEPROTECT returned: no store to address may go unseen."""

    mm: Mm
    address: int


class Halfway(NamedTuple):
    """An mm is (or is no longer) half built: nobody but its maker may walk it."""

    mm: Mm
    building: bool


class InstructionEnds(NamedTuple):
    """A CPU holds these translations after a walk."""

    cpu: int
