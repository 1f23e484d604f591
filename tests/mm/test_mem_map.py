# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios: references, the LRU batch, mlock, mapping counts, the reverse map."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_flags import PAGE_HWPOISON
from mthp.words.results import KernelBug
from mthp.words.units import Folio
from tests.small_worlds import TINY, World, large, small


@pytest.fixture
def world() -> World:
    return World(geometry=TINY)


def alloc(world: World, order: int = 0) -> Folio:
    folio = world.mem.folio_alloc(order)
    assert folio is not None
    return folio


# References


def test_the_last_reference_frees(world: World) -> None:
    folio = alloc(world, 2)
    world.mem.folio_get(folio)
    world.mem.folio_put(folio)
    assert world.mem.folio_ref_count(folio) == 1
    world.mem.folio_put(folio)
    assert world.mem.allocator.nodes[0].free_frames() == 4


@pytest.mark.parametrize("watched", [False, True])
def test_memory_that_failed_is_not_handed_out_again(world: World, watched: bool) -> None:
    """Whoever watches: what is healthy of its folio is free, in blocks as large as can be."""
    if watched:
        world.kernel.machine.on_step = lambda *_: None
    folio = alloc(world, 3)
    world.mem.page_flags.set_bits(folio + 5, PAGE_HWPOISON)
    world.mem.folio_put(folio)
    node = world.mem.allocator.nodes[0]
    assert [[*node.pcp[order]] for order in (2, 1, 0)] == [[folio], [folio + 6], [folio + 4]]
    assert node.free_frames() == 7
    assert world.mem.page_flags.raw[folio : folio + 8].tolist() == [0] * 5 + [PAGE_HWPOISON, 0, 0]
    assert folio + 5 not in {alloc(world) for _ in range(20)}
    single = alloc(world)
    world.mem.page_flags.set_bits(single, PAGE_HWPOISON)
    world.mem.folio_put(single)
    assert single not in {alloc(world) for _ in range(20)}
    assert world.mem.page_flags.raw[single] == PAGE_HWPOISON


def test_bugs_with_references(world: World) -> None:
    folio = alloc(world)
    with pytest.raises(KernelBug, match="reference count -1"):
        world.mem.folio_put(folio, 2)
    folio = alloc(world)
    world.mem.folio_put(folio)
    with pytest.raises(KernelBug, match="referenced after it was freed"):
        world.mem.folio_get(folio)
    folio = alloc(world)
    assert world.mem.folio_trylock(folio)
    assert not world.mem.folio_trylock(folio)
    with pytest.raises(KernelBug, match="freed while locked"):
        world.mem.folio_put(folio)
    world.mem.refcount.raw[folio] = 1
    world.mem.folio_unlock(folio)
    with pytest.raises(KernelBug, match="was not locked"):
        world.mem.folio_unlock(folio)
    vma = world.vma(small(1))
    with pytest.raises(KernelBug, match="freed while mapped"):
        world.mem.folio_put(world.folio(vma, 0))


def test_expected_references(world: World) -> None:
    vma = world.vma(small(1), large(2, 3), large(3, elsewhere=1), small(1))
    mem = world.mem
    expected = [mem.folio_expected_ref_count(world.folio(vma, page)) for page in (0, 1, 4)]
    assert expected == [1, 3, 16]
    assert [mem.folio_maybe_mapped_shared(world.folio(vma, page)) for page in (0, 1, 4)] == [
        False, False, True,
    ]  # fmt: skip


# The LRU batch


# Mapping counts


# Page tables


# Address spaces


def test_frames_know_their_node() -> None:
    mem = World(nodes=(NodeState(), NodeState()), geometry=TINY).mem
    first = {nid: mem.append_frames(nid, 3) for nid in (1, 0, 1)}
    second = {nid: mem.new_frames(nid, 1) for nid in (0, 1)}
    for nid in (0, 1):
        assert [mem.folio_nid(first[nid] + i) for i in range(3)] == [nid] * 3
        assert [mem.folio_nid(second[nid] + i) for i in range(2)] == [nid] * 2


def test_freeing_is_a_step_at_every_word_that_somebody_may_still_use(
    world: World,
) -> None:
    mem, folio = world.mem, alloc(world, 2)
    freed: list[tuple[object, int]] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if access is Access.FREE:
            freed.append((word, index))

    world.kernel.machine.on_step = hook
    mem.folio_put(folio)
    pages = range(folio, folio + 4)
    wanted = [
        (mem.flags, folio),
        *((row, p) for p in pages for row in (mem.content, mem.page_flags)),
    ]
    assert freed == wanted
