# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own khugepaged cases: each state as a scenario and as a program, and what is expected.

Kernel: tools/testing/selftests/mm/khugepaged.c, the anonymous cases. Where one of them collapses
several states one after another, each is a step here. Where the test makes huge pages by faults, the
programs use MADV_COLLAPSE: while a program builds, no size is enabled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mthp.image.scenario import SCHEMA
from mthp.image.scenario_values import Action
from mthp.lab.geometry import ORDERS, PMD_ORDER, PMD_PAGES
from mthp.lab.program.program import BASE, Draft, Madv, Target, parse
from mthp.lab.session.selftest import Context
from mthp.words.settings import Enabled, Settings

MAX_PTES_SWAP, MAX_PTES_SHARED = PMD_PAGES // 8, PMD_PAGES // 2
_LIMITS = {
    "max_ptes_none": PMD_PAGES - 1,
    "max_ptes_swap": MAX_PTES_SWAP,
    "max_ptes_shared": MAX_PTES_SHARED,
}


@dataclass(frozen=True)
class MappedWhole:
    """What the test counts in a mapping: folios of an order mapped whole, or PMDs at PMD order.

    vma: its index in the scenario. Kernel: tools/testing/selftests/mm/vm_util.c, check_huge_anon().
    """

    vma: int
    order: int
    folios: int


@dataclass(frozen=True)
class SelftestStep:
    """A state, and what must be seen after the collapse.

    document: the state, schema mthp-scenario/1. draft: the program that makes it in a guest, and the
    action over it. passes: full scans (the test waits for the second), or calls of MADV_COLLAPSE.
    succeeds: whether each call must return 0, or an error; None for khugepaged.
    """

    document: dict[str, Any]
    draft: Draft
    looks: tuple[MappedWhole, ...]
    passes: int
    succeeds: bool | None

    @property
    def id(self) -> str:
        """The scenario's id."""
        return str(self.document["id"])


@dataclass(frozen=True)
class Case:
    """One of the test's cases in one context. order: that of its new folios."""

    name: str
    context: Context
    order: int
    steps: tuple[SelftestStep, ...]


def cases(mthp_order: int | None = None) -> list[Case]:
    """The anonymous cases, in the test's order: those of its default run, or those of `-c mthp_order`."""
    contexts = [Context.KHUGEPAGED, Context.MADVISE] if mthp_order is None else [Context.MTHP]
    made = []
    for name, (of, steps) in _CASES.items():
        for context in contexts:
            if context in of:
                order = PMD_ORDER if mthp_order is None else mthp_order
                where = _CaseBuilder(name, context, order)
                made.append(Case(name, context, order, tuple(steps(where))))
    return made


# --- pages and mappings ---------------------------------------------------------------------


_Pages = tuple[tuple[int, str, str], ...]
"""Adjacent runs of pages: (pages, folio token, entry token) each."""


def _vma(runs: _Pages, mm: int = 0, advice: str | None = "hugepage") -> dict[str, Any]:
    """The mapping that consists of these pages."""
    runs = tuple(run for run in runs if run[0])
    anon_vma = any(folio != "-" for _, folio, _ in runs)
    ptes = " ".join(f"{pages}:{entry if anon_vma else 'nopte'}" for pages, _, entry in runs)
    folios = " ".join(f"{pages}:{folio}" for pages, folio, _ in runs)
    return {
        "start": BASE,
        "pages": sum(pages for pages, _, _ in runs),
        "advice": advice,
        "mlocked": False,
        "uffd_wp": False,
        "anon_vma": anon_vma,
        "pins": [],
        "mm": mm,
        "initial": {"folios": folios, "ptes": ptes},
    }


def _small(pages: int) -> _Pages:
    return ((pages, "F0.RLaB.xs.m1", "PWAD"),)


def _hole(pages: int) -> _Pages:
    return ((pages, "-", "-"),)


def _swapped(pages: int) -> _Pages:
    return ((pages, "W0", "s"),)


def _split(pages: int, folio: int = 0) -> _Pages:
    """The first pages of a PMD-sized folio that is mapped by entries, by this process alone."""
    return ((pages, f"F{PMD_ORDER}.DLaBT.xs.m1.f{folio}.i0", "PWAD"),)


def _shared_small(entry: str) -> _Pages:
    """One page that parent and child share; fork makes it old in the child."""
    return ((1, "F0.RLaB.s.m2.f0.i0", entry),)


