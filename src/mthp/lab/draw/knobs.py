# SPDX-License-Identifier: GPL-2.0-or-later
"""Random settings: which sizes are enabled and how, and the limits."""

from __future__ import annotations

from random import Random

from mthp.lab.geometry import ORDERS, PMD_ORDER, PMD_PAGES, SMALL_ORDERS
from mthp.words.settings import Enabled, Settings

MAX_LIMIT = PMD_PAGES - 1
"""The highest value of a max_ptes_* knob."""

_NONE = (0, 1, 2, 3, 15, 16, 64, 255, 256, 510)
"""Less usual max_ptes_none: sizes below PMD order collapse only with 0 and with the highest value."""
_FEW = (0, 1, 2, 7, 8, 16, 63, 64, 128, 255, 256, 510, 511)


def draw_settings(rng: Random) -> Settings:
    """Draw switches and limits. Something is always enabled, since khugepaged's thread ends otherwise."""
    sizes = _sizes(rng)
    own = {mode for mode in sizes.values() if mode is not Enabled.INHERIT}
    everywhere = rng.choices(list(_GLOBAL), list(_GLOBAL.values()))[0]
    if everywhere is Enabled.NEVER and own <= {Enabled.NEVER}:
        everywhere = rng.choice([Enabled.MADVISE, Enabled.ALWAYS])
    return Settings(
        enabled=everywhere,
        sizes=sizes,
        defrag=rng.random() < 0.85,
        max_ptes_none=_limit(rng, 0, (0.3, 0.72), _NONE),
        max_ptes_swap=_limit(rng, 64, (0.4, 0.6), _FEW),
        max_ptes_shared=_limit(rng, 256, (0.4, 0.6), _FEW),
    )


_GLOBAL = {Enabled.MADVISE: 5, Enabled.ALWAYS: 4, Enabled.NEVER: 1}
_ON = {Enabled.MADVISE: 4, Enabled.ALWAYS: 5, Enabled.INHERIT: 3}


def _sizes(rng: Random) -> dict[int, Enabled]:
    """Draw a switch for every size, in one of several styles."""
    off = dict.fromkeys(ORDERS, Enabled.NEVER)
    mode = rng.choices(list(_ON), list(_ON.values()))[0]
    style = rng.random()
    if style < 0.12:
        return off | {PMD_ORDER: mode}
    if style < 0.34:
        return off | {rng.choice(SMALL_ORDERS): mode}
    if style < 0.46:
        return off | {rng.choice(SMALL_ORDERS): mode, PMD_ORDER: mode}
    if style < 0.58:
        return dict.fromkeys(ORDERS, mode)
    if style < 0.78:
        return off | dict.fromkeys(rng.sample(ORDERS, rng.randint(2, 5)), mode)
    modes = list(Enabled)
    return {order: rng.choice(modes) for order in ORDERS}


def _limit(rng: Random, usual: int, shares: tuple[float, float], others: tuple[int, ...]) -> int:
    """Draw a limit: the usual one or the highest, up to the shares, else one of others, or any."""
    style = rng.random()
    if style < shares[0]:
        return usual
    if style < shares[1]:
        return MAX_LIMIT
    if style < 0.9:
        return rng.choice(others)
    return rng.randint(0, MAX_LIMIT)
