# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists, dicts, sets and arrays that tell a recorder what is read from and written to them.

None derives from the type it stands for: what it does not know fails instead of going unseen. An
array's cells are its items, a dict's its keys and the order of them, a list or a set is one cell.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    MutableMapping,
    MutableSequence,
    MutableSet,
)
from copy import copy
from typing import TYPE_CHECKING, Any, Final

from mthp.explore.compiled.symbols import Symbol, plain

if TYPE_CHECKING:
    from mthp.explore.compiled.recording import Recorder


class Unrecordable(BaseException):
    """Something shared cannot be recorded; one line says what. No task may catch it."""


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT: Final = _Absent()
"""What an attribute or a key holds that is not there."""
MISSING: Final = object()


def _key(key: Any) -> Any:
    """A key as it is kept: no symbol, and none in it."""
    if type(key) is Symbol:
        return key.look()
    if isinstance(key, tuple) and any(type(each) is Symbol for each in key):
        each = [plain(each) for each in key]
        return tuple(each) if type(key) is tuple else type(key)._make(each)  # type: ignore[attr-defined]
    return key


class Shared:
    """What all of them have. kind: where it stands in the world; name: unique in an execution.

    changes: something of its kind is written by some task, so that reading it matters.
    """

    __slots__ = ("_epoch", "changes", "data", "kind", "name", "recorder")

    def __init__(self, recorder: Recorder, data: Any, kind: str, name: object) -> None:
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

    def __init__(self, recorder: Recorder, data: array[Any], kind: str, name: object) -> None:
        super().__init__(recorder, data, kind, name)
        self.data = data[:]
        self.first = recorder.row(name, len(data))

    @property
    def typecode(self) -> str:
        return str(self.data.typecode)

    @property
    def itemsize(self) -> int:
        return int(self.data.itemsize)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at: Any) -> Any:
        recorder = self.recorder
        at = plain(at)
        value = self.data[at]
        if self.changes and recorder.segment is not None:
            if type(at) is int:
                cell = self.first + (at if at >= 0 else at + len(self.data))
                return recorder.found(cell, value) if type(value) is int else value
            else:
                for i in range(len(self.data))[at]:
                    recorder.read(self.first + i, self.data[i])
        return value

    def __setitem__(self, at: Any, value: Any) -> None:
        recorder, data = self.recorder, self.data
        self._keep()
        at = plain(at)
        if type(at) is int:
            at = at if at >= 0 else at + len(data)
            old = data[at]
            if recorder.changes(self.first + at, value):
                data[at] = value.value
                return
            data[at] = plain(value)
            recorder.wrote(self.first + at, data[at], old)
            return
        places = range(len(data))[at]
        olds = data[at]
        data[at] = value.data if isinstance(value, SharedArray) else value
        if len(data) != len(self):
            raise Unrecordable(f"{self.kind} changes its size")
        for i, old in zip(places, olds, strict=True):
            recorder.wrote(self.first + i, data[i], old)

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])


class SharedList(Shared, MutableSequence[Any]):
    """A list: one cell, its value everything in it."""

    __slots__ = ("cell",)

    def __init__(self, recorder: Recorder, data: list[Any], kind: str, name: object) -> None:
        super().__init__(recorder, data, kind, name)
        self.cell = recorder.cell(name, "")

    def _read(self) -> list[Any]:
        recorder = self.recorder
        segment = recorder.segment
        if self.changes and segment is not None and self.cell not in segment.known:
            recorder.read(self.cell, tuple(self.data))
        return self.data  # type: ignore[no-any-return]

    def _write(self, data: list[Any]) -> None:
        self._keep()
        old, self.data = self.data, data
        self.recorder.wrote(self.cell, tuple(data), tuple(old))

    def __len__(self) -> int:
        return len(self._read())

    def __getitem__(self, at: Any) -> Any:
        return self._read()[at]

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._read()))

    def __contains__(self, value: object) -> bool:
        return value in self._read()

    def __eq__(self, other: object) -> bool:
        return self._read() == (other._read() if isinstance(other, SharedList) else other)

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
        """As of a list."""
        new = list(self._read())
        new.insert(at, self.recorder.share(value, self.kind))
        self._write(new)

    def clear(self) -> None:
        """As of a list."""
        if self._read():
            self._write([])


