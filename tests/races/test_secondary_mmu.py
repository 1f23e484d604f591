# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that writes through its own mapping."""

from __future__ import annotations

from tests.stages import played


def test_a_guest_writes_through_its_mapping() -> None:
    assert played("guest").kernel.mem.content.raw[1] == 400
