# SPDX-License-Identifier: GPL-2.0-or-later
"""Translates what the guest's kernel shows into a scenario's terms: pages, PTEs, VMAs, events.

Sources: Documentation/admin-guide/mm/pagemap.rst for the bits of pagemap and kpageflags;
arch/x86/include/asm/pgtable_types.h for those of a page-table entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntFlag
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from mthp.image.runs import (
    SPECIAL_SWAP_TYPE,
    NodeRuns,
    PagesState,
    PteToken,
    joined_folios,
    node_runs,
    parse_folio_token,
    parse_pte_token,
)
from mthp.image.scenario_values import RECORDED_EVENTS
from mthp.image.snapshot import KPF_OF_LETTER
from mthp.lab.geometry import GEOMETRY, PAGE_SIZE

PM_PRESENT, PM_SWAP, PM_GUARD = 1 << 63, 1 << 62, 1 << 58
PM_UFFD_WP, PM_EXCLUSIVE, PM_SOFT_DIRTY = 1 << 57, 1 << 56, 1 << 55
SWAP_TYPE, SWAP_OFFSET_SHIFT, SWAP_OFFSET_MASK = 0x1F, 5, (1 << 50) - 1

KPF_MMAP, KPF_KSM, KPF_THP, KPF_ZERO_PAGE = (1 << bit for bit in (11, 21, 22, 24))
_FLAG_LETTERS = tuple((letter, 1 << bit) for letter, bit in KPF_OF_LETTER.items())
_MAPPING_LETTERS = (("x", PM_EXCLUSIVE), ("w", PM_UFFD_WP), ("s", PM_SOFT_DIRTY))

PTE_PRESENT, PTE_WRITE, PTE_ACCESSED, PTE_DIRTY = 1 << 0, 1 << 1, 1 << 5, 1 << 6
PTE_PROTNONE, PTE_UFFD_WP, PTE_SAVED_DIRTY = 1 << 8, 1 << 10, 1 << 58
PTE_SWP_EXCLUSIVE = 1 << 3
_LEVEL_PTE, _LEVEL_PMD, _LEVEL_NONE = range(3)

_PFN = (1 << 55) - 1
_MAPPING_BITS = PM_EXCLUSIVE | PM_UFFD_WP | PM_SOFT_DIRTY
_FRAME_BITS = ((1 << 52) - 1) & ~0xFFF
_PTE_MAPS = PTE_PRESENT | PTE_PROTNONE
_PTE_LETTERS = (
    ("W", PTE_WRITE),
    ("A", PTE_ACCESSED),
    ("D", PTE_DIRTY | PTE_SAVED_DIRTY),
    ("U", PTE_UFFD_WP),
)
_PTE_SHOWN = PTE_WRITE | PTE_ACCESSED | PTE_DIRTY | PTE_UFFD_WP
_HUGE, _NOT_PRESENT, _NO_TABLE = (np.uint64(1 << bit) for bit in (61, 62, 63))
_ALL = (1 << 64) - 1


TRACING = "/sys/kernel/tracing"
"""The guest's tracefs."""


class VmFlag(IntFlag):
    """The vm_flags that records use. Kernel: include/linux/mm.h."""

    WRITE = 1 << 1
    UFFD_MISSING = 1 << 9
    UFFD_WP = 1 << 12
    LOCKED = 1 << 13
    HUGEPAGE = 1 << 29
    SOFTDIRTY = 1 << 27
    NOHUGEPAGE = 1 << 30
    MERGEABLE = 1 << 31
    DROPPABLE = 1 << 40
    UFFD_MINOR = 1 << 41
    UFFD_RWP = 1 << 43


@dataclass(frozen=True)
class ObservedVma:
    """A mapping as the kernel has it. start, end: bytes. flags: vm_flags. pgd, mm: kernel addresses."""

    start: int
    end: int
    flags: int
    anon_vma: int
    pgd: int
    mm: int

    @property
    def pages(self) -> int:
        """How many base pages it has."""
        return (self.end - self.start) >> GEOMETRY.page_shift

    def has(self, flag: VmFlag) -> bool:
        """Whether any of these flags is set."""
        return bool(self.flags & flag)


