# SPDX-License-Identifier: GPL-2.0-or-later
"""The run-length strings of a scenario: what lies behind each page, and its page-table entry.

A string is blanks between tokens `N:token`, N pages each. docs/scenario-format.md has the grammar.
Tokens are values and memoised: equal texts give the same object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import groupby, pairwise
from operator import itemgetter
from sys import intern
from typing import TypeVar

from mthp.words.units import Geometry, parse_whole

SPECIAL_SWAP_TYPE = 24
"""Swap types from here up are no swap device. Kernel: include/linux/swap.h, MAX_SWAPFILES with
CONFIG_MIGRATION, CONFIG_DEVICE_PRIVATE and CONFIG_MEMORY_FAILURE set."""

_SPECIAL_SWAP = {24: "hwpoison", 25: "migration", 26: "migration", 27: "migration", 31: "marker"}


def special_swap(swap_type: int) -> str | None:
    """hwpoison, migration, device or marker; None of a type that is a swap device."""
    return None if swap_type < SPECIAL_SWAP_TYPE else _SPECIAL_SWAP.get(swap_type, "device")


FOLIO_FLAGS = "lRDLAaCBVMPKTI"
"""kpageflags letters: locked, referenced, dirty, LRU, active, anon, swap cache, swap-backed,
unevictable, mlocked, poisoned, KSM, THP, idle."""

PAGEMAP_LETTERS = "xws"
"""pagemap letters: mapped exclusively, uffd-wp, soft-dirty."""

SWAP_LETTERS = "wfc"
"""Letters of a swap entry: uffd-wp, shared by fork (not exclusive), soft-clean; in this order."""


MOST_NODES = 64
"""NUMA nodes of a scenario."""

NodeRuns = tuple[tuple[int, int | None], ...]
"""Runs over a VMA's pages: how many, and their NUMA node, None where no folio is."""


class RunsError(ValueError):
    """A run-length string that cannot be read."""


class PageKind(StrEnum):
    """What pagemap says of one page."""

    NONE = "none"
    ZERO = "zero"
    HUGE_ZERO = "huge_zero"
    SWAP = "swap"
    GUARD = "guard"
    FOLIO = "folio"


class PteState(StrEnum):
    """What the page table says of one page."""

    NO_TABLE = "nopte"
    NONE = "none"
    NOT_PRESENT = "not present"
    PRESENT = "present"
    HUGE = "huge"


@dataclass(frozen=True, slots=True)
class FolioToken:
    """One page as pagemap, kpageflags and kpagecount show it; of a run, its first page.

    flags: letters of FOLIO_FLAGS, as written. pagemap: letters of PAGEMAP_LETTERS. mapcount: that
    of the page. folio: identity within one snapshot, None where the record gives none (small
    pages). index: place in the folio, in pages. The rest is about a swap entry: its type; its
    letters of SWAP_LETTERS; its offset in the device, in pages, None where the record does not say;
    and how many page tables outside the snapshot name the slot too.
    """

    kind: PageKind
    order: int = 0
    flags: str = ""
    pagemap: str = ""
    mapcount: int = 0
    folio: int | None = None
    index: int = 0
    swap_type: int | None = None
    swap_letters: str = ""
    swap_offset: int | None = None
    swap_outside: int = 0

    @property
    def runs_on(self) -> bool:
        """Whether a number rises along a run: the place in the folio, or the swap offset."""
        return self.folio is not None or self.swap_offset is not None

    def advanced(self, pages: int) -> FolioToken:
        """The token that stands so many pages further on in one run."""
        if self.folio is not None:
            index = self.index + pages
            # Not replace(): this is done for every page of every folio.
            return FolioToken(
                self.kind, self.order, self.flags, self.pagemap, self.mapcount, self.folio, index
            )
        if self.swap_offset is not None:
            return replace(self, swap_offset=self.swap_offset + pages)
        return self

    @property
    def special_swap(self) -> str | None:
        """hwpoison, migration, device or marker, where the entry names no swap device."""
        return None if self.swap_type is None else special_swap(self.swap_type)

    def __str__(self) -> str:
        """The token's text, without the number of pages."""
        match self.kind:
            case PageKind.SWAP:
                return self._swap_text()
            case PageKind.FOLIO:
                text = f"F{self.order}.{self.flags}.{self.pagemap}.m{self.mapcount}"
                return text if self.folio is None else f"{text}.f{self.folio}.i{self.index}"
            case kind:
                return _PLAIN_TEXT[kind]

    def _swap_text(self) -> str:
        text = f"W{self.swap_type}"
        if self.swap_letters:
            text += f".{self.swap_letters}"
        if self.swap_offset is not None:
            text += f".o{self.swap_offset}"
        return f"{text}.n{self.swap_outside}" if self.swap_outside else text


