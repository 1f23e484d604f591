# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the least change that lets a refused window collapse: each is run on a world of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mthp.mm.mm_types import Vma
from mthp.predict.alike import PLACELESS, anywhere, is_of_place
from mthp.predict.changes import apply_change, candidates
from mthp.predict.explain import explain, vma_gate
from mthp.predict.measure import TlbModel
from mthp.predict.passes import Interrupted, TableLog
from mthp.predict.records import Change, Price, Proposal, Refusal, Scope, Verified
from mthp.predict.trial import Trial

MOST_VERIFIED = 400
"""Refusals whose change is run one by one; the rest take that of their group."""
MOST_TRIALS = 600
"""Worlds that are tried before the rest take that of their group."""
MOST_STEPS = 3
"""Changes that may be needed together."""
MOST_BRANCHES = 2
"""Combinations that are followed further."""
_MOST_KEPT = 64


@dataclass(frozen=True)
class TrialResult:
    """What a table came to under some changes: orders before and after, its scans, the price."""

    trial: Trial
    before: NDArray[np.int8]
    after: NDArray[np.int8]
    held: NDArray[np.bool_]
    logs: dict[tuple[int, int], TableLog]
    price: Price


class Finder:
    """Looks for least changes, and keeps what whole-table changes came to for the next refusal, and
    what was found for the next table that is alike, or alike but for the mapping's place in it.
    """

    def __init__(
        self, on_try: Callable[[], None] | None = None, tlb: TlbModel = TlbModel.PLAIN
    ) -> None:
        self.trials = 0
        self.on_try = on_try
        self.tlb = tlb
        self._kept: dict[tuple[Vma, int, tuple[Change, ...]], TrialResult] = {}
        self._found: dict[tuple[object, ...], Proposal | None] = {}
        self._minds_place = False

    def find(self, vma: Vma, refusal: Refusal) -> Proposal | None:
        """The least change found that puts every page of the refusal into a larger folio.

        Where none does, the one that does so for most of them; None if none does for any. Each is
        run; up to MOST_STEPS are combined, each answering what the one before met.
        """
        geometry = vma.vm_mm.geometry
        pmd_addr = geometry.pmd_addr(refusal.address)
        wherever = anywhere(vma, pmd_addr, refusal)
        if wherever is not None and wherever in self._found:
            return self._found[wherever]
        within = refusal._replace(address=refusal.address - pmd_addr, distinct=0)
        trial = Trial(vma, pmd_addr)
        alike = vma.vm_mm, within, trial.likeness()
        if alike not in self._found:
            self._minds_place = False
            self._found[alike] = self._least(trial, vma, pmd_addr, refusal)
            if wherever is not None and not self._minds_place:
                self._found[wherever] = self._found[alike]
        return self._found[alike]

    def _least(
        self, unchanged: Trial, vma: Vma, pmd_addr: int, refusal: Refusal
    ) -> Proposal | None:
        first = vma.vm_mm.geometry.pte_index(refusal.address)
        span = slice(first, first + refusal.span)
        best: Proposal | None = None
        tried: list[tuple[tuple[Change, ...], Refusal]] = [((), refusal)]
        for _ in range(MOST_STEPS):
            following = []
            for made, met in tried:
                self._minds_place |= met.status not in PLACELESS
                trial = _prepared(vma, pmd_addr, made) if made else unchanged
                for change in candidates(trial, met):
                    changes = _joined(made, change)
                    if changes == made:
                        continue
                    self._minds_place |= is_of_place(change, vma.vm_mm.geometry.pmd_order)
                    result = self.tried(vma, pmd_addr, changes)
                    held = int(np.count_nonzero(result.held[span]))
                    more = result.held & (result.after > result.before)
                    grown = int(np.count_nonzero(more[span]))
                    if held and grown == held:
                        return Proposal(changes, grown, grown, result.price)
                    if grown > (best.grown if best else 0):
                        best = Proposal(changes, grown, held, result.price)
                    new = _met(result.trial, result.logs, refusal)
                    if new is not None:
                        following.append((changes, new))
            tried = following[:MOST_BRANCHES]
        return best

    def tried(self, vma: Vma, pmd_addr: int, changes: tuple[Change, ...]) -> TrialResult:
        """What the table at pmd_addr comes to under some changes."""
        key = vma, pmd_addr, changes
        if key in self._kept:
            return self._kept[key]
        self.trials += 1
        if self.on_try is not None:
            self.on_try()
        trial = Trial(vma, pmd_addr)
        translations = trial.translations(self.tlb)
        for change in changes:
            apply_change(trial, change)
        before = trial.orders()
        held = np.array(trial.ptes) != 0
        out = trial.frames_out()
        tally = trial.run()
        page_size = trial.kernel.geometry.page_size
        price = Price(
            (trial.frames_out() - out + trial.written) * page_size,
            trial.translations(self.tlb) - translations,
            tally.copied_bytes + trial.copied * page_size,
        )
        result = TrialResult(trial, before, trial.orders(), held, tally.last_pass, price)
        # What is not made to single pages is the same whichever window of the table asks for it.
        if all(change.kind.scope is not Scope.WINDOW for change in changes):
            self._kept[key] = result
            if len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return result


def _joined(made: tuple[Change, ...], change: Change) -> tuple[Change, ...]:
    """The changes and one more; what is made to pages joins the change of its kind."""
    for each in made:
        if (each.kind, each.knob, each.order) == (change.kind, change.knob, change.order):
            ptes = tuple(sorted({*each.ptes, *change.ptes}))
            other = replace(each, ptes=ptes, value=max(each.value, change.value))
            return tuple(other if one is each else one for one in made)
    return (*made, change)


def _prepared(vma: Vma, pmd_addr: int, changes: tuple[Change, ...]) -> Trial:
    trial = Trial(vma, pmd_addr)
    for change in changes:
        apply_change(trial, change)
    return trial


def _met(trial: Trial, logs: dict[tuple[int, int], TableLog], refusal: Refusal) -> Refusal | None:
    """What the refused PTEs ran into in the trial."""
    end = refusal.address + refusal.span * trial.kernel.geometry.page_size
    for _, new in explain(trial.kernel, {trial.vma: vma_gate(trial.kernel, trial.vma)}, logs):
        if new.address < end and refusal.address < new.address + new.span * (
            trial.kernel.geometry.page_size
        ):
            return new
    return None


def with_changes(
    refusals: list[tuple[Vma, Refusal]],
    on_try: Callable[[], None] | None = None,
    tlb: TlbModel = TlbModel.PLAIN,
) -> Iterator[Refusal]:
    """Give each refusal its least change: the largest are run, the others take their group's.

    Those of a table that is mapped by its PMD, and the like, have none. on_try is called before
    each world that is tried; where it raises Interrupted, what is not answered by then has no
    change.
    """
    by_size = sorted(range(len(refusals)), key=lambda k: -refusals[k][1].pages)
    answers: dict[int, tuple[Proposal | None, Verified]] = {}
    groups: dict[tuple[object, ...], Proposal | None] = {}
    finder = Finder(on_try, tlb)
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
        change, verified = answers.get(k, (None, Verified.NONE))
        yield refusal if change is None else refusal.changed_by(change, verified)
