# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own khugepaged cases: run on the engine, recorded in a guest, and set side by side.

The engine is judged as the test judges the kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mthp.compare.conformance import ENDLESS_PAGES_TO_SCAN, run_pass, run_scenario
from mthp.compare.records import Conformance
from mthp.compare.selftest_cases import Case, MappedWhole, SelftestStep
from mthp.image.runs import FolioToken, PageKind, PagesState, PteState
from mthp.image.scenario import Scenario, parse_scenario
from mthp.image.scenario_values import Action
from mthp.lab.geometry import PMD_ORDER
from mthp.lab.session.record import NotBuilt, record
from mthp.lab.session.selftest import CaseVerdict, Output
from mthp.lab.session.session import GuestSession
from mthp.laws.census import Census
from mthp.laws.watch import check_collapse, check_quiescent
from mthp.words.profiles import DEFAULT, Profile
from mthp.worlds.build import BuiltWorld, build_world
from mthp.worlds.render import canonical, render_state


@dataclass(frozen=True)
class CaseRun:
    """A case that the engine ran. findings: one line for each wrong result."""

    case: Case
    findings: tuple[str, ...]

    @property
    def verdict(self) -> CaseVerdict:
        """OK if there are no findings."""
        return CaseVerdict.NOT_OK if self.findings else CaseVerdict.OK


def run_case(case: Case, profile: Profile) -> CaseRun:
    """Run a case on the engine: build each state, collapse, and check the result."""
    findings = [f"{step.id}: {line}" for step in case.steps for line in _run_step(step, profile)]
    return CaseRun(case, tuple(findings))


def _run_step(step: SelftestStep, profile: Profile) -> Iterator[str]:
    scenario = parse_scenario(step.document)
    world = build_world(scenario, profile)
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
    """One line for each broken law; the test compares every byte instead."""
    broken = check_quiescent(world.kernel, world.khugepaged, before.outside)
    broken += check_collapse(before, world.kernel)
    yield from (f"law {each.law}: {each.text}" for each in broken)


def wrong_errno(step: SelftestStep, number: int, got: int | None) -> Iterator[str]:
    """A line if a call of MADV_COLLAPSE did not return what the test expects."""
    if step.succeeds != (got == 0):
        wanted = "0" if step.succeeds else "an error"
        yield f"call {number + 1}: MADV_COLLAPSE returned {got}, expected {wanted}"


def look(step: SelftestStep, final: Sequence[PagesState]) -> Iterator[str]:
    """A line for every mapping that does not hold the folios that the test counts."""
    for each in step.looks:
        found = folios_of(final[each.vma], each.order)
        if found != each.folios:
            yield f"vma {each.vma}: {_count(found, each)}, expected {each.folios}"


def _count(found: int, each: MappedWhole) -> str:
    return f"{found} {'PMD' if each.order == PMD_ORDER else f'folio of order {each.order}'} mapped whole"


def folios_of(state: PagesState, order: int) -> int:
    """How many folios of that order a mapping holds, each mapped whole and in one piece; at PMD
    order, it counts the PMDs that map one."""
    if order == PMD_ORDER:
        huge = sum(pages for pages, entry in state.ptes or () if entry.state is PteState.HUGE)
        return huge >> PMD_ORDER
    return sum(
        1
        for pages, token in state.folios
        if token.kind is PageKind.FOLIO
        and (token.order, token.index, pages) == (order, 0, 1 << order)
    )


# --- recorded in a guest --------------------------------------------------------------------


def record_cases(
    session: GuestSession,
    cases: Iterable[Case],
    kernel: str,
    profile: Profile,
    keep: Callable[[Mapping[str, Any]], None],
) -> dict[str, tuple[str, ...]]:
    """Record every step of the cases; step id -> one line for each wrong result.

    kernel: its release. keep: called with each scenario document.
    """
    found: dict[str, tuple[str, ...]] = {}
    for case in cases:
        for step in case.steps:
            try:
                document = record(session, step.draft, kernel)
            except NotBuilt as error:
                found[step.id] = (f"not built: {error}",)
                continue
            keep(document)
            found[step.id] = tuple(findings(step, parse_scenario(document), profile))
    return found


