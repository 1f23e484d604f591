# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's kernel shows, in the words of a scenario. Lines and words are those of 7.3.4."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mthp.image.runs import PagesState
from mthp.lab.session.observe import (
    FolioNames,
    NodeSpans,
    ObservedVma,
    VmFlag,
    events_of,
    pages_state,
    registered_pgds,
    trusted_flags,
    values_traced,
    vmas_of,
)
from mthp.words.units import Geometry

START = 0x7E0000200000
PGD, MM = 0xFFFF8AF382EC9000, 0xFFFF8AF38226C000
HEAD = """# tracer: nop
#
# entries-in-buffer/entries-written: 5/5   #P:1
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""
SCAN = (
    HEAD
    + """\
      khugepaged-90      [000] .....     5.596607: attempt: (collapse_huge_page+0x0/0x15b0) address=0x7e0000200000 order=0x9
      khugepaged-90      [000] .....     4.290184: mm_collapse_huge_page_swapin: mm=(____ptrval____), swapped_in=16, referenced=496, ret=1, order=9
      khugepaged-90      [000] .B.1.     5.604303: mm_collapse_huge_page_isolate: scan_pfn=0xe5f3, none_or_zero=3, referenced=512, status=succeeded, order=9
      khugepaged-90      [000] .l...     5.620187: mm_collapse_huge_page: mm=(____ptrval____), isolated=1, status=succeeded, order=9
      khugepaged-90      [000] .l...     5.620238: mm_khugepaged_scan_pmd: mm=(____ptrval____), scan_pfn=0xffffffffffffffff, referenced=509, none_or_zero=3, status=succeeded, unmapped=0
"""  # noqa: E501
)
BEFORE_MTHP = (
    HEAD
    + """\
 a [odd] name-7      [003] d..2.   105.000001: mm_collapse_huge_page: mm=(____ptrval____), isolated=0, status=alloc_huge_page_failed
 a [odd] name-7      [003] d..2.   105.000009: mm_khugepaged_scan_pmd: mm=(____ptrval____), referenced=0, status=pmd_none
"""  # noqa: E501
)
MAPS = (
    HEAD
    + """\
            init-1       [000] .....     5.548142: vma: (show_map_vma+0x0/0x140) start=6701056 end=6840320 flags=135266419 anon_vma=0xffff8af38275e180 pgd=0xffff8af382ec9000 mm=0xffff8af38226c000
            init-1       [000] .....     5.548185: vma: (show_map_vma+0x0/0x140) start=138538467201024 end=138538467205120 flags=2147483763 anon_vma=0x0 pgd=0xffff8af382ec9000 mm=0xffff8af38226c000
            init-1       [000] .....     5.548185: vma: (show_map_vma+0x0/0x140) start=138538467196928 end=138538467201024 flags=671088755 anon_vma=0xffff8af38275e2a0 pgd=0xffff8af382ec9000 mm=0xffff8af38226c000
            init-1       [000] .....     5.548190: vma: (show_map_vma+0x0/0x140) start=138538467196928 end=138538467201024 flags=671088755 anon_vma=0xffff8af38275e2a0 pgd=0xffff8af382ec9000 mm=0xffff8af38226c000
"""  # noqa: E501
)
ENTER = (
    HEAD
    + """\
               s-92      [000] .....     5.524101: enter: (__khugepaged_enter+0x4/0x140) pgd=0xffff8af382ec9000
               t-94      [000] .....     5.763504: enter: (__khugepaged_enter+0x4/0x140) pgd=0xffff8af382111000
