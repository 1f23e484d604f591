# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp check and mthp replay: the race checker."""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from mthp.check.drawing import replay
from mthp.check.jobs import Row
from mthp.check.mutate import Tried, try_mutations
from mthp.check.records import MutantResult, MutantVerdict, Violation, WorldResult, is_not_run
from mthp.check.rows import Result
from mthp.check.scorecard import ScorecardRow, default_worlds, pair_jobs, scorecard_jobs
from mthp.check.search import Budget
from mthp.check.token import NO_MUTANT, NO_TASK, known
from mthp.check.trace import trace
from mthp.cli.check_jobs import run_jobs
from mthp.cli.litmus import run_litmus
from mthp.cli.options import UsageError, print_json, show
from mthp.cli.self_check import run_self_check
from mthp.explore.tasks import MAX_STEPS
from mthp.laws.table import LAWS
from mthp.races.cast.all import LAWFUL, RIVALS
from mthp.races.mutants.automatic import mutations
from mthp.races.mutants.rules import HALVES, MUTANTS
from mthp.races.protocol import in_force, protocol
from mthp.races.questions import QUESTIONS, Question
from mthp.races.stage import Size
from mthp.races.variant import VariantError
from mthp.races.world import PARTS, RaceWorld
from mthp.report.check import (
    covered_text,
    full_violation_lines,
    mutant_document,
    mutant_line,
    never_ran_lines,
    pairs_lines,
    scorecard_document,
    scorecard_tests,
    totals_lines,
    violation_document,
    violation_lines,
    world_line,
    world_test,
    worlds_document,
)
from mthp.report.itf import itf_document
from mthp.report.ktap import ktap_lines
from mthp.report.svg import svg_text
from mthp.words.files import check_target, replace_text
from mthp.words.streams import say

BROKEN = 4
"""Exit code: a law is broken."""
SAYS_NOTHING = 1
"""Exit code: what is in the engine's place never collapsed anything, or was never called."""
_NARROW, _WIDE = 80, 120


def run_check(args: argparse.Namespace) -> int:
    """Run `mthp check` and return its exit code."""
    for flag in ("list", "litmus", "self_check", "mutations", "mutant"):
        if args.ktap and getattr(args, flag):
            raise UsageError(
                f"--ktap is for worlds and the scorecard, not for --{flag.replace('_', '-')}"
            )
    if args.list:
        with _protocol(args):
            _list()
        return 0
    if args.litmus:
        return run_litmus(args)
    if args.herd or args.memory_model:
        raise UsageError("--herd and --memory-model are for --litmus")
    if args.self_check:
        if args.mutant is not None or args.mutations or args.all or args.pairs:
            what = "--self-check takes worlds, or --protocol"
            raise UsageError(f"{what}, and neither --mutant, --mutations, --all nor --pairs")
        with _protocol(args):
            chosen = args.world or args.rivals is not None or args.protocol
            return run_self_check(args, _chosen(args) if chosen else [])
    if args.seconds:
        raise UsageError("--seconds is for --self-check")
    several = [args.mutant, args.protocol, args.mutations, args.all or args.pairs or None]
    if sum(each is not None for each in several) > 1:
        what = "--mutant, --protocol, --mutations and --all (or --pairs)"
        raise UsageError(f"{what} exclude one another")
    if args.all or args.pairs or args.mutations:
        for flag, given in (("--itf", args.itf), ("--svg", args.svg), ("--full", args.full)):
            if given:
                raise UsageError(
                    f"{flag} is for one violation, not for --all, --pairs or --mutations"
                )
    _check_targets(args)
    if args.all or args.pairs:
        return _scorecard(args)
    if args.mutant is not None:
        return _mutant(args)
    if args.mutations is not None:
        return _mutations(args)
    with _protocol(args):
        return _worlds(args)


def run_replay(args: argparse.Namespace) -> int:
    """Run `mthp replay` and return its exit code."""
    _check_targets(args)
    with _protocol(args):
        try:
            violation = replay(args.token)
        except ValueError as error:
            raise UsageError(str(error)) from None
        _write_files(args, violation)
    if args.json:
        print_json(violation_document(violation))
    else:
        _draw(args, violation)
        if not violation.breaches:
            show("no law is broken in this execution")
    return BROKEN if violation.breaches else 0


def _check_targets(args: argparse.Namespace) -> None:
    """Raise FileError where a file that is asked for could not be written."""
    for file in (args.itf, args.svg):
        if file is not None:
            check_target(file)


