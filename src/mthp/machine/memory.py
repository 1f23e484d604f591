# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared words: a Cell is one word that several tasks may reach; every access to it is one step.

Cells of a kind stand in a row (`Words`): the PTEs of one table, the refcounts of all frames. A Cell
is then (row, index), its value an int: immutable, hashable, and free of objects however large the
image is. Rows may be read whole by bookkeeping through `raw` and `count()`, and by fast twins
through `view()`; none of these is a step.
Kernel: include/linux/atomic/atomic-instrumented.h, include/asm-generic/rwonce.h (READ_ONCE,
WRITE_ONCE), include/linux/refcount.h (refcount_inc), include/linux/page_ref.h (folio_ref_freeze,
folio_ref_try_add), include/linux/bitops.h (test_bit),
include/asm-generic/bitops/instrumented-atomic.h (test_and_set_bit, test_and_clear_bit).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, SupportsIndex, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from mthp.machine.step import ALL_BITS, Access, OnStep
from mthp.machine.store_buffer import STORED_LATE, Lane
from mthp.machine.task import Machine

READ, WRITE, RMW, TAKE = Access.READ, Access.WRITE, Access.RMW, Access.TAKE

_VIEWED_AS: Final = {"Q": np.int64, "q": np.int64, "I": np.int32, "i": np.int32, "H": np.uint16,
                     "B": np.uint8, "b": np.int8}  # fmt: skip
"""Signed where an index may come of it: no word of a world uses its highest bit."""

Word = TypeVar("Word", bound=int)


if TYPE_CHECKING:

    class Row(array[int], Generic[Word]):
        """The array behind Words: reading it gives the type of its words."""

        @overload
        def __getitem__(self, at: SupportsIndex, /) -> Word: ...
        @overload
        def __getitem__(self, at: slice, /) -> array[int]: ...
        def __getitem__(self, at: Any, /) -> Any: ...
        def __iter__(self) -> Iterator[Word]: ...


