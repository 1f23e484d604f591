# SPDX-License-Identifier: GPL-2.0-or-later
"""States that no kernel can be in: what a scenario is refused for.

Each check raises ScenarioError with the place in the document and one sentence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mthp.image.fields import ScenarioError
from mthp.image.runs import FolioToken, PageKind, PagesState, PteState, PteToken
from mthp.words.units import Geometry

if TYPE_CHECKING:
    from mthp.image.scenario_values import CachedFolio, KnownMm, ScenarioVma

_ENTRY_OF = {
    PageKind.NONE: {PteState.NONE, PteState.NO_TABLE},
    PageKind.ZERO: {PteState.PRESENT},
    PageKind.HUGE_ZERO: {PteState.HUGE},
    PageKind.SWAP: {PteState.NOT_PRESENT},
    PageKind.GUARD: {PteState.NOT_PRESENT},
    PageKind.FOLIO: {PteState.PRESENT, PteState.HUGE},
}
"""The page-table entries that go with what pagemap says."""

MOST_PAGES = 1 << 20
"""Of a scenario, in its mappings and in its folios: far more than a guest of the lab has."""


MOST_MAPPINGS = (1 << 31) - 1
"""Of a folio: an int counts them."""


@dataclass(slots=True)
class _Stretch:
    """Pages of one run of folios and one run of entries."""

    first: int
    count: int
    token: FolioToken
    entry: PteToken


@dataclass(slots=True)
class _Claim:
    """A stretch of a folio's pages, and the place where it is mapped."""

    index: int
    count: int
    mapcount: int
    order: int
    where: str


def check_vmas(vmas: Sequence[ScenarioVma], geometry: Geometry) -> None:
    """Check that no two VMAs of one process overlap, and that a world can be made of them."""
    pages = sum(vma.pages for vma in vmas)
    if pages > MOST_PAGES:
        raise ScenarioError(
            f"vmas: {pages} pages are more than the {MOST_PAGES} that are worked on"
        )
    places = sorted(range(len(vmas)), key=lambda i: (vmas[i].mm, vmas[i].start))
    for i, j in pairwise(places):
        if vmas[i].mm == vmas[j].mm and vmas[i].end(geometry) > vmas[j].start:
            first, second = sorted((i, j))
            raise ScenarioError(f"vmas[{second}]: overlaps vmas[{first}]")


def check_snapshot(
    geometry: Geometry, snapshot: Sequence[tuple[str, ScenarioVma, PagesState]]
) -> None:
    """Check that all VMAs, each with its place in the document, can have been so at one moment."""
    claims: dict[int, list[_Claim]] = defaultdict(list)
    tables: dict[tuple[int, int], PteState] = {}
    for where, vma, state in snapshot:
        stretches = list(_stretches(state))
        for stretch in stretches:
            _check_stretch(where, vma, stretch, geometry)
            token = stretch.token
            if token.folio is not None:
                place = f"{where}.folios: page {stretch.first}"
                claims[token.folio].append(
                    _Claim(token.index, stretch.count, token.mapcount, token.order, place)
                )
        if state.ptes is not None:
            _check_tables(where, vma, stretches, tables, geometry)
    pages = sum(1 << claimed[0].order for claimed in claims.values())
    if pages > MOST_PAGES:
        raise ScenarioError(
            f"folios: {pages} pages are more than the {MOST_PAGES} that are worked on"
        )
    for folio, claimed in claims.items():
        _check_claims(folio, claimed)


def check_mm_ids(
    geometry: Geometry, vmas: Sequence[ScenarioVma], known: Mapping[int, Sequence[KnownMm]]
) -> None:
    """Check that folios are large, and know processes that map them, and not more often than they do."""
    if not known:
        return
    mapped: Counter[tuple[int | None, int]] = (
        Counter()
    )  # in pages, so that a PMD counts as a table's
    for vma in vmas:
        for stretch in _stretches(vma.initial):
            token, huge = stretch.token, stretch.entry.state is PteState.HUGE
            if token.folio is not None and token.order:
                weight = 1 if huge else geometry.ptrs_per_pte
                mapped[vma.mm, token.folio] += stretch.count * weight
    large = {folio for _, folio in mapped}
    for folio, of in known.items():
        if folio not in large:
            raise ScenarioError(f"mm_ids.{folio}: no large folio of the state")
        own = [each.mm for each in of if each.mm is not None]
        if len(set(own)) < len(own):
            raise ScenarioError(f"mm_ids.{folio}: process {own[0]} twice")
        for mm, mappings in of:
            most = MOST_MAPPINGS if mm is None else mapped[mm, folio] // geometry.ptrs_per_pte
            if not 1 <= mappings <= most:
                who = "another process" if mm is None else f"process {mm}"
                raise ScenarioError(
                    f"mm_ids.{folio}: {mappings} mappings of {who}, not 1 to {most}"
                )


