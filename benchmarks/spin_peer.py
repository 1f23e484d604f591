# SPDX-License-Identifier: GPL-2.0-or-later
"""The peer SPIN: the model in spin/ compiled and searched, and the final states of both searches in
the same words, so that they can be compared.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mthp.explore.tasks import NextStep
from mthp.machine.step import Access
from mthp.machine.task import Endless, Task
from mthp.mm.page_flags import PG_ISOLATED
from mthp.mm.pgtable_types import PFN_SHIFT, pmd_trans_huge
from mthp.mm.reports import LoadedFrom
from mthp.races.stage import Stage
from mthp.races.world import RaceWorld

MODEL: Final = Path(__file__).parent / "spin" / "collapse_fault.pml"
WORLDS: Final = {
    ("pmd", ("fault",)): (),
    ("window", ("fault",)): ("WINDOW",),
    ("pmd", ("store", "fault")): ("TWO",),
    ("window", ("store", "fault")): ("WINDOW", "TWO"),
}
"""(size, rivals) -> what the model is compiled with."""
MUTANTS: Final = {
    "A7": "NO_VMA_START_WRITE",
    "A4": "NO_CHECK_PMD",
    "A13": "FLUSH_SPARES_LINKS",
    "no-flush": "NO_FLUSH",
    "no-count-check": "NO_COUNT_CHECK",
    "anon-vma-early": "ANON_VMA_EARLY",
}
"""Our mutants and questions -> the model's."""
REDUCTIONS: Final = {
    "partial order reduction": (),
    "no reduction": ("-DNOREDUCE",),
}
TABLE_BITS: Final = (10, 14, 18)
_DEPTH = 10_000
_HUGE = 10
_NEW = 3
_FIRST_FAULTED = 5
_EACH = 4
"""The model's numbers for a huge PMD, the new folio, and the frames of each faulting CPU."""


def need_spin() -> None:
    """FileNotFoundError where it, or a compiler, is not on this host."""
    for program in ("spin", "gcc"):
        if shutil.which(program) is None:
            raise FileNotFoundError(f"{program} is not on this host (Debian's package {program})")


@dataclass(frozen=True)
class Searched:
    """What pan printed. broken: the assertion that failed, or why it could not go on, "" if clean.

    finals: final states, where the model was compiled to print them. seconds: of the CPU, of the whole
    process.
    """

    states: int
    transitions: int
    broken: str
    finals: frozenset[str]
    seconds: float


def build(folder: Path, names: Sequence[str], options: Sequence[str] = ()) -> Path:
    """The verifier of the model compiled with those names; options: of its C compiler."""
    defines = [f"-D{name}" for name in names]
    run = {"cwd": folder, "check": True, "capture_output": True}
    subprocess.run(["spin", "-a", *defines, str(MODEL)], **run)  # type: ignore[call-overload]
    words = ["gcc", "-O2", "-w", "-DSAFETY", *options, "-o", "pan", "pan.c"]
    subprocess.run(words, **run)  # type: ignore[call-overload]
    return folder / "pan"


