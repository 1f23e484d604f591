# SPDX-License-Identifier: GPL-2.0-or-later
"""Explore worlds and hunt mutants: the race checker's answers as records."""

from __future__ import annotations

import time

from mthp.check.drawing import violation_of
from mthp.check.lines import marked_lines
from mthp.check.records import MutantResult, MutantVerdict, WorldResult
from mthp.check.search import Budget, SearchControl, of_laws, search
from mthp.check.token import NO_MUTANT, as_mutant
from mthp.laws.table import LAWS
from mthp.races.findings import findings_of, tolerated
from mthp.races.mutants.mutant import Mutant
from mthp.races.variant import applied
from mthp.races.world import RaceWorld

ALL_LAWS = frozenset(LAWS)


def check_world(
    world: RaceWorld,
    budget: Budget | None = None,
    mutant: str = NO_MUTANT,
    control: SearchControl | None = None,
) -> WorldResult:
    """One world, as it is or without a mutant's rule."""
    began = time.perf_counter()
    control = control or SearchControl()
    with as_mutant(mutant), marked_lines() as lines:
        control.ran = lines.ran
        outcome = search(world, budget or Budget(), ALL_LAWS - tolerated(world), control)
        ran = lines.ran()
        known = findings_of(world)
        seen = [each for each in known if any(each.is_it(one.broken) for one in outcome.findings)]
        unknown = [
            each for each in outcome.findings if not any(one.is_it(each.broken) for one in known)
        ]
        as_is = outcome.findings if mutant == NO_MUTANT else ()
        finding = next(iter(unknown or as_is), None)
        violation = None
        if finding is not None:
            violation = violation_of(mutant, world, finding, frozenset({finding.broken.law}))
    return WorldResult(
        world.profile,
        world.hook.value,
        world.name,
        world.tasks,
        outcome.coverage,
        violation,
        ", ".join(each.id for each in seen) if finding is not None and not unknown else "",
        time.perf_counter() - began,
        ran,
        world.never_collapses,
    )


def hunt(
    mutant: Mutant, budget: Budget | None = None, control: SearchControl | None = None
) -> MutantResult:
    """Look for the breach a mutant is listed with; where it is masked, for any, in everything."""
    began = time.perf_counter()
    laws = ALL_LAWS if mutant.masked_by else frozenset(mutant.laws)
    control = control or SearchControl()
    with applied(mutant.edits), marked_lines() as lines:
        control.ran = lines.ran
        everything = Budget() if mutant.masked_by else budget or Budget()
        outcome = search(mutant.world, everything, laws, control)
        seconds, ran = time.perf_counter() - began, lines.ran()
        finding = of_laws(outcome.findings, laws)
        violation = None
        if finding is not None:
            violation = violation_of(mutant.id, mutant.world, finding, laws)
    verdict = MutantVerdict.MASKED if mutant.masked_by else MutantVerdict.MISSED
    return MutantResult(
        mutant.id,
        mutant.where,
        mutant.rule,
        verdict if violation is None else MutantVerdict.CAUGHT,
        tuple(sorted({each.law for each in violation.breaches})) if violation is not None else (),
        mutant.laws,
        outcome.coverage,
        violation,
        mutant.masked_by,
        seconds,
        ran,
    )