class FolioNames:
    """Names of folios within one snapshot: of every large one, and of the small ones that the
    snapshot shows at more than one place."""

    def __init__(self, snapshot: Sequence[bytes], trusted: int = -1) -> None:
        """snapshot: the agent's answers to `pages`, one for each VMA. trusted: the bits of kpageflags
        that this kernel shows correctly."""
        self.trusted = trusted
        self._names: dict[int, int] = {}
        words = _columns(b"".join(snapshot))
        shown = words[(words[:, 0] & PM_PRESENT != 0) & (words[:, 1] & KPF_ZERO_PAGE == 0)]
        frames, times = np.unique(shown[:, 0] & _PFN, return_counts=True)
        self._frames = frames[times > 1]
        self._repeated = frozenset(self._frames.tolist())

    def repeated(self, frames: Any) -> Any:
        """For each frame, whether the snapshot shows it at more than one place."""
        return np.isin(frames, self._frames)

    def text(self, pfn: int, folio: int) -> str:
        """The end of a page's token: the folio's name and the page's index in it, or nothing."""
        head, order = folio >> 8, folio & 0xFF
        if not order and pfn not in self._repeated:
            return ""
        return f".f{self._names.setdefault(folio, len(self._names))}.i{pfn - head}"

    @property
    def large(self) -> dict[int, int]:
        """The names given to large folios so far, by first frame."""
        return {folio >> 8: name for folio, name in self._names.items() if folio & 0xFF}


def _columns(pages: bytes) -> Any:
    """An (n, 4) array of uint64: pagemap, kpageflags, kpagecount, folio."""
    return np.frombuffer(pages, dtype="<u8").reshape(-1, 4)


class NodeSpans:
    """Which NUMA node each frame is of."""

    def __init__(self, zoneinfo: str) -> None:
        """zoneinfo: the text of /proc/zoneinfo, which has for each zone where it starts."""
        zones = sorted((int(zone[2]), int(zone[1])) for zone in _ZONE.finditer(zoneinfo))
        self._starts = [start for start, _ in zones]
        self._nodes = [node for _, node in zones]

    @property
    def number(self) -> int:
        """How many nodes there are."""
        return max(self._nodes) + 1

    def runs(self, frames: Any, shown: Any) -> NodeRuns:
        """The runs over pages. frames: of each page. shown: which of them have a folio."""
        places = np.searchsorted(self._starts, frames, side="right") - 1
        nodes = np.where(shown, np.array(self._nodes)[places], -1).tolist()
        return node_runs((1, None if node < 0 else node) for node in nodes)


_ZONE = re.compile(
    r"^Node (\d+), zone +\w+\n(?:(?!Node).*\n)*? +present +[1-9].*\n(?:(?!Node).*\n)*? +start_pfn: +(\d+)$",
    re.MULTILINE,
)
"""A zone that has memory, in /proc/zoneinfo."""


def pages_state(
    start: int,
    pages: bytes,
    entries: bytes | None,
    names: FolioNames,
    sleepers: int = 0,
    nodes: NodeSpans | None = None,
) -> PagesState:
    """The state of one VMA from the agent's answers to `pages` and `walk`.

    start: the VMA's first address. sleepers: how many children outside the snapshot share what fork()
    shared. nodes: where there are several.
    """
    columns = _columns(pages)
    ptes, words = None, None
    if entries is not None:
        found = np.frombuffer(entries, dtype="<u8").reshape(-1, 2)
        ptes, words = _pte_runs(found, start), found[:, 0]
    pieces = []
    for place, count in _cut(_differs(columns, names)):
        word = None if words is None else int(words[place])
        text = _folio_text(columns[place].tolist(), word, names, sleepers)
        pieces.append((count, parse_folio_token(text)))
    state = PagesState(len(columns), joined_folios(pieces), ptes)
    if nodes is None:
        return state
    pagemap, flags = columns[:, 0], columns[:, 1]
    shown = (pagemap & PM_PRESENT != 0) & (flags & KPF_ZERO_PAGE == 0)
    return replace(state, nodes=nodes.runs(pagemap & _PFN, shown))


