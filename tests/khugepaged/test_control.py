# SPDX-License-Identifier: GPL-2.0-or-later
"""What one collapse carries with it."""

from __future__ import annotations

import pytest

from mthp.khugepaged.control import Caller, CollapseControl


@pytest.mark.parametrize("caller", list(Caller))
def test_most_rules_ask_whether_it_is_khugepaged(caller: Caller) -> None:
    assert CollapseControl(caller).is_khugepaged is (caller is Caller.KHUGEPAGED)


def test_each_table_begins_with_nothing_seen_and_the_budget_goes_on() -> None:
    cc = CollapseControl(Caller.KHUGEPAGED, progress=7)
    cc.node_load[1] = 3
    cc.alloc_nmask = frozenset({1})
    cc.present_ptes = 0b101
    cc.init_scan()
    assert cc == CollapseControl(Caller.KHUGEPAGED, progress=7)
