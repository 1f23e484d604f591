# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of the kernel's own khugepaged cases, as scenarios, and what the test looks for.

Kernel: tools/testing/selftests/mm/khugepaged.c, the anonymous cases. Where one of them collapses
several states one after another, each is a step here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mthp.image.scenario import SCHEMA
from mthp.image.scenario_values import Action
from mthp.lab.program.program import BASE
from mthp.lab.session.kselftest import Context
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Geometry

__all__ = ["Case", "Errno", "MappedWhole", "SelftestStep", "cases"]

GEOMETRY = Geometry()
NR = GEOMETRY.ptrs_per_pte
PMD = GEOMETRY.pmd_order
MAX_PTES_SWAP, MAX_PTES_SHARED = NR // 8, NR // 2
_LIMITS = {
    "max_ptes_none": NR - 1,
    "max_ptes_swap": MAX_PTES_SWAP,
    "max_ptes_shared": MAX_PTES_SHARED,
}


@dataclass(frozen=True)
class MappedWhole:
    """What the test counts in a mapping: folios of an order, mapped whole; PMDs at PMD order.

    vma: its index in the scenario. Kernel: tools/testing/selftests/mm/vm_util.c, check_huge_anon().
    """

    vma: int
    order: int
    folios: int


class Errno(Enum):
    """What MADV_COLLAPSE must return."""

    ZERO = "0"
    SOME = "an error"


@dataclass(frozen=True)
class SelftestStep:
    """A state, and what must be seen after the collapse. document: schema mthp-scenario/1.

    passes: full scans (the test waits for the second), or calls of MADV_COLLAPSE. errno: of each
    call, None for khugepaged.
    """

    document: dict[str, Any]
    looks: tuple[MappedWhole, ...]
    passes: int
    errno: Errno | None

    @property
    def id(self) -> str:
        """The scenario's id."""
        return str(self.document["id"])


@dataclass(frozen=True)
class Case:
    """One of the test's cases in one context. order: what is collapsed to."""

    name: str
    context: Context
    order: int
    steps: tuple[SelftestStep, ...]


def cases(mthp_order: int | None = None) -> list[Case]:
    """The anonymous cases, in the test's order: those of its default run, or of `-c ORDER`."""
    contexts = [Context.KHUGEPAGED, Context.MADVISE] if mthp_order is None else [Context.MTHP]
    made = []
    for name, (of, steps) in _CASES.items():
        for context in contexts:
            if context in of:
                where = _Where(name, context, PMD if mthp_order is None else mthp_order)
                made.append(Case(name, context, where.order, tuple(steps(where))))
    return made


# --- pages and mappings ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Pages:
    """Runs of one state: (pages, folio token, entry token). Runs follow one another."""

    runs: tuple[tuple[int, str, str], ...] = ()

    def __add__(self, other: _Pages) -> _Pages:
        return _Pages(self.runs + other.runs)

    @property
    def pages(self) -> int:
        """Base pages in all."""
        return sum(run[0] for run in self.runs)

    def vma(self, mm: int = 0, advice: str | None = "hugepage") -> dict[str, Any]:
        """The mapping that holds just these pages."""
        runs = [run for run in self.runs if run[0]]
        anon_vma = any(folio != "-" for _, folio, _ in runs)
        ptes = " ".join(f"{pages}:{entry if anon_vma else 'nopte'}" for pages, _, entry in runs)
        folios = " ".join(f"{pages}:{folio}" for pages, folio, _ in runs)
        return {
            "start": BASE,
            "pages": self.pages,
            "advice": advice,
            "mlocked": False,
            "uffd_wp": False,
            "anon_vma": anon_vma,
            "pins": [],
            "mm": mm,
            "initial": {"folios": folios, "ptes": ptes},
        }


def _small(pages: int) -> _Pages:
    return _Pages(((pages, "F0.RLaB.xs.m1", "PWAD"),))


def _hole(pages: int) -> _Pages:
    return _Pages(((pages, "-", "-"),))


def _swapped(pages: int) -> _Pages:
    return _Pages(((pages, "W0", "s"),))


def _split(pages: int, folio: int = 0) -> _Pages:
    """The first pages of a PMD-sized folio that is mapped by entries, by this process alone."""
    return _Pages(((pages, f"F{PMD}.DLaBT.xs.m1.f{folio}.i0", "PWAD"),))


def _shared_small(entry: str) -> _Pages:
    """One page that parent and child share; fork leaves it old in the child."""
    return _Pages(((1, "F0.RLaB.s.m2.f0.i0", entry),))


def _shared_split(first: int) -> _Pages:
    """What a child sees of its parent's PMD-sized folio, from page `first` on."""
    return _Pages(((NR - first, f"F{PMD}.DLaBT.s.m2.f0.i{first}", "PD"),))


def _shared_huge(copied: int) -> _Pages:
    """The parent's side: mapped by a PMD; its child has copied the first pages.

    pagemap shows for every page under a huge PMD whether the first is mapped exclusively.
    """
    token = f"F{PMD}.DLaBT.xs"
    first = (copied, f"{token}.m1.f0.i0", "HPAD")
    return _Pages((first, (NR - copied, f"{token}.m2.f0.i{copied}", "HPAD")))


