# SPDX-License-Identifier: GPL-2.0-or-later
"""The families of drawn programs: each stresses one part of what khugepaged looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mthp.lab.draw.fill import (
    LOOKS,
    SMALL_LOOKS,
    Appearance,
    cool_all,
    cool_some,
    disturb_some,
    drop_some,
    fill,
    fill_one_order,
    free_some,
    huge_tables,
    plan_segments,
    put,
    share_some,
    swap_some,
    weighted,
    whole_tables,
)
from mthp.lab.draw.knobs import MAX_LIMIT, draw_settings
from mthp.lab.draw.layout import close, map_many, map_one, place, start_mapped
from mthp.lab.draw.program_builder import ProgramBuilder, cuts
from mthp.lab.draw.special import (
    collapse,
    collapse_some,
    edge_limits,
    guard_some,
    lock_some,
    merge_same,
    move_some,
    pin_some,
    poison_some,
    protect_some,
    register_uffd_some,
    scan_same,
    unmap_some,
    write_some,
)
from mthp.lab.draw.swapin import swapin
from mthp.lab.geometry import ORDERS, PMD_ORDER, PMD_PAGES, SMALL_ORDERS, round_up_to_table
from mthp.lab.program.program import (
    SHMEM_ENABLED,
    SYSFS,
    ZONE_RECLAIM,
    Madv,
    Operation,
    Verb,
    switches,
)
from mthp.lab.program.space import PageMark
from mthp.words.settings import Enabled


def plain(builder: ProgramBuilder) -> None:
    """One mapping in any appearance, with the usual changes."""
    start_mapped(builder)
    fill(builder, "s")
    disturb_some(builder, "s")
    style = builder.rng.random()
    if style < 0.08:
        cool_all(builder, "s")
    elif style < 0.3:
        edge_limits(builder, "s")
    close(builder)


def many_vmas(builder: ProgramBuilder) -> None:
    """Two to five mappings, at odd places, advised in different ways."""
    builder.start()
    map_many(builder, "s", builder.rng.randint(2, 5))
    if builder.rng.random() < 0.2:
        share_some(builder, "s")
    fill(builder, "s")
    disturb_some(builder, "s", 0.3)
    if builder.rng.random() < 0.2:
        unmap_some(builder, "s")
    close(builder)


def swap(builder: ProgramBuilder) -> None:
    """Swapped pages: around the limits, read back, in windows of every size."""
    start_mapped(builder)
    fill(builder, "s", looks={Appearance.FULL: 4, Appearance.LARGE: 2, Appearance.MOSTLY: 2})
    swap_some(builder, "s", 4, builder.rng.choice([2, 8, 64, 512]))
    if builder.rng.random() < 0.3:
        cool_some(builder, "s")
    if builder.rng.random() < 0.3:
        drop_some(builder, "s", 2)
    style = builder.rng.random()
    if style < 0.35:
        edge_limits(builder, "s")
    elif style < 0.75:
        builder.settings = builder.settings.replace(max_ptes_swap=MAX_LIMIT)
    close(builder)


def large(builder: ProgramBuilder) -> None:
    """Large folios of every order, whole and in part, and whole tables."""
    rng = builder.rng
    start_mapped(builder)
    style = rng.random()
    if style < 0.4:
        huge_tables(builder, "s")
        fill(builder, "s", looks={Appearance.LARGE: 3, Appearance.MIXED: 2, Appearance.SPARSE: 1})
    elif style < 0.7:
        vma = builder.vmas("s")[0]
        fill_one_order(builder, "s", [(vma.start, vma.pages)], rng.choice(ORDERS))
    else:
        fill(builder, "s", looks={Appearance.LARGE: 3, Appearance.MIXED: 1})
    if rng.random() < 0.15:
        collapse_some(builder, "s")
    drop_some(builder, "s", 4)
    if rng.random() < 0.3:
        unmap_some(builder, "s")
    disturb_some(builder, "s", 0.2)
    close(builder)


def shared(builder: ProgramBuilder) -> None:
    """Pages shared with children, and partly copied again by writes."""
    rng = builder.rng
    start_mapped(builder)
    if rng.random() < 0.5:
        share_some(builder, "s", 4)
        fill(builder, "s", looks={Appearance.FULL: 3, Appearance.MOSTLY: 2, Appearance.LARGE: 2})
    else:
        looks = {Appearance.FULL: 2.0, Appearance.LARGE: 3.0, Appearance.MOSTLY: 1.0}
        fill(builder, "s", looks=looks, orders=SMALL_ORDERS)
        if rng.random() < 0.35:
            collapse_some(builder, "s")
        builder.do(Verb.FORK, 1, who="s")
        for run in builder.pieces("s", (PageMark.WRITTEN,), rng.randint(1, 5), 512):
            builder.do(Verb.WRITE, *run, who="s")
    disturb_some(builder, "s", 0.25)
    if rng.random() < 0.1:
        builder.do(Verb.END_FORK, who="s")
    style = rng.random()
    if style < 0.7:
        limit = MAX_LIMIT if style < 0.45 else rng.randint(0, MAX_LIMIT)
        builder.settings = builder.settings.replace(max_ptes_shared=limit)
    close(builder)


def madvise(builder: ProgramBuilder) -> None:
    """MADV_COLLAPSE, by the process itself or from another one."""
    rng = builder.rng
    builder.start()
    map_many(builder, "s", 2) if rng.random() < 0.4 else map_one(builder)
    if rng.random() < 0.35:
        share_some(builder, "s")
    if rng.random() < 0.3:
        huge_tables(builder, "s")
    fill(builder, "s")
    disturb_some(builder, "s", 0.4)
    special = builder.rng.random()
    if special < 0.1:
        register_uffd_some(builder, "s")
    elif special < 0.2:
        pin_some(builder, "s")
    elif special < 0.3:
        guard_some(builder, "s")
    close(builder)
    collapse(builder)


def moved(builder: ProgramBuilder) -> None:
    """Mappings moved by mremap, with large folios across the boundaries of windows."""
    rng = builder.rng
    builder.start()
    map_one(builder, tables=rng.choice([1, 2, 3]))
    fill(builder, "s", looks={Appearance.LARGE: 4, Appearance.FULL: 1, Appearance.MIXED: 2})
    move_some(builder, "s", 8 * PMD_PAGES)
    disturb_some(builder, "s", 0.3)
    close(builder)


def uffd(builder: ProgramBuilder) -> None:
    """Mappings registered with userfaultfd, some pages protected, some of those swapped."""
    builder.start()
    map_many(builder, "s", 2) if builder.rng.random() < 0.3 else map_one(
        builder, tables=builder.rng.choice([1, 2, 2])
    )
    fill(builder, "s")
    disturb_some(builder, "s")
    register_uffd_some(builder, "s")
    close(builder)


def pinned(builder: ProgramBuilder) -> None:
    """Long-lived references, of both kinds, on small pages and on parts of large folios."""
    builder.start()
    map_one(builder, tables=builder.rng.choice([1, 2, 2, 3]))
    if builder.rng.random() < 0.2:
        share_some(builder, "s")
    looks = {
        Appearance.FULL: 3.0,
        Appearance.LARGE: 3.0,
        Appearance.MIXED: 2.0,
        Appearance.MOSTLY: 2.0,
    }
    fill(builder, "s", looks=looks)
    disturb_some(builder, "s", 0.3)
    pin_some(builder, "s", 4)
    if builder.rng.random() < 0.15:
        register_uffd_some(builder, "s")
    close(builder)


def ksm(builder: ProgramBuilder) -> None:
    """Pages merged by ksmd, some of them written again."""
    start_mapped(builder)
    fill(builder, "s", looks={Appearance.FULL: 3, Appearance.MOSTLY: 2, Appearance.LARGE: 1})
    merge_same(builder, "s")
    scan_same(builder)
    write_some(builder, "s", PageMark.SAME)
    disturb_some(builder, "s", 0.2)
    close(builder)


def memcg(builder: ProgramBuilder) -> None:
    """A memory cgroup that is full, or nearly so, when khugepaged scans.

    Nothing in it can be reclaimed: there are no swapped or lazily freed pages. With defrag, and in
    MADV_COLLAPSE always, a charge that fails reclaims. It would split partially mapped folios, and
    for orders up to PAGE_ALLOC_COSTLY_ORDER kill the process; so neither is drawn then.
    Kernel: mm/memcontrol.c, try_charge_memcg().
    """
    rng = builder.rng
    if rng.random() < 0.5:
        builder.settings = builder.settings.replace(defrag=False)
    builder.start()
    builder.do(Verb.CGROUP, "g", who="s")
    map_one(builder)
    if builder.settings.defrag:
        builder.settings = builder.settings.replace(sizes=_costly(builder.settings.sizes))
        fill(builder, "s", looks={Appearance.FULL: 4, Appearance.MOSTLY: 2})
    else:
        fill(builder, "s", looks={Appearance.FULL: 4, Appearance.LARGE: 2, Appearance.MOSTLY: 2})
        if rng.random() < 0.5:
            drop_some(builder, "s")
    close(builder)
    order = rng.choice(ORDERS)
    short = KERNEL_PAGES if builder.settings.defrag else 1
    slack = max(0, (1 << order) * rng.choice([0, 1, 1, 2, 3]) + rng.choice([-short, 0, 0, 1]))
    builder.finish.append(Operation(Verb.MEMCG, ("g", slack)))
    if builder.settings.defrag and rng.random() < 0.3:
        collapse(builder)


KERNEL_PAGES = 64
"""How many pages a charge lacks at least if it is to fail although it reclaims: it may find a few
among the kernel's own pages that are charged to the group (slab), which cannot be seen from outside."""
PAGE_ALLOC_COSTLY_ORDER = 3
"""Up to this order a failed charge kills. Kernel: mm/memcontrol.c, mem_cgroup_oom()."""