def _cut(differs: Any) -> Iterator[tuple[int, int]]:
    """(place, pages) of each piece; differs: whether a page begins one, but for the first."""
    edges = [0, *(np.flatnonzero(differs) + 1).tolist(), len(differs) + 1]
    yield from ((before, after - before) for before, after in pairwise(edges))


def _differs(columns: Any, names: FolioNames) -> Any:
    """For all pages but the first, whether the token differs from the one before in more than the index
    in the folio. Swap entries always differ."""
    pagemap, flags, count, folio = columns.T
    present = pagemap & PM_PRESENT != 0
    frame = np.where(present, pagemap & _PFN, 0)
    named = (folio & 0xFF != 0) | names.repeated(frame)
    shown = np.stack(
        (
            pagemap & (PM_PRESENT | PM_SWAP | PM_GUARD | _MAPPING_BITS),
            flags & np.uint64(names.trusted & _ALL | KPF_THP | KPF_ZERO_PAGE),
            count,
            np.where(named, folio, 0),
            named,
        )
    )
    alike = (shown[:, 1:] == shown[:, :-1]).all(axis=0)
    follows = ~named[1:] | (frame[1:] == frame[:-1] + 1)
    return ~alike | ~follows | (pagemap[1:] & PM_SWAP != 0)


def _pte_runs(entries: Any, start: int) -> tuple[tuple[int, PteToken], ...]:
    """The longest runs of equal entries of the agent's `walk` that do not cross a table's edge."""
    values, levels = entries.T
    dirty = np.uint64(PTE_DIRTY) * (values & PTE_SAVED_DIRTY != 0)
    letters = values & _PTE_SHOWN | dirty | np.uint64(_HUGE) * (levels == _LEVEL_PMD)
    kinds = (levels == _LEVEL_NONE, values == 0, values & _PTE_MAPS == 0)
    shown = np.select(kinds, (_NO_TABLE, np.uint64(0), _NOT_PRESENT), letters | PTE_PRESENT)
    differs = shown[1:] != shown[:-1]
    first = GEOMETRY.pte_index(start)
    differs[GEOMETRY.ptrs_per_pte - 1 - first :: GEOMETRY.ptrs_per_pte] = True
    return tuple((pages, _pte(*entries[at].tolist())) for at, pages in _cut(differs))


def _swap_text(pagemap: int, word: int | None, sleepers: int) -> str:
    """The token of a swap entry.

    word: its page-table entry, where that is known. sleepers: how many children outside the snapshot
    have the slots which fork() shared.
    """
    swap_type = pagemap & SWAP_TYPE
    wp = "w" if pagemap & PM_UFFD_WP else ""
    if swap_type >= SPECIAL_SWAP_TYPE:
        return f"W{swap_type}" + (f".{wp}" if wp else "")
    shared = word is not None and not word & PTE_SWP_EXCLUSIVE
    letters = wp + "f" * shared + "c" * (not pagemap & PM_SOFT_DIRTY)
    offset = pagemap >> SWAP_OFFSET_SHIFT & SWAP_OFFSET_MASK
    text = f"W{swap_type}" + (f".{letters}" if letters else "") + f".o{offset}"
    return text + (f".n{sleepers}" if shared and sleepers else "")


def _folio_text(columns: Sequence[int], word: int | None, names: FolioNames, sleepers: int) -> str:
    pagemap, flags, count, folio = columns
    if pagemap & PM_GUARD:
        return "G"
    if pagemap & PM_SWAP:
        return _swap_text(pagemap, word, sleepers)
    if not pagemap & PM_PRESENT:
        return "-"
    if flags & KPF_ZERO_PAGE:
        return "Zh" if flags & KPF_THP else "Z"
    letters = flag_letters(flags & names.trusted)
    mapping = _letters(pagemap & _MAPPING_BITS, _MAPPING_LETTERS)
    return f"F{folio & 0xFF}.{letters}.{mapping}.m{count}{names.text(pagemap & _PFN, folio)}"


