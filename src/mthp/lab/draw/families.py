# SPDX-License-Identifier: GPL-2.0-or-later
"""Families of drawn programs: each puts its weight on one part of what khugepaged looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mthp.image.scenario_values import Action
from mthp.lab.draw.author import ProgramBuilder
from mthp.lab.draw.fill import (
    LOOKS,
    SMALL_ORDERS,
    Appearance,
    cool_all,
    cool_some,
    drop_some,
    fill,
    fill_one_order,
    free_some,
    huge_tables,
    plan_segments,
    put,
    share_some,
    swap_some,
    weather,
    weighted,
)
from mthp.lab.draw.knobs import MAX_LIMIT, ORDERS, PMD_ORDER
from mthp.lab.draw.layout import close, map_many, map_one, place
from mthp.lab.draw.special import (
    arm_some,
    collapse_some,
    edge_limits,
    guard_some,
    lock_some,
    merge_same,
    move_some,
    pin_some,
    poison_some,
    protect_some,
    scan_same,
    unmap_some,
    write_some,
)
from mthp.lab.draw.swapin import draw_swapin
from mthp.lab.program.processes import PMD_PAGES
from mthp.lab.program.program import Madv, Operation, Target, Verb
from mthp.lab.program.space import PageMark
from mthp.words.settings import Enabled


def plain(author: ProgramBuilder) -> None:
    """One mapping in any look, and the usual things that become of pages."""
    author.start()
    map_one(author)
    fill(author, "s")
    weather(author, "s")
    style = author.rng.random()
    if style < 0.08:
        cool_all(author, "s")
    elif style < 0.3:
        edge_limits(author, "s")
    close(author)


def many_vmas(author: ProgramBuilder) -> None:
    """Two to five mappings, at odd places, advised in different ways."""
    author.start()
    map_many(author, "s", author.rng.randint(2, 5))
    if author.rng.random() < 0.2:
        share_some(author, "s")
    fill(author, "s")
    weather(author, "s", 0.3)
    if author.rng.random() < 0.2:
        unmap_some(author, "s")
    close(author)


def swap(author: ProgramBuilder) -> None:
    """Swapped pages around the limits, read back, and within windows of every size."""
    author.start()
    map_one(author)
    fill(author, "s", looks={Appearance.FULL: 4, Appearance.LARGE: 2, Appearance.MOSTLY: 2})
    swap_some(author, "s", 4, author.rng.choice([2, 8, 64, 512]))
    if author.rng.random() < 0.3:
        cool_some(author, "s")
    if author.rng.random() < 0.3:
        drop_some(author, "s", 2)
    style = author.rng.random()
    if style < 0.35:
        edge_limits(author, "s")
    elif style < 0.75:
        author.settings = author.settings.replace(max_ptes_swap=MAX_LIMIT)
    close(author)


def large(author: ProgramBuilder) -> None:
    """Large folios of every order, whole and in part, and whole tables."""
    rng = author.rng
    author.start()
    map_one(author)
    style = rng.random()
    if style < 0.4:
        huge_tables(author, "s")
        fill(author, "s", looks={Appearance.LARGE: 3, Appearance.MIXED: 2, Appearance.SPARSE: 1})
    elif style < 0.7:
        vma = author.vmas("s")[0]
        fill_one_order(author, "s", (vma.start, vma.pages), rng.choice(ORDERS))
    else:
        fill(author, "s", looks={Appearance.LARGE: 3, Appearance.MIXED: 1})
    if rng.random() < 0.15:
        collapse_some(author, "s")
    drop_some(author, "s", 4)
    if rng.random() < 0.3:
        unmap_some(author, "s")
    weather(author, "s", 0.2)
    close(author)


def shared(author: ProgramBuilder) -> None:
    """Pages shared with children, in part, and copied again by writes."""
    rng = author.rng
    author.start()
    map_one(author)
    if rng.random() < 0.5:
        share_some(author, "s", 4)
        fill(author, "s", looks={Appearance.FULL: 3, Appearance.MOSTLY: 2, Appearance.LARGE: 2})
    else:
        looks: dict[Appearance, float] = {
            Appearance.FULL: 2,
            Appearance.LARGE: 3,
            Appearance.MOSTLY: 1,
        }
        fill(author, "s", looks=looks, orders=SMALL_ORDERS)
        if rng.random() < 0.35:
            collapse_some(author, "s")
        author.do(Verb.FORK, 1, who="s")
        for run in author.pieces("s", (PageMark.WRITTEN,), rng.randint(1, 5), 512):
            author.do(Verb.WRITE, *run, who="s")
    weather(author, "s", 0.25)
    if rng.random() < 0.1:
        author.do(Verb.END_FORK, who="s")
    style = rng.random()
    if style < 0.7:
        limit = MAX_LIMIT if style < 0.45 else rng.randint(0, MAX_LIMIT)
        author.settings = author.settings.replace(max_ptes_shared=limit)
    close(author)


def madvise(author: ProgramBuilder) -> None:
    """MADV_COLLAPSE, by the process itself or from another one."""
    rng = author.rng
    author.start()
    map_many(author, "s", 2) if rng.random() < 0.4 else map_one(author)
    if rng.random() < 0.35:
        share_some(author, "s")
    if rng.random() < 0.3:
        huge_tables(author, "s")
    fill(author, "s")
    weather(author, "s", 0.4)
    special = author.rng.random()
    if special < 0.1:
        arm_some(author, "s")
    elif special < 0.2:
        pin_some(author, "s")
    elif special < 0.3:
        guard_some(author, "s")
    close(author)
    collapse(author)


def collapse(author: ProgramBuilder) -> None:
    """Make MADV_COLLAPSE the action, over one of the mappings; who asks is drawn too."""
    rng = author.rng
    names = list(author.world.processes)
    who = rng.choice(names)
    by = who
    if rng.random() < 0.3:
        others = [name for name in names if name != who]
        by = rng.choice(others) if others else "t"
        if not others:
            author.start(by)
    vmas = author.vmas(who)
    if not vmas:
        return
    vma = rng.choice(vmas)
    author.action = Action.MADVISE_COLLAPSE
    author.target = Target(who, vma.start, by)


def moved(author: ProgramBuilder) -> None:
    """Mappings moved by mremap: large folios that lie across the boundaries of windows."""
    rng = author.rng
    author.start()
    map_one(author, tables=rng.choice([1, 2, 3]))
    fill(author, "s", looks={Appearance.LARGE: 4, Appearance.FULL: 1, Appearance.MIXED: 2})
    move_some(author, "s", 8 * PMD_PAGES)
    weather(author, "s", 0.3)
    close(author)


def uffd(author: ProgramBuilder) -> None:
    """Mappings registered with userfaultfd, some pages protected, some of those swapped."""
    author.start()
    map_many(author, "s", 2) if author.rng.random() < 0.3 else map_one(
        author, tables=author.rng.choice([1, 2, 2])
    )
    fill(author, "s")
    weather(author, "s")
    arm_some(author, "s")
    close(author)


def pinned(author: ProgramBuilder) -> None:
    """Long-lived references, of both kinds, on small pages and on parts of large folios."""
    author.start()
    map_one(author, tables=author.rng.choice([1, 2, 2, 3]))
    if author.rng.random() < 0.2:
        share_some(author, "s")
    fill(
        author,
        "s",
        looks={Appearance.FULL: 3, Appearance.LARGE: 3, Appearance.MIXED: 2, Appearance.MOSTLY: 2},
    )
    weather(author, "s", 0.3)
    pin_some(author, "s", 4)
    if author.rng.random() < 0.15:
        arm_some(author, "s")
    close(author)


def ksm(author: ProgramBuilder) -> None:
    """Pages merged by ksmd, some of them written again."""
    author.start()
    map_one(author)
    fill(author, "s", looks={Appearance.FULL: 3, Appearance.MOSTLY: 2, Appearance.LARGE: 1})
    merge_same(author, "s")
    scan_same(author)
    write_some(author, "s", PageMark.SAME)
    weather(author, "s", 0.2)
    close(author)


def memcg(author: ProgramBuilder) -> None:
    """A memory cgroup that is full, or nearly so, when khugepaged comes.

    Nothing in it can be reclaimed: no swapped or lazily freed pages. With defrag, a charge that
    fails reclaims: it would split partially mapped folios, and for orders up to 3 kill the process.
    So there are none of either then, nor with MADV_COLLAPSE, which may always reclaim.
    Kernel: mm/memcontrol.c, try_charge_memcg().
    """
    rng = author.rng
    if rng.random() < 0.5:
        author.settings = author.settings.replace(defrag=False)
    author.start()
    author.do(Verb.CGROUP, "g", who="s")
    map_one(author)
    if author.settings.defrag:
        author.settings = author.settings.replace(sizes=_costly(author.settings.sizes))
        fill(author, "s", looks={Appearance.FULL: 4, Appearance.MOSTLY: 2})
    else:
        fill(author, "s", looks={Appearance.FULL: 4, Appearance.LARGE: 2, Appearance.MOSTLY: 2})
        if rng.random() < 0.5:
            drop_some(author, "s")
    close(author)
    order = rng.choice(ORDERS)
    short = KERNELS_OWN if author.settings.defrag else 1
    slack = max(0, (1 << order) * rng.choice([0, 1, 1, 2, 3]) + rng.choice([-short, 0, 0, 1]))
    author.finish_with(Operation(Verb.MEMCG, ("g", slack)))
    if author.settings.defrag and rng.random() < 0.3:
        collapse(author)


KERNELS_OWN = 64
"""Pages that a charge which reclaims lacks at least: a few it may find among what the kernel itself
has charged to the group (slab), and that nobody outside sees."""
KILLS_UP_TO = 3
"""Kernel: mm/memcontrol.c, mem_cgroup_oom(), PAGE_ALLOC_COSTLY_ORDER."""


def _costly(sizes: Mapping[int, Enabled]) -> dict[int, Enabled]:
    """The sizes with those off for which the kernel would kill, and 2 MiB on."""
    small = {order: Enabled.NEVER for order in sizes if order <= KILLS_UP_TO}
    return {**sizes, **small, PMD_ORDER: Enabled.ALWAYS}


def nomem(author: ProgramBuilder) -> None:
    """No free block of some order, and khugepaged may not make one (defrag 0).

    Of orders below 4 the kernel itself cannot do without blocks.
    """
    author.settings = author.settings.replace(defrag=False)
    author.do(Verb.EAT, author.rng.randint(4, 9))
    plain(author)


_PRCTL = ((1, 0), (1, 2), (1, 2), (0, 0))


def prctl(author: ProgramBuilder) -> None:
    """THP disabled for the process, whole or but for what is advised, before or after it is known."""
    rng = author.rng
    author.start()
    map_many(author, "s", 3) if rng.random() < 0.5 else map_one(author)
    late = rng.random() < 0.7
    if not late:
        author.do(Verb.PRCTL_THP, *rng.choice(_PRCTL), who="s")
    fill(author, "s")
    weather(author, "s", 0.3)
    if late:
        author.register("s")
        author.do(Verb.PRCTL_THP, *rng.choice(_PRCTL), who="s")
    close(author)
    if rng.random() < 0.25:
        collapse(author)


def droppable(author: ProgramBuilder) -> None:
    """Droppable mappings, where lazily freed pages are no hindrance."""
    rng = author.rng
    author.start()
    start, pages = place(rng)
    author.do(Verb.MMAP_DROPPABLE, start, pages, who="s")
    if rng.random() < 0.4:
        after = -(-(start + pages + 1) // PMD_PAGES) * PMD_PAGES
        author.do(Verb.MMAP, *place(rng, after + PMD_PAGES, 1), who="s")
    fill(author, "s")
    weather(author, "s", 0.4)
    if rng.random() < 0.5:
        free_some(author, "s")
    close(author)
    if rng.random() < 0.15:
        collapse(author)


def readonly(author: ProgramBuilder) -> None:
    """Mappings made read-only after they were filled, whole or in part."""
    author.start()
    map_one(author, tables=author.rng.choice([1, 2, 2, 3]))
    if author.rng.random() < 0.3:
        share_some(author, "s")
    fill(author, "s")
    weather(author, "s", 0.3)
    protect_some(author, "s")
    close(author)
    if author.rng.random() < 0.15:
        collapse(author)


def guard_poison(author: ProgramBuilder) -> None:
    """Guard markers, and now and then a poisoned page."""
    rng = author.rng
    author.start()
    map_one(author, tables=author.rng.choice([1, 2, 2, 3]))
    fill(author, "s")
    weather(author, "s", 0.25)
    guards = rng.random() < 0.75
    if guards:
        guard_some(author, "s")
    if not guards or rng.random() < 0.15:
        poison_some(author, "s")
    close(author)


def mlocked(author: ProgramBuilder) -> None:
    """Locked mappings, before or after they are filled."""
    rng = author.rng
    author.start()
    map_many(author, "s", 2) if rng.random() < 0.3 else map_one(author)
    early = rng.random() < 0.3
    if early:
        lock_some(author, "s")
    if rng.random() < 0.2:
        share_some(author, "s")
    fill_locked(author)
    weather(author, "s", 0.3)
    if not early:
        lock_some(author, "s")
    close(author)


def fill_locked(author: ProgramBuilder) -> None:
    """fill(), for locked mappings as well."""
    segments = []
    for vma in author.vmas("s"):
        if all(
            author.space("s").page(page) is PageMark.ABSENT for page in (vma.start, vma.end - 1)
        ):
            look = weighted(author.rng, LOOKS)
            segments += plan_segments(author.rng, vma.start, vma.pages, look)
    put(author, "s", segments)


def processes(author: ProgramBuilder) -> None:
    """Two or three processes: strangers, and relatives that share pages."""
    rng = author.rng
    author.start()
    map_one(author, tables=1)
    fill(author, "s")
    if rng.random() < 0.3:
        author.register("s")
    others = ["t", "u"][: rng.choice([1, 1, 2])]
    for who in others:
        if rng.random() < 0.65:
            parent = rng.choice(list(author.world.processes))
            author.do(Verb.FORK_TO, who, who=parent)
            write_some(author, who, PageMark.WRITTEN, 3)
            write_some(author, parent, PageMark.WRITTEN, 2)
        else:
            author.start(who)
            map_one(author, who, tables=1)
            fill(author, who)
    for who in ["s", *others]:
        weather(author, who, 0.2)
    if rng.random() < 0.3:
        advise_from_outside(author)
    close(author)
    if rng.random() < 0.15:
        collapse(author)


def advise_from_outside(author: ProgramBuilder) -> None:
    """process_madvise from one subject on another."""
    rng = author.rng
    by, who = rng.sample(list(author.world.processes), 2)
    advice = rng.choice([Madv.COLD, Madv.PAGEOUT, Madv.COLLAPSE])
    for run in author.pieces(who, (PageMark.WRITTEN,), 2, PMD_PAGES):
        author.do(Verb.ADVISE_OTHER, who, *run, int(advice), who=by)


def swapin(author: ProgramBuilder) -> None:
    """Whole folios swapped out and brought back at once, shared slots and swap cache hits."""
    draw_swapin(author)
    close(author)
    if author.rng.random() < 0.25:
        collapse(author)


FAMILIES: dict[str, tuple[float, Callable[[ProgramBuilder], None]]] = {
    "plain": (8, plain),
    "many_vmas": (8, many_vmas),
    "swap": (7, swap),
    "large": (9, large),
    "shared": (7, shared),
    "madvise": (8, madvise),
    "moved": (5, moved),
    "uffd": (6, uffd),
    "pinned": (6, pinned),
    "ksm": (4, ksm),
    "memcg": (4, memcg),
    "nomem": (4, nomem),
    "prctl": (4, prctl),
    "droppable": (4, droppable),
    "readonly": (4, readonly),
    "guard_poison": (5, guard_poison),
    "mlocked": (5, mlocked),
    "processes": (8, processes),
    "swapin": (6, swapin),
}
"""Name -> how often it is drawn, and what draws it."""
