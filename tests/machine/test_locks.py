# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks: who holds them, in which order, and how they are given back."""

from __future__ import annotations

import pytest

from mthp.machine.hold import READ, WRITE, Hold, Rank
from mthp.machine.locks import RwSem, SpinLock, WriteMark
from mthp.machine.step import Access
from mthp.machine.task import Machine, Task
from mthp.words.results import KernelBug


@pytest.fixture
def machine() -> Machine:
    return Machine(debug=True)


def test_a_hold_is_given_back_at_the_end_of_the_block(machine: Machine) -> None:
    lock = SpinLock(machine, "lock", Rank.PTE)
    with lock.lock() as hold:
        assert machine.current.held == [hold]
        assert lock.held_mode() is WRITE
        assert lock.word.value == -1
    assert machine.current.held == []
    assert lock.held_mode() is None
    assert lock.word.value == 0


def test_a_hold_may_be_released_early_and_only_once(machine: Machine) -> None:
    lock = RwSem(machine, "sem", Rank.MMAP)
    with lock.read() as hold:
        hold.release()
        assert not hold.active
        with pytest.raises(KernelBug, match="sem is unlocked twice"):
            hold.release()
    assert lock.word.value == 0


def test_an_exception_gives_it_back(machine: Machine) -> None:
    lock = SpinLock(machine, "lock", Rank.PTE)
    with pytest.raises(ZeroDivisionError), lock.lock():
        raise ZeroDivisionError
    assert lock.word.value == 0