def check_swap_cache(
    vmas: Sequence[ScenarioVma], cached: Sequence[CachedFolio], geometry: Geometry
) -> None:
    """Check that each folio stands for slots of its own, at an offset aligned to its size, and that an entry
    names one of them; and that those which are mapped are in the cache."""
    if not cached:
        return
    named: set[tuple[int | None, int]] = set()
    folios: dict[int | None, FolioToken] = {}
    for vma in vmas:
        for pages, token in vma.initial.folios:
            if token.swap_offset is not None:
                run = range(token.swap_offset, token.swap_offset + pages)
                named.update((token.swap_type, slot) for slot in run)
            elif token.folio is not None:
                folios[token.folio] = token
    taken: set[tuple[int, int]] = set()
    for i, (device, offset, order, _, folio) in enumerate(cached):
        where = f"swap_cache[{i}]"
        if order and order not in geometry.anon_orders:
            raise ScenarioError(f"{where}.order: no anonymous folio has order {order}")
        if offset % (1 << order):
            raise ScenarioError(
                f"{where}.offset: {offset} is not a multiple of its {1 << order} pages"
            )
        slots = {(device, offset + page) for page in range(1 << order)}
        if taken & slots:
            raise ScenarioError(f"{where}.offset: another folio stands for a slot of it")
        taken |= slots
        if not named & slots:
            raise ScenarioError(f"{where}.offset: no entry names a slot of it")
        its = folios.get(folio)
        if folio is not None and (its is None or its.order != order or "C" not in its.flags):
            raise ScenarioError(
                f"{where}.folio: f{folio} is no folio of order {order} in the cache"
            )


def check_nodes(nodes: int, snapshot: Sequence[tuple[str, PagesState]]) -> None:
    """Check that every page of a folio, and no other, has a node, and all of a folio the same.

    nodes: how many there are; 0 where the document has none.
    """
    known: dict[int, int] = {}
    for where, state in snapshot:
        if bool(state.nodes) is not bool(nodes):
            what = "missing, though there are nodes" if nodes else "there are no nodes"
            raise ScenarioError(f"{where}.nodes: {what}")
        runs = iter(state.nodes)
        left, node = next(runs, (0, None))
        page = 0
        for count, token in state.folios if nodes else ():
            end = page + count
            while page < end:
                if not left:
                    left, node = next(runs)
                if node is not None and node >= nodes:
                    raise ScenarioError(f"{where}.nodes: page {page}: there are {nodes} nodes")
                if (node is None) is (token.kind is PageKind.FOLIO):
                    have = "none" if node is None else f"node {node}"
                    raise ScenarioError(f"{where}.nodes: page {page}: {have} under {token}")
                if token.folio is not None and node is not None:
                    other = known.setdefault(token.folio, node)
                    if other != node:
                        raise ScenarioError(
                            f"{where}.nodes: page {page}: f{token.folio} lies on node {other} too"
                        )
                step = min(left, end - page)
                page, left = page + step, left - step


def _stretches(state: PagesState) -> Iterator[_Stretch]:
    """Cut the state where either of its strings changes; neighbours that go on are joined."""
    page = 0
    folios, entries = iter(state.folios), iter(state.entries)
    folio_left = entry_left = 0
    token, entry = FolioToken(PageKind.NONE), PteToken(PteState.NONE)
    last: _Stretch | None = None
    while page < state.pages:
        if not folio_left:
            folio_left, token = next(folios)
        if not entry_left:
            entry_left, entry = next(entries)
        count = min(folio_left, entry_left)
        if last is not None and entry == last.entry and last.token.advanced(last.count) == token:
            last.count += count
        else:
            if last is not None:
                yield last
            last = _Stretch(page, count, token, entry)
        page, folio_left, entry_left = page + count, folio_left - count, entry_left - count
        token = token.advanced(count)
    if last is not None:
        yield last


