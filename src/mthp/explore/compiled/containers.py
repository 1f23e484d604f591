# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists, dicts, sets and arrays that tell a recorder what is read from and written to them.

None derives from the type it stands for: what it does not know fails instead of going unseen. An
array's cells are its items, a dict's its keys and the order of them, a list or a set is one cell.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import (
    Iterable,
    Iterator,
    MutableMapping,
    MutableSequence,
    MutableSet,
)
from copy import copy
from typing import Any, ClassVar, Final

from mthp.explore.compiled.cells import Cells
from mthp.explore.compiled.kinds import ABSENT, Unrecordable
from mthp.explore.compiled.segment import Symbol, plain


def _key(key: Any) -> Any:
    """A key as it is kept: no symbol, and none in it."""
    if isinstance(key, tuple) and any(type(each) is Symbol for each in key):
        each = [plain(each) for each in key]
        return tuple(each) if type(key) is tuple else type(key)._make(each)  # type: ignore[attr-defined]
    return plain(key)


class Shared:
    """What all of them have. kind: where it stands in the world; name: unique in an execution.

    changes: something of its kind is written by some task, so that reading it matters.
    """

    __slots__ = ("_epoch", "changes", "data", "kind", "name", "recorder")

    def __init__(self, recorder: Cells, data: Any, kind: str, name: object) -> None:
        self.recorder = recorder
        self.data = data
        self.kind = kind
        self.name = name
        self.changes = not recorder.building or kind in recorder.memory.changing
        self._epoch = -1

    def __getattr__(self, name: str) -> Any:
        raise Unrecordable(f"{self.kind}: {type(self).__name__} has no {name}")

    def __repr__(self) -> str:
        return repr(self.data)

    def __reduce__(self) -> Any:
        raise Unrecordable(f"{self.kind} is copied")

    def is_made(self) -> None:
        """A task has made it: all that is in it was written just now."""
        raise NotImplementedError

    def _is_watched(self) -> bool:
        """Whether what is read from it now is recorded."""
        return self.changes and self.recorder.segment is not None

    def _keep(self) -> None:
        """It is about to be written: keep what it held at the beginning of this execution."""
        recorder = self.recorder
        if not self.changes:
            recorder.memory.changing.add(self.kind)
            recorder.stale = self.changes = True
        if self._epoch != recorder.epoch:
            self._epoch = recorder.epoch
            recorder.journal.append((_restore, self, copy(self.data)))


def _restore(shared: Shared, old: Any) -> None:
    shared.data = old


class SharedArray(Shared):
    """An array of fixed size; each item is a cell. first: its first cell."""

    __slots__ = ("first",)

    def __init__(self, recorder: Cells, data: array[Any], kind: str, name: object) -> None:
        super().__init__(recorder, data[:], kind, name)
        self.first = recorder.cell(name, "row", len(data))

    def is_made(self) -> None:
        """See Shared.is_made()."""
        for i, value in enumerate(self.data):
            self.recorder.wrote(self.first + i, value, ABSENT)

    @property
    def typecode(self) -> str:
        return str(self.data.typecode)

    @property
    def itemsize(self) -> int:
        return int(self.data.itemsize)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at: Any) -> Any:
        recorder, at = self.recorder, plain(at)
        value = self.data[at]
        if not self._is_watched():
            return value
        if type(at) is int:
            cell = self.first + range(len(self.data))[at]
            return recorder.found(cell, value) if type(value) is int else value
        for i in range(len(self.data))[at]:
            recorder.read(self.first + i, self.data[i])
        return value

    def __setitem__(self, at: Any, value: Any) -> None:
        recorder, data, at = self.recorder, self.data, plain(at)
        self._keep()
        places, olds = range(len(data))[at], data[at]
        if type(places) is int:
            if recorder.changes(self.first + places, value):
                data[at] = value.value
                return
            data[at] = plain(value)
            places, olds = (places,), (olds,)
        else:
            data[at] = value.data if isinstance(value, SharedArray) else value
        for i, old in zip(places, olds, strict=True):
            recorder.wrote(self.first + i, data[i], old)

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def count(self, value: Any) -> int:
        """See array.count()."""
        return sum(each == value for each in self)


class _OneCell(Shared):
    """A container that is one cell, whose value is everything in it, frozen."""

    __slots__ = ("cell",)
    frozen: ClassVar[type[tuple[Any, ...]] | type[frozenset[Any]]]

    def __init__(self, recorder: Cells, data: Any, kind: str, name: object) -> None:
        super().__init__(
            recorder, type(data)(recorder.share(each, kind) for each in data), kind, name
        )
        self.cell = recorder.cell(name, "")

    def is_made(self) -> None:
        """See Shared.is_made()."""
        self.recorder.wrote(self.cell, self.frozen(self.data), ABSENT)

    def _read(self) -> Any:
        segment = self.recorder.segment
        if self.changes and segment is not None and self.cell not in segment.known:
            self.recorder.read(self.cell, self.frozen(self.data))
        return self.data

    def _write(self, data: Any) -> None:
        self._keep()
        old, self.data = self.data, data
        self.recorder.wrote(self.cell, self.frozen(data), self.frozen(old))

    def __len__(self) -> int:
        return len(self._read())

    def __contains__(self, value: object) -> bool:
        return value in self._read()


