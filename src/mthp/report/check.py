# SPDX-License-Identifier: GPL-2.0-or-later
"""The race checker's records as text and as documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from textwrap import wrap
from typing import Any

from mthp.check.records import (
    Call,
    MutantResult,
    MutantVerdict,
    Ran,
    Verdict,
    Violation,
    WorldResult,
    is_not_run,
    joined,
)
from mthp.explore.outcome import Coverage, Extent, Results
from mthp.report.ktap import KtapTest, KtapVerdict, ktap_group
from mthp.report.race import again, function_of, headline, race_lines
from mthp.words.results import ScanResult

SCHEMA_VERSION = 1
_GAP = 2
_MIN_COLUMN = 26


def covered_text(covered: Coverage) -> str:
    """Says what was covered, and why by the reference explorer where it had to be."""
    number = f"{covered.executions:,} execution{'' if covered.executions == 1 else 's'}"
    if covered.kind is Extent.EXHAUSTIVE:
        text = f"exhaustive in this world with these tasks: {number}"
    elif covered.kind is Extent.SAMPLED:
        text = f"sampled: {number} from seed {covered.seed}"
    else:
        text = f"bounded: {number}; {covered.bound}"
    return f"{text}; reference explorer: {covered.refused}" if covered.refused else text


def violation_lines(violation: Violation, width: int = 100) -> list[str]:
    """Draws the race as kernel lists do, then says what it breaks and how to run it again."""
    return [*race_lines(violation, width), "", *_ends(violation, width)]


def full_violation_lines(violation: Violation, width: int = 100) -> list[str]:
    """Draws every call of every CPU, and says the same."""
    return [*_columns(violation, width), "", *_ends(violation, width)]


def _ends(violation: Violation, width: int) -> list[str]:
    lines = []
    for breach in violation.breaches:
        lines.append(f"law {breach.law} is broken: {breach.text}")
        lines += [f"    {line}" for line in wrap(f"the law: {breach.sentence}", width - 4)]
    for warning in violation.warnings:
        lines.append(f"warned once, then went on: {warning}")
    lines.append(f"{violation.steps} steps, {violation.switches} switches between CPUs")
    lines.append(f"run it again: {again(violation)}")
    return lines


def _columns(violation: Violation, width: int) -> list[str]:
    tasks = violation.tasks
    column = max(_MIN_COLUMN, (width - _GAP * (len(tasks) - 1)) // len(tasks))
    offset = [number * (column + _GAP) for number in range(len(tasks))]
    lines = [
        "".join(f"CPU{n} {task}".ljust(column + _GAP) for n, task in enumerate(tasks)).rstrip()
    ]
    lines.append("".join(("-" * column).ljust(column + _GAP) for _ in tasks).rstrip())
    held: dict[int, tuple[str, ...]] = {}
    for call in _folded(violation.calls):
        if held.get(call.task, ()) != call.locks:
            held[call.task] = call.locks
            locks = "[" + ", ".join(call.locks) + "]"
            lines += [" " * offset[call.task] + part for part in wrap(locks, column)]
        lines.append(" " * offset[call.task] + "  " + call.function[: column - 2])
    return lines


def _folded(calls: Sequence[Call]) -> Iterable[Call]:
    """Leaves out the taking and giving back of locks, which shows in the locks held."""
    others = (call for call in calls if not call.function.endswith((": lock", ": unlock")))
    return (call for call, _ in groupby(others))


def world_line(result: WorldResult) -> str:
    """Says in one line what a world came to."""
    hook = " (the cache hook walks)" if result.hook == "walks" else ""
    what = result.verdict.value
    if result.verdict is Verdict.BROKEN:
        what = what.upper()
    elif result.verdict is Verdict.EXPECTED:
        what = f"{result.expected_finding}, expected"
    covered = covered_text(result.covered)
    if result.clean:
        covered += f"; {result.reason or results_text(result.covered.results)}"
    against = " + ".join(result.tasks[1:]) or "alone"
    name = f"{result.profile:9}{result.world:13} {against}{hook}"
    return f"{name:52} {what:18} {covered}, {result.seconds:.1f} s"


def results_text(results: Results) -> str:
    """How many collapses succeeded, and how many were refused for what reason."""
    first = sorted(results, key=lambda each: each[0] != ScanResult.SUCCEED.string)
    return "collapses: " + ", ".join(f"{often:,} {what}" for what, often in first)


def totals_lines(worlds: Sequence[WorldResult]) -> list[str]:
    """How many worlds came to what, and why some of them say nothing."""
    names = {
        Verdict.CLEAN: "clean, explored exhaustively",
        Verdict.NO_BREACH: "no breach found, but bounded",
        Verdict.EXPECTED: "with the expected finding",
    }
    lines = [f"{len(worlds)} worlds"]
    for verdict in Verdict:
        reasons = Counter(each.reason for each in worlds if each.verdict is verdict)
        if reasons:
            lines.append(f"{reasons.total():6} {names.get(verdict, verdict.value)}")
        lines += [f"{often:12} {why}" for why, often in reasons.most_common() if why]
    return lines


def never_ran_lines(searches: Iterable[Ran]) -> list[str]:
    """Which lines of the protocol ran in none of the searches."""
    texts = joined(*searches)
    left = sum(len(each.never_ran) for each in texts)
    of = sum(each.lines.bit_count() for each in texts)
    if not left:
        return [f"lines of the protocol: {of}; all of them ran"]
    named = [
        each.file + " " + _numbers(each.never_ran)
        if each.lines & each.ran
        else f"all of {each.file}"
        for each in texts
        if each.never_ran
    ]
    lines = wrap("; ".join(named), 96, initial_indent="    ", subsequent_indent="    ")
    return [f"lines of the protocol: {of}; {left} of them never ran:", *lines]


def _numbers(lines: Sequence[int]) -> str:
    """Line numbers, those in a row as a range."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and runs[-1][-1] == line - 1:
            runs[-1][1:] = [line]
        else:
            runs.append([line])
    return ", ".join("-".join(map(str, run)) for run in runs)