"""  # noqa: E501
)

PRESENT, SWAP, GUARD = 1 << 63, 1 << 62, 1 << 58
WP, EXCLUSIVE, SOFT_DIRTY = 1 << 57, 1 << 56, 1 << 55
SMALL = 1 << 2 | 1 << 5 | 1 << 12 | 1 << 14
"""referenced, on an LRU list, anonymous, swap-backed: what 7.3.4 shows of a new base page."""
KSM = 1 << 21
THP = 1 << 22
ZERO_PAGE = 1 << 24

Page = tuple[int, int, int, int]
"""pagemap, kpageflags, kpagecount, folio."""
NONE: Page = (0, 0, 0, 0)
HOLE = 0
PWAD = 0x800000000D9CF867
"""A page-table entry as 7.3.4 has it: no-execute, soft-dirty, dirty, accessed, user, writable."""


def small(pfn: int, count: int = 1, bits: int = EXCLUSIVE | SOFT_DIRTY) -> Page:
    return PRESENT | bits | pfn, SMALL, count, pfn << 8


def large(pfn: int, head: int, order: int, flags: int = SMALL | THP) -> Page:
    return PRESENT | EXCLUSIVE | pfn, flags, 1, head << 8 | order


def swapped(offset: int, bits: int = SOFT_DIRTY, kind: int = 0) -> Page:
    return SWAP | bits | offset << 5 | kind, 0, 0, 0


def raw(*pages: Page) -> bytes:
    """As the agent's `pages` answers."""
    return b"".join(struct.pack("<4Q", *page) for page in pages)


def walk(*entries: int | tuple[int, int]) -> bytes:
    """As the agent's `walk` answers; an entry of a page table unless a level is given."""
    pairs = (entry if isinstance(entry, tuple) else (entry, 0) for entry in entries)
    return b"".join(struct.pack("<2Q", *pair) for pair in pairs)


def folios(*pages: Page, entries: bytes | None = None, sleepers: int = 0) -> str:
    data = raw(*pages)
    return pages_state(START, data, entries, FolioNames([data]), sleepers).folios_text()


def ptes(*entries: int | tuple[int, int]) -> str | None:
    data = raw(*[NONE] * len(entries))
    return pages_state(START, data, walk(*entries), FolioNames([data])).ptes_text()


# --- the trace ------------------------------------------------------------------------------


def test_events_have_the_fields_of_a_scenario_in_their_order() -> None:
    events = events_of(SCAN)
    assert [list(event.items()) for event in events] == [
        [("event", "attempt"), ("address", START), ("order", 9)],
        [
            ("event", "mm_collapse_huge_page_swapin"),
            ("ret", 1),
            ("order", 9),
            ("swapped_in", 16),
            ("referenced", 496),
        ],
        [
            ("event", "mm_collapse_huge_page_isolate"),
            ("status", "succeeded"),
            ("order", 9),
            ("referenced", 512),
            ("none_or_zero", 3),
        ],
        [("event", "mm_collapse_huge_page"), ("status", "succeeded"), ("order", 9)],
        [
            ("event", "mm_khugepaged_scan_pmd"),
            ("status", "succeeded"),
            ("referenced", 509),
            ("none_or_zero", 3),
            ("unmapped", 0),
        ],
    ]


def test_before_there_were_orders_each_event_is_of_the_pmds() -> None:
    """Linux before 7.2. What else a kernel does not say is left out, not made up."""
    assert events_of(BEFORE_MTHP) == [
        {"event": "mm_collapse_huge_page", "status": "alloc_huge_page_failed", "order": 9},
        {"event": "mm_khugepaged_scan_pmd", "status": "no_pte_table", "referenced": 0},
    ]


def test_a_trace_of_other_things_has_no_events() -> None:
    assert events_of("") == events_of(HEAD) == events_of(MAPS) == events_of(ENTER) == []


def test_mappings_in_order_each_once_and_only_those_asked_for() -> None:
    low = START
    found = vmas_of(MAPS, low, low + (1 << 37))
    assert found == [
        ObservedVma(low, low + 4096, 671088755, 0xFFFF8AF38275E2A0, PGD, MM),
        ObservedVma(low + 4096, low + 8192, 2147483763, 0, PGD, MM),
    ]
    assert vmas_of(MAPS, low + 4096, low + 8192) == found[1:]
    assert vmas_of(MAPS, low, low + 4096) == found[:1]
    assert vmas_of(SCAN, 0, 1 << 47) == []


