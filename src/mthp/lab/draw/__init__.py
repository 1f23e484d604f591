# SPDX-License-Identifier: GPL-2.0-or-later
"""Random initial states. A seed and an index always give the same Draft."""

from __future__ import annotations

from random import Random

from mthp.lab.draw.families import FAMILIES
from mthp.lab.draw.knobs import draw_settings
from mthp.lab.draw.program_builder import ProgramBuilder
from mthp.lab.program.program import Draft

__all__ = ["FAMILIES", "draw"]


def draw(seed: int, index: int, family: str = "") -> Draft:
    """The draft of this index. It is legal, and depends on no other index.

    family: the name of one of FAMILIES; empty to draw one by weight. KeyError: there is no such family.
    """
    rng = Random(f"{seed}:{index}")
    weights = [weight for weight, _ in FAMILIES.values()]
    drawn = rng.choices(list(FAMILIES), weights)[0]
    family = family or drawn
    builder = ProgramBuilder(rng, draw_settings(rng))
    FAMILIES[family][1](builder)
    if rng.random() < 0.25:
        builder.passes = rng.choice([2, 2, 3])
    return builder.draft(f"{seed}-{index}", family)
