# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals that load from memory or store to it: CPUs, devices, guests, and walkers without locks."""

from __future__ import annotations

from mthp.mm.gup import get_and_write, pin_and_write
from mthp.mm.memory import handle_mm_fault, handle_user_fault
from mthp.mm.mmu import load, store
from mthp.races.cast.rival import BESIDE, HOLE, IS_LARGE, WINDOW, Rival
from mthp.races.lockless_walker import perf_get_page_size
from mthp.races.secondary_mmu import SecondaryMmu
from mthp.races.stage import Stage


def store_and_load(stage: Stage, index: int) -> None:
    """Store to a page of the mapping, and load it again."""
    store(stage.mm, stage.address(index), 200 + index)
    load(stage.mm, stage.address(index))


def store_twice(stage: Stage, first: int, second: int) -> None:
    """Two stores to pages of the mapping: the second goes by what the first left in the TLB."""
    store(stage.mm, stage.address(first), 200)
    store(stage.mm, stage.address(second), 201)


def _store_beside(stage: Stage) -> None:
    if stage.beside is not None:
        store_twice(stage, stage.beside, stage.beside)


def _add_guest(stage: Stage, index: int = 0) -> None:
    stage.guest = SecondaryMmu(stage.mm)
    stage.guest.sptes[stage.address(index)] = stage.pages[index]


def _add_guest_of_second(stage: Stage) -> None:
    stage.map_page(1)
    _add_guest(stage, 1)


def _guest_stores(stage: Stage, index: int = 0) -> None:
    assert stage.guest is not None
    stage.guest.store(stage.address(index), 400 + index)


# fmt: off
ACCESSES = (
    Rival("store", "a CPU stores to a page of the window", lambda stage: store_and_load(stage, 0)),
    Rival("store-twice", "a CPU stores twice, the second time through its TLB",
        lambda stage: store_twice(stage, 0, 0)),
    Rival("store-both", "a CPU stores to both pages, the second through a cached link",
        lambda stage: store_twice(stage, 0, 1)),
    Rival("store-neighbour", "a CPU stores twice to a page beside the window", _store_beside,
        needs=BESIDE),
    Rival("load", "a CPU loads from a page of the window", lambda stage: load(stage.mm, stage.window)),
    Rival("fault", "a CPU stores to the window's empty PTE", lambda stage: store_and_load(stage, 1)),
    Rival("zero-fault", "a CPU reads the window's empty PTE",
        lambda stage: handle_user_fault(stage.mm, stage.address(1), write=False)),
    Rival("fault-unlocked", "a fault that takes no lock (a core dumper's)",
        lambda stage: handle_mm_fault(stage.vma, stage.address(1), write=True)),
    Rival("gup", "GUP-fast pins a page, a device writes to it later",
        lambda stage: pin_and_write(stage.mm, stage.window, 300)),
    Rival("get", "GUP-fast takes a plain reference to a page, and puts it once a device has written",
        lambda stage: get_and_write(stage.mm, stage.window, 310)),
    Rival("gup-large", "GUP-fast pins a page of a large folio",
        lambda stage: pin_and_write(stage.mm, stage.window, 300), Stage.map_large, WINDOW,
        never_below_pmd=IS_LARGE),
    Rival("guest", "a guest stores to a page its MMU maps", _guest_stores, _add_guest),
    Rival("guest-second", "the same of the window's second page",
        lambda stage: _guest_stores(stage, 1), _add_guest_of_second, HOLE),
    Rival("perf", "perf walks the table without a lock",
        lambda stage: perf_get_page_size(stage.mm, stage.window)),
)
# fmt: on
