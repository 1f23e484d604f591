# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that share pages: the parent makes what they inherit, forks, and each adds its own pages.

A page that is not writable though no other process maps it is inherited too, and the others drop it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mthp.image.runs import PageKind, parse_pte_token
from mthp.lab.compile.fill import fill, fill_after_fork, fill_before_fork, was_shared
from mthp.lab.compile.mappings import anon_vmas, extents_of, map_extents, trim
from mthp.lab.compile.wanted import WantedPage, WantedProcess, folios_of
from mthp.lab.program.program import Operation, Verb, registration


def fork_groups(wants: Sequence[WantedProcess]) -> list[list[WantedProcess]]:
    """The groups of processes that share pages: each begins with the parent of the others."""
    return [
        [want, *(child for child in wants if child.parent == want.name)]
        for want in wants
        if not want.parent
    ]


def build_group(group: Sequence[WantedProcess], decoy: int) -> list[Operation]:
    """The operations that map, fill and register the processes of a group, the parent first."""
    parent, *children = group
    extents = extents_of(group)
    ops = [*map_extents(parent, extents), *anon_vmas(parent)]
    if not children:
        return [*ops, *fill(parent), *trim(parent, extents), *registration(parent.name, decoy)]
    made, contents = fill_before_fork(_before_fork(group))
    ops += made
    ops += [Operation(Verb.FORK_TO, (child.name,), parent.name) for child in children]
    for want in group:
        ops += anon_vmas(want) if want.parent else []
        ops += [*fill_after_fork(want, contents), *trim(want, extents)]
    for want in group:
        ops += registration(want.name, decoy)
    return ops


def _before_fork(group: Sequence[WantedProcess]) -> WantedProcess:
    """The pages that the parent has when it forks, as the wanted state of one process."""
    parent = group[0]
    before = WantedProcess(parent.name, None, vmas=[vma for want in group for vma in want.vmas])
    for want in group:
        for page in want.of(PageKind.FOLIO):
            if _inherited(want, page) and page.at not in before.pages:
                before.pages[page.at] = page if want is parent else _as_in_parent(page)
    before.folios = folios_of(before)
    return before


def _inherited(want: WantedProcess, page: WantedPage) -> bool:
    if "K" in page.token.flags:
        return False
    return bool(page.sharers or (page.sleepers and not want.parent)) or was_shared(want, page)


def _as_in_parent(page: WantedPage) -> WantedPage:
    """The page as the parent has it: its entry is young, since the fork makes the child's old."""
    letters = "".join(each for each in "PWADU" if each in page.entry.letters + "A")
    return replace(page, entry=parse_pte_token(letters))
