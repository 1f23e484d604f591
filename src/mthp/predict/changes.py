# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes that may let a refused window collapse, the least first; mthp.predict.find tries them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mthp.khugepaged.isolate import folio_pte_referenced
from mthp.mm import page_flags as pg
from mthp.mm.huge_mm import VmaGate
from mthp.mm.mm_types import (
    MMF_DISABLE_THP_COMPLETELY,
    MMF_DISABLE_THP_EXCEPT_ADVISED,
    userfaultfd_armed,
)
from mthp.mm.pgtable_types import PFN_SHIFT, PRESENT, PTE_NONE, UFFD_WP, YOUNG, Leaf, Pte, leaf_kind
from mthp.mm.vm_flags import VM_HUGEPAGE, VM_NOHUGEPAGE, VM_UFFD_MISSING, VM_UFFD_RWP, VM_UFFD_WP
from mthp.predict.explain import explain, vma_gate
from mthp.predict.records import Change, ChangeKind, Refusal, RefusedAt, WindowGate
from mthp.predict.trial import Trial
from mthp.words.profiles import Orders
from mthp.words.results import ScanResult
from mthp.words.settings import Enabled
from mthp.words.units import MTHP_MIN_ORDER, Folio

Changes = Iterator[Change]


@dataclass(frozen=True)
class _Ask:
    """A refused window in a trial world: the order at which it was refused, and its PTEs.

    first: the first PTE that was refused. windows: of that order, that were refused from there on.
    allowed: empty PTEs that the window may have.
    """

    trial: Trial
    first: int
    order: int
    window: range
    windows: int
    allowed: int

    @classmethod
    def of(cls, trial: Trial, refusal: Refusal) -> _Ask:
        geometry = trial.kernel.geometry
        order = refusal.order
        if order is None or refusal.stage is RefusedAt.SCAN:
            order = geometry.pmd_order
        first = geometry.pte_index(refusal.address)
        start = first >> order << order
        windows = -(-(first + refusal.span - start) >> order)
        window = range(start, start + (1 << order))
        return cls(trial, first, order, window, windows, refusal.allowed_empty or 0)

    def limit(self, knob: str) -> int:
        """What a limit of khugepaged allows in the window; below PMD order, nothing."""
        return getattr(self.trial.kernel.settings, knob) if self.at_pmd else 0

    @property
    def at_pmd(self) -> bool:
        return self.order == self.trial.kernel.geometry.pmd_order

    @property
    def most(self) -> int:
        """The highest value that max_ptes_none and its like may have."""
        return self.trial.kernel.geometry.ptrs_per_pte - 1

    def mapped(self) -> list[int]:
        """The PTEs of the window that map a page."""
        return [i for i in self.window if self.trial.frame(i)]

    def folios(self, wanted: Callable[[Folio], bool]) -> tuple[int, ...]:
        """One PTE for each folio in the window that is as wanted."""
        first: dict[Folio, int] = {}
        for i in self.mapped():
            first.setdefault(self.trial.folio(i), i)
        return tuple(i for folio, i in first.items() if wanted(folio))

    def where(self, wanted: Callable[[Trial, int], bool]) -> tuple[int, ...]:
        """The PTEs of the window that are as wanted."""
        return tuple(i for i in self.window if wanted(self.trial, i))


def candidates(trial: Trial, refusal: Refusal) -> Changes:
    """Yield changes that may let the refused PTEs in, the least first; none of them changes
    nothing."""
    match refusal.status:
        case VmaGate():
            yield from _vma_changes(trial, refusal.status)
        case WindowGate.EDGE:
            yield Change(ChangeKind.SPAN_WHOLE_PMD)
        case WindowGate.TOO_FEW:
            yield from _occupancy_changes(_Ask.of(trial, refusal))
        case ScanResult() if refusal.status in _BY_RESULT:
            yield from _BY_RESULT[refusal.status](_Ask.of(trial, refusal))


