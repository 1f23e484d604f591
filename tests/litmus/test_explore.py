# SPDX-License-Identifier: GPL-2.0-or-later
"""The reduced search sees what brute force sees, and as few executions as formulas say."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from mthp.explore.enumerate import Enumerator
from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import Extent, SearchOutcome
from mthp.explore.replay import Replay
from mthp.explore.sample import Policy, Sampler
from tests.litmus.programs import FEW, FLAGS, LOCKS, WORDS, Line, recipe


def seeds(few: int, many: int) -> list[Any]:
    """So many seeds, of which the first few are in the default suite."""
    return [*range(few), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(few, many))]


def explore(*lines: list[Line]) -> SearchOutcome:
    return Explorer(recipe(*lines), until=Until.END).explore()


def behaviours(outcome: SearchOutcome) -> set[object]:
    return {finding.broken for finding in outcome.findings}


def brute(*lines: list[Line]) -> SearchOutcome:
    return Enumerator(recipe(*lines)).enumerate()


def test_independent_tasks_need_one_execution() -> None:
    outcome = explore([("write", 0)] * 4, [("write", 1)] * 4, [("write", 2)] * 4)
    assert outcome.coverage.kind is Extent.EXHAUSTIVE
    assert (outcome.coverage.executions, outcome.coverage.pruned) == (1, 0)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_writers_of_one_word_come_in_every_order(tasks: int) -> None:
    outcome = explore(*[[("write", 0)]] * tasks)
    assert outcome.coverage.executions == math.factorial(tasks)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 3), (4, 4)])
def test_two_writers_of_several_steps_interleave_in_every_way(a: int, b: int) -> None:
    outcome = explore([("write", 0)] * a, [("write", 0)] * b)
    assert outcome.coverage.executions == math.comb(a + b, a)


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_readers_and_a_writer(readers: int) -> None:
    """Each reader comes before or after the write: 2**n executions, not (n + 1)!."""
    outcome = explore([("write", 0)], *[[("read", 0)]] * readers)
    assert outcome.coverage.executions == 2**readers


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_a_lock_orders_its_sections(tasks: int) -> None:
    section: list[Line] = [("lock", 0), ("read", 0), ("write", 0), ("unlock", 0)]
    outcome = explore(*[section] * tasks)
    assert outcome.coverage.executions == math.factorial(tasks)


def test_readers_of_a_lock_are_no_race() -> None:
    section: list[Line] = [("rlock", 0), ("read", 0), ("unlock", 0)]
    assert explore(section, section, section).coverage.executions == 1


def test_a_deadlock_is_found() -> None:
    outcome = explore(
        [("lock", 0), ("lock", 1), ("unlock", 1), ("unlock", 0)],
        [("lock", 1), ("lock", 0), ("unlock", 0), ("unlock", 1)],
    )
    stuck = [broken for broken in behaviours(outcome) if len(broken) == 3]  # type: ignore[arg-type]
    assert len(stuck) == 1
    assert stuck[0][2] == (("t0", ("lock1", 0)), ("t1", ("lock0", 0)))  # type: ignore[index]


def test_a_lock_never_given_back() -> None:
    program: list[list[Line]] = [[("lock", 0), ("write", 0)], [("lock", 0), ("write", 0)]]
    assert behaviours(explore(*program)) == behaviours(brute(*program))
    assert len(behaviours(explore(*program))) == 2


def test_store_buffering_has_three_outcomes() -> None:
    outcome = explore([("write", 0), ("read", 1)], [("write", 1), ("read", 0)])
    assert outcome.coverage.executions == 3
    reads = {broken[0] for broken in behaviours(outcome)}  # type: ignore[index]
    assert ((0,), (0,)) not in reads


def random_program(source: random.Random) -> list[list[Line]]:
    """Two or three tasks of a few lines; locks may be left held, and taken in any order."""
    words = ["read", "write", "add"]
    locks = ["lock", "rlock", "try", "unlock", "unlock"]
    tasks = source.choice([2, 2, 3])
    size = {2: 5, 3: 3}[tasks]
    program: list[list[Line]] = []
    for _ in range(tasks):
        lines: list[Line] = []
        for _ in range(source.randint(1, size)):
            if source.random() < 0.5:
                lines.append((source.choice(words), source.randrange(WORDS)))
            else:
                lines.append((source.choice(locks), source.randrange(LOCKS)))
        program.append(lines)
    return program


@pytest.mark.parametrize("seed", seeds(150, 400))
def test_random_programs_behave_as_under_brute_force(seed: int) -> None:
    program = random_program(random.Random(seed))
    everything, reduced = brute(*program), explore(*program)
    assert everything.coverage.kind is reduced.coverage.kind is Extent.EXHAUSTIVE
    assert behaviours(reduced) == behaviours(everything), program
    total = reduced.coverage.executions + reduced.coverage.pruned
    assert total <= everything.coverage.executions


@pytest.mark.parametrize("seed", range(20))
def test_every_finding_replays(seed: int) -> None:
    program = recipe(*random_program(random.Random(seed)))
    for outcome in (Explorer(program, until=Until.END).explore(), Enumerator(program).enumerate()):
        for finding in outcome.findings:
            assert finding.broken in Replay(program, finding.schedule).run()


def finer_program(source: random.Random) -> list[list[Line]]:
    """The same over bits of words, counts, and a CPU that the first task is busy on."""
    tasks = source.choice([2, 2, 3])
    size = {2: 5, 3: 3}[tasks]
    program: list[list[Line]] = []
    puts = 0
    for number in range(tasks):
        lines: list[Line] = []
        for _ in range(source.randint(1, size)):
            kind = source.random()
            if kind < 0.5:
                verb = source.choice(["test", "set", "set", "clear", "clear", "await"])
                lines.append((verb, source.randrange(FLAGS)))
            elif kind < 0.7:
                lines.append((source.choice(["take", "try take", "put"]), 0))
            elif kind < 0.85:
                verb = source.choice(["try take", "put"] if puts < FEW else ["try take"])
                puts += verb == "put"
                lines.append((verb, 1))
            else:
                lines.append((source.choice(["ipi"] if number else ["busy", "idle"]), 0))
        program.append(lines)
    return program


@pytest.mark.parametrize("seed", seeds(100, 300))
def test_bits_counts_and_ipis_behave_as_under_brute_force(seed: int) -> None:
    program = finer_program(random.Random(seed))
    everything, reduced = brute(*program), explore(*program)
    assert everything.coverage.kind is reduced.coverage.kind is Extent.EXHAUSTIVE
    assert behaviours(reduced) == behaviours(everything), program
    total = reduced.coverage.executions + reduced.coverage.pruned
    assert total <= everything.coverage.executions


def test_different_bits_and_references_need_one_execution() -> None:
    bits = [[("set", n), ("test", n), ("clear", n)] for n in range(2)]
    assert explore(*bits).coverage.executions == 1
    assert explore(*[[("set", 0)], [("clear", 0)]]).coverage.executions == 2
    takers: list[list[Line]] = [[("take", 0)], [("try take", 0)], [("take", 0)]]
    assert explore(*takers).coverage.executions == 1
    assert explore(*takers[:2], [("put", 0)]).coverage.executions == 4
    assert explore([("ipi", 0)], [("ipi", 0)], [("ipi", 0)]).coverage.executions == 1
    assert explore([("busy", 0), ("idle", 0)], [("ipi", 0)], [("ipi", 0)]).coverage.executions == 4


def test_a_reference_from_none_is_noticed_whoever_comes_first() -> None:
    program: list[list[Line]] = [[("put", 1)] * FEW, [("take", 1)], [("try take", 1)]]
    complaint = ("t1", "no reference to take another from")
    assert complaint in behaviours(explore(*program))
    assert complaint in behaviours(brute(*program))


def test_a_bound_is_said() -> None:
    program = recipe([("write", 0)] * 3, [("write", 0)] * 3)
    outcome = Explorer(program, until=Until.END, most_executions=7).explore()
    assert outcome.coverage.kind is Extent.BOUNDED
    assert outcome.coverage.bound == "stopped after 7 executions"
    bounded = Enumerator(program, preemptions=1).enumerate()
    assert (bounded.coverage.kind, bounded.coverage.bound) == (Extent.BOUNDED, "1 preemptions")
    # Either task first; it runs through, or is preempted once after one or two steps.
    assert bounded.coverage.executions == 2 + 2 * 2


@pytest.mark.parametrize("policy", list(Policy))
def test_samples_are_drawn_from_their_seed(policy: Policy) -> None:
    program = recipe([("read", 0), ("write", 0)], [("write", 0)])
    seen = set()
    for seed in range(80):
        one, other = (Sampler(program, seed=seed, policy=policy).sample(9) for _ in range(2))
        assert one == other
        assert one.coverage.kind is Extent.SAMPLED
        seen |= behaviours(one)
    assert seen == behaviours(explore([("read", 0), ("write", 0)], [("write", 0)]))
