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
from mthp.compare.selftest_cases import Case, Errno, MappedWhole, SelftestStep
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

__all__ = [
    "CaseRun",
    "Row",
    "findings",
    "record_cases",
    "run_case",
    "same_state",
    "side_by_side",
]


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
    return f"{found} {'PMD' if each.order == PMD_ORDER else f'folio of order {each.order}'} mapped whole"


def folios_of(state: PagesState, order: int) -> int:
    """Folios of that order in a mapping, each mapped whole and in one piece; at PMD order, PMDs
    that map one."""
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
    """Record every step of the cases; step id -> what was not as it must be.

    kernel: its release. keep: takes each scenario document, as it comes.
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
    """What is wrong with a record: another state than the engine's, a final one that the test
    would not accept, or a pass that the engine runs otherwise."""
    if not same_state(step, recorded):
        yield "the guest's state is not the one the engine starts from"
    for number, each in enumerate(recorded.passes):
        if step.errno is not None:
            yield from wrong_errno(step, number, each.errno)
    yield from look(step, recorded.passes[-1].final)
    score = Conformance()
    run_scenario(recorded, profile, score)
    for mismatch in score.mismatches:
        what = f"kernel {mismatch.expected}, engine {mismatch.got}"
        yield f"pass {mismatch.pass_ + 1}, {mismatch.where}: {what}"


def same_state(step: SelftestStep, recorded: Scenario) -> bool:
    """Whether a record starts from the step's state, as the engine would show it: page by page,
    entry by entry, flag by flag. Where on the swap device a page lies is the guest's own affair."""
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
    order = PMD_ORDER if mthp_order is None else mthp_order
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
