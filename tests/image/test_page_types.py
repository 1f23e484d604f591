# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/pagetypeinfo as a 6.18 kernel wrote it, and as no kernel does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mthp.image.page_types import page_types

RECORDED = (Path(__file__).parents[1] / "data" / "pagetypeinfo-6.18.44").read_text()


def test_free_blocks_by_type() -> None:
    """Zone DMA is left out; two blocks of 2 MiB are one of 4 MiB."""
    types = page_types(RECORDED)
    assert types is not None and types.block_order == 9
    assert types.free[0, "Movable"][9] == 2 + 251
    found = types.blocks(9)
    assert found == {
        "Movable": 2 + 251 + 2 * (751 + 129), "Unmovable": 1, "Reclaimable": 0, "HighAtomic": 0, "Isolate": 0,
    }  # fmt: skip
    assert types.pageblocks["Movable"] == 1526 + 9064 and types.pageblocks["Reclaimable"] == 134


def test_what_is_kept_is_of_its_node() -> None:
    text = RECORDED.replace("HighAtomic      0      0      0", "HighAtomic      0      5      2")
    text += "\nNode    1, zone   Normal, type      Isolate      0      0      9 \n"
    types = page_types(text)
    assert types is not None
    assert types.kept(0) == {1: 10, 2: 4}
    assert types.kept(1) == {2: 9}


def test_a_count_that_was_cut_off_is_a_least_one() -> None:
    types = page_types("Node 0, zone Normal, type Movable >100000 3")
    assert types is not None and types.free[0, "Movable"] == {0: 100000, 1: 3}


@pytest.mark.parametrize("text", [None, "", "Page block order: 9\n"])
def test_nothing_is_said(text: str | None) -> None:
    assert page_types(text) is None


def test_a_line_that_no_kernel_writes() -> None:
    with pytest.raises(ValueError, match="Node 0, zone Normal, type"):
        page_types("Node 0, zone Normal, type Movable x")