def _vma_changes(trial: Trial, gate: VmaGate) -> Changes:
    settings, pmd_order = trial.kernel.settings, trial.kernel.geometry.pmd_order
    if gate is VmaGate.NOT_ENABLED:
        yield Change(ChangeKind.ADVISE)
        if (
            settings.enabled is Enabled.NEVER
            and settings.size_enabled(pmd_order) is Enabled.INHERIT
        ):
            yield Change(ChangeKind.ENABLE_GLOBALLY)
        yield Change(ChangeKind.ENABLE_SIZE, order=pmd_order)
    yield from map(Change, _BY_GATE.get(gate, ()))


def _occupancy_changes(ask: _Ask) -> Changes:
    """Where pages are too few for every enabled order: a smaller size, or more holes allowed."""
    trial = ask.trial
    if trial.kernel.profile.orders is Orders.ANON:
        for order in range(ask.order - 1, MTHP_MIN_ORDER - 1, -1):
            start = ask.first >> order << order
            if all(trial.frame(i) for i in range(start, start + (1 << order))):
                yield Change(ChangeKind.ENABLE_SIZE, order=order)
                break
    yield from _more_holes(ask)
    yield from _of_pages(ChangeKind.BRING_IN, ask.where(_is_swap), ask.allowed)
    yield from _of_pages(
        ChangeKind.FILL,
        ask.where(lambda trial, i: not trial.frame(i) and not _is_marker(trial, i)),
        ask.allowed,
    )


def _of_pages(kind: ChangeKind, ptes: Iterable[int], allowed: int = 0) -> Changes:
    """A change to some pages, if there are any: to those that are more than allowed, then to all."""
    where = tuple(ptes)
    for some in {where[: len(where) - allowed]: None, where: None}:
        if some:
            yield Change(kind, some)


def _raise(ask: _Ask, knob: str, value: int) -> Changes:
    """A higher limit, if the value is higher."""
    if getattr(ask.trial.kernel.settings, knob) < value <= ask.most:
        yield Change(ChangeKind.RAISE_KNOB, knob=knob, value=value)


def _more_holes(ask: _Ask) -> Changes:
    """As many holes allowed as the whole table has, so that it collapses to the PMD size; then any."""
    trial = ask.trial
    nr, pmd_order = trial.kernel.geometry.ptrs_per_pte, trial.kernel.geometry.pmd_order
    if trial.kernel.settings.size_enabled(pmd_order) is not Enabled.NEVER:
        missing = sum(_is_missing(trial, i) for i in range(nr))
        if missing < ask.most:
            yield from _raise(ask, "max_ptes_none", missing)
    yield from _raise(ask, "max_ptes_none", ask.most)


def _exceed_none(ask: _Ask) -> Changes:
    if userfaultfd_armed(ask.trial.vma):
        yield Change(ChangeKind.UNREGISTER_USERFAULTFD)
    missing = ask.where(_is_missing)
    yield from _raise(ask, "max_ptes_none", len(missing) if ask.at_pmd else ask.most)
    yield from _of_pages(ChangeKind.FILL, missing, ask.limit("max_ptes_none"))


def _exceed_swap(ask: _Ask) -> Changes:
    if ask.at_pmd:
        yield from _raise(ask, "max_ptes_swap", len(ask.where(_is_out)))
    yield from _of_pages(ChangeKind.BRING_IN, ask.where(_is_swap), ask.limit("max_ptes_swap"))
    yield from _markers(ask)


def _exceed_shared(ask: _Ask) -> Changes:
    shared = ask.where(_is_shared)
    if ask.at_pmd:
        yield from _raise(ask, "max_ptes_shared", len(shared))
    yield from _of_pages(ChangeKind.UNSHARE, shared, ask.limit("max_ptes_shared"))


