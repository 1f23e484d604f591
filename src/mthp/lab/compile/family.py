# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that share pages: what they inherit is made first, by the parent, before it forks.

Whatever one of them alone is to have and may write to is made afterwards. A page that is not
writable though nobody else maps it is inherited too, and dropped by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mthp.image.runs import PageKind, parse_pte_token
from mthp.lab.compile.dress import anon_vmas, map_room, register, rooms, trim
from mthp.lab.compile.fill import fill, fill_estate, fill_heir, was_shared
from mthp.lab.compile.wanted import Want, WantedPage, folios_of
from mthp.lab.program.program import Operation, Verb

__all__ = ["build_family", "families"]


def families(wants: Sequence[Want]) -> list[list[Want]]:
    """Each process without a parent with its children, in order."""
    return [
        [want, *(child for child in wants if child.parent == want.name)]
        for want in wants
        if not want.parent
    ]


def build_family(family: Sequence[Want], decoy: int) -> list[Operation]:
    """Mapped, filled and registered with khugepaged, the parent first."""
    parent, *children = family
    room = rooms(family)
    ops = [*map_room(parent, room), *anon_vmas(parent)]
    if not children:
        return [*ops, *fill(parent), *trim(parent, room), *register(parent, decoy)]
    made, there = fill_estate(_estate(family))
    ops += made
    ops += [Operation(Verb.FORK_TO, (child.name,), parent.name) for child in children]
    for want in family:
        ops += anon_vmas(want) if want.parent else []
        ops += [*fill_heir(want, there), *trim(want, room)]
    for want in family:
        ops += register(want, decoy)
    return ops


def _estate(family: Sequence[Want]) -> Want:
    """What the parent has when it forks, as if it were a process of its own."""
    parent = family[0]
    estate = Want(parent.name, None, vmas=[vma for want in family for vma in want.vmas])
    for want in family:
        for page in want.of(PageKind.FOLIO):
            if _inherited(want, page) and page.at not in estate.pages:
                estate.pages[page.at] = page if want is parent else _young(page)
    estate.folios = folios_of(estate)
    return estate


def _inherited(want: Want, page: WantedPage) -> bool:
    if "K" in page.token.flags:
        return False
    return bool(page.kin or (page.level and not want.parent)) or was_shared(want, page)


def _young(page: WantedPage) -> WantedPage:
    """The page as the parent has it: what is old in the child is so since the fork."""
    letters = "".join(each for each in "PWADU" if each in page.entry.letters + "A")
    return replace(page, entry=parse_pte_token(letters))
