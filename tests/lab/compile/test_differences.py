# SPDX-License-Identifier: GPL-2.0-or-later
"""A declared state against one that was read back."""

from __future__ import annotations

from typing import Any

import pytest

from mthp.lab.compile import differences, displacement
from mthp.lab.program.program import BASE
from tests.lab.compile.states import scenario, vma

FOLIOS = "4:F2.RLaBT.xs.m1.f0.i0 4:F2.RLaBT.xs.m1.f1.i0 1:W0 503:-"
PTES = "8:PWAD 1:s 503:-"


def compared(folios: str, ptes: str | None, **fields: Any) -> list[str]:
    return differences(scenario(vma(FOLIOS, PTES)), scenario(vma(folios, ptes, **fields)))


def test_names_of_folios_and_swap_devices_do_not_matter() -> None:
    renamed = FOLIOS.replace("f0", "f7").replace("f1", "f3").replace("RLaBT", "TBaLR")
    assert compared(renamed.replace("W0", "W2"), PTES) == []


def test_slots_matter_where_the_scenario_says_them() -> None:
    slots = FOLIOS.replace("W0", "W0.o7")
    assert compared(slots, PTES) == []
    other = scenario(vma(slots.replace("o7", "o9"), PTES))
    assert differences(scenario(vma(slots, PTES)), other) == [
        "vmas[0] page 8: W0.o9 s, not W0.o7 s"
    ]


def test_identities_do() -> None:
    mixed = "4:F2.RLaBT.xs.m1.f0.i0 2:F2.RLaBT.xs.m1.f1.i0 2:F2.RLaBT.xs.m1.f2.i2 1:W0 503:-"
    (line,) = compared(mixed, PTES)
    assert line.startswith("vmas[0] pages 6..7: F2.BLRTa.xs.m1.f2 PWAD, not F2.BLRTa.xs.m1.f1")


@pytest.mark.parametrize(("entry", "same"), [("PAD", True), ("PA", True), ("P", False)])
def test_the_dirty_bit_counts_where_the_entry_is_writable(entry: str, same: bool) -> None:
    folios = "1:F0.RLaB.s.m2 511:-"
    wanted_processes = scenario(vma(folios, "1:PA 511:-"))
    assert (differences(wanted_processes, scenario(vma(folios, f"1:{entry} 511:-"))) == []) is same
    assert compared(FOLIOS, "1:PWA 7:PWAD 1:s 503:-") == [
        "vmas[0] page 0: F2.BLRTa.xs.m1.f0 PWA, not F2.BLRTa.xs.m1.f0 PWAD"
    ]


def test_which_processes_large_folios_know_counts_where_the_scenario_says_it() -> None:
    mapped = FOLIOS.replace("xs.m1", "s.m3")
    mine = scenario(vma(mapped, PTES), mm_ids={"0": [[0, 4]], "1": []})
    renamed = mapped.replace("f0", "f7")
    assert differences(mine, scenario(vma(renamed, PTES), mm_ids={"7": [[0, 4]], "1": []})) == []
    assert differences(mine, scenario(vma(renamed, PTES), mm_ids={"7": [[None, 4]]})) == [
        "mm_ids.0: [[None, 4]], not [[0, 4]]",
        "mm_ids.1: not shared, not []",
    ]
    assert differences(scenario(vma(mapped, PTES)), mine) == [], "older records do not say it"


def test_tables_count_where_the_scenario_has_them() -> None:
    without, with_none = vma("512:-", None, anon_vma=False), vma("512:-", "512:-", anon_vma=False)
    no_table = vma("512:-", "512:nopte", anon_vma=False)
    assert differences(scenario(without), scenario(no_table)) == []
    assert differences(scenario(with_none), scenario(no_table)) == [
        "vmas[0] pages 0..511: - nopte, not - -"
    ]


def test_properties_of_mappings() -> None:
    assert compared(FOLIOS, PTES, mlocked=True) == ["vmas[0].mlocked: True, not False"]
    assert compared(FOLIOS, PTES, pins=[[0, 1]]) == ["vmas[0]: other pages are held by references"]
    assert compared(FOLIOS, PTES, start=BASE + (2 << 20))[0].startswith("vmas[0].start: ")
    wanted_processes = scenario(vma(FOLIOS, PTES))
    assert differences(wanted_processes, scenario(vma(FOLIOS, PTES), vma("1:-", None, 4096))) == [
        "2 mappings, not 1"
    ]


def test_addresses_moved_alike_agree() -> None:
    low = vma(FOLIOS, PTES) | {"start": 4 << 30}
    moved = low | {"start": (4 << 30) - displacement(scenario(low))}
    assert moved["start"] >= BASE
    assert differences(scenario(low), scenario(moved)) == []
    other = moved | {"start": moved["start"] + (2 << 20)}
    assert len(differences(scenario(low), scenario(other))) == 1


def test_the_largest_free_block_counts() -> None:
    wanted_processes = scenario(vma(FOLIOS, PTES), free_blocks={"0": 9, "3": 2})
    assert (
        differences(wanted_processes, scenario(vma(FOLIOS, PTES), free_blocks={"0": 7, "3": 1}))
        == []
    )
    assert differences(wanted_processes, scenario(vma(FOLIOS, PTES), free_blocks={"0": 7})) == [
        "free_blocks: the largest is of order 0, not 3"
    ]