def findings(step: SelftestStep, recorded: Scenario, profile: Profile) -> Iterator[str]:
    """One line for each thing wrong with a record: its state is not the engine's, its final state is
    not what the test expects, or the engine runs a pass differently."""
    if not same_state(step, recorded):
        yield "the guest's state is not the one the engine starts from"
    for number, each in enumerate(recorded.passes):
        if step.succeeds is not None:
            yield from wrong_errno(step, number, each.errno)
    yield from look(step, recorded.passes[-1].final)
    score = Conformance()
    run_scenario(recorded, profile, score)
    for mismatch in score.mismatches:
        what = f"kernel {mismatch.expected}, engine {mismatch.got}"
        yield f"pass {mismatch.pass_ + 1}, {mismatch.where}: {what}"


def same_state(step: SelftestStep, recorded: Scenario) -> bool:
    """Whether a record starts from the step's state as the engine builds it, in every page and PTE.

    The place of a page on the swap device does not count.
    """
    world = build_world(parse_scenario(step.document), DEFAULT)
    ours = render_state(world.kernel, world.vmas)
    theirs = [vma.initial for vma in recorded.vmas]
    return len(ours) == len(theirs) and all(
        _same_pages(a, b) for a, b in zip(canonical(ours), canonical(theirs), strict=True)
    )


def _same_pages(ours: PagesState, theirs: PagesState) -> bool:
    if list(map(_anywhere, ours.folio_pages())) != list(map(_anywhere, theirs.folio_pages())):
        return False
    return list(ours.pte_pages()) == list(theirs.pte_pages())


def _anywhere(token: FolioToken) -> FolioToken:
    return token if token.swap_offset is None else replace(token, swap_offset=None)


# --- side by side ---------------------------------------------------------------------------


@dataclass(frozen=True)
class SelftestRow:
    """A case in a context, with the verdicts of the guest's kernel and of the engine.

    A verdict is None where that side has no such case. order: what is collapsed to; None where nothing
    is. recorded: OK if the guest's kernel, given the engine's states, did exactly what the engine does.
    """

    name: str
    context: str
    order: int | None
    kernel: CaseVerdict | None = None
    engine: CaseVerdict | None = None
    recorded: CaseVerdict | None = None

    @property
    def passed(self) -> bool:
        """Whether every verdict is ok or skipped."""
        return {self.kernel, self.engine, self.recorded} <= {CaseVerdict.OK, CaseVerdict.SKIP, None}


def side_by_side(
    output: Output | None,
    runs: Sequence[CaseRun],
    mthp_order: int | None,
    records: Mapping[str, Sequence[str]] | None = None,
) -> list[SelftestRow]:
    """The rows for one run of the test (None: it was not run) and for the engine's cases.

    records: step id -> what was wrong with its record; None if nothing was recorded.
    """
    order = PMD_ORDER if mthp_order is None else mthp_order
    rows: dict[tuple[str, str], SelftestRow] = {}
    for found in output.cases if output else ():
        about = order if found.context else None
        row = SelftestRow(found.name, found.context, about, kernel=found.verdict)
        rows[found.name, found.context] = row
    for run in runs:
        key = run.case.name, run.case.context.value
        lacking = None if output is None else CaseVerdict.NOT_RUN
        row = rows.get(key, SelftestRow(*key, order, kernel=lacking))
        recorded = None if records is None else _recorded(run.case, records)
        rows[key] = replace(row, engine=run.verdict, recorded=recorded)
    return list(rows.values())


def _recorded(case: Case, records: Mapping[str, Sequence[str]]) -> CaseVerdict:
    if any(step.id not in records for step in case.steps):
        return CaseVerdict.NOT_RUN
    wrong = any(records[step.id] for step in case.steps)
    return CaseVerdict.NOT_OK if wrong else CaseVerdict.OK