def slots_of(states: Iterable[PagesState]) -> set[tuple[int, int]]:
    """The slots that entries name: device, and offset in it in pages."""
    return {
        (token.swap_type, token.swap_offset + page)
        for state in states
        for pages, token in state.folios
        if token.swap_type is not None and token.swap_offset is not None
        for page in range(pages)
    }


def flag_letters(flags: int) -> str:
    """The letters of a frame's kpageflags."""
    return _letters(flags, _FLAG_LETTERS)


@lru_cache(maxsize=8192)
def _letters(value: int, table: tuple[tuple[str, int], ...]) -> str:
    """The letters of a table for the bits that a value has."""
    return "".join(letter for letter, bits in table if value & bits)


def _pte(value: int, level: int) -> PteToken:
    if level == _LEVEL_NONE:
        return parse_pte_token("nopte")
    if not value:
        return parse_pte_token("-")
    if not value & _PTE_MAPS:
        return parse_pte_token("s")
    letters = "P" + _letters(value & ~_FRAME_BITS, _PTE_LETTERS)
    return parse_pte_token("H" + letters if level == _LEVEL_PMD else letters)


_KB = re.compile(r"^(RssAnon|VmSwap|VmPTE):\s+(\d+) kB$", re.MULTILINE)
_MEMORY = {"RssAnon": "anon", "VmSwap": "swap", "VmPTE": "tables"}


def memory_of(status: str) -> dict[str, int]:
    """What /proc/PID/status says that a process has, in pages: anonymous memory that it maps (anon), that is
    swapped out (swap), and page tables (tables)."""
    return {_MEMORY[name]: int(kb) * 1024 // PAGE_SIZE for name, kb in _KB.findall(status)}


# --- the trace ------------------------------------------------------------------------------

_LINE = re.compile(r"^.+? \[\d+\] \S+ +[\d.]+: (\w+): (.*)$", re.MULTILINE)
_FIELD = re.compile(r"(\w+)=(\S+?)(?:,|$| )")

_OLD_NAMES = {"pmd_none": "no_pte_table", "pmd_null": "no_pte_table"}
"""Statuses of older kernels -> the status that replaced them."""


def _lines(trace: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    for name, rest in _LINE.findall(trace):
        yield name, dict(_FIELD.findall(rest))


def events_of(trace: str) -> list[dict[str, Any]]:
    """The collapse events of a trace's text, in order, with the fields of a scenario.

    Kernels that collapse to PMD order only do not trace the order; it is added.
    """
    events = []
    for name, fields in _lines(trace):
        if name in RECORDED_EVENTS:
            event: dict[str, Any] = {"event": name}
            shown = {"order": str(GEOMETRY.pmd_order), **fields}
            for key in RECORDED_EVENTS[name]:
                if key in shown:
                    text = shown[key]
                    event[key] = _OLD_NAMES.get(text, text) if key == "status" else int(text, 0)
            events.append(event)
    return events


_VMA_FIELDS = tuple(ObservedVma.__dataclass_fields__)


def vmas_of(trace: str, low: int, high: int) -> list[ObservedVma]:
    """The mappings the `vma` probe saw between two addresses, in order, each once."""
    found: dict[int, ObservedVma] = {}
    for name, fields in _lines(trace):
        if name == "vma":
            vma = ObservedVma(**{key: int(fields[key], 0) for key in _VMA_FIELDS})
            if low <= vma.start < high:
                found[vma.start] = vma
    return [found[start] for start in sorted(found)]


def registered_pgds(trace: str) -> list[int]:
    """The page tables (pgd) of the processes that registered with khugepaged, in order of time."""
    return values_traced(trace, "enter", "pgd")


def values_traced(trace: str, event: str, field: str) -> list[int]:
    """The values of a field of the events of a name, in order of time."""
    return [int(fields[field], 0) for name, fields in _lines(trace) if name == event]


def trusted_flags(fresh: bytes) -> int:
    """The bits of kpageflags that are correct. fresh: the answer to `pages` for a page just written.

    Linux 6.18 shows every anonymous page as merged by KSM.
    """
    return -1 if not int(_columns(fresh)[0, 1]) & KPF_KSM else ~KPF_KSM