def _large_already(ask: _Ask) -> Changes:
    """Changes where a folio has this order already: only a higher one would help."""
    kernel = ask.trial.kernel
    orders = [kernel.mem.order.raw[ask.trial.folio(i)] for i in ask.mapped()]
    for higher in range(max([ask.order, *orders]) + 1, kernel.geometry.pmd_order + 1):
        if kernel.settings.size_enabled(higher) is Enabled.NEVER:
            yield Change(ChangeKind.ENABLE_SIZE, order=higher)
    yield from _more_holes(ask)


def _no_block(ask: _Ask) -> Changes:
    if not ask.trial.kernel.settings.defrag:
        yield Change(ChangeKind.DEFRAG)
    # What a collapse frees may do for the next.
    for blocks in {1: None, ask.windows: None}:
        yield Change(ChangeKind.FREE_BLOCK, order=ask.order, value=blocks)


def _pinned(ask: _Ask) -> Changes:
    mem = ask.trial.kernel.mem
    pinned = ask.folios(lambda f: mem.folio_expected_ref_count(f) != mem.refcount.raw[f])
    yield from _of_pages(ChangeKind.CLEAR_PINS, pinned)
    if not pinned:
        yield from _batched(ask.trial)


def _batched(trial: Trial) -> Changes:
    """Changes where a page is in an LRU batch: a refused attempt at a higher order put it there, so
    what refused that one has to go; it stands in the same table."""
    again = Trial(trial.vma, trial.pmd_addr)
    tally = again.run()
    seen: set[object] = {ScanResult.PAGE_COUNT, ScanResult.SUCCEED}
    gates = {again.vma: vma_gate(again.kernel, again.vma)}
    for _, other in explain(again.kernel, gates, tally.last_pass):
        if other.stage is RefusedAt.ATTEMPT and other.status not in seen:
            seen.add(other.status)
            yield from candidates(trial, other)


def _with_flags(kind: ChangeKind, set_or_not: int, flag: int) -> Callable[[_Ask], Changes]:
    """A change to the folios in whose flags the flag is as said (0: clear)."""

    def changes(ask: _Ask) -> Changes:
        flags = ask.trial.kernel.mem.flags.raw
        yield from _of_pages(kind, ask.folios(lambda f: flags[f] & flag == set_or_not))

    return changes


def _protected(ask: _Ask) -> Changes:
    yield from _of_pages(
        ChangeKind.LIFT_PROTECTION, ask.where(lambda trial, i: trial.ptes[i] & UFFD_WP != 0)
    )


def _old(ask: _Ask) -> Changes:
    half = ask.trial.kernel.geometry.ptrs_per_pte // 2
    old = ask.where(lambda trial, i: trial.frame(i) != 0 and not _is_young(trial, i))
    used = len(ask.mapped()) - len(old)
    for count in (1 - used, half - used):
        if count > 0:
            yield from _of_pages(ChangeKind.TOUCH, old[:count])


def _markers(ask: _Ask) -> Changes:
    """A change to guards, poison and markers: nothing collapses over them."""
    yield from _of_pages(ChangeKind.REMOVE_MARKERS, ask.where(_is_marker))


def _over_limit(ask: _Ask) -> Changes:
    nr, memcg = len(ask.window), ask.trial.mm.memcg
    room = 0 if memcg is None or memcg.limit is None else max(0, memcg.limit - memcg.charged)
    for more in {max(1, nr - room): None, nr: None}:
        yield Change(ChangeKind.RAISE_MEMCG_LIMIT, value=more)


_BY_GATE: dict[VmaGate, tuple[ChangeKind, ...]] = {
    VmaGate.NOHUGEPAGE: (ChangeKind.ADVISE,),
    VmaGate.THP_DISABLED: (ChangeKind.LIFT_PRCTL,),
    VmaGate.NOT_ADVISED: (ChangeKind.LIFT_PRCTL,),
    VmaGate.TOO_SHORT: (ChangeKind.SPAN_ALIGNED_PMD,),
    VmaGate.NO_ANON_VMA: (ChangeKind.WRITE_ONCE,),
}
"""What may help where a whole mapping is passed by."""

