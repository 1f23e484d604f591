# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames: split, merge, compaction, blocks nobody has had yet; none is lost or given twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mthp.mm.mm_types import Kernel
from mthp.mm.page_alloc import NodeState
from mthp.words.settings import Settings
from mthp.words.units import Folio, Geometry
from tests.small_worlds import TINY, World, small


def kernel(*nodes: NodeState) -> Kernel:
    return Kernel(nodes=nodes or (NodeState(),))


def test_an_endless_node_gives_aligned_frames() -> None:
    made = kernel()
    for order in (0, 3, 0, 9, 10):
        folio = made.mem.folio_alloc(order)
        assert folio is not None
        assert folio % (1 << order) == 0
        assert folio > 0


def test_a_block_is_split_and_merges_again() -> None:
    made = kernel(NodeState({4: 1}))
    node = made.mem.allocator.nodes[0]
    pages = [made.mem.folio_alloc(0) for _ in range(16)]
    assert None not in pages
    assert made.mem.folio_alloc(0) is None
    for page in pages:
        assert page is not None
        made.mem.folio_put(page)
    assert node.free_frames() == 16
    assert made.mem.folio_alloc(4, compact=False) is None  # all on the per-CPU list
    node.drain()
    assert [order for order, blocks in enumerate(node.blocks) if blocks] == [4]
    assert made.mem.folio_alloc(4, compact=False) is not None


def test_freed_buddies_merge_to_the_largest_order() -> None:
    made = kernel()
    node = made.mem.allocator.nodes[0]
    folio = made.mem.folio_alloc(5)
    assert folio is not None
    made.mem.folio_put(folio)
    node.endless = False
    pages = [made.mem.folio_alloc(0) for _ in range(32)]
    assert sorted(page for page in pages if page is not None) == list(range(folio, folio + 32))
    for page in pages:
        assert page is not None
        made.mem.folio_put(page)
    node.drain()
    assert [len(blocks) for blocks in node.blocks] == [0] * 5 + [1] + [0] * 5


def test_without_compaction_a_block_must_be_there() -> None:
    made = kernel(NodeState({2: 4}))
    assert made.mem.folio_alloc(4, compact=False) is None
    assert made.mem.folio_alloc(4, compact=True) is not None
    assert made.mem.allocator.nodes[0].free_frames() == 0


def test_compaction_needs_as_many_frames() -> None:
    made = kernel(NodeState({0: 7, 3: 1}))
    assert made.mem.folio_alloc(4) is None
    assert made.mem.allocator.nodes[0].free_frames() == 15
    assert made.mem.folio_alloc(3, compact=False) is not None


def test_the_reserve_is_never_handed_out() -> None:
    made = kernel(NodeState({4: 2}, reserve=16))
    assert made.mem.folio_alloc(4) is not None
    assert made.mem.folio_alloc(0) is None


def test_the_wanted_node_comes_first_then_those_allowed() -> None:
    made = kernel(NodeState({4: 1}), NodeState({4: 1}), NodeState({4: 1}))
    mem = made.mem
    nodes = [mem.folio_alloc(4, 1, frozenset({2})) for _ in range(2)]
    assert [mem.nid.raw[folio] for folio in nodes if folio is not None] == [1, 2]
    assert mem.folio_alloc(4, 1, frozenset({2})) is None
    last = mem.folio_alloc(4, 1)
    assert last is not None
    assert mem.nid.raw[last] == 0


def test_a_geometry_with_large_pmds_has_blocks_of_that_order() -> None:
    made = Kernel(Settings(geometry=Geometry(16, 13)), nodes=(NodeState({13: 1}),))
    assert made.mem.folio_alloc(13) is not None