class SharedList(_OneCell, MutableSequence[Any]):
    """A list."""

    __slots__ = ()
    frozen = tuple

    def __getitem__(self, at: Any) -> Any:
        return self._read()[at]

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._read()))

    def __eq__(self, other: object) -> bool:
        return bool(self._read() == (other._read() if isinstance(other, SharedList) else other))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Iterable[Any]) -> list[Any]:
        return [*self._read(), *other]

    def __setitem__(self, at: Any, value: Any) -> None:
        share = self.recorder.share
        new = list(self._read())
        new[at] = (
            [share(v, self.kind) for v in value] if type(at) is slice else share(value, self.kind)
        )
        self._write(new)

    def __delitem__(self, at: Any) -> None:
        new = list(self._read())
        del new[at]
        self._write(new)

    def insert(self, at: int, value: Any) -> None:
        """See list.insert()."""
        new = list(self._read())
        new.insert(at, self.recorder.share(value, self.kind))
        self._write(new)

    def clear(self) -> None:
        """See list.clear()."""
        if self._read():
            self._write([])


class SharedSet(_OneCell, MutableSet[Any]):
    """A set. What is in it comes in the order of the recorder's numbers."""

    __slots__ = ()
    frozen = frozenset

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> Any:
        return set(it)

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(self._read(), key=self.recorder.number))

    def add(self, value: Any) -> None:
        """See set.add()."""
        if value not in self._read():
            self._write(self.data | {self.recorder.share(value, self.kind)})

    def discard(self, value: Any) -> None:
        """See set.discard()."""
        if value in self._read():
            self._write(self.data - {value})

    def update(self, *others: Iterable[Any]) -> None:
        """See set.update()."""
        for other in others:
            for value in other:
                self.add(value)


class SharedDict(Shared, MutableMapping[Any, Any]):
    """A dict, Counter or defaultdict: a cell for each key, and one for which there are."""

    __slots__ = ("counts", "default", "keys_cell")

    def __init__(self, recorder: Cells, data: dict[Any, Any], kind: str, name: object) -> None:
        shared = {key: recorder.share(each, kind) for key, each in data.items()}
        super().__init__(recorder, shared, kind, name)
        self.counts = isinstance(data, Counter)
        self.default = data.default_factory if isinstance(data, defaultdict) else None
        self.keys_cell = recorder.cell(name, "")

    def is_made(self) -> None:
        """See Shared.is_made()."""
        for key, each in self.data.items():
            self.recorder.wrote(self.cell(key), each, ABSENT)
        self.recorder.wrote(self.keys_cell, tuple(self.data), ABSENT)

    def cell(self, key: object) -> int:
        """The cell of a key, there or not."""
        return self.recorder.cell(self.name, (self.recorder.number(key),))

    def _read(self, key: Any) -> Any:
        key = _key(key)
        value = self.data.get(key, ABSENT)
        if self._is_watched():
            self.recorder.read(self.cell(key), value)
        return value

    def _keys(self) -> tuple[Any, ...]:
        keys = tuple(self.data)
        if self.changes:
            self.recorder.read(self.keys_cell, keys)
        return keys

    def __getitem__(self, key: Any) -> Any:
        key = _key(key)
        if self.counts and self._is_watched():
            value = self.recorder.found_any(self.cell(key), self.data.get(key, ABSENT))
        else:
            value = self._read(key)
        if value is not ABSENT:
            return value
        if self.counts:
            return 0
        if self.default is None:
            raise KeyError(key)
        self[key] = self.default()
        return self.data[key]

    def get(self, key: Any, default: Any = None) -> Any:
        """See dict.get()."""
        value = self._read(key)
        return default if value is ABSENT else value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """What is in it then: not what was given, where that is a container."""
        if key not in self:
            self[key] = default
        return self[key]

    def __contains__(self, key: object) -> bool:
        return self._read(key) is not ABSENT

    def __setitem__(self, key: Any, value: Any) -> None:
        recorder = self.recorder
        self._keep()
        key = _key(key)
        cell = self.cell(key)
        old = self.data.get(key, ABSENT)
        if recorder.changes(cell, value):
            self.data[key] = value.value
            return
        value = recorder.share(value, self.kind)
        if not recorder.is_there(cell, old):
            before = tuple(self.data)
            recorder.keys_changed(self.keys_cell, before, (*before, key))
        self.data[key] = value
        recorder.wrote(cell, value, old)

    def __delitem__(self, key: Any) -> None:
        self._keep()
        key = _key(key)
        old = self._read(key)
        if old is ABSENT:
            raise KeyError(key)
        before = tuple(self.data)
        del self.data[key]
        self.recorder.keys_changed(self.keys_cell, before, tuple(self.data))
        self.recorder.wrote(self.cell(key), ABSENT, old)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def copy(self) -> Any:
        """A copy that is the caller's own."""
        plain = {key: self[key] for key in self}
        if self.counts:
            return Counter(plain)
        return plain if self.default is None else defaultdict(self.default, plain)

    def __or__(self, other: Any) -> Any:
        return self.copy() | dict(other)

    def update(self, *others: Any, **named: Any) -> None:
        """See dict.update() and Counter.update()."""
        for other in (*others, named):
            if self.counts and not isinstance(other, dict | SharedDict | Counter):
                other = Counter(other)
            for key in other:
                self[key] = self[key] + other[key] if self.counts else other[key]


STANDS_FOR: Final[dict[type, type[Shared]]] = {
    list: SharedList, set: SharedSet, array: SharedArray,
    dict: SharedDict, Counter: SharedDict, defaultdict: SharedDict,
}  # fmt: skip
