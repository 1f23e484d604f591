# SPDX-License-Identifier: GPL-2.0-or-later
"""A scenario's declared state, process by process: what is to be on each page, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mthp.image.runs import FolioToken, PageKind, PteState, PteToken
from mthp.image.scenario import Prctl, Scenario, ScenarioVma
from mthp.lab.program import BASE, PROCESSES, spans
from mthp.lab.session import REACH

__all__ = ["CannotBuild", "Folio", "Page", "Want", "WantedVma", "displacement", "wanted"]


class CannotBuild(Exception):
    """A state that no sequence of our system calls makes: one line that says which part and why."""


@dataclass(frozen=True)
class Page:
    """One page. at: in pages from the process's base. vma: index into the scenario's; index: from
    that mapping's start.

    level: how many sleeping children must map it. pinned: a reference is to hold it.
    """

    at: int
    vma: int
    index: int
    token: FolioToken
    entry: PteToken
    level: int = 0
    pinned: bool = False


@dataclass(frozen=True)
class Folio:
    """A large folio. start: the first page of its window, from the process's base.

    pages: those of its pages that are mapped here.
    """

    order: int
    start: int
    pages: tuple[Page, ...]

    @property
    def size(self) -> int:
        return 1 << self.order

    @property
    def window(self) -> range:
        """All places of the folio, mapped or not."""
        return range(self.start, self.start + self.size)

    @property
    def token(self) -> FolioToken:
        return self.pages[0].token

    @property
    def level(self) -> int:
        return self.pages[0].level

    @property
    def huge(self) -> bool:
        """Mapped by a PMD."""
        return self.pages[0].entry.state is PteState.HUGE


@dataclass(frozen=True)
class WantedVma:
    """One mapping. index: in the scenario. start, end: in pages from the process's base."""

    index: int
    start: int
    end: int
    said: ScenarioVma

    @property
    def pages(self) -> int:
        return self.end - self.start


@dataclass
class Want:
    """What one process is to have. small: pages of folios of order 0, KSM's not among them."""

    name: str
    prctl: Prctl | None
    vmas: list[WantedVma] = field(default_factory=list)
    pages: dict[int, Page] = field(default_factory=dict)
    folios: list[Folio] = field(default_factory=list)

    def of(self, *kinds: PageKind) -> list[Page]:
        """The pages of some kinds, in order."""
        return [page for page in self.pages.values() if page.token.kind in kinds]

    @property
    def small(self) -> list[Page]:
        return [page for page in self.of(PageKind.FOLIO) if is_small(page)]

    @property
    def merged(self) -> list[Page]:
        """The pages KSM merged."""
        return [page for page in self.of(PageKind.FOLIO) if "K" in page.token.flags]

    def vma_of(self, page: Page) -> WantedVma:
        return next(vma for vma in self.vmas if vma.index == page.vma)


def is_small(page: Page) -> bool:
    """A page of a folio of order 0 that is no other process's, and not merged by KSM."""
    return page.token.order == 0 and "K" not in page.token.flags


def displacement(scenario: Scenario) -> int:
    """How much lower an address of the scenario lies in the guest: bytes, whole GiB.

    0 wherever the scenario's mappings lie in the range that a session watches.
    """
    low = min(vma.start for vma in scenario.vmas)
    high = max(vma.end(scenario.geometry) for vma in scenario.vmas)
    if low >= BASE and high <= BASE + REACH:
        return 0
    moved = (low - BASE) >> 30 << 30
    if high - moved > BASE + REACH:
        raise CannotBuild(f"the mappings span {high - low} bytes, at most {REACH}")
    return moved


def wanted(scenario: Scenario) -> list[Want]:
    """The processes of a scenario, in the order of khugepaged's scan."""
    processes = sorted({vma.mm for vma in scenario.vmas})
    if len(processes) > len(PROCESSES):
        raise CannotBuild(f"{len(processes)} processes, at most {len(PROCESSES)}")
    moved, shift = displacement(scenario), scenario.geometry.page_shift
    prctls = [*scenario.prctl, *[None] * len(processes)]
    wants = [Want(name, prctls[mm]) for name, mm in zip(PROCESSES, processes, strict=False)]
    for want, mm in zip(wants, processes, strict=True):
        mine = [(i, vma) for i, vma in enumerate(scenario.vmas) if vma.mm == mm]
        for index, vma in sorted(mine, key=lambda each: each[1].start):
            start = (vma.start - moved - BASE) >> shift
            want.vmas.append(WantedVma(index, start, start + vma.pages, vma))
        for where in want.vmas:
            want.pages.update((page.at, page) for page in _pages(where))
        want.folios = list(_folios(want))
    return wants


def _pages(where: WantedVma) -> Iterator[Page]:
    vma = where.said
    held = {page for start, count in vma.pins for page in range(start, start + count)}
    held |= {page for start, count, _ in vma.extra_refs for page in range(start, start + count)}
    both = zip(vma.initial.folio_pages(), vma.initial.pte_pages(), strict=True)
    for i, (token, entry) in enumerate(both):
        level = max(token.mapcount - 1, 0) if token.kind is PageKind.FOLIO else 0
        yield Page(where.start + i, where.index, i, token, entry, level, i in held)


def _folios(want: Want) -> Iterator[Folio]:
    """The large folios that the process maps, in the order of their first pages."""
    found: dict[int, list[Page]] = {}
    for page in want.of(PageKind.FOLIO):
        if page.token.order:
            assert page.token.folio is not None
            found.setdefault(page.token.folio, []).append(page)
    for pages in found.values():
        first = pages[0]
        folio = Folio(first.token.order, first.at - first.token.index, tuple(pages))
        for page in pages:
            _check_uniform(folio, page)
        if folio.start % folio.size:
            raise cannot([first], "a large folio that lies at no boundary of its size")
        yield folio


def _check_uniform(folio: Folio, page: Page) -> None:
    first = folio.pages[0]
    if page.at - page.token.index != folio.start:
        raise cannot([page], "a page of a folio that lies apart from its others")
    if page.token.flags != first.token.flags:
        raise cannot([page], "a folio whose pages have different flags")
    if page.level != first.level:
        raise cannot([page], "a folio whose pages are mapped a different number of times")


def cannot(pages: Iterable[Page], why: str) -> CannotBuild:
    """The refusal for some pages of one mapping: which, counted from its start, what, and why."""
    some = list(pages)
    first = some[0]
    start, count = spans(page.index for page in some)[0]
    where = f"page {start}" if count == 1 else f"pages {start}..{start + count - 1}"
    return CannotBuild(f"vmas[{first.vma}] {where}: {first.token} {first.entry}: {why}")
