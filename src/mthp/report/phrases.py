# SPDX-License-Identifier: GPL-2.0-or-later
"""What every report shares: how sizes, times and orders read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mthp.predict.records import Outcome, TornUse
from mthp.words.results import ScanResult
from mthp.words.units import Geometry, human_bytes

_NOT_WASTED = frozenset({ScanResult.SUCCEED, ScanResult.ALLOC_HUGE_PAGE_FAIL})
"""A failed charge comes after the allocation, and wastes it."""

TLB_MODELS = {
    "plain": "one per PMD mapping, else one per PTE",
    "contpte": "one per PMD mapping, one per 16 aligned PTEs of a folio, else one per PTE",
}
"""Names that --tlb takes, in words; a model not listed here is printed as it is named."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


# --- numbers --------------------------------------------------------------------------------


def order_name(geometry: Geometry, order: int) -> str:
    """Names an order as sysfs names its size, with the order: 64kB (order 4)."""
    return f"{geometry.size_name(order)} (order {order})"


def percent(part: float, whole: float) -> str:
    """A share for reading: 0%, <1%, 37%, >99%, 100%."""
    if not whole or not part:
        return "0%"
    if part < 0:
        return f"-{percent(-part, whole)}"
    share = 100 * part / whole
    if share < 1:
        return "<1%"
    if 99 < share < 100:
        return ">99%"
    return f"{share:.0f}%"


def each(total: float, number: int) -> str:
    """A count per attempt: 1, 0.5, 1,234; a dash where there was none."""
    if not number:
        return "–"
    value = total / number
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.05 else "<0.1"


def each_bytes(total: float, number: int) -> str:
    """Bytes per attempt; a dash where there was none."""
    return human_bytes(round(total / number)) if number else "–"


def more_memory(size: int) -> str:
    """Says how much more memory is used, or less: +960 KiB memory."""
    return f"{'+' if size >= 0 else ''}{human_bytes(size)} memory"


def duration(milliseconds: int) -> str:
    """A time for reading: 250 ms, 10 s, 6 min 40 s, 2 h 5 min, 3 d 4 h."""
    if milliseconds < 1000:
        return f"{milliseconds} ms" if milliseconds else "0 s"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.3g} s"
    seconds = round(milliseconds / 1000)
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    place = next(i for i, (_, size) in enumerate(units) if seconds >= size)
    (name, size), (low, low_size) = units[place], units[place + 1]
    rest = seconds % size // low_size
    return f"{seconds // size} {name}" + (f" {rest} {low}" if rest else "")


def short_time(nanoseconds: float) -> str:
    """A time of any length for reading: 0 s, 8.3 ns, 140.0 µs, 250 ms, 10 s."""
    if 0 < nanoseconds < 1e3:
        return f"{nanoseconds:.1f} ns"
    if 1e3 <= nanoseconds < 1e7:
        return f"{nanoseconds / 1e3:,.1f} µs"
    return duration(round(nanoseconds / 1e6))


def plural(number: int, thing: str, several: str = "") -> str:
    """A number and what it counts, in the right form: 1 range, 2 ranges."""
    return f"{number:,} {thing if number == 1 else several or thing + 's'}"


# --- outcomes -------------------------------------------------------------------------------


def in_order(attempts: Iterable[tuple[int, ScanResult]]) -> list[tuple[int, ScanResult]]:
    """The attempts as they are listed: by order, then by the kernel's string of the result."""
    return sorted(attempts, key=lambda attempt: (attempt[0], attempt[1].string))


def torn_text(torn: TornUse) -> str:
    """Says how much of the answer rests on tables that changed while they were read."""
    return (
        f"{human_bytes(torn.bytes)} lie in {plural(torn.tables, 'page table')} that changed while they "
        f"were read: {human_bytes(torn.collapsed_bytes)} of what collapses is there, and what is "
        "refused there is left out"
    )


def wasted_attempts(outcome: Outcome) -> int:
    """How many refused attempts had a folio to give back, as Effort.allocated_bytes counts them."""
    if not outcome.refused.allocated_bytes:
        return 0
    return sum(n for (_, status), n in outcome.attempts.items() if status not in _NOT_WASTED)