def test_what_a_mappings_flags_say() -> None:
    first, second = vmas_of(MAPS, START, START + 8192)
    assert first.pages == second.pages == 1
    assert first.has(VmFlag.HUGEPAGE)
    assert first.has(VmFlag.SOFTDIRTY)
    assert not first.has(VmFlag.MERGEABLE | VmFlag.NOHUGEPAGE)
    assert second.has(VmFlag.MERGEABLE | VmFlag.NOHUGEPAGE)
    assert not second.has(VmFlag.HUGEPAGE)


def test_who_registered_with_khugepaged() -> None:
    assert registered_pgds(ENTER) == [PGD, 0xFFFF8AF382111000]
    assert registered_pgds(HEAD) == registered_pgds(SCAN) == registered_pgds(MAPS) == []


def test_values_of_a_field_in_order_of_time() -> None:
    assert values_traced(ENTER, "enter", "pgd") == registered_pgds(ENTER)
    assert values_traced(MAPS, "vma", "start")[0] == 6701056
    assert values_traced(MAPS, "enter", "pgd") == []


# --- pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "token"),
    [
        (NONE, "-"),
        ((SOFT_DIRTY, 0, 0, 0), "-"),
        ((PRESENT | 5, ZERO_PAGE, 0, 5 << 8), "Z"),
        ((PRESENT | 512, ZERO_PAGE | THP, 0, 512 << 8 | 9), "Zh"),
        ((SWAP | GUARD | SOFT_DIRTY, 0, 0, 0), "G"),
        (small(7), "F0.RLaB.xs.m1"),
        (small(7, bits=0), "F0.RLaB..m1"),
        (small(7, bits=EXCLUSIVE | WP | SOFT_DIRTY), "F0.RLaB.xws.m1"),
        (small(7, count=3, bits=0), "F0.RLaB..m3"),
        ((PRESENT | 7, 1 << 0 | 1 << 4 | 1 << 13 | 1 << 21, 1, 7 << 8), "F0.lDCK..m1"),
        ((PRESENT | 7, 1 << 6 | 1 << 18 | 1 << 19 | 1 << 25 | 1 << 33, 1, 7 << 8), "F0.AVPIM..m1"),
    ],
)
def test_a_page(page: Page, token: str) -> None:
    assert folios(page) == f"1:{token}"


def test_a_large_folio_has_a_name_and_its_pages_their_places() -> None:
    assert folios(*(large(32 + i, 32, 2) for i in range(4)), small(99)) == (
        "4:F2.RLaBT.x.m1.f0.i0 1:F0.RLaB.xs.m1"
    )
    assert folios(large(35, 32, 2), NONE, large(16, 16, 4)) == (
        "1:F2.RLaBT.x.m1.f0.i3 1:- 1:F4.RLaBT.x.m1.f1.i0"
    )


def test_the_names_of_large_folios() -> None:
    pages = [large(32 + i, 32, 2) for i in range(4)] + [small(9, 2), small(9, 2), large(16, 16, 4)]
    data = raw(*pages)
    names = FolioNames([data])
    assert names.large == {}
    pages_state(START, data, None, names)
    assert names.large == {32: 0, 16: 2}


def test_a_small_page_has_a_name_where_it_is_seen_twice() -> None:
    """In two processes, or after KSM in one."""
    parent = raw(small(7, 2, 0), small(8, 1), small(9, 2, 0))
    child = raw(NONE, small(9, 2, 0), small(7, 2, 0))
    names = FolioNames([parent, child])
    assert pages_state(START, parent, None, names).folios_text() == (
        "1:F0.RLaB..m2.f0.i0 1:F0.RLaB.xs.m1 1:F0.RLaB..m2.f1.i0"
    )
    assert pages_state(START, child, None, names).folios_text() == (
        "1:- 1:F0.RLaB..m2.f1.i0 1:F0.RLaB..m2.f0.i0"
    )


