# SPDX-License-Identifier: GPL-2.0-or-later
"""Secondary MMUs are told before and after a range changes, and are asked for age."""

from __future__ import annotations

import pytest

from mthp.mm.mm_types import Mm
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range, mmu_notifier_test_young
from mthp.words.results import Refused, ScanResult
from tests.small_worlds import TINY, World


class Guest:
    """Writes down what it is told into a list that several share."""

    invalidating = 0

    def __init__(self, name: str, told: list[tuple[str, str, int, int]], young: int = 0) -> None:
        self.name = name
        self.told = told
        self.young = young

    def invalidate_range_start(self, mm: Mm, start: int, end: int) -> None:
        self.told.append((self.name, "start", start, end))

    def invalidate_range_end(self, mm: Mm, start: int, end: int) -> None:
        self.told.append((self.name, "end", start, end))

    def test_young(self, mm: Mm, address: int) -> bool:
        return address == self.young


def test_everybody_hears_of_the_start_and_of_the_end() -> None:
    mm = World(geometry=TINY).mm
    told: list[tuple[str, str, int, int]] = []
    mm.notifiers += [Guest("a", told), Guest("b", told)]
    with mmu_notifier_invalidate_range(mm, 0x1000, 0x3000):
        assert told == [("a", "start", 0x1000, 0x3000), ("b", "start", 0x1000, 0x3000)]
    assert told[2:] == [("a", "end", 0x1000, 0x3000), ("b", "end", 0x1000, 0x3000)]


def test_an_error_has_no_end() -> None:
    mm = World(geometry=TINY).mm
    told: list[tuple[str, str, int, int]] = []
    mm.notifiers.append(Guest("a", told))
    with pytest.raises(ZeroDivisionError), mmu_notifier_invalidate_range(mm, 0x1000, 0x3000):
        raise ZeroDivisionError
    assert told == [("a", "start", 0x1000, 0x3000)]


def test_what_is_refused_has_an_end() -> None:
    mm = World(geometry=TINY).mm
    told: list[tuple[str, str, int, int]] = []
    mm.notifiers.append(Guest("a", told))
    with pytest.raises(Refused), mmu_notifier_invalidate_range(mm, 0x1000, 0x3000):
        raise Refused(ScanResult.PAGE_COUNT)
    assert told[1:] == [("a", "end", 0x1000, 0x3000)]


def test_one_that_used_the_page_is_enough() -> None:
    mm = World(geometry=TINY).mm
    assert not mmu_notifier_test_young(mm, 0x1000)
    mm.notifiers += [Guest("a", [], 0x2000), Guest("b", [], 0x1000)]
    assert mmu_notifier_test_young(mm, 0x1000) and mmu_notifier_test_young(mm, 0x2000)
    assert not mmu_notifier_test_young(mm, 0x3000)
