# SPDX-License-Identifier: GPL-2.0-or-later
"""From the answers on disk to distributions over machines, and the setting that holds on most of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pyarrow import ArrowException, parquet

from mthp.fleet.records import FleetGroup, FleetMachine, FleetSetting, Spread, Swept
from mthp.plan.records import Miss, Wish
from mthp.plan.sweep import with_sizes
from mthp.words.files import FileError
from mthp.words.settings import Enabled, Settings, parse_enabled_flag
from mthp.words.units import Geometry

COLUMNS = ("enabled", "max_ptes_none", "mapped_before", "mapped", "large", "memory_added", "reach",
           "tlb_entries", "last_collapse_ms", "front")  # fmt: skip
ADDED, LARGE, REACH, TRANSLATIONS, LAST, FRONT = range(6)
"""The figures of a machine under a setting."""
WORST = (np.maximum, np.minimum, np.minimum, np.maximum, np.maximum, np.maximum)
"""Which of two is the worse one, of each figure; of FRONT, whether either is."""
NAMED = 5
"""So many machines are named."""

Figures = NDArray[np.float64]


@dataclass
class _Group:
    kernels: Counter[str] = field(default_factory=Counter)
    settings: tuple[tuple[str, int], ...] = ()
    machines: dict[str, Figures] = field(default_factory=dict)
    """(6, settings) of each."""


class Gathered:
    """What is known of a fleet so far: some figures for each machine, setting by setting."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.digests: set[str] = set()
        self.twice = 0
        self.groups: dict[tuple[str, int, int], _Group] = {}

    def add(self, swept: Swept) -> None:
        """Add a snapshot, unless one of the same content is known. FileError: its answers cannot be read."""
        if swept.digest in self.digests:
            self.twice += 1
            return
        self.digests.add(swept.digest)
        part = os.path.join(self.folder, "answers", swept.part)
        try:
            table = parquet.ParquetFile(part).read(COLUMNS).to_pydict()
        except (OSError, ArrowException) as error:
            raise FileError(f"{part}: {error}; remove it to have it done again") from None
        number = {name: np.array(table[name], np.float64) for name in COLUMNS[1:]}
        before, mapped = (np.maximum(number[name], 1) for name in ("mapped_before", "mapped"))
        figures = np.nan_to_num(
            [
                number["memory_added"] / before,
                number["large"] / mapped,
                *(number[name] for name in ("reach", "tlb_entries", "last_collapse_ms", "front")),
            ]
        )
        group = self.groups.setdefault((swept.profile, swept.page_size, swept.pmd_size), _Group())
        group.kernels[swept.kernel] += 1
        # The first row is what is set on the machine, and not the same for all.
        group.settings = tuple(zip(table["enabled"], table["max_ptes_none"], strict=True))[1:]
        name = swept.host or swept.path
        if name in group.machines:
            pairs = zip(WORST, group.machines[name], figures, strict=True)
            figures = np.stack([worse(one, other) for worse, one, other in pairs])
        group.machines[name] = figures

    def answer(self, wish: Wish) -> tuple[FleetGroup, ...]:
        """The groups, the largest first."""
        found = (_answer_of(key, group, wish) for key, group in self.groups.items())
        return tuple(sorted(found, key=lambda group: (-group.machines, group.profile)))


def _answer_of(key: tuple[str, int, int], group: _Group, wish: Wish) -> FleetGroup:
    profile, page_size, pmd_size = key
    names, figures = [*group.machines], np.stack([*group.machines.values()], axis=2)
    shift = page_size.bit_length() - 1
    geometry = Geometry(shift, pmd_size.bit_length() - 1 - shift)
    given = [None, *(_settings(geometry, *each) for each in group.settings)]
    missed = [[_misses(wish, each) for each in figures[:, k].T] for k in range(len(given))]
    now, *settings = (_setting(each, missed[k], figures[:, k]) for k, each in enumerate(given))
    # To have no size at all adds nothing anywhere: it is no answer, where there is another.
    places = [k for k, each in enumerate(given) if each is not None and each.orders_always]
    k = min(
        places or range(1, len(given)),
        key=lambda k: (-settings[k - 1].holds, figures[TRANSLATIONS, k].sum(), k),
    )
    machines = [
        FleetMachine(name, misses, added)
        for name, misses, added in zip(names, missed[k], figures[ADDED, k].tolist(), strict=True)
    ]
    machines.sort(key=lambda each: (-_worst(each.misses), -each.added, each.name))
    return FleetGroup(
        profile, page_size, pmd_size, dict(sorted(group.kernels.items())), len(names), now,
        tuple(settings), settings[k - 1] if settings[k - 1].holds else None,
        tuple(machines[:NAMED]),
    )  # fmt: skip


def _misses(wish: Wish, of: Figures) -> tuple[Miss, ...]:
    return wish.missed(*of[[ADDED, LARGE, REACH, LAST]].tolist())


def _worst(misses: Sequence[Miss]) -> float:
    return max((miss.by for miss in misses), default=0.0)


def _enables(settings: Settings) -> bool:
    return any(mode is not Enabled.NEVER for mode in settings.sizes.values())


def _settings(geometry: Geometry, enabled: str, max_ptes_none: int) -> Settings:
    base = with_sizes(Settings(geometry=geometry), frozenset())
    if enabled:
        base = base.with_enabled(parse_enabled_flag(enabled))
    return base.replace(max_ptes_none=max_ptes_none)


def _setting(
    settings: Settings | None, missed: list[tuple[Miss, ...]], figures: Figures
) -> FleetSetting:
    return FleetSetting(
        settings=settings,
        holds=sum(not misses for misses in missed),
        front=int(figures[FRONT].sum()),
        added=_spread(figures, ADDED),
        large=_spread(figures, LARGE),
        reach=_spread(figures, REACH),
        translations=_spread(figures, TRANSLATIONS),
        last_collapse_ms=_spread(figures, LAST),
    )


def _spread(figures: Figures, which: int) -> Spread:
    values = figures[which]
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], method="inverted_cdf").tolist()
    return Spread(low, middle, high, float(WORST[which].reduce(values)))