def test_flags_that_a_kernel_shows_wrongly_are_not_believed() -> None:
    """Linux 6.18 has every anonymous page as KSM's."""
    page = (PRESENT | EXCLUSIVE | 7, SMALL | KSM, 1, 7 << 8)
    data = raw(page)
    assert trusted_flags(raw(small(7))) == -1
    names = FolioNames([data], trusted_flags(data))
    assert pages_state(START, data, None, names).folios_text() == "1:F0.RLaB.x.m1"
    assert folios(page) == "1:F0.RLaBK.x.m1"


def test_the_zero_page_seen_twice_has_no_name() -> None:
    zero = (PRESENT | 5, ZERO_PAGE, 0, 5 << 8)
    assert folios(zero, zero, swapped(5), swapped(5)) == "2:Z 1:W0.o5 1:W0.o5"


# --- swap entries ---------------------------------------------------------------------------

SWP_EXCLUSIVE = 1 << 3


@pytest.mark.parametrize(
    ("page", "entry", "token"),
    [
        (swapped(130), SWP_EXCLUSIVE, "W0.o130"),
        (swapped(130, kind=1), SWP_EXCLUSIVE, "W1.o130"),
        (swapped(0), SWP_EXCLUSIVE, "W0.o0"),
        (swapped(130, SOFT_DIRTY | WP), SWP_EXCLUSIVE, "W0.w.o130"),
        (swapped(130, 0), SWP_EXCLUSIVE, "W0.c.o130"),
        (swapped(130), 2, "W0.f.o130"),
        (swapped(130, WP), 2, "W0.wfc.o130"),
        (swapped(0, SOFT_DIRTY, 31), 2, "W31"),
        (swapped(0, SOFT_DIRTY | WP, 31), 2, "W31.w"),
    ],
)
def test_a_swap_entry(page: Page, entry: int, token: str) -> None:
    assert folios(page, entries=walk(entry)) == f"1:{token}"


def test_a_slot_that_sleepers_share_says_how_many() -> None:
    pages = swapped(1), swapped(5)
    entries = walk(2, 2 | SWP_EXCLUSIVE)
    assert folios(*pages, entries=entries, sleepers=2) == "1:W0.f.o1.n2 1:W0.o5"
    assert folios(*pages, entries=entries) == "1:W0.f.o1 1:W0.o5"


def test_slots_that_follow_one_another_are_one_run() -> None:
    pages = [swapped(offset) for offset in (10, 11, 12, 20)]
    assert folios(*pages, entries=walk(*[SWP_EXCLUSIVE] * 4)) == "3:W0.o10 1:W0.o20"


# --- page-table entries ---------------------------------------------------------------------

P, W, A, D, UFFD_WP = 1 << 0, 1 << 1, 1 << 5, 1 << 6, 1 << 10
PROTNONE, SAVED_DIRTY = 1 << 8, 1 << 58


@pytest.mark.parametrize(
    ("entry", "token"),
    [
        (HOLE, "-"),
        (PWAD, "PWAD"),
        (0x840000000D9DD805, "PD"),
        (P, "P"),
        (P | W, "PW"),
        (P | A, "PA"),
        (P | D, "PD"),
        (P | SAVED_DIRTY, "PD"),
        (P | W | A | SAVED_DIRTY, "PWAD"),
        (P | A | UFFD_WP, "PAU"),
        (PROTNONE | A, "PA"),
        (2 | 130 << 14, "s"),
        (((1 << 40) - 1) << 12 | P, "P"),
        ((0, 2), "nopte"),
    ],
)
def test_an_entry(entry: int | tuple[int, int], token: str) -> None:
    assert ptes(entry) == f"1:{token}"


def test_the_frames_number_is_none_of_an_entrys_letters() -> None:
    assert ptes(PWAD, PWAD + 4096, PWAD + (1 << 30)) == "3:PWAD"


def test_a_mapping_that_was_never_written_has_no_entries() -> None:
    data = raw(NONE, NONE)
    state = pages_state(START, data, None, FolioNames([data]))
    assert (state.folios_text(), state.ptes_text()) == ("2:-", None)


