# SPDX-License-Identifier: GPL-2.0-or-later
"""Words and Cells: every access is one step, before the act."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.machine.cpu import Cpu, TlbEntry, flush_tlb_range, tlb_remove_table_sync_one
from mthp.machine.memory import Cell, Words
from mthp.machine.step import ALL_BITS, Access
from mthp.machine.store_buffer import Lane, Model, Slot, StoreBuffer
from mthp.machine.task import Machine, Task

Seen = list[tuple[Access, int, int]]


def watched() -> tuple[Machine, Words[int], Seen]:
    machine = Machine()
    words: Words[int] = Words(machine, "row", "q", 4)
    seen: Seen = []
    machine.on_step = lambda access, word, index, bits: seen.append(
        (access, words.raw[index], bits)
    )
    return machine, words, seen


def test_reads_and_writes() -> None:
    _, words, seen = watched()
    words.write(2, 7)
    assert words.read(2) == 7
    assert seen == [(Access.WRITE, 0, ALL_BITS), (Access.READ, 7, ALL_BITS)]


def test_atomics_give_what_the_kernels_give() -> None:
    _, words, seen = watched()
    assert words.add(0, 3) == 3
    assert words.add(0, -1) == 2
    assert words.swap(0, 9) == 2
    assert words.set_bits(0, 12) == 8
    assert words.clear_bits(0, 3) == 1
    assert words.raw[0] == 12
    assert not words.freeze(0, 13)
    assert words.raw[0] == 12
    assert words.freeze(0, 12)
    assert words.raw[0] == 0
    assert {access for access, *_ in seen} == {Access.RMW}
    assert len(seen) == 7


def test_steps_at_bits_learn_of_those_alone() -> None:
    _, words, seen = watched()
    words.raw[1] = 13
    for step in (words.test_bits, words.clear_bits, words.set_bits):
        assert step(1, 6) == (4 if step != words.set_bits else 0)
    words.read(1)  # and the next step is about the whole word again
    assert [(access, bits) for access, _, bits in seen] == [
        (Access.READ, 6), (Access.RMW, 6), (Access.RMW, 6), (Access.READ, ALL_BITS),
    ]  # fmt: skip
    assert words.raw[1] == 15


def test_taking_tells_whether_there_was_one() -> None:
    _, words, seen = watched()
    assert not words.take(0, 2)
    assert words.take(0, 1)
    assert words.add_unless_zero(0, 1)
    assert not words.add_unless_zero(1, 1)
    assert {access for access, *_ in seen} == {Access.TAKE}
    assert list(words.raw[:2]) == [4, 0]


def test_straight_through_is_the_same_without_steps() -> None:
    words: Words[int] = Words(Machine(), "row", "I", 2)
    words.write(1, 5)
    assert (words.read(1), words.add(1, 1), words.swap(1, 4), words.set_bits(1, 6)) == (5, 6, 6, 4)
    assert (words.clear_bits(1, 7), words.freeze(1, 0), words.raw[1]) == (6, True, 0)


def test_rows_grow_by_zeroes_and_never_shrink() -> None:
    words: Words[int] = Words(Machine(), "row", "B", 1)
    words.raw[0] = 9
    words.grow(3)
    words.grow(2)
    assert list(words.raw) == [9, 0, 0]
    assert repr(words) == "Words('row', 3)"


def test_a_step_names_the_word_it_is_at() -> None:
    machine = Machine()
    words: Words[int] = Words(machine, "row", "q", 4)
    cell = Cell(machine, "cell", ())
    seen: list[tuple[object, int]] = []
    machine.on_step = lambda access, word, index, bits: seen.append((word, index))
    for act in (
        lambda: words.read(2),
        lambda: words.write(2, 1),
        lambda: words.add(2, 1),
        lambda: words.take(2, 1),
        lambda: words.add_unless_zero(2, 1),
        lambda: words.replace(2, 4, 5),
        lambda: words.swap(2, 6),
        lambda: words.test_bits(2, 1),
        lambda: words.set_bits(2, 1),
        lambda: words.clear_bits(2, 1),
        lambda: words.freeze(2, 6),
    ):
        act()
    assert seen == [(words, 2)] * 11
    for each in (
        lambda: words.write_run(1, range(1, 3)),
        lambda: words.fill(1, 2, 3),
        lambda: words.add_each(1, 2, 1),
    ):
        seen.clear()
        each()
        assert seen == [(words, 1), (words, 2)]
    seen.clear()
    cell.write((cell.read(),))
    assert seen == [(cell, 0), (cell, 0)]


@pytest.mark.parametrize("step", [1, 1 << 12, -3])
def test_a_run_is_the_same_words_whether_steps_are_watched_or_not(step: int) -> None:
    rows = []
    for hook in (None, lambda access, word, index, bits: None):
        machine = Machine()
        words: Words[int] = Words(machine, "words", "Q", 6)
        words.fill(0, 6, 7)
        machine.on_step = hook
        words.write_run(1, range(100, 100 + 4 * step, step))
        rows.append(words.raw.tolist())
    assert rows[0] == rows[1] == [7, *(100 + i * step for i in range(4)), 7]


def test_cells_hold_anything_immutable() -> None:
    machine = Machine()
    cell = Cell(machine, "cell", ())
    seen: list[Access] = []
    machine.on_step = lambda access, word, index, bits: seen.append(access)
    cell.write((1, 2))
    assert cell.read() == (1, 2)
    assert seen == [Access.WRITE, Access.READ]
    assert repr(cell) == "Cell('cell', (1, 2))"


def test_barriers_are_steps() -> None:
    machine = Machine()
    seen: list[Access] = []
    machine.smp_wmb()
    machine.on_step = lambda access, word, index, bits: seen.append(access)
    machine.smp_wmb()
    assert seen == [Access.BARRIER]


def test_a_flush_drops_what_overlaps_the_range() -> None:
    machine = Machine()
    cpus = (Cpu(machine, 0), Cpu(machine, 1))
    entries = (
        TlbEntry(1, 15, 0, 0),
        TlbEntry(1, 16, 0, 0),
        TlbEntry(1, 0, 5, 0),
        TlbEntry(2, 16, 0, 0),
        TlbEntry(1, 32, 0, 0),
    )
    cpus[1].tlb.value = entries
    assert flush_tlb_range(cpus, 1, 16, 32) == 2
    assert cpus[1].tlb.value == (entries[0], entries[3], entries[4])


def test_the_sync_ipi_waits_for_walkers_on_other_cpus() -> None:
    machine = Machine()
    cpus = tuple(Cpu(machine, n) for n in range(3))
    waited: list[object] = []

    def walk_on(cell: object) -> None:
        waited.append(cell)
        cpus[2].irqs_off.value = False

    cpus[2].irqs_off.value = True
    machine.on_block = walk_on
    assert tlb_remove_table_sync_one(cpus, 0) == 2
    assert waited == [cpus[2].irqs_off]
    cpus[0].irqs_off.value = True
    assert tlb_remove_table_sync_one(cpus, 0) == 2


# Lanes: stores that others see late


def late(
    model: Model = Model.LKMM, lane: Lane = Lane.CONTENTS
) -> tuple[Machine, Words[int], list[Slot]]:
    """A row whose stores by the running task are late, and the buffer's places."""
    machine = Machine()
    machine.on_step = lambda access, word, index, bits: None
    words: Words[int] = Words(machine, "row", "q", 4)
    words.lane = lane
    buffer = machine.current.buffer = StoreBuffer(machine, "buffer", model, 2)
    return machine, words, [slots[0] for slots in buffer.places]