def _costly(sizes: Mapping[int, Enabled]) -> dict[int, Enabled]:
    """The sizes without those for which the kernel would kill, and with 2 MiB enabled."""
    small = {order: Enabled.NEVER for order in sizes if order <= PAGE_ALLOC_COSTLY_ORDER}
    return {**sizes, **small, PMD_ORDER: Enabled.ALWAYS}


def nomem(builder: ProgramBuilder) -> None:
    """No free block of some order, which khugepaged may not make either (defrag 0).

    The order is at least 4: the kernel itself needs blocks of smaller ones.
    """
    builder.settings = builder.settings.replace(defrag=False)
    builder.do(Verb.TAKE_BLOCKS, builder.rng.randint(4, 9))
    plain(builder)


def fragmented(builder: ProgramBuilder) -> None:
    """Free memory in small blocks, but for a few larger ones, of which there may be too few (defrag 0)."""
    rng = builder.rng
    builder.settings = builder.settings.replace(defrag=False)
    lacking = rng.randint(4, PMD_ORDER)
    builder.do(Verb.TAKE_BLOCKS, lacking)
    plain(builder)
    orders = [rng.randint(lacking, PMD_ORDER) for _ in range(rng.randint(1, 3))]
    for order in sorted(orders, reverse=True):
        count = rng.choice([1, 1, 2, 2, 3, 4, 7])
        builder.finish.append(Operation(Verb.LEAVE_BLOCKS, (order, count)))


