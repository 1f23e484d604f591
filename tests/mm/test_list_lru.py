# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists of what shrinkers may free."""

from __future__ import annotations

from mthp.machine.task import Machine
from mthp.mm.list_lru import ListLru, Sublist
from mthp.words.units import Folio, Pfn

ROOT = Sublist(0, 0)


def folios(*numbers: int) -> list[Folio]:
    return [Folio(Pfn(number)) for number in numbers]


def test_a_list_keeps_its_order_and_gives_up_what_is_taken() -> None:
    lists, other = ListLru(Machine(), "list"), Sublist(1, 0)
    for item in folios(5, 3, 9, 5):
        lists.add(item, ROOT)
    lists.add(Folio(Pfn(3)), other)
    assert lists.count(ROOT) == 3 and lists.has(Folio(Pfn(9)), ROOT)
    assert not lists.has(Folio(Pfn(9)), other)
    assert lists.walk_one(ROOT, 2, lambda item: item != 5) == folios(3)
    assert lists.walk_one(ROOT, 5, lambda _: True) == folios(5, 9)
    assert lists.delete(Folio(Pfn(3)), other) and not lists.delete(Folio(Pfn(3)), other)
    assert lists.count(ROOT) == lists.count(other) == 0
