# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals that a userfaultfd's monitor asks for."""

from __future__ import annotations

from mthp.mm.folio import lru_add_drain
from mthp.mm.userfaultfd import (
    mfill_atomic,
    move_pages,
    mwriteprotect_range,
    userfaultfd_register,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_UFFD_MISSING, VM_UFFD_WP
from mthp.races.cast.rival import ELSEWHERE, HOLE, Rival
from mthp.races.stage import START, Stage


def _destination(stage: Stage) -> None:
    """Another mapping, whose holes userfaultfd has in charge."""
    stage.map_elsewhere(stage.mm, stage.far, VM_DEFAULT | VM_UFFD_MISSING, None)


def _source(stage: Stage) -> None:
    """Another mapping, with a page in it."""
    stage.elsewhere = stage.map_elsewhere(stage.mm, stage.far, VM_DEFAULT, 600)


def _copy_and_rest(stage: Stage) -> None:
    """The new page comes to rest on the LRU, where a collapse may take it."""
    mfill_atomic(stage.mm, stage.address(1), 500)
    lru_add_drain(stage.kernel.mem, stage.kernel.this_cpu)


# fmt: off
UFFD = (
    Rival("uffd-wp", "userfaultfd write-protects a page of the window",
        lambda stage: mwriteprotect_range(stage.mm, stage.window), lambda stage: stage.map_page(1), HOLE,
        VM_UFFD_WP),
    Rival("uffd-copy", "UFFDIO_COPY fills the window's empty PTE",
        _copy_and_rest, vm_flags=VM_UFFD_MISSING),
    Rival("uffd-register", "userfaultfd takes the window's empty PTE in charge",
        lambda stage: userfaultfd_register(stage.mm, START)),
    Rival("uffd-move", "UFFDIO_MOVE takes a page out of the window",
        lambda stage: move_pages(stage.mm, stage.far, stage.window), _destination, ELSEWHERE),
    Rival("uffd-move-in", "UFFDIO_MOVE brings a page into the window",
        lambda stage: move_pages(stage.mm, stage.address(1), stage.far), _source, ELSEWHERE,
        VM_UFFD_MISSING),
)
# fmt: on