_PRCTL = ((1, 0), (1, 2), (1, 2), (0, 0))


def prctl(builder: ProgramBuilder) -> None:
    """THP disabled by prctl, for all mappings or all but advised ones, before or after registration."""
    rng = builder.rng
    builder.start()
    map_many(builder, "s", 3) if rng.random() < 0.5 else map_one(builder)
    late = rng.random() < 0.7
    if not late:
        builder.do(Verb.PRCTL_THP, *rng.choice(_PRCTL), who="s")
    fill(builder, "s")
    disturb_some(builder, "s", 0.3)
    if late:
        builder.register("s")
        builder.do(Verb.PRCTL_THP, *rng.choice(_PRCTL), who="s")
    close(builder)
    if rng.random() < 0.25:
        collapse(builder)


def droppable(builder: ProgramBuilder) -> None:
    """Droppable mappings, in which lazily freed pages do not prevent a collapse."""
    rng = builder.rng
    builder.start()
    start, pages = place(rng)
    builder.do(Verb.MMAP_DROPPABLE, start, pages, who="s")
    if rng.random() < 0.4:
        after = round_up_to_table(start + pages + 1)
        builder.do(Verb.MMAP, *place(rng, after + PMD_PAGES, 1), who="s")
    fill(builder, "s")
    disturb_some(builder, "s", 0.4)
    if rng.random() < 0.5:
        free_some(builder, "s")
    close(builder)
    if rng.random() < 0.15:
        collapse(builder)


