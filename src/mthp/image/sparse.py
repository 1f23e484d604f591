# SPDX-License-Identifier: GPL-2.0-or-later
"""Columns of page tables of which few entries are there: kept as these alone, and whole when asked for.

A page in each table of a terabyte is no more to keep so than the same pages side by side; what stands in a
whole column is needed for moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPARSE = 16
"""Of so many values at most one is not 0 in a column that is kept so."""
_LEAST_BYTES = 4
"""Narrower columns are not worth it."""


class SparseColumn:
    """An (n, PTRS) column. places: where values are that are not 0, ascending, in the flattened column."""

    __slots__ = ("places", "shape", "values")

    def __init__(
        self, places: NDArray[np.int64], values: NDArray[Any], shape: tuple[int, int]
    ) -> None:
        self.places, self.values, self.shape = places, values, shape

    @classmethod
    def of(cls, parts: Iterable[NDArray[Any]], ptrs: int, dtype: Any) -> SparseColumn:
        """The column that the parts make, one below the other."""
        places, values, rows = [np.zeros(0, np.int64)], [np.zeros(0, dtype)], 0
        for part in parts:
            flat = part.reshape(-1)
            there = np.flatnonzero(flat)
            places.append(there + rows * ptrs)
            values.append(flat[there].astype(dtype))
            rows += len(part)
        return cls(np.concatenate(places), np.concatenate(values), (rows, ptrs))

    def part(self, rows: slice) -> SparseColumn:
        """Some rows that follow each other."""
        start, stop, _ = rows.indices(self.shape[0])
        first, last = np.searchsorted(self.places, np.array([start, stop]) * self.shape[1]).tolist()
        places = self.places[first:last] - start * self.shape[1]
        return SparseColumn(places, self.values[first:last], (max(stop - start, 0), self.shape[1]))

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        """Some rows, whole."""
        if isinstance(rows, slice):
            return self.part(rows).dense()
        which = np.arange(self.shape[0])[rows]
        starts, ends = (
            np.searchsorted(self.places, (which + more) * self.shape[1]) for more in (0, 1)
        )
        counts = ends - starts
        row = np.repeat(np.arange(len(which)), counts)
        place = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts) + starts[row]
        found = np.zeros((len(which), self.shape[1]), self.values.dtype)
        found[row, self.places[place] % self.shape[1]] = self.values[place]
        return found

    def at(self, places: NDArray[Any]) -> NDArray[Any]:
        """The values at places of the flattened column."""
        found = np.zeros(len(places), self.values.dtype)
        if len(self.places):
            index = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
            there = self.places[index] == places
            found[there] = self.values[index[there]]
        return found

    def dense(self) -> NDArray[Any]:
        """The whole column."""
        return self.marks(self.values)

    def marks(self, values: NDArray[Any]) -> NDArray[Any]:
        """A whole column with other values at these places."""
        found = np.zeros(self.shape, values.dtype)
        found.reshape(-1)[self.places] = values
        return found


class Packing:
    """What has columns, some of which are SparseColumns: asked for, each is whole."""

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return value.dense() if type(value) is SparseColumn else value


def kept(owner: Packing, name: str) -> Any:
    """A column as it is kept: an array, a SparseColumn, or None."""
    return object.__getattribute__(owner, name)


def picked(owner: Packing, name: str, *where: NDArray[Any]) -> NDArray[Any]:
    """The values of a column where a mask says so, or at rows and places within them."""
    column = kept(owner, name)
    if not isinstance(column, SparseColumn):
        found: NDArray[Any] = column[where]
        return found
    flat = np.flatnonzero(where[0]) if len(where) == 1 else where[0] * column.shape[1] + where[1]
    return column.at(flat)


def over(column: Any, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Any:
    """A column, kept the same way, with each value changed. change: leaves 0 as it is."""
    if isinstance(column, SparseColumn):
        return SparseColumn(column.places, change(column.values), column.shape)
    return change(column)


def is_worth_it(pte: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether to keep a column so, by the entries that are there."""
    return dtype.itemsize >= _LEAST_BYTES and int(np.count_nonzero(pte)) * SPARSE < pte.size
