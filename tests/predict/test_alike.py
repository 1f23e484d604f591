# SPDX-License-Identifier: GPL-2.0-or-later
"""What is found once for mappings that differ by their place alone is what a search for each finds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mthp.mm.mm_types import Kernel, Vma
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE, VM_LOCKED, VM_NOHUGEPAGE, VM_UFFD_WP
from mthp.predict.alike import anywhere
from mthp.predict.find import Finder
from mthp.predict.measure import TlbModel
from mthp.predict.outcome import Request, run_world
from mthp.predict.records import Proposal, Refusal
from mthp.words.profiles import PMD_ONLY, V7_3
from mthp.words.settings import Enabled
from mthp.worlds.build import BuiltWorld
from tests.khugepaged.strategies import UNUSUAL
from tests.small_worlds import TINY, Piece, World, hole, large, old, small, zero

BASE = 0x40000000


@dataclass(frozen=True)
class Mapping:
    """Some pieces, so many pages after the end of the mapping before."""

    gap: int
    pieces: tuple[Piece, ...]
    flags: int
    written: bool


SHAPES: list[tuple[Piece, ...]] = [
    (small(2),), (small(2),), (old(2),), (small(3),), (small(1), hole(1), small(1)),
    (small(1), zero(1), small(1)), (small(1), old(1)), (old(1), small(1)), (large(1),),
    *((small(1), make(1)) for make in UNUSUAL), *((make(1), small(1)) for make in UNUSUAL),
]  # fmt: skip


@st.composite
def mappings(draw: st.DrawFn) -> list[Mapping]:
    """Of a few kinds, which come again at other places."""
    flags = [VM_DEFAULT | more for more in (VM_HUGEPAGE, VM_NOHUGEPAGE, VM_LOCKED, VM_UFFD_WP)]
    kind = st.tuples(
        st.sampled_from(SHAPES),
        st.sampled_from([VM_DEFAULT] * 12 + flags),
        st.sampled_from([True] * 9 + [False]),
    )
    kinds = draw(st.lists(kind, min_size=2, max_size=3))
    gaps = draw(st.lists(st.integers(0, 15), min_size=4, max_size=9))
    return [Mapping(gap, *draw(st.sampled_from(kinds))) for gap in gaps]


def refused(of: list[Mapping], world: World) -> list[tuple[Vma, Refusal]]:
    """The refusals of a world with such mappings, each beside its mapping."""
    page, vmas, at = TINY.page_size, [], BASE
    for mapping in of:
        at += mapping.gap * page
        pages = sum(piece.count for piece in mapping.pieces)
        vma = world.vma(
            *mapping.pieces, at=at, pages=pages, flags=mapping.flags, anon_vma=mapping.written
        )
        vmas.append(vma)
        at = vma.vm_end
    kernel: Kernel = world.kernel
    request = Request("t", "s", "r", changes=False)
    outcome = run_world(BuiltWorld(kernel, world.khugepaged, vmas), request)
    return [
        (vma, refusal)
        for refusal in outcome.refusals
        for vma in vmas
        if vma.vm_start <= refusal.address < vma.vm_end
    ]


KNOBS = st.fixed_dictionaries(
    {
        "profile": st.sampled_from([V7_3, V7_3, PMD_ONLY]),
        "orders": st.sampled_from([{4}, {4}, {4}, {4}, set(), {2, 4}]),
        "enabled": st.sampled_from([Enabled.MADVISE, Enabled.ALWAYS, Enabled.NEVER]),
        "max_ptes_none": st.sampled_from([0, 3, 13, 15]),
        "max_ptes_shared": st.sampled_from([0, 8]),
        "free": st.sampled_from([None, None, {0: 8}, {2: 3}]),
    }
)


CASES = mappings(), KNOBS, st.sampled_from([None] * 4 + [2, 40]), st.sampled_from(TlbModel)


@given(*CASES)
@settings(max_examples=15, deadline=None)
def test_what_is_shared_is_what_each_search_finds(
    of: list[Mapping], knobs: dict[str, object], charge: int | None, tlb: TlbModel
) -> None:
    finds_the_same(of, knobs, charge, tlb)


@pytest.mark.slow
@given(*CASES)
@settings(max_examples=1000, deadline=None)
def test_what_is_shared_is_what_each_search_finds_in_many_worlds(
    of: list[Mapping], knobs: dict[str, object], charge: int | None, tlb: TlbModel
) -> None:
    finds_the_same(of, knobs, charge, tlb)


def finds_the_same(
    of: list[Mapping], knobs: dict[str, object], charge: int | None, tlb: TlbModel
) -> None:
    """A finder that shares finds what a finder for each refusal finds."""
    world = World(geometry=TINY, **knobs)  # type: ignore[arg-type]
    if charge is not None:
        world.mm.memcg = world.kernel.new_memcg("tight", limit=charge)
    sharing = Finder(tlb=tlb)
    apart = 0
    for vma, refusal in refused(of, world):
        alone = Finder(tlb=tlb)
        expected: Proposal | None = alone.find(vma, refusal)
        assert sharing.find(vma, refusal) == expected
        apart += alone.trials
    event(f"shared {sharing.trials < apart}")


def test_mappings_of_plain_pages_are_tried_once() -> None:
    """Six at different places of their tables cost the trials of one."""
    world = World(geometry=TINY, max_ptes_none=0)
    of = [Mapping(5, (small(2),), VM_DEFAULT, written=True)] * 6
    found = refused(of, world)
    finder, one = Finder(), Finder()
    proposals = [finder.find(vma, refusal) for vma, refusal in found]
    assert one.find(*found[0]) == proposals[0] is not None
    assert finder.trials == one.trials and len({*proposals}) == 1
    assert [change.value for change in proposals[0].changes] == [0, 14]


@pytest.mark.parametrize("piece", [make(1) for make in UNUSUAL if make(1) != small(1)])
def test_a_page_that_the_scan_may_refuse_is_tried_where_it_is(piece: Piece) -> None:
    """A page that is used is plain, whatever says that it is; whatever else is not, is tried for itself."""
    world = World(geometry=TINY, max_ptes_none=0)
    ((vma, refusal),) = refused([Mapping(3, (small(1), piece), VM_DEFAULT, True)], world)
    plain = anywhere(vma, TINY.pmd_addr(vma.vm_start), refusal)
    assert (plain is None) == (piece not in PLAIN)


PLAIN = [make(1) for make in UNUSUAL[9:10]] + [make(1) for make in UNUSUAL[6:7]]
