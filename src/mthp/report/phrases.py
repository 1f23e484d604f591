# SPDX-License-Identifier: GPL-2.0-or-later
"""What every report shares: how sizes, times and orders read, and a page that prints safely."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mthp.predict.records import AdvisedOutcome, Outcome, TornUse
from mthp.words.files import shown
from mthp.words.results import ScanResult
from mthp.words.units import Geometry, human_bytes

_PLAIN = str.maketrans(
    {
        "→": "->",
        "…": "...",
        "–": "-",
        "—": "-",
        "×": "x",
        "✓": "+",
        "≈": "~",
        "•": "*",
        "·": ".",
        "░": ":",
        "▒": "=",
        "▓": "%",
        "█": "#",
    }
)
"""The letters that a console which is not UTF-8 shows instead."""

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


class SafeConsole:
    """Prints on a console what may come from a stranger: no control character gets through, and
    nothing that the console's encoding lacks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plain = console.options.ascii_only

    @property
    def width(self) -> int:
        """How many columns the console has."""
        return self.console.width

    def clean(self, words: str) -> str:
        """The words with every character printable here."""
        words = shown(words)
        if self.plain:
            words = words.translate(_PLAIN).encode("ascii", "replace").decode("ascii")
        return words

    def text(self, words: str, style: str = "") -> Text:
        """Make text of clean words, wrapped between words; no markup is read."""
        return Text(self.clean(words), style=style, overflow="fold")

    def line(self, words: str = "", style: str = "", indent: int = 0) -> None:
        """Print a paragraph."""
        self.console.print(Padding(self.text(words, style), (0, 0, 0, indent), expand=False))

    def heading(self, words: str) -> None:
        """Print an empty line and a title."""
        self.console.print()
        self.line(words, "bold")

    def bullets(self, title: str, items: Iterable[str], style: str = "") -> None:
        """Print a list under a title; nothing where it is empty."""
        items = list(items)
        if items:
            self.heading(title)
            grid = Table.grid(padding=(0, 1))
            for item in items:
                grid.add_row(self.text("  •", style), self.text(item, style))
            self.console.print(grid)

    def table(
        self,
        columns: Sequence[tuple[str, str]],
        rows: Iterable[Sequence[str | Text]],
        *,
        grid: bool = False,
        indent: int = 2,
    ) -> None:
        """Print rows under (title, kind); kind is left, keep (left, not wrapped) or right (the same).

        A grid has no titles.
        """
        gap = 2 if self.width >= 80 else 1
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_header=not grid)
        table.header_style = "dim"
        for title, kind in columns:
            table.add_column(
                self.text(title),
                justify="right" if kind == "right" else "left",
                no_wrap=kind != "left",
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(self.text(cell) if isinstance(cell, str) else cell for cell in row))
        self.console.print(Padding(table, (0, 0, 0, indent), expand=False))


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


def plural(number: int, thing: str, several: str = "") -> str:
    """A number and what it counts, in the right form: 1 range, 2 ranges."""
    return f"{number:,} {thing if number == 1 else several or thing + 's'}"


# --- outcomes -------------------------------------------------------------------------------


def in_order(attempts: Iterable[tuple[int, ScanResult]]) -> list[tuple[int, ScanResult]]:
    """The attempts as they are listed: by order, then by the kernel's string of the result."""
    return sorted(attempts, key=lambda attempt: (attempt[0], attempt[1].string))


def render_caveats(
    page: SafeConsole, outcome: Outcome | AdvisedOutcome, *, everything: bool
) -> None:
    """Print what the answer rests on; what every capture has in common in one line."""
    usual = frozenset[str]() if everything else outcome.usual
    page.bullets("Assumed", [each for each in outcome.assumptions if each not in usual])
    page.bullets("Not seen", [each for each in outcome.unseen if each not in usual])
    folded = sum(each in usual for each in (*outcome.assumptions, *outcome.unseen))
    if folded:
        page.console.print()
        page.line(
            f"Predicted, with {plural(folded, 'caveat')} that every capture has: --verbose", "dim"
        )


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