def _write_files(args: argparse.Namespace, violation: Violation | None) -> None:
    """Write the execution for viewers of TLA+ traces and as a picture, if these files are asked for.

    Each is written whole or not at all.
    violation: None where no law was broken, and then there is nothing to write.
    """
    for file, text in ((args.itf, _itf_text), (args.svg, svg_text)):
        if file is not None and violation is None:
            say(f"no law is broken: {file} is not written")
        elif file is not None and violation is not None:
            replace_text(file, text(violation))


def _itf_text(violation: Violation) -> str:
    return json.dumps(itf_document(trace(violation.replay)), ensure_ascii=False) + "\n"


def _draw(args: argparse.Namespace, violation: Violation) -> None:
    lines = full_violation_lines if args.full else violation_lines
    show(*lines(violation, _width()))


# One profile


def _worlds(args: argparse.Namespace, mutant: str = NO_MUTANT) -> int:
    budget = _budget(args)
    jobs = [ScorecardRow(world, budget, mutant) for world in _chosen(args)]
    results = []
    for result in _in_order(jobs, run_jobs(args, jobs, _of(args, jobs))):
        assert isinstance(result, WorldResult)
        results.append(result)
        if not (args.json or args.ktap):
            show(world_line(result))
    violation = next((each.violation for each in results if each.violation is not None), None)
    _write_files(args, violation)
    if args.json:
        document = worlds_document(results)
        if (own := in_force()) is not None:
            document["protocol"] = own.document()
        print_json(document)
    elif args.ktap:
        show(*ktap_lines(list(map(world_test, results))))
    elif violation is not None:
        show("")
        _draw(args, violation)
    elif args.protocol is not None:
        show("", *never_ran_lines(each.ran for each in results))
    if any(each.is_alarm for each in results):
        return BROKEN
    is_own = args.protocol is not None or mutant != NO_MUTANT
    return SAYS_NOTHING if is_own and all(each.reason for each in results) else 0


def _in_order(jobs: Sequence[ScorecardRow], rows: Iterator[Row]) -> Iterator[Result]:
    """The results in the order of the jobs, each as soon as it can be told."""
    waiting = list(jobs)
    known: dict[ScorecardRow, Result] = {}
    for job, result in rows:
        known[job] = result
        while waiting and waiting[0] in known:
            yield known[waiting.pop(0)]


def _of(args: argparse.Namespace, jobs: Sequence[ScorecardRow]) -> str:
    """What is said to tell which searches a file to go on from belongs to."""
    names = ", ".join(job.name for job in jobs)
    what = names if len(jobs) < 3 else f"{len(jobs)} worlds of {jobs[0].name}"
    own = in_force()
    return what if own is None else f"{what}, with the protocol {own.digest}"


def _chosen(args: argparse.Namespace) -> list[RaceWorld]:
    """The worlds asked for."""
    profile = args.profile or "7.3"
    if not args.world and args.rivals is None:
        return [*default_worlds(profile), *_own_worlds(profile)]
    sizes = [args.world] if args.world else [size.name.lower() for size in Size]
    if args.rivals is None:
        casts: list[tuple[str, ...]] = [(), *((name,) for name in LAWFUL)]
    else:
        casts = [() if args.rivals == NO_TASK else tuple(args.rivals.split("+"))]
    try:
        return [RaceWorld.parse(size, profile, cast) for size in sizes for cast in casts]
    except ValueError as error:
        raise UsageError(str(error)) from None


def _own_worlds(profile: str) -> list[RaceWorld]:
    """Those that the protocol file brings along."""
    own = in_force()
    worlds = []
    for text in own.worlds if own is not None else ():
        name, _, rivals = text.partition(":")
        names = tuple(rivals.split("+")) if rivals not in ("", NO_TASK) else ()
        try:
            worlds.append(RaceWorld.parse(name, profile, names))
        except ValueError as error:
            raise VariantError(f"WORLDS: {error}") from None
    return worlds


@contextmanager
def _protocol(args: argparse.Namespace) -> Iterator[None]:
    """The user's protocol, if one is given; what it replaced is said first."""
    file = args.protocol
    try:
        with nullcontext() if file is None else protocol(Path(file)) as own:
            if own is not None and not (args.json or args.ktap):
                show(f"{own.file}: {own.rule}")
                show(*(f"replaces {each}" for each in own.replaces), "")
            yield
    except VariantError as error:
        raise UsageError(f"--protocol {file}: {error}") from None


# Mutants


