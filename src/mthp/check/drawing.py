# SPDX-License-Identifier: GPL-2.0-or-later
"""Write down an execution as kernel lists draw races: which function each task is in, and under
which locks.

The engine is not touched: at each step the interpreter's stack tells which kernel function runs.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from mthp.check.check_records import Call
from mthp.machine.hold import Hold, Rank
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.mm.mm_types import PageTable, PmdPage
from mthp.races.stage import Stage

_ROOMS = (
    "mthp.khugepaged.",
    "mthp.mm.",
    "mthp.races.secondary_mmu",
    "mthp.races.lockless_walker",
    "mthp.protocol",
)
_INNER = frozenset(
    """
    read write add swap set_bits clear_bits get test set clear replace freeze add_unless_zero
    __enter__ __exit__ release _take unlock is_wanted before after unmap lock_and_isolate take_page
    take_none trace unlocked_after _vma_end_write_all fault store load _translate walk folio_get
    folio_put folio_ref_count folio_mapcount folio_order folio_ref_add folio_try_get mm_flags_test
    folio_maybe_mapped_shared folio_expected_ref_count free_folio isolate_ptes _move
    folio_unqueue_deferred_split lookup pmd_unchanged pte_unchanged _cache _replace collapser
    collapse_test_exit collapse_test_exit_or_disable vma_thp_disabled allowable_orders
    thp_vma_allowable_orders charge pte_offset_map _on_step step _acted mark unmark try_enter leave
    enter wait flush_tlb_range pmdp_get_lockless check_pmd_state find_pmd_or_thp_or_none _count_mm
    folio_test_lazyfree folio_pte_referenced folio_test_large <genexpr> <listcomp> <lambda>
    """.split()  # noqa: SIM905
)
"""What kernel functions are made of; a step within is named by who called it."""
_LOCKS = {
    Rank.MMAP: "mmap_lock",
    Rank.VMA: "VMA lock",
    Rank.MM_LIST: "mm_list",
    Rank.ANON_VMA: "anon_vma",
    Rank.PMD: "pmd lock",
    Rank.PTE: "PTE lock",
}
_STORES = {"store": "store to user memory", "load": "load from user memory"}


class Drawing:
    """Listens to a stage. calls: one for each stretch of steps of one task in one function."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.calls: list[Call] = []
        self._numbers = {task.name: number for number, (task, _) in enumerate(stage.tasks)}
        self._before = stage.before
        stage.before = self.before

    def before(self, access: Access, word: Any, index: int) -> None:
        """Draw the step, then let the laws look at it."""
        task = self.stage.machine.current
        if task.background:
            if access is Access.WRITE:
                self._draw(Call(self._numbers[task.name], f"seen: the store to page {index}", ()))
            self._before(access, word, index)
            return
        name = function_of(sys._getframe(1), access, word) + _what(access, word, index)
        locks = tuple(_name(hold) for hold in task.held)
        self._draw(Call(self._numbers[task.name], name, locks))
        self._before(access, word, index)

    def _draw(self, call: Call) -> None:
        if not self.calls or self.calls[-1] != call:
            self.calls.append(call)


def function_of(frame: FrameType | None, access: Access, word: Any) -> str:
    """The kernel function a step belongs to; a lock's own name where it is taken or given back."""
    rank = getattr(word, "rank", None)
    if rank is not None:
        done = {Access.RELEASE: "unlock", Access.TRY: "trylock"}.get(access, "lock")
        return f"{_LOCKS[rank]}: {done}"
    return kernel_function(frame) or f"{access.value} {word.name}"


def kernel_function(frame: FrameType | None) -> str:
    """The innermost of the kernel's functions on the stack, "" where there is none."""
    while frame is not None:
        name = frame.f_code.co_name
        module = frame.f_globals.get("__name__", "")
        if name in _STORES and module == "mthp.mm.mmu":
            return _STORES[name]
        if module.startswith(_ROOMS) and name not in _INNER:
            return f"{name}()"
        frame = frame.f_back
    return ""


_VERBS = {Access.READ: "reads", Access.WRITE: "writes", Access.RMW: "changes"}


def _what(access: Access, word: Any, index: int) -> str:
    """What is done to the words that races are about."""
    if access is Access.IPI:
        return f": IPI to {word.name.partition('.')[0]}"
    if access not in _VERBS or not isinstance(word, Words):
        return ""
    if isinstance(word.owner, PmdPage):
        return f": {_VERBS[access]} the PMD"
    if isinstance(word.owner, PageTable):
        return f": {_VERBS[access]} PTE {index}"
    return f": {_VERBS[access]} page {index}" if word.name == "content" else ""


def _name(hold: Hold) -> str:
    name = _LOCKS[hold.lock.rank]
    return name if hold.lock.rank >= Rank.PMD else f"{name} ({hold.mode.value})"
