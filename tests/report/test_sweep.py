# SPDX-License-Identifier: GPL-2.0-or-later
"""How settings are written: what is printed leads, read back, to the settings that were meant."""

from __future__ import annotations

from random import Random

import pytest

from mthp.plan.records import Miss, Wanted
from mthp.report.sweep import (
    boot_parameter,
    miss_text,
    sizes_text,
    tmpfiles_lines,
    tuned_lines,
    writes,
)
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


def test_changes_are_written_for_systemd_and_tuned_too() -> None:
    changes = [("/sys/a/b", "1"), ("/sys/a/c", "always")]
    assert tmpfiles_lines(changes) == ["w /sys/a/b - - - - 1", "w /sys/a/c - - - - always"]
    lines = tuned_lines(changes)
    assert lines[lines.index("[sysfs]") + 1 :] == ["/sys/a/b=1", "/sys/a/c=always"]


def test_what_is_missed_is_said_with_how_far_off() -> None:
    assert miss_text(Miss(Wanted.REACH, 0.8, 0.75, 0.05)) == "75 % mapped by PMDs, 5 % too little"
    late = Miss(Wanted.WITHIN, 600_000, 900_000, 0.5)
    assert miss_text(late) == "the last collapse within 15 min, 5 min too late"
