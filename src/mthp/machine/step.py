# SPDX-License-Identifier: GPL-2.0-or-later
"""What a step is: every access to a shared word is one."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol


class Access(Enum):
    """What a step does to the word it names.

    ACQUIRE, TRY, RELEASE: of a lock; the index is 1 for writing, 0 for reading. ACQUIRE waits, TRY
    does not. IPI: wait until no task holds the word, and go on without holding it. WAIT: the same for
    one word of a row; the index is the word's. Of each of these, word.may_take(index) tells whether
    it could go ahead now. TAKE: count one user more; the task learns at most whether there
    was one. FREE: the word is given up, and nobody may use it any more.
    """

    READ = "read"
    WRITE = "write"
    RMW = "read-modify-write"
    TAKE = "take a reference"
    FREE = "free"
    ACQUIRE = "acquire"
    TRY = "try"
    RELEASE = "release"
    BARRIER = "barrier"
    IPI = "ipi"
    WAIT = "wait"

    __hash__ = (
        object.__hash__
    )  # Enum's own is a Python function, and steps are looked up all the time


ALL_BITS: Final = -1

OnStep = Callable[[Access, Any, int, int], None]
"""(access, word, index, the bits of the word that the step is about)."""


class Stepping(Protocol):
    """Where steps are taken: a machine."""

    def step(self, access: Access, word: object, index: int = 0) -> None:
        """Let other tasks come before an act."""
