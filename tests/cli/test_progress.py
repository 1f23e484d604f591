# SPDX-License-Identifier: GPL-2.0-or-later
"""What the line on stderr counts is what the run does."""

from __future__ import annotations

from collections import Counter

import pytest

from mthp.cli.collapse import ScanProgress
from mthp.mm.vm_flags import VM_DEFAULT, VM_NOHUGEPAGE
from mthp.predict.outcome import Request, run_world
from mthp.words.profiles import PMD_ONLY, V7_3, Profile
from mthp.worlds.build import BuiltWorld
from tests.small_worlds import TINY, World, hole, huge, old, small

NR = TINY.ptrs_per_pte


@pytest.mark.parametrize("profile", [V7_3, PMD_ONLY])
@pytest.mark.parametrize("pages_to_scan", [NR, 20 * NR])
def test_progress_is_of_the_full_scan_under_way(profile: Profile, pages_to_scan: int) -> None:
    """Of 24 tables in three mappings seven are there, two of them where nothing is scanned."""
    world = World(geometry=TINY, profile=profile, pages_to_scan=pages_to_scan, max_ptes_none=0)
    vmas = [
        world.vma(small(NR), at=1 << 30, pages=20 * NR),
        world.vma(small(2 * NR), at=2 << 30, flags=VM_DEFAULT | VM_NOHUGEPAGE),
        world.vma(old(NR), small(1), hole(NR - 1), at=3 << 30),
    ]
    world.fill(vmas[0], 9 * NR, small(NR), huge(4))
    built = BuiltWorld(world.kernel, world.khugepaged, vmas)
    progress = ScanProgress(built, quiet=True)
    assert progress.tables == 5
    seen: Counter[int] = Counter()

    def on_table() -> None:
        progress.on_table()
        seen[progress.full_scans] += 1
        assert progress.within == seen[progress.full_scans] <= 5

    outcome = run_world(built, Request("", "", "", changes=False, on_table=on_table))
    assert outcome.fixed_point
    ended = range(outcome.clock.full_scans)
    assert [seen[scan] for scan in ended] == [5 for _ in ended]
