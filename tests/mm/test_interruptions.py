# SPDX-License-Identifier: GPL-2.0-or-later
"""One call is interrupted at one step by another task's whole call: whatever was found out before may
be stale, and is looked at again under the locks.

Afterwards the laws hold, no lock is held, slots are named as often as they say, and every page reads
what it read at the start or after the two calls in one of their orders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from mthp.laws.census import Outside
from mthp.machine.step import Access
from mthp.machine.task import Task
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.fork import dup_mmap
from mthp.mm.gup import gup_fast
from mthp.mm.madvise import MADV_DONTNEED, do_madvise
from mthp.mm.mm_types import MM_SWAPENTS, Mm
from mthp.mm.mmu import load, store
from mthp.mm.pgtable_types import Leaf, leaf_kind, pte_none, pte_pfn, pte_present
from mthp.mm.userfaultfd import mfill_atomic, move_pages, mwriteprotect_range
from mthp.mm.vm_flags import VM_DEFAULT, VM_MERGEABLE
from tests.mm.test_programs import CALLS, PAGES, PLACES, Program
from tests.small_worlds import TINY, World, hole, huge, large, small, swap, zero

Act = Callable[[Program, Mm, int], object]


def gets(program: Program, mm: Mm, page: int) -> None:
    found = gup_fast(mm, program.address(mm, page))
    if found is not None:
        mem = program.world.mem
        mem.folio_put(mem.page_folio(found))


def forks(program: Program, mm: Mm, page: int) -> None:
    child = program.world.kernel.new_mm(2000)
    dup_mmap(child, mm, program.world.khugepaged.khugepaged_enter)


ACTS: dict[str, Act] = {
    name: CALLS[name]
    for name in (
        "faults in a huge page", "empties", "gives up", "moves the mapping", "merges", "hints",
        "clears soft-dirty", "swapoff", "move_pages", "splits by address", "splits", "swaps out",
        "drops", "migrates", "ages", "collapses",
    )
}  # fmt: skip
ACTS |= {
    "stores": lambda program, mm, page: store(mm, program.address(mm, page), 777),
    "loads": lambda program, mm, page: load(mm, program.address(mm, page)),
    "gets": gets,
    "forks": forks,
    "moves a page": lambda program, mm, page: move_pages(
        mm, program.address(mm, 13), program.address(mm, page)
    ),
    "fills": lambda program, mm, page: mfill_atomic(mm, program.address(mm, page), 888),
    "protects": lambda program, mm, page: mwriteprotect_range(mm, program.address(mm, page)),
}


class Blocked(BaseException):
    """The other task would have to wait for the one that it interrupts."""


def started() -> Program:
    world = World(geometry=TINY, orders={2, 4}, max_ptes_none=15, max_ptes_swap=15, cpus=2)
    mm = world.mm
    program = Program(world, mm)
    program.place[mm.number] = PLACES[0]
    vma = world.vma(small(6), large(2), swap(2), zero(1), hole(3), huge(4), at=PLACES[0], pages=PAGES,
              flags=VM_DEFAULT | VM_MERGEABLE)  # fmt: skip
    world.mem.content.raw[world.folio(vma, 2)] = 0
    mm.counters[MM_SWAPENTS] = len(world.kernel.swap.users)
    return program


def read(program: Program) -> list[int | None]:
    contents = program.world.census().contents
    mm = program.parent
    return [contents.get((mm.number, program.address(mm, page)), 0) for page in range(PAGES)]


def one_after_the_other(acts: list[Act], page: int) -> list[int | None]:
    program = started()
    for act in acts:
        act(program, program.parent, page)
    return read(program)


def interrupted(act: Act, other: Act, page: int, at: int) -> Program | None:
    """The world after `other` came before step `at` of act; None if there is no such step."""
    program = started()
    machine = program.world.kernel.machine
    mine = machine.current
    left = at

    def theirs(access: Access, word: Any, index: int, bits: int) -> None:
        if access is Access.WAIT and not word.may_take(index):
            block(word)

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            machine.on_step, machine.current = theirs, Task("another", 1)
            other(program, program.parent, page)
            assert machine.current.held == []
            machine.on_step, machine.current = hook, mine

    def block(lock: object) -> None:
        machine.abandoned = True  # nothing is given back any more
        raise Blocked

    machine.on_step, machine.on_block = hook, block
    try:
        act(program, program.parent, page)
    except BaseException:
        if machine.abandoned:
            raise Blocked from None
        raise
    machine.on_step = None
    return program if left <= 0 else None


def check(program: Program) -> None:
    world = program.world
    kernel = world.kernel
    lru_add_drain_all(kernel.mem, kernel.cpus)
    assert kernel.machine.current.held == [] and kernel.pte_maps == 0
    assert world.check(Outside()) == []
    named: Counter[int] = Counter()
    for mm in kernel.mms:
        entries = [
            pte for (number, _), pte in world.census().entries.items() if number == mm.number
        ]
        swapped = [
            pte_pfn(pte)
            for pte in entries
            if not pte_none(pte) and not pte_present(pte) and leaf_kind(pte) is Leaf.SWAP
        ]
        assert mm.counters[MM_SWAPENTS] == len(swapped)
        named.update(swapped)
    assert kernel.swap.users == named


def empties_all(program: Program, mm: Mm, page: int) -> None:
    """Tables that are emptied whole are given up."""
    do_madvise(mm, program.address(mm, 0), program.address(mm, PAGES), MADV_DONTNEED)


@pytest.mark.slow
@pytest.mark.parametrize("other", [ACTS["empties"], empties_all], ids=["some", "all"])
@pytest.mark.parametrize("act", list(ACTS))
def test_a_call_into_which_madv_dontneed_comes_leaves_what_the_laws_allow(
    act: str, other: Act
) -> None:
    for page in (1, 2, 7, 10, 17):  # small, zeroes, of a large folio, swapped, huge
        both = ACTS[act], other
        legal = [read(started())]
        legal += [one_after_the_other(list(acts), page) for acts in (both, both[::-1])]
        for at in count(1):
            try:
                program = interrupted(*both, page, at)
            except Blocked:
                continue
            if program is None:
                break
            check(program)
            for n, value in enumerate(read(program)):
                assert value in {each[n] for each in legal}, (page, at, n)