def _mutant(args: argparse.Namespace) -> int:
    found = known(args.mutant)
    if found is None:
        names = ", ".join((*MUTANTS, *QUESTIONS))
        raise UsageError(f"no mutant {args.mutant!r}; there are {names}")
    if isinstance(found, Question) or found.masked_by or args.world or args.rivals:
        return _worlds(args, args.mutant)
    if args.profile is not None:
        found = replace(found, world=replace(found.world, profile=args.profile))
    jobs = [ScorecardRow(found, _budget(args))]
    ((_, result),) = run_jobs(args, jobs, jobs[0].name)
    assert isinstance(result, MutantResult)
    _write_files(args, result.violation)
    if args.json:
        print_json({"schema_version": 1, "mutants": [mutant_document(result)]})
    else:
        show(f"{result.id}: {result.rule}", f"where: {result.where}", "")
        if result.violation is None:
            what = "not run" if is_not_run(result.ran) else "no law is broken"
            show(f"{what}; {covered_text(result.covered)}")
        else:
            _draw(args, result.violation)
    if result.violation is None:
        return SAYS_NOTHING if is_not_run(result.ran) else 0
    return BROKEN


def _mutations(args: argparse.Namespace) -> int:
    every = list(mutations(args.mutations))
    rows = []
    for each in try_mutations(every, args.jobs):
        what = f"{each.mutation.function}:{each.mutation.line}: {each.mutation.what}"
        laws = ", ".join(map(str, each.laws))
        rows.append(
            {
                "mutation": what,
                "laws": list(each.laws),
                "world": each.world or None,
                "worlds": each.worlds,
                "executions": each.executions,
                "bounded": list(each.bounded),
            }
        )
        if not args.json:
            show(f"{f'law {laws}' if laws else _not_caught(each):34} {what}")
    if args.json:
        print_json({"schema_version": 1, "module": args.mutations, "mutations": rows})
    else:
        show(f"{sum(bool(row['laws']) for row in rows)} of {len(every)} caught")
    return 0


def _not_caught(tried: Tried) -> str:
    """Say that it was not caught: it cannot be in these worlds, unless one is bounded."""
    if tried.bounded:
        return f"not caught; {len(tried.bounded)} of {tried.worlds} worlds bounded"
    return f"not in all of {tried.worlds} worlds"


# The scorecard


def _scorecard(args: argparse.Namespace) -> int:
    budget = _budget(args)
    jobs: list[ScorecardRow] = scorecard_jobs(budget) if args.all or not args.pairs else []
    if args.pairs:
        jobs += pair_jobs(budget)
    worlds: list[WorldResult] = []
    mutants: list[MutantResult] = []
    for _, result in run_jobs(args, jobs, "the scorecard"):
        if isinstance(result, WorldResult):
            worlds.append(result)
            line = world_line(result)
        else:
            mutants.append(result)
            line = mutant_line(result)
        if not (args.json or args.ktap):
            show(line)
    worlds.sort(key=lambda each: (each.profile, each.world, each.tasks))
    order = {name: at for at, name in enumerate((*MUTANTS, *HALVES))}
    mutants.sort(key=lambda each: order[each.id])
    if args.json:
        print_json(scorecard_document(worlds, mutants))
    elif args.ktap:
        show(*ktap_lines(scorecard_tests(worlds, mutants)))
    else:
        _totals(worlds, mutants)
    alarms = any(each.is_alarm for each in worlds)
    missed = any(each.verdict is MutantVerdict.MISSED for each in mutants)
    return BROKEN if alarms else 1 if missed else 0


def _totals(worlds: list[WorldResult], mutants: list[MutantResult]) -> None:
    show("")
    searches = [each.ran for each in worlds]
    for line in (*totals_lines(worlds), *never_ran_lines(searches), *pairs_lines(worlds)):
        show(line)
    if mutants:
        verdicts = Counter(each.verdict for each in mutants)
        show(", ".join(f"{verdicts[verdict]} {verdict.value}" for verdict in MutantVerdict))


# Words


def _list() -> None:
    lists = {
        "parts of a world's name": PARTS,
        "rivals": {rival.name: rival.what for rival in RIVALS.values()},
        "mutants": {mutant.id: mutant.rule for mutant in MUTANTS.values()},
        "questions": {question.id: question.asked for question in QUESTIONS.values()},
        "laws": {str(law.number): law.sentence for law in LAWS.values()},
    }
    for heading, lines in lists.items():
        show(f"{heading}:")
        for name, what in lines.items():
            show(f"  {name:20}{what}")


def _budget(args: argparse.Namespace) -> Budget:
    if args.sample is not None and args.preemptions is not None:
        raise UsageError("--sample and --preemptions exclude one another")
    steps = args.steps or MAX_STEPS
    budget = Budget(args.executions, args.sample, args.seed or 0, args.preemptions, steps)
    if args.resume and not budget.is_resumable:
        raise UsageError("--resume goes on with neither --sample nor --preemptions")
    return budget


def _width() -> int:
    return min(max(shutil.get_terminal_size((100, 24)).columns, _NARROW), _WIDE)
