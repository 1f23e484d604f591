# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap cache, and pages under writeback."""

from __future__ import annotations

from mthp.mm.page_flags import PG_WRITEBACK
from mthp.races.stage import SWAP_SLOT
from tests.stages import played


def test_a_write_ends() -> None:
    stage = played("writeback")
    assert not stage.kernel.mem.flags.raw[stage.pages[1]] & PG_WRITEBACK
    assert stage.kernel.swap.contents[SWAP_SLOT + 1] == 101


def test_a_written_page_is_freed() -> None:
    stage = played("swap-cache-free")
    assert not stage.kernel.swap.cache
    assert stage.kernel.mem.refcount.raw[stage.pages[1]] == 0