def search(pan: Path, table_bits: int = 18) -> Searched:
    """Run a verifier to its end, or to the first broken assertion."""
    begin = _seconds_of_children()
    ran = subprocess.run(
        [str(pan), f"-m{_DEPTH}", f"-w{table_bits}", "-n"],
        cwd=pan.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = _seconds_of_children() - begin
    found = re.search(r"^pan:\d*:? ?(.*) \(at depth", ran.stdout, re.MULTILINE)
    if "max search depth too small" in ran.stdout:
        raise RuntimeError("pan: the search is not exhaustive")
    return Searched(
        _number(r"(\d+) states, stored", ran.stdout),
        _number(r"(\d+) transitions", ran.stdout),
        found[1] if found else "",
        frozenset(line for line in ran.stdout.splitlines() if line.startswith("final ")),
        seconds,
    )


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError("pan says nothing of states")
    return int(found[1])


# --- our final states in the model's words --------------------------------------------------


class Observed:
    """A stage that writes down every final state."""

    def __init__(self, stage: Stage, finals: set[str]) -> None:
        self.stage = stage
        self.finals = finals
        self.machine, self.tasks = stage.machine, stage.tasks
        self.users = len(stage.tasks) - 1
        self.loaded = {task.name: -1 for task, _ in stage.tasks}
        self._report = stage.kernel.report
        stage.kernel.report = self._said

    @property
    def broken(self) -> Sequence[Any]:
        """As the stage's."""
        return self.stage.broken

    @property
    def results(self) -> Sequence[str]:
        """As the stage's."""
        return self.stage.results

    def _said(self, said: object) -> None:
        if isinstance(said, LoadedFrom):
            self.loaded[said.by] = said.value
        self._report(said)

    def before(self, access: Access, word: Any, index: int) -> None:
        """As the stage."""
        self.stage.before(access, word, index)

    def after(self, access: Access, word: Any, index: int) -> None:
        """As the stage."""
        self.stage.after(access, word, index)

    def raised(self, task: Task, error: Exception | Endless) -> None:
        """As the stage."""
        self.stage.raised(task, error)

    def stuck(self, waiting: Sequence[tuple[Task, NextStep]]) -> None:
        """As the stage."""
        self.stage.stuck(waiting)

    def at_rest(self) -> None:
        """Write the state down; then as the stage."""
        self.finals.add(self._final())
        self.stage.at_rest()

    def _final(self) -> str:
        kernel = self.stage.kernel
        mem = kernel.mem
        page = next(iter(self.stage.mm.pmd_pages.values()))
        word = page.pmds.raw[0]
        ptes = [self._pte(word) for table in kernel.tables.values() for word in table.ptes.raw]
        new = self._frames()[_NEW]
        return (
            f"final pmd={_HUGE if pmd_trans_huge(word) else word >> PFN_SHIFT} "
            f"deposited={page.deposited.get(0, [0])[0]} tables={len(kernel.tables)} "
            f"pte={_joined(ptes)} folios={_joined(self._folios())} "
            f"new={mem.large_mapcount.raw[new]}/{mem.entire_mapcount.raw[new]} "
            f"succeeded={int(self.stage.watch.collapsed)} cpus={_joined(self._cpus())}"
        )

    def _frames(self) -> dict[int, int]:
        """The model's frame -> ours: small pages, then an arena of 16 for each task."""
        frames = {1: 1, 2: 2, _NEW: 16, _NEW + 1: 17}
        for user in range(self.users):
            for n in range(_EACH):
                frames[_FIRST_FAULTED + user * _EACH + n] = 32 + 16 * user + n
        return frames

    def _folios(self) -> list[str]:
        kernel = self.stage.kernel
        mem = kernel.mem
        folios = []
        for frame in self._frames().values():
            if frame == 2 and 2 not in self.stage.pages.values():
                folios.append("0/0/0/0/0")
                continue
            batched = sum(cpu.lru_add.value.count(frame) for cpu in kernel.cpus)
            flags = mem.flags.raw[frame]
            flags = flags & ~PG_ISOLATED | (2048 if flags & PG_ISOLATED else 0)
            counts = mem.refcount.raw[frame], mem.mapcount.raw[frame], batched
            folios.append("/".join(map(str, (flags, *counts, mem.content.raw[frame]))))
        return folios

    def _pte(self, word: int) -> int:
        numbers = {ours: model for model, ours in self._frames().items()}
        return numbers[word >> PFN_SHIFT] << 4 | word >> 1 & 15 if word else 0

    def _cpus(self) -> list[str]:
        cpus = []
        for cpu, name in zip(self.stage.kernel.cpus[1:], list(self.loaded)[1:], strict=True):
            entries = cpu.tlb.value
            small = next((self._pte(e.entry) for e in entries if not e.order), 0)
            huge = int(any(e.order for e in entries))
            link = next((table for _, _, table in cpu.walk_cache), 0)
            cpus.append(f"{small}/{huge}/{link}/{self.loaded[name]}")
        return cpus


def _joined(values: Sequence[object]) -> str:
    return "".join(f"{value}," for value in values)


def observed(world: RaceWorld, finals: set[str]) -> Callable[[], Observed]:
    """A recipe whose executions leave their final states in `finals`."""
    return lambda: Observed(world(), finals)
