# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between the state a scenario declares and the one that was read back.

Some differences are tolerated, because they cannot be observed or have no consequences:

- the names of folios (their identities must agree), and the order of flag letters;
- the dirty bit of an entry that is not writable: the reader here shows x86's saved-dirty bit too,
  older records the hardware's alone. Kernel: arch/x86/include/asm/pgtable.h, pte_dirty();
- which swap device an entry names, and which slot where the scenario does not say;
- how many blocks are free of each order: the largest order counts, of smaller ones there is plenty;
- how much a memory cgroup has charged, and its limit: the program keeps their distance;
- page tables where the scenario has no `ptes` at all;
- addresses, all moved alike by displacement().
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

from mthp.image.runs import (
    SPECIAL_SWAP_TYPE,
    FolioToken,
    PageKind,
    PagesState,
    PteToken,
    parse_pte_token,
)
from mthp.image.scenario import Scenario
from mthp.image.scenario_values import KnownMm, ScenarioVma
from mthp.lab.compile.wanted import displacement, held_pages, pages_text

_TRAITS = (
    "pages",
    "advice",
    "mlocked",
    "uffd_wp",
    "anon_vma",
    "mm",
    "droppable",
    "read_only",
    "ksm",
)


def differences(wanted: Scenario, built: Scenario) -> list[str]:
    """One line for each property of a mapping, and each run of pages, that is not as declared.

    built: the scenario that was recorded from the program of compile_state(wanted).
    """
    if len(wanted.vmas) != len(built.vmas):
        return [f"{len(built.vmas)} mappings, not {len(wanted.vmas)}"]
    found: list[str] = []
    order = sorted(range(len(wanted.vmas)), key=lambda i: _place(wanted.vmas[i]))
    moved = displacement(wanted)
    for i, have in zip(order, built.vmas, strict=True):
        want = wanted.vmas[i]
        if want.start - moved != have.start:
            found.append(f"vmas[{i}].start: {have.start}, not {want.start - moved}")
        found += [
            f"vmas[{i}].{name}: {getattr(have, name)}, not {getattr(want, name)}"
            for name in _TRAITS
            if getattr(have, name) != getattr(want, name)
        ]
        if held_pages(want) != held_pages(have):
            found.append(f"vmas[{i}]: other pages are held by references")
    if wanted.free_blocks is not None:
        large, free = _largest(wanted.free_blocks), _largest(built.free_blocks or {})
        if large != free:
            found.append(f"free_blocks: the largest is of order {free}, not {large}")
    if not found:
        states = [wanted.vmas[i].initial for i in order]
        for i, text in state_differences(states, [vma.initial for vma in built.vmas]):
            found.append(f"vmas[{order[i]}] {text}")
    if not found and wanted.mm_ids:  # older records do not say it
        found += _sharing_differences(wanted, [wanted.vmas[i] for i in order], built)
    return found


def _sharing_differences(
    wanted: Scenario, vmas: Iterable[ScenarioVma], built: Scenario
) -> Iterator[str]:
    """One line for each large folio that knows other processes. vmas: of wanted, in the order of built's."""
    for name, its in zip(_folios(vmas), _folios(built.vmas), strict=True):
        want, have = wanted.mm_ids.get(name), built.mm_ids.get(its)
        if want != have:
            yield f"mm_ids.{name}: {_known_text(have)}, not {_known_text(want)}"


def _folios(vmas: Iterable[ScenarioVma]) -> list[int]:
    """The names of large folios, in the order in which they are met."""
    tokens = (token for vma in vmas for _, token in vma.initial.folios)
    return list(dict.fromkeys(t.folio for t in tokens if t.folio is not None and t.order))


def _known_text(known: Iterable[KnownMm] | None) -> str:
    if known is None:
        return "not shared"
    return str([list(each) for each in known])


def state_differences(
    wanted: Sequence[PagesState], built: Sequence[PagesState]
) -> Iterator[tuple[int, str]]:
    """(mapping, what differs) for each run of pages. wanted, built: the states of one snapshot each."""
    pages_wanted, pages_built = _comparable(wanted), _comparable(built)
    for i, (want, have) in enumerate(zip(pages_wanted, pages_built, strict=True)):
        tables = wanted[i].ptes is not None
        yield from ((i, text) for text in _page_differences(want, have, tables=tables))


_Look = tuple[FolioToken, PteToken]


def _place(vma: ScenarioVma) -> tuple[int, int]:
    return vma.mm, vma.start


def _largest(free_blocks: Mapping[int, int]) -> int:
    return max((order for order, count in free_blocks.items() if count), default=0)


def _comparable(states: Iterable[PagesState]) -> list[list[_Look]]:
    """Each page's token and entry, without what is tolerated."""
    looks = [list(zip(each.folio_pages(), each.pte_pages(), strict=True)) for each in states]
    times = Counter(token.folio for look in looks for token, _ in look if token.folio is not None)
    names: dict[int, int] = {}

    def rename(token: FolioToken) -> FolioToken:
        if token.folio is None:
            return token
        if token.order == 0 and times[token.folio] == 1:
            return replace(token, folio=None)
        return replace(token, folio=names.setdefault(token.folio, len(names)))

    return [[(rename(_plain(token)), _entry(entry)) for token, entry in look] for look in looks]


@lru_cache(maxsize=1 << 14)
def _plain(token: FolioToken) -> FolioToken:
    if token.swap_type is not None and token.swap_type < SPECIAL_SWAP_TYPE:
        return replace(token, swap_type=0)
    return replace(token, flags="".join(sorted(token.flags)))


@lru_cache(maxsize=1 << 10)
def _entry(entry: PteToken) -> PteToken:
    if not entry.letters:
        return entry
    letters = "".join(
        each for each in "PWADU" if each in entry.letters and (entry.writable or each != "D")
    )
    return replace(entry, letters=letters)


def _page_differences(
    want: Sequence[_Look], have: Sequence[_Look], *, tables: bool
) -> Iterator[str]:
    """One line for each run of pages that differ alike."""
    texts = (_page_difference(*pair, tables=tables) for pair in zip(want, have, strict=True))
    first = 0
    for text, alike in groupby(texts):
        count = len(list(alike))
        if text:
            yield f"{pages_text(first, count)}: {text}"
        first += count


_NO_TABLE = parse_pte_token("nopte")
_NONE = parse_pte_token("-")


def _page_difference(want: _Look, have: _Look, *, tables: bool) -> str:
    if not tables and have[1] == _NO_TABLE:
        have = (have[0], _NONE)
    if want[0].swap_offset is None:
        have = (replace(have[0], swap_offset=None), have[1])
    if want == have:
        return ""
    return f"{_text(have)}, not {_text(want)}"


def _text(look: _Look) -> str:
    token, entry = look
    if token.kind is PageKind.FOLIO and token.folio is not None:
        name = f"{replace(token, folio=None, index=0)}.f{token.folio}"
        return f"{name} {entry}"
    return f"{token} {entry}"