def _shared_split(first: int) -> _Pages:
    """What a child sees of its parent's PMD-sized folio, from page `first` on."""
    return ((PMD_PAGES - first, f"F{PMD_ORDER}.DLaBT.s.m2.f0.i{first}", "PD"),)


def _shared_huge(copied: int) -> _Pages:
    """The parent's side: mapped by a PMD; its child has copied the first pages.

    pagemap shows for every page under a huge PMD whether the first is mapped exclusively.
    """
    token = f"F{PMD_ORDER}.DLaBT.xs"
    first = (copied, f"{token}.m1.f0.i0", "HPAD")
    return (first, (PMD_PAGES - copied, f"{token}.m2.f0.i{copied}", "HPAD"))


# --- operations -----------------------------------------------------------------------------

_HUGEPAGE, _NOHUGEPAGE = int(Madv.HUGEPAGE), int(Madv.NOHUGEPAGE)
_DONTNEED, _PAGEOUT, _COLLAPSE = int(Madv.DONTNEED), int(Madv.PAGEOUT), int(Madv.COLLAPSE)
_START = ("new", f"s base {BASE}")
_MAPPED = (*_START, f"s mmap 0 {PMD_PAGES}")
_WRITTEN = (*_MAPPED, f"s wr 0 {PMD_PAGES}")
_HUGE = (*_WRITTEN, f"s adv 0 {PMD_PAGES} {_COLLAPSE}")
_HUGE_SHARED = (*_HUGE, f"s adv 0 {PMD_PAGES} {_HUGEPAGE}", "s forkto t")
_SPLIT_PMD = (f"adv 0 1 {_NOHUGEPAGE}", f"adv 0 {PMD_PAGES} {_NOHUGEPAGE}")
"""Another advice for one page, and then for all, has the PMD mapped by PTEs."""