def readonly(builder: ProgramBuilder) -> None:
    """Mappings made read-only after they were filled, whole or in part."""
    builder.start()
    map_one(builder, tables=builder.rng.choice([1, 2, 2, 3]))
    if builder.rng.random() < 0.3:
        share_some(builder, "s")
    fill(builder, "s")
    disturb_some(builder, "s", 0.3)
    protect_some(builder, "s")
    close(builder)
    if builder.rng.random() < 0.15:
        collapse(builder)


def guard_poison(builder: ProgramBuilder) -> None:
    """Guard markers, and sometimes a poisoned page."""
    rng = builder.rng
    builder.start()
    map_one(builder, tables=builder.rng.choice([1, 2, 2, 3]))
    fill(builder, "s")
    disturb_some(builder, "s", 0.25)
    guards = rng.random() < 0.75
    if guards:
        guard_some(builder, "s")
    if not guards or rng.random() < 0.15:
        poison_some(builder, "s")
    close(builder)


def mlocked(builder: ProgramBuilder) -> None:
    """Mappings that are locked before or after they are filled."""
    rng = builder.rng
    builder.start()
    map_many(builder, "s", 2) if rng.random() < 0.3 else map_one(builder)
    early = rng.random() < 0.3
    if early:
        lock_some(builder, "s")
    if rng.random() < 0.2:
        share_some(builder, "s")
    fill_locked(builder)
    disturb_some(builder, "s", 0.3)
    if not early:
        lock_some(builder, "s")
    close(builder)


def fill_locked(builder: ProgramBuilder) -> None:
    """Do what fill() does, for locked mappings as well."""
    segments = []
    for vma in builder.vmas("s"):
        if all(
            builder.space("s").page(page) is PageMark.ABSENT for page in (vma.start, vma.end - 1)
        ):
            look = weighted(builder.rng, LOOKS)
            segments += plan_segments(builder.rng, vma.start, vma.pages, look)
    put(builder, "s", segments)


def processes(builder: ProgramBuilder) -> None:
    """Two or three processes, some of them forked from each other and sharing pages."""
    rng = builder.rng
    start_mapped(builder, tables=1)
    fill(builder, "s")
    if rng.random() < 0.3:
        builder.register("s")
    others = ["t", "u"][: rng.choice([1, 1, 2])]
    for who in others:
        if rng.random() < 0.65:
            parent = rng.choice(list(builder.world.processes))
            builder.do(Verb.FORK_TO, who, who=parent)
            write_some(builder, who, PageMark.WRITTEN, 3)
            write_some(builder, parent, PageMark.WRITTEN, 2)
        else:
            builder.start(who)
            map_one(builder, who, tables=1)
            fill(builder, who)
    for who in ["s", *others]:
        disturb_some(builder, who, 0.2)
    if rng.random() < 0.3:
        advise_from_outside(builder)
    close(builder)
    if rng.random() < 0.15:
        collapse(builder)