_BY_RESULT: dict[ScanResult, Callable[[_Ask], Changes]] = {
    ScanResult.EXCEED_NONE_PTE: _exceed_none,
    ScanResult.EXCEED_SWAP_PTE: _exceed_swap,
    ScanResult.EXCEED_SHARED_PTE: _exceed_shared,
    ScanResult.PTE_MAPPED_HUGEPAGE: _large_already,
    ScanResult.SUCCEED: _large_already,
    ScanResult.ALLOC_HUGE_PAGE_FAIL: _no_block,
    ScanResult.PAGE_COUNT: _pinned,
    ScanResult.PAGE_LOCK: _with_flags(ChangeKind.UNLOCK, pg.PG_LOCKED, pg.PG_LOCKED),
    ScanResult.PAGE_LRU: _with_flags(ChangeKind.PUT_ON_LRU, 0, pg.PG_LRU),
    ScanResult.DEL_PAGE_LRU: _with_flags(ChangeKind.PUT_ON_LRU, 0, pg.PG_LRU),
    ScanResult.PAGE_LAZYFREE: _with_flags(ChangeKind.WRITE_FREED, 0, pg.PG_SWAPBACKED),
    ScanResult.PTE_UFFD: _protected,
    ScanResult.LACK_REFERENCED_PAGE: _old,
    ScanResult.FAIL: _markers,
    ScanResult.PTE_NON_PRESENT: _markers,
    ScanResult.CGROUP_CHARGE_FAIL: _over_limit,
}
"""What may help against each result."""


def _is_missing(trial: Trial, i: int) -> bool:
    """Whether it maps nothing, or the zero page."""
    word = trial.ptes[i]
    return word == 0 or (word & PRESENT != 0 and word >> PFN_SHIFT == 0)


def _is_out(trial: Trial, i: int) -> bool:
    word = trial.ptes[i]
    return word != 0 and not word & PRESENT


def _is_swap(trial: Trial, i: int) -> bool:
    return _is_out(trial, i) and leaf_kind(trial.ptes[i]) is Leaf.SWAP


def _is_marker(trial: Trial, i: int) -> bool:
    return _is_out(trial, i) and leaf_kind(trial.ptes[i]) is not Leaf.SWAP


def _is_young(trial: Trial, i: int) -> bool:
    """Whether khugepaged counts the page of PTE i as used."""
    address = trial.pmd_addr + (i << trial.kernel.geometry.page_shift)
    folio, pte = trial.folio(i), Pte(trial.ptes[i])
    return folio_pte_referenced(trial.kernel.mem, folio, trial.vma, address, pte)


def _is_shared(trial: Trial, i: int) -> bool:
    folio = trial.folio(i)
    return folio != 0 and trial.kernel.mem.folio_maybe_mapped_shared(folio)


# Making them


def apply_change(trial: Trial, change: Change) -> None:
    """Make a change in a trial world."""
    _MADE[change.kind](trial, change)


def _settings(knobs: Callable[[Trial, Change], dict[str, Any]]) -> Callable[[Trial, Change], None]:
    def apply(trial: Trial, change: Change) -> None:
        trial.kernel.settings = trial.kernel.settings.replace(**knobs(trial, change))

    return apply


def _sizes(trial: Trial, change: Change) -> dict[str, Any]:
    return {"sizes": {**trial.kernel.settings.sizes, change.order: Enabled.ALWAYS}}


def _vm_flags(add: int, remove: int) -> Callable[[Trial, Change], None]:
    def apply(trial: Trial, _: Change) -> None:
        trial.vma.vm_flags = trial.vma.vm_flags & ~remove | add

    return apply


def _lift_prctl(trial: Trial, _: Change) -> None:
    trial.mm.flags.value &= ~(MMF_DISABLE_THP_COMPLETELY | MMF_DISABLE_THP_EXCEPT_ADVISED)


