# SPDX-License-Identifier: GPL-2.0-or-later
"""What one task does between two schedule points, and the ints that it reads there.

A task that adds to a reference count and looks whether it was 0 has learnt that, and not the count. So
a read gives a Symbol: what is calculated from it is a Symbol too, comparing it with a constant is a
question with a yes or a no, and writing it back to its cell is a change by calculation. Everything
else that is done with it looks at the value itself, and so does keeping it until the segment ends.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final
from weakref import ref

from mthp.explore.compiled.kinds import ABSENT

Chain = tuple[tuple[str, int], ...]
"""Operations in turn, each with its constant."""
Question = tuple[Chain, str, int]
"""A comparison of what a chain makes of a value with a constant."""
VALUE: Final[Question] = ((), "", 0)
"""The question what a value is."""
IS_INT: Final[Question] = ((), "int", 0)
"""The question whether what is there is a number at all."""
IS_THERE: Final[Question] = ((), "there", 0)
"""The question whether anything is."""
_CALCULATED: Final[dict[str, Callable[[int, int], Any]]] = {
    "add": operator.add,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "rshift": operator.rshift,
    "lshift": operator.lshift,
}
_COMPARED: Final[dict[str, Callable[[int, int], Any]]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip


def calculate(chain: Chain, value: int) -> int:
    """What the operations make of a value."""
    for name, constant in chain:
        value = _CALCULATED[name](value, constant)
    return value


def answer(question: Question, value: Any) -> bool:
    """The answer to a question about a value."""
    if question == IS_INT:
        return type(value) is int
    if question == IS_THERE:
        return value is not ABSENT
    chain, name, constant = question
    return bool(_COMPARED[name](calculate(chain, value), constant))


def _then(chain: Chain, name: str, constant: int) -> Chain:
    """One more operation; two of a kind are one."""
    if chain and name == chain[-1][0] and name in ("add", "and", "or", "xor"):
        constant = _CALCULATED[name](chain[-1][1], constant)
        chain = chain[:-1]
    return chain if name == "add" and not constant else (*chain, (name, constant))


class Segment:
    """What one task did between two schedule points. number: the number of a value.

    reads: (cell, question, number of the answer) about what it found there, in its order. found: cell ->
    the int that was in it. looked: cells of which it knows what was in them; known: of which it knows
    what is. written: cell -> what it left. changed: cell -> what it calculated there, without looking.
    """

    __slots__ = (
        "_asked", "_symbols", "changed", "found", "is_open", "known", "looked", "number", "reads",
        "written",
    )  # fmt: skip

    def __init__(self, number: Callable[[Any], int]) -> None:
        self.number = number
        self.is_open = True
        self.reads: list[tuple[int, Question, int]] = []
        self.looked: set[int] = set()
        self.known: set[int] = set()
        self.written: dict[int, Any] = {}
        self.found: dict[int, int] = {}
        self.changed: dict[int, Chain] = {}
        self._symbols: list[ref[Symbol]] = []
        self._asked: set[tuple[int, Question]] = set()

    def ask(self, cell: int, question: Question, answer: bool) -> None:
        """Note a question that was not asked before."""
        if (cell, question) not in self._asked:
            self._asked.add((cell, question))
            self.reads.append((cell, question, int(answer)))

    def symbol(self, cell: int, value: int, chain: Chain) -> Symbol:
        """What stands for an int that comes of what was in a cell."""
        symbol = Symbol(self, cell, value, chain)
        self._symbols.append(ref(symbol))
        return symbol

    def look_at(self, cell: int, chain: Chain = ()) -> None:
        """The task knows all about a cell that it has a symbol of. chain: how that comes of the cell."""
        before = self.found[cell]
        self.looked.add(cell)
        self.known.add(cell)
        self.reads.append((cell, VALUE, self.number(before)))
        changed = self.changed.pop(cell, None)
        if changed is not None:
            self.written[cell] = calculate(changed, before)

    def end(self) -> None:
        """The task has come to its next step. It knows the values of the symbols that it still holds:
        an object that anything refers to is alive, and so are weak references to it.
        """
        for reference in reversed(self._symbols):
            symbol = reference()
            if symbol is not None:
                symbol.look()
        self.is_open = False


class Symbol:
    """value: what it is; chain: how it comes of what was in the cell when the segment began.

    No int, so that nothing takes its value unseen.
    """

    __slots__ = ("__weakref__", "cell", "chain", "segment", "value")

    def __init__(self, segment: Segment, cell: int, value: int, chain: Chain) -> None:
        self.segment = segment
        self.cell = cell
        self.value = value
        self.chain = chain

    def is_open(self) -> bool:
        """Whether its value is not known to its task, and what is asked about it matters."""
        return self.segment.is_open and self.cell not in self.segment.looked

    def look(self) -> int:
        """Its value, which its task knows from here on."""
        if self.is_open():
            self.segment.look_at(self.cell, self.chain)
        return self.value

    def _calculated(self, name: str, other: Any) -> Any:
        value = _CALCULATED[name](self.value, other)
        chain = _then(self.chain, name, other)
        return self.segment.symbol(self.cell, value, chain)

    def _compared(self, name: str, other: int) -> bool:
        verdict = bool(_COMPARED[name](self.value, other))
        if self.is_open():
            self.segment.ask(self.cell, (self.chain, name, other), verdict)
        return verdict

    def __getattr__(self, name: str) -> Any:
        """Methods of ints: bit_count() and the like."""
        return getattr(self.look(), name)

    def __sub__(self, other: Any) -> Any:
        other = settled(other)
        if not self.is_open():
            return self.value - other
        return (
            _calculating("add")(self, -other) if type(other) is int else self.look() - plain(other)
        )

    def __bool__(self) -> bool:
        return self._compared("ne", 0)

    def __hash__(self) -> int:
        return hash(self.look())


def plain(value: Any) -> Any:
    """The int that a symbol stands for; anything else as it is."""
    return value.look() if type(value) is Symbol else value


def settled(value: Any) -> Any:
    """The int for a symbol of a segment that has ended, which is as good as one."""
    return value.value if type(value) is Symbol and not value.is_open() else value


def _calculating(name: str) -> Callable[[Symbol, Any], Any]:
    def method(self: Symbol, other: Any) -> Any:
        other = settled(other)
        if not self.is_open():
            return _CALCULATED[name](self.value, other)
        if type(other) is int and (other >= 0 or "shift" not in name):
            return self._calculated(name, other)
        return _CALCULATED[name](self.look(), plain(other))

    return method


def _comparing(name: str) -> Callable[[Symbol, Any], Any]:
    def method(self: Symbol, other: Any) -> Any:
        other = settled(other)
        if not self.is_open():
            return _COMPARED[name](self.value, other)
        if isinstance(other, int):
            return self._compared(name, int(other))
        return _COMPARED[name](self.look(), plain(other))

    return method


def _looking(name: str) -> Callable[..., Any]:
    def method(self: Symbol, *others: Any) -> Any:
        return getattr(self.look(), name)(*map(plain, others))

    return method


for _name in _CALCULATED:
    setattr(Symbol, f"__{_name}__", _calculating(_name))
for _name in ("add", "and", "or", "xor"):
    setattr(Symbol, f"__r{_name}__", _calculating(_name))
for _name in _COMPARED:
    setattr(Symbol, f"__{_name}__", _comparing(_name))
for _name in (
    "abs", "ceil", "divmod", "float", "floor", "floordiv", "format", "index", "int", "invert", "mod",
    "mul", "neg", "pos", "pow", "rdivmod", "repr", "rfloordiv", "rlshift", "rmod", "rmul", "rpow",
    "rrshift", "rsub", "rtruediv", "str", "truediv",
):  # fmt: skip
    setattr(Symbol, f"__{_name}__", _looking(f"__{_name}__"))