def _check_stretch(where: str, vma: ScenarioVma, stretch: _Stretch, geometry: Geometry) -> None:
    """Check that what pagemap and the page table say of the same pages agrees."""
    token, entry = stretch.token, stretch.entry
    place = f"page {stretch.first}"
    if entry.state not in _ENTRY_OF[token.kind]:
        raise ScenarioError(f"{where}.ptes: {place}: entry {entry} under {token} in folios")
    if token.kind in (PageKind.ZERO, PageKind.HUGE_ZERO) and entry.writable:
        raise ScenarioError(f"{where}.ptes: {place}: a zero page is mapped writable ({entry})")
    if token.kind is not PageKind.FOLIO:
        return
    where = f"{where}.folios"
    if token.mapcount < 1:
        raise ScenarioError(f"{where}: {place}: mapcount 0 of a mapped page ({token})")
    if token.mapcount << token.order >= 1 << 31:  # an atomic_t counts the mappings of a folio
        raise ScenarioError(f"{where}: {place}: mapped more often than can be counted ({token})")
    # Under a huge PMD pagemap shows for every page what holds for the first (worlds/render.py, huge()).
    exact = entry.state is not PteState.HUGE
    if exact and "x" in token.pagemap and token.mapcount > 1:
        raise ScenarioError(
            f"{where}: {place}: mapped exclusively, yet mapcount {token.mapcount} ({token})"
        )
    if entry.uffd_wp != ("w" in token.pagemap):
        raise ScenarioError(f"{where}: {place}: uffd-wp differs: {token} and entry {entry}")
    if token.order and token.order not in geometry.anon_orders:
        raise ScenarioError(f"{where}: {place}: no anonymous folio has order {token.order}")
    if token.folio is not None and token.index + stretch.count > 1 << token.order:
        last = token.index + stretch.count - 1
        raise ScenarioError(
            f"{where}: {place}: index {last} is past the end of f{token.folio}, "
            f"a folio of order {token.order}"
        )
    if not vma.anon_vma:
        raise ScenarioError(f"{where}: {place}: {token} in a VMA without anon_vma")


def _check_tables(
    where: str,
    vma: ScenarioVma,
    stretches: Sequence[_Stretch],
    tables: dict[tuple[int, int], PteState],
    geometry: Geometry,
) -> None:
    """Check that a missing table is missing whole, and a huge PMD maps a whole aligned table of one
    folio."""
    nr = geometry.ptrs_per_pte
    base = vma.start >> geometry.page_shift
    covered: dict[tuple[int, int | None], int] = {}
    following = [*(each.entry.state for each in stretches[1:]), None]
    for stretch, after in zip(stretches, following, strict=True):
        page, end = base + stretch.first, base + stretch.first + stretch.count
        state = stretch.entry.state
        kind = state if state in (PteState.HUGE, PteState.NO_TABLE) else PteState.PRESENT
        if kind is PteState.HUGE:
            key = page // nr, stretch.token.folio
            covered[key] = covered.get(key, 0) + stretch.count
            if not _may_be_huge(stretch, page, geometry) or (
                after is not PteState.HUGE and covered[key] % nr
            ):
                raise ScenarioError(
                    f"{where}.ptes: page {stretch.first}: a huge PMD maps a whole table of {nr} "
                    f"pages, not {covered[key]} pages of {stretch.token}"
                )
        for table in (page // nr, (end - 1) // nr):  # those between are all of this stretch
            if tables.setdefault((vma.mm, table), kind) is not kind:
                first = max(stretch.first, table * nr - base)
                raise ScenarioError(
                    f"{where}.ptes: page {first}: one table is both "
                    f"{_table_name(tables[vma.mm, table])} and {_table_name(kind)}"
                )


def _may_be_huge(stretch: _Stretch, page: int, geometry: Geometry) -> bool:
    """Whether the run lies in its PMD as in a folio of PMD order. Its pages' mapcounts may differ:
    another process may map them one by one."""
    token = stretch.token
    large = token.kind is not PageKind.FOLIO or token.order >= geometry.pmd_order
    return large and (page - token.index) % geometry.ptrs_per_pte == 0


def _table_name(kind: PteState) -> str:
    return {PteState.HUGE: "a huge PMD", PteState.NO_TABLE: "missing"}.get(kind, "there")


def _check_claims(folio: int, claims: list[_Claim]) -> None:
    """Check that a folio has one order, and no page of it is mapped more often than its
    mapcount."""
    first = claims[0]
    for claim in claims:
        if claim.order != first.order:
            raise ScenarioError(
                f"{claim.where}: f{folio} has order {claim.order} here and {first.order} "
                f"at {first.where}"
            )
    claims.sort(key=lambda claim: claim.index)
    reach = 0
    for claim in claims:
        if claim.index < reach:
            _check_overlap(folio, claims)
            return
        reach = max(reach, claim.index + claim.count)


def _check_overlap(folio: int, claims: Sequence[_Claim]) -> None:
    """Do what _check_claims does, slowly: count the mappings of each page."""
    users: dict[int, list[_Claim]] = defaultdict(list)
    for claim in claims:
        for index in range(claim.index, claim.index + claim.count):
            users[index].append(claim)
    for index, claimed in users.items():
        least = min(claim.mapcount for claim in claimed)
        if len(claimed) > least:
            raise ScenarioError(
                f"{claimed[-1].where}: page {index} of f{folio} is mapped at {len(claimed)} "
                f"places with mapcount {least}"
            )
