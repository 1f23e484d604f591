# SPDX-License-Identifier: GPL-2.0-or-later
"""Random initial states. A seed and an index always give the same Draft."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from mthp.lab.draw.families import FAMILIES, LATER_FAMILIES, NODE_FAMILIES
from mthp.lab.draw.knobs import draw_settings
from mthp.lab.draw.program_builder import ProgramBuilder
from mthp.lab.program.program import Draft

Draw = Callable[[ProgramBuilder], None]

__all__ = ["FAMILIES", "LATER_FAMILIES", "NODE_FAMILIES", "draw"]


def draw(seed: int, index: int, family: str = "", nodes: int = 1) -> Draft:
    """The draft of this index. It is legal, and depends on no other index.

    family: the name of one of FAMILIES or LATER_FAMILIES; empty to draw one by weight. nodes: NUMA nodes of
    the guest; where there are several, some states are of NODE_FAMILIES instead. KeyError: there is no such
    family.
    """
    rng = Random(f"{seed}:{index}")
    weights = [weight for weight, _ in FAMILIES.values()]
    drawn = rng.choices(list(FAMILIES), weights)[0]
    known = FAMILIES | LATER_FAMILIES
    drawn = _instead(Random(f"{seed}:{index}:later"), LATER_FAMILIES, drawn)
    if nodes > 1:
        known |= NODE_FAMILIES
        drawn = _instead(Random(f"{seed}:{index}:nodes"), NODE_FAMILIES, drawn)
    family = family or drawn
    builder = ProgramBuilder(rng, draw_settings(rng), nodes=nodes)
    known[family][1](builder)
    if rng.random() < 0.25:
        builder.passes = rng.choice([2, 2, 3])
    return builder.draft(f"{seed}-{index}", family)


def _instead(rng: Random, families: Mapping[str, tuple[float, Draw]], family: str) -> str:
    """The family, or sometimes one of others, so that the other states of a seed stay as they were."""
    point = rng.random()
    for name, (share, _) in families.items():
        point -= share
        if point < 0:
            return name
    return family
