# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap entries by device and offset, the users of slots, and the swap cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mthp.machine.step import Access
from mthp.machine.task import Machine
from mthp.mm.swap_table import (
    SwapDevice,
    SwapError,
    swp_entry,
    swp_offset,
    swp_type,
    unplaced_entry,
)
from mthp.words.units import Folio, Pfn

FOLIO = Folio(Pfn(100))


@given(st.integers(0, 31), st.integers(0, (1 << 40) - 1))
def test_an_entry_is_its_device_and_its_offset(swap_type: int, offset: int) -> None:
    entry = swp_entry(swap_type, offset)
    assert (swp_type(entry), swp_offset(entry)) == (swap_type, offset)


@given(st.integers(0, 31), st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_entries_without_an_offset_are_no_neighbours(swap_type: int, one: int, two: int) -> None:
    first, second = unplaced_entry(swap_type, one), unplaced_entry(swap_type, two)
    assert swp_type(first) == swap_type
    assert swp_offset(first) is None
    assert abs(first - second) != 1
    assert (first == second) == (one == two)


def test_a_slot_keeps_its_contents_and_counts_who_names_it() -> None:
    swap = SwapDevice(Machine())
    swap.hold(4)
    swap.hold(8)
    assert swap.contents[4] != swap.contents[8]
    kept = dict(swap.contents)
    swap.hold(4)
    assert swap.contents == kept
    assert swap.users == {4: 2, 8: 1}
    swap.put_users(4, 1)
    assert swap.users == {4: 1, 8: 1}
    swap.put_users(4, 1)
    assert swap.users == {8: 1}


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda swap: swap.add_user(4), (Access.RMW, 1)),
        (lambda swap: swap.put_users(4, 3), (Access.RMW, 3)),
        (lambda swap: swap.count(4), (Access.READ, 1)),
        (lambda swap: swap.folio_at(4), (Access.READ, 1)),
        (lambda swap: swap.add_check(4, 4), (Access.READ, 4)),
    ],
)
def test_a_step_is_at_the_slots_it_is_about(
    act: Callable[[SwapDevice], object], expected: tuple[Access, int]
) -> None:
    swap = SwapDevice(Machine())
    for entry in (4, 5, 6, 7):
        swap.hold(entry)
    seen: list[tuple[Access, int]] = []
    swap.machine.on_step = lambda access, word, index, bits: seen.append((access, bits))
    act(swap)
    access, nr = expected
    assert seen == [(access, ((1 << nr) - 1) << 4)]


def test_several_slots_are_let_go_of_at_once() -> None:
    swap = SwapDevice(Machine())
    for entry in (4, 5, 5, 6, 7):
        swap.hold(entry)
    swap.put_users(4, 3)
    assert swap.users == {5: 1, 7: 1}
    swap.put_users(6, 3)  # of a slot that is not known to be named, none is left either
    assert swap.users == {5: 1}


def test_a_folio_in_the_cache_stands_for_each_of_its_slots() -> None:
    swap = SwapDevice(Machine())
    for entry in range(8, 14):
        swap.hold(entry)
    assert swap.add_check(9, 4) is None and swap.add_check(13, 4) is SwapError.BUSY
    assert swap.add_folio(FOLIO, 9, 4) is None
    assert swap.cache == dict.fromkeys(range(8, 12), FOLIO)
    assert swap.entry_of == {FOLIO: 8}
    assert swap.folio_at(11) == FOLIO and swap.folio_at(12) is None
    assert swap.folio_maybe_swapped(FOLIO, 4)
    swap.put_users(8, 3)
    assert swap.folio_maybe_swapped(FOLIO, 4)
    swap.put_users(11, 1)
    assert not swap.folio_maybe_swapped(FOLIO, 4)
    swap.del_folio(FOLIO, 4)
    assert swap.cache == {} and swap.entry_of == {}


def test_a_folio_is_added_only_where_all_of_its_slots_are_alike() -> None:
    swap = SwapDevice(Machine())
    for entry in (8, 9, 10, 12, 13):
        swap.hold(entry)
    assert swap.add_folio(FOLIO, 12, 1) is None
    for check in (swap.add_check, lambda entry, nr: swap.add_folio(Folio(Pfn(200)), entry, nr)):
        assert check(12, 1) is check(12, 2) is SwapError.EXISTS
        assert check(11, 1) is check(11, 4) is SwapError.GONE
        assert check(13, 2) is check(9, 4) is SwapError.BUSY
    assert swap.cache == {12: FOLIO}


def test_only_a_slot_that_nobody_names_and_that_has_no_folio_is_free() -> None:
    swap = SwapDevice(Machine())
    swap.hold(4)
    assert not swap.alloc_slot(FOLIO, 4)
    assert swap.alloc_slot(FOLIO, 5) and not swap.alloc_slot(FOLIO, 5)
    assert swap.entry_of == {FOLIO: 5} and swap.users == {4: 1}
