# SPDX-License-Identifier: GPL-2.0-or-later
"""Which world is explored, as a value: size, profile, architecture hook and rivals."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mthp.mm.pagetable import mm_find_pmd, pmdp_get_lockless
from mthp.mm.pte import pmd_is_table
from mthp.mm.vma import Vma
from mthp.profiles import PROFILES
from mthp.races.cast import COLLAPSER, RIVALS, Act, collapser, vm_flags
from mthp.races.stage import Size, Stage
from mthp.results import KernelBug


class Hook(Enum):
    """What the architecture's update_mmu_cache_range() does."""

    NOTHING = "nothing"
    WALKS = "walks"


def walking_hook(vma: Vma, address: int, nr: int) -> None:
    """Look the new PTEs up in the live page table. Kernel: arch/mips/mm/tlb-r4k.c, __update_tlb()."""
    pmd = mm_find_pmd(vma.vm_mm, address)
    if pmd is None or not pmd_is_table(pmdp_get_lockless(pmd)):
        raise KernelBug("update_mmu_cache_range() walks a PMD that points to no table")


@dataclass(frozen=True)
class World:
    """A recipe. rivals: names of the cast; the collapser comes first and is not named."""

    size: Size
    profile: str
    rivals: tuple[str, ...]
    hook: Hook = Hook.NOTHING
    act: Act = collapser

    @property
    def name(self) -> str:
        """pmd or window, and +hook where the architecture's hook walks."""
        return self.size.name.lower() + ("+hook" if self.hook is Hook.WALKS else "")

    def __call__(self) -> Stage:
        """A fresh stage."""
        cast = tuple(RIVALS[name] for name in self.rivals)
        stage = Stage(self.size, PROFILES[self.profile], 1 + len(cast), vm_flags(cast))
        stage.map_page(0)
        if self.size is Size.WINDOW:
            stage.map_page(2)
        if self.hook is Hook.WALKS:
            stage.kernel.update_mmu_cache = walking_hook
        stage.add_task(COLLAPSER, lambda: self.act(stage))
        for rival in cast:
            rival.prepare(stage)
            stage.add_task(rival.name, lambda act=rival.act: act(stage))  # type: ignore[misc]
        return stage.ready((COLLAPSER, "madv-collapse"))
