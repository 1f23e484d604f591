# SPDX-License-Identifier: GPL-2.0-or-later
"""Secondary MMUs: who is told before a range of an mm changes. Kernel: mm/mmu_notifier.c."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mthp.mm.mm_struct import Mm


class Subscriber(Protocol):
    """A secondary MMU of one mm. Kernel: struct mmu_notifier_ops."""

    def invalidate_range_start(self, mm: Mm, start: int, end: int) -> None:
        """Drop what maps [start, end) and let nothing new in until the end."""

    def invalidate_range_end(self, mm: Mm, start: int, end: int) -> None:
        """[start, end) may be mapped again."""

    def test_young(self, mm: Mm, address: int) -> bool:
        """Whether the page at address was used through this MMU."""


@contextmanager
def mmu_notifier_invalidate_range(mm: Mm, start: int, end: int) -> Iterator[None]:
    """Kernel: mmu_notifier_invalidate_range_start(), mmu_notifier_invalidate_range_end()."""
    for subscriber in mm.notifiers:
        subscriber.invalidate_range_start(mm, start, end)
    yield
    for subscriber in mm.notifiers:
        subscriber.invalidate_range_end(mm, start, end)


def mmu_notifier_test_young(mm: Mm, address: int) -> bool:
    """Kernel: include/linux/mmu_notifier.h, mmu_notifier_test_young()."""
    return any(subscriber.test_young(mm, address) for subscriber in mm.notifiers)
