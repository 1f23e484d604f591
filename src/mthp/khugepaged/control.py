# SPDX-License-Identifier: GPL-2.0-or-later
"""What a collapse carries with it on its way. Kernel: mm/khugepaged.c, struct collapse_control."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum


class Caller(Enum):
    """Who asked for the collapse."""

    KHUGEPAGED = "khugepaged"
    MADVISE = "MADV_COLLAPSE"


@dataclass(slots=True)
class CollapseControl:
    """What a collapse carries. node_load: node -> pages seen there. progress: against
    pages_to_scan.

    alloc_nmask: nodes the allocation may fall back to. present_ptes: bit i is set if PTE i of the
    table maps a page (not none, not zero page). is_khugepaged: what most rules ask of the caller.
    """

    caller: Caller
    progress: int = 0
    node_load: Counter[int] = field(default_factory=Counter)
    alloc_nmask: frozenset[int] = frozenset()
    present_ptes: int = 0
    is_khugepaged: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_khugepaged = self.caller is Caller.KHUGEPAGED

    def init_scan(self) -> None:
        """Forget the last table. Kernel: mm/khugepaged.c, collapse_control_init_scan()."""
        self.node_load.clear()
        self.alloc_nmask = frozenset()
        self.present_ptes = 0
