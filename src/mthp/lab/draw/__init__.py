# SPDX-License-Identifier: GPL-2.0-or-later
"""Random initial states. A seed and an index always give the same Draft."""

from __future__ import annotations

from random import Random

from mthp.lab.draw.families import FAMILIES, NODE_FAMILIES
from mthp.lab.draw.knobs import draw_settings
from mthp.lab.draw.program_builder import ProgramBuilder
from mthp.lab.program.program import Draft

__all__ = ["FAMILIES", "NODE_FAMILIES", "draw"]


def draw(seed: int, index: int, family: str = "", nodes: int = 1) -> Draft:
    """The draft of this index. It is legal, and depends on no other index.

    family: the name of one of FAMILIES; empty to draw one by weight. nodes: NUMA nodes of the guest; where
    there are several, some states are of NODE_FAMILIES instead. KeyError: there is no such family.
    """
    rng = Random(f"{seed}:{index}")
    weights = [weight for weight, _ in FAMILIES.values()]
    drawn = rng.choices(list(FAMILIES), weights)[0]
    known = FAMILIES
    if nodes > 1:
        known = FAMILIES | NODE_FAMILIES
        drawn = _instead(Random(f"{seed}:{index}:nodes"), drawn)
    family = family or drawn
    builder = ProgramBuilder(rng, draw_settings(rng), nodes=nodes)
    known[family][1](builder)
    if rng.random() < 0.25:
        builder.passes = rng.choice([2, 2, 3])
    return builder.draft(f"{seed}-{index}", family)


def _instead(rng: Random, family: str) -> str:
    """The family, or sometimes one of NODE_FAMILIES, so that the other states of a seed stay as they were."""
    point = rng.random()
    for name, (share, _) in NODE_FAMILIES.items():
        point -= share
        if point < 0:
            return name
    return family
