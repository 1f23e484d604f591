# SPDX-License-Identifier: GPL-2.0-or-later
"""How settings are written: what is printed leads, read back, to the settings that were meant."""

from __future__ import annotations

from random import Random

import pytest

from mthp.report.sweep import boot_parameter, sizes_text, writes
from mthp.words.settings import Enabled, Settings, parse_thp_anon
from mthp.words.units import Geometry
from tests.plan.images import random_settings

ROOT = "/sys/kernel/mm/transparent_hugepage/"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_to_be_written_leads_to_the_settings(seed: int) -> None:
    rnd = Random(seed)
    base, wanted = random_settings(rnd), random_settings(rnd)
    files = base.to_sysfs()
    for path, value in writes(base, wanted):
        name = path.removeprefix(ROOT)
        assert name in files
        files[name] = f"[{value}]" if name.endswith("enabled") else f"{value}\n"
    assert Settings.from_sysfs(files) == wanted
    assert writes(wanted, wanted) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_boot_parameter_sets_the_same_sizes(seed: int) -> None:
    wanted = random_settings(Random(seed))
    text = boot_parameter(wanted).removeprefix("thp_anon=")
    assert parse_thp_anon(text, Geometry()) == wanted.sizes


def test_sizes_are_named_in_runs() -> None:
    none = dict.fromkeys(Geometry().anon_orders, Enabled.NEVER)
    settings = Settings(sizes={**none, 4: Enabled.ALWAYS, 5: Enabled.MADVISE, 9: Enabled.INHERIT})
    assert sizes_text(settings) == "64kB-128kB+2048kB"
    assert sizes_text(Settings(sizes=none)) == "none"
    assert boot_parameter(Settings(sizes=none)) == "thp_anon=16K:never"
