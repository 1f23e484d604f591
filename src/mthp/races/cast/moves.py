# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals that change mappings, or move pages to another address: mremap(), exec, UFFDIO_MOVE."""

from __future__ import annotations

from mthp.mm.mremap import mremap, relocate_vma_down
from mthp.mm.userfaultfd import move_pages
from mthp.mm.vm_flags import VM_DEFAULT, VM_STACK_INCOMPLETE, VM_UFFD_MISSING
from mthp.mm.vma import munmap_tail
from mthp.races.cast.rival import ELSEWHERE, Rival, Who
from mthp.races.stage import START, Stage


def far(stage: Stage) -> int:
    """An address whose PMD stands in another page of PMDs than START's, and is none."""
    geometry = stage.kernel.geometry
    return START + geometry.pmd_size * geometry.ptrs_per_pte


def move_table(stage: Stage) -> None:
    """mremap() to where the whole table can go as it is."""
    mremap(stage.mm, START, far(stage))


def move_entries(stage: Stage) -> None:
    """mremap() to where the pages stand otherwise in their tables."""
    mremap(stage.mm, START, far(stage) + stage.kernel.geometry.page_size)


def shrink(stage: Stage) -> None:
    """munmap() of all but the mapping's first page."""
    munmap_tail(stage.mm, stage.address(1))


def shift_stack(stage: Stage) -> None:
    """exec shifts its temporary stack down to where it will stay."""
    relocate_vma_down(stage.mm, START - stage.kernel.geometry.pmd_size)


def destination(stage: Stage) -> None:
    """Another mapping, whose holes userfaultfd has in charge."""
    stage.map_elsewhere(stage.mm, far(stage), VM_DEFAULT | VM_UFFD_MISSING, None)


def source(stage: Stage) -> None:
    """Another mapping, with a page in it."""
    stage.elsewhere = stage.map_elsewhere(stage.mm, far(stage), VM_DEFAULT, 600)


def move_out(stage: Stage) -> None:
    """UFFDIO_MOVE of the first page to another mapping."""
    move_pages(stage.mm, far(stage), START)


def move_in(stage: Stage) -> None:
    """UFFDIO_MOVE of a page of another mapping into the hole."""
    move_pages(stage.mm, stage.address(1), far(stage))


MOVES = (
    Rival("shrink", "munmap() of all but the first page of the window", shrink),
    Rival("mremap", "mremap() moves the whole table elsewhere", move_table, takes=ELSEWHERE),
    Rival(
        "mremap-ptes", "mremap() moves the table's pages one by one", move_entries, takes=ELSEWHERE
    ),
    Rival(
        "exec-shift",
        "exec shifts its temporary stack",
        shift_stack,
        VM_STACK_INCOMPLETE,
        who=Who.ALONE,
    ),
    Rival(
        "uffd-move",
        "UFFDIO_MOVE takes a page out of the window",
        move_out,
        prepare=destination,
        takes=ELSEWHERE,
    ),
    Rival(
        "uffd-move-in",
        "UFFDIO_MOVE brings a page into the window",
        move_in,
        VM_UFFD_MISSING,
        source,
        ELSEWHERE,
    ),
)