def seen_by_another(machine: Machine, act: Callable[[], int]) -> int:
    mine, machine.current = machine.current, Task("another", 1)
    value = act()
    machine.current = mine
    return value


def test_a_late_store_is_read_by_its_own_task_alone() -> None:
    machine, words, slots = late()
    words.raw[1] = 3
    words.write(1, 12)
    words.write(1, 14)
    assert words.raw[1] == 3
    assert (words.read(1), words.test_bits(1, 6), words.test_bits(1, 1)) == (14, 6, 0)
    assert words.read(0) == 0  # another word of the row
    assert seen_by_another(machine, lambda: words.read(1)) == 3
    assert seen_by_another(machine, lambda: words.test_bits(1, 6)) == 2
    for slot, value in zip(slots, (12, 14), strict=True):
        seen_by_another(machine, lambda slot=slot: slot.drain() or 0)  # type: ignore[misc]
        assert words.raw[1] == value


def test_another_row_does_not_read_what_is_late() -> None:
    machine, words, _ = late()
    other: Words[int] = Words(machine, "other", "q", 4)
    other.lane = Lane.CONTENTS
    words.write(1, 12)
    assert other.read(1) == 0


def test_without_room_a_store_is_seen_at_once() -> None:
    _, words, slots = late()
    for value in (1, 2, 3):
        words.write(value, value)
    assert len(slots) == 2
    assert list(words.raw) == [0, 0, 0, 3]


