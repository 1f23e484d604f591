# SPDX-License-Identifier: GPL-2.0-or-later
"""A scenario's declared state, process by process: the page that is wanted at each place."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from mthp.image.runs import FolioToken, PageKind, PteState, PteToken
from mthp.image.scenario import Scenario
from mthp.image.scenario_values import Prctl, ScenarioVma
from mthp.lab.program.program import BASE, PROCESSES, REACH, spans


class CannotBuild(Exception):
    """No known sequence of system calls makes the state. The text, one line, names the part and why."""


@dataclass(frozen=True)
class WantedPage:
    """A wanted page. at: in pages from the process's base. vma: the index of its mapping in the
    scenario.

    index: in pages from that mapping's start. pinned: whether a reference is to hold it. sleepers:
    how many sleeping children must map it. sharers: the other processes that map it, or a page of
    its large folio.
    """

    at: int
    vma: int
    index: int
    token: FolioToken
    entry: PteToken
    sleepers: int = 0
    pinned: bool = False
    sharers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WantedFolio:
    """A wanted large folio. start: the first page of its window, from the process's base.

    pages: those of its pages that are mapped here.
    """

    order: int
    start: int
    pages: tuple[WantedPage, ...]

    @property
    def size(self) -> int:
        return 1 << self.order

    @property
    def window(self) -> range:
        """The pages of the folio's window, mapped or not."""
        return range(self.start, self.start + self.size)

    @property
    def vma(self) -> int:
        return self.pages[0].vma

    @property
    def token(self) -> FolioToken:
        return self.pages[0].token

    @property
    def sleepers(self) -> int:
        return self.pages[0].sleepers

    @property
    def huge(self) -> bool:
        """Whether it is mapped by a PMD."""
        return self.pages[0].entry.state is PteState.HUGE


@dataclass(frozen=True)
class WantedVma:
    """A wanted mapping. index: in the scenario. start, end: in pages from the process's base.

    declared: the mapping as the scenario has it.
    """

    index: int
    start: int
    end: int
    declared: ScenarioVma

    @property
    def pages(self) -> int:
        return self.end - self.start


@dataclass
class WantedProcess:
    """The wanted state of one process. parent: the process it is forked from; empty if there is none.

    pages: page from the process's base -> the page. folios: the large ones.
    """

    name: str
    prctl: Prctl | None
    parent: str = ""
    vmas: list[WantedVma] = field(default_factory=list)
    pages: dict[int, WantedPage] = field(default_factory=dict)
    folios: list[WantedFolio] = field(default_factory=list)

    def of(self, *kinds: PageKind) -> list[WantedPage]:
        """The pages of some kinds, in order."""
        return [page for page in self.pages.values() if page.token.kind in kinds]

    @property
    def small(self) -> list[WantedPage]:
        """The pages whose folio is of order 0 and not merged by KSM."""
        folios = self.of(PageKind.FOLIO)
        return [page for page in folios if not page.token.order and "K" not in page.token.flags]

    @property
    def merged(self) -> list[WantedPage]:
        """The pages that KSM is to merge."""
        return [page for page in self.of(PageKind.FOLIO) if "K" in page.token.flags]

    def vma_of(self, page: WantedPage) -> WantedVma:
        return next(vma for vma in self.vmas if vma.index == page.vma)


def displacement(scenario: Scenario) -> int:
    """How much lower an address of the scenario lies in the guest, in bytes: a multiple of 1 GiB.

    0 if the scenario's mappings lie in the range that a session watches. CannotBuild: they are too far
    apart for that range.
    """
    low = min(vma.start for vma in scenario.vmas)
    high = max(vma.end(scenario.geometry) for vma in scenario.vmas)
    if low >= BASE and high <= BASE + REACH:
        return 0
    moved = (low - BASE) >> 30 << 30
    if high - moved > BASE + REACH:
        raise CannotBuild(f"the mappings span {high - low} bytes, at most {REACH}")
    return moved


