# SPDX-License-Identifier: GPL-2.0-or-later
"""An execution in the Informal Trace Format, for the viewers that TLA+ tools have.

The format: Apalache's ADR-015. Every number is written {"#bigint": "1"}, sets and maps likewise by
their tags; records are plain objects, sequences plain arrays.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, Final

from mthp.check.records import Trace, WorldState

FORMAT: Final = "https://apalache-mc.org/docs/adr/015adr-trace.html"

_ENTRY: Final = "{kind: Str, value: Int, flags: Set(Str)}"
VARIABLES: Final = {
    "task": "Str",
    "cpu": "Int",
    "function": "Str",
    "access": "Str",
    "word": "Str",
    "pmds": f"Str -> {_ENTRY}",
    "tables": f"Int -> {{state: Str, ptes: Seq({_ENTRY})}}",
    "folios": "Int -> {order: Int, refcount: Int, mapcount: Int, flags: Set(Str), "
    "pages: Seq({frame: Int, mapcount: Int, contents: Int})}",
    "held": "Str -> Seq(Str)",
    "vma_locks": "Str -> Int",
    "cpus": f"Int -> {{tlb: Set({{mm: Int, page: Int, order: Int, entry: {_ENTRY}}}), "
    "links: Set({mm: Int, pmd: Int, table: Int}), late: Seq({frame: Int, contents: Int})}",
    "broken": "Seq({law: Int, sentence: Str, object: Str, seen: Str})",
}
"""The variables of every state, and their types in Apalache's notation."""

Value = Any
"""What JSON holds."""
_SETS: Final = frozenset({"flags", "tlb", "links"})
_NAMES: Final = {"entries": "ptes", "text": "seen"}
"""Fields of the records that have another name in the variables."""


def itf_document(trace: Trace) -> dict[str, Any]:
    """The whole trace. The first state is the world before the first step; each further one says who
    took which step, and what the world is after it; the last adds what the laws say at rest.
    """
    return {
        "#meta": {
            "format": "ITF",
            "format-description": FORMAT,
            "source": f"mthp replay {trace.replay}",
            "description": f"{', '.join(trace.tasks)}: one execution, a state after each step",
            "varTypes": VARIABLES,
        },
        "vars": list(VARIABLES),
        "states": [
            {"#meta": {"index": index}, **_state(state)} for index, state in enumerate(trace.states)
        ],
    }


def _state(state: WorldState) -> dict[str, Value]:
    values = {name: _value(getattr(state, name)) for name in VARIABLES}
    for name in ("pmds", "held", "vma_locks"):
        values[name] = {"#map": values[name]}
    for name, key in (("tables", "number"), ("folios", "frame"), ("cpus", "number")):
        values[name] = {"#map": [[record.pop(key), record] for record in values[name]]}
    return values


def _value(value: object, name: str = "") -> Value:
    """A value as ITF writes it; name: of the field that holds it."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return {"#bigint": str(value)}
    if isinstance(value, tuple):
        members = [_value(each) for each in value]
        return {"#set": members} if name in _SETS else members
    assert is_dataclass(value)
    return {
        _NAMES.get(field.name, field.name): _value(getattr(value, field.name), field.name)
        for field in fields(value)
    }
