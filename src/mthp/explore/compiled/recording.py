# SPDX-License-Identifier: GPL-2.0-or-later
"""What tasks read from and write to a world they share, whether or not it is a step.

A Recorder takes a freshly built Setup and puts itself between the tasks and everything in it that can
change: attributes that are ever written (found out by watching writes), lists, dicts, sets, arrays.
Each such place is a cell, a number; each value that was in one is a number too. Whatever a task makes
and leaves where others find it is taken in then. Its name is the task that made it, its class, and how
many of that class the task had made before. What the recorder does not know how to record is refused
(Unrecordable). A world is put back by undoing what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import fields
from enum import Enum
from functools import partial
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any, Final

from mthp.explore.compiled.attributes import access, attributes
from mthp.explore.compiled.cells import Cells, Memory
from mthp.explore.compiled.containers import STANDS_FOR, Shared
from mthp.explore.compiled.kinds import ABSENT, Unrecordable
from mthp.explore.compiled.segment import Segment, Symbol, plain
from mthp.machine.task import Machine

_ATOMS: Final = (int, str, bool, NoneType, float, bytes)
_OF_SCHEDULERS: Final = frozenset({"current", "on_step", "abandoned"})
"""What an execution itself sets on the machine."""
_PYTHON: Final = 1 << 9
"""The flag of a class that is written in Python. CPython: Py_TPFLAGS_HEAPTYPE."""
_LEAVES: Final = (Shared, Enum, type, ModuleType, BaseException, MappingProxyType, frozenset, range)


class Recorder(Cells):
    """Stands between the tasks of a world and what they share. values: by their numbers."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}
        self._names: dict[int, Any] = {}
        self._built: list[Any] = []
        self._made: list[Any] = []
        self._made_by: dict[Any, int] = {}
        self._who: Any = None
        self._aliases: list[tuple[Any, Any]] = []
        self._classes: dict[type, type] = {}
        self._seen_functions: dict[int, Any] = {}

    def built(self) -> None:
        """The world is complete: what comes now is made by tasks."""
        self.building = False
        self.undo()

    # Numbers

    def number(self, value: Any) -> int:
        """See Cells.number(). Two shared objects are never equal."""
        value = plain(value)
        kind = type(value)
        key = self._key(kind, value)
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.values)
            self.values.append(value)
        return found

    def _key(self, kind: type, value: Any) -> Any:
        if kind in _ATOMS or isinstance(value, Enum | type | ModuleType | FunctionType):
            return kind, value
        name = self._names.get(id(value))
        if name is not None:
            return "the", name
        if isinstance(value, Shared):
            return "the", value.name
        if isinstance(value, tuple):
            return (kind, *map(self.number, value))
        if kind is frozenset:
            return kind, frozenset(map(self.number, value))
        if kind is MethodType:
            return kind, value.__func__, self.number(value.__self__)
        if value is ABSENT:
            return "absent"
        if _is_frozen(value):
            return kind, *(self.number(getattr(value, each.name)) for each in fields(value))
        raise Unrecordable(f"{kind.__module__}.{kind.__name__} is kept where others see it")

    # Recording

    def begin(self, who: Any) -> None:
        """From here on `who` runs: a task's number, or what judges."""
        self.segment = Segment(self.number)
        self._who = who

    def begin_known(self, who: Any) -> None:
        """From here on `who` runs, and what is done is known and need not be recorded."""
        self.segment = None
        self._who = who

    def end(self) -> Segment:
        """The running task has come to its next step; what it did since it began."""
        segment = self.segment
        assert segment is not None
        segment.end()
        self.segment = None
        return segment

    # Undoing

    def undo(self) -> None:
        """The world is as it was built. Unrecordable: something in it was changed past the recorder."""
        self.segment = None
        changed = next((of for of, was in self._aliases if of != was), None)
        self._aliases.clear()
        for restore, where, what in reversed(self.journal):
            restore(where, what)
        self.journal.clear()
        self.epoch += 1
        for made in self._made:
            self._names.pop(id(made), None)
        self._made.clear()
        self._made_by.clear()
        if changed is not None:
            raise Unrecordable(f"a {type(changed).__name__} is changed by another name: {changed}")

    def release(self) -> None:
        """Objects are of their own classes again."""
        self.undo()
        for each in self._built:
            object.__setattr__(each, "__class__", type(each).__mro__[1])
        self._built.clear()

    # Taking things in

    def share(self, value: Any, kind: str) -> Any:
        """The value, or what stands for it, where others will see it."""
        of = type(value)
        if of in _ATOMS or id(value) in self._names or isinstance(value, _LEAVES):
            return value
        if of is Symbol:
            return value.look()
        if of in STANDS_FOR:
            return self._contain(value, kind)
        if isinstance(value, tuple):
            items = [self.share(each, kind) for each in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return of(items) if of is tuple else of._make(items)
        if of is FunctionType:
            self._function(value)
            return value
        if of is MethodType:
            self.share(value.__self__, kind)
            return value
        if of is partial:
            for each in (*value.args, *value.keywords.values()):
                self.share(each, kind)
            return value
        if of is BuiltinFunctionType:
            if isinstance(value.__self__, ModuleType | type):
                return value
            raise Unrecordable(f"{kind} is a method of a {type(value.__self__).__name__}")
        if value is ABSENT or _is_frozen(value):
            return value
        self._entity(value, kind)
        return value

    def _name(self, what: str) -> Any:
        """Unique in this execution, and the same wherever the running task has done the same."""
        made = self._made_by.get((self._who, what), 0)
        self._made_by[self._who, what] = made + 1
        return self._who, what, made

    def _contain(self, value: Any, kind: str) -> Shared:
        if not self.building:
            self._aliases.append((value, copy(value)))
        stands_for = STANDS_FOR[type(value)]
        name = self._name(f"{kind}:{stands_for.__name__}")
        shared = stands_for(self, value, kind, name)
        if self.segment is not None:
            shared.is_made()
        return shared

    def _function(self, function: FunctionType) -> None:
        if id(function) in self._seen_functions:
            return
        self._seen_functions[id(function)] = function
        for cell in function.__closure__ or ():
            cell.cell_contents = self.share(cell.cell_contents, function.__qualname__)
        for each in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if isinstance(each, tuple(STANDS_FOR)):
                raise Unrecordable(f"{function.__qualname__} keeps a {type(each).__name__}")
            self.share(each, function.__qualname__)

    def _entity(self, thing: Any, kind: str) -> None:
        of: type = type(thing)
        if hasattr(of, "_recorded_as"):  # by a recorder that has let go of it
            of = of.__mro__[1]
        recorded = self._classes.get(of)
        if recorded is None:
            recorded = self._classes[of] = self._recorded(of, kind)
        try:
            object.__setattr__(thing, "__class__", recorded)
        except TypeError:
            raise Unrecordable(f"{kind} is a {of.__module__}.{of.__name__}") from None
        name = self._name(f"{of.__module__}.{of.__qualname__}")
        self._names[id(thing)] = name
        (self._built if self.building else self._made).append(thing)
        constant = []
        written = []
        for attribute in attributes(thing, of):
            get, put = access(of, attribute)
            old = get(thing)
            new = self.share(old, f"{of.__name__}.{attribute}")
            if new is not old:
                put(thing, new)
            if (of, attribute) in self.memory.written:
                written.append((attribute, new))
            elif not self.building:
                constant.append((attribute, self.number(new)))
        if not self.building:
            name = self._names[id(thing)] = (name, *constant)
            for attribute, new in written:
                self.wrote(self.cell(name, attribute), new, ABSENT)

    # Classes

    def _recorded(self, of: type, kind: str) -> type:
        """A class whose objects say what is written to them, and what is read where it matters."""
        is_container = issubclass(of, (*STANDS_FOR, tuple, frozenset))
        if is_container or of.__module__ == "builtins" or not of.__flags__ & _PYTHON:
            raise Unrecordable(f"{kind} is a {of.__module__}.{of.__name__}")
        members: dict[str, Any] = {
            "__slots__": (),
            "_recorded_as": of,
            "__setattr__": self._setter(of),
            "__delattr__": _refuse_deletion,
        }
        recorded = type(of)(of.__name__, (of,), members)
        for each, attribute in self.memory.written:
            if each is of:
                setattr(recorded, attribute, self._property(of, attribute))
        recorded.__module__, recorded.__qualname__ = of.__module__, of.__qualname__
        return recorded

    def _property(self, of: type, attribute: str) -> property:
        get, _ = access(of, attribute)

        def read(thing: Any) -> Any:
            value = get(thing)
            segment = self.segment
            if segment is not None:
                cell = self.cell(self._names.get(id(thing)), attribute)
                if cell not in segment.known:
                    value = self.found_any(cell, value)
            if value is ABSENT:
                raise AttributeError(attribute)
            return value

        return property(read)

    def _setter(self, of: type) -> Callable[[Any, str, Any], None]:
        written = self.memory.written
        machine = issubclass(of, Machine)

        def write(thing: Any, attribute: str, value: Any) -> None:
            get, put = access(of, attribute)
            if machine and attribute in _OF_SCHEDULERS:
                put(thing, value)
                return
            old = get(thing)
            if (of, attribute) not in written:
                value = plain(value)
                if value is old or (
                    type(value) is type(old) and type(value) in _ATOMS and value == old
                ):
                    return
                written.add((of, attribute))
                self.stale = True
            name = self._names.get(id(thing))
            if name is None:
                raise Unrecordable(
                    f"{of.__name__}.{attribute} is written after its world has ended"
                )
            self.journal.append((put, thing, old))
            cell = self.cell(name, attribute)
            if self.changes(cell, value):
                put(thing, value.value)
                return
            value = self.share(value, f"{of.__name__}.{attribute}")
            put(thing, value)
            self.wrote(cell, value, old)

        return write


def _refuse_deletion(thing: Any, attribute: str) -> None:
    raise Unrecordable(f"{type(thing).__name__}.{attribute} is deleted")


def _is_frozen(value: Any) -> bool:
    """Whether it is a value of a frozen dataclass."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and parameters.frozen
