# SPDX-License-Identifier: GPL-2.0-or-later
"""Drawn programs: always the same, legal, and of every kind."""

from __future__ import annotations

from collections import Counter

from mthp.lab.draw.programs import draw_program
from mthp.life.program import parse_program
from mthp.life.run import Life


def test_a_seed_and_an_index_always_give_the_same() -> None:
    assert draw_program(3, 14) == draw_program(3, 14) != draw_program(3, 15)
    assert draw_program(4, 14) != draw_program(3, 14)


def test_every_kind_of_operation_is_drawn_and_no_process_ends_by_a_signal() -> None:
    kinds: Counter[str] = Counter()
    for index in range(60):
        program = parse_program(draw_program(1, index))
        life = Life.of_program(program)
        for step in program.steps:
            kinds[type(step.operation).__name__] += 1
            touches = type(step.operation).__name__ == "Touches"
            assert not life.perform(step.operation) or not touches, (program.id, step.text)
    assert set(kinds) == {
        "Mmap", "Munmap", "Brk", "Limited", "Madvise", "Mprotect", "Mremap", "Touches", "Fork", "Kill",
        "FullScan", "DropCaches", "Knob", "SetSizes",
    }  # fmt: skip
