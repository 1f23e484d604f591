# SPDX-License-Identifier: GPL-2.0-or-later
"""Two rivals at once: worlds in which a law once complained for nothing."""

from __future__ import annotations

import pytest

from mthp.check.check import check_world
from mthp.check.search import Budget
from mthp.races.stage import Size
from mthp.races.world import RaceWorld


@pytest.mark.parametrize("rivals", [("load", "uffd-move"), ("store", "uffd-move")], ids="+".join)
def test_two_rivals_are_clean(rivals: tuple[str, str]) -> None:
    """What was moved away reads as zeroes where it was."""
    result = check_world(RaceWorld(Size.PMD, "7.3", rivals), Budget(60))
    assert result.clean, result.violation