def mutant_line(result: MutantResult) -> str:
    """Says in one line, for the scorecard, what became of a mutant."""
    laws = ", ".join(map(str, result.laws))
    not_run = "not run" if is_not_run(result.ran) else ""
    found = f"law {laws}" if laws else not_run or result.masked_by
    return (
        f"{result.id:11}{result.verdict.value:8}{found:14} {result.seconds:6.2f} s  {result.rule}"
    )


def pairs_lines(results: Sequence[WorldResult]) -> list[str]:
    """Tabulates the worlds with two rivals, a line a rival: how many pairs were exhausted."""
    pairs = [each for each in results if len(each.tasks) == 3]
    rivals = sorted({rival for each in pairs for rival in each.tasks[1:]})
    head = f"{'rival':22}{'pairs':>6}{'exhausted':>11}{'executions':>12}{'seconds':>9}  most"
    lines = [head] if pairs else []
    for rival in rivals:
        mine = [each for each in pairs if rival in each.tasks[1:]]
        exhausted = sum(each.covered.kind is Extent.EXHAUSTIVE for each in mine)
        executions = sum(each.covered.executions for each in mine)
        seconds = sum(each.seconds for each in mine)
        most = max(mine, key=lambda each: each.covered.executions)
        (other,) = (name for name in most.tasks[1:] if name != rival)
        lines.append(
            f"{rival:22}{len(mine):>6}{exhausted:>11}{executions:>12,}{seconds:>9,.0f}"
            f"  {most.covered.executions:,} with {other}"
        )
    return lines


# Tests


def world_test(result: WorldResult) -> KtapTest:
    """A world as a test: an ok says what was covered, no more."""
    hook = ".hook" if result.hook == "walks" else ""
    name = f"{result.profile}.{result.world}.{'+'.join(result.tasks[1:]) or 'alone'}{hook}"
    if result.verdict is Verdict.BROKEN and result.violation is not None:
        lines = [headline(result.violation), *_ends(result.violation, 100)]
        return KtapTest(name, KtapVerdict.NOT_OK, notes=lines)
    if result.verdict is Verdict.EXPECTED:
        return KtapTest(name, KtapVerdict.XFAIL, result.expected_finding)
    if result.reason:
        return KtapTest(name, KtapVerdict.SKIP, result.reason)
    return KtapTest(name, KtapVerdict.OK, notes=[covered_text(result.covered)])


