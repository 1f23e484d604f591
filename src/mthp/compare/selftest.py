# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own khugepaged cases on the engine, judged as the test judges the kernel."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mthp.compare.conformance import ENDLESS_PAGES_TO_SCAN, run_pass
from mthp.compare.selftest_states import PMD, Case, Errno, MappedWhole, SelftestStep
from mthp.image.runs import PageKind, PagesState, PteState
from mthp.image.scenario import parse_scenario
from mthp.image.scenario_values import Action
from mthp.lab.session.kselftest import CaseVerdict, Output
from mthp.laws.census import Census
from mthp.laws.watch import check_collapse, check_quiescent
from mthp.words.profiles import Profile
from mthp.worlds.build import BuiltWorld, build_scenario

__all__ = ["CaseRun", "Row", "folios_of", "look", "run_case", "side_by_side", "wrong_errno"]


@dataclass(frozen=True)
class CaseRun:
    """A case as the engine ran it. findings: what was not as it must be, one line each."""

    case: Case
    findings: tuple[str, ...]

    @property
    def verdict(self) -> CaseVerdict:
        """OK where there are no findings."""
        return CaseVerdict.NOT_OK if self.findings else CaseVerdict.OK


def run_case(case: Case, profile: Profile) -> CaseRun:
    """Build each state, collapse, and look."""
    findings = [f"{step.id}: {line}" for step in case.steps for line in _run_step(step, profile)]
    return CaseRun(case, tuple(findings))


def _run_step(step: SelftestStep, profile: Profile) -> Iterator[str]:
    scenario = parse_scenario(step.document)
    world = build_scenario(scenario, profile)
    world.kernel.settings = scenario.settings.replace(pages_to_scan=ENDLESS_PAGES_TO_SCAN)
    before = Census(world.kernel)
    final: Sequence[PagesState] = [vma.initial for vma in scenario.vmas]
    for number in range(step.passes):
        result = run_pass(world, scenario)
        if result.errno == -errno.EAGAIN:
            result = run_pass(world, scenario)
        if scenario.action is Action.MADVISE_COLLAPSE:
            yield from wrong_errno(step, number, result.errno)
        final = result.final
    yield from look(step, final)
    yield from _broken_laws(world, before)


def _broken_laws(world: BuiltWorld, before: Census) -> Iterator[str]:
    """What the test checks byte by byte: every page holds what it held."""
    broken = check_quiescent(world.kernel, world.khugepaged, before.outside)
    broken += check_collapse(before, world.kernel)
    yield from (f"law {each.law}: {each.text}" for each in broken)


def wrong_errno(step: SelftestStep, number: int, got: int | None) -> Iterator[str]:
    """A complaint where a call of MADV_COLLAPSE did not return as the test expects."""
    if (step.errno is Errno.ZERO) != (got == 0):
        wanted = "0" if step.errno is Errno.ZERO else "an error"
        yield f"call {number + 1}: MADV_COLLAPSE returned {got}, expected {wanted}"


def look(step: SelftestStep, final: Sequence[PagesState]) -> Iterator[str]:
    """A complaint for every mapping that does not hold what the test counts there."""
    for each in step.looks:
        found = folios_of(final[each.vma], each.order)
        if found != each.folios:
            yield f"vma {each.vma}: {_count(found, each)}, expected {each.folios}"


def _count(found: int, each: MappedWhole) -> str:
    return f"{found} {'PMD' if each.order == PMD else f'folio of order {each.order}'} mapped whole"


def folios_of(state: PagesState, order: int) -> int:
    """Folios of that order in a mapping, each mapped whole and in one piece; at PMD order, PMDs
    that map one."""
    if order == PMD:
        huge = sum(pages for pages, entry in state.ptes or () if entry.state is PteState.HUGE)
        return huge >> PMD
    return sum(
        1
        for pages, token in state.folios
        if token.kind is PageKind.FOLIO
        and (token.order, token.index, pages) == (order, 0, 1 << order)
    )


# --- side by side ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A case in a context: the kernel's verdict in the guest, and the engine's; None where that
    side has no such case. order: what is collapsed to, None where nothing is. recorded: whether
    the guest's kernel, given the engine's states, did in every detail what the engine does."""

    name: str
    context: str
    order: int | None
    kernel: CaseVerdict | None = None
    engine: CaseVerdict | None = None
    recorded: CaseVerdict | None = None

    @property
    def passed(self) -> bool:
        """No side says anything but ok, or that it was skipped."""
        return {self.kernel, self.engine, self.recorded} <= {CaseVerdict.OK, CaseVerdict.SKIP, None}


def side_by_side(
    output: Output | None,
    runs: Sequence[CaseRun],
    mthp_order: int | None,
    records: Mapping[str, Sequence[str]] | None = None,
) -> list[Row]:
    """The rows of one run of the test (None: it was not run) and of the engine's cases.

    records: step id -> what was wrong with its record; None where none was made.
    """
    order = PMD if mthp_order is None else mthp_order
    rows: dict[tuple[str, str], Row] = {}
    for found in output.cases if output else ():
        about = order if found.context else None
        row = Row(found.name, found.context, about, kernel=found.verdict)
        rows[found.name, found.context] = row
    for run in runs:
        key = run.case.name, run.case.context.value
        lacking = None if output is None else CaseVerdict.NOT_RUN
        row = rows.get(key, Row(*key, order, kernel=lacking))
        recorded = None if records is None else _recorded(run.case, records)
        rows[key] = replace(row, engine=run.verdict, recorded=recorded)
    return list(rows.values())


def _recorded(case: Case, records: Mapping[str, Sequence[str]]) -> CaseVerdict:
    if any(step.id not in records for step in case.steps):
        return CaseVerdict.NOT_RUN
    wrong = any(records[step.id] for step in case.steps)
    return CaseVerdict.NOT_OK if wrong else CaseVerdict.OK
