# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of the kernel's own cases as programs: the system calls that make them in a guest.

Kernel: tools/testing/selftests/mm/khugepaged.c. What the test does with faults that give huge pages
is done with MADV_COLLAPSE here: while a program builds, no size is enabled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mthp.compare.selftest_states import MAX_PTES_SHARED, MAX_PTES_SWAP, NR, Case, SelftestStep
from mthp.image.scenario_values import Action
from mthp.lab.program.program import BASE, Draft, Target, parse
from mthp.words.settings import Enabled, Settings

__all__ = ["draft_of"]

HUGEPAGE, NOHUGEPAGE, DONTNEED, PAGEOUT, COLLAPSE = 14, 15, 4, 21, 25
_START = ("new", f"s base {BASE}")
_MAPPED = (*_START, f"s mmap 0 {NR}")
_WRITTEN = (*_MAPPED, f"s wr 0 {NR}")
_HUGE = (*_WRITTEN, f"s adv 0 {NR} {COLLAPSE}")
_SPLIT_PMD = (f"adv 0 1 {NOHUGEPAGE}", f"adv 0 {NR} {NOHUGEPAGE}")


def draft_of(case: Case, step: SelftestStep) -> Draft:
    """The program of one step of a case, and the action over what it makes."""
    who = "t" if "fork" in case.name or "shared" in case.name else "s"
    ops = _OPS[case.name](case, step)
    madvise = step.document["action"] == Action.MADVISE_COLLAPSE.value
    return Draft(
        id=step.id,
        family="selftest",
        ops=parse(ops),
        finish=parse(_registered(case, who)),
        settings=_settings(step),
        action=Action(step.document["action"]),
        target=Target(who, 0, who) if madvise else None,
        passes=step.passes,
    )


def _settings(step: SelftestStep) -> Settings:
    """The step's; where they switch everything off, a size keeps khugepaged's thread.

    It is the largest below the PMD's: of smaller ones, swap-in would make use.
    """
    settings = Settings.from_json(step.document["settings"])
    if step.document["action"] == Action.MADVISE_COLLAPSE.value:
        sizes = {**settings.sizes, max(settings.sizes) - 1: Enabled.MADVISE}
        return settings.replace(sizes=sizes)
    return settings


def _registered(case: Case, who: str) -> Iterator[str]:
    """MADV_HUGEPAGE on everything that is to be scanned, as a real change of its flags."""
    pages = 4 * NR if case.name == "collapse_full" and case.order == 9 else NR
    for process in ("s", "t") if case.name in _ADVISED_PARENTS else (who,):
        yield f"{process} adv 0 {pages} {NOHUGEPAGE}"
        yield f"{process} adv 0 {pages} {HUGEPAGE}"


def _exceeds(step: SelftestStep) -> int:
    """1 where the step is one beyond a limit."""
    return int(step.id.endswith("/exceeded"))


def _full(case: Case, step: SelftestStep) -> tuple[str, ...]:
    pages = step.document["vmas"][0]["pages"]
    return (*_START, f"s mmap 0 {pages}", f"s wr 0 {pages}")


def _empty(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return _MAPPED


def _single_mthp(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return (*_MAPPED, f"s wr 0 {1 << case.order}")


def _single_pte_entry(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return (*_MAPPED, "s wr 0 1")


def _max_ptes_none(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return (*_MAPPED, f"s wr 0 {NR // 2 - _exceeds(step)}")


def _compound_single(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return (*_HUGE, f"s adv 0 {NR} {NOHUGEPAGE}", f"s adv 1 {NR - 1} {DONTNEED}")


def _compound_full(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return (*_HUGE, *(f"s {op}" for op in _SPLIT_PMD))


def _compound_extreme(case: Case, step: SelftestStep) -> tuple[str, ...]:
    """A mapping slides down by a page past one aligned place, where each time a new huge page is
    made and all of it but its first page is dropped."""
    place, aside = NR, 4 * NR
    ops = [*_START, f"s mmap {place} {2 * NR}"]
    for start in range(place, place - NR, -1):
        ops += (
            f"s wr {place} {NR}",
            f"s adv {place} {NR} {COLLAPSE}",
            f"s adv {place + 1} {NR - 1} {DONTNEED}",
            f"s mremap {start} {2 * NR} {aside}",
            f"s mremap {aside} {2 * NR} {start - 1}",
        )
    return (*ops, f"s munmap {place} {NR}")


def _swapin_single_pte(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return (*_WRITTEN, f"s adv 0 1 {PAGEOUT}")


def _max_ptes_swap(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return (*_WRITTEN, f"s adv 0 {MAX_PTES_SWAP + _exceeds(step)} {PAGEOUT}")


def _fork(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return (*_MAPPED, "s wr 0 1", "s forkto t", "t wr 1 1")


def _fork_compound(case: Case, step: SelftestStep) -> tuple[str, ...]:
    shared = (*_HUGE, f"s adv 0 {NR} {HUGEPAGE}", "s forkto t")
    return (*shared, *(f"t {op}" for op in _SPLIT_PMD), "t wr 0 1")


def _max_ptes_shared(case: Case, step: SelftestStep) -> tuple[str, ...]:
    own = NR - MAX_PTES_SHARED
    exceeds = int(not step.id.endswith("/at-the-limit"))
    return (*_HUGE, f"s adv 0 {NR} {HUGEPAGE}", "s forkto t", f"t wr 0 {own - exceeds}")


def _existing_thps(case: Case, step: SelftestStep) -> tuple[str, ...]:
    return _WRITTEN


_ADVISED_PARENTS = ("collapse_fork_compound", "collapse_max_ptes_shared")

_OPS: dict[str, Callable[[Case, SelftestStep], tuple[str, ...]]] = {
    "collapse_full": _full,
    "collapse_empty": _empty,
    "collapse_single_mthp": _single_mthp,
    "collapse_single_pte_entry": _single_pte_entry,
    "collapse_max_ptes_none": _max_ptes_none,
    "collapse_single_pte_entry_compound": _compound_single,
    "collapse_full_of_compound": _compound_full,
    "collapse_compound_extreme": _compound_extreme,
    "collapse_swapin_single_pte": _swapin_single_pte,
    "collapse_max_ptes_swap": _max_ptes_swap,
    "collapse_fork": _fork,
    "collapse_fork_compound": _fork_compound,
    "collapse_max_ptes_shared": _max_ptes_shared,
    "madvise_collapse_existing_thps": _existing_thps,
}
"""Name -> the operations that make its state."""