class SharedSet(Shared, MutableSet[Any]):
    """A set: one cell. What is in it comes in the order of the recorder's numbers."""

    __slots__ = ("cell",)

    def __init__(self, recorder: Recorder, data: set[Any], kind: str, name: object) -> None:
        super().__init__(recorder, data, kind, name)
        self.cell = recorder.cell(name, "")

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> Any:
        return set(it)

    def _read(self) -> set[Any]:
        recorder = self.recorder
        segment = recorder.segment
        if self.changes and segment is not None and self.cell not in segment.known:
            recorder.read(self.cell, frozenset(self.data))
        return self.data  # type: ignore[no-any-return]

    def _write(self, data: set[Any]) -> None:
        self._keep()
        old, self.data = self.data, data
        self.recorder.wrote(self.cell, frozenset(data), frozenset(old))

    def __len__(self) -> int:
        return len(self._read())

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(self._read(), key=self.recorder.number))

    def __contains__(self, value: object) -> bool:
        return value in self._read()

    def add(self, value: Any) -> None:
        """As of a set."""
        if value not in self._read():
            self._write(self.data | {self.recorder.share(value, self.kind)})

    def discard(self, value: Any) -> None:
        """As of a set."""
        if value in self._read():
            self._write(self.data - {value})

    def update(self, *others: Iterable[Any]) -> None:
        """As of a set."""
        for other in others:
            for value in other:
                self.add(value)


class SharedDict(Shared, MutableMapping[Any, Any]):
    """A dict, Counter or defaultdict: a cell for each key, and one for which there are."""

    __slots__ = ("counts", "default", "keys_cell")

    def __init__(self, recorder: Recorder, data: dict[Any, Any], kind: str, name: object) -> None:
        super().__init__(recorder, dict(data), kind, name)
        self.counts = isinstance(data, Counter)
        self.default: Callable[[], Any] | None = None
        if isinstance(data, defaultdict):
            self.default = data.default_factory
        elif not self.counts and type(data) is not dict:
            raise Unrecordable(f"{kind} is a {type(data).__name__}")
        self.keys_cell = recorder.cell(name, "")

    def cell(self, key: object) -> int:
        """Of a key, there or not."""
        return self.recorder.cell(self.name, (self.recorder.number(key),))

    def _read(self, key: Any) -> Any:
        key = _key(key)
        value = self.data.get(key, ABSENT)
        if self.changes and self.recorder.segment is not None:
            self.recorder.read(self.cell(key), value)
        return value

    def _keys(self) -> tuple[Any, ...]:
        keys = tuple(self.data)
        if self.changes:
            self.recorder.read(self.keys_cell, keys)
        return keys

    def __getitem__(self, key: Any) -> Any:
        recorder = self.recorder
        key = _key(key)
        if self.counts and self.changes and recorder.segment is not None:
            value = self.data.get(key, ABSENT)
            value = recorder.found_any(self.cell(key), value)
            if value is not ABSENT:
                return value
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
        """As of a dict."""
        value = self._read(key)
        return default if value is ABSENT else value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As of a dict: what is in it then, which is not what was given where that is a container."""
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
        if old is ABSENT:
            before = self._keys()
            recorder.wrote(self.keys_cell, (*before, key), before)
        self.data[key] = value
        recorder.wrote(cell, value, old)

    def __delitem__(self, key: Any) -> None:
        self._keep()
        key = _key(key)
        old = self._read(key)
        if old is ABSENT:
            raise KeyError(key)
        before = self._keys()
        del self.data[key]
        self.recorder.wrote(self.keys_cell, tuple(self.data), before)
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
        """As of a dict or a Counter."""
        for other in (*others, named):
            if self.counts and not isinstance(other, dict | SharedDict | Counter):
                other = Counter(other)
            for key in other:
                self[key] = self[key] + other[key] if self.counts else other[key]