@settings(max_examples=200, deadline=None)
@given(
    st.none() | st.dictionaries(st.integers(0, 6), st.integers(0, 3)),
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 9)), max_size=60),
)
def test_frames_are_conserved(
    free: dict[int, int] | None, actions: list[tuple[int, bool, int]]
) -> None:
    """Free and used frames always add up, also of an endless node, and nothing is in two places."""
    made = kernel(NodeState(free))
    mem, node = made.mem, made.mem.allocator.nodes[0]
    total = sum(count << order for order, count in (free or {}).items())
    out = mem.allocator.frames_out()
    used: list[tuple[Folio, int]] = []
    for order, compact, which in actions:
        if used and which < 4:
            folio, _ = used.pop(which % len(used))
            mem.folio_put(folio)
        else:
            taken = mem.folio_alloc(order, compact=compact)
            if taken is not None:
                used.append((taken, order))
            elif compact:
                assert node.free_frames() < 1 << order
        in_use = sum(1 << order for _, order in used)
        assert mem.allocator.frames_out() - out == in_use
        assert free is None or node.free_frames() + in_use == total
        frames = [f for folio, order in used for f in range(folio, folio + (1 << order))]
        frames += [
            f
            for order, blocks in enumerate(node.blocks)
            for b in blocks
            for f in range(b, b + (1 << order))
        ]
        frames += [
            frame
            for order, freed in node.pcp.items()
            for first in freed
            for frame in range(first, first + (1 << order))
        ]
        assert len(frames) == len(set(frames))


def test_small_sources_do_not_become_the_next_window() -> None:
    """Freed pages lie on the per-CPU list. With defrag they are drained and merge; without, the
    allocation fails though 32 frames and more are free."""
    for defrag, collapsed in ((False, 2), (True, 4)):
        world = World(geometry=Geometry(12, 6), orders={4}, free={4: 2}, defrag=defrag)
        vma = world.vma(small(64))
        world.scan()
        assert world.orders(vma).count(4) == collapsed
        assert world.kernel.vmstat.mthp[4, "collapse_alloc_failed"] == 4 - collapsed


def test_a_refused_pmd_folio_is_not_split_for_smaller_windows() -> None:
    """It goes to the per-CPU list of its own order, which is of use only while the free lists have a block
    too: the watermark is looked at before. Kernel: mm/page_alloc.c, __zone_watermark_ok()."""
    made = kernel(NodeState({9: 1}))
    folio = made.mem.folio_alloc(9, compact=False)
    assert folio is not None
    made.mem.folio_put(folio)
    assert made.mem.folio_alloc(4, compact=False) is None
    assert made.mem.folio_alloc(9, compact=False) is None
    assert made.mem.folio_alloc(9, compact=True) == folio


def test_the_per_cpu_list_of_the_pmd_order_takes_two_blocks_at_once() -> None:
    """mm/page_alloc.c, nr_pcp_alloc(): so that the last but one is the last to be had without defrag."""
    for blocks, had in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 5)):
        made = kernel(NodeState({0: 1, 9: blocks}))
        node = made.mem.allocator.nodes[0]
        taken = [made.mem.folio_alloc(9, compact=False) for _ in range(blocks)]
        assert sum(folio is not None for folio in taken) == had, blocks
        assert len(node.pcp[9]) == blocks - had
        assert made.mem.folio_alloc(8, compact=False) is None
    short = kernel(NodeState({9: 2}, pcp_high=60))
    assert None not in [short.mem.folio_alloc(9, compact=False) for _ in range(2)]


def test_a_full_per_cpu_list_gives_a_pmd_block_back() -> None:
    for high, left in ((None, None), (512, 9), (513, None)):
        made = kernel(NodeState({9: 1}, pcp_high=high))
        folio = made.mem.folio_alloc(9, compact=False)
        assert folio is not None
        made.mem.folio_put(folio)
        found = made.mem.folio_alloc(9, compact=False)
        assert (found is not None) is (left == 9), high


