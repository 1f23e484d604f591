# SPDX-License-Identifier: GPL-2.0-or-later
"""Worlds as values: their names, how they are laid out, and which are explored."""

from __future__ import annotations

import pytest

from mthp.check.check import check_world
from mthp.check.scorecard import default_worlds
from mthp.check.token import Token
from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import Extent
from mthp.laws.watch import check_quiescent
from mthp.mm.page_flags import PG_MLOCKED
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import WRITE, pmd_trans_huge
from mthp.mm.vm_flags import VM_LOCKED, VM_WRITE
from mthp.races.cast.all import LAWFUL
from mthp.races.cast.collapsers import Start
from mthp.races.findings import findings_of
from mthp.races.stage import FILE, START, Layout, Size
from mthp.races.world import RaceWorld
from mthp.words.events import CollapseHugePage
from mthp.words.results import ScanResult

PARTS = 8
"""In which all worlds are looked at."""

LAYOUTS = [
    world
    for world in (RaceWorld(size, "7.3", (), layout=layout) for size in Size for layout in Layout)
    if world.is_possible
]


@pytest.mark.parametrize("profile", ["v16", "7.3", "pmd-only"])
def test_a_world_is_what_its_name_says(profile: str) -> None:
    worlds = default_worlds(profile)
    for world in worlds:
        assert RaceWorld.parse(world.name, profile, world.rivals) == world
        token = f"as-is:{profile}:{world.name}:{'+'.join(world.rivals) or '-'}:a1"
        assert str(Token.parse(token)) == token
    assert len(set(worlds)) == len(worlds)


@pytest.mark.parametrize(
    "name", ["pmd+second", "pmd+both", "window+huge", "window+madvise", "pmd+file+huge",
             "pmd+scan+daemon", "pmd+madvise+locked", "pmd+hook+hook", "table", "pmd+"],
)  # fmt: skip
def test_parts_that_do_not_go_together(name: str) -> None:
    with pytest.raises(ValueError, match="no world"):
        RaceWorld.parse(name, "7.3", ())


@pytest.mark.parametrize("world", LAYOUTS, ids=str)
def test_every_layout_is_sound_from_the_start(world: RaceWorld) -> None:
    stage = world()
    assert check_quiescent(stage.kernel, stage.khugepaged) == []
    assert stage.windows[0] == stage.window == stage.address(0)
    assert len(stage.windows) == 1 + (world.layout is Layout.BOTH)


def test_what_layouts_are() -> None:
    def laid_out(name: str) -> RaceWorld:
        return RaceWorld.parse(name, "7.3", ())

    second = laid_out("window+second")()
    assert second.window == START + 0x2000 and second.beside == -2
    first, other = laid_out("pmd+two-vmas")().mm.vmas
    assert first.vm_start < START < first.vm_end == other.vm_start
    assert first.anon_vma is not other.anon_vma is not None
    assert laid_out("pmd+file")().vma.file == FILE
    memcg = laid_out("pmd+memcg")().mm.memcg
    assert memcg is not None and (memcg.charged, memcg.limit) == (1, 4)
    locked = laid_out("window+locked")()
    assert locked.vma.vm_flags & VM_LOCKED
    assert locked.kernel.mem.test(locked.pages[0], PG_MLOCKED)
    read_only = laid_out("window+read-only")()
    assert not read_only.vma.vm_flags & VM_WRITE and not read_only.table.ptes.raw[0] & WRITE
    slot = pmd_ptr(laid_out("pmd+huge")().mm, START)
    assert slot is not None and pmd_trans_huge(slot.page.pmds.raw[slot.slot])
    madvise = laid_out("pmd+madvise")()
    assert madvise.last == START + 0x4000 and madvise.vma.vm_end == START + 0x6000


def succeeded(world: RaceWorld, most: int | None) -> tuple[bool, Extent]:
    """Whether any collapse of khugepaged's task did, and how far the world was explored, in which no
    law was broken that is not a finding."""
    seen: set[ScanResult] = set()

    def stage_of() -> object:
        stage = world()
        trace = stage.kernel.trace

        def traced(event: object) -> None:
            if isinstance(event, CollapseHugePage) and stage.machine.current.cpu == 0:
                seen.add(event.status)
            trace(event)  # type: ignore[arg-type]

        stage.kernel.trace = traced
        return stage

    found = Explorer(stage_of, until=Until.END, most_executions=most).explore()  # type: ignore[arg-type]
    known = findings_of(world)
    unknown = [f for f in found.findings if not any(one.is_it(f.broken) for one in known)]
    assert unknown == [], world
    return ScanResult.SUCCEED in seen, found.coverage.kind


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("profile", ["v16", "7.3", "pmd-only"])
def test_where_nothing_ever_collapses_there_is_a_reason(profile: str, part: int) -> None:
    """And it is given nowhere else, but for what a rival may change about a huge mapping, and where the
    daemon comes to a stack once it is shifted."""
    for world in default_worlds(profile)[part::PARTS]:
        collapses, _ = succeeded(world, 3000)
        is_open = world.layout is Layout.HUGE or world.start is Start.DAEMON
        assert collapses or world.never_collapses, world
        assert not (collapses and world.never_collapses) or is_open, world


@pytest.mark.parametrize(
    ("name", "rival"),
    [
        ("window+second", "migrate-neighbour"),
        ("window+both", "shrink"),
        ("pmd+locked", "migrate"),
        ("pmd+huge", "split"),
        ("pmd+madvise", "remap-last"),
        ("pmd", "remap-file"),
        ("pmd", "uffd-copy"),
        ("window", "swap-in"),
        ("window", "swapoff"),
    ],
)
def test_a_collapse_succeeds_in_some_order(name: str, rival: str) -> None:
    assert succeeded(RaceWorld.parse(name, "7.3", (rival,)), None) == (True, Extent.EXHAUSTIVE)


def test_a_page_in_the_swap_cache_is_charged() -> None:
    assert check_world(RaceWorld.parse("pmd+memcg", "7.3", ("writeback",))).clean


@pytest.mark.slow
@pytest.mark.parametrize(
    "world", [each for each in LAYOUTS if each.layout is not Layout.PLAIN], ids=str
)
def test_every_rival_that_fits_is_explored_in_every_layout(world: RaceWorld) -> None:
    for rival in LAWFUL:
        one = RaceWorld(world.size, "7.3", (rival,), layout=world.layout)
        if one.is_for_all:
            result = check_world(one)
            assert not result.is_alarm, one
            assert result.covered.kind is Extent.EXHAUSTIVE, one
