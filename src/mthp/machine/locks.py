# SPDX-License-Identifier: GPL-2.0-or-later
"""Spinlocks and read-write semaphores.

Kernel: kernel/locking/rwsem.c, include/linux/spinlock.h (spin_lock), include/linux/mmap_lock.h,
include/linux/lockdep.h (lockdep_assert_held), Documentation/locking/.
"""

from __future__ import annotations

from collections.abc import Callable

from mthp.machine.hold import READ, WRITE, Hold, Mode, Rank
from mthp.machine.memory import Cell
from mthp.machine.step import ALL_BITS, Access
from mthp.machine.store_buffer import Slot
from mthp.machine.task import Machine
from mthp.words.results import KernelBug, Rule


class Lock:
    """What spinlocks and semaphores share: a word, a name, a rank, and who holds it.

    The word is 0 when free, -1 when held for writing, else the number of readers. unseen: stores that
    who held it for writing last made, and that may be late.
    """

    __slots__ = ("machine", "name", "rank", "unseen", "word")

    def __init__(self, machine: Machine, name: str, rank: Rank) -> None:
        self.machine = machine
        self.name = name
        self.rank = rank
        self.word = Cell(machine, name, 0)
        self.unseen: tuple[Slot, ...] = ()

    def __repr__(self) -> str:
        return self.name

    def _take(self, mode: Mode, on_release: Callable[[], None] | None = None) -> Hold:
        machine = self.machine
        task = machine.current
        held = task.held
        if machine.debug:
            self._check_order(held)
        if machine.on_step is not None:
            machine.on_step(Access.ACQUIRE, self, mode is WRITE, ALL_BITS)
        word = self.word
        if mode is READ:
            while word.value < 0:
                machine.block(self)
            word.value += 1
        else:
            while word.value != 0:
                machine.block(self)
            word.value = -1
        hold = Hold(self, mode, on_release)
        held.append(hold)
        if task.buffer is not None or self.unseen:
            self._see_stores()
        return hold

    def _see_stores(self) -> None:
        """What was stored under the lock is seen by who holds it next."""
        task = self.machine.current
        if task.buffer is not None:
            task.buffer.after_acquire()
        for slot in self.unseen:
            if slot.by != task.name:
                slot.seen.wait()

    def _try(self, mode: Mode) -> Hold | None:
        machine = self.machine
        machine.step(Access.TRY, self, mode is WRITE)
        if not self.may_take(mode is WRITE):
            return None
        self.word.value = self.word.value + 1 if mode is READ else -1
        hold = Hold(self, mode)
        machine.current.held.append(hold)
        self._see_stores()
        return hold

    def may_take(self, index: int) -> bool:
        """Whether the lock is free for writing (index 1) or for reading (0). Not a step."""
        value: int = self.word.value
        return value == 0 if index else value >= 0

    def unlock(self, hold: Hold) -> None:
        """Give back what `hold` stands for. The running task must be its owner."""
        machine = self.machine
        if machine.abandoned:
            return
        if hold.on_release is not None:
            hold.on_release()
        task, mode = machine.current, hold.mode
        buffer, held = task.buffer, task.held
        if buffer is not None and mode is READ:
            buffer.before_release()
        if machine.on_step is not None:
            machine.on_step(Access.RELEASE, self, mode is WRITE, ALL_BITS)
        if held and held[-1] is hold:
            held.pop()
        elif hold in held:
            held.remove(hold)
        else:
            raise KernelBug(Rule.LOCKS, f"{task.name} unlocks {self}, which it does not hold")
        if mode is READ:
            self.word.value -= 1
        else:
            self.word.value = 0
            self.unseen = () if buffer is None else buffer.unseen()

    def _check_order(self, held: list[Hold]) -> None:
        for other in held:
            if other.lock is self:
                raise KernelBug(
                    Rule.LOCKS, f"{self.machine.current.name} takes {self} and holds it already"
                )
            if other.lock.rank > self.rank:
                raise KernelBug(Rule.LOCKS, f"lock order: {self} is taken under {other.lock}")

    def held_mode(self) -> Mode | None:
        """How the running task holds this lock, or None. Not a step."""
        for hold in self.machine.current.held:
            if hold.lock is self:
                return hold.mode
        return None

    def assert_held(self, mode: Mode | None = None) -> None:
        """KernelBug unless the running task holds it (in `mode`). Kernel: lockdep_assert_held()."""
        for hold in self.machine.current.held:
            if hold.lock is self and not (mode is WRITE and hold.mode is READ):
                return
        wanted, actual = f" for {mode.value}" if mode else "", self._state(self.held_mode())
        raise KernelBug(Rule.LOCKS, f"{self} must be held{wanted}, and is {actual}")

    def assert_not_held(self) -> None:
        """KernelBug if the running task holds it."""
        actual = self.held_mode()
        if actual is not None:
            raise KernelBug(Rule.LOCKS, f"{self} must not be held, and is {self._state(actual)}")

    def _state(self, mode: Mode | None) -> str:
        return "not held" if mode is None else f"held for {mode.value}"


