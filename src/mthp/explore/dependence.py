# SPDX-License-Identifier: GPL-2.0-or-later
"""Which steps may not change places: the relation that partial order reduction rests on.

Two steps at different words, or at different bits of one, commute. At one word, reads commute, and so
do a lock's readers, IPIs, which hold nothing, and takers of references: where there was one, each finds
one; where there was none, the task that is first breaks a law. A step that waits (ACQUIRE, IPI, WAIT) cannot
have come before the release it waited for: the two depend on one another, but are no race.
"""

from __future__ import annotations

from typing import Final

from mthp.explore.tasks import WAITING, NextStep
from mthp.machine.step import Access

_READERS: Final = frozenset({Access.ACQUIRE, Access.TRY, Access.RELEASE})

_AMONG_THEMSELVES: Final = frozenset({Access.IPI, Access.TAKE})


def _is_reader(op: NextStep) -> bool:
    """A step that leaves alone what other readers see."""
    return (
        op.access is Access.READ
        or op.access is Access.WAIT
        or (op.access in _READERS and not op.mode)
    )


def dependent(a: NextStep, b: NextStep) -> bool:
    """Whether the order of two steps of different tasks may matter."""
    if a.where != b.where or not a.bits & b.bits:
        return False
    if a.access is b.access and a.access in _AMONG_THEMSELVES:
        return False
    return not (_is_reader(a) and _is_reader(b))


def waits(op: NextStep) -> bool:
    """Whether the step waits for a release rather than racing with it."""
    return op.access in WAITING
