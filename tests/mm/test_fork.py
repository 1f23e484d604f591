# SPDX-License-Identifier: GPL-2.0-or-later
"""fork() and exit: page tables copied, and taken away."""

from __future__ import annotations

from mthp.mm.pgtable_types import (
    pte_write,
)
from tests.stages import entry, played


def test_fork_shares_read_only() -> None:
    stage = played("fork")
    assert stage.kernel.mem.mapcount.raw[stage.pages[0]] == 2
    assert not pte_write(entry(stage, 0))


def test_an_mm_that_ends_has_nothing_left() -> None:
    stage = played("exit")
    assert not stage.mm.vmas and not stage.mm.mm_users.value
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0
