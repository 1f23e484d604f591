# SPDX-License-Identifier: GPL-2.0-or-later
"""One image under every setting of a grid, and which of them to take."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import KW_ONLY, dataclass, replace
from enum import StrEnum
from typing import ClassVar

from mthp.plan.doctor import examine
from mthp.plan.examined import Examined, examined_host
from mthp.plan.planner import Planner
from mthp.plan.records import BulkVerdict, SettingFinding, Wish
from mthp.words.processes import workers
from mthp.words.profiles import Orders, Profile
from mthp.words.settings import Enabled, Settings
from mthp.words.settings_text import U32_MAX


class Varied(StrEnum):
    """What else may be varied beside sizes and max_ptes_none."""

    DEFRAG = "defrag"
    RATE = "rate"
    PROFILE = "profile"


MORE_PAGES, SHORT_SLEEP = 16, 1000
"""What is tried for the rate: so many times the pages_to_scan that are set, and so many milliseconds."""


def grid(
    base: Settings, profile: Profile, vary: Collection[Varied] = frozenset()
) -> Iterator[Settings]:
    """The settings that are tried: sizes and max_ptes_none, as they stand first, then with what is varied."""
    for settings in dict.fromkeys(_variants(base, vary)):
        yield from _sizes_and_holes(settings, profile)


def _variants(base: Settings, vary: Collection[Varied]) -> Iterator[Settings]:
    """The settings, and others that differ in what is varied."""
    yield base
    pages = min(base.pages_to_scan * MORE_PAGES, U32_MAX)
    rates = [
        (each, sleep)
        for each in (base.pages_to_scan, pages)
        for sleep in (base.scan_sleep_millisecs, SHORT_SLEEP)
    ]
    for defrag in (base.defrag, not base.defrag) if Varied.DEFRAG in vary else (base.defrag,):
        for each, sleep in rates if Varied.RATE in vary else rates[:1]:
            yield base.replace(defrag=defrag, pages_to_scan=each, scan_sleep_millisecs=sleep)


def _sizes_and_holes(base: Settings, profile: Profile) -> Iterator[Settings]:
    """The sizes that people enable together, each with the values of max_ptes_none that differ, all else as
    it stands.

    Sizes: one alone, one with the PMD's, all up from one; always, as whatever is advised today is
    eligible then too. Below the PMD order max_ptes_none means 0 or PTRS_PER_PTE - 1.
    """
    geometry = base.geometry
    pmd, most = geometry.pmd_order, geometry.ptrs_per_pte - 1
    shares = [0, most // 8, most // 4, most // 2, most * 4 // 5, most]
    lower = sorted(geometry.anon_orders - {pmd}) if profile.orders is Orders.ANON else []
    masks = [frozenset({pmd}), *(frozenset({order}) for order in lower)]
    masks += [frozenset({order, pmd}) for order in lower]
    masks += [frozenset(range(order, pmd + 1)) for order in lower]
    yield with_sizes(base, frozenset())
    for mask in dict.fromkeys(masks):
        values = {*shares, base.max_ptes_none} if pmd in mask else {0, most}
        for value in sorted(values):
            yield with_sizes(base, mask).replace(max_ptes_none=value)


def notes_of(planner: Planner, settings: Settings, base: Settings) -> tuple[SettingFinding, ...]:
    """What of settings does not mean what it may seem to (see doctor), and does of those that are set; as
    far as a planner knows of it."""
    profile, snapshot = planner.profile, planner.snapshot
    found = []
    for each in (base, settings):
        case = (
            Examined(each, profile)
            if snapshot is None
            else examined_host(each, profile, snapshot.meta, None)
        )
        planner.mappings.kernel.settings = each
        vmas, memcgs = tuple(planner.mappings.vmas), planner.arrays.memcgs
        found.append(examine(replace(case, vmas=vmas, memcgs=memcgs))[0])
    before = {finding.rule for finding in found[0]}
    return tuple(finding for finding in found[1] if finding.rule not in before)


def with_sizes(base: Settings, orders: frozenset[int]) -> Settings:
    """The settings with these orders always, and no other."""
    sizes = {
        order: Enabled.ALWAYS if order in orders else Enabled.NEVER
        for order in base.geometry.anon_orders
    }
    return base.replace(sizes=sizes)


def soon_enough(planner: Planner, settings: Settings, wish: Wish) -> BulkVerdict:
    """The plan for settings, with as many pages_to_scan as the wish for time takes: what is set, or two,
    four … times as many, and no more than help. What collapses does not depend on it.
    """
    plan = planner.plan(settings)
    while wish.within is not None and (plan.last_collapse_ms or 0) > wish.within:
        pages = plan.settings.pages_to_scan
        faster = (
            planner.plan(plan.settings.replace(pages_to_scan=2 * pages))
            if pages < 1 << 30
            else plan
        )
        if faster.last_collapse_ms == plan.last_collapse_ms:
            break
        plan = faster
    return plan


@dataclass(frozen=True)
class Sweeper:
    """Plans for several settings that hold to a wish for time, as soon_enough() has them, on one process or
    more: what is found is the same. jobs: so many at most, which are forked where this one has been at it for
    `alone` seconds and is not done; a fork costs more than all plans that are counted. tell: is told how many
    are done.
    """

    planner: Planner
    wish: Wish
    _: KW_ONLY
    jobs: int = 1
    alone: float = 1.0
    tell: Callable[[int], None] = lambda _: None

    in_worker: ClassVar[Callable[[Sequence[Settings]], list[BulkVerdict]]]

    def plans(self, tried: Sequence[Settings]) -> list[BulkVerdict]:
        """The plan for each of them. WorkerKilled: one of the processes was."""
        found: dict[Settings, BulkVerdict] = {}
        began, left = time.monotonic(), [*tried]
        while left and (self.jobs == 1 or time.monotonic() - began < self.alone):
            settings = left.pop(0)
            found[settings] = soon_enough(self.planner, settings, self.wish)
            self.tell(len(found))
        if left:
            with workers(min(self.jobs, len(left)), self._begin) as pool:
                parts = [pool.submit(_in_worker, part) for part in _alike(left)]
                for future in as_completed(parts):
                    found.update(future.result())
                    self.tell(len(found))
        return [found[settings] for settings in tried]

    def _begin(self) -> None:
        """In each worker, which has all of this by the fork."""
        Sweeper.in_worker = replace(self, jobs=1, tell=lambda _: None).plans


def _in_worker(part: Sequence[Settings]) -> list[tuple[Settings, BulkVerdict]]:
    return [*zip(part, Sweeper.in_worker(part), strict=True)]


def _alike(tried: Sequence[Settings]) -> list[list[Settings]]:
    """Settings by what the engine is asked for them, which it is asked once: those with the same sizes; the
    most of them first, so that no worker is left alone with many."""
    parts: dict[tuple[object, ...], list[Settings]] = {}
    for settings in tried:
        parts.setdefault((settings.enabled, *settings.sizes.items()), []).append(settings)
    return sorted(parts.values(), key=len, reverse=True)


def sooner_than(planner: Planner, plan: BulkVerdict) -> tuple[BulkVerdict, ...]:
    """A plan's settings at the rates that a sweep may vary, where the last collapse is sooner then, as often
    as it is; the soonest last. What collapses is the same."""
    found, last = [], plan.last_collapse_ms or 0
    others = [planner.plan(each) for each in _variants(plan.settings, {Varied.RATE})]
    for other in sorted(others, key=lambda each: -(each.last_collapse_ms or 0)):
        if (other.last_collapse_ms or 0) < last:
            last = other.last_collapse_ms or 0
            found.append(other)
    return tuple(found)


def front_of(plans: Sequence[BulkVerdict]) -> tuple[bool, ...]:
    """Of each plan, whether it is on the Pareto front of all that is not paid but once. Of equals the first
    alone is. plans: by price.
    """
    prices = [plan.price[:3] for plan in plans]
    return tuple(
        not any(
            all(a <= b for a, b in zip(other, price, strict=True)) and (other != price or place < k)
            for place, other in enumerate(prices)
            if place != k
        )
        for k, price in enumerate(prices)
    )


def choose_plan(plans: Sequence[BulkVerdict], wish: Wish) -> tuple[BulkVerdict | None, BulkVerdict]:
    """The plan that holds to a wish, with the fewest translations, and then as the price goes on; and the
    one that comes nearest to the wish. There must be plans."""
    nearest = min(plans, key=lambda plan: (wish.missed_by(plan), plan.price))
    return (None if wish.missed_by(nearest) else nearest), nearest
