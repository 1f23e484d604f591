# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a function ran, as the interpreter sees it: a fast twin that declines calls the clear one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any


@contextmanager
def functions_run() -> Iterator[set[CodeType]]:
    """The code of every Python function called meanwhile."""
    seen: set[CodeType] = set()
    before = sys.getprofile()
    sys.setprofile(lambda frame, kind, _: seen.add(frame.f_code) if kind == "call" else None)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def code(function: Callable[..., Any]) -> CodeType:
    """What functions_run() finds of a function."""
    found: CodeType = function.__code__
    return found
