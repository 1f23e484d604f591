# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mutant is: a rule taken away, and the world in which that shows."""

from __future__ import annotations

from dataclasses import dataclass

from mthp.races.variant import Edit
from mthp.races.world import RaceWorld


@dataclass(frozen=True)
class Mutant:
    """id: as in the list of known races. where: the fix, or where the rule comes from. rule: what is
    taken away. edits: how. world: where it shows. laws: any of them may say so.
    """

    id: str
    where: str
    rule: str
    edits: tuple[Edit, ...]
    world: RaceWorld
    laws: frozenset[int]


@dataclass(frozen=True)
class Half:
    """Part of a mutant that shows nothing alone, because another rule still covers it."""

    id: str
    rule: str
    edits: tuple[Edit, ...]
    world: RaceWorld
    masked_by: str
