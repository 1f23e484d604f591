# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws of single mappings, once every task has ended: where they lie, what they allow, how rmap
finds them, and what the folios behind them are.
"""

from __future__ import annotations

from collections.abc import Iterator

from mthp.laws.at_rest import Rest
from mthp.laws.broken import Broken, Kind, Thing
from mthp.laws.census import Census, Mapping
from mthp.laws.observations import Observations
from mthp.mm.mm_types import linear_page_index
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PG_ANON,
    PG_KSM,
    PG_MLOCKED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
    PG_ZONE_DEVICE,
)
from mthp.mm.pgtable_types import HUGE, UFFD_WP, WRITE, pte_none, pte_present
from mthp.mm.vm_flags import VM_DROPPABLE, VM_LOCKED, VM_UFFD_WP, VM_WRITE


def _address(mapping: Mapping) -> Thing:
    return Thing(Kind.ADDRESS, hex(mapping.address))


def law_14_mappings_lie_in_their_vmas(rest: Rest) -> Iterator[Broken]:
    """What is mapped lies in a VMA, and may be stored to only where the VMA, and nobody's hold on the
    page, allows it.
    """
    for each in rest.now.mappings:
        where, flags = f"{each.address:#x} of mm {each.mm.number}", 0
        if each.vma is None:
            yield Broken(14, _address(each), f"{where}: something is mapped where there is no VMA")
        else:
            flags = each.vma.vm_flags
        writes = each.entry & WRITE and pte_present(each.entry)
        if each.vma is not None and writes and not (flags & VM_WRITE and each.page):
            of = "a VMA that may not be" if each.page else "the zero page may be"
            yield Broken(14, _address(each), f"{where}: may be stored to, and is of {of}")
        if each.vma is not None and each.entry & UFFD_WP and not flags & VM_UFFD_WP:
            yield Broken(14, _address(each), f"{where}: is write-protected for no userfaultfd")


def law_14_vmas_stay(before: Census, now: Census) -> Iterator[Broken]:
    """A collapse changes no VMA: not its range, its rights, nor where its pages have their indices."""
    for place in before.vmas.keys() | now.vmas.keys():
        if before.vmas.get(place) != now.vmas.get(place):
            text = f"the mapping at {place[1]:#x} of mm {place[0]} is another than before"
            yield Broken(14, Thing(Kind.VMA, hex(place[1])), text)


def law_15_rmap_finds_every_mapping(rest: Rest) -> Iterator[Broken]:
    """A folio's anon_vma and index lead to every VMA and address that maps it; KSM has an rmap of its
    own.
    """
    kernel, mem = rest.now.kernel, rest.now.kernel.mem
    for each in rest.now.mappings:
        folio = mem.head.raw[each.page]
        if not each.page or each.vma is None or mem.flags.raw[folio] & PG_KSM:
            continue
        pgoff = mem.index.raw[folio] + each.page - folio
        vmas = kernel.anon_vmas[mem.anon_vma.raw[folio]].vmas
        if each.vma not in vmas or linear_page_index(each.vma, each.address) != pgoff:
            text = f"rmap does not lead from page {each.page} to {each.address:#x}, which maps it"
            yield Broken(15, Thing(Kind.PAGE, each.page), text)


def law_16_flags_fit_the_mappings(rest: Rest) -> Iterator[Broken]:
    """What may be stored to is one process's alone; what is mapped is anonymous; what is marked as in
    the swap cache is there.
    """
    kernel, mem = rest.now.kernel, rest.now.kernel.mem
    for each in rest.now.mappings:
        if not each.page:
            continue
        folio = mem.head.raw[each.page]
        what = Thing(Kind.PAGE, each.page)
        marked = mem.page_flags.raw[folio if each.entry & HUGE else each.page]
        if each.entry & WRITE and not marked & PAGE_ANON_EXCLUSIVE:
            yield Broken(16, what, f"page {each.page} may be stored to and is not marked exclusive")
        if not mem.flags.raw[folio] & PG_ANON:
            yield Broken(16, what, f"page {each.page} is mapped and not marked anonymous")
    for head, flags in rest.now.flags.items():
        if (flags & PG_SWAPCACHE != 0) != (head in kernel.swap.entry_of):
            text = f"folio {head}: its mark and the swap cache do not agree"
            yield Broken(16, Thing(Kind.FOLIO, head), text)


def law_16_new_folios_are_as_their_vma_wants(seen: Observations, now: Census) -> Iterator[Broken]:
    """A folio that was made and mapped is swap-backed and up to date, and no merged page or device's."""
    mem = now.kernel.mem
    for each in now.mappings:
        folio = mem.head.raw[each.page]
        where = each.mm.number, each.address
        was_given_up = not seen.discarded.isdisjoint({where, seen.origin.get(where, where)})
        if not each.page or each.vma is None or folio in seen.begun.flags or was_given_up:
            continue
        backed = 0 if each.vma.vm_flags & VM_DROPPABLE else PG_SWAPBACKED
        wrong = mem.flags.raw[folio] ^ (PG_UPTODATE | backed)
        for flag, name in _NEW.items():
            if wrong & flag and (backed or flag != PG_SWAPBACKED):
                text = f"folio {folio} was mapped at {each.address:#x} and is {name}"
                yield Broken(16, Thing(Kind.FOLIO, folio), text)


_NEW = {PG_UPTODATE: "not up to date", PG_SWAPBACKED: "not swap-backed", PG_KSM: "a merged page",
        PG_ZONE_DEVICE: "a device's"}  # fmt: skip
"""Flags of a new folio, and what it is where one is not as it should be."""


def law_16_locked_mappings_are_mlocked(before: Census, now: Census) -> Iterator[Broken]:
    """A folio that a collapse made is mlocked where its VMA is locked, and nowhere else. One that was
    swapped in is mlocked once reclaim comes by.
    """
    for each in now.mappings:
        folio = now.kernel.mem.head.raw[each.page]
        old = before.entries.get((each.mm.number, each.address), 0)
        was_swapped = not (pte_none(old) or pte_present(old))
        is_new = each.page and folio not in before.flags and not was_swapped
        if is_new and each.vma is not None:
            locked = each.vma.vm_flags & VM_LOCKED
            mlocked = now.kernel.mem.flags.raw[folio] & PG_MLOCKED
            if bool(locked) != bool(mlocked):
                name = "is mlocked" if mlocked else "is not mlocked, and its VMA is locked"
                text = f"folio {folio} was mapped at {each.address:#x} and {name}"
                yield Broken(16, Thing(Kind.FOLIO, folio), text)


def law_5_mapped_folios_are_charged(rest: Rest) -> Iterator[Broken]:
    """What a process of a memory cgroup has mapped is charged to the cgroup; a merged page to anyone."""
    mem = rest.now.kernel.mem
    for each in rest.now.mappings:
        memcg, folio = each.mm.memcg, mem.head.raw[each.page]
        is_charged = memcg is None or mem.memcg.raw[folio] == memcg.number
        if each.page and not is_charged and not mem.flags.raw[folio] & PG_KSM:
            text = f"folio {folio} is mapped by mm {each.mm.number} and not charged to its cgroup"
            yield Broken(5, Thing(Kind.FOLIO, folio), text)