class SpinLock(Lock):
    """A lock with one holder."""

    __slots__ = ()

    def lock(self) -> Hold:
        """Wait, then hold it. Kernel: spin_lock()."""
        return self._take(WRITE)

    def trylock(self) -> Hold | None:
        """Hold it, or None at once. Kernel: include/linux/spinlock.h, spin_trylock()."""
        return self._try(WRITE)


class WriteMark(Cell):
    """A word that readers count up and one writer marks -1, without being held as a lock is.

    Kernel: struct vm_area_struct, vm_lock_seq and vm_refcnt together.
    """

    __slots__ = ("owner",)

    def __init__(self, machine: Machine, name: str, owner: object) -> None:
        super().__init__(machine, name, 0)
        self.owner = owner

    def may_take(self, index: int) -> bool:
        """Whether a writer (1) could mark it, a reader (0) enter. Not a step."""
        value: int = self.value
        return value <= 0 if index else value >= 0

    def mark(self) -> None:
        """Wait for readers to leave, then keep new ones out."""
        self.machine.step(Access.ACQUIRE, self, 1)
        while self.value > 0:
            self.machine.block(self)
        self.value = -1

    def unmark(self) -> None:
        """Let readers in again."""
        if self.machine.current.buffer is not None:
            self.machine.current.buffer.before_release()
        self.machine.step(Access.RELEASE, self, 1)
        self.value = 0

    def try_enter(self) -> bool:
        """Enter as a reader, unless it is marked."""
        self.machine.step(Access.TRY, self, 0)
        if self.value < 0:
            return False
        self.value += 1
        self.machine.current.entered.append(self)
        return True

    def leave(self) -> None:
        """A reader leaves; KernelBug if it has not entered."""
        if self.machine.current.buffer is not None:
            self.machine.current.buffer.before_release()
        self.machine.step(Access.RELEASE, self, 0)
        if self not in self.machine.current.entered:
            raise KernelBug(Rule.LOCKS, f"{self.machine.current.name} leaves {self.name} unentered")
        self.machine.current.entered.remove(self)
        self.value -= 1


class RwSem(Lock):
    """Many readers or one writer. Kernel: struct rw_semaphore."""

    __slots__ = ()

    def read(self) -> Hold:
        """Wait, then hold for reading. Kernel: down_read()."""
        return self._take(READ)

    def write(self, on_release: Callable[[], None] | None = None) -> Hold:
        """Wait, then hold for writing; on_release runs just before it is given back.

        Kernel: down_write().
        """
        return self._take(WRITE, on_release)

    def try_read(self) -> Hold | None:
        """Hold for reading, or None at once. Kernel: down_read_trylock()."""
        return self._try(READ)
