# SPDX-License-Identifier: GPL-2.0-or-later
"""What each size of folio looks like on pages and pictures, and what it is called there."""

from __future__ import annotations

from mthp.plan.records import MappedTo
from mthp.words.units import Geometry


def class_of(code: int) -> str:
    """The class of what a page is mapped to, as MappedTo has it."""
    named = {MappedTo.ZERO: "zero", MappedTo.SWAP: "swap", MappedTo.OTHER: "other-entry"}
    return named.get(MappedTo(code), "") if code >= MappedTo.ZERO else f"o{code - MappedTo.FOLIO}"


def name_of_code(code: int, geometry: Geometry) -> str:
    """What it is, in words."""
    named = {
        MappedTo.NOTHING: "nothing",
        MappedTo.ZERO: "of the zero page",
        MappedTo.SWAP: "swapped out",
        MappedTo.OTHER: "of markers or the like",
    }
    if code in named:
        return named[MappedTo(code)]
    small = " (single pages)" if code == MappedTo.FOLIO else ""
    return f"in folios of {geometry.size_name(code - MappedTo.FOLIO)}{small}"


def colour_rules(geometry: Geometry) -> str:
    """Style sheet rules, for what is drawn and for what is a box: small pages grey, larger folios from orange
    to blue, and darker the larger they are."""
    top = geometry.pmd_order
    colours = {
        "o0": "215 8% 66%",
        "zero": "0 0% 82%",
        "swap": "340 55% 58%",
        "other-entry": "300 30% 60%",
    }
    for order in range(1, top + 1):
        share = max(order - 2, 0) / max(top - 2, 1)
        colours[f"o{order}"] = (
            f"{34 + 186 * share:.0f} {80 - 10 * share:.0f}% {60 - 16 * share:.0f}%"
        )
    return "\n" + "\n".join(
        f".{name}{{fill:hsl({hue});background:hsl({hue})}}" for name, hue in colours.items()
    )
