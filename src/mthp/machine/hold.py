# SPDX-License-Identifier: GPL-2.0-or-later
"""Tokens that stand for held locks.

A token is a context manager: leaving the block releases what is still held, so no exit can forget
an unlock, and `token.release()` says where the kernel unlocks sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Protocol

from mthp.words.results import KernelBug, Rule


class Rank(IntEnum):
    """The order in which locks nest. Kernel: mm/rmap.c, "Lock ordering in mm"."""

    MMAP = 0
    VMA = 1
    MM_LIST = 2
    ANON_VMA = 3
    PMD = 4
    PTE = 5


class Mode(Enum):
    """How a lock is held."""

    READ = "read"
    WRITE = "write"


READ, WRITE = Mode.READ, Mode.WRITE


class Holdable(Protocol):
    """What a hold needs to know of its lock."""

    rank: Rank

    def unlock(self, hold: Hold) -> None:
        """Give back what `hold` stands for."""


class Hold:
    """Proof that a task holds a lock, and the way to give it back."""

    __slots__ = ("active", "lock", "mode", "on_release")

    def __init__(
        self, lock: Holdable, mode: Mode, on_release: Callable[[], None] | None = None
    ) -> None:
        self.lock = lock
        self.mode = mode
        self.on_release = on_release
        self.active = True

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.active = False
            self.lock.unlock(self)

    def release(self) -> None:
        """Unlock now. Releasing twice is a KernelBug."""
        if not self.active:
            raise KernelBug(Rule.LOCKS, f"{self.lock} is unlocked twice")
        self.active = False
        self.lock.unlock(self)

    def __repr__(self) -> str:
        return f"{self.lock}({self.mode.value})"
