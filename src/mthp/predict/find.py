# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the least change that lets a refused window collapse: each is run on a world of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from mthp.mm.mm_types import Vma
from mthp.predict.changes import candidates
from mthp.predict.explain import explain_vma
from mthp.predict.passes import Interrupted, TableLog
from mthp.predict.records import Refusal, Verified
from mthp.predict.trial import Trial

MOST_VERIFIED = 400
"""Refusals whose change is run one by one; the rest take that of their group."""
MOST_TRIALS = 600
"""Worlds that are tried before the rest take that of their group."""
MOST_STEPS = 3
"""Changes that may be needed together."""
MOST_BRANCHES = 2
"""Combinations that are followed further."""
_WHOLE_TABLE = ("raise max_ptes", "enable ", "set ", "MADV_", "drop ", "lift PR", "give ")
"""Changes that are the same whichever window of a table asks for them."""
_MOST_KEPT = 64


@dataclass(frozen=True)
class _Tried:
    """What a table came to under some changes: orders before and after, and its scans."""

    trial: Trial
    before: list[int]
    after: list[int]
    held: list[bool]
    logs: dict[tuple[int, int], TableLog]


class Finder:
    """Looks for least changes; what whole-table changes came to is kept for the next refusal."""

    def __init__(self, on_try: Callable[[], None] | None = None) -> None:
        self.trials = 0
        self.on_try = on_try
        self._kept: dict[tuple[Vma, int, tuple[str, ...]], _Tried] = {}

    def find(self, vma: Vma, refusal: Refusal) -> str:
        """The least change found that puts every page of the refusal into a larger folio.

        Where none does, the one that does so for most of them, which it says; "" if none does for
        any. Each is run; up to MOST_STEPS are combined, each answering what the one before met.
        """
        geometry = vma.vm_mm.geometry
        first = geometry.pte_index(refusal.address)
        span = range(first, first + refusal.span)
        pmd_addr = geometry.pmd_addr(refusal.address)
        best, best_text = 0, ""
        tried: list[tuple[list[str], list[Callable[[Trial], None]], Refusal]] = [([], [], refusal)]
        for _ in range(MOST_STEPS):
            following = []
            for texts, steps, met in tried:
                for text, step in candidates(_prepared(vma, pmd_addr, steps), met):
                    if text in texts:
                        continue
                    result = self._try(vma, pmd_addr, [*texts, text], [*steps, step])
                    held = [i for i in span if result.held[i]]
                    grown = sum(result.after[i] > result.before[i] for i in held)
                    if held and grown == len(held):
                        return " and ".join([*texts, text])
                    if grown > best:
                        best = grown
                        best_text = (
                            f"{' and '.join([*texts, text])}, for {grown} of {len(held)} pages"
                        )
                    new = _met(result.trial, result.logs, refusal)
                    if new is not None:
                        following.append(([*texts, text], [*steps, step], new))
            tried = following[:MOST_BRANCHES]
        return best_text

    def _try(
        self, vma: Vma, pmd_addr: int, texts: list[str], steps: list[Callable[[Trial], None]]
    ) -> _Tried:
        key = vma, pmd_addr, tuple(texts)
        if key in self._kept:
            return self._kept[key]
        self.trials += 1
        if self.on_try is not None:
            self.on_try()
        trial = _prepared(vma, pmd_addr, steps)
        before = trial.orders()
        held = [word != 0 for word in trial.ptes]
        logs = trial.run().last_pass
        result = _Tried(trial, before, trial.orders(), held, logs)
        if all(text.startswith(_WHOLE_TABLE) for text in texts):
            self._kept[key] = result
            if len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return result


def find_change(vma: Vma, refusal: Refusal) -> str:
    """Finder.find() of one refusal."""
    return Finder().find(vma, refusal)


def _prepared(vma: Vma, pmd_addr: int, steps: list[Callable[[Trial], None]]) -> Trial:
    trial = Trial(vma, pmd_addr)
    for step in steps:
        step(trial)
    return trial


def _met(trial: Trial, logs: dict[tuple[int, int], TableLog], refusal: Refusal) -> Refusal | None:
    """What the refused PTEs ran into in the trial."""
    end = refusal.address + refusal.span * trial.kernel.geometry.page_size
    for new in explain_vma(trial.kernel, trial.vma, logs):
        if new.address < end and refusal.address < new.address + new.span * (
            trial.kernel.geometry.page_size
        ):
            return new
    return None


def with_changes(
    refusals: list[tuple[Vma, Refusal]],
    on_try: Callable[[], None] | None = None,
) -> Iterator[Refusal]:
    """Each refusal with its least change; the largest are run, the others take their group's.

    A table that is mapped by its PMD, and the like, have none. on_try is called before each world
    that is tried; where it raises Interrupted, what is not answered by then has no change.
    """
    by_size = sorted(range(len(refusals)), key=lambda k: -refusals[k][1].pages)
    answers: dict[int, tuple[str, Verified]] = {}
    groups: dict[tuple[object, ...], str] = {}
    finder = Finder(on_try)
    with suppress(Interrupted):
        for rank, k in enumerate(by_size):
            vma, refusal = refusals[k]
            key = refusal.stage, refusal.status, refusal.order, vma.vm_flags
            if (rank < MOST_VERIFIED and finder.trials < MOST_TRIALS) or key not in groups:
                change = finder.find(vma, refusal)
                groups.setdefault(key, change)
                answers[k] = change, Verified.RUN if change else Verified.NONE
            else:
                change = groups[key]
                answers[k] = change, Verified.GROUP if change else Verified.NONE
    for k, (_, refusal) in enumerate(refusals):
        change, verified = answers.get(k, ("", Verified.NONE))
        yield replace(refusal, change=change, verified=verified)
