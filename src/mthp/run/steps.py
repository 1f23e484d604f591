# SPDX-License-Identifier: GPL-2.0-or-later
"""One collapse call by call, with the locks held: what a reviewer draws on paper.

The engine is not touched: the interpreter's call hook records the kernel-named functions while the
one attempt runs, and every access is made a step so that the clear path runs, not its fast twins.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, NamedTuple

from mthp.events import Attempt, CollapseHugePage, Event
from mthp.machine.locks import Hold, Lock
from mthp.mm.kernel import Kernel

_ROOMS = ("mthp.khugepaged.", "mthp.mm.", "mthp.machine.cpu", "mthp.machine.locks")
_ALWAYS_LEFT_OUT = frozenset(
    {
        "step", "read", "write", "get", "test", "set", "clear", "folio_order", "page_folio",
        "folio_nr_pages", "folio_test_large", "folio_nid", "held_mode", "assert_held",
        "assert_not_held", "is_khugepaged", "warn_once", "guard", "trace", "count_vm_event",
        "count_mthp_stat", "try_read", "active", "lock", "tables", "block", "order_bytes",
        "pte_none_or_zero", "pte_none", "pte_present", "pte_uffd", "pte_pfn", "pte_dirty",
        "pte_young", "pte_special", "mm_flags_test", "folio_mapcount", "folio_ref_count",
        "pmd_none", "pmd_is_table", "pmd_pgtable", "pmdp_get_lockless", "mk_pte", "give",
        "merge", "take", "new_frames", "prep_folio", "alloc", "free", "linear_page_index",
    }
)  # fmt: skip


class Step(NamedTuple):
    """One line: a call at a depth, what it does, and the locks held when it began."""

    depth: int
    function: str
    what: str
    locks: tuple[str, ...]


@dataclass
class StepRecorder:
    """Records the attempts whose window holds address; `steps` keeps the last one's.

    Hand its `on_event` the kernel's events.
    """

    kernel: Kernel
    address: int
    steps: list[Step] = field(default_factory=list)
    attempts: int = 0
    _depth: int = 0
    _counts: dict[int, int] = field(default_factory=dict)
    _waiting: bool = False

    def on_event(self, event: Event) -> None:
        """Start at the attempt's entry, stop at its end."""
        if isinstance(event, Attempt):
            size = self.kernel.geometry.order_bytes(event.order)
            if event.address <= self.address < event.address + size:
                self._begin()
        elif isinstance(event, CollapseHugePage) and self._waiting:
            sys.setprofile(None)
            self.kernel.machine.on_step = None
            self._waiting = False

    def _begin(self) -> None:
        self.attempts += 1
        self.steps.clear()
        self._counts.clear()
        self._depth = 0
        self._waiting = True
        self.kernel.machine.on_step = lambda *_: None
        sys.setprofile(self._hook)

    def _hook(self, frame: FrameType, kind: str, _: Any) -> None:
        if kind not in ("call", "return"):
            return
        code = frame.f_code
        if not _shown(frame.f_globals.get("__name__", ""), code):
            return
        if kind == "return":
            self._depth = max(0, self._depth - 1)
            return
        name, what = _describe(frame, code)
        locks = tuple(repr(hold) for hold in self.kernel.machine.current.held)
        step = Step(self._depth, name, what, locks)
        self._depth += 1
        if self.steps and self.steps[-1] == step:
            at = len(self.steps) - 1
            self._counts[at] = self._counts.get(at, 1) + 1
        else:
            self.steps.append(step)

    def folded(self) -> list[Step]:
        """The steps, calls that repeat in a row folded into one line with their number."""
        lines = [
            step._replace(function=f"{step.function} x{self._counts[at]}")
            if at in self._counts
            else step
            for at, step in enumerate(self.steps)
        ]
        return _fold_groups(lines)


def _fold_groups(lines: list[Step]) -> list[Step]:
    """Groups of up to 6 lines that repeat in a row (one per PTE) become one group with a count."""
    result: list[Step] = []
    at = 0
    while at < len(lines):
        for length in range(1, 7):
            group = [line[:2] for line in lines[at : at + length]]
            times = 1
            while (
                len(group) == length
                and [x[:2] for x in lines[at + times * length : at + (times + 1) * length]] == group
            ):
                times += 1
            if times > 1:
                head = lines[at]
                result.append(head._replace(function=f"{head.function}  (and so on, x{times})"))
                result += lines[at + 1 : at + length]
                at += times * length
                break
        else:
            result.append(lines[at])
            at += 1
    return result


def _shown(module: str, code: CodeType) -> bool:
    """Functions that a reviewer would name; words, predicates and plumbing are left out."""
    name = code.co_name
    if module == "mthp.machine.locks":
        return name in ("_take", "unlock")
    if not module.startswith(_ROOMS) or name in _ALWAYS_LEFT_OUT:
        return False
    return not (name.startswith("<") or (name.startswith("_") and not name.startswith("__co")
                                         and not name.startswith("__folio")))  # fmt: skip


def _describe(frame: FrameType, code: CodeType) -> tuple[str, str]:
    """A name and the first sentence of the docstring; locks say which."""
    lock = frame.f_locals.get("self")
    if isinstance(lock, Lock):
        if code.co_name == "unlock":
            hold = frame.f_locals.get("hold")
            mode = hold.mode.value if isinstance(hold, Hold) else ""
            return "unlock", f"{lock} ({mode})"
        return "lock", f"{lock} ({frame.f_locals['mode'].value})"
    function = frame.f_globals.get(code.co_name)
    doc = getattr(function, "__doc__", None) or ""
    if not doc and "self" in frame.f_locals:
        doc = getattr(type(frame.f_locals["self"]), code.co_name, None).__doc__ or ""
    first = doc.strip().split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")
    return code.co_name, " ".join(first.split())
