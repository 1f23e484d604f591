# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as free memory that khugepaged could get."""

from __future__ import annotations

from mthp.lab.session.memory_pressure import free_blocks_of

PAGETYPEINFO = """\
Page block order: 9
Pages per block:  512

Free pages count per migrate type at order       0      1      2
Node    0, zone      DMA, type    Unmovable      9      9      9
Node    0, zone    DMA32, type    Unmovable      1      2      0 \n\
Node    0, zone    DMA32, type      Movable    100      0      3 \n\
Node    0, zone    DMA32, type  Reclaimable      0      1      0 \n\
Node    0, zone    DMA32, type   HighAtomic      0      0      7 \n\
Node    0, zone    DMA32, type      Isolate      0      0      8 \n\
Node    1, zone   Normal, type      Movable >100000      0      0 \n\

Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic      Isolate
Node 0, zone    DMA32           12          110            2            1            0
"""


def test_reserves_and_zone_dma_do_not_count() -> None:
    assert free_blocks_of(PAGETYPEINFO) == {0: 100101, 1: 3, 2: 3}


def test_another_text_has_no_free_blocks() -> None:
    assert free_blocks_of("") == {}
