# SPDX-License-Identifier: GPL-2.0-or-later
"""Random worlds, and things that go wrong in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY, Vma
from mthp.mm.page_flags import PG_LOCKED, PG_LRU, PG_REFERENCED
from mthp.mm.pgtable_types import SPECIAL, UFFD_WP, Leaf
from mthp.mm.vm_flags import VM_DEFAULT, VM_DROPPABLE, VM_LOCKED, VM_NOHUGEPAGE, VM_UFFD_WP
from mthp.words.profiles import PROFILES, V7_3
from mthp.words.units import Geometry
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    hole,
    huge,
    large,
    lazyfree,
    leaf,
    no_table,
    old,
    shared,
    small,
    swap,
    zero,
)

ORDINARY: list[Callable[[int], Piece]] = [small, small, small, hole, zero, old]
UNUSUAL: list[Callable[[int], Piece]] = [
    swap,
    shared,
    lazyfree,
    lambda n: small(n, refs=1),
    lambda n: small(n, flags=PG_LOCKED),
    lambda n: small(n, flags_without=PG_LRU),
    lambda n: small(n, poisoned=True),
    lambda n: small(n, plus=UFFD_WP),
    lambda n: small(n, plus=SPECIAL),
    lambda n: small(n, flags=PG_REFERENCED),
    lambda n: leaf(Leaf.GUARD, n),
    lambda n: leaf(Leaf.UFFD_WP_MARKER, n),
]


@st.composite
def pieces(draw: st.DrawFn, geometry: Geometry, pages: int) -> list[Piece]:
    """Pieces for `pages` pages, mostly ordinary."""
    found: list[Piece] = []
    left = pages
    nr = geometry.ptrs_per_pte
    if draw(st.integers(0, 5)) == 0:
        return [no_table(pages)] if draw(st.booleans()) else [huge(geometry.pmd_order)]
    while left:
        kind = draw(st.integers(0, 9))
        if kind == 9:
            order = draw(st.integers(1, geometry.pmd_order))
            first = draw(st.integers(0, (1 << order) - 1)) if draw(st.booleans()) else 0
            count = min((1 << order) - first, left)
            found.append(large(order, count, first, refs=draw(st.sampled_from([0, 0, 0, 0, 1]))))
        else:
            count = min(draw(st.sampled_from([1, 1, 2, 4, 8, nr // 2, nr])), left)
            source = UNUSUAL if kind == 8 else ORDINARY
            found.append(draw(st.sampled_from(source))(count))
        left -= found[-1].count
    return found


@dataclass(frozen=True)
class Recipe:
    """How to build a world: two tables of one VMA, and knobs."""

    geometry: Geometry
    tables: list[list[Piece]]
    flags: int
    knobs: dict[str, object]
    free: dict[int, int] | None
    charge: int | None

    def build(self) -> tuple[World, Vma]:
        world = World(geometry=self.geometry, free=self.free, **self.knobs)  # type: ignore[arg-type]
        if self.charge is not None:
            world.mm.memcg = world.kernel.new_memcg("tight", limit=self.charge)
        nr = self.geometry.ptrs_per_pte
        vma = world.vma(pages=len(self.tables) * nr, flags=self.flags)
        for number, table in enumerate(self.tables):
            world.fill(vma, number * nr, *table)
        return world, vma


@st.composite
def recipes(draw: st.DrawFn, geometry: Geometry = TINY) -> Recipe:
    """Random worlds, some of them short of memory or charge."""
    nr = geometry.ptrs_per_pte
    limits = st.sampled_from([0, 1, nr // 2, nr - 1])
    knobs: dict[str, object] = {
        "profile": draw(st.sampled_from([V7_3, V7_3, *PROFILES.values()])),
        "orders": draw(st.sets(st.sampled_from(sorted(geometry.anon_orders)), min_size=1)),
        "max_ptes_none": draw(st.sampled_from([0, nr - 1, nr - 1, nr // 2])),
        "max_ptes_swap": draw(limits),
        "max_ptes_shared": draw(limits),
        "defrag": draw(st.booleans()),
        "cpus": draw(st.sampled_from([1, 2])),
    }
    flags = draw(st.sampled_from([VM_DEFAULT] * 5 + [VM_DEFAULT | VM_LOCKED]))
    flags |= draw(st.sampled_from([0] * 6 + [VM_UFFD_WP, VM_DROPPABLE]))
    free = draw(st.sampled_from([None] * 8 + [{0: 2 * nr}, {2: 2}, {0: 3, 3: 1}]))
    return Recipe(
        geometry,
        [draw(pieces(geometry, nr)) for _ in range(2)],
        flags,
        knobs,
        free,
        draw(st.sampled_from([None] * 8 + [4, nr])),
    )


Fault = Callable[[World, Vma], None]


def _unmap(world: World, vma: Vma) -> None:
    if vma in world.mm.vmas:
        world.mm.unlink_vma(vma)


def _shrink(world: World, vma: Vma) -> None:
    world.mm.vma_set_range(vma, vma.vm_start, vma.vm_end - world.geometry.page_size)


def _advise_against(world: World, vma: Vma) -> None:
    vma.vm_flags |= VM_NOHUGEPAGE


def _exit(world: World, vma: Vma) -> None:
    world.mm.mm_users.value = 0


def _disable(world: World, vma: Vma) -> None:
    world.mm.flags.value |= MMF_DISABLE_THP_COMPLETELY


VMA_FAULTS: list[Fault] = [_unmap, _shrink, _advise_against, _exit, _disable]
"""What other tasks may do to the mapping while khugepaged holds no lock."""