_PLAIN = {
    "-": FolioToken(PageKind.NONE),
    "Z": FolioToken(PageKind.ZERO),
    "Zh": FolioToken(PageKind.HUGE_ZERO),
    "G": FolioToken(PageKind.GUARD),
}
_PLAIN_TEXT = {token.kind: text for text, token in _PLAIN.items()}
_SWAP = re.compile(
    r"W([0-9]{1,4})(?:\.(w?f?c?)(?<=[wfc]))?(?:\.o([0-9]{1,12}))?(?:\.n([1-9][0-9]{0,5}))?"
)
MOST_DIGITS = 12
"""Of a folio's identity."""
_FOLIO = re.compile(
    rf"F([0-9]{{1,2}})\.([{FOLIO_FLAGS}]*)\.([{PAGEMAP_LETTERS}]*)\.m([0-9]{{1,9}})"
    rf"(?:\.f([0-9]{{1,{MOST_DIGITS}}})\.i([0-9]{{1,9}}))?"
)
_PTE = re.compile(r"(H?)(P[WADU]*)")


@dataclass(frozen=True, slots=True)
class PteToken:
    """One page-table entry. letters: those of a present entry, from P W A D U, without the H."""

    state: PteState
    letters: str = ""

    @property
    def uffd_wp(self) -> bool:
        """Whether the entry is write-protected for userfaultfd."""
        return "U" in self.letters

    @property
    def writable(self) -> bool:
        return "W" in self.letters

    @property
    def young(self) -> bool:
        """Whether its accessed bit is set."""
        return "A" in self.letters

    @property
    def dirty(self) -> bool:
        return "D" in self.letters

    def __str__(self) -> str:
        """The token's text: PWAD, HPWAD, s, -, nopte."""
        match self.state:
            case PteState.PRESENT:
                return self.letters
            case PteState.HUGE:
                return "H" + self.letters
            case state:
                return _PLAIN_PTE_TEXT[state]


_PLAIN_PTE = {
    "-": PteToken(PteState.NONE),
    "s": PteToken(PteState.NOT_PRESENT),
    "nopte": PteToken(PteState.NO_TABLE),
}
_PLAIN_PTE_TEXT = {token.state: text for text, token in _PLAIN_PTE.items()}


@lru_cache(maxsize=1 << 16)
def parse_folio_token(text: str) -> FolioToken:
    """Read one token of `folios` (without `N:`); RunsError where it is none."""
    plain = _PLAIN.get(text)
    if plain is not None:
        return plain
    if swap := _SWAP.fullmatch(text):
        swap_type, letters, offset, outside = swap.groups()
        return FolioToken(
            PageKind.SWAP,
            swap_type=int(swap_type),
            swap_letters=letters or "",
            swap_offset=None if offset is None else int(offset),
            swap_outside=int(outside or 0),
        )
    match = _FOLIO.fullmatch(text)
    if match is None:
        raise RunsError(f"cannot read folio token {text!r}")
    order, flags, pagemap, mapcount, folio, index = match.groups()
    if folio is None and order != "0":
        raise RunsError(f"a folio of order {order} needs .f<id>.i<index>: {text!r}")
    return FolioToken(
        PageKind.FOLIO,
        int(order),
        intern(flags),
        intern(pagemap),
        int(mapcount),
        None if folio is None else int(folio),
        int(index or 0),
    )


@lru_cache(maxsize=1 << 10)
def parse_pte_token(text: str) -> PteToken:
    """Read one token of `ptes` (without `N:`); RunsError where it is none."""
    plain = _PLAIN_PTE.get(text)
    if plain is not None:
        return plain
    match = _PTE.fullmatch(text)
    if match is None:
        raise RunsError(f"cannot read PTE token {text!r}")
    return PteToken(PteState.HUGE if match[1] else PteState.PRESENT, intern(match[2]))


@lru_cache(maxsize=1 << 8)
def parse_node(text: str) -> int | None:
    """Read one token of `nodes` (without `N:`), None where nothing lies; RunsError where it is none."""
    if text == "-":
        return None
    try:
        return parse_whole(text, 0, MOST_NODES - 1)
    except ValueError:
        raise RunsError(f"cannot read node {text[:40]!r}") from None


def node_runs(pieces: Iterable[tuple[int, int | None]]) -> NodeRuns:
    """The longest runs of nodes over shorter ones that stand in a row."""
    alike = groupby(pieces, key=itemgetter(1))
    return tuple((sum(pages for pages, _ in run), node) for node, run in alike)


Token = TypeVar("Token", FolioToken, PteToken, int | None)


