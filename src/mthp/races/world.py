# SPDX-License-Identifier: GPL-2.0-or-later
"""Which world is explored, as a value: size, profile, architecture hook and rivals."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import combinations

from mthp.machine.store_buffer import Model
from mthp.mm.mm_types import Vma
from mthp.mm.pgtable import mm_find_pmd, pmdp_get_lockless
from mthp.mm.pgtable_types import pmd_is_table
from mthp.mm.reports import WalkedNothing
from mthp.mm.vm_flags import VM_DEFAULT
from mthp.races.cast.all import RIVALS, get_along
from mthp.races.cast.collapsers import COLLAPSER, Start
from mthp.races.cast.rival import nothing
from mthp.races.stage import Size, Stage
from mthp.words.profiles import PROFILES

_PARTS = "+hook, +scan or +daemon, +tso or +lkmm or +weak"


class Hook(Enum):
    """What the architecture's update_mmu_cache_range() does."""

    NOTHING = "nothing"
    WALKS = "walks"


def walking_hook(vma: Vma, address: int, nr: int) -> None:
    """Look the new PTEs up in the live page table; whatever is found there decides nothing else.

    Kernel: arch/mips/mm/tlb-r4k.c, __update_tlb().
    """
    mm = vma.vm_mm
    pmd = mm_find_pmd(mm, address)
    if pmd is None or not pmd_is_table(pmdp_get_lockless(pmd)):
        mm.kernel.report(WalkedNothing(mm, address, mm.machine.current.name))


@dataclass(frozen=True)
class RaceWorld:
    """A recipe. rivals: names of the cast; the collapser comes first and is not named."""

    size: Size
    profile: str
    rivals: tuple[str, ...]
    hook: Hook = Hook.NOTHING
    start: Start = Start.COLLAPSE
    memory: Model = Model.SC

    @property
    def name(self) -> str:
        """pmd or window; +hook where the architecture's hook walks; +scan, +daemon where khugepaged
        begins there."""
        hook = "+hook" if self.hook is Hook.WALKS else ""
        start = f"+{self.start.name.lower()}" if self.start is not Start.COLLAPSE else ""
        memory = f"+{self.memory.value}" if self.memory is not Model.SC else ""
        return self.size.name.lower() + hook + start + memory

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in their order; late stores come out by tasks of their own."""
        late = 0 if self.memory is Model.SC else 2
        return (COLLAPSER, *self.rivals, *(f"store-buffer-{n}" for n in range(late)))

    @staticmethod
    def parse(name: str, profile: str, rivals: tuple[str, ...]) -> RaceWorld:
        """The world of a name; ValueError where there is none, or no such rival."""
        parts = name.split("+")
        sizes = {size.name.lower(): size for size in Size}
        starts = {start.name.lower(): start for start in Start}
        models = {model.value: model for model in Model}
        start, memory = Start.COLLAPSE, Model.SC
        if parts[0] not in sizes or not {"hook", *starts, *models}.issuperset(parts[1:]):
            raise ValueError(f"no world {name!r}: pmd or window, then {_PARTS}")
        for part in parts[1:]:
            start = starts.get(part, start)
            memory = models.get(part, memory)
        for rival in rivals:
            if rival not in RIVALS:
                raise ValueError(f"no rival {rival!r}; there are {', '.join(RIVALS)}")
        for pair in combinations(rivals, 2):
            if pair[0] == pair[1] or not get_along(*pair):
                raise ValueError(f"no rivals in one world: {' and '.join(pair)}")
        if profile not in PROFILES:
            raise ValueError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
        hook = Hook.WALKS if "hook" in parts else Hook.NOTHING
        return RaceWorld(sizes[parts[0]], profile, rivals, hook, start, memory)

    def __call__(self) -> Stage:
        """A fresh stage."""
        cast = tuple(RIVALS[name] for name in self.rivals)
        vm_flags = VM_DEFAULT
        for rival in cast:
            vm_flags |= rival.vm_flags
        stage = Stage(self.size, PROFILES[self.profile], 1 + len(cast), vm_flags)
        if self.start is not Start.DAEMON:
            stage.khugepaged.mm_slot = stage.mm  # khugepaged works on the mm under its cursor
        stage.map_page(0)
        if self.size is Size.WINDOW:
            stage.map_page(2)
        if self.hook is Hook.WALKS:
            stage.kernel.update_mmu_cache = walking_hook
        stage.add_task(COLLAPSER, partial(self.start.run, stage))
        for rival in cast:
            rival.prepare(stage)
            stage.add_task(rival.name, partial(rival.run, stage))
        stage.alone = all(rival.run is nothing for rival in cast)
        stage.store_late(self.memory)
        return stage.ready((COLLAPSER, "madv-collapse", "madv-collapse-pmd"))
