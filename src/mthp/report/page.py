# SPDX-License-Identifier: GPL-2.0-or-later
"""A console that prints a stranger's text safely, and what every report ends with on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mthp.words.files import shown

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


class SafeConsole:
    """Prints on a console what may come from a stranger: no control character gets through, and
    nothing that the console's encoding lacks. verbose: what is long is shown whole."""

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self.console = console
        self.verbose = verbose
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
        """Print rows under (title, kind); kind is left, keep (left, not wrapped) or right (the same), but
        that on a page which is too narrow all are wrapped, so that no number is cut.

        A grid has no titles.
        """
        gap = 2 if self.width >= 80 else 1
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_header=not grid)
        table.header_style = "dim"
        cells = [
            [self.text(cell) if isinstance(cell, str) else cell for cell in row]
            for row in ([title for title, _ in columns], *rows)
        ]
        widths = [
            max(cell.cell_len for cell in column) + gap for column in zip(*cells, strict=True)
        ]
        kept = sum(
            width for width, (_, kind) in zip(widths, columns, strict=True) if kind != "left"
        )
        for title, (_, kind) in zip(cells[0], columns, strict=True):
            table.add_column(
                title,
                justify="right" if kind == "right" else "left",
                no_wrap=kind != "left" and kept + indent <= self.width,
                overflow="fold",
            )
        for row in cells[1:]:
            table.add_row(*row)
        self.console.print(Padding(table, (0, 0, 0, indent), expand=False))
