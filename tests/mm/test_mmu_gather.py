# SPDX-License-Identifier: GPL-2.0-or-later
"""What was taken out of page tables is given back after the flush."""

from __future__ import annotations

from mthp.machine.step import Access
from mthp.mm.vma import do_vmi_munmap
from tests.small_worlds import TINY, World, small


def test_lookups_find_nothing_before_pages_go_and_rmap_walks_do_until_tables_go() -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(4))
    mm, table, anon_vma = world.mm, world.table(vma), vma.anon_vma
    assert anon_vma is not None
    seen: list[str] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        at = None
        if word is table.ptes and access is Access.RMW and index == 0:
            at = "a page goes"
        elif word is world.mm.pmd_pages[vma.vm_start >> 20].pmds and access is Access.WRITE:
            at = "the table goes"
        elif access is Access.IPI:
            at = "flush"
        elif word is world.mem.refcount and access is Access.RMW and not index & 3:
            at = "a folio is put"
        if at is not None:
            found = mm.vma_lookup(vma.vm_start) is not None
            seen.append(f"{at}: {found}, {vma in anon_vma.vmas}, {table.state.name}")

    world.kernel.machine.on_step = hook
    with mm.mmap_write_lock():
        do_vmi_munmap(mm, vma.vm_start, vma.vm_end)
    assert seen[:3] == [
        "a page goes: False, True, LIVE",
        "the table goes: False, False, LIVE",
        "flush: False, False, LIVE",
    ]
    assert seen[3:] and set(seen[3:]) == {"a folio is put: False, False, DEFERRED"}
