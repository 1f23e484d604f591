# SPDX-License-Identifier: GPL-2.0-or-later
"""Pins: taken without locks, and written through."""

from __future__ import annotations

from mthp.mm.gup import PIN
from tests.stages import played


def test_a_pin_is_held_and_written_through() -> None:
    stage = played("gup")
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 1 + PIN
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 300
    assert not stage.kernel.cpus[1].irqs_off.value
