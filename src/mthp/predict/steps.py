# SPDX-License-Identifier: GPL-2.0-or-later
"""One collapse call by call, with the locks held: what a reviewer draws on paper.

The engine is not touched: the interpreter's call hook records the kernel-named functions while the
one attempt runs, and every access is made a step so that the clear path runs, not its fast twins.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from mthp.machine.hold import Hold, Mode, Rank
from mthp.mm.mm_types import Kernel
from mthp.predict.records import DrawnCall
from mthp.words.events import Attempt, CollapseHugePage, Event
from mthp.words.results import ScanResult

_ROOMS = ("mthp.khugepaged.", "mthp.mm.", "mthp.machine.cpu", "mthp.machine.locks")
_LOCKS = "mthp.machine.locks"

_CALLS: dict[str, tuple[str, str]] = {
    "alloc_charge_folio": ("", "allocate and charge the new folio: before any lock, may reclaim"),
    "folio_alloc": ("__folio_alloc", "a folio of the order, from the target node"),
    "mem_cgroup_charge": ("", "charge it to the process's cgroup"),
    "check_memcg_alloc_deferred": ("", "the cgroup's deferred-split list must be there"),
    "hugepage_vma_revalidate": ("", "the mapping is still there, spans the PMD and may collapse"),
    "find_pmd_or_thp_or_none": ("", "the PMD still points to a page table"),
    "__collapse_huge_page_swapin": ("", "bring in what the window misses"),
    "do_swap_page": ("", "fault one page in"),
    "vma_start_write": ("", "page faults under the VMA's own lock wait from here on"),
    "check_pmd_still_valid": ("", "the same PMD still points to a page table"),
    "pmdp_collapse_flush": ("", "clear the PMD and flush the TLB of its whole range"),
    "tlb_remove_table_sync_one": ("", "wait by IPI for lockless page-table walkers"),
    "pte_offset_map": ("", "map the detached page table"),
    "__collapse_huge_page_isolate": ("", "take every page of the window, or refuse"),
    "folio_trylock": ("", "lock the page's folio"),
    "folio_isolate_lru": ("", "take it off the LRU"),
    "release_pte_pages": ("", "give back what was taken"),
    "restore_pmd": ("", "put the old page table back"),
    "pmd_populate": ("", "the PMD points to the old page table again"),
    "__collapse_huge_page_copy": ("", "fill the new folio, then let the sources go"),
    "copy_mc_user_highpage": ("", "copy a page"),
    "__collapse_huge_page_copy_succeeded": ("", "clear the window's PTEs and put the sources"),
    "__collapse_huge_page_copy_failed": ("", "poison: put the PMD back, then the pages"),
    "release_pte_folio": ("", "unlock a source, back to the LRU through the per-CPU batch"),
    "folio_remove_rmap_ptes": ("", "its PTEs are clear: it is mapped once less"),
    "__folio_mark_uptodate": ("", "write barrier: the contents before the mapping"),
    "guard_pmd_none": ("pmd_none", "the PMD this collapse cleared must still be none"),
    "pgtable_trans_huge_deposit": ("", "keep the old page table for a later split"),
    "map_anon_folio_pmd_nopf": ("", "rmap and LRU of the new folio, then map it by the PMD"),
    "map_anon_folio_pte_nopf": ("", "rmap and LRU of the new folio, then set its PTEs"),
    "unmap": ("pte_unmap", "let go of the mapped page table"),
}
"""The calls a reviewer draws: our function -> (the kernel's name where it differs, what it does).

Predicates, counters and what the drawn calls are made of are left out.
"""

_LEFT_OUT_INSIDE = frozenset({"check_pmd_still_valid"})
"""Of these only the call itself is drawn."""


@dataclass
class StepRecorder:
    """Records the attempts whose window holds address; `steps` keeps those of the last that
    succeeded, of the last at all if none did.

    Hand its `on_event` the kernel's events.
    """

    kernel: Kernel
    address: int
    steps: list[DrawnCall] = field(default_factory=list)
    attempts: int = 0
    _depth: int = 0
    _hidden: int = 0
    _waiting: bool = False
    _succeeded: bool = False
    _now: list[DrawnCall] = field(default_factory=list)

    def on_event(self, event: Event) -> None:
        """Start at the attempt's entry, stop at its end."""
        if isinstance(event, Attempt):
            size = self.kernel.geometry.order_bytes(event.order)
            if event.address <= self.address < event.address + size:
                self._begin(event)
        elif isinstance(event, CollapseHugePage) and self._waiting:
            sys.setprofile(None)
            self.kernel.machine.on_step = None
            self._waiting = False
            self._depth = 0
            self._add("collapse_huge_page", f"returns: {event.status.string}")
            ok = event.status is ScanResult.SUCCEED
            if ok or not self._succeeded:
                self.steps = self._now
                self._succeeded = ok

    def _begin(self, event: Attempt) -> None:
        self.attempts += 1
        self._now = []
        self._depth = self._hidden = 0
        self._waiting = True
        size = self.kernel.geometry.size_name(event.order)
        self._add("collapse_huge_page", f"{event.address:#x}, {size} (order {event.order})")
        self._depth = 1
        self.kernel.machine.on_step = lambda *_: None
        sys.setprofile(self._hook)

    def _hook(self, frame: FrameType, kind: str, _: Any) -> None:
        if kind not in ("call", "return"):
            return
        code = frame.f_code
        module = frame.f_globals.get("__name__", "")
        if module == _LOCKS and code.co_name in ("_take", "unlock"):
            # Drawn when it is done: the locks held then are what the next call runs under.
            if kind == "return":
                self._add(*_describe_lock(frame))
            return
        name = code.co_name
        if name == "__enter__" or name == "__exit__":
            if module == "mthp.mm.mmu_notifier" and kind == "call":
                end = "start" if name == "__enter__" else "end"
                what = "secondary MMUs drop the window" if end == "start" else "they may map again"
                self._add(f"mmu_notifier_invalidate_range_{end}", what)
            return
        if name not in _CALLS or not module.startswith(_ROOMS):
            return
        if kind == "return":
            self._depth = max(1, self._depth - 1)
            self._hidden = max(0, self._hidden - 1) if self._hidden else 0
            return
        kernel_name, what = _CALLS[name]
        if not self._hidden:
            self._add(kernel_name or name, what)
        self._depth += 1
        if self._hidden or name in _LEFT_OUT_INSIDE:
            self._hidden += 1

    def _add(self, name: str, what: str) -> None:
        if not self._hidden:
            locks = tuple(map(_hold_name, self.kernel.machine.current.held))
            self._now.append(DrawnCall(self._depth, name, what, locks))

    def folded(self) -> list[DrawnCall]:
        """The steps, where what repeats for one PTE after the other is one group with a number."""
        return _fold(self.steps)


_LONGEST_GROUP = 8


def _fold(lines: list[DrawnCall]) -> list[DrawnCall]:
    """Groups of lines that repeat in a row (one per PTE) become one group with a count."""
    result: list[DrawnCall] = []
    at = 0
    while at < len(lines):
        for length in range(1, _LONGEST_GROUP + 1):
            group = lines[at : at + length]
            times = 1
            while len(group) == length and (
                lines[at + times * length : at + (times + 1) * length] == group
            ):
                times += 1
            if times > 1:
                head = lines[at]
                those = "" if length == 1 else f", with the next {length - 1}"
                result.append(head._replace(what=f"{head.what} (x{times}{those})"))
                result += group[1:]
                at += times * length
                break
        else:
            result.append(lines[at])
            at += 1
    return result


_LOCK_NAMES = {
    Rank.MMAP: "mmap_lock",
    Rank.VMA: "VMA lock",
    Rank.ANON_VMA: "anon_vma",
    Rank.PMD: "pmd_ptl",
    Rank.PTE: "pte_ptl",
}


def _hold_name(hold: Hold) -> str:
    """The short name of a lock, as on paper: of each kind one alone is held."""
    name = _LOCK_NAMES.get(hold.lock.rank, str(hold.lock))
    return name if hold.lock.rank >= Rank.PMD else f"{name} ({hold.mode.value})"


def _describe_lock(frame: FrameType) -> tuple[str, str]:
    """The kernel's name for taking or giving back a lock, and which lock it is."""
    lock = frame.f_locals["self"]
    taken = frame.f_code.co_name == "_take"
    hold = frame.f_locals.get("hold")
    mode = frame.f_locals["mode"] if taken else hold.mode if isinstance(hold, Hold) else Mode.WRITE
    done = "lock" if taken else "unlock"
    if lock.rank is Rank.MMAP:
        return f"mmap_{mode.value}_{done}", ""
    if lock.rank is Rank.ANON_VMA:
        return f"anon_vma_{done}_write", "rmap walks of the mapping's pages wait" if taken else ""
    return f"spin_{done}({_LOCK_NAMES.get(lock.rank, str(lock))})", ""
