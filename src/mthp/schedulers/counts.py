# SPDX-License-Identifier: GPL-2.0-or-later
"""A number of which it is not known yet whether anybody cares what it is, or only adds to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mthp.schedulers.recording import Recorder


class Count:
    """What was in a cell, and what was added since the task's last step (added). kept: it was put back.

    No int, so that nothing takes its value unseen: every use but adding to it is looking at it.
    """

    __slots__ = ("added", "cell", "kept", "kind", "recorder", "value")

    def __init__(self, recorder: Recorder, cell: int, value: int, added: int, kind: str) -> None:
        self.recorder = recorder
        self.cell = cell
        self.value = value
        self.added = added
        self.kind = kind
        self.kept = False

    def look(self) -> int:
        """Its value, which matters from here on."""
        return self.recorder.looked_at(self)

    def __add__(self, other: Any) -> Any:
        if type(other) is not int:
            return self.look() + other
        self.kept = True
        count = Count(self.recorder, self.cell, self.value + other, self.added + other, self.kind)
        segment = self.recorder.segment
        if segment is not None:
            segment.counts.append(count)
        return count

    def __sub__(self, other: Any) -> Any:
        return self + -other if type(other) is int else self.look() - other


def _looking(name: str) -> Callable[..., Any]:
    def method(self: Count, *others: Any) -> Any:
        others = tuple(each.look() if type(each) is Count else each for each in others)
        return getattr(self.look(), name)(*others)

    return method


for _name in (
    "and", "bool", "ceil", "divmod", "eq", "float", "floor", "floordiv", "format", "ge", "gt", "hash",
    "index", "int", "invert", "le", "lshift", "lt", "mod", "mul", "ne", "neg", "or", "pos", "pow",
    "radd", "rand", "rdivmod", "repr", "rfloordiv", "rlshift", "rmod", "rmul", "ror", "rpow", "rrshift",
    "rshift", "rsub", "rtruediv", "rxor", "str", "truediv", "abs", "xor",
):  # fmt: skip
    setattr(Count, f"__{_name}__", _looking(f"__{_name}__"))