def scorecard_tests(
    worlds: Sequence[WorldResult], mutants: Sequence[MutantResult]
) -> list[KtapTest]:
    """The worlds, and the rules that were taken away: each is ok if that is noticed."""
    groups = {"worlds": list(map(world_test, worlds)), "mutants": list(map(_mutant_test, mutants))}
    return [ktap_group(name, tests) for name, tests in groups.items() if tests]


def _mutant_test(result: MutantResult) -> KtapTest:
    if result.verdict is MutantVerdict.MASKED:
        return KtapTest(result.id, KtapVerdict.SKIP, result.masked_by, [result.rule])
    caught = result.verdict is MutantVerdict.CAUGHT
    verdict = KtapVerdict.OK if caught else KtapVerdict.NOT_OK
    laws = f"law {', '.join(map(str, result.laws))}" if caught else covered_text(result.covered)
    return KtapTest(result.id, verdict, notes=[result.rule, laws])


# Documents


def coverage_document(covered: Coverage) -> dict[str, Any]:
    """Plain JSON values that say what a search covered."""
    return {
        **asdict(covered),
        "bound": covered.bound or None,
        "refused": covered.refused or None,
        "results": dict(covered.results),
    }


def violation_document(violation: Violation) -> dict[str, Any]:
    """Plain JSON values of one execution that breaks laws."""
    return {
        "tasks": list(violation.tasks),
        "laws": [asdict(each) for each in violation.breaches],
        "calls": [asdict(call) for call in violation.calls],
        "race": _race_document(violation),
        "warnings": list(violation.warnings),
        "steps": violation.steps,
        "switches": violation.switches,
        "replay": violation.replay,
    }


def _race_document(violation: Violation) -> dict[str, Any]:
    """The short drawing: its sentence and all steps, of which those not drawn are folded."""
    race = violation.race
    return {
        "sentence": headline(violation),
        "steps": [
            {
                "number": step.number,
                "cpu": step.cpu,
                "task": step.task,
                "function": function_of(step),
                "access": step.access,
                "word": step.word,
                "of": step.of or None,
                "old": step.old,
                "new": step.new,
                "locks": list(step.locks),
                "breaks": list(step.breaks),
                "drawn": step.drawn,
            }
            for step in race.steps
        ],
        "conflicts": [list(pair) for pair in race.conflicts],
    }


def world_document(result: WorldResult) -> dict[str, Any]:
    """Plain JSON values of one world of one profile."""
    return {
        "name": result.profile,
        "hook": result.hook,
        "world": result.world,
        "tasks": list(result.tasks),
        "verdict": result.verdict.value,
        "reason": result.reason or None,
        "clean": result.clean,
        "expected_finding": result.expected_finding or None,
        "coverage": coverage_document(result.covered),
        "seconds": round(result.seconds, 3),
        "violation": None if result.violation is None else violation_document(result.violation),
    }


def mutant_document(result: MutantResult) -> dict[str, Any]:
    """Plain JSON values of one mutant."""
    masked = result.verdict is MutantVerdict.MASKED
    return {
        "id": result.id,
        "verdict": result.verdict.value,
        "laws": list(result.laws),
        "listed_laws": list(result.listed),
        "seconds": round(result.seconds, 3),
        "replay": None if result.violation is None else result.violation.replay,
        "rule": result.rule,
        "where": result.where,
        "masked_by": result.masked_by if masked else None,
        "not_run": is_not_run(result.ran),
        "coverage": coverage_document(result.covered),
        "violation": None if result.violation is None else violation_document(result.violation),
    }


def worlds_document(worlds: Sequence[WorldResult]) -> dict[str, Any]:
    """Plain JSON values of some worlds."""
    texts = joined(*(each.ran for each in worlds))
    return {
        "schema_version": SCHEMA_VERSION,
        "profiles": [world_document(each) for each in worlds],
        "never_ran": {each.file: _numbers(each.never_ran) for each in texts},
    }


def scorecard_document(
    worlds: Sequence[WorldResult], mutants: Iterable[MutantResult]
) -> dict[str, Any]:
    """Plain JSON values of everything that `mthp check --all` found."""
    return {**worlds_document(worlds), "mutants": [mutant_document(each) for each in mutants]}
