# SPDX-License-Identifier: GPL-2.0-or-later
"""Which world is explored, as a value: size, profile, architecture hook and rivals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from itertools import combinations
from types import MappingProxyType

from mthp.machine.store_buffer import Late, Model
from mthp.mm.mm_types import Vma
from mthp.mm.pgtable import mm_find_pmd, pmdp_get_lockless
from mthp.mm.pgtable_types import pmd_is_table
from mthp.mm.reports import WalkedNothing
from mthp.mm.vm_flags import VM_DEFAULT
from mthp.races.cast.all import RIVALS, get_along
from mthp.races.cast.collapsers import COLLAPSER, Start
from mthp.races.cast.rival import ELSEWHERE, Place, Reach, StagePart, nothing
from mthp.races.stage import Layout, Size, Stage, has_layout
from mthp.words.profiles import PROFILES


class Hook(Enum):
    """What the architecture's update_mmu_cache_range() does."""

    NOTHING = "nothing"
    WALKS = "walks"


_HOOKS = {"hook": Hook.WALKS}
_STARTS = {start.name.lower(): start for start in Start if start is not Start.COLLAPSE}
_MODELS = {model.value: model for model in Model if model is not Model.SC}
_LATE = {late.value: late for late in Late}
_LAYOUTS = {
    layout.name.lower().replace("_", "-"): layout for layout in Layout if layout is not Layout.PLAIN
}
"""The parts of a world's name, by what they say."""
PARTS: Mapping[str, str] = MappingProxyType(
    {
        **{size.name.lower(): size.value for size in Size},
        **{f"+{name}": layout.value for name, layout in _LAYOUTS.items()},
        **{f"+{name}": "the architecture's hook walks the live page table" for name in _HOOKS},
        **{f"+{name}": f"the collapser begins at {start.value}" for name, start in _STARTS.items()},
        **{f"+{name}": "stores are seen late, as in this memory order" for name in _MODELS},
    }
)
"""What each of them means."""


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
    layout: Layout = Layout.PLAIN
    late: frozenset[Late] = frozenset()

    @property
    def name(self) -> str:
        """pmd or window; +second and the like, how it is laid out; +hook where the architecture's hook
        walks; +scan, +daemon, +madvise where the collapser begins there; +tso, +lkmm, +weak, and then
        what is late besides contents."""
        parts = [self.size.name.lower()]
        parts += [name for name, layout in _LAYOUTS.items() if layout is self.layout]
        parts += [name for name, hook in _HOOKS.items() if hook is self.hook]
        parts += [name for name, start in _STARTS.items() if start is self.start]
        parts += [name for name, memory in _MODELS.items() if memory is self.memory]
        parts += [name for name, late in _LATE.items() if late in self.late]
        return "+".join(parts)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in their order; late stores come out by tasks of their own."""
        cpus = 1 + len(self.rivals) if Late.EACH in self.late else 1
        late = 0 if self.memory is Model.SC else 2 * cpus
        return (COLLAPSER, *self.rivals, *(f"store-buffer-{n}" for n in range(late)))

    @staticmethod
    def parse(name: str, profile: str, rivals: tuple[str, ...]) -> RaceWorld:
        """The world of a name; ValueError where there is none, or no such rival."""
        first, *parts = name.split("+")
        size = next((size for size in Size if size.name.lower() == first), None)
        known = [*_LAYOUTS, *_HOOKS, *_STARTS, *_MODELS, *_LATE]
        if size is None or not {*known}.issuperset(parts):
            raise ValueError(f"no world {name!r}: pmd or window, then +{' or +'.join(known)}")
        for rival in rivals:
            if rival not in RIVALS:
                raise ValueError(f"no rival {rival!r}; there are {', '.join(RIVALS)}")
        for pair in combinations(rivals, 2):
            if pair[0] == pair[1] or not get_along(*pair):
                raise ValueError(f"no rivals in one world: {' and '.join(pair)}")
        if profile not in PROFILES:
            raise ValueError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
        world = RaceWorld(size, profile, rivals)
        for part in parts:
            world = replace(
                world,
                layout=_LAYOUTS.get(part, world.layout),
                hook=_HOOKS.get(part, world.hook),
                start=_STARTS.get(part, world.start),
                memory=_MODELS.get(part, world.memory),
                late=world.late | {late for late in Late if late.value == part},
            )
        if len(world.name.split("+")) <= len(parts) or not world.is_possible:
            raise ValueError(f"no world {name!r}: its parts do not go together")
        return world

    @property
    def is_possible(self) -> bool:
        """Whether there is such a world: MADV_COLLAPSE is of whole tables, some layouts are of one size,
        and rivals count on more than the weakest model.
        """
        if self.late and self.memory is Model.SC:
            return False
        if self.memory is Model.WEAK and Late.EACH in self.late:
            return False
        if self.start is Start.MADVISE:
            return self.size is Size.PMD and self.layout is Layout.PLAIN
        return has_layout(self.size, self.layout)

    @property
    def never_collapses(self) -> str:
        """Why no collapse succeeds, where none does; empty where one should."""
        rivals = [RIVALS[name] for name in self.rivals]
        reasons = [self.layout.never_collapses, *(each.never_collapses for each in rivals)]
        if self.size is Size.WINDOW:
            reasons += [each.never_below_pmd for each in rivals]
        return next(filter(None, reasons), "")

    @property
    def is_for_all(self) -> bool:
        """Whether each rival finds what it works on: a place, and the pages that it prepares."""
        return all(map(self._is_for, self.rivals))

    def _is_for(self, name: str) -> bool:
        rival = RIVALS[name]
        if rival.needs is Place.BESIDE and self.size is not Size.WINDOW:
            return False
        if rival.needs is Place.TABLES and self.start is not Start.MADVISE:
            return False
        if self.layout is Layout.HUGE:
            return rival.reach is not Reach.PAGES and rival.takes <= ELSEWHERE
        whole = StagePart.WINDOW if self.size is Size.PMD else StagePart.TABLE
        return not (self.layout is Layout.TWO_VMAS and whole in rival.takes)

    def __call__(self) -> Stage:
        """A fresh stage."""
        cast = tuple(RIVALS[name] for name in self.rivals)
        vm_flags = VM_DEFAULT
        for rival in cast:
            vm_flags |= rival.vm_flags
        tables = 3 if self.start is Start.MADVISE else 1
        cpus = 1 + len(cast)
        stage = Stage(self.size, PROFILES[self.profile], cpus, vm_flags, self.layout, tables)
        if self.start is not Start.DAEMON:
            stage.khugepaged.mm_slot = stage.mm  # khugepaged works on the mm under its cursor
        if self.hook is Hook.WALKS:
            stage.kernel.update_mmu_cache = walking_hook
        stage.add_task(COLLAPSER, partial(self.start.run, stage))
        for rival in cast:
            rival.prepare(stage)
            stage.add_task(rival.name, partial(rival.run, stage))
        stage.alone = all(rival.run is nothing for rival in cast)
        stage.store_late(self.memory, self.late)
        return stage.ready((COLLAPSER, "madv-collapse", "madv-collapse-pmd"))
