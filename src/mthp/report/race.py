# SPDX-License-Identifier: GPL-2.0-or-later
"""A race as kernel lists have it: one sentence, then a column a CPU with the steps that matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, groupby, zip_longest
from shlex import quote
from textwrap import wrap
from typing import Final, NamedTuple

from mthp.check.records import FREED, DrawnRace, RaceStep, Violation, WordKind

GAP: Final = 2


class DrawnRow(NamedTuple):
    """A step that is drawn, or those in a row that are not."""

    steps: tuple[RaceStep, ...]

    @property
    def drawn(self) -> RaceStep | None:
        """Return the step, or None where they are folded."""
        return self.steps[0] if self.steps[0].drawn else None

    @property
    def folded(self) -> Mapping[int, int]:
        """Count the steps of each CPU that are not drawn."""
        return Counter(step.cpu for step in self.steps if not step.drawn)


def rows(race: DrawnRace) -> Iterator[DrawnRow]:
    """Yield the drawing from top to bottom; to the end, where the law is broken at rest."""
    shown = [step.number for step in race.steps if step.drawn]
    last = len(race.steps) if race.is_at_rest else shown[-1]
    for drawn, steps in groupby(race.steps[:last], lambda step: step.drawn):
        if drawn:
            yield from (DrawnRow((step,)) for step in steps)
        else:
            yield DrawnRow(tuple(steps))


def drawn_cpus(race: DrawnRace) -> list[int]:
    """List the CPUs that have a column."""
    return sorted({step.cpu for step in race.steps if step.drawn} or {0})


# One step


SPINLOCKS: Final = {
    "pmd lock": "pmd_ptl",
    "PTE lock": "pte_ptl",
    "mm_list": "khugepaged_mm_lock",
}
"""What khugepaged.c calls them."""
_LOCK_CALLS: Final = {
    "mmap_lock": ("mmap_{0}_lock({1})", "mmap_{0}_trylock({1})", "mmap_{0}_unlock({1})"),
    "anon_vma": ("anon_vma_lock_{0}({1})", "anon_vma_trylock_{0}({1})", "anon_vma_unlock_{0}({1})"),
    "VMA lock": ("vma_start_{0}({1})", "vma_start_{0}({1})", "vma_end_{0}({1})"),
    **{
        lock: (f"spin_lock({name})", f"spin_trylock({name})", f"spin_unlock({name})")
        for lock, name in SPINLOCKS.items()
    },
}


def function_of(step: RaceStep) -> str:
    """Name the kernel function that takes it; a lock's own."""
    if step.kind is not WordKind.LOCK:
        return step.function
    call = _LOCK_CALLS[step.word][("acquire", "try", "release").index(step.access)]
    return call.format(step.new or step.old, step.of)


def change_of(step: RaceStep) -> str:
    """Say what it does, and to which word; "" of a lock."""
    word = f"{step.word} of {step.of}" if step.of else step.word
    if step.kind is WordKind.LOCK:
        return "" if step.changes else "fails"
    if step.kind is WordKind.CPU:
        return f"IPI to {word}" if step.access == "ipi" else word
    if step.new == FREED:
        return f"frees {word}"
    if step.kind is WordKind.BUFFER and step.access == "release" and step.word:
        return f"{word}: {step.new}, not seen yet"
    if step.changes:
        return f"{word}: {step.old} -> {step.new}"
    if not step.new:
        return word
    return f"writes {word}: {step.new}" if step.access == "write" else f"{word} is {step.new}"


# The sentence


def headline(violation: Violation) -> str:
    """Say who did what, in which order, and which law that breaks."""
    race = violation.race
    clauses = []
    named = set()
    for number in race.told:
        step = race.steps[number - 1]
        name = "" if step.cpu in named else f" {violation.tasks[step.cpu]}"
        clauses.append(f"CPU{step.cpu}{name} {_does(step)}")
        named.add(step.cpu)
    story = ", then ".join(clauses)
    if not violation.breaches:
        return f"{story}; no law is broken" if story else "no law is broken"
    breach = violation.breaches[race.breach]
    return (
        f"{story}; law {breach.law}: {breach.text}" if story else f"law {breach.law}: {breach.text}"
    )


_ARTICLES: Final = {"PMD", "VMA lock", "pmd lock", "PTE lock"}
_MODES: Final = {"read": " for reading", "write": " for writing"}