def parse_runs(text: str, parse: Callable[[str], Token]) -> tuple[tuple[int, Token], ...]:
    """(pages, token) of each run; parse is parse_folio_token, parse_pte_token or parse_node."""
    runs = []
    for item in text.split():
        count, colon, token = item.partition(":")
        try:
            pages = parse_whole(count if colon else "", 1, 10**15)
        except ValueError:
            raise RunsError(f"{item[:40]!r} is not <pages>:<token>") from None
        runs.append((pages, parse(token)))
    return tuple(runs)


def _follows(token: FolioToken, first: FolioToken, pages: int) -> bool:
    """Whether token is what stands so many pages after first in one run."""
    if first.folio is not None:
        return (
            token.folio == first.folio
            and token.index == first.index + pages
            and token.mapcount == first.mapcount
            and token.flags == first.flags
            and token.pagemap == first.pagemap
            and token.order == first.order
        )
    return token == first.advanced(pages)


def folio_runs(pages: Iterable[FolioToken]) -> tuple[tuple[int, FolioToken], ...]:
    """The longest runs over per-page tokens, each with the token of its first page."""
    return joined_folios((1, token) for token in pages)


def joined_folios(
    pieces: Iterable[tuple[int, FolioToken]],
) -> tuple[tuple[int, FolioToken], ...]:
    """The longest runs over shorter ones that stand in a row."""
    runs: list[tuple[int, FolioToken]] = []
    first, count = None, 0
    for pages, token in pieces:
        if first is not None and (
            (token is first and not token.runs_on) or _follows(token, first, count)
        ):
            count += pages
            continue
        if first is not None:
            runs.append((count, first))
        first, count = token, pages
    if first is not None:
        runs.append((count, first))
    return tuple(runs)


def pte_runs(
    pages: Sequence[PteToken], start: int, geometry: Geometry
) -> tuple[tuple[int, PteToken], ...]:
    """The longest runs over per-page entries that do not cross a table's edge.

    start: the address of the first page, in bytes.
    """
    nr = geometry.ptrs_per_pte
    to_edge = nr - geometry.pte_index(start)
    cuts = [
        place
        for place in range(1, len(pages))
        if (place - to_edge) % nr == 0 or pages[place] != pages[place - 1]
    ]
    edges = [0, *cuts, len(pages)] if pages else []
    return tuple((after - before, pages[before]) for before, after in pairwise(edges))


def encode_runs(runs: Iterable[tuple[int, FolioToken]] | Iterable[tuple[int, PteToken]]) -> str:
    """The string that says the runs: the reverse of parse_runs()."""
    return " ".join(f"{count}:{token}" for count, token in runs)


@dataclass(frozen=True)
class PagesState:
    """The state of a VMA's pages: runs over `pages` pages.

    ptes is None where the record has none (a mapping that was never written, see ScenarioVma's
    anon_vma); its entries are then those that the folios imply: none, or a read-only zero page.
    nodes: empty where there is one node alone.
    """

    pages: int
    folios: tuple[tuple[int, FolioToken], ...]
    ptes: tuple[tuple[int, PteToken], ...] | None
    nodes: NodeRuns = ()

    @classmethod
    def of_pages(
        cls,
        folios: Sequence[FolioToken],
        ptes: Sequence[PteToken] | None,
        start: int,
        geometry: Geometry,
    ) -> PagesState:
        """A state from per-page values; start: the VMA's address, in bytes."""
        entries = None if ptes is None else pte_runs(ptes, start, geometry)
        return cls(len(folios), folio_runs(folios), entries)

    def folio_pages(self) -> Iterator[FolioToken]:
        """The token of every page, with its own index."""
        for count, token in self.folios:
            if token.runs_on:
                yield from map(token.advanced, range(count))
            else:
                yield from (token,) * count

    @property
    def entries(self) -> tuple[tuple[int, PteToken], ...]:
        """The runs of page-table entries; those that the folios imply where the record has none."""
        if self.ptes is not None:
            return self.ptes
        return tuple(
            (count, parse_pte_token("PA" if token.kind is PageKind.ZERO else "-"))
            for count, token in self.folios
        )

    def pte_pages(self) -> Iterator[PteToken]:
        """The entry of every page."""
        for count, entry in self.entries:
            yield from (entry,) * count

    def folios_text(self) -> str:
        """The `folios` string."""
        return encode_runs(self.folios)

    def ptes_text(self) -> str | None:
        """The `ptes` string."""
        return None if self.ptes is None else encode_runs(self.ptes)

    def nodes_text(self) -> str:
        """The `nodes` string."""
        return " ".join(f"{count}:{'-' if node is None else node}" for count, node in self.nodes)
