# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rival alone, straight through: it does its work, and leaves a sound world."""

from __future__ import annotations

import pytest

from mthp.races.cast.all import LAWFUL
from mthp.races.stage import Size
from tests.stages import played


@pytest.mark.parametrize("size", list(Size))
@pytest.mark.parametrize("rival", LAWFUL)
def test_a_sound_world_is_left(rival: str, size: Size) -> None:
    stage = played(rival, size)
    stage.watch.at_rest([task for task, _ in stage.tasks])
    assert stage.broken == []
