# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own cases, recorded: the same states made in a guest, and what its kernel did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mthp.compare.conformance import Conformance, run_scenario
from mthp.compare.selftest import look, wrong_errno
from mthp.compare.selftest_drafts import draft_of
from mthp.compare.selftest_states import Case, SelftestStep
from mthp.image.runs import FolioToken, PagesState
from mthp.image.scenario import Scenario, parse_scenario
from mthp.lab.session.record import NotBuilt, record
from mthp.lab.session.session import GuestSession
from mthp.words.profiles import DEFAULT, Profile
from mthp.worlds.build import build_world
from mthp.worlds.render import canonical, render_state

__all__ = ["findings", "record_cases", "same_state"]

Keep = Callable[[Mapping[str, Any]], None]


def record_cases(
    session: GuestSession, cases: Iterable[Case], kernel: str, profile: Profile, keep: Keep
) -> dict[str, tuple[str, ...]]:
    """Record every step of the cases; step id -> what was not as it must be.

    kernel: its release. keep: takes each scenario document, as it comes.
    """
    found: dict[str, tuple[str, ...]] = {}
    for case in cases:
        for step in case.steps:
            try:
                document = record(session, draft_of(case, step), kernel)
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
