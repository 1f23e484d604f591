# SPDX-License-Identifier: GPL-2.0-or-later
"""One search on several processes, with the counts and findings of a search on one.

An idle process is given a choice that the search has left behind, as high up as can be. The search takes
over what was found there when it gets to that choice, and waits for it if need be. If the search comes
to another choice first, what was found is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Final

from mthp.explore.compiled.explorer import CompiledExplorer
from mthp.explore.explore import Explorer, Stop, Until
from mthp.explore.part import Key, Part
from mthp.explore.tasks import MAX_STEPS, Recipe
from mthp.words.processes import workers

TURN: Final = 0.5
"""Seconds that a process searches before it reports how far it has come."""

SearchPart = Callable[[Part, Mapping[Key, Part | None], Callable[[], bool]], Part]
"""Goes on with a part; where others search parts of it; until it is not to go on: how far it has come."""


class ParallelExplorer:
    """A search on several processes. search_part: how each of them searches. parts: how far it has come,
    kept up to date. may_continue: it is asked whenever a process has reported how far it is, and False
    stops the search. turn: seconds between two reports.

    The processes are forked when the search begins: what was changed in the engine holds in them too, and
    automata that there are by then are there in each.
    """

    def __init__(
        self,
        search_part: SearchPart,
        processes: int,
        parts: dict[Key, Part] | None = None,
        *,
        until: Until = Until.END,
        may_continue: Callable[[ParallelExplorer], bool] = lambda _: True,
        turn: float = TURN,
    ) -> None:
        self.search_part = search_part
        self.processes = processes
        self.parts = {Key(): Part()} if parts is None else parts
        self.until = until
        self.may_continue = may_continue
        self.turn = turn
        self._running: dict[Future[Part], Key] = {}

    @property
    def whole(self) -> Part:
        """The part that is everything."""
        return self.parts[Key()]

    def search(self) -> Stop:
        """Search to the end, or until may_continue says no."""
        with workers(self.processes, _begin, self.search_part) as self._pool:
            while not self.whole.done:
                self._hand_out()
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    self._take_back(future)
                if self.until is Until.FIRST and any(p.findings for p in self.parts.values()):
                    return Stop.FIRST
                if not self.may_continue(self):
                    self._wait_for_all()
                    return Stop.ENOUGH
        return Stop.END

    def _wait_for_all(self) -> None:
        for future in list(self._running):
            self._take_back(future)

    def _hand_out(self) -> None:
        while len(self._running) < self.processes:
            key = self._ready() or self._split()
            if key is None:
                return
            part = self.parts[key]
            others = {k: p if p.done else None for k, p in self.parts.items() if part.offers(k)}
            future = self._pool.submit(_work, part, others, self.turn)
            self._running[future] = key

    def _ready(self) -> Key | None:
        """A part that no process searches, and that waits for no other."""
        running = set(self._running.values())
        for key, part in self.parts.items():
            if key not in running and not part.done and not self._waits(part):
                return key
        return None

    def _waits(self, part: Part) -> bool:
        if len(part.places) <= part.own:
            return False
        other = self.parts.get(part.next)
        return other is not None and not other.done

    def _split(self) -> Key | None:
        """Make the highest choice that is left a part of its own."""
        best: Part | None = None
        for part in self.parts.values():
            for depth in part.alternatives():
                new = part.alternative(depth)
                if new.key not in self.parts and (best is None or new.own < best.own):
                    best = new
        if best is None:
            return None
        self.parts[best.key] = best
        return best.key

    def _take_back(self, future: Future[Part]) -> None:
        key = self._running.pop(future)
        if key not in self.parts:
            return
        self.parts[key] = future.result()
        while stale := [key for key in self.parts if key != Key() and not self._is_offered(key)]:
            for each in stale:
                del self.parts[each]

    def _is_offered(self, key: Key) -> bool:
        return any(not part.done and part.offers(key) for part in self.parts.values())


# In each process


class _Assignment:
    """What a process searches with: set once in each of them."""

    search_part: SearchPart


def _begin(search_part: SearchPart) -> None:
    _Assignment.search_part = staticmethod(search_part)


def _work(part: Part, elsewhere: dict[Key, Part | None], seconds: float) -> Part:
    end = time.monotonic() + seconds
    return _Assignment.search_part(part, elsewhere, lambda: time.monotonic() < end)


def by_reference(recipe: Recipe, until: Until, most_steps: int = MAX_STEPS) -> SearchPart:
    """Each part by an Explorer of its own."""

    def search_part(
        part: Part, elsewhere: Mapping[Key, Part | None], may_continue: Callable[[], bool]
    ) -> Part:
        explorer = Explorer(
            recipe,
            until=until,
            most_steps=most_steps,
            may_continue=lambda _: may_continue(),
            part=part,
            elsewhere=elsewhere,
        )
        explorer.search()
        return explorer.part()

    return search_part


def by_twin(twin: CompiledExplorer) -> SearchPart:
    """Every part by one compiled explorer, which is open."""

    def search_part(
        part: Part, elsewhere: Mapping[Key, Part | None], may_continue: Callable[[], bool]
    ) -> Part:
        twin.may_continue = lambda _: may_continue()
        twin.search_part(part, elsewhere)
        return twin.part()

    return search_part
