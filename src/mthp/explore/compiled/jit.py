# SPDX-License-Identifier: GPL-2.0-or-later
"""integers.py compiled by Numba, where it is installed, and its columns as arrays."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from hashlib import sha256
from inspect import getsource
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.explore.compiled import automaton, integers
from mthp.explore.compiled.automaton import Program
from mthp.explore.compiled.integers import Code, SearchState

_COLUMNS = tuple(name for name in Code._fields if name != "background")


class Compiled(NamedTuple):
    """The functions of integers.py that are called from outside."""

    search: Any
    resume: Any
    rewind: Any
    reverse: Any


PLAIN = Compiled(*(getattr(integers, name) for name in Compiled._fields))
"""The functions as they are."""


@cache
def compiled() -> Compiled | None:
    """The same functions as machine code; None where Numba is not installed."""
    try:
        code = machine_code(Compiled._fields, integers, automaton)
    except ImportError:
        return None
    return Compiled(*(code[name] for name in Compiled._fields))


def machine_code(
    called: Collection[str], module: ModuleType, *others: ModuleType
) -> dict[str, Any]:
    """The functions of a module, compiled. called: those called from outside; others: the modules that it
    takes constants and classes from.

    ImportError where Numba is not installed. Numba keeps machine code under the name of a function and
    looks at the time of its file alone. A constant, a function or a class of another file that has
    changed since would go unseen, or would no longer be found when the kept file is read. So a digest of
    all that the code is made from is a part of the name. A call hands over each column as a value of seven
    words, some hundreds of words in all: three quarters of the time, unless all calls are inlined. Then
    what is called from inside needs no way in from Python and no file, which are half of what Numba does.
    """
    from numba import njit

    sources = "\0".join(getsource(each) for each in (module, *others))
    made_from = sha256(sources.encode()).hexdigest()[:16]
    names = dict(vars(module))
    for name, each in vars(module).items():
        if isinstance(each, FunctionType) and each.__module__ == module.__name__:
            copied = FunctionType(each.__code__, names, name)
            copied.__module__, copied.__qualname__ = each.__module__, f"{name}_{made_from}"
            outside = name in called
            options = {"no_cpython_wrapper": not outside, "forceinline": not outside}
            options |= {"no_cfunc_wrapper": True, "_nrt": False}
            try:
                names[name] = njit(cache=outside, **options)(copied)
            except RuntimeError:  # there is no folder that Numba may write to
                names[name] = njit(**options)(copied)
    return names


def as_arrays(state: SearchState) -> SearchState:
    """The same state in arrays."""
    return SearchState(*(np.array(column, np.int64) for column in state))


class Mirror:
    """A copy of a Program in arrays, brought up to date by what is new in it."""

    def __init__(self, program: Program, background: list[int]) -> None:
        self.program = program
        self.background = np.array(background, np.int64)
        self._arrays: dict[str, NDArray[np.int64]] = {}
        self._sizes: dict[str, int] = {}
        self._code: Code | None = None

    def renewed(self) -> None:
        """The program was written anew."""
        self._sizes.clear()

    def code(self) -> Code:
        """The arrays as they are to be now."""
        program = self.program
        columns = {name: getattr(program, name) for name in _COLUMNS}
        sizes = {name: len(column) for name, column in columns.items()}
        if self._code is not None and self._sizes == sizes and not program.touched:
            return self._code
        for name, column in columns.items():
            self._append(name, column)
        nxt = self._arrays["nxt"]
        for node in program.touched:
            nxt[node] = program.nxt[node]
        program.touched.clear()
        self._code = Code(**self._arrays, background=self.background)
        return self._code

    def _append(self, name: str, column: list[int]) -> None:
        have, size = self._sizes.get(name, 0), len(column)
        array = self._arrays.get(name)
        if array is None or len(array) < size:
            larger = np.zeros(2 * size + 64, np.int64)
            if array is not None:
                larger[:have] = array[:have]
            self._arrays[name] = array = larger
        array[have:size] = column[have:]
        self._sizes[name] = size
