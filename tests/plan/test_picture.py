# SPDX-License-Identifier: GPL-2.0-or-later
"""The map of an image: page by page what the engine has, and why it stays."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

import mthp
from mthp.plan.picture import picture_of
from mthp.plan.records import NO_REASON, MappedTo, MemoryMap, PagesAlike
from mthp.predict.measure import folios_of
from mthp.predict.outcome import Request
from mthp.predict.records import Outcome
from mthp.predict.resident import modelled
from mthp.words.profiles import PROFILES
from mthp.worlds.build import BuiltWorld, build_arrays
from tests.plan.images import random_image, random_profile, random_settings


def singly(found: MemoryMap, outcome: Outcome) -> dict[tuple[int, int], PagesAlike]:
    """(pid, address) -> what is there, page by page."""
    pages = {}
    columns = (found.mapping, found.first, found.pages, found.kind)
    for mapping, first, nr, kind in zip(*(each.tolist() for each in columns), strict=True):
        vma = outcome.vmas[mapping]
        for page in range(first, first + nr):
            at = vma.pid, vma.start + page * outcome.page_size
            assert at not in pages
            assert at[1] < vma.end
            pages[at] = found.kinds[kind]
    return pages


def folios(world: BuiltWorld) -> dict[tuple[int, int], int]:
    """(pid, address) -> the order of the folio that begins there, or where its first mapped page is."""
    return {
        (vma.vm_mm.number, address): order
        for vma in modelled(world.vmas)
        for address, order, _ in folios_of(world.kernel, vma)
    }


def checked(make: BuiltWorld, fresh: BuiltWorld, request: Request) -> None:
    """Hold a picture against the engine's own words for the same."""
    before = folios(fresh)
    picture = picture_of(make, request)
    outcome, pages = picture.outcome, singly(picture.map, picture.outcome)
    for which, there in ((0, before), (1, folios(make))):
        for at, order in there.items():
            assert pages[at][which] == MappedTo.FOLIO + order
    for which in (0, 1):
        sums: Counter[int] = Counter()
        for vma in outcome.vmas:
            sums.update(vma.after if which else vma.before)
        found = Counter(kind[which] - MappedTo.FOLIO for kind in pages.values())
        assert {
            order: nr * outcome.page_size for order, nr in found.items() if 0 <= order < 20
        } == +sums
    swapped = sum(kind.after == MappedTo.SWAP for kind in pages.values())
    zero = sum(kind.after == MappedTo.ZERO for kind in pages.values())
    assert swapped * outcome.page_size == sum(vma.swapped for vma in outcome.vmas)
    assert zero * outcome.page_size == sum(vma.zero for vma in outcome.vmas)
    # Each page that holds something is in one refusal, or in none.
    for (pid, address), kind in pages.items():
        met = [
            each
            for each in outcome.refusals
            if each.pid == pid and each.covers(address, outcome.page_size)
        ]
        if kind.reason == NO_REASON:
            assert not met or kind.after == MappedTo.NOTHING
            continue
        example = picture.map.reasons[kind.reason]
        assert any(
            (example.stage, example.status, example.order) == (each.stage, each.status, each.order)
            for each in met
        )


@pytest.mark.parametrize("seed", range(40))
def test_the_map_is_the_engines_memory_page_by_page(seed: int) -> None:
    rnd = Random(seed)
    image, profile, settings = random_image(rnd), random_profile(rnd), random_settings(rnd)
    run, fresh = (build_arrays(image, settings, profile) for _ in range(2))
    checked(run, fresh, Request("", "", "", changes=False))


def test_redis_has_its_changes_too() -> None:
    image = mthp.example()
    settings = image.configured(enabled="all=always,always", max_ptes_none=0)
    (world, request), (fresh, _) = (
        image.prepared(settings, PROFILES["7.3"], "as asked") for _ in range(2)
    )
    before = folios(fresh)
    picture = picture_of(world, request)
    pages = singly(picture.map, picture.outcome)
    assert all(pages[at].before == MappedTo.FOLIO + order for at, order in before.items())
    held = sum(kind.after not in (MappedTo.NOTHING, MappedTo.ZERO) for kind in pages.values())
    assert held * 4096 == sum(sum(vma.after.values()) for vma in picture.outcome.vmas)
    refused = sum(kind.reason != NO_REASON for kind in pages.values())
    assert refused == sum(each.pages for each in picture.outcome.refusals)
    assert any(each.change is not None for each in picture.map.reasons)