def test_only_contents_are_late() -> None:
    for lane in (Lane.TABLES, Lane.COUNTS, None):
        _, words, _ = late(Model.WEAK)
        words.lane = lane
        words.write(1, 12)
        assert words.raw[1] == 12


Atomic = Callable[[Words[int]], object]


@pytest.mark.parametrize(
    "atomic",
    [
        lambda words: words.add(0, 1),
        lambda words: words.add_unless_zero(0, 1),
        lambda words: words.replace(0, 0, 1),
        lambda words: words.swap(0, 1),
        lambda words: words.set_bits(0, 1),
        lambda words: words.clear_bits(0, 1),
        lambda words: words.freeze(0, 1),
    ],
)
@pytest.mark.parametrize("lane", [Lane.TABLES, Lane.COUNTS, Lane.CONTENTS, None])
@pytest.mark.parametrize("model", [Model.TSO, Model.LKMM, Model.WEAK])
def test_an_atomic_that_returns_a_value_waits_until_all_is_seen(
    atomic: Atomic, lane: Lane | None, model: Model
) -> None:
    machine, words, slots = late(model)
    waits: list[object] = []
    words.write(1, 12)
    other: Words[int] = Words(machine, "other", "q", 4)
    other.lane = lane
    machine.on_step = lambda access, word, index, bits: (
        waits.append(word) if access is Access.WAIT else None
    )
    atomic(other)
    orders = lane is not None and model is not Model.WEAK
    assert waits == ([slots[0].seen] if orders else [])


@pytest.mark.parametrize("model", [Model.TSO, Model.LKMM, Model.WEAK])
def test_an_atomic_that_returns_nothing_and_a_store_to_a_table_wait_on_x86_alone(
    model: Model,
) -> None:
    acts: list[tuple[Lane, Atomic]] = [
        (Lane.COUNTS, lambda words: words.take(0, 1)),
        (Lane.TABLES, lambda words: words.write(0, 1)),
    ]
    for lane, act in acts:
        machine, words, slots = late(model)
        waits: list[object] = []
        words.write(1, 12)
        other: Words[int] = Words(machine, "other", "q", 4)
        other.lane = lane
        machine.on_step = lambda access, word, index, bits, waits=waits: (
            waits.append(word) if access is Access.WAIT else None
        )
        act(other)
        assert waits == ([slots[0].seen] if model is Model.TSO else [])
        assert other.raw[0] == 1


# Views


def test_a_view_is_the_row_itself_until_it_grows_or_somebody_watches() -> None:
    machine = Machine()
    for typecode in "QqIiHBb":
        words: Words[int] = Words(machine, "row", typecode, 3)
        words.raw[1] = 5
        view = words.view()
        assert view.tolist() == [0, 5, 0]
        view[2] = 7
        assert words.raw[2] == 7
        assert words.view() is view
        words.grow(5)
        view[0] = 9
        assert words.view().tolist() == [0, 5, 7, 0, 0]
    machine.on_step = lambda access, word, index, bits: None
    row: Words[int] = Words(machine, "row", "q", 3)
    row.view()[0] = 9
    assert row.raw[0] == 0


def test_a_cell_is_updated_at_once() -> None:
    """One step, before which the value is the old one: nothing can come between look and change."""
    machine = Machine()
    cell = Cell(machine, "cell", (1,))
    seen: list[tuple[Access, object]] = []
    machine.on_step = lambda access, word, index, bits: seen.append((access, cell.value))
    assert cell.update(lambda value: (*value, 2)) == (1,)
    assert cell.value == (1, 2)
    assert seen == [(Access.RMW, (1,))]