def test_what_only_reclaim_brings_is_not_there_without() -> None:
    made = kernel(NodeState({0: 100, 4: 2}, reserve=16, reclaimable=100))
    assert made.mem.folio_alloc(4, compact=False) is not None
    assert made.mem.folio_alloc(4, compact=False) is None
    assert made.mem.folio_alloc(4, compact=True) is not None


def test_blocks_that_were_free_merge_again_though_others_do_not() -> None:
    made = kernel(NodeState({7: 1}, largest=4))
    node = made.mem.allocator.nodes[0]
    folios = [made.mem.folio_alloc(5, compact=False) for _ in range(4)]
    for folio in folios:
        assert folio is not None
        made.mem.folio_put(folio)
    assert [order for order, blocks in enumerate(node.blocks) if blocks] == [7]


def test_a_collapse_gives_back_what_it_took() -> None:
    """16 small pages made a folio of 16: of 32 free frames, 16 and the 16 sources are left."""
    world = World(geometry=TINY, free={4: 2})
    world.vma(small(16))
    world.scan()
    assert world.mem.allocator.nodes[0].free_frames() == 32


def test_another_allowed_node_with_a_block_comes_before_compaction() -> None:
    """mm/page_alloc.c, __alloc_frozen_pages_noprof(): the freelists of all nodes, then slowpath."""
    made = kernel(NodeState({0: 16}), NodeState({4: 1}))
    ties = frozenset({0, 1})
    nodes = [made.mem.folio_nid(made.mem.folio_alloc(4, 0, ties) or 0) for _ in range(2)]
    assert nodes == [1, 0]
    assert made.mem.folio_alloc(4, 0, ties) is None


def test_blocks_do_not_merge_beyond_the_largest() -> None:
    made = kernel(NodeState({0: 1}, largest=5))
    node = made.mem.allocator.nodes[0]
    first = made.mem.new_frames(0, 6)
    for pfn in range(first, first + 64, 16):
        made.mem.allocator.free(pfn, 4)
    assert [len(blocks) for blocks in node.blocks[4:7]] == [0, 2, 0]
    assert made.mem.folio_alloc(6, compact=False) is None
    assert made.mem.folio_alloc(5, compact=False) is not None


def test_a_node_keeps_nothing_back_unless_it_is_told_to() -> None:
    node = NodeState({0: 2})
    made = kernel(node)
    assert [made.mem.folio_alloc(0) is not None for _ in range(3)] == [True, True, False]


def test_a_page_in_use_is_not_taken_with_the_free_one_before_it() -> None:
    made = kernel(NodeState({2: 1}))
    node = made.mem.allocator.nodes[0]
    pages = [made.mem.folio_alloc(0) for _ in range(4)]
    first = min(page for page in pages if page is not None)
    made.mem.folio_put(first)
    assert node.take_block_of(first + 1) is None
    assert node.take_block_of(first) == (first, 0)


@given(
    st.dictionaries(st.integers(0, 4), st.integers(0, 9)),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30),
)
def test_compaction_gathers_as_if_block_by_block(
    free: dict[int, int], before: list[tuple[int, bool]]
) -> None:
    """The largest that fit first; what is left, and which frames were made, is the same."""
    left = []
    for one_by_one in (False, True):
        made = kernel(NodeState(free))
        node, kept = made.mem.allocator.nodes[0], []
        for order, keep in before:
            pfn = node.take(order)
            if pfn is not None:
                kept.append((pfn, order)) if keep else node.merge(pfn, order)
        if one_by_one and node.take(5) is None and node.free_frames() >= 32:
            wanted = 32
            while wanted:
                have = max(o for o in range(5) if node.blocks[o] or node.unborn[o])
                have = min(have, wanted.bit_length() - 1)
                assert node.take(have) is not None
                wanted -= 1 << have
            made.mem.new_frames(0, 5)
        elif not one_by_one:
            node.compact(5)
        left.append((node.blocks, node.unborn, made.mem.nr_frames, kept))
    assert left[0] == left[1]
