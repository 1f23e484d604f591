# SPDX-License-Identifier: GPL-2.0-or-later
"""Recipes: the steps that give a page which was just written certain folio flags and PTE bits.

Found by trying each sequence in a guest of 7.3.4, small and large folios alike. `cold` is
MADV_COLD, `free` MADV_FREE, `out` MADV_PAGEOUT; a folio loses R with its accessed bit, and gets D
when its swap slot is given back.
"""

from __future__ import annotations

from dataclasses import dataclass

from mthp.image.runs import FolioToken, PteToken
from mthp.lab.program.program import Madv, Verb

Steps = tuple[Madv | Verb, ...]
"""The steps of a recipe, each an operation over present pages: a madvise(), a read or a write."""

_C, _F, _O, _R, _W = Madv.COLD, Madv.FREE, Madv.PAGEOUT, Verb.READ, Verb.WRITE

SMALL: dict[tuple[str, str], Steps] = {
    ("RB", "WAD"): (),
    ("B", "WD"): (_C,),
    ("B", "WAD"): (_C, _R),
    ("R", "W"): (_F,),
    ("R", "WA"): (_F, _R),
    ("R", "WAD"): (_F, _W),
    ("", "W"): (_C, _F),
    ("", "WA"): (_C, _F, _R),
    ("", "WAD"): (_C, _F, _W),
    ("", "WD"): (_F, _W, _C),
    ("RDB", "WA"): (_O, _R),
    ("RDB", "WAD"): (_O, _W),
    ("DB", "W"): (_O, _R, _C),
    ("DB", "WA"): (_O, _R, _C, _R),
    ("DB", "WD"): (_O, _W, _C),
    ("DB", "WAD"): (_O, _W, _C, _R),
    ("RCB", "A"): (_O,),
}
"""(of the folio's flags R D C B, of the entry's bits W A D) -> the steps after the first write."""

DROPPABLE: dict[tuple[str, str], Steps] = {
    ("R", "WAD"): (),
    ("", "WD"): (_C,),
    ("", "WAD"): (_C, _R),
    ("R", "W"): (_F,),
    ("R", "WA"): (_F, _R),
    ("", "W"): (_C, _F),
    ("", "WA"): (_C, _F, _R),
}
"""The same in a droppable mapping, whose folios are never swap-backed."""

_FIXED = frozenset("LaTVM")
"""Flags that no recipe sets: every folio here has them, or large ones do, or mlocked ones."""


@dataclass(frozen=True)
class LargeRecipe:
    """How a large folio gets its flags. steps: over all of it. bits: those of its entries
    afterwards."""

    steps: Steps
    bits: str


_LARGE = {
    "RB": LargeRecipe((), "WAD"),
    "B": LargeRecipe((_C,), "WD"),
    "R": LargeRecipe((_F,), "W"),
    "": LargeRecipe((_C, _F), "W"),
}
"""The folio's flags -> its recipe."""


def _letters(text: str, known: str) -> str:
    return "".join(letter for letter in known if letter in text)


def _own_flags(token: FolioToken) -> str | None:
    """The flags that recipes set; None if the folio has others, or lacks those that all have."""
    flags = set(token.flags)
    if not {"L", "a"} <= flags or flags - _FIXED - set("RDCB"):
        return None
    return _letters(token.flags, "RDCB")


def small_recipe(
    token: FolioToken, entry: PteToken, table: dict[tuple[str, str], Steps]
) -> Steps | None:
    """The steps that give a small page its flags and bits; None if no such steps are known.

    Where the entry is not writable, its dirty bit may be unknown (older records show only the
    hardware's); then steps for a page that differs only in that bit are taken.
    """
    flags = _own_flags(token)
    if flags is None:
        return None
    bits = _letters(entry.letters, "WAD")
    tries = [bits]
    if "W" not in bits:
        tries += ["W" + bits, _letters("WD" + bits, "WAD")]
    for each in tries:
        if (flags, each) in table:
            return table[flags, each]
    return None


def large_recipe(token: FolioToken) -> LargeRecipe | None:
    """The steps that give a large folio its flags, but for D, which the split of its mapping sets."""
    flags = _own_flags(token)
    if flags is None or "C" in flags:
        return None
    return _LARGE.get(flags.replace("D", ""))