class Words(Generic[Word]):
    """A row of Cells. typecode: as in `array`; size: how many words there are; owner: whose they
    are.

    Word: what reading gives (Pte, Folio, or int), which costs nothing. lane: how stores
    to it behave where CPUs have store buffers.
    """

    __slots__ = ("_view", "lane", "machine", "name", "owner", "raw")

    def __init__(
        self, machine: Machine, name: str, typecode: str, size: int = 0, owner: object = None
    ) -> None:
        self.owner = owner
        self.lane: Lane | None = None
        self._view: NDArray[Any] | None = None
        self.machine = machine
        self.name = name
        self.raw = cast("Row[Word]", array(typecode, bytes(array(typecode).itemsize * size)))

    def __repr__(self) -> str:
        return f"Words({self.name!r}, {len(self.raw)})"

    def grow(self, size: int) -> None:
        """Make the row at least `size` words long; new words are zero."""
        missing = size - len(self.raw)
        if missing <= 0:
            return
        self._view = None
        more = bytes(self.raw.itemsize * missing)
        try:
            self.raw.frombytes(more)
        except BufferError:  # a view is still looked at: leave the old row to it
            self.raw = cast("Row[Word]", array(self.raw.typecode, self.raw.tobytes() + more))

    def view(self) -> NDArray[Any]:
        """The row as an array over the same memory. Not a step, so only for code that runs where no
        scheduler watches steps; elsewhere look at a copy. Do not keep it: it ends when the row
        grows."""
        if self._view is None:
            if self.machine.on_step is not None:
                return np.array(self.raw[:], _VIEWED_AS[self.raw.typecode])
            self._view = np.frombuffer(self.raw, _VIEWED_AS[self.raw.typecode])
        return self._view

    def read(self, index: int) -> Word:
        """Read a word. Kernel: READ_ONCE()."""
        hook = self.machine.on_step
        if hook is not None:
            hook(READ, self, index, ALL_BITS)
            if self.lane is not None:
                return self._forwarded(index)
        return self.raw[index]

    def write(self, index: int, value: int) -> None:
        """Write a word. Kernel: WRITE_ONCE()."""
        hook = self.machine.on_step
        if hook is not None:
            if self.lane is not None and self._stored_late(index, value):
                return
            hook(WRITE, self, index, ALL_BITS)
        self.raw[index] = value

    def write_run(self, index: int, values: range) -> None:
        """Write evenly spaced words that stand in a row, one after the other."""
        if self.machine.on_step is None:
            run = np.arange(values.start, values.stop, values.step)
            self.view()[index : index + len(values)] = run
            return
        for at, value in enumerate(values, index):
            self.write(at, value)

    def fill(self, index: int, nr: int, value: int) -> None:
        """Write one value to nr words, one after the other."""
        if self.machine.on_step is None:
            self.raw[index : index + nr] = array(self.raw.typecode, [value]) * nr
            return
        for at in range(index, index + nr):
            self.write(at, value)

    def free(self, index: int) -> None:
        """Give up a word, whose value is the caller's: nobody may use it any more."""
        if self.machine.on_step is not None:
            self.machine.on_step(Access.FREE, self, index, ALL_BITS)

    def count(self, index: int, nr: int, mask: int) -> tuple[int, int]:
        """How many of nr words, and how many of all others, have a bit of the mask set. Not a step."""
        having = self.view() & mask
        inside = int(np.count_nonzero(having[index : index + nr]))
        return inside, int(np.count_nonzero(having)) - inside

    def _forwarded(self, index: int) -> Word:
        """What the running task reads: its own late store, or what all tasks see."""
        buffer = self.machine.current.buffer
        late = buffer.forwarded(self, index) if buffer is not None else None
        return self.raw[index] if late is None else cast("Word", late)

    def _stored_late(self, index: int, value: int) -> bool:
        """Whether the running task's store buffer took the store."""
        task = self.machine.current
        if task.buffer is None:
            return False
        if self.lane in STORED_LATE:
            return task.buffer.store(self, index, value, task)
        task.buffer.before_store(self, index)
        return False

    def _announce(self, hook: OnStep, access: Access, index: int, bits: int) -> None:
        """Step for an atomic that returns a value: a full barrier, but in the weakest model."""
        if self.lane is not None:
            buffer = self.machine.current.buffer
            if buffer is not None:
                buffer.before_atomic(self, index)
        hook(access, self, index, bits)

    def add(self, index: int, amount: int) -> int:
        """Add atomically, and return the new value. Kernel: atomic_add_return()."""
        hook = self.machine.on_step
        if hook is not None:
            self._announce(hook, RMW, index, ALL_BITS)
        value = self.raw[index] + amount
        self.raw[index] = value
        return value

    def add_each(self, index: int, nr: int, amount: int) -> int:
        """Add to nr words atomically, one after the other; returns how many are 0 then."""
        if self.machine.on_step is not None or nr == 1:
            return sum(self.add(at, amount) == 0 for at in range(index, index + nr))
        words = self.view()[index : index + nr]
        words += amount
        return nr - int(np.count_nonzero(words))

    def take(self, index: int, amount: int) -> bool:
        """Count more users, atomically; returns whether there was one. Kernel: refcount_inc()."""
        hook = self.machine.on_step
        if hook is not None:
            buffer = self.machine.current.buffer if self.lane is not None else None
            if buffer is not None:
                buffer.before_store(self, index)  # it orders on x86 alone
            hook(TAKE, self, index, ALL_BITS)
        before = self.raw[index]
        self.raw[index] = before + amount
        return before > 0

    def add_unless_zero(self, index: int, amount: int) -> bool:
        """Add unless the word is 0; returns whether it was not. Kernel: folio_ref_try_add()."""
        hook = self.machine.on_step
        if hook is not None:
            self._announce(hook, TAKE, index, ALL_BITS)
        if not self.raw[index]:
            return False
        self.raw[index] += amount
        return True

    def replace(self, index: int, expected: int, value: int) -> bool:
        """Write if the word is `expected`; returns whether it was. Kernel: try_cmpxchg()."""
        hook = self.machine.on_step
        if hook is not None:
            self._announce(hook, RMW, index, ALL_BITS)
        if self.raw[index] != expected:
            return False
        self.raw[index] = value
        return True

    def swap(self, index: int, value: int) -> Word:
        """Write atomically, and return the old value. Kernel: xchg()."""
        hook = self.machine.on_step
        if hook is not None:
            self._announce(hook, RMW, index, ALL_BITS)
        old = self.raw[index]
        self.raw[index] = value
        return old

    def test_bits(self, index: int, mask: int) -> int:
        """Return those bits of a word. The step is about them alone. Kernel: test_bit()."""
        hook = self.machine.on_step
        if hook is not None:
            hook(READ, self, index, mask)
            if self.lane is not None:
                return self._forwarded(index) & mask
        return self.raw[index] & mask

    def set_bits(self, index: int, mask: int) -> int:
        """Set bits atomically, and return what they were. The step is about them alone.

        Kernel: test_and_set_bit().
        """
        hook = self.machine.on_step
        if hook is not None:
            self._announce(hook, RMW, index, mask)
        old = self.raw[index]
        self.raw[index] = old | mask
        return old & mask

    def store_bits(self, index: int, mask: int) -> int:
        """Set bits of a word that nobody else changes, and return what they were; where stores are late,
        by a read and a plain store of the whole word.

        Kernel: include/asm-generic/bitops/instrumented-non-atomic.h, __set_bit().
        """
        if self.lane not in STORED_LATE:
            return self.set_bits(index, mask)
        old = self.read(index)
        self.write(index, old | mask)
        return old & mask

    def clear_bits(self, index: int, mask: int) -> int:
        """Clear bits atomically, and return what they were. The step is about them alone.

        Kernel: test_and_clear_bit().
        """
        hook = self.machine.on_step
        if hook is not None:
            self._announce(hook, RMW, index, mask)
        old = self.raw[index]
        self.raw[index] = old & ~mask
        return old & mask

    def freeze(self, index: int, expected: int) -> bool:
        """If the word is `expected`, make it 0 atomically. Kernel: folio_ref_freeze()."""
        hook = self.machine.on_step
        if hook is not None:
            self._announce(hook, RMW, index, ALL_BITS)
        if self.raw[index] != expected:
            return False
        self.raw[index] = 0
        return True


class Cell:
    """A single shared word that is not an int in a row: a lock word, a list as a tuple."""

    __slots__ = ("machine", "name", "value")

    def __init__(self, machine: Machine, name: str, value: Any) -> None:
        self.machine = machine
        self.name = name
        self.value = value

    def __repr__(self) -> str:
        return f"Cell({self.name!r}, {self.value!r})"

    def read(self) -> Any:
        """Read the value, which is immutable: one step."""
        if self.machine.on_step is not None:
            self.machine.on_step(READ, self, 0, ALL_BITS)
        return self.value

    def write(self, value: Any) -> None:
        """Write the value: one step."""
        if self.machine.on_step is not None:
            self.machine.on_step(WRITE, self, 0, ALL_BITS)
        self.value = value

    def update(self, change: Callable[[Any], Any]) -> Any:
        """Make something else of the value, at once: one step; returns the old value."""
        if self.machine.on_step is not None:
            self.machine.on_step(RMW, self, 0, ALL_BITS)
        old = self.value
        self.value = change(old)
        return old