def _does(step: RaceStep) -> str:
    word = f"the {step.word}" if step.word in _ARTICLES else step.word
    word = f"{word} of {step.of}" if step.of else word
    if step.access == "raise":
        return f"stops in {step.function}"
    match step.kind:
        case WordKind.LOCK if step.access == "release":
            return f"lets {word} go"
        case WordKind.LOCK:
            return f"takes {word}{'' if step.word in SPINLOCKS else _MODES[step.new]}"
        case WordKind.CPU:
            return f"sends an IPI to {word}"
        case WordKind.BUFFER if step.access == "release":
            return f"stores to {word}, and nobody sees it yet"
        case WordKind.BUFFER:
            return f"lets its store to {word} be seen"
    if step.new == FREED:
        return f"frees {word}"
    if not step.changes:
        return f"writes {word}" if step.access == "write" else f"reads {word} ({step.new})"
    if step.kind is WordKind.CONTENTS:
        return f"writes {word}"
    if step.new == "none":
        return f"clears {word}"
    if step.kind is WordKind.ENTRY:
        return f"sets {word} to {'a ' if step.new == 'migration entry' else ''}{step.new}"
    if step.kind is WordKind.FLAG and {step.old, step.new} == {"0", "1"}:
        return f"{'sets' if step.new == '1' else 'clears'} {word}"
    return f"changes {word} from {step.old} to {step.new}"


def again(violation: Violation) -> str:
    """Say which command runs it again."""
    own = f" --protocol {quote(violation.protocol)}" if violation.protocol else ""
    return f"mthp replay {violation.replay}{own}"


# The columns


def race_lines(violation: Violation, width: int) -> list[str]:
    """Draw the sentence and the columns."""
    race = violation.race
    cpus = drawn_cpus(race)
    names = [f"CPU{cpu} {violation.tasks[cpu]}" for cpu in cpus]
    table = [
        {cpus.index(row.drawn.cpu): _parts(row.drawn)}
        if row.drawn is not None
        else {at: [steps_text(row.folded[cpu])] for at, cpu in enumerate(cpus) if cpu in row.folded}
        for row in rows(race)
    ]
    offsets = _offsets(table, names, width)
    lines = [
        *wrap(headline(violation), width, break_on_hyphens=False),
        "",
        _beside(dict(enumerate(names)), offsets),
    ]
    for row in table:
        cells = {at: _wrapped(parts, width - offsets[at]) for at, parts in row.items()}
        together = zip_longest(*cells.values(), fillvalue="")
        lines += [_beside(dict(zip(cells, texts, strict=True)), offsets) for texts in together]
    return lines


def _beside(texts: Mapping[int, str], offsets: Sequence[int]) -> str:
    line = ""
    for at, text in sorted(texts.items()):
        line = line.ljust(offsets[at]) + text
    return line.rstrip()


def steps_text(n: int) -> str:
    """Say how many steps are folded."""
    return f"... {n} step{'' if n == 1 else 's'}"


def _parts(step: RaceStep) -> list[str]:
    """Say the function, and what it does: in one line where there is room."""
    *before, last = [each for each in (function_of(step), change_of(step)) if each]
    mark = "  <-- law " + ", ".join(map(str, step.breaks)) if step.breaks else ""
    return [*before, last + mark]


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
    line = ": ".join(parts)
    if len(line) <= width:
        return [line]
    return [
        line
        for n, part in enumerate(parts)
        for line in wrap(part, width, initial_indent="  " * n, subsequent_indent="    ")
    ]


def _offsets(
    table: Sequence[Mapping[int, list[str]]], names: Sequence[str], width: int
) -> list[int]:
    """Choose where the columns begin: so that few lines are needed, and few reach into the next column, where
    nothing else stands beside them.
    """
    cells = [(at, parts) for row in table for at, parts in row.items()]
    least = [max(len(name), _FOLD_WIDTH) + GAP for name in names]

    def cost(offsets: Sequence[int]) -> tuple[int, int]:
        height = over = 0
        for at, parts in cells:
            lines = _wrapped(parts, width - offsets[at])
            height += len(lines)
            if at + 1 < len(offsets):
                room = offsets[at + 1] - GAP - offsets[at]
                over += sum(max(0, len(line) - room) for line in lines)
        return height, over

    choices = (
        (0, *each)
        for each in combinations(range(min(least[0], width), width), len(names) - 1)
        if all(b - a >= n for a, b, n in zip((0, *each), (*each, width), least, strict=False))
    )
    return list(min(choices, key=cost, default=[sum(least[:at]) for at in range(len(names))]))


_FOLD_WIDTH: Final = len("... 999 steps")
