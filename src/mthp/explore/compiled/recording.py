# SPDX-License-Identifier: GPL-2.0-or-later
"""What tasks read from and write to a world they share, whether or not it is a step.

A Recorder takes a freshly built Setup and puts itself between the tasks and everything in it that can
change: attributes that are ever written (found out by watching writes), lists, dicts, sets, arrays.
Each such place is a cell, a number; each value that was in one is a number too. Whatever a task makes
and leaves where others find it is taken in then, and named by who made it as its how-manieth. What it
does not know how to record is refused (Unrecordable). A world is put back by undoing what was written.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from sys import getrefcount
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any, Final

from mthp.explore.compiled.attributes import access, attributes, is_frozen, put_as, refuse_deletion
from mthp.explore.compiled.containers import (
    ABSENT,
    Shared,
    SharedArray,
    SharedDict,
    SharedList,
    SharedSet,
    Unrecordable,
)
from mthp.explore.compiled.segment import VALUE, Memory, Segment
from mthp.explore.compiled.symbols import IS_INT, Question, Symbol, calculate, plain
from mthp.machine.task import Machine

_ATOMS: Final = (int, str, bool, NoneType, float, bytes)
_ALIASED: Final = (list, dict, set, array, Counter, defaultdict)
_OF_SCHEDULERS: Final = frozenset({"current", "on_step", "abandoned"})
"""What an execution itself sets on the machine, or a step says of itself."""
_ONLY_HERE: Final = 2
"""References to what a variable holds that nobody else has, seen from sys.getrefcount()."""
_LEAVES: Final = (Shared, Enum, type, ModuleType, BaseException, MappingProxyType, frozenset, range)


class Recorder:
    """Stands between the tasks of a world and what they share. segment: where it is recorded, or None.

    first: cell -> the number of what it held before anybody did anything.
    stale: something was found out, and everything recorded so far must be thrown away.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.stale = False
        self.segment: Segment | None = None
        self.judging = False
        self.journal: list[tuple[Callable[..., None], Any, Any]] = []
        self.epoch = 0
        self.values: list[Any] = []
        self.first: dict[int, int] = {}
        self.nr_cells = 0
        self._numbers: dict[Any, int] = {}
        self._cells: dict[Any, int] = {}
        self._names: dict[int, Any] = {}
        self.building = True
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
        """Of a value; equal values have one number. Things that are shared are what they are."""
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
        if is_dataclass(value) and is_frozen(kind):
            return kind, *(self.number(getattr(value, each.name)) for each in fields(value))
        raise Unrecordable(f"{kind.__module__}.{kind.__name__} is kept where others see it")

    def cell(self, name: Any, key: Any) -> int:
        """The number of a place."""
        found = self._cells.get((name, key))
        if found is None:
            found = self._cells[name, key] = self.nr_cells
            self.nr_cells += 1
        return found

    def row(self, name: Any, size: int) -> int:
        """The number of the first of several places in a row."""
        found = self._cells.get((name, "row"))
        if found is None:
            found = self._cells[name, "row"] = self.nr_cells
            self.nr_cells += size
        return found

    # Recording

    def read(self, cell: int, value: Any) -> None:
        """The running task looked at a cell, where `value` is now."""
        segment = self.segment
        if segment is None or cell in segment.known:
            return
        if cell in segment.changed:
            self.looked_at(cell)
            return
        segment.known.add(cell)
        segment.looked.add(cell)
        number = self.number(value)
        if cell not in self.first:
            self.first[cell] = number
        segment.reads.append((cell, VALUE, number))

    def wrote(self, cell: int, value: Any, old: Any) -> None:
        """The running task changed a cell."""
        segment = self.segment
        if segment is None:
            return
        if cell not in self.first:
            self.first[cell] = self.number(old)
        segment.known.add(cell)
        segment.changed.pop(cell, None)
        segment.written[cell] = value

    def found_any(self, cell: int, value: Any) -> Any:
        """What is in a cell, an int or something else."""
        segment = self.segment
        is_int = type(value) is int
        if segment is not None and cell not in segment.known and not self.judging:
            segment.ask(cell, IS_INT, is_int)
        if is_int:
            return self.found(cell, value)
        self.read(cell, value)
        return value

    def found(self, cell: int, value: int) -> Any:
        """An int that is in a cell; what matters about it is still to be seen."""
        segment = self.segment
        if segment is None or cell in segment.known:
            return value
        if self.judging:
            self.read(cell, value)
            return value
        chain = segment.changed.get(cell)
        if chain is None:
            segment.found[cell] = value
            if cell not in self.first:
                self.first[cell] = self.number(value)
            chain = ()
        return Symbol(self, segment, cell, value, chain)

    def changes(self, cell: int, value: Any) -> bool:
        """Whether writing `value` is to calculate with what is in the cell; it is noted then."""
        if type(value) is not Symbol or value.cell != cell or not value.is_open():
            return False
        if cell in value.segment.known:
            return False
        value.segment.changed[cell] = value.chain
        return True

    def asked(self, cell: int, question: Question, answer: bool) -> None:
        """The running task asked something about what it found in a cell."""
        assert self.segment is not None
        self.segment.ask(cell, question, answer)

    def looked_at(self, cell: int) -> None:
        """The running task knows all about a cell that it has a symbol of."""
        segment = self.segment
        assert segment is not None
        before = segment.found[cell]
        segment.looked.add(cell)
        segment.known.add(cell)
        segment.reads.append((cell, VALUE, self.number(before)))
        chain = segment.changed.pop(cell, None)
        if chain is not None:
            segment.written[cell] = calculate(chain, before)

    def begin(self, who: Any) -> None:
        """From here on `who` runs: a task's number, or what judges."""
        self.segment = Segment()
        self._who = who

    def begin_known(self, who: Any) -> None:
        """The same, where what is done is known and need not be recorded."""
        self.segment = None
        self._who = who

    def end(self) -> Segment:
        """Nobody runs any more; what was done since it began."""
        segment = self.segment
        assert segment is not None
        symbols = segment.symbols
        while symbols:
            symbol = symbols.pop()
            if getrefcount(symbol) > _ONLY_HERE:
                symbol.look()
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
        if of in _ALIASED and not self.building:
            self._aliases.append((value, copy(value)))
        if of in _ATOMS or id(value) in self._names or isinstance(value, _LEAVES):
            return value
        if of is Symbol:
            return value.look()
        if of is list:
            return self._contain(SharedList, [self.share(each, kind) for each in value], kind)
        if isinstance(value, dict):
            return self._dict(value, kind)
        if of is set:
            return self._contain(SharedSet, {self.share(each, kind) for each in value}, kind)
        if of is array:
            return self._contain(SharedArray, value, kind)
        if isinstance(value, tuple):
            items = [self.share(each, kind) for each in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return of(items) if of is tuple else of._make(items)
        if of is FunctionType:
            self._function(value)
            return value
        if of is MethodType:
            if id(value.__self__) not in self._names:
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
        if value is ABSENT or (is_dataclass(value) and is_frozen(of)):
            return value
        self._entity(value, kind)
        return value

    def _name(self, what: str) -> Any:
        """Unique in this execution, and the same wherever the running task has done the same."""
        made = self._made_by.get((self._who, what), 0)
        self._made_by[self._who, what] = made + 1
        return self._who, what, made

    def _contain(self, kind_of: Any, data: Any, kind: str) -> Any:
        shared = kind_of(self, data, kind, self._name(f"{kind}:{kind_of.__name__}"))
        if self.segment is not None:
            if kind_of is SharedArray:
                for i, value in enumerate(data):
                    self.wrote(shared.first + i, value, ABSENT)
            else:
                value = tuple(data) if kind_of is SharedList else frozenset(data)
                self.wrote(shared.cell, value, ABSENT)
        return shared

    def _dict(self, value: dict[Any, Any], kind: str) -> SharedDict:
        shared = SharedDict(self, value, kind, self._name(f"{kind}:dict"))
        shared.data = {key: self.share(each, kind) for key, each in value.items()}
        if self.segment is not None:
            for key, each in shared.data.items():
                self.wrote(shared.cell(key), each, ABSENT)
            self.wrote(shared.keys_cell, tuple(shared.data), ABSENT)
        return shared

    def _function(self, function: FunctionType) -> None:
        if id(function) in self._seen_functions:
            return
        self._seen_functions[id(function)] = function
        for cell in function.__closure__ or ():
            cell.cell_contents = self.share(cell.cell_contents, function.__qualname__)
        for each in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if isinstance(each, list | dict | set | array):
                raise Unrecordable(f"{function.__qualname__} keeps a {type(each).__name__}")
            self.share(each, function.__qualname__)

    def _entity(self, thing: Any, kind: str) -> None:
        of = type(thing)
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
        for attribute, get, put in attributes(thing, recorded):
            old = get(thing, attribute)
            new = self.share(old, f"{of.__name__}.{attribute}")
            if new is not old:
                put(thing, attribute, new)
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
        if of.__module__ == "builtins" or not of.__flags__ & (1 << 9):
            raise Unrecordable(f"{kind} is a {of.__module__}.{of.__name__}")
        members: dict[str, Any] = {
            "__slots__": (),
            "_recorded_as": of,
            "__setattr__": self._setter(of),
        }
        members["__delattr__"] = refuse_deletion
        recorded = type(of)(of.__name__, (of,), members)
        for each, attribute in self.memory.written:
            if each is of:
                setattr(recorded, attribute, self._property(of, attribute))
        recorded.__module__, recorded.__qualname__ = of.__module__, of.__qualname__
        return recorded

    def _property(self, of: type, attribute: str) -> property:
        get, _ = access(of, attribute)

        def read(thing: Any) -> Any:
            value = get(thing, attribute)
            segment = self.segment
            if segment is None:
                if value is ABSENT:
                    raise AttributeError(attribute)
                return value
            name = self._names.get(id(thing))
            cell = self.cell(name, attribute)
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
                put(thing, attribute, value)
                return
            old = get(thing, attribute)
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
            self.journal.append((partial(put_as, put, attribute), thing, old))
            cell = self.cell(name, attribute)
            if self.changes(cell, value):
                put(thing, attribute, value.value)
                return
            value = self.share(value, f"{of.__name__}.{attribute}")
            put(thing, attribute, value)
            self.wrote(cell, value, old)

        return write
