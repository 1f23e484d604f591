# SPDX-License-Identifier: GPL-2.0-or-later
"""An execution in the Informal Trace Format, for the viewers that TLA+ tools have.

The format: Apalache's ADR-015. Every number is written {"#bigint": "1"}, sets and maps likewise by
their tags; records are plain objects, sequences plain arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mthp.check.records import CpuStand, Entry, FolioStand, TableStand, Trace, WorldState

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
    "broken": "Seq({law: Int, sentence: Str, seen: Str})",
}
"""The variables of every state, and their types in Apalache's notation."""

Value = Any
"""What JSON holds."""


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
    return {
        "task": state.task,
        "cpu": _int(state.cpu),
        "function": state.function,
        "access": state.access,
        "word": state.word,
        "pmds": _map((name, _entry(entry)) for name, entry in state.pmds),
        "tables": _map((_int(table.number), _table(table)) for table in state.tables),
        "folios": _map((_int(folio.frame), _folio(folio)) for folio in state.folios),
        "held": _map((task, list(locks)) for task, locks in state.held),
        "vma_locks": _map((name, _int(value)) for name, value in state.vma_locks),
        "cpus": _map((_int(cpu.number), _cpu(cpu)) for cpu in state.cpus),
        "broken": [
            {"law": _int(each.law), "sentence": each.sentence, "seen": each.text}
            for each in state.broken
        ],
    }


def _entry(entry: Entry) -> Value:
    return {"kind": entry.kind, "value": _int(entry.value), "flags": _set(entry.flags)}


def _table(table: TableStand) -> Value:
    return {"state": table.state, "ptes": [_entry(entry) for entry in table.entries]}


def _folio(folio: FolioStand) -> Value:
    return {
        "order": _int(folio.order),
        "refcount": _int(folio.refcount),
        "mapcount": _int(folio.mapcount),
        "flags": _set(folio.flags),
        "pages": [
            {
                "frame": _int(page.frame),
                "mapcount": _int(page.mapcount),
                "contents": _int(page.contents),
            }
            for page in folio.pages
        ],
    }


def _cpu(cpu: CpuStand) -> Value:
    return {
        "tlb": _set(
            {
                "mm": _int(each.mm),
                "page": _int(each.page),
                "order": _int(each.order),
                "entry": _entry(each.entry),
            }
            for each in cpu.tlb
        ),
        "links": _set(
            {"mm": _int(mm), "pmd": _int(pmd), "table": _int(table)} for mm, pmd, table in cpu.links
        ),
        "late": [
            {"frame": _int(frame), "contents": _int(contents)} for frame, contents in cpu.late
        ],
    }


def _int(number: int) -> Value:
    return {"#bigint": str(number)}


def _set(members: Iterable[Value]) -> Value:
    return {"#set": list(members)}


def _map(pairs: Iterable[tuple[Value, Value]]) -> Value:
    return {"#map": [list(pair) for pair in pairs]}