def forks(builder: ProgramBuilder) -> None:
    """A chain of forks, or a parent of several: folios that three mms map or did, and whose last worker is
    left with what its parent wrote."""
    rng = builder.rng
    start_mapped(builder, tables=rng.choice([1, 1, 2]))
    if rng.random() < 0.3:
        huge_tables(builder, "s")
    fill(builder, "s", looks={Appearance.LARGE: 4, Appearance.FULL: 2, Appearance.MIXED: 1})
    if rng.random() < 0.2:
        builder.register("s")
    alive = ["s"]
    for name in ("t", "u"):
        parent = rng.choice(alive[-1:] * 3 + alive)
        builder.do(Verb.FORK_TO, name, who=parent)
        alive.append(name)
        for who in (name, parent):
            write_some(builder, who, PageMark.WRITTEN, 2)
        if len(alive) > 1 and rng.random() < 0.3:
            gone = rng.choice(alive[:-1])
            alive.remove(gone)
            builder.do(Verb.END, gone)
    while len(alive) > 1 and rng.random() < 0.4:
        builder.do(Verb.END, alive.pop(rng.randrange(len(alive))))
    for who in alive:
        write_some(builder, who, PageMark.WRITTEN)
        disturb_some(builder, who, 0.1)
    if rng.random() < 0.6:
        builder.settings = builder.settings.replace(max_ptes_shared=MAX_LIMIT)
    close(builder)
    if rng.random() < 0.15:
        collapse(builder)


def lazyfree(builder: ProgramBuilder) -> None:
    """Much lazily freed memory (MADV_FREE), clean, or used again by a read or a write."""
    rng = builder.rng
    start_mapped(builder)
    fill(builder, "s", looks={Appearance.FULL: 4, Appearance.LARGE: 2, Appearance.MOSTLY: 1})
    disturb_some(builder, "s", 0.2)
    for start, pages in builder.pieces("s", (PageMark.WRITTEN,), rng.randint(1, 4), PMD_PAGES):
        builder.advise("s", start, pages, Madv.FREE)
        verb = rng.choice([None, None, Verb.READ, Verb.WRITE])
        if verb is not None:
            builder.do(verb, start, rng.randint(1, pages), who="s")
    close(builder)
    if rng.random() < 0.15:
        collapse(builder)


def idle(builder: ProgramBuilder) -> None:
    """Memory of which most was not used lately: whole tables, or windows in each."""
    rng = builder.rng
    start_mapped(builder, tables=rng.choice([1, 2, 3, 4]))
    fill(builder, "s", looks={Appearance.FULL: 4, Appearance.LARGE: 3, Appearance.MOSTLY: 2})
    window = rng.choice([PMD_PAGES, PMD_PAGES, 128, 32, 16])
    share = rng.choice([0.5, 0.75, 0.95])
    for vma in builder.vmas("s"):
        for start in range(vma.start, vma.end, window):
            if rng.random() < share:
                builder.advise("s", start, min(window, vma.end - start), Madv.COLD)
    for start, _ in builder.pieces("s", (PageMark.WRITTEN,), rng.randint(0, 3)):
        builder.do(Verb.READ, start, 1, who="s")
    if rng.random() < 0.3:
        swap_some(builder, "s")
    close(builder)


def on_at_start(builder: ProgramBuilder) -> None:
    """Huge pages on while the memory is filled: faults choose among several sizes, and register the
    process."""
    rng = builder.rng
    builder.start()
    for each in switches(draw_settings(rng)):
        builder.add(each)
    map_many(builder, "s", 2) if rng.random() < 0.3 else map_one(builder)
    for vma in builder.vmas("s"):
        advice = rng.choice([Madv.HUGEPAGE, Madv.HUGEPAGE, Madv.NOHUGEPAGE, None])
        if advice is not None:
            builder.advise("s", vma.start, vma.pages, advice)
    fill(builder, "s")
    disturb_some(builder, "s")
    if rng.random() < 0.3:
        unmap_some(builder, "s")
    close(builder)