def _span_pmd(trial: Trial, _: Change) -> None:
    old = trial.vma
    trial.mm.unlink_vma(old)
    end = trial.pmd_addr + trial.kernel.geometry.pmd_size
    trial.vma = trial.mm.mmap(trial.pmd_addr, end, old.vm_flags, file=old.file)
    if old.anon_vma is not None:
        trial.mm.link_anon_vma(trial.vma)


def _write_once(trial: Trial, _: Change) -> None:
    trial.mm.link_anon_vma(trial.vma)


def _free_block(trial: Trial, change: Change) -> None:
    """Free so many blocks of the order."""
    trial.kernel.mem.allocator.nodes[0].unborn[change.order] += change.value


def _raise_limit(trial: Trial, change: Change) -> None:
    if trial.mm.memcg is not None and trial.mm.memcg.limit is not None:
        trial.mm.memcg.limit += change.value


def _new_pages(trial: Trial, change: Change) -> None:
    for i in change.ptes:
        trial.write_new(i)


def _unpin(trial: Trial, change: Change) -> None:
    mem = trial.kernel.mem
    for folio in map(trial.folio, change.ptes):
        mem.refcount.raw[folio] = mem.folio_expected_ref_count(folio)


def _folio_flags(add: int, remove: int) -> Callable[[Trial, Change], None]:
    def apply(trial: Trial, change: Change) -> None:
        flags = trial.kernel.mem.flags.raw
        for folio in map(trial.folio, change.ptes):
            flags[folio] = flags[folio] & ~remove | add

    return apply


def _pte_bits(add: int, keep: int) -> Callable[[Trial, Change], None]:
    def apply(trial: Trial, change: Change) -> None:
        for i in change.ptes:
            trial.ptes[i] = trial.ptes[i] & keep | add

    return apply


_MADE: dict[ChangeKind, Callable[[Trial, Change], None]] = {
    ChangeKind.RAISE_KNOB: _settings(lambda _, change: {change.knob: change.value}),
    ChangeKind.ENABLE_SIZE: _settings(_sizes),
    ChangeKind.ENABLE_GLOBALLY: _settings(lambda *_: {"enabled": Enabled.ALWAYS}),
    ChangeKind.DEFRAG: _settings(lambda *_: {"defrag": True}),
    ChangeKind.ADVISE: _vm_flags(VM_HUGEPAGE, VM_NOHUGEPAGE),
    ChangeKind.LIFT_PRCTL: _lift_prctl,
    ChangeKind.SPAN_WHOLE_PMD: _span_pmd,
    ChangeKind.SPAN_ALIGNED_PMD: _span_pmd,
    ChangeKind.WRITE_ONCE: _write_once,
    ChangeKind.UNREGISTER_USERFAULTFD: _vm_flags(0, VM_UFFD_WP | VM_UFFD_MISSING | VM_UFFD_RWP),
    ChangeKind.FREE_BLOCK: _free_block,
    ChangeKind.RAISE_MEMCG_LIMIT: _raise_limit,
    ChangeKind.FILL: _new_pages,
    ChangeKind.BRING_IN: _new_pages,
    ChangeKind.UNSHARE: _new_pages,
    ChangeKind.CLEAR_PINS: _unpin,
    ChangeKind.UNLOCK: _folio_flags(0, pg.PG_LOCKED),
    ChangeKind.PUT_ON_LRU: _folio_flags(pg.PG_LRU, 0),
    ChangeKind.WRITE_FREED: _folio_flags(pg.PG_SWAPBACKED | pg.PG_DIRTY, 0),
    ChangeKind.LIFT_PROTECTION: _pte_bits(0, ~UFFD_WP),
    ChangeKind.TOUCH: _pte_bits(YOUNG, -1),
    ChangeKind.REMOVE_MARKERS: _pte_bits(PTE_NONE, 0),
}