# --- steps ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Where:
    """A case in a context, and how its steps are made."""

    name: str
    context: Context
    order: int

    @property
    def limits_hold(self) -> bool:
        """Whether max_ptes_* bind: not for MADV_COLLAPSE."""
        return self.context is not Context.MADVISE

    @property
    def folios(self) -> int:
        """How many folios a whole PMD range becomes."""
        return NR >> self.order

    def step(
        self,
        *vmas: dict[str, Any],
        folios: int,
        looks: tuple[MappedWhole, ...] = (),
        part: str = "",
        target: int | None = None,
        passes: int | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> SelftestStep:
        """One collapse of a mapping, the last if none is named; `folios` must stand in it then."""
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
        errno = None if not madvise else Errno.ZERO if folios else Errno.SOME
        all_looks = (*looks, MappedWhole(target, self.order, folios))
        return SelftestStep(document, all_looks, passes or (1 if madvise else 2), errno)


def _settings(context: Context, order: int, limits: Mapping[str, int]) -> dict[str, Any]:
    """The test's settings: the PMD size inherits, the global switch is as the context has it."""
    everywhere = Enabled.MADVISE if context is Context.KHUGEPAGED else Enabled.NEVER
    sizes = dict.fromkeys(GEOMETRY.anon_orders, Enabled.NEVER) | {PMD: Enabled.INHERIT}
    if context is Context.MTHP:
        sizes[order] = Enabled.MADVISE
    settings = Settings(enabled=everywhere, sizes=sizes).replace(**{**_LIMITS, **limits}).to_json()
    return {name: settings[name] for name in ("enabled", *_LIMITS, "defrag")}


def _full(where: _Where) -> Iterator[SelftestStep]:
    tables = 1 if where.context is Context.MTHP else 4
    yield where.step(_small(tables * NR).vma(), folios=tables * where.folios)


def _empty(where: _Where) -> Iterator[SelftestStep]:
    yield where.step(_hole(NR).vma(), folios=0)


def _single_mthp(where: _Where) -> Iterator[SelftestStep]:
    pages = 1 << where.order
    yield where.step((_small(pages) + _hole(NR - pages)).vma(), folios=1)


def _single_pte_entry(where: _Where) -> Iterator[SelftestStep]:
    yield where.step((_small(1) + _hole(NR - 1)).vma(), folios=1)


def _limited(
    where: _Where,
    state: Callable[[int], dict[str, Any]],
    most: int,
    limits: Mapping[str, int] | None = None,
) -> Iterator[SelftestStep]:
    """One more than the limit allows, and, where limits bind, just as many as it allows."""
    refused = 0 if where.limits_hold else 1
    yield where.step(state(most + 1), folios=refused, part="exceeded", limits=limits)
    if where.limits_hold:
        yield where.step(state(most), folios=1, part="at-the-limit", limits=limits)


def _max_ptes_none(where: _Where) -> Iterator[SelftestStep]:
    def state(empty: int) -> dict[str, Any]:
        return (_small(NR - empty) + _hole(empty)).vma()

    yield from _limited(where, state, NR // 2, {"max_ptes_none": NR // 2})


def _swapin_single_pte(where: _Where) -> Iterator[SelftestStep]:
    yield where.step((_swapped(1) + _small(NR - 1)).vma(), folios=1)


def _max_ptes_swap(where: _Where) -> Iterator[SelftestStep]:
    def state(out: int) -> dict[str, Any]:
        return (_swapped(out) + _small(NR - out)).vma()

    yield from _limited(where, state, MAX_PTES_SWAP)


def _single_pte_entry_compound(where: _Where) -> Iterator[SelftestStep]:
    yield where.step((_split(1) + _hole(NR - 1)).vma(), folios=1)


def _full_of_compound(where: _Where) -> Iterator[SelftestStep]:
    yield where.step(_split(NR).vma(), folios=1)


def _compound_extreme(where: _Where) -> Iterator[SelftestStep]:
    """Every entry maps the first page of another PMD-sized folio."""
    pages = _Pages()
    for folio in range(NR):
        pages += _split(1, folio)
    yield where.step(pages.vma(), folios=1)


def _fork(where: _Where) -> Iterator[SelftestStep]:
    """The parent is not advised, so khugepaged does not know it: it stands last."""
    child = (_shared_small("PD") + _small(1) + _hole(NR - 2)).vma()
    parent = (_shared_small("PAD") + _hole(NR - 1)).vma(mm=1, advice=None)
    yield where.step(child, parent, folios=1, looks=(MappedWhole(1, PMD, 0),), target=0)


def _of_huge_parent(
    where: _Where,
    own: int,
    folios: int,
    part: str = "",
    limits: Mapping[str, int] | None = None,
) -> SelftestStep:
    """A child that has copied the first `own` pages of what it shares with its parent."""
    parent = _shared_huge(own).vma()
    child = (_small(own) + _shared_split(own)).vma(mm=1)
    looks = (MappedWhole(0, PMD, 1),)
    return where.step(parent, child, folios=folios, looks=looks, part=part, limits=limits)


def _fork_compound(where: _Where) -> Iterator[SelftestStep]:
    yield _of_huge_parent(where, 1, 1, limits={"max_ptes_shared": NR - 1})


def _max_ptes_shared(where: _Where) -> Iterator[SelftestStep]:
    refused = 0 if where.limits_hold else 1
    yield _of_huge_parent(where, NR - MAX_PTES_SHARED - 1, refused, "exceeded")
    if where.limits_hold:
        yield _of_huge_parent(where, NR - MAX_PTES_SHARED, 1, "at-the-limit")


def _existing_thps(where: _Where) -> Iterator[SelftestStep]:
    yield where.step(_small(NR).vma(), folios=1, passes=2)


_ALL = frozenset(Context)
_AT_PMD = frozenset({Context.KHUGEPAGED, Context.MADVISE})

_CASES: dict[str, tuple[frozenset[Context], Callable[[_Where], Iterator[SelftestStep]]]] = {
    "collapse_full": (_ALL, _full),
    "collapse_empty": (_ALL, _empty),
    "collapse_single_mthp": (frozenset({Context.MTHP}), _single_mthp),
    "collapse_single_pte_entry": (_AT_PMD, _single_pte_entry),
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
