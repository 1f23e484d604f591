# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled twin searches as the reference does: the same executions, counts, findings and parts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mthp.explore.compiled import jit
from mthp.explore.compiled.explorer import CompiledExplorer, Speed
from mthp.explore.compiled.integers import MOST
from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.explore import Explorer, Until
from mthp.explore.part import Key, Part
from tests.explore.test_part import WIDE, split, whole
from tests.litmus.programs import Line, Program, recipe
from tests.litmus.test_explore import finer_program, random_program


def of_seed(seed: int) -> Callable[[], Program]:
    return recipe(*random_program(random.Random(seed)))


@pytest.mark.parametrize("until", list(Until))
@pytest.mark.parametrize("seed", range(60))
def test_random_programs_are_searched_alike(seed: int, until: Until) -> None:
    reference = Explorer(of_seed(seed), until=until)
    compiled = CompiledExplorer(of_seed(seed), until=until, speed=Speed.PLAIN)
    assert compiled.explore() == reference.explore()
    assert compiled.counts == reference.counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 400))
def test_more_random_programs(seed: int) -> None:
    test_random_programs_are_searched_alike(seed, Until.END)


@pytest.mark.parametrize("seed", range(60))
def test_programs_of_bits_counts_and_ipis_are_searched_alike(seed: int) -> None:
    program = recipe(*finer_program(random.Random(seed)))
    reference = Explorer(program, until=Until.END).explore()
    assert CompiledExplorer(program, until=Until.END, speed=Speed.PLAIN).explore() == reference


@pytest.mark.parametrize("seed", range(20))
def test_machine_code_searches_alike(seed: int) -> None:
    assert jit.compiled() is not None, "Numba, of the dev extra, is not installed"
    reference = Explorer(of_seed(seed), until=Until.END).explore()
    compiled = CompiledExplorer(of_seed(seed), until=Until.END, speed=Speed.NUMBA)
    assert compiled.explore() == reference


@pytest.mark.parametrize("seed", [0, 7, 9, 32, 34, 38, 42, 45, 46, 53, 54, 63, 75, 77, 79])
def test_one_goes_on_where_the_other_stopped(seed: int) -> None:
    begun = Explorer(of_seed(seed), until=Until.END, most_executions=2)
    begun.search()
    assert not begun.part().done
    compiled = CompiledExplorer(
        of_seed(seed), until=Until.END, part=begun.part(), most_executions=4
    )
    reference = Explorer(of_seed(seed), until=Until.END, part=begun.part(), most_executions=4)
    assert compiled.search() is reference.search()
    assert compiled.part() == reference.part()


@pytest.mark.parametrize("explorer", [Explorer, CompiledExplorer])
@pytest.mark.parametrize("seed", [38, 75, 77, 79])
def test_either_goes_on_where_the_compiled_one_stopped(seed: int, explorer: Any) -> None:
    whole = Explorer(of_seed(seed), until=Until.END)
    whole.search()
    compiled = CompiledExplorer(of_seed(seed), until=Until.END, most_executions=4)
    compiled.search()
    assert not compiled.part().done
    last = explorer(of_seed(seed), until=Until.END, part=compiled.part())
    last.search()
    assert last.part() == whole.part()


class ManyKinds(Program):
    """Its tasks take steps of more kinds than fit any table of a fixed size."""

    def __init__(self) -> None:
        super().__init__([[("add", 0), ("write", 1)]] * 3)

    def body(self, number: int, lines: Any) -> Callable[[], None]:
        last = super().body(number, lines)

        def run() -> None:
            for bits in range(1, 200):
                self.flags.test_bits(0, bits)
            self.flags.set_bits(1, 1 << 2 * number | 1 << 2 * number + 1 | 1 << 8)
            last()

        return run


@pytest.mark.parametrize("speed", [pytest.param(Speed.PLAIN, marks=pytest.mark.slow), Speed.NUMBA])
def test_steps_of_many_kinds(speed: Speed) -> None:
    reference = Explorer(ManyKinds, until=Until.END)
    compiled = CompiledExplorer(ManyKinds, until=Until.END, speed=speed)
    assert compiled.explore() == reference.explore()
    assert compiled.counts.executions > 100
    assert len(compiled.ops.program.dependent) > 200 * 200 // 2


@pytest.mark.parametrize("speed", [Speed.PLAIN, Speed.NUMBA])
@pytest.mark.parametrize("seed", range(12))
def test_a_search_in_parts_is_the_same_search(seed: int, speed: Speed) -> None:
    source = random.Random(seed)
    program = recipe(*(WIDE, random_program(source), finer_program(source))[seed % 3])
    twin = CompiledExplorer(program, until=Until.END, speed=speed)
    twin.open()

    def search_part(part: Part, elsewhere: Mapping[Key, Part | None], more: int) -> Part:
        twin._state.at[MOST] = part.counts.executions + more
        twin.search_part(part, elsewhere)
        return twin.part()

    found = split(search_part, source)
    twin.close()
    assert (found.counts, found.findings) == (whole(program).counts, whole(program).findings)


def test_the_whole_search_again() -> None:
    lines: list[Line] = [("lock", 0), ("add", 0), ("unlock", 0), ("write", 1)]
    for _ in range(2):
        compiled = CompiledExplorer(recipe(lines, lines, lines), until=Until.END)
        outcome = compiled.explore()
    replays = compiled.replays
    assert compiled.again() == outcome
    assert compiled.replays == replays < outcome.coverage.executions


class Keyed(Program):
    """Whoever is first puts the key there that the other one finds, and neither looks."""

    def __init__(self) -> None:
        super().__init__([[("write", 0)], [("write", 0)]])
        self.kept: dict[str, int] = {}

    def body(self, number: int, lines: Any) -> Callable[[], None]:
        first = super().body(number, lines)

        def run() -> None:
            first()
            self.kept["key"] = number
            self.words.write(1, number)
            self.seen[number].append(len(self.kept))

        return run


def test_whether_a_key_was_there_is_recorded() -> None:
    reference = Explorer(Keyed, until=Until.END).explore()
    assert CompiledExplorer(Keyed, until=Until.END, speed=Speed.PLAIN).explore() == reference


def test_most_steps_cuts_off() -> None:
    lines: list[Line] = [("add", 0)] * 4
    reference = Explorer(recipe(lines, lines), until=Until.END, most_steps=5)
    compiled = CompiledExplorer(recipe(lines, lines), until=Until.END, most_steps=5)
    outcome = reference.explore()
    assert outcome.coverage.bound.endswith("executions cut off after 5 steps")
    assert compiled.explore() == outcome


class Hidden(Program):
    """Its tasks change something that no recorder can see."""

    def __init__(self) -> None:
        super().__init__([[("read", 0)], [("read", 1)]])
        self.hidden = iter(range(3))


class Aliased(Program):
    """Its tasks keep a list by another name than the one that others see it by."""

    def body(self, number: int, lines: Any) -> Callable[[], None]:
        def run() -> None:
            mine: list[int] = []
            self.seen[number] = mine
            self.words.read(0)
            mine.append(1)

        return run


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(Unrecordable, match=r"hidden is a builtins\.range_iterator"):
        CompiledExplorer(Hidden).explore()


def test_a_second_name_is_refused() -> None:
    with pytest.raises(Unrecordable, match="changed by another name"):
        CompiledExplorer(lambda: Aliased([[("read", 0)], [("write", 0)]])).explore()