# --- steps ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CaseBuilder:
    """Makes the steps of one case in one context. order: what is collapsed to."""

    name: str
    context: Context
    order: int

    @property
    def limits_hold(self) -> bool:
        """Whether the max_ptes_* limits bind: MADV_COLLAPSE ignores them."""
        return self.context is not Context.MADVISE

    @property
    def folios(self) -> int:
        """How many folios a whole PMD range becomes."""
        return PMD_PAGES >> self.order

    def step(
        self,
        *vmas: dict[str, Any],
        ops: Sequence[str],
        folios: int,
        advised: tuple[str, ...] = ("s",),
        looks: tuple[MappedWhole, ...] = (),
        part: str = "",
        target: int | None = None,
        passes: int | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> SelftestStep:
        """Collapse the mapping `target` (the last by default), which then must hold `folios`.

        ops: what makes the state in a guest. advised: the processes whose mapping gets
        MADV_HUGEPAGE; that of the last is collapsed.
        """
        madvise = self.context is Context.MADVISE
        target = len(vmas) - 1 if target is None else target
        words = [self.name, self.context.value, f"order-{self.order}", *([part] if part else [])]
        document = {
            "schema": SCHEMA,
            "id": "/".join(words),
            "settings": _settings(self.context, self.order, limits or {}),
            "action": (Action.MADVISE_COLLAPSE if madvise else Action.KHUGEPAGED).value,
            "target": target,
            "vmas": list(vmas),
        }
        passes = passes or (1 if madvise else 2)
        draft = _draft(document, ops, advised, passes)
        succeeds = folios > 0 if madvise else None
        all_looks = (*looks, MappedWhole(target, self.order, folios))
        return SelftestStep(document, draft, all_looks, passes, succeeds)


def _draft(
    document: Mapping[str, Any], ops: Sequence[str], advised: tuple[str, ...], passes: int
) -> Draft:
    """The program of a step. MADV_HUGEPAGE comes as a real change of the flags: only that registers.

    Where the test's settings switch everything off, one size keeps khugepaged's thread alive: the
    largest below the PMD's, for swap-in would make use of smaller ones.
    """
    settings, action = Settings.from_json(document["settings"]), Action(document["action"])
    target = None
    if action is Action.MADVISE_COLLAPSE:
        settings = settings.replace(sizes={**settings.sizes, PMD_ORDER - 1: Enabled.MADVISE})
        target = Target(advised[-1], 0, advised[-1])
    pages = document["vmas"][document["target"]]["pages"]
    return Draft(
        id=document["id"],
        family="selftest",
        ops=parse(ops),
        finish=parse(
            f"{who} adv 0 {pages} {advice}"
            for who in advised
            for advice in (_NOHUGEPAGE, _HUGEPAGE)
        ),
        settings=settings,
        action=action,
        target=target,
        passes=passes,
    )


def _settings(context: Context, order: int, limits: Mapping[str, int]) -> dict[str, Any]:
    """The test's settings: the PMD size inherits, the global switch is as the context has it."""
    everywhere = Enabled.MADVISE if context is Context.KHUGEPAGED else Enabled.NEVER
    sizes = dict.fromkeys(ORDERS, Enabled.NEVER) | {PMD_ORDER: Enabled.INHERIT}
    if context is Context.MTHP:
        sizes[order] = Enabled.MADVISE
    settings = Settings(enabled=everywhere, sizes=sizes).replace(**{**_LIMITS, **limits}).to_json()
    return {name: settings[name] for name in ("enabled", *_LIMITS, "defrag")}


def _full(where: _CaseBuilder) -> Iterator[SelftestStep]:
    tables = 1 if where.context is Context.MTHP else 4
    pages = tables * PMD_PAGES
    ops = (*_START, f"s mmap 0 {pages}", f"s wr 0 {pages}")
    yield where.step(_vma(_small(pages)), ops=ops, folios=tables * where.folios)


def _empty(where: _CaseBuilder) -> Iterator[SelftestStep]:
    yield where.step(_vma(_hole(PMD_PAGES)), ops=_MAPPED, folios=0)


def _single(where: _CaseBuilder) -> Iterator[SelftestStep]:
    pages = 1 << where.order if where.context is Context.MTHP else 1
    ops = (*_MAPPED, f"s wr 0 {pages}")
    yield where.step(_vma(_small(pages) + _hole(PMD_PAGES - pages)), ops=ops, folios=1)


def _limited(
    where: _CaseBuilder,
    state: Callable[[int], tuple[_Pages, Sequence[str]]],
    most: int,
    limits: Mapping[str, int] | None = None,
) -> Iterator[SelftestStep]:
    """One page more than the limit allows, and, where limits bind, just as many as it allows.

    state: from the number of pages that count to the mapping's pages, and the operations.
    """

    def step(number: int, folios: int, part: str) -> SelftestStep:
        pages, ops = state(number)
        return where.step(_vma(pages), ops=ops, folios=folios, part=part, limits=limits)

    yield step(most + 1, 0 if where.limits_hold else 1, "exceeded")
    if where.limits_hold:
        yield step(most, 1, "at-the-limit")


def _max_ptes_none(where: _CaseBuilder) -> Iterator[SelftestStep]:
    def state(empty: int) -> tuple[_Pages, Sequence[str]]:
        return _small(PMD_PAGES - empty) + _hole(empty), (*_MAPPED, f"s wr 0 {PMD_PAGES - empty}")

    yield from _limited(where, state, PMD_PAGES // 2, {"max_ptes_none": PMD_PAGES // 2})


def _swapin_single_pte(where: _CaseBuilder) -> Iterator[SelftestStep]:
    ops = (*_WRITTEN, f"s adv 0 1 {_PAGEOUT}")
    yield where.step(_vma(_swapped(1) + _small(PMD_PAGES - 1)), ops=ops, folios=1)


def _max_ptes_swap(where: _CaseBuilder) -> Iterator[SelftestStep]:
    def state(out: int) -> tuple[_Pages, Sequence[str]]:
        return _swapped(out) + _small(PMD_PAGES - out), (*_WRITTEN, f"s adv 0 {out} {_PAGEOUT}")

    yield from _limited(where, state, MAX_PTES_SWAP)


def _single_pte_entry_compound(where: _CaseBuilder) -> Iterator[SelftestStep]:
    ops = (*_HUGE, f"s adv 0 {PMD_PAGES} {_NOHUGEPAGE}", f"s adv 1 {PMD_PAGES - 1} {_DONTNEED}")
    yield where.step(_vma(_split(1) + _hole(PMD_PAGES - 1)), ops=ops, folios=1)


def _full_of_compound(where: _CaseBuilder) -> Iterator[SelftestStep]:
    ops = (*_HUGE, *(f"s {op}" for op in _SPLIT_PMD))
    yield where.step(_vma(_split(PMD_PAGES)), ops=ops, folios=1)


def _compound_extreme(where: _CaseBuilder) -> Iterator[SelftestStep]:
    """Every entry maps the first page of another PMD-sized folio.

    In the guest a mapping slides down by a page past one aligned place, where each time a new huge
    page is made and all of it but its first page is dropped.
    """
    pages: _Pages = ()
    for folio in range(PMD_PAGES):
        pages += _split(1, folio)
    place, aside = PMD_PAGES, 4 * PMD_PAGES
    ops = [*_START, f"s mmap {place} {2 * PMD_PAGES}"]
    for start in range(place, place - PMD_PAGES, -1):
        ops += (
            f"s wr {place} {PMD_PAGES}",
            f"s adv {place} {PMD_PAGES} {_COLLAPSE}",
            f"s adv {place + 1} {PMD_PAGES - 1} {_DONTNEED}",
            f"s mremap {start} {2 * PMD_PAGES} {aside}",
            f"s mremap {aside} {2 * PMD_PAGES} {start - 1}",
        )
    yield where.step(_vma(pages), ops=[*ops, f"s munmap {place} {PMD_PAGES}"], folios=1)


def _fork(where: _CaseBuilder) -> Iterator[SelftestStep]:
    """A fork: the parent is not advised, so khugepaged does not know it, and it stands last."""
    child = _vma(_shared_small("PD") + _small(1) + _hole(PMD_PAGES - 2))
    parent = _vma(_shared_small("PAD") + _hole(PMD_PAGES - 1), mm=1, advice=None)
    ops = (*_MAPPED, "s wr 0 1", "s forkto t", "t wr 1 1")
    looks = (MappedWhole(1, PMD_ORDER, 0),)
    yield where.step(child, parent, ops=ops, folios=1, advised=("t",), looks=looks, target=0)


def _of_huge_parent(
    where: _CaseBuilder,
    own: int,
    folios: int,
    part: str = "",
    ops: Sequence[str] = (),
    limits: Mapping[str, int] | None = None,
) -> SelftestStep:
    """A child that has copied the first `own` pages of what it shares with its parent.

    ops: what the child does before it writes to them.
    """
    return where.step(
        _vma(_shared_huge(own)),
        _vma(_small(own) + _shared_split(own), mm=1),
        ops=(*_HUGE_SHARED, *ops, f"t wr 0 {own}"),
        folios=folios,
        advised=("s", "t"),
        looks=(MappedWhole(0, PMD_ORDER, 1),),
        part=part,
        limits=limits,
    )


def _fork_compound(where: _CaseBuilder) -> Iterator[SelftestStep]:
    split = [f"t {op}" for op in _SPLIT_PMD]
    yield _of_huge_parent(where, 1, 1, ops=split, limits={"max_ptes_shared": PMD_PAGES - 1})


def _max_ptes_shared(where: _CaseBuilder) -> Iterator[SelftestStep]:
    refused = 0 if where.limits_hold else 1
    yield _of_huge_parent(where, PMD_PAGES - MAX_PTES_SHARED - 1, refused, "exceeded")
    if where.limits_hold:
        yield _of_huge_parent(where, PMD_PAGES - MAX_PTES_SHARED, 1, "at-the-limit")


def _existing_thps(where: _CaseBuilder) -> Iterator[SelftestStep]:
    yield where.step(_vma(_small(PMD_PAGES)), ops=_WRITTEN, folios=1, passes=2)


_ALL = frozenset(Context)
_AT_PMD = frozenset({Context.KHUGEPAGED, Context.MADVISE})

_CASES: dict[str, tuple[frozenset[Context], Callable[[_CaseBuilder], Iterator[SelftestStep]]]] = {
    "collapse_full": (_ALL, _full),
    "collapse_empty": (_ALL, _empty),
    "collapse_single_mthp": (frozenset({Context.MTHP}), _single),
    "collapse_single_pte_entry": (_AT_PMD, _single),
    "collapse_max_ptes_none": (_AT_PMD, _max_ptes_none),
    "collapse_single_pte_entry_compound": (_AT_PMD, _single_pte_entry_compound),
    "collapse_full_of_compound": (_AT_PMD, _full_of_compound),
    "collapse_compound_extreme": (_AT_PMD, _compound_extreme),
    "collapse_swapin_single_pte": (_AT_PMD, _swapin_single_pte),
    "collapse_max_ptes_swap": (_AT_PMD, _max_ptes_swap),
    "collapse_fork": (_AT_PMD, _fork),
    "collapse_fork_compound": (_AT_PMD, _fork_compound),
    "collapse_max_ptes_shared": (_AT_PMD, _max_ptes_shared),
    "madvise_collapse_existing_thps": (frozenset({Context.MADVISE}), _existing_thps),
}
"""Name -> the contexts it is run in, and its steps."""
