# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine a world runs on, and who runs on it now.

A step calls `Machine.on_step`, or nothing at all when no scheduler listens (straight-through).
Nothing else in the engine can switch tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

from mthp.machine.hold import Hold
from mthp.machine.step import ALL_BITS, Access, OnStep
from mthp.machine.store_buffer import Slot, StoreBuffer
from mthp.words.results import KernelBug, Rule


class Task:
    """A thread of control: khugepaged, say, or a process in madvise(). It owns what it holds.

    cpu: the number of the CPU it runs on. buffer: that CPU's store buffer, if stores are late.
    background: it works for others and need not end. entered: the WriteMarks it is inside of as a
    reader. maps: the numbers of the page tables it has mapped. drains: the late store that it lets out.
    in_lru_fault: it handles a page fault, whose new folios count as used.
    """

    __slots__ = (
        "background", "buffer", "cpu", "drains", "entered", "held", "in_lru_fault", "maps", "name",
    )  # fmt: skip

    def __init__(self, name: str, cpu: int = 0) -> None:
        self.name = name
        self.cpu = cpu
        self.held: list[Hold] = []
        self.entered: list[object] = []
        self.maps: list[int] = []
        self.buffer: StoreBuffer | None = None
        self.background = self.in_lru_fault = False
        self.drains: Slot | None = None

    def __repr__(self) -> str:
        return f"Task({self.name!r})"


class Endless(BaseException):
    """A task goes on without end; one line says how. No task may catch it."""


OnBlock = Callable[[object], None]
P = ParamSpec("P")
R = TypeVar("R")
Twins = Mapping[Callable[..., Any], Callable[..., Any]]
"""Clear functions, and the fast twin of each, which leaves behind the same without taking steps."""
NO_TWINS: Final[Twins] = {}


class Machine:
    """What tasks run on. on_step: the scheduler's schedule point; on_block: called when a lock is
    taken.

    debug: check lock order and contracts at every acquire, not only at function entry. guards: laws
    look on, and a task that uses what nothing it holds keeps is stopped.
    abandoned: this execution was thrown away; releasing locks then does nothing.
    twins: the fast twins it may take.
    """

    __slots__ = ("abandoned", "current", "debug", "guards", "on_block", "on_step", "twins")

    def __init__(self, *, debug: bool = False, twins: Twins = NO_TWINS) -> None:
        self.on_step: OnStep | None = None
        self.on_block: OnBlock | None = None
        self.debug = debug
        self.guards = False
        self.abandoned = False
        self.twins = twins
        self.current = Task("khugepaged")

    def path(self, clear: Callable[P, R]) -> Callable[P, R]:
        """The path to take through a function: its fast twin where it has one and no scheduler
        watches steps, else the function itself."""
        if self.on_step is not None:
            return clear
        twin: Callable[P, R] = self.twins.get(clear, clear)
        return twin

    def step(self, access: Access, word: object, index: int = 0, bits: int = ALL_BITS) -> None:
        """Let other tasks come before an act that is not an access to a row of words."""
        if self.on_step is not None:
            self.on_step(access, word, index, bits)

    def data_race(self, read: Callable[..., R], *args: object) -> R:
        """Read what others may change meanwhile, for something that no verdict rests on.

        Kernel: include/linux/compiler.h, data_race().
        """
        return read(*args)

    def block(self, lock: object) -> None:
        """Let the running task wait for `lock`. Without a scheduler this is a deadlock."""
        if self.on_block is None:
            raise KernelBug(
                Rule.LOCKS,
                f"{self.current.name} waits for {lock} for ever: nobody runs to release it",
            )
        self.on_block(lock)

    def smp_wmb(self) -> None:
        """Have stores before it seen before stores after it.

        Kernel: include/asm-generic/barrier.h, smp_wmb().
        """
        self.step(Access.BARRIER, self)
        if self.current.buffer is not None:
            self.current.buffer.wait_until_seen()
