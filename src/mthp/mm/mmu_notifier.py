# SPDX-License-Identifier: GPL-2.0-or-later
"""Secondary MMUs: who is told before a range of an mm changes. Kernel: include/linux/mmu_notifier.h."""

from __future__ import annotations

from mthp.mm.mm_types import Mm
from mthp.words.results import Refused
from mthp.words.units import Address


class InvalidateRange:
    """The time between the start and the end of an invalidation, which what is refused in it has, too; a
    KernelBug has no end."""

    __slots__ = ("end", "mm", "start")

    def __init__(self, mm: Mm, start: Address, end: Address) -> None:
        self.mm = mm
        self.start = start
        self.end = end

    def __enter__(self) -> None:
        for subscriber in self.mm.notifiers:
            subscriber.invalidate_range_start(self.mm, self.start, self.end)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Refused):
            for subscriber in self.mm.notifiers:
                subscriber.invalidate_range_end(self.mm, self.start, self.end)


def mmu_notifier_invalidate_range(mm: Mm, start: Address, end: Address) -> InvalidateRange:
    """Kernel: mmu_notifier_invalidate_range_start(), mmu_notifier_invalidate_range_end()."""
    return InvalidateRange(mm, start, end)


def mmu_notifier_test_young(mm: Mm, address: Address) -> bool:
    """Whether a secondary MMU used it. Kernel: mmu_notifier_test_young()."""
    return any(subscriber.test_young(mm, address) for subscriber in mm.notifiers)