def test_a_huge_entry() -> None:
    data = raw(*(large(1024 + i, 1024, 9) for i in range(512)))
    entries = walk(*[(0x800000000B8008E7, 1)] * 512)
    state = pages_state(START, data, entries, FolioNames([data]))
    assert state.folios_text() == "512:F9.RLaBT.x.m1.f0.i0"
    assert state.ptes_text() == "512:HPWAD"


def test_no_table_beside_a_table() -> None:
    """Entries of one table are one run, and the next table's are another."""
    data = raw(*[NONE] * 1024)
    entries = walk(*[(0, 2)] * 512, *[0] * 512)
    state = pages_state(START, data, entries, FolioNames([data]))
    assert state.ptes_text() == "512:nopte 512:-"


ZONEINFO = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 6
  pages free     2048
        present  3998
        cma      0
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone    DMA32
  pages free     8
        present  45056
  start_pfn:           4096
Node 0, zone   Normal
  pages free     0
        present  0
Node 0, zone  Movable
  pages free     0
        present  0
  start_pfn:           0
Node 1, zone    DMA32
  pages free     27
        present  49120
  start_pfn:           49152
Node 1, zone  Movable
  pages free     0
        present  0
"""


def test_which_node_a_frame_is_of() -> None:
    nodes = NodeSpans(ZONEINFO)
    assert nodes.number == 2
    frames, shown = np.array([1, 49151, 0, 49152, 98000]), np.array([True, True, False, True, True])
    assert nodes.runs(frames, shown) == ((2, 0), (1, None), (2, 1))
    pages = [(PRESENT | 49000, SMALL, 1, 49000 << 8), (PRESENT | 50000, SMALL, 1, 50000 << 8), NONE]
    data = b"".join(struct.pack("<4Q", *page) for page in pages)
    state = pages_state(START, data, None, FolioNames([data]), nodes=nodes)
    assert state.nodes == ((1, 0), (1, 1), (1, None))
    assert pages_state(START, data, None, FolioNames([data])).nodes == ()


PRESENT_PAGE = st.tuples(
    st.sampled_from([PRESENT, PRESENT | EXCLUSIVE, PRESENT | WP | SOFT_DIRTY]),
    st.integers(64, 80),
    st.sampled_from([SMALL, SMALL | KSM, SMALL | THP, ZERO_PAGE]),
    st.integers(1, 2),
    st.sampled_from([0, 0, 2]),
).map(lambda p: (p[0] | p[1], p[2], p[3], (p[1] >> p[4] << p[4]) << 8 | p[4]))
OTHER_PAGE = st.sampled_from([NONE, (SOFT_DIRTY, 0, 0, 0), (GUARD, 0, 0, 0)])
SWAPPED_PAGE = st.integers(1, 3).map(lambda offset: (SWAP | offset << 5, 0, 0, 0))
ENTRY = st.tuples(
    st.sampled_from([0, PWAD, PWAD & ~0x40, PWAD & ~0x40 | 1 << 58, PWAD & ~1 | 1 << 8, 0x200]),
    st.sampled_from([0, 0, 0, 1, 2]),
)


@given(
    st.lists(st.tuples(PRESENT_PAGE | OTHER_PAGE | SWAPPED_PAGE, ENTRY), min_size=1, max_size=40)
)
def test_a_state_is_the_runs_over_its_pages(shown: list[tuple[Page, tuple[int, int]]]) -> None:
    start = START + (500 << 12)
    data = [struct.pack("<4Q", *page) for page, _ in shown]
    words = [struct.pack("<2Q", *entry) for _, entry in shown]
    whole = pages_state(start, b"".join(data), b"".join(words), FolioNames(data))
    names = FolioNames(data)
    alone = [pages_state(START, *each, names) for each in zip(data, words, strict=True)]
    folios = [token for state in alone for _, token in state.folios]
    entries = [entry for state in alone for _, entry in state.ptes or ()]
    assert whole == PagesState.of_pages(folios, entries, start, Geometry())
