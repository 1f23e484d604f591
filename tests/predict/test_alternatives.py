# SPDX-License-Identifier: GPL-2.0-or-later
"""Where nothing is enabled, three other settings are run on the same memory; nowhere else."""

from __future__ import annotations

from mthp import Image, example
from mthp.predict.alternatives import with_alternatives
from mthp.predict.outcome import Request, run_world
from mthp.predict.passes import Interrupted
from mthp.predict.records import Outcome
from mthp.words.profiles import PMD_ONLY, V7_3, Profile
from mthp.words.settings import Enabled, Settings
from mthp.worlds.build import BuiltWorld


def looked_at(image: Image, settings: Settings, profile: Profile, **hooks: object) -> Outcome:
    """An outcome of it, and what other settings give."""

    def prepare(of: Settings) -> tuple[BuiltWorld, Request]:
        return image.prepared(of, profile, "as asked")

    world, request = prepare(settings)
    request.changes = False
    return with_alternatives(run_world(world, request), prepare, **hooks)  # type: ignore[arg-type]


def test_each_is_what_a_run_under_its_settings_gives() -> None:
    image = example()
    closed = looked_at(image, image.settings, PMD_ONLY)
    assert closed.highest_order is None
    assert list(closed.alternatives) == [
        "enabled=always",
        "enabled=always, max_ptes_none=0",
        "MADV_HUGEPAGE on the mapping at b52fbda5c00000",
    ]
    always, full, advised = closed.alternatives.values()
    for other in (always, full):
        run = image.run(other.settings, PMD_ONLY).outcome
        assert other.large_bytes == run.large_bytes > 0
        assert other.timeline == run.timeline
    assert (always.settings.max_ptes_none, full.settings.max_ptes_none) == (511, 0)
    largest = max(closed.vmas, key=lambda vma: sum(vma.before.values()))
    assert 0 < advised.large_bytes <= largest.end - largest.start


def test_a_kernel_with_sizes_between_has_64kb_tried() -> None:
    image = example()
    never = image.settings.replace(
        enabled=Enabled.NEVER, sizes=dict.fromkeys(image.settings.sizes, Enabled.NEVER)
    )
    closed = looked_at(image, never, V7_3)
    assert list(closed.alternatives) == [
        "2048kB=always",
        "2048kB=always, max_ptes_none=0",
        "64kB=always",
    ]
    assert closed.alternatives["64kB=always"].highest_order == 4


def test_where_something_is_enabled_nothing_else_is_tried() -> None:
    image = example()
    settings = image.settings.replace(enabled=Enabled.ALWAYS)
    assert looked_at(image, settings, PMD_ONLY).alternatives == {}


def test_an_interrupt_leaves_what_is_known() -> None:
    """Each setting has more than 20 tables scanned, and fewer than 100."""
    scanned = []

    def on_table() -> None:
        scanned.append(1)
        if len(scanned) > 150:
            raise Interrupted

    image = example()
    closed = looked_at(image, image.settings, PMD_ONLY, on_table=on_table)
    assert 1 <= len(closed.alternatives) < 3