def test_readers_share_and_writers_do_not(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    readers = []
    for name in "ab":
        machine.current = Task(name)
        readers.append(sem.read())
    assert sem.word.value == 2
    machine.current = Task("writer")
    with pytest.raises(KernelBug, match="writer waits for sem for ever"):
        sem.write()
    assert machine.current.held == []


def test_a_writer_keeps_readers_out(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    sem.write()
    machine.current = Task("reader")
    assert sem.try_read() is None
    with pytest.raises(KernelBug, match="waits for sem"):
        sem.read()


def test_trying_takes_what_is_free(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    hold = sem.try_read()
    assert hold is not None
    assert hold.mode is READ
    hold.release()
    assert sem.word.value == 0


def test_a_scheduler_decides_what_waiting_means(machine: Machine) -> None:
    lock = SpinLock(machine, "lock", Rank.PTE)
    other = Task("other")
    mine, machine.current = machine.current, other
    theirs = lock.lock()
    machine.current = mine
    waited: list[object] = []

    def run_the_other(lock: object) -> None:
        waited.append(lock)
        machine.current = other
        theirs.release()
        machine.current = mine

    machine.on_block = run_the_other
    with lock.lock() as hold:
        assert waited == [lock]
        assert mine.held == [hold]
    assert other.held == []


def test_what_is_released_last_runs_first(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    seen: list[int] = []
    with sem.write(lambda: seen.append(sem.word.value)):
        pass
    assert seen == [-1]


@pytest.mark.parametrize(
    ("first", "second", "wrong"),
    [
        (Rank.MMAP, Rank.ANON_VMA, False),
        (Rank.PMD, Rank.PTE, False),
        (Rank.PTE, Rank.PMD, True),
        (Rank.ANON_VMA, Rank.MMAP, True),
        (Rank.PTE, Rank.MM_LIST, True),
    ],
)
def test_lock_order(machine: Machine, first: Rank, second: Rank, wrong: bool) -> None:
    outer, inner = SpinLock(machine, "outer", first), SpinLock(machine, "inner", second)
    with outer.lock():
        if wrong:
            with pytest.raises(KernelBug, match="lock order: inner is taken under outer"):
                inner.lock()
        else:
            inner.lock().release()


def test_every_kind_of_lock_has_a_rank_of_its_own() -> None:
    names = ["MMAP", "VMA", "MM_LIST", "ANON_VMA", "PMD", "PTE"]
    assert [rank.name for rank in sorted(Rank)] == names


def test_taking_a_lock_twice(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    with sem.read(), pytest.raises(KernelBug, match="holds it already"):
        sem.read()


def test_order_is_looked_at_only_when_debugging() -> None:
    machine = Machine()
    outer, inner = SpinLock(machine, "o", Rank.PTE), SpinLock(machine, "i", Rank.PMD)
    with outer.lock(), inner.lock():
        pass


def test_unlocking_what_another_task_holds(machine: Machine) -> None:
    lock = SpinLock(machine, "lock", Rank.PTE)
    hold = lock.lock()
    machine.current = Task("thief")
    with pytest.raises(KernelBug, match="thief unlocks lock, which it does not hold"):
        hold.release()


def test_assertions(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    with pytest.raises(KernelBug, match="sem must be held for write, and is not held"):
        sem.assert_held(WRITE)
    sem.assert_not_held()
    with sem.read():
        sem.assert_held()
        sem.assert_held(READ)
        with pytest.raises(KernelBug, match="held for write, and is held for read"):
            sem.assert_held(WRITE)
        with pytest.raises(KernelBug, match="must not be held, and is held for read"):
            sem.assert_not_held()
    with sem.write():
        sem.assert_held(READ)


def test_every_acquire_and_release_is_a_step_before_the_act(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    seen: list[tuple[str, int]] = []
    machine.on_step = lambda access, word, index, bits: seen.append((access.value, sem.word.value))
    with sem.read():
        pass
    with sem.write():
        pass
    hold = sem.try_read()
    assert hold is not None
    assert seen == [
        ("acquire", 0), ("release", 1), ("acquire", 0), ("release", -1), ("try", 0),
    ]  # fmt: skip


def test_an_abandoned_execution_unlocks_nothing(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    ran: list[int] = []
    hold = sem.write(lambda: ran.append(1))
    machine.abandoned = True
    hold.release()
    assert ran == []
    assert sem.word.value == -1


def test_names(machine: Machine) -> None:
    sem = RwSem(machine, "sem", Rank.MMAP)
    assert repr(Hold(sem, READ)) == "sem(read)"
    assert repr(machine.current) == "Task('khugepaged')"
    assert Access.RMW.value == "read-modify-write"


def test_a_step_says_whether_it_is_for_writing(machine: Machine) -> None:
    sem, mark = RwSem(machine, "sem", Rank.MMAP), WriteMark(machine, "mark", None)
    seen: list[tuple[str, int]] = []
    machine.on_step = lambda access, word, index, bits: seen.append((access.value, index))
    with sem.read():
        pass
    with sem.write():
        pass
    hold = sem.try_read()
    assert hold is not None
    hold.release()
    mark.mark()
    mark.unmark()
    assert mark.try_enter()
    mark.leave()
    assert seen == [
        ("acquire", 0), ("release", 0), ("acquire", 1), ("release", 1), ("try", 0), ("release", 0),
        ("acquire", 1), ("release", 1), ("try", 0), ("release", 0),
    ]  # fmt: skip


def test_who_may_take_what(machine: Machine) -> None:
    sem, mark = RwSem(machine, "sem", Rank.MMAP), WriteMark(machine, "mark", None)
    for word, sem_says, mark_says in (
        (0, [True, True], [True, True]), (2, [True, False], [True, False]),
        (-1, [False, False], [False, True]),
    ):  # fmt: skip
        sem.word.value = mark.value = word
        assert [sem.may_take(0), sem.may_take(1)] == sem_says
        assert [mark.may_take(0), mark.may_take(1)] == mark_says
        assert mark.try_enter() is (word >= 0)


def test_a_writer_waits_for_readers_of_a_mark_and_not_for_itself(machine: Machine) -> None:
    mark = WriteMark(machine, "mark", None)
    assert mark.try_enter() and mark.value == 1
    waited: list[object] = []

    def leave(word: object) -> None:
        waited.append(word)
        mark.value = 0

    machine.on_block = leave
    mark.mark()
    mark.mark()
    assert (waited, mark.value) == ([mark], -1)
