# SPDX-License-Identifier: GPL-2.0-or-later
"""Which slots are given out next."""

from __future__ import annotations

from mthp.mm.swap_clusters import SWAPFILE_CLUSTER, SwapClusters


def taken(clusters: SwapClusters, order: int, times: int) -> list[int | None]:
    return [clusters.alloc(order) for _ in range(times)]


def test_pages_follow_the_header_and_folios_have_clusters_of_their_own() -> None:
    clusters = SwapClusters(4 * SWAPFILE_CLUSTER, 9)
    assert taken(clusters, 0, 3) == [1, 2, 3]
    assert taken(clusters, 4, 2) == [512, 528]
    assert taken(clusters, 0, 1) == [4]
    assert taken(clusters, 9, 2) == [1024, 1536]
    assert taken(clusters, 9, 1) == taken(clusters, 3, 1) == [None]


def test_a_slot_that_was_given_back_waits_until_no_cluster_is_free() -> None:
    clusters = SwapClusters(2 * SWAPFILE_CLUSTER, 9)
    assert taken(clusters, 0, 3) == [1, 2, 3]
    clusters.put(2)
    assert taken(clusters, 0, 1) == [4]
    assert taken(clusters, 0, 507) == list(range(5, 512))
    assert taken(clusters, 0, 512) == list(range(512, 1024))
    assert taken(clusters, 0, 2) == [2, None]


def test_an_empty_cluster_may_hold_another_order() -> None:
    clusters = SwapClusters(2 * SWAPFILE_CLUSTER, 9)
    assert taken(clusters, 4, 1) == [512] and taken(clusters, 5, 1) == [None]
    for slot in range(512, 528):
        clusters.put(slot)
    assert taken(clusters, 5, 2) == [512, 544]
    assert taken(clusters, 4, 1) == [None], "the other cluster is of single pages"


def test_single_pages_take_from_large_ones_in_the_end() -> None:
    clusters = SwapClusters(2 * SWAPFILE_CLUSTER, 9)
    assert taken(clusters, 4, 1) == [512]
    assert taken(clusters, 0, 511) == list(range(1, 512))
    assert taken(clusters, 0, 2) == [528, 529]
    assert SwapClusters(100, 9).alloc(0) is None
