# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes that may let a refused window collapse, the least first; mthp.predict.find tries them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from mthp.mm import page_flags as pg
from mthp.mm.huge_mm import VmaGate
from mthp.mm.mm_types import (
    MMF_DISABLE_THP_COMPLETELY,
    MMF_DISABLE_THP_EXCEPT_ADVISED,
    userfaultfd_armed,
)
from mthp.mm.pgtable_types import DIRTY, PRESENT, PTE_NONE, UFFD_WP, YOUNG, Leaf, leaf_kind, mk_pte
from mthp.mm.vm_flags import VM_HUGEPAGE, VM_NOHUGEPAGE, VM_UFFD_MISSING, VM_UFFD_WP
from mthp.predict.explain import EDGE, TOO_FEW, explain_vma
from mthp.predict.records import Refusal, RefusedAt
from mthp.predict.trial import Trial
from mthp.words.profiles import Orders
from mthp.words.results import ScanResult
from mthp.words.settings import Enabled
from mthp.words.units import MTHP_MIN_ORDER

Change = tuple[str, Callable[[Trial], None]]


def plural(count: int, what: str) -> str:
    """1 page, 2 pages."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _set(**knobs: int | bool) -> Callable[[Trial], None]:
    def apply(trial: Trial) -> None:
        trial.kernel.settings = trial.kernel.settings.replace(**knobs)

    return apply


def _enable(order: int) -> Callable[[Trial], None]:
    def apply(trial: Trial) -> None:
        settings = trial.kernel.settings
        trial.kernel.settings = settings.replace(sizes={**settings.sizes, order: Enabled.ALWAYS})

    return apply


def _flags(add: int, remove: int) -> Callable[[Trial], None]:
    def apply(trial: Trial) -> None:
        trial.vma.vm_flags = trial.vma.vm_flags & ~remove | add

    return apply


def candidates(trial: Trial, refusal: Refusal) -> Iterator[Change]:
    """Changes that may let the refused PTEs in, the least first; none that changes nothing."""
    if refusal.stage is RefusedAt.VMA:
        yield from _vma_changes(trial, refusal)
    elif refusal.status == EDGE:
        yield "give the mapping the whole PMD range", _span_pmd
    elif refusal.status == TOO_FEW:
        yield from _occupancy_changes(trial, refusal)
    else:
        yield from _result_changes(trial, refusal)


def _vma_changes(trial: Trial, refusal: Refusal) -> Iterator[Change]:
    kernel = trial.kernel
    pmd_kb = kernel.geometry.size_kb(kernel.geometry.pmd_order)
    match VmaGate[refusal.status]:
        case VmaGate.NOT_ENABLED:
            if kernel.settings.enabled is not Enabled.NEVER:
                yield "MADV_HUGEPAGE on the mapping", _flags(VM_HUGEPAGE, VM_NOHUGEPAGE)
            elif kernel.settings.size_enabled(kernel.geometry.pmd_order) is Enabled.INHERIT:
                yield "set transparent_hugepage/enabled to always", _global_always
            yield f"enable {pmd_kb}", _enable(kernel.geometry.pmd_order)
        case VmaGate.NOHUGEPAGE:
            yield "drop MADV_NOHUGEPAGE", _flags(0, VM_NOHUGEPAGE)
            yield "MADV_HUGEPAGE instead of MADV_NOHUGEPAGE", _flags(VM_HUGEPAGE, VM_NOHUGEPAGE)
        case VmaGate.THP_DISABLED | VmaGate.NOT_ADVISED:
            yield "lift PR_SET_THP_DISABLE", _lift_prctl
        case VmaGate.TOO_SHORT:
            yield "give the mapping an aligned PMD range", _span_pmd
        case VmaGate.NO_ANON_VMA:
            yield "write to the mapping once", _write_once
        case _:
            return


def _global_always(trial: Trial) -> None:
    trial.kernel.settings = trial.kernel.settings.replace(enabled=Enabled.ALWAYS)


def _lift_prctl(trial: Trial) -> None:
    trial.mm.flags.value &= ~(MMF_DISABLE_THP_COMPLETELY | MMF_DISABLE_THP_EXCEPT_ADVISED)


def _span_pmd(trial: Trial) -> None:
    old = trial.vma
    trial.mm.unlink_vma(old)
    end = trial.pmd_addr + trial.kernel.geometry.pmd_size
    trial.vma = trial.mm.mmap(trial.pmd_addr, end, old.vm_flags, file=old.file)
    if old.anon_vma is not None:
        trial.mm.link_anon_vma(trial.vma)


def _write_once(trial: Trial) -> None:
    trial.mm.link_anon_vma(trial.vma)


def _occupancy_changes(trial: Trial, refusal: Refusal) -> Iterator[Change]:
    """Too few pages for every enabled order: a smaller size, or more holes allowed."""
    kernel = trial.kernel
    settings = kernel.settings
    most = kernel.geometry.ptrs_per_pte - 1
    first = kernel.geometry.pte_index(refusal.address)
    if kernel.profile.orders is Orders.ANON and refusal.order is not None:
        for order in range(refusal.order - 1, MTHP_MIN_ORDER - 1, -1):
            start = first >> order << order
            if all(trial.frame(i) for i in range(start, start + (1 << order))):
                yield f"enable {kernel.geometry.size_kb(order)}", _enable(order)
                break
    if settings.max_ptes_none != most:
        yield f"raise max_ptes_none to {most}", _set(max_ptes_none=most)
    if refusal.order is not None:
        start = first >> refusal.order << refusal.order
        window = range(start, start + (1 << refusal.order))
        out = sum(_is_swap(trial, i) for i in window)
        if out:
            yield f"bring in {plural(out, 'page')}", partial(_bring_in, window=window)
        missing = [i for i in window if not trial.frame(i) and not _is_marker(trial, i)]
        if missing:
            yield f"write to {plural(len(missing), 'missing page')}", partial(_fill, ptes=missing)


def _result_changes(trial: Trial, refusal: Refusal) -> Iterator[Change]:
    kernel = trial.kernel
    settings = kernel.settings
    pmd_order = kernel.geometry.pmd_order
    order = pmd_order if refusal.order is None or refusal.stage is RefusedAt.SCAN else refusal.order
    start = kernel.geometry.pte_index(refusal.address) >> order << order
    window = range(start, start + (1 << order))
    most = kernel.geometry.ptrs_per_pte - 1
    at_pmd = order == pmd_order
    match refusal.status:
        case ScanResult.EXCEED_NONE_PTE.string:
            if userfaultfd_armed(trial.vma):
                yield "unregister userfaultfd", _flags(0, VM_UFFD_WP | VM_UFFD_MISSING)
            empty = sum(not trial.frame(i) and _is_empty(trial, i) for i in window)
            limit = empty if at_pmd else most
            if settings.max_ptes_none < limit <= most:
                yield f"raise max_ptes_none to {limit}", _set(max_ptes_none=limit)
            missing = [i for i in window if not trial.frame(i) and _is_empty(trial, i)]
            few = missing[: empty - settings.max_ptes_none] if at_pmd else missing
            if few:
                yield f"write to {plural(len(few), 'missing page')}", partial(_fill, ptes=few)
        case ScanResult.EXCEED_SWAP_PTE.string:
            out = sum(not trial.ptes[i] & PRESENT and trial.ptes[i] != 0 for i in window)
            if at_pmd and settings.max_ptes_swap < out <= most:
                yield f"raise max_ptes_swap to {out}", _set(max_ptes_swap=out)
            swapped = sum(_is_swap(trial, i) for i in window)
            if swapped:
                yield f"bring in {plural(swapped, 'page')}", partial(_bring_in, window=window)
            yield from _marker_changes(trial, window)
        case ScanResult.EXCEED_SHARED_PTE.string:
            shared = sum(
                bool(trial.frame(i)) and kernel.mem.folio_maybe_mapped_shared(trial.folio(i))
                for i in window
            )
            if at_pmd and settings.max_ptes_shared < shared <= most:
                yield f"raise max_ptes_shared to {shared}", _set(max_ptes_shared=shared)
            if shared:
                yield f"unshare {plural(shared, 'page')}", partial(_unshare, window=window)
        case ScanResult.PTE_MAPPED_HUGEPAGE.string | ScanResult.SUCCEED.string:
            orders = [trial.kernel.mem.order.raw[trial.folio(i)] for i in window if trial.frame(i)]
            yield from _larger_size(trial, max([order, *orders]))
        case ScanResult.ALLOC_HUGE_PAGE_FAIL.string:
            if not settings.defrag:
                yield "set khugepaged/defrag to 1", _set(defrag=True)
            yield f"free a block of {kernel.geometry.size_kb(order)}", partial(_free, order=order)
        case _:
            yield from _page_changes(trial, refusal, window)


def _larger_size(trial: Trial, order: int) -> Iterator[Change]:
    """Already in a folio of this order: only a higher one would help."""
    kernel = trial.kernel
    settings = kernel.settings
    most = kernel.geometry.ptrs_per_pte - 1
    for higher in range(order + 1, kernel.geometry.pmd_order + 1):
        if settings.size_enabled(higher) is Enabled.NEVER:
            yield f"enable {kernel.geometry.size_kb(higher)}", _enable(higher)
    if settings.max_ptes_none != most:
        yield f"raise max_ptes_none to {most}", _set(max_ptes_none=most)


def _page_changes(trial: Trial, refusal: Refusal, window: range) -> Iterator[Change]:
    """Something about single pages stands in the way: free exactly those."""
    mem = trial.kernel.mem
    folios = list(dict.fromkeys(trial.folio(i) for i in window if trial.frame(i)))
    match refusal.status:
        case ScanResult.PAGE_COUNT.string:
            pinned = [f for f in folios if mem.folio_expected_ref_count(f) != mem.refcount.raw[f]]

            def unpin(t: Trial) -> None:
                for folio in pinned:
                    expected = t.kernel.mem.folio_expected_ref_count(folio)
                    t.kernel.mem.refcount.raw[folio] = expected

            if pinned:
                yield f"clear {plural(len(pinned), 'pinned page')}", unpin
            else:
                yield from _batch_changes(trial)
        case ScanResult.PAGE_LOCK.string:
            locked = [f for f in folios if mem.flags.raw[f] & pg.PG_LOCKED]
            if locked:
                yield (
                    f"unlock {plural(len(locked), 'page')}",
                    lambda t: _change_flags(t, locked, 0, pg.PG_LOCKED),
                )
        case ScanResult.PAGE_LRU.string | ScanResult.DEL_PAGE_LRU.string:
            off = [f for f in folios if not mem.flags.raw[f] & pg.PG_LRU]
            if off:
                yield (
                    f"put {plural(len(off), 'page')} back on the LRU",
                    lambda t: _change_flags(t, off, pg.PG_LRU, 0),
                )
        case ScanResult.PAGE_LAZYFREE.string:
            free = [f for f in folios if not mem.flags.raw[f] & pg.PG_SWAPBACKED]
            yield (
                f"write to {plural(len(free), 'page')} that MADV_FREE gave up",
                lambda t: _change_flags(t, free, pg.PG_SWAPBACKED | pg.PG_DIRTY, 0),
            )
        case ScanResult.PTE_UFFD.string:
            protected = [i for i in window if trial.ptes[i] & UFFD_WP]
            yield (
                f"lift write protection from {plural(len(protected), 'page')}",
                lambda t: _lift_wp(t, protected),
            )
        case ScanResult.LACK_REFERENCED_PAGE.string:
            for count in (1, trial.kernel.geometry.ptrs_per_pte // 2):
                old = [i for i in window if trial.frame(i)][:count]
                yield f"touch {plural(len(old), 'page')}", partial(_touch, ptes=old)
        case ScanResult.FAIL.string | ScanResult.PTE_NON_PRESENT.string:
            yield from _marker_changes(trial, window)
        case ScanResult.CGROUP_CHARGE_FAIL.string:
            pages = len(window)

            def more(t: Trial) -> None:
                if t.mm.memcg is not None and t.mm.memcg.limit is not None:
                    t.mm.memcg.limit += pages

            yield f"raise the memory cgroup's limit by {plural(pages, 'page')}", more
        case _:
            return


def _marker_changes(trial: Trial, window: range) -> Iterator[Change]:
    """Guards, poison, markers: nothing collapses over them."""
    bad = [i for i in window if _is_marker(trial, i)]
    if bad:
        what = "entry" if len(bad) == 1 else "entries"
        yield f"remove {len(bad)} guard or poison {what}", partial(_remove, ptes=bad)


def _batch_changes(trial: Trial) -> Iterator[Change]:
    """A page in an LRU batch: a refused attempt at a higher order put it there, so that one's
    cause is what has to go; it stands in the same table.
    """
    again = Trial(trial.vma, trial.pmd_addr)
    tally = again.run()
    seen: set[str] = {ScanResult.PAGE_COUNT.string, ScanResult.SUCCEED.string}
    for other in explain_vma(again.kernel, again.vma, tally.last_pass):
        if other.stage is RefusedAt.ATTEMPT and other.status not in seen:
            seen.add(other.status)
            yield from _result_changes(trial, other)


def _is_swap(trial: Trial, i: int) -> bool:
    word = trial.ptes[i]
    return word != 0 and not word & PRESENT and leaf_kind(word) is Leaf.SWAP


def _is_empty(trial: Trial, i: int) -> bool:
    word = trial.ptes[i]
    return word == 0 or word & PRESENT != 0


def _is_marker(trial: Trial, i: int) -> bool:
    word = trial.ptes[i]
    return word != 0 and not word & PRESENT and leaf_kind(word) is not Leaf.SWAP


def _change_flags(trial: Trial, folios: list[int], add: int, remove: int) -> None:
    for folio in folios:
        flags = trial.kernel.mem.flags.raw[folio]
        trial.kernel.mem.flags.raw[folio] = flags & ~remove | add


def _lift_wp(trial: Trial, ptes: list[int]) -> None:
    for i in ptes:
        trial.ptes[i] &= ~UFFD_WP


def _touch(trial: Trial, ptes: list[int]) -> None:
    for i in ptes:
        trial.ptes[i] |= YOUNG


def _remove(trial: Trial, ptes: list[int]) -> None:
    for i in ptes:
        trial.ptes[i] = PTE_NONE


def _free(trial: Trial, order: int) -> None:
    """Enough free blocks of the order for this table."""
    node = trial.kernel.mem.allocator.nodes[0]
    node.unborn[order] += trial.kernel.geometry.ptrs_per_pte >> order


def _bring_in(trial: Trial, window: range) -> None:
    _fill(trial, [i for i in window if _is_swap(trial, i)])


def _fill(trial: Trial, ptes: list[int]) -> None:
    mem = trial.kernel.mem
    for i in ptes:
        folio = mem.new_frames(0, 0)
        mem.prep_folio(folio, 0)
        mem.flags.raw[folio] = pg.PG_ANON | pg.PG_SWAPBACKED | pg.PG_LRU | pg.PG_UPTODATE
        mem.mapcount.raw[folio] = 1
        trial.ptes[i] = mk_pte(folio, YOUNG | DIRTY)


def _unshare(trial: Trial, window: range) -> None:
    mem = trial.kernel.mem
    for i in window:
        if not trial.frame(i) or not mem.folio_maybe_mapped_shared(trial.folio(i)):
            continue
        folio = mem.new_frames(0, 0)
        mem.prep_folio(folio, 0)
        mem.flags.raw[folio] = mem.flags.raw[trial.folio(i)] & ~pg.PG_MAPPED_SHARED
        mem.mapcount.raw[folio] = 1
        trial.ptes[i] = mk_pte(folio, trial.ptes[i] & 0xFFFF)