def unregistered(builder: ProgramBuilder) -> None:
    """A process that khugepaged does not know, advised or not: what enables sizes came after its faults and
    its advice. Mostly all was off before, as on a host with `never`, so that khugepaged's thread begins
    then; else the sizes alone were. Another process may be known."""
    rng = builder.rng
    all_off = rng.random() < 0.75
    if all_off:
        for path, mode in ((SHMEM_ENABLED, "never"), (f"{SYSFS}/enabled", "never")):
            builder.do(Verb.WRITE_FILE, path, mode)
    start_mapped(builder)
    fill(builder, "s", looks=SMALL_LOOKS if all_off else None)
    disturb_some(builder, "s", 0.3)
    if rng.random() < 0.6:
        for vma in builder.vmas("s"):
            builder.advise("s", vma.start, vma.pages, Madv.HUGEPAGE)
    if all_off:
        for path, mode in ((SHMEM_ENABLED, "advise"), (f"{SYSFS}/enabled", "madvise")):
            builder.do(Verb.WRITE_FILE, path, mode)
    if rng.random() < 0.4:
        builder.start("t")
        map_one(builder, "t", tables=1)
        fill(builder, "t")
        builder.register("t")
    if rng.random() < 0.15:
        collapse(builder)


def zero_pages(builder: ProgramBuilder) -> None:
    """Huge zero pages (use_zero_page), and shrink_underused: both as kernels have them by default."""
    rng = builder.rng
    for name in ("use_zero_page", "shrink_underused"):
        builder.do(Verb.WRITE_FILE, f"{SYSFS}/{name}", "1")
    start_mapped(builder, tables=rng.choice([1, 2, 3]))
    with builder.with_order(PMD_ORDER):
        for table in whole_tables(builder, "s"):
            if rng.random() < 0.7:
                verb = Verb.READ if rng.random() < 0.6 else Verb.WRITE
                builder.do(verb, table + rng.randrange(PMD_PAGES), 1, who="s")
    write_some(builder, "s", PageMark.ZERO, 4)
    fill(builder, "s")
    disturb_some(builder, "s")
    close(builder)
    if rng.random() < 0.15:
        collapse(builder)


def advise_from_outside(builder: ProgramBuilder) -> None:
    """One process calls process_madvise() on another."""
    rng = builder.rng
    by, who = rng.sample(list(builder.world.processes), 2)
    advice = rng.choice([Madv.COLD, Madv.PAGEOUT, Madv.COLLAPSE])
    for run in builder.pieces(who, (PageMark.WRITTEN,), 2, PMD_PAGES):
        builder.do(Verb.ADVISE_OTHER, who, *run, int(advice), who=by)


def nodes(builder: ProgramBuilder) -> None:
    """Memory on several NUMA nodes, in runs of any size, and zone_reclaim_mode set or not."""
    rng = builder.rng
    builder.do(Verb.WRITE_FILE, ZONE_RECLAIM, rng.choice(["0", "1", "1"]))
    rng.choice([plain, plain, plain, many_vmas, large, shared, swap, madvise, forks])(builder)
    spread = [piece for each in builder.ops for piece in _on_nodes(builder, each)]
    builder.ops = [*spread, *(Operation(Verb.NODE, (0,), who) for who in builder.world.processes)]


def _on_nodes(builder: ProgramBuilder, each: Operation) -> list[Operation]:
    """An operation, if it is a touch in parts, each on a node of its own."""
    rng = builder.rng
    if each.verb not in (Verb.WRITE, Verb.READ) or rng.random() < 0.3:
        return [each]
    parts, grain = rng.choice([1, 1, 2, 3, 6]), rng.choice([1, 16, 64, PMD_PAGES])
    found = []
    for run in cuts(rng, each.start, each.end, parts, grain):
        found += [Operation(Verb.NODE, (rng.randrange(builder.nodes),), each.who)]
        found += [each.with_range(*run)]
    return found


LATER_FAMILIES: dict[str, tuple[float, Callable[[ProgramBuilder], None]]] = {
    "fragmented": (0.03, fragmented)
}
"""Those that came after campaigns were published: name -> the share of states that are of it instead of what
they were drawn as, so that all others stay; and the function."""

NODE_FAMILIES: dict[str, tuple[float, Callable[[ProgramBuilder], None]]] = {"nodes": (0.1, nodes)}
"""Those of guests with several NUMA nodes: name -> the share of states, and the function."""

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
    "forks": (6, forks),
    "lazyfree": (5, lazyfree),
    "idle": (5, idle),
    "on_at_start": (6, on_at_start),
    "unregistered": (4, unregistered),
    "zero_pages": (4, zero_pages),
}
"""Name -> how often the family is drawn, and the function that draws it."""
