# SPDX-License-Identifier: GPL-2.0-or-later
"""From a state to its program: what comes before what, and what is refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mthp.image.scenario import Scenario, load
from mthp.image.scenario_values import Action
from mthp.lab.compile import CannotBuild, compile_state, displacement
from mthp.lab.program.declared import declare
from mthp.lab.program.program import BASE
from tests.lab.compile.states import scenario, vma

DATA = Path(__file__).parents[2] / "data"
SWITCH = "w /sys/kernel/mm/transparent_hugepage/hugepages-"
SMALL = "F0.RLaB.xs.m1"
HUGE = "F9.RLaBT.xs.m1.f0.i0"


def program(made: Scenario) -> list[str]:
    """What a state needs: no start, no registration, no final advice; switches made short."""
    lines = [str(op) for op in compile_state(made).ops]
    extents_of = (i for i, line in enumerate(lines) if " mmap " in line and line.endswith(" 1024"))
    decoy = max(extents_of)
    body = lines[: decoy - 1] + lines[decoy + 5 :]
    short = [line.removeprefix(SWITCH).replace("/enabled", "") for line in body]
    return [line for line in short if not line.startswith(("new", "s base", "s mmap"))][:-1]


def of(folios: str, ptes: str, **fields: Any) -> list[str]:
    return program(scenario(vma(folios, ptes, **fields)))


# --- order ----------------------------------------------------------------------------------


def test_small_pages_zero_pages_and_holes() -> None:
    assert of(f"8:{SMALL} 4:Z 500:-", "8:PWAD 4:PA 500:-") == ["s wr 0 8", "s rd 8 4"]


def test_large_folios_come_before_small_pages_the_largest_first() -> None:
    folios = f"16:{SMALL} 16:F4.RLaBT.xs.m1.f0.i0 32:F5.RLaBT.xs.m1.f1.i0 448:-"
    assert of(folios, "64:PWAD 448:-") == [
        *("128kB always", "s wr 32 32", "128kB never"),
        *("64kB always", "s wr 16 16", "64kB never"),
        "s wr 0 16",
    ]


def test_a_folio_is_made_whole_and_grows_old_before_parts_of_it_go() -> None:
    folios = f"4:F4.LaBT.xs.m1.f0.i0 2:{SMALL} 10:F4.LaBT.xs.m1.f0.i6 496:-"
    assert of(folios, "4:PWD 2:PWAD 2:PWD 8:PWAD 496:-") == [
        *("64kB always", "s wr 0 16", "64kB never"),
        "s adv 0 16 20",
        "s rd 8 8",
        "s adv 4 2 4",
        "s wr 4 2",
    ]


def test_a_folio_in_the_hole_of_a_larger_one() -> None:
    folios = "4:F4.RLaBT.xs.m1.f0.i0 4:F2.RLaBT.xs.m1.f1.i0 8:F4.RLaBT.xs.m1.f0.i8 496:-"
    assert of(folios, "16:PWAD 496:-") == [
        *("64kB always", "s wr 0 16", "64kB never"),
        "s adv 4 4 4",
        *("16kB always", "s wr 4 4", "16kB never"),
    ]


def test_what_a_pmd_maps() -> None:
    assert of(f"512:{HUGE}", "512:HPWAD") == ["2048kB always", "s wr 0 512", "2048kB never"]


def test_a_pmd_is_split_by_protecting_one_page() -> None:
    assert of("512:F9.RDLaBT.xs.m1.f0.i0", "512:PWAD")[3:] == [
        "s mprotect 0 1 1",
        "s mprotect 0 1 3",
    ]


def test_what_more_children_share_is_made_first() -> None:
    folios = f"2:{SMALL} 2:F0.RLaB.s.m2 4:F2.RLaBT.s.m4.f0.i0 504:-"
    assert of(folios, "2:PWAD 6:PA 504:-") == [
        *("16kB always", "s wr 4 4", "16kB never"),
        "s fork 2",
        "s wr 2 2",
        "s fork 1",
        "s wr 0 2",
    ]


def test_forks_come_before_the_process_is_registered() -> None:
    made = compile_state(scenario(vma("512:F0.RLaB.s.m2", "512:PA")))
    lines = [str(op) for op in made.ops]
    assert lines.index("s fork 1") < next(i for i, line in enumerate(lines) if "madvise" in line)


@pytest.mark.parametrize(
    ("token", "bits", "steps"),
    [
        ("F0.LaB.xs.m1", "PWD", ["s adv 0 1 20"]),
        ("F0.LaB.xs.m1", "PWAD", ["s adv 0 1 20", "s rd 0 1"]),
        ("F0.RLa.xs.m1", "PW", ["s adv 0 1 8"]),
        ("F0.RLa.xs.m1", "PWAD", ["s adv 0 1 8", "s wr 0 1"]),
        ("F0.RDLaB.xs.m1", "PWA", ["s adv 0 1 21", "s rd 0 1"]),
        ("F0.DLaB.xs.m1", "PWD", ["s adv 0 1 21", "s wr 0 1", "s adv 0 1 20"]),
        ("W0", "s", ["s adv 0 1 21"]),
        ("W24", "s", ["s adv 0 1 100"]),
        ("F0.RLaCB.xs.m1", "PA", ["s adv 0 1 21", "s fork 1", "s rd 0 1"]),
        ("F0.RLaB.xs.m1", "PAD", ["s fork 1", "s endfork"]),
        ("F0.RLaB.x.m1", "PAD", ["s clear_refs 4"]),
    ],
)
def test_a_page_gets_its_flags_and_bits(token: str, bits: str, steps: list[str]) -> None:
    assert of(f"1:{token} 511:-", f"1:{bits} 511:-") == ["s wr 0 1", *steps]


def test_swap_slots_never_rise_with_the_pages_of_a_window() -> None:
    outs = [f"s adv {page} 1 21" for page in (6, 5, 4, 3)]
    assert of("3:- 4:W0 505:-", "3:- 4:s 505:-") == ["s wr 3 4", "s adv 3 4 21"]
    assert of("3:- 4:W0 1:W0 504:-", "3:- 5:s 504:-") == ["s wr 3 5", "s adv 7 1 21", *outs]


def test_a_window_that_reaches_beyond_its_mapping_is_mapped_for_a_while() -> None:
    made = compile_state(scenario(vma("13:F4.RLaBT.xs.m1.f0.i3", "13:PWAD", page=3)))
    lines = [str(op) for op in made.ops]
    assert "s mmap 0 16" in lines
    assert lines.index("s wr 0 16") < lines.index("s munmap 0 3")


def test_an_empty_table_and_no_table() -> None:
    assert of("512:- 512:-", "512:- 512:nopte") == ["s wr 0 1", "s adv 0 1 4"]
    assert of("512:- 512:-", "512:nopte 512:nopte", anon_vma=True) == ["s wr 0 1", "s adv 0 512 4"]


def test_mappings_are_dressed_when_they_are_full() -> None:
    protected = "F0.RLaBVM.xws.m1"
    folios = f"1:{protected} 1:G 2:F0.RLaBVM.xs.m1 508:-"
    fields = {"mlocked": True, "uffd_wp": True, "pins": [[2, 1]]}
    assert of(folios, "1:PAU 1:s 2:PWAD 508:-", **fields) == [
        *("s wr 0 1", "s wr 2 2"),
        "s adv 1 1 102",
        "s uffd 0 512 2",
        "s uffdwp 0 1 1",
        "s pin_uring 2 1",
        "s mlock2 0 512",
    ]


def test_what_is_shared_is_held_by_a_plain_reference() -> None:
    lines = of("512:F0.RLaB.s.m2", "512:PA", pins=[[0, 300]])
    assert lines[-2:] == ["s pin_vmsplice 0 256", "s pin_vmsplice 256 44"]


def test_merged_pages() -> None:
    token = "F0.RDLaBK.s.m2.f0.i0"
    lines = of(f"1:{token} 1:{token} 510:-", "2:PA 510:-", ksm=True)
    assert lines == ["s same 0 2", "s adv 0 512 12", "ksm 3"]


def test_processes_limits_and_prctl() -> None:
    made = scenario(
        vma(f"512:{SMALL}", "512:PWAD"),
        vma(f"512:{SMALL}", "512:PWAD", mm=1),
        prctl=[None, "disable"],
        memcg={"limit_pages": 1100, "usage_pages": 1000},
        free_blocks={"0": 100, "3": 7},
    )
    draft = compile_state(made)
    assert [vma.process for vma in declare(draft).vmas] == ["s", "t"]
    assert [str(op) for op in draft.finish] == ["t prctl_thp 1 0", "memcg g 100", "eat 4"]


def test_madvise_collapse_asks_for_its_target() -> None:
    made = scenario(
        vma(f"512:{SMALL}", "512:PWAD"),
        vma(f"512:{SMALL}", "512:PWAD", page=1024),
        action="madvise_collapse",
        target=1,
    )
    draft = compile_state(made)
    assert draft.action is Action.MADVISE_COLLAPSE
    assert declare(draft).target == 1


def test_addresses_outside_the_range_that_is_watched_are_moved() -> None:
    low = vma(f"512:{SMALL}", "512:PWAD") | {"start": (1 << 30) + (6 << 20)}
    made = scenario(low)
    start = (1 << 30) + (6 << 20) - displacement(made)
    assert start >= BASE
    assert displacement(made) % (1 << 30) == 0
    assert [each.start for each in declare(compile_state(made)).vmas] == [start]
    assert displacement(scenario(vma(f"512:{SMALL}", "512:PWAD"))) == 0


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folios", "ptes", "fields", "refusal"),
    [
        ("1:F0.RLAaB.xs.m1 511:-", "1:PWAD 511:-", {}, "vmas[0] page 0: F0.RLAaB.xs.m1 PWAD"),
        ("3:- 2:F0.lRLaB.xs.m1 507:-", "3:- 2:PWAD 507:-", {}, "vmas[0] page 3"),
        ("1:W25 511:-", "1:s 511:-", {}, "migration entry"),
        ("4:F2.RLaBT.xs.m1.f0.i0 508:-", "1:PWD 3:PWAD 508:-", {}, "pages 0..3: F2"),
        ("1:- 4:F2.RLaBT.xs.m1.f0.i0 507:-", "1:- 4:PWAD 507:-", {}, "no boundary of its size"),
        ("4:F2.RDLaBT.xs.m1.f0.i0 508:-", "4:PWAD 508:-", {}, "only a dirty PMD"),
        ("512:F9.RLaBT.s.m2.f0.i0", "512:HPA", {}, "registers the process"),
        (f"512:{SMALL}", "512:PWAD", {"locked": [[0, 1]]}, "vmas[0].locked"),
        (f"512:{SMALL}", "512:PWAD", {"extra_refs": [[0, 1, 2]]}, "extra_refs"),
        ("512:-", "512:-", {"pins": [[4, 2]]}, "vmas[0] pages 4..5: - -: nothing there"),
    ],
)
def test_what_cannot_be_built_is_named(
    folios: str, ptes: str, fields: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(CannotBuild) as caught:
        compile_state(scenario(vma(folios, ptes, **fields)))
    assert refusal in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_refusals() -> None:
    full = vma(f"512:{SMALL}", "512:PWAD")
    for made, refusal in (
        (scenario(full, geometry={"page_shift": 14, "pmd_order": 9}), "geometry"),
        (scenario(full, free_blocks={"9": 3}), "free_blocks"),
        (scenario(full, full | {"start": BASE + (2 << 20)}), "mappings that touch"),
        (scenario(*(full | {"mm": mm} for mm in range(4))), "4 processes"),
        (scenario(full, memcg={"limit_pages": 1, "usage_pages": 2}), "memcg"),
    ):
        with pytest.raises(CannotBuild, match=refusal):
            compile_state(made)


# --- properties -----------------------------------------------------------------------------

KINDS = {
    "-": ("-", "-"),
    "Z": ("Z", "PA"),
    "G": ("G", "s"),
    "W": ("W0", "s"),
    "S": (SMALL, "PWAD"),
    "old": ("F0.LaB.xs.m1", "PWD"),
    "lazy": ("F0.RLa.xs.m1", "PW"),
    "shared": ("F0.RLaB.s.m2", "PA"),
}


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, Any]:
    """A mapping at an odd place with random runs of pages, advised and locked at random."""
    runs = draw(st.lists(st.tuples(st.integers(1, 90), st.sampled_from(sorted(KINDS))), min_size=1))
    page = draw(st.integers(0, 400))
    folios = " ".join(f"{count}:{KINDS[kind][0]}" for count, kind in runs)
    ptes = " ".join(f"{count}:{KINDS[kind][1]}" for count, kind in runs)
    anon = any(kind not in "-Z" for _, kind in runs)
    advice = draw(st.sampled_from([None, "hugepage", "nohugepage"]))
    return vma(folios, ptes, page, anon_vma=anon, advice=advice, mlocked=draw(st.booleans()))


@given(mappings())
@settings(max_examples=60, deadline=None)
def test_a_program_declares_the_scenarios_mappings(mapping: dict[str, Any]) -> None:
    made = scenario(mapping)
    (declared,) = declare(compile_state(made)).vmas
    (want,) = made.vmas
    for name in ("start", "pages", "anon_vma"):
        assert getattr(declared, name) == getattr(want, name)
    for name in ("advice", "mlocked"):
        assert getattr(declared.traits, name) == getattr(want, name)


@pytest.mark.parametrize("name", ["linux-7.3.4.jsonl.xz", "linux-7.3.4-many-vmas.jsonl.xz"])
def test_recorded_states_compile(name: str) -> None:
    for made in islice(load(DATA / name), 0, None, 12):
        declared = declare(compile_state(made))
        assert [(vma.start, vma.pages, vma.anon_vma, vma.pins) for vma in declared.vmas] == [
            (vma.start, vma.pages, vma.anon_vma, tuple(sorted(vma.pins))) for vma in made.vmas
        ]


# --- relatives ------------------------------------------------------------------------------


def test_what_relatives_share_is_inherited() -> None:
    shared, own = "F0.RLaB.s.m2.f1.i0", SMALL
    made = scenario(
        vma(f"1:{shared} 1:{own} 510:-", "1:PA 1:PWAD 510:-"),
        vma(f"1:{shared} 2:{own} 509:-", "1:P 2:PWAD 509:-", mm=1),
    )
    lines = [str(op) for op in compile_state(made).ops]
    assert "new t" not in lines
    fork = lines.index("s forkto t")
    assert [line for line in lines[:fork] if " wr " in line] == ["s wr 0 1"]
    assert [line for line in lines[fork:] if " wr " in line][:2] == ["s wr 1 1", "t wr 1 2"]


def test_a_page_that_was_shared_is_dropped_by_the_other() -> None:
    shared, reused = "F0.RLaB.s.m2.f1.i0", "F0.RLaB.xs.m1"
    made = scenario(
        vma(f"1:{shared} 1:{reused} 510:-", "2:PA 510:-"),
        vma(f"1:{shared} 511:-", "1:PA 511:-", mm=1),
    )
    lines = [str(op) for op in compile_state(made).ops]
    fork = lines.index("s forkto t")
    assert [line for line in lines[:fork] if " wr " in line] == ["s wr 0 2"]
    assert lines[fork + 1 : fork + 3] == ["t rd 0 1", "t adv 1 1 4"]
