# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mutant is: a rule taken away, and the world in which that shows."""

from __future__ import annotations

from dataclasses import dataclass

from mthp.races.edits import Edit
from mthp.races.world import RaceWorld


@dataclass(frozen=True)
class Mutant:
    """id: as in the list of known races. where: the fix, or where the rule comes from. rule: what is
    taken away. edits: how. world: where it shows. laws: any of them may say so.

    masked_by: the other rule that still covers this one, which therefore shows nothing alone.
    """

    id: str
    where: str
    rule: str
    world: RaceWorld
    laws: tuple[int, ...]
    edits: tuple[Edit, ...] = ()
    masked_by: str = ""
