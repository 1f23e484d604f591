# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios that the builder of worlds puts into the swap cache: those that are mapped, of which it may have to
say which slots they stand for, and those that nobody maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mthp.image.snapshot import Kpf
from mthp.mm import page_flags as pg
from mthp.mm.mm_types import Kernel, Mm
from mthp.mm.rmap import new_anon_folio
from mthp.words.units import Folio
from mthp.worlds.arrays import ImageCached

PG_OF_KPF = {
    Kpf.LOCKED: pg.PG_LOCKED, Kpf.REFERENCED: pg.PG_REFERENCED, Kpf.DIRTY: pg.PG_DIRTY,
    Kpf.LRU: pg.PG_LRU, Kpf.ACTIVE: pg.PG_ACTIVE, Kpf.ANON: pg.PG_ANON,
    Kpf.SWAPCACHE: pg.PG_SWAPCACHE, Kpf.SWAPBACKED: pg.PG_SWAPBACKED,
    Kpf.UNEVICTABLE: pg.PG_UNEVICTABLE, Kpf.MLOCKED: pg.PG_MLOCKED, Kpf.KSM: pg.PG_KSM,
}  # fmt: skip
"""kpageflags bits and the flags they stand for."""


def firsts_of_cached(
    mapped: Iterable[tuple[Folio, int, int]], shared_slots: Mapping[int, int]
) -> dict[Folio, int | None]:
    """The first slot of each mapped folio in the swap cache, None where it is not known.

    A folio in the swap cache does not say which slots it stands for. Where another process still names one
    at the same address, as after fork(), they are those; else they are some of its own. mapped: folio, page
    in it, address. shared_slots: address -> slot.
    """
    firsts: dict[Folio, int | None] = {}
    for folio, index, address in mapped:
        named = shared_slots.get(address)
        if named is not None:
            firsts[folio] = named - index
        else:
            firsts.setdefault(folio, None)
    return firsts


def unmapped_folio(
    kernel: Kernel, cached: ImageCached, named: Mapping[int, tuple[Mm, int]]
) -> Folio | None:
    """Make a folio that nobody maps: anonymous memory of where an entry names a slot of it, as it is there.

    named: slot -> the mm and the address of an entry that names it. None where no entry does, as in a world
    of some of an image's tables: nothing there can come upon it.
    """
    nr = 1 << cached.order
    slots = range(cached.entry, cached.entry + nr)
    naming = ((page, named[slot]) for page, slot in enumerate(slots) if slot in named)
    found = next(naming, None)
    if found is None:
        return None
    page, (mm, address) = found
    vma = mm.find_vma(address)
    assert vma is not None
    flags = pg.PG_UPTODATE
    for kpf, flag in PG_OF_KPF.items():
        flags |= flag if cached.kpageflags >> kpf & 1 else 0
    mem = kernel.mem
    folio = new_anon_folio(
        mem,
        cached.order,
        flags=flags,
        mapcount=0,
        anon_vma=0 if vma.anon_vma is None else vma.anon_vma.number,
        index=(address >> kernel.geometry.page_shift) - page,
    )
    mem.refcount.raw[folio] = nr
    mem.memcg.raw[folio] = mm.memcg.number if mm.memcg is not None else 0
    for frame, slot in enumerate(slots, folio):
        mem.content.raw[frame] = kernel.swap.contents.get(slot, 0)
    return folio
