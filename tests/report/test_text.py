# SPDX-License-Identifier: GPL-2.0-or-later
"""The report people read: golden pages, and what they say in odd cases."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from mthp.mm.huge_mm import VmaGate
from mthp.predict.records import (
    Basis,
    Bounds,
    Clock,
    Effort,
    OrderUse,
    Outcome,
    Price,
    Refusal,
    TimePoint,
    Unknown,
    Verified,
)
from mthp.report.page import SafeConsole
from mthp.report.phrases import duration, each, percent, wasted_attempts
from mthp.report.refusals import group_refusals
from mthp.report.text import render_outcome
from mthp.report.timeline import POINTS_SHOWN, render_timeline
from mthp.report.vma_map import VMAS_SHOWN, bar_glyphs, share_bar
from mthp.words.results import ScanResult
from mthp.words.settings import Settings
from mthp.words.units import Geometry
from tests.report.samples import (
    ALTERNATIVES,
    MIB,
    OUTCOME,
    REFUSALS,
    VMAS,
    console,
    golden,
    printed,
    raising,
    refused,
    vma,
)


def page_of(outcome: Outcome, width: int = 100, *, verbose: bool = False) -> str:
    page = console(width)
    render_outcome(outcome, page, verbose=verbose)
    return printed(page)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_nothing_is_wider_than_the_console(width: int) -> None:
    text = page_of(OUTCOME, width, verbose=True)
    assert max(len(line) for line in text.splitlines()) <= width
    golden(f"outcome-{width}.txt", page_of(OUTCOME, width))


def test_verbose() -> None:
    golden("outcome-verbose.txt", page_of(OUTCOME, verbose=True))


def test_the_verdict_stands_first_and_last_in_two_to_five_lines() -> None:
    shut = tuple(each._replace(status=VmaGate.NOT_ENABLED) for each in REFUSALS)
    closed = replace(OUTCOME, alternatives=ALTERNATIVES, highest_order=None, refusals=shut)
    for outcome in (OUTCOME, EMPTY, closed, replace(OUTCOME, complete=False)):
        lines = page_of(outcome, 80).splitlines()
        count = lines.index("")
        assert 2 <= count <= 5 and lines[:count] == lines[-count:]
        assert lines[0].startswith("now")
    verdict = page_of(OUTCOME).splitlines()[:4]
    assert verdict == [
        "now   0 B of 48.2 MiB anonymous memory is in huge pages (2048kB)",
        "also  11 MiB not modelled (8 MiB: /memfd:cache), 2 MiB in partly mapped folios",
        "then  48 MiB (87%); +7 MiB memory; in 1 min 40 s",
        "rest  1.4 MiB, 1.2 MiB of it where pages are missing",
    ]
    assert (
        page_of(closed).splitlines()[0].endswith("in huge pages (2048kB), and no size is enabled")
    )
    assert page_of(closed).splitlines()[2:4] == [
        "with  enabled=always: 48 MiB (87%); +7 MiB memory; in 1 min 40 s",
        "with  enabled=always, max_ptes_none=0: nothing; 1.2 MiB where pages are missing",
    ]
    assert "with  other settings, such as --enabled always: not tried" in page_of(
        replace(closed, alternatives={})
    )


def test_what_a_capture_leaves_open_stands_behind_the_answer() -> None:
    bounds = Bounds((Unknown.YOUNG, Unknown.PINNED), (8 << 20, 48 << 20))
    text = page_of(replace(OUTCOME, bounds=bounds, registered={812: None, 4: True}), 300)
    assert text.splitlines()[3:5] == [
        "range   from 8 MiB to 48 MiB collapse, as it is not known which pages were used lately and "
        "which pages are pinned; --deep tells",
        "unless  khugepaged does not scan process 812 at all: whether it is on its list is not known "
        "(--registered)",
    ]
    several = page_of(replace(OUTCOME, registered={812: None, 4: None}), 300)
    assert "does not scan 2 of the processes at all: whether they are on its list" in several
    off = replace(OUTCOME, registered={812: None, 4: None}, taken_off=frozenset({4}))
    assert "does not scan process 812 at all" in page_of(off, 300)
    off = replace(off, taken_off=frozenset({4, 812}))
    assert page_of(off) == page_of(OUTCOME), "the range says it"
    settled = replace(OUTCOME, bounds=bounds._replace(ends=(0, 0)), registered={812: True})
    assert page_of(settled) == page_of(OUTCOME)
    unasked = page_of(replace(OUTCOME, bounds=bounds._replace(ends=None)), 300)
    assert "range  not looked for (--no-range), though it is not known which pages were" in unasked


def test_memory_that_the_kernel_would_have_to_make_room_for() -> None:
    said = "short  1 MiB of memory are free: what the kernel would compact, reclaim or swap out"
    needy = replace(OUTCOME, free_memory=1 << 20, memory_added=2 << 20, attempts={})
    assert said in page_of(needy, 300)
    assert "short" not in page_of(replace(needy, free_memory=None), 300)
    assert "short" not in page_of(replace(needy, free_memory=2 << 20), 300)
    failed = {(9, ScanResult.ALLOC_HUGE_PAGE_FAIL): 1}
    assert said in page_of(replace(needy, memory_added=0, attempts=failed), 300)


def test_the_header_says_what_ran() -> None:
    lines = page_of(OUTCOME, 300).splitlines()
    assert lines[5] == (
        "Predicted, not observed: redis-server, pid 812 (snapshot redis.npz), profile 7.3 "
        "(default: captured kernel 6.18 knows no multi-size collapse)"
    )
    assert lines[6] == f"settings: {OUTCOME.settings.describe()}"


def test_what_every_capture_has_in_common_is_one_line() -> None:
    text = page_of(OUTCOME)
    assert "from smaps" not in text and "1 caveat that every capture has" in text
    assert "no root: folio orders" in text
    assert "from smaps" in page_of(OUTCOME, verbose=True)


@pytest.mark.parametrize("width", [16, 24, 40])
def test_a_table_on_a_narrow_page_is_wrapped_and_nothing_cut(width: int) -> None:
    texts = []
    for room in (width, 200):
        page = SafeConsole(console(room))
        columns = [("size", "keep"), ("folios", "right"), ("bytes", "keep")]
        page.table(columns, [["4kB (order 0)", "101,542", "397 MiB → 397 MiB"]])
        texts.append(printed(page.console))
    assert max(map(len, texts[0].splitlines())) <= width
    assert sorted("".join(texts[0].split())) == sorted("".join(texts[1].split()))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_header_of_a_table_is_lost(width: int) -> None:
    lines = page_of(replace(OUTCOME, processes=2), width, verbose=True).splitlines()
    for titles in (
        ["size", "folios", "after", "bytes", "after"],
        ["in all", "per success", "per refused attempt"],
        ["pid", "range", "memory", *["before"] * (width > 60), "after", "mapping"],
    ):
        assert any(re.search(r".*\s".join(titles), line) for line in lines), titles


def test_mappings_that_are_turned_away_stand_under_the_reason_once() -> None:
    short = [
        vma(k << 30, 4, f"short{k}", {0: 16384}, {})._replace(gate="too short") for k in (1, 2, 3)
    ]
    text = page_of(replace(OUTCOME, vmas=(*short, VMAS[1])))
    assert text.count("too short") == 1
    assert text.index("[anon]") < text.index("passed by: too short") < text.index("short1")


def test_a_timeline() -> None:
    page = console(60)
    render_outcome(OUTCOME, page, timeline=True)
    text = printed(page)
    assert re.search(r"10 s +16 MiB +█+ +2 MiB\n", text)
    assert re.search(r"1 min 40 s +51 MiB +█+ +7 MiB\n", text)
    many = tuple(TimePoint(k, 0, k * MIB) for k in range(1, 102))
    safe = SafeConsole(console())
    render_timeline(safe, many)
    rows = [line for line in printed(safe.console).splitlines() if "█" in line]
    assert len(rows) <= POINTS_SHOWN and "101 MiB" in rows[-1]


def test_whose_time_it_is() -> None:
    """1,200 MiB are 75 wakeups of 4,096 pages."""
    assert OUTCOME.others is not None
    assert "few ask for it (12 min 30 s a full scan if all did)" in page_of(OUTCOME, 200)
    scanned = replace(OUTCOME, others=replace(OUTCOME.others, scanned=True))
    assert "1.2 GiB of anonymous memory: scanned in turn, 12 min 30 s a full" in page_of(
        scanned, 200
    )
    assert "not counted" in page_of(replace(OUTCOME, others=None))


def test_knobs_have_a_curve_and_settings_are_priced_once() -> None:
    """Two tables need 12, one 48; one of them is in two refusals, at two orders."""

    def needs(value: int, address: int, order: int = 9) -> Refusal:
        made = raising("max_ptes_none", value)
        return refused(address, 100, change=made, verified=Verified.RUN, order=order)

    pmd = 1 << 21
    refusals = [needs(12, 0), needs(12, pmd), needs(48, 2 * pmd), needs(48, 2 * pmd, order=4)]
    refusals += [needs(12, 0, order=5)]
    groups = group_refusals(refusals, Geometry())
    assert [(group.change, group.everywhere) for group in groups] == [
        ("raise max_ptes_none to 48", True),
        ("raise max_ptes_none to 48", True),
        ("raise max_ptes_none to 12", True),
    ]
    for group in groups:
        assert [(p.value, p.bytes, p.price.memory_added) for p in group.curve] == [
            (12, 300 * 4096, 24 * 4096),
            (48, 500 * 4096, 72 * 4096),
        ]
        assert group.price == Price(72 * 4096, -1500, 36 * 4096)
    text = page_of(replace(OUTCOME, refusals=tuple(refusals)))
    assert text.count("12 lets in 1.2 MiB, +96 KiB memory") == 1
    assert text.count("as above") == 2


def test_how_far_it_got() -> None:
    assert "to the fixed point: 3 full scans" in page_of(OUTCOME)
    asked = page_of(replace(OUTCOME, fixed_point=False))
    assert "3 full scans as asked; not the fixed point" in asked
    stopped = page_of(replace(OUTCOME, fixed_point=False, complete=False))
    assert "INCOMPLETE" in stopped
    assert "interrupted" in stopped


EMPTY = replace(
    OUTCOME,
    settings=Settings(enabled="never"),  # type: ignore[arg-type]
    basis=Basis(OUTCOME.basis.target, "", OUTCOME.basis.profile, ""),
    highest_order=None,
    orders_before={},
    orders_after={},
    memory_added=0,
    copied_bytes=0,
    collapsed_bytes=0,
    successes=Effort(),
    refused=Effort(),
    clock=Clock(0, 0, 0, 0),
    timeline=(),
    attempts={},
    counters={},
    refusals=(),
    vmas=(),
    warnings=(),
)


def test_nothing_at_all() -> None:
    golden("outcome-empty.txt", page_of(EMPTY))


def test_small_pages_and_several_processes() -> None:
    mappings = tuple(
        vma(0x10000 * i, 4, f"m{i}", {0: 64 * i}, {3: 64 * i})._replace(pid=i % 2 + 1)
        for i in range(1, VMAS_SHOWN + 4)
    )
    text = page_of(
        replace(
            OUTCOME,
            settings=Settings(geometry=Geometry(4, 3)),
            page_size=16,
            pmd_order=3,
            highest_order=3,
            processes=2,
            orders_before={0: OrderUse(9, 144)},
            orders_after={3: OrderUse(2, 256)},
            vmas=mappings,
            refusals=(refused(0x10000, 8, order=3, pid=2),),
        )
    )
    assert "128B (order 3)" in text
    assert "of pid 2" in text
    assert "3 mappings hidden, 384 B" in text


def test_small_mappings_get_no_row_but_are_counted() -> None:
    large = [vma(i << 30, 4096, f"large{i}", {0: 16 * MIB}, {}) for i in range(5)]
    small = [vma(i << 40, 1, f"small{i}", {0: 4096}, {}) for i in range(1, 4)]
    outcome = replace(OUTCOME, vmas=(*large, *small))
    text = page_of(outcome)
    assert all(f"large{i}" in text for i in range(5))
    assert "small1" not in text
    assert "3 mappings hidden, 12 KiB: --verbose" in text
    assert "small3" in page_of(outcome, verbose=True)
    assert "small3" in page_of(replace(OUTCOME, vmas=(large[0], *small)))


def test_a_console_that_is_not_utf8_and_names_that_are_hostile() -> None:
    raw = io.BytesIO()
    page = Console(
        file=io.TextIOWrapper(raw, encoding="ascii", write_through=True),
        width=100,
        color_system=None,
    )
    name = "[red]\x1b[31m\u2603\n"
    outcome = replace(OUTCOME, vmas=(vma(0, 4, name, {0: 4096}, {9: 4096}),), warnings=("…→",))
    render_outcome(outcome, page)
    text = raw.getvalue().decode("ascii")
    assert "[red]?[31m??" in text
    assert "....->" in text.replace(" ", "") or "...->" in text
    assert "\x1b" not in text


def test_colour_changes_no_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    coloured = Console(file=io.StringIO(), width=100, color_system="truecolor", force_terminal=True)
    render_outcome(OUTCOME, coloured)
    assert isinstance(coloured.file, io.StringIO)
    text = coloured.file.getvalue()
    assert "\x1b[" in text
    plain = "".join(line.rstrip() + "\n" for line in Text.from_ansi(text).plain.splitlines())
    assert plain == page_of(OUTCOME)


def test_refusals_that_read_the_same_are_one_group() -> None:
    groups = group_refusals(REFUSALS, Geometry())
    assert [(group.pages, group.ranges) for group in groups] == [(300, 2), (33, 1), (16, 1), (8, 1)]
    assert groups[0].verified is Verified.GROUP
    assert groups[0].example.address == 0x7F00_0100_0000


def test_nothing_is_said_about_trying_where_nothing_was_tried() -> None:
    bare = tuple(each._replace(change=None, verified=Verified.NONE) for each in REFUSALS)
    text = page_of(replace(OUTCOME, refusals=bare, complete=False, fixed_point=False))
    assert "no change known" in text
    assert "nothing tried" not in text
    assert "nothing tried lets it" in page_of(OUTCOME)


def test_wasted_attempts() -> None:
    assert wasted_attempts(OUTCOME) == 4
    charge = {**OUTCOME.attempts, (4, ScanResult.CGROUP_CHARGE_FAIL): 2}
    assert wasted_attempts(replace(OUTCOME, attempts=charge)) == 6  # allocated, then refused
    assert wasted_attempts(replace(OUTCOME, refused=Effort(attempts=5))) == 0


@pytest.mark.parametrize("width", [6, 7, 20])
@pytest.mark.parametrize(
    "use", [{}, {0: 1}, {0: 1, 9: 10**9}, {0: 5, 2: 5, 3: 5, 4: 5, 5: 5, 9: 5}, {0: MIB, 9: MIB}]
)
def test_bars_are_full_and_hide_nothing(width: int, use: dict[int, int]) -> None:
    before = {order: OrderUse(1, size) for order, size in use.items()}
    outcome = replace(OUTCOME, orders_before=before, vmas=(vma(0, 1, "", use, {}),))
    bar = share_bar(SafeConsole(console()), use, bar_glyphs(outcome), width).plain
    assert len(bar) == width
    assert bool(bar.strip()) == bool(use)
    assert (" " in bar) == (not use)
    if use.get(9) and use.get(0):
        assert "·" in bar
        assert "█" in bar


def test_numbers() -> None:
    times = [0, 250, 10_000, 400_000, 7_500_000, 273_600_000, 3_600_000]
    assert [duration(each) for each in times] == [
        "0 s",
        "250 ms",
        "10 s",
        "6 min 40 s",
        "2 h 5 min",
        "3 d 4 h",
        "1 h",
    ]
    shares = [percent(*pair) for pair in ((0, 0), (1, 1000), (1, 2), (999, 1000), (5, 5))]
    assert shares == ["0%", "<1%", "50%", ">99%", "100%"]
    assert [each(*pair) for pair in ((1, 0), (4, 2), (1, 2), (1, 100), (12345, 2))] == [
        "–",
        "2",
        "0.5",
        "<0.1",
        "6,172",
    ]
