# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads and stores of user space, through the TLB."""

from __future__ import annotations

from tests.stages import played


def test_a_store_reaches_memory() -> None:
    stage = played("store")
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 200
    assert stage.kernel.cpus[1].tlb.value
