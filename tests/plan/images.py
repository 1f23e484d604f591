# SPDX-License-Identifier: GPL-2.0-or-later
"""Random images for tests of plans: one or two processes, and tables of all kinds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np

from mthp.image.snapshot import Kpf, Pte
from mthp.mm.page_alloc import NodeState
from mthp.mm.pgtable_types import DIRTY, WRITE, YOUNG
from mthp.mm.swap_table import swp_entry
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE, VM_LOCKED, VM_NOHUGEPAGE, VM_UFFD_WP
from mthp.words.profiles import PROFILES, Profile
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Geometry
from mthp.worlds.arrays import ImageProcess, ImageVma, TableArrays, WorldArrays

GEOMETRY = Geometry()
SIZE, PTRS, PAGE = GEOMETRY.pmd_size, GEOMETRY.ptrs_per_pte, GEOMETRY.page_size
BASE = 0x7F0000000000
ANON = sum(1 << kpf for kpf in (Kpf.ANON, Kpf.LRU, Kpf.SWAPBACKED, Kpf.UPTODATE))


def made_process(number: int, tables: int, geometry: Geometry = GEOMETRY) -> ImageProcess:
    """A process of one mapping and so many empty tables, registered."""
    addresses = BASE + np.arange(tables, dtype=np.uint64) * np.uint64(geometry.pmd_size)
    arrays = TableArrays.blank(addresses, geometry)
    vma = ImageVma(BASE, BASE + tables * geometry.pmd_size, VM_DEFAULT, anon_vma=True, place=number)
    return ImageProcess(100 + number, "made", 0, None, (vma,), arrays, age=number, place=number)


def fill(
    owner: ImageProcess, row: int, part: slice, first: int, mapcount: int = 1, used: int = YOUNG
) -> None:
    """Map frames in a row, from first on."""
    tables = owner.tables
    tables.pte[row, part] = Pte.PRESENT
    tables.pfn[row, part] = first + np.arange(part.stop - part.start)
    tables.kpageflags[row, part] = ANON
    tables.kpagecount[row, part] = mapcount
    tables.bits[row, part] = DIRTY | used


def always(*orders: int, **numbers: int) -> Settings:
    """Settings with these sizes always, and no other."""
    sizes = {
        order: Enabled.ALWAYS if order in orders else Enabled.NEVER
        for order in GEOMETRY.anon_orders
    }
    return Settings(sizes=sizes, **numbers)  # type: ignore[arg-type]


def swap_out(owner: ImageProcess, row: int, at: int, slot: int, *, exclusive: bool = True) -> None:
    """Have an entry name a swap slot, in the place of what is there."""
    tables = owner.tables
    tables.pte[row, at] = Pte.SWAPPED | (Pte.EXCLUSIVE if exclusive else 0)
    tables.pfn[row, at] = slot << 5
    for column in (tables.bits, tables.kpageflags, tables.kpagecount, tables.folio_order):
        column[row, at] = 0


class Frames:
    """Hands out frames."""

    def __init__(self) -> None:
        self.next = 1024

    def take(self, order: int = 0, nr: int = 1) -> int:
        """The first frame of so many aligned blocks."""
        first = -(-self.next >> order) << order
        self.next = first + (nr << order)
        return first


def random_settings(rnd: Random) -> Settings:
    """Sizes, switches and limits as may be."""
    few = set(rnd.sample(sorted(GEOMETRY.anon_orders), rnd.choice((1, 1, 2, 3))))
    switches = [Enabled.ALWAYS, Enabled.ALWAYS, Enabled.MADVISE, Enabled.INHERIT]
    return Settings(
        sizes={
            order: rnd.choice(switches) if order in few else Enabled.NEVER
            for order in GEOMETRY.anon_orders
        },
        enabled=rnd.choice([Enabled.ALWAYS, Enabled.MADVISE, Enabled.NEVER]),
        max_ptes_none=rnd.choice([0, 0, 511, 511, 30, 200, 409]),
        max_ptes_swap=rnd.choice([0, 64, 511]),
        max_ptes_shared=rnd.choice([0, 256, 511]),
        defrag=rnd.random() < 0.8,
    )


def random_profile(rnd: Random) -> Profile:
    """Any of the profiles."""
    return PROFILES[rnd.choice(sorted(PROFILES))]


def random_image(rnd: Random) -> WorldArrays:
    """One or two processes, with one mapping or some more."""
    frames = Frames()
    shared = [frames.take() for _ in range(40)]
    processes = [_process(rnd, number, frames, shared) for number in range(rnd.choice((1, 1, 2)))]
    blocks = {0: 50, 3: 40, 9: rnd.choice((2, 40))} if rnd.random() < 0.15 else None
    return WorldArrays(nodes=(NodeState(blocks),), processes=processes)


def _process(rnd: Random, number: int, frames: Frames, shared: list[int]) -> ImageProcess:
    count = rnd.randint(1, 4)
    shape = (count, PTRS)
    addresses = np.uint64(BASE) + np.arange(count, dtype=np.uint64) * np.uint64(SIZE)
    tables = replace(
        TableArrays.blank(addresses, GEOMETRY),
        references=np.zeros(shape, np.int64) if rnd.random() < 0.3 else None,
        young=np.zeros(shape, np.bool_) if rnd.random() < 0.2 else None,
    )
    for row in range(count):
        fill_by_runs(rnd, tables, row, frames, shared)
    cuts = [rnd.randrange(count * PTRS) for _ in range(rnd.choice((0, 0, 1, 2)))]
    cuts = [cut for cut in cuts if not (tables.pte[cut // PTRS] & Pte.HUGE).any()]
    vmas = tuple(
        ImageVma(
            BASE + start * PAGE, BASE + end * PAGE, random_flags(rnd), rnd.random() < 0.95, place=k
        )
        for k, (start, end) in enumerate(pairwise(sorted({0, count * PTRS, *cuts})))
    )
    place = None if rnd.random() < 0.1 else number
    return ImageProcess(100 + number, "made", 0, None, vmas, tables, age=number, place=place)


def random_flags(rnd: Random) -> int:
    more = [0] * 8 + [VM_HUGEPAGE] * 4 + [VM_NOHUGEPAGE, VM_LOCKED, VM_UFFD_WP]
    return VM_DEFAULT | rnd.choice(more)


def fill_by_runs(
    rnd: Random,
    tables: TableArrays,
    row: int,
    frames: Frames,
    shared: list[int],
    odd: float | None = None,
) -> None:
    """Fill one table, run by run. shared: frames that some of it may share. odd: how likely a run has a page
    about which the engine has to decide; None: drawn."""
    if rnd.random() < 0.08:
        tables.pte[row] = Pte.HUGE
        _map(rnd, tables, row, slice(0, PTRS), frames.take(9), 9, 1.0)
        return
    holes = rnd.choice((0.0, 0.02, 0.3, 0.9))
    used = rnd.choice((1.0, 1.0, 0.3, 0.01, 0.0))
    large = rnd.choice((0.0, 0.0, 0.3))
    drawn = rnd.choice((0.0, 0.0, 0.0, 0.02))
    odd = drawn if odd is None else odd
    at = 0
    while at < PTRS:
        order = rnd.randint(1, 9) if rnd.random() < large else 0
        if order and not at % (1 << order):
            nr, first, shift = 1 << order, frames.take(order), 0
            start, end = (0, nr) if rnd.random() < 0.7 else sorted(rnd.sample(range(nr + 1), 2))
            if rnd.random() < 0.05 and at + 2 * nr <= PTRS:
                shift = rnd.choice((nr // 2, nr))  # moved to where it does not lie aligned, or does
            part = slice(at + shift + start, at + shift + end)
            _map(rnd, tables, row, part, first + start, order, used)
            if shift == nr and start:
                _map(rnd, tables, row, slice(at, at + start), first, order, used)
            at += nr + shift
            continue
        nr = min(rnd.choice((1, 4, 16, 64)), PTRS - at)
        if rnd.random() >= holes:
            _map(rnd, tables, row, slice(at, at + nr), frames.take(0, nr), 0, used)
            if rnd.random() < odd:
                _spoil(rnd, tables, row, at, shared)
        elif rnd.random() < 0.2:
            tables.pte[row, at : at + nr] = Pte.PRESENT | Pte.ZERO
        at += nr


def _map(
    rnd: Random, tables: TableArrays, row: int, part: slice, first: int, order: int, used: float
) -> None:
    """Map frames in a row; used: how likely they are in use."""
    tables.pte[row, part] |= np.uint16(Pte.PRESENT | Pte.EXCLUSIVE)
    tables.pfn[row, part] = first + np.arange(part.stop - part.start, dtype=np.uint64)
    tables.kpagecount[row, part] = 1
    tables.folio_order[row, part] = order
    tables.kpageflags[row, part] = ANON | (rnd.random() < used / 2) << Kpf.REFERENCED
    if tables.young is not None and rnd.random() < used / 2:
        tables.young[row, part] = True
    tables.bits[row, part] = WRITE | DIRTY | (YOUNG if rnd.random() < used else 0)


def _spoil(rnd: Random, tables: TableArrays, row: int, at: int, shared: list[int]) -> None:
    """Make something of one page that the engine has to decide about."""
    what = rnd.randrange(6)
    if what == 0:
        tables.pfn[row, at], tables.kpagecount[row, at] = rnd.choice(shared), 2
        tables.pte[row, at] &= ~np.uint16(Pte.EXCLUSIVE)
    elif what == 1:
        tables.kpageflags[row, at] &= ~np.uint64(1 << Kpf.LRU)
    elif what == 2:
        tables.kpageflags[row, at] &= ~np.uint64(1 << Kpf.SWAPBACKED)
        tables.bits[row, at] &= ~np.uint8(DIRTY)
    elif what == 3 and tables.references is not None:
        tables.references[row, at] = 1
    elif what == 4:
        tables.pte[row, at] |= np.uint16(Pte.UFFD_WP)
    else:
        tables.pte[row, at] = Pte.SWAPPED | Pte.EXCLUSIVE
        tables.pfn[row, at] = swp_entry(0, int(tables.pfn[row, at])) << 5
        for column in (tables.bits, tables.kpageflags, tables.kpagecount, tables.folio_order):
            column[row, at] = 0


def forked_image(rnd: Random) -> WorldArrays:
    """Up to four processes that share small pages as after fork(), at the same addresses, with some tables of
    which a part is swapped out, and now and then one that the engine has to decide about."""
    count, number = rnd.randint(1, 3), rnd.choice((1, 2, 2, 3, 4))
    owners = [made_process(each, count) for each in range(number)]
    mapped: Counter[int] = Counter()
    outside = rnd.choice((0.0, 0.0, 0.2, 1.0))
    for row in range(count):
        share = rnd.choice((0.0, 0.01, 0.3, 0.9, 1.0))
        forked = [rnd.random() < share for _ in range(PTRS)]
        holes = rnd.choice((0.0, 0.0, 0.01, 0.3))
        for each, owner in enumerate(owners):
            _fork_table(rnd, owner, row, (each * 8 + row + 1) * 4096, forked, holes)
            own = owner.tables
            if rnd.random() < 0.2:
                _swap_out(rnd, owner, row, rnd.choice((1, 20, 64, 65, 200)))
            mapped.update(own.pfn[row][own.pte[row] & Pte.PRESENT != 0].tolist())
    more = {frame for frame in mapped if rnd.random() < outside}
    for owner in owners:
        tables = owner.tables
        for row, column in np.argwhere(tables.pte & Pte.PRESENT != 0).tolist():
            frame = int(tables.pfn[row, column])
            tables.kpagecount[row, column] = mapped[frame] + (frame in more)
    owners = [
        replace(
            owner,
            place=None if rnd.random() < 0.15 else owner.place,
            pins=((BASE, BASE + PAGE),) if rnd.random() < 0.08 else (),
            vmas=(owner.vmas[0]._replace(vm_flags=random_flags(rnd)),),
        )
        for owner in owners
    ]
    cursor = None if rnd.random() < 0.6 else (rnd.randrange(number), BASE + rnd.randrange(3) * SIZE)
    return WorldArrays((NodeState(None),), owners, synchronous=rnd.random() < 0.5, cursor=cursor)


def _fork_table(
    rnd: Random, owner: ImageProcess, row: int, first: int, forked: list[bool], holes: float
) -> None:
    """Map pages of a row: those that are forked in frames that are the same for all."""
    used = rnd.choice((1.0, 1.0, 0.6, 0.01))
    tables = owner.tables
    for at in range(PTRS):
        if rnd.random() < holes:
            continue
        frame = (1 << 20) + row * PTRS + at if forked[at] else first + at
        young = YOUNG if rnd.random() < used else 0
        fill(owner, row, slice(at, at + 1), frame, used=young)
    if rnd.random() < 0.2:
        order = rnd.choice((2, 4, 8))
        at = rnd.randrange(PTRS >> order) << order
        if not any(forked[at : at + (1 << order)]):
            fill(owner, row, slice(at, at + (1 << order)), (first << 4) + at)
            tables.folio_order[row, at : at + (1 << order)] = order


def _swap_out(rnd: Random, owner: ImageProcess, row: int, nr: int) -> None:
    """Swap out so many of a row's pages that nobody else has; once in a while one with a twin, or of uffd."""
    tables = owner.tables
    first = 1 + owner.pid * 8 * PTRS + row * PTRS
    for at in rnd.sample(range(PTRS), nr):
        if tables.pfn[row, at] >= 1 << 20 or tables.folio_order[row, at]:
            continue
        slot = first + at if rnd.random() < 0.995 else 7
        swap_out(owner, row, at, slot, exclusive=slot != 7)