def wanted_processes(scenario: Scenario) -> list[WantedProcess]:
    """The processes of a scenario, in the order of khugepaged's scan. CannotBuild: too many processes."""
    processes = sorted({vma.mm for vma in scenario.vmas})
    if len(processes) > len(PROCESSES):
        raise CannotBuild(f"{len(processes)} processes, at most {len(PROCESSES)}")
    moved, shift = displacement(scenario), scenario.geometry.page_shift
    prctls = [*scenario.prctl, *[None] * len(processes)]
    wants = [
        WantedProcess(name, prctls[mm]) for name, mm in zip(PROCESSES, processes, strict=False)
    ]
    states: list[list[WantedPage]] = []
    for want, mm in zip(wants, processes, strict=True):
        mine = [(i, vma) for i, vma in enumerate(scenario.vmas) if vma.mm == mm]
        for index, vma in sorted(mine, key=lambda each: each[1].start):
            start = (vma.start - moved - BASE) >> shift
            want.vmas.append(WantedVma(index, start, start + vma.pages, vma))
        states.append([page for where in want.vmas for page in _pages(where)])
    shares = _Shares(wants, states)
    for want, pages in zip(wants, states, strict=True):
        want.pages = {page.at: shares.settle(want, page) for page in pages}
        want.folios = folios_of(want)
        want.parent = shares.parent(want)
    return wants


class _Shares:
    """Which processes map the same folios, and how often each page is mapped in the scenario."""

    def __init__(self, wants: list[WantedProcess], states: list[list[WantedPage]]) -> None:
        self._times: Counter[tuple[int, int]] = Counter()
        self._users: dict[int, set[str]] = defaultdict(set)
        self._order = [want.name for want in wants]
        for want, pages in zip(wants, states, strict=True):
            for token in (page.token for page in pages if "K" not in page.token.flags):
                if token.folio is not None:
                    self._times[token.folio, token.index] += 1
                    self._users[token.folio].add(want.name)

    def settle(self, want: WantedProcess, page: WantedPage) -> WantedPage:
        """The page with its sharers and its number of sleepers."""
        token = page.token
        if token.kind is not PageKind.FOLIO or "K" in token.flags:
            return page
        times, users = 1, frozenset[str]()
        if token.folio is not None:
            times = self._times[token.folio, token.index]
            users = frozenset(self._users[token.folio] - {want.name})
        return replace(page, sleepers=token.mapcount - times, sharers=users)

    def parent(self, want: WantedProcess) -> str:
        """The first of the processes that share pages with this one, directly or through others; empty
        if that is the process itself."""
        sharers = {want.name}
        for _ in self._order:
            for users in self._users.values():
                if users & sharers:
                    sharers |= users
        first = min(sharers, key=self._order.index)
        return "" if first == want.name else first


def _pages(where: WantedVma) -> Iterator[WantedPage]:
    vma = where.declared
    held = held_pages(vma)
    both = zip(vma.initial.folio_pages(), vma.initial.pte_pages(), strict=True)
    for i, (token, entry) in enumerate(both):
        yield WantedPage(where.start + i, where.index, i, token, entry, pinned=i in held)


def held_pages(vma: ScenarioVma) -> set[int]:
    """The pages on which there are references: pins, and others."""
    ranges = [*vma.pins, *((start, pages) for start, pages, _ in vma.extra_refs)]
    return {page for start, pages in ranges for page in range(start, start + pages)}


def folios_of(want: WantedProcess) -> list[WantedFolio]:
    """The large folios that the process maps, in the order of their first pages."""
    found: dict[int, list[WantedPage]] = {}
    for page in want.of(PageKind.FOLIO):
        if page.token.order:
            assert page.token.folio is not None
            found.setdefault(page.token.folio, []).append(page)
    folios = []
    for pages in found.values():
        first = pages[0]
        folio = WantedFolio(first.token.order, first.at - first.token.index, tuple(pages))
        for page in pages:
            _check_uniform(folio, page)
        if folio.start % folio.size:
            raise cannot([first], "a large folio that lies at no boundary of its size")
        folios.append(folio)
    return folios


def _check_uniform(folio: WantedFolio, page: WantedPage) -> None:
    first = folio.pages[0]
    if page.at - page.token.index != folio.start:
        raise cannot([page], "a page of a folio that lies apart from its others")
    if page.token.flags != first.token.flags:
        raise cannot([page], "a folio whose pages have different flags")
    if page.sleepers != first.sleepers:
        raise cannot([page], "a folio whose pages are mapped a different number of times")


def cannot(pages: Iterable[WantedPage], why: str) -> CannotBuild:
    """The CannotBuild for some pages of one mapping, which names them, the first of them, and why."""
    some = list(pages)
    first = some[0]
    start, count = spans(page.index for page in some)[0]
    where = f"vmas[{first.vma}] {pages_text(start, count)}"
    return CannotBuild(f"{where}: {first.token} {first.entry}: {why}")


def pages_text(first: int, count: int) -> str:
    """What a run of pages is called in a complaint."""
    return f"page {first}" if count == 1 else f"pages {first}..{first + count - 1}"
