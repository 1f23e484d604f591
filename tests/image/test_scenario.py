# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios: every recorded run loads and prints back; every impossible one is refused."""

from __future__ import annotations

import copy
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mthp.image.fields import ScenarioError
from mthp.image.runs import (
    PageKind,
    PagesState,
    PteState,
    RunsError,
    folio_runs,
    parse_folio_token,
    parse_pte_token,
    parse_runs,
)
from mthp.image.scenario import load, load_one, parse_scenario
from mthp.image.scenario_values import Action, Advice, Memcg, Prctl
from mthp.words.files import FileError
from mthp.words.settings import Enabled
from mthp.words.units import Geometry

DATA = Path(__file__).parent.parent / "data"
FILES = {
    "linux-7.3.4.jsonl.xz": 499,
    "linux-7.3.4-many-vmas.jsonl.xz": 200,
    "lab-7.3.4.jsonl.xz": 22,
}
BASE = 0x7E00_0000_0000


def raw_documents(name: str) -> Iterator[dict[str, Any]]:
    with lzma.open(DATA / name, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def document(folios: str = "512:F0.RLaB.xs.m1", ptes: str | None = "512:PWAD") -> dict[str, Any]:
    """A small scenario of the second flavour: one VMA of one table, one pass."""
    vma: dict[str, Any] = {
        "start": BASE,
        "pages": 512,
        "advice": None,
        "anon_vma": True,
        "pins": [],
        "initial": {"folios": folios, "ptes": ptes},
    }
    return {
        "schema": "mthp-scenario/1",
        "id": "t-1",
        "settings": {"enabled": {"64kB": "always", "global": "madvise"}, "max_ptes_none": 0},
        "action": "khugepaged",
        "vmas": [vma],
        "passes": [{"events": [], "final": [copy.deepcopy(vma["initial"])]}],
    }


def second_vma(doc: dict[str, Any], folios: str, ptes: str) -> dict[str, Any]:
    """Add a VMA on the tables after the first, to the start and to the end."""
    vma = copy.deepcopy(doc["vmas"][0])
    vma["start"] += 2 << 21
    vma["initial"] = {"folios": folios, "ptes": ptes}
    doc["vmas"].append(vma)
    doc["passes"][0]["final"].append(copy.deepcopy(vma["initial"]))
    return doc


# --- what is recorded -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_record_loads_and_prints_back(name: str) -> None:
    count = 0
    for scenario, raw in zip(load(DATA / name), raw_documents(name), strict=True):
        count += 1
        assert scenario.id == raw["id"]
        assert scenario.kernel == "7.3.4+deb13-cloud-amd64"
        assert not scenario.extra
        texts_of = [each["initial"] for each in raw["vmas"]]
        initial = [vma.initial for vma in scenario.vmas]
        states = list(zip(scenario.vmas, initial, texts_of, strict=True))
        for recorded, each in zip(scenario.passes, raw["passes"], strict=True):
            assert list(recorded.events) == each["events"]
            assert recorded.counters == each["counters"]
            assert recorded.errno == each.get("errno")
            states += zip(scenario.vmas, recorded.final, each["final"], strict=True)
        for vma, state, texts in states:
            assert (state.folios_text(), state.ptes_text()) == (texts["folios"], texts["ptes"])
            ptes = None if state.ptes is None else list(state.pte_pages())
            again = PagesState.of_pages(
                list(state.folio_pages()), ptes, vma.start, scenario.geometry
            )
            assert again == state
    assert count == FILES[name]


def test_every_page_has_its_tokens() -> None:
    for name in FILES:
        for scenario in load(DATA / name):
            for vma in scenario.vmas:
                assert len(list(vma.initial.folio_pages())) == vma.pages
                assert len(list(vma.initial.pte_pages())) == vma.pages


def test_first_flavour() -> None:
    scenario = load_one(f"{DATA}/linux-7.3.4.jsonl.xz#a-499")
    assert scenario.settings.enabled is Enabled.MADVISE
    assert scenario.settings.orders_madvise == 0b1111111100
    assert scenario.settings.max_ptes_none == 200
    assert scenario.action is Action.KHUGEPAGED
    (vma,) = scenario.vmas
    assert vma.advice is Advice.HUGEPAGE
    assert vma.anon_vma
    pages, entries = list(vma.initial.folio_pages()), list(vma.initial.pte_pages())
    assert pages[0].kind is PageKind.NONE
    assert pages[448].swap_type == 0
    assert pages[320].mapcount == 2
    assert [str(entry) for entry in entries[319:322]] == ["PWAD", "PA", "PA"]


def test_first_flavour_untouched_mapping_has_no_anon_vma() -> None:
    scenario = load_one(f"{DATA}/linux-7.3.4.jsonl.xz#a-114")
    assert scenario.vmas[0].initial.ptes is None
    assert not scenario.vmas[0].anon_vma
    assert {str(entry) for entry in scenario.vmas[0].initial.pte_pages()} == {"PA"}
    assert not load_one(f"{DATA}/linux-7.3.4.jsonl.xz#a-6").vmas[0].anon_vma  # not one table


def test_second_flavour() -> None:
    scenario = load_one(f"{DATA}/linux-7.3.4-many-vmas.jsonl.xz#ext-200")
    assert scenario.settings.enabled is Enabled.ALWAYS
    assert scenario.settings.orders_always == 1 << 9
    first, second = scenario.vmas
    assert first.pins == ((924, 4),)
    assert (first.advice, second.advice) == (Advice.HUGEPAGE, None)
    assert first.thp_eligible
    assert second.end(scenario.geometry) == 138538475589632 + 1024 * 4096


# --- tokens ---------------------------------------------------------------------------------


def test_folio_tokens() -> None:
    token = parse_folio_token("F4.RLaBVTM.xws.m3.f7.i8")
    assert (token.kind, token.order, token.flags, token.pagemap) == ("folio", 4, "RLaBVTM", "xws")
    assert (token.mapcount, token.folio, token.index) == (3, 7, 8)
    assert parse_folio_token("F4.RLaBVTM.xws.m3.f7.i8") is token
    swap = parse_folio_token("W0.w")
    assert (swap.swap_type, swap.swap_letters, swap.special_swap) == (0, "w", None)
    assert parse_folio_token("W24").special_swap == "hwpoison"
    assert parse_folio_token("W25").special_swap == "migration"
    assert parse_folio_token("W28").special_swap == "device"
    assert parse_folio_token("W31").special_swap == "marker"
    for text in ("-", "Z", "Zh", "G", "W0", "W3.w", "F0...m1", "F2.LaBT.x.m1.f0.i3"):
        assert str(parse_folio_token(text)) == text


@pytest.mark.parametrize(
    "text", ["", "F", "F0", "F0.q..m1", "F0.L.z.m1", "F2.L.x.m1", "W", "W1.x", "Zz", "F0.L.x.m1.f3"]
)
def test_folio_tokens_refused(text: str) -> None:
    with pytest.raises(RunsError):
        parse_folio_token(text)


def test_pte_tokens() -> None:
    entry = parse_pte_token("HPWADU")
    assert (entry.state, entry.letters) == (PteState.HUGE, "PWADU")
    assert entry.writable and entry.young and entry.dirty and entry.uffd_wp
    for text in ("-", "s", "nopte", "P", "PA", "HPWAD"):
        assert str(parse_pte_token(text)) == text
    for text in ("", "H", "A", "Hs", "PX", "none"):
        with pytest.raises(RunsError):
            parse_pte_token(text)


@pytest.mark.parametrize("text", ["-", "0:-", "-1:-", "x:-", "3", "3:", "²:-", "9" * 20 + ":-"])
def test_runs_refused(text: str) -> None:
    with pytest.raises(RunsError):
        parse_runs(text, parse_folio_token)


FOLIO_TEXTS = st.sampled_from(["-", "Z", "W0", "G", "F0.RLaB.xs.m1", "F2.LaBT.xs.m1.f0.i0"])


@given(st.lists(FOLIO_TEXTS, max_size=30), st.sampled_from([Geometry(), Geometry(12, 3)]))
def test_runs_of_pages_read_back(texts: list[str], geometry: Geometry) -> None:
    pages = [parse_folio_token(text) for text in texts]
    state = PagesState(len(pages), folio_runs(pages), None)
    assert list(state.folio_pages()) == pages
    assert parse_runs(state.folios_text(), parse_folio_token) == state.folios
    entries = [parse_pte_token("-" if text == "-" else "s") for text in texts]
    both = PagesState.of_pages(pages, entries, 5 << 12, geometry)
    assert list(both.pte_pages()) == entries
    assert parse_runs(both.ptes_text() or "", parse_pte_token) == both.ptes


def test_runs_break_at_tables() -> None:
    geometry = Geometry(12, 3)
    pages = [parse_folio_token("-")] * 20
    state = PagesState.of_pages(pages, [parse_pte_token("-")] * 20, 5 << 12, geometry)
    assert (state.folios_text(), state.ptes_text()) == ("20:-", "3:- 8:- 8:- 1:-")


# --- optional fields ------------------------------------------------------------------------


def test_optional_fields() -> None:
    doc = second_vma(document(), "512:-", "512:nopte")
    doc["geometry"] = {"page_shift": 12, "pmd_order": 9}
    doc["prctl"] = [None, "except_advised"]
    doc["memcg"] = {"limit_pages": 1000, "usage_pages": 900}
    doc["free_blocks"] = {"0": 100, "4": 2}
    doc["largest_block"] = 4
    doc["weather"] = "fine"
    doc["settings"]["mood"] = 3
    doc["vmas"][1] |= {
        "mm": 1,
        "droppable": True,
        "ksm": 1,
        "read_only": True,
        "locked": [[0, 2]],
        "off_lru": [[5, 1]],
        "poisoned": [[9, 1]],
        "extra_refs": [[7, 2], [9, 1, 3]],
        "colour": "red",
    }
    scenario = parse_scenario(doc)
    assert scenario.prctl == (None, Prctl.EXCEPT_ADVISED)
    assert scenario.memcg == Memcg(1000, 900)
    assert scenario.free_blocks == {0: 100, 4: 2}
    assert scenario.largest_block == 4
    assert scenario.extra == {"weather": "fine", "settings": {"mood": 3}}
    vma = scenario.vmas[1]
    assert (vma.mm, vma.droppable, vma.ksm, vma.read_only) == (1, True, True, True)
    assert (vma.locked, vma.off_lru, vma.poisoned) == (((0, 2),), ((5, 1),), ((9, 1),))
    assert vma.extra_refs == ((7, 2, 1), (9, 1, 3))
    assert vma.extra == {"colour": "red"}


def test_optional_fields_left_out() -> None:
    doc = document()
    del doc["passes"]
    scenario = parse_scenario(doc)
    assert (scenario.passes, scenario.prctl, scenario.memcg) == ((), (None,), None)
    assert scenario.free_blocks is None
    assert scenario.settings.size_enabled(9) is Enabled.INHERIT


def test_other_geometries() -> None:
    doc = document("8192:F13.LaBT.xs.m1.f0.i0", "8192:HPWAD")
    doc["geometry"] = {"page_shift": 16, "pmd_order": 13}
    doc["settings"] = {"enabled": {"524288kB": "always"}, "max_ptes_none": 8191}
    doc["vmas"][0]["pages"] = 8192
    assert parse_scenario(doc).geometry == Geometry(16, 13)


def test_prctl_in_settings_and_free_blocks_as_a_list() -> None:
    doc = document()
    doc["settings"]["prctl"] = "disable"
    doc["free_blocks"] = [7, 0, 3]
    scenario = parse_scenario(doc)
    assert scenario.prctl == (Prctl.DISABLE,)
    assert scenario.free_blocks == {0: 7, 1: 0, 2: 3}


def sharing(**known: list[list[int | None]]) -> dict[str, Any]:
    """Two processes with a folio by PTEs, one with a huge PMD; what they are known by."""
    pages = "4:F2.LaBT..m2.f0.i0 508:-"
    doc = second_vma(document(pages, "4:PA 508:-"), pages, "4:PA 508:-")
    second_vma(doc, "512:F9.LaBT..m2.f1.i0", "512:HPA")["vmas"][2]["start"] += 2 << 21
    doc["vmas"][1]["mm"] = 7
    return {**doc, "mm_ids": {name.removeprefix("f"): of for name, of in known.items()}}


def test_which_processes_large_folios_know() -> None:
    scenario = parse_scenario(sharing(f0=[[7, 4], [None, 12]], f1=[[0, 1]]))
    assert scenario.mm_ids == {0: ((7, 4), (None, 12)), 1: ((0, 1),)}
    assert parse_scenario(sharing(f0=[])).mm_ids == {0: ()}
    assert parse_scenario(sharing()).mm_ids == {} and not scenario.extra


@pytest.mark.parametrize(
    ("folio", "known", "message"),
    [
        ("f0", [[7, 5]], "mm_ids.0: 5 mappings of process 7, not 1 to 4"),
        ("f0", [[7, 0]], "mm_ids.0: 0 mappings of process 7, not 1 to 4"),
        ("f0", [[3, 1]], "mm_ids.0: 1 mappings of process 3, not 1 to 0"),
        ("f0", [[7, 1], [7, 1]], "mm_ids.0: process 7 twice"),
        ("f0", [[None, 1 << 31]], "mappings of another process, not 1 to 2147483647"),
        ("f1", [[0, 512]], "mm_ids.1: 512 mappings of process 0, not 1 to 1"),
        ("f2", [], "mm_ids.2: no large folio of the state"),
    ],
)
def test_processes_that_a_folio_cannot_know(
    folio: str, known: list[list[int | None]], message: str
) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(sharing(**{folio: known}))
    assert message in str(caught.value)


def spread(text: str, final: str = "512:0", **nodes: object) -> dict[str, Any]:
    """A table of small pages in front of a folio of 16, on two nodes."""
    doc = document("496:F0.RLaB.xs.m1 16:F4.RLaBT.x.m1.f0.i0", "512:PWAD")
    doc["vmas"][0]["initial"]["nodes"] = text
    for state in doc["passes"][0]["final"]:
        state["nodes"] = final
    return {**doc, "nodes": {"distance": [[10, 40], [40, 10]], **nodes}}


def test_which_node_each_page_lies_on() -> None:
    scenario = parse_scenario(spread("200:0 200:0 112:1", reclaim=True))
    assert (scenario.distances, scenario.node_reclaim) == (((10, 40), (40, 10)), True)
    assert scenario.vmas[0].initial.nodes == ((400, 0), (112, 1))
    assert scenario.vmas[0].initial.nodes_text() == "400:0 112:1"
    assert scenario.passes[0].final[0].nodes == ((512, 0),)
    assert not parse_scenario(spread("512:0")).node_reclaim
    assert parse_scenario(document()).distances == ()


@pytest.mark.parametrize(
    ("text", "final", "distance", "message"),
    [
        ("500:0 12:1", "512:0", None, "initial.nodes: page 500: f0 lies on node 0 too"),
        ("1:- 511:0", "512:0", None, "initial.nodes: page 0: none under F0.RLaB.xs.m1"),
        ("512:2", "512:0", None, "initial.nodes: page 0: there are 2 nodes"),
        ("512:0", "500:1 12:-", None, "passes[0].final[0].nodes: page 500: none under"),
        ("512:64", "512:0", None, "initial.nodes: cannot read node '64'"),
        ("512:x", "512:0", None, "initial.nodes: cannot read node 'x'"),
        ("511:0", "512:0", None, "initial.nodes: the runs make 511 pages"),
        ("512:0", "512:0", [[10]], "nodes.distance: not a row for each of 2 to 64 nodes"),
        ("512:0", "512:0", [[10, 20], [20]], "nodes.distance: not a row for each"),
        ("512:0", "512:0", [[10, 20], [20, True]], "nodes.distance: True is not 1 to 255"),
        ("512:0", "512:0", [[10, 0], [0, 10]], "nodes.distance: 0 is not 1 to 255"),
    ],
)
def test_nodes_that_cannot_be(text: str, final: str, distance: object, message: str) -> None:
    doc = spread(text, final)
    if distance is not None:
        doc["nodes"]["distance"] = distance
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(doc)
    assert message in str(caught.value)


def test_nodes_are_told_of_all_states_or_of_none() -> None:
    for part in ("initial", "final"):
        doc = spread("512:0")
        state = doc["vmas"][0]["initial"] if part == "initial" else doc["passes"][0]["final"][0]
        del state["nodes"]
        with pytest.raises(ScenarioError, match="nodes: missing, though there are nodes"):
            parse_scenario(doc)
    doc = spread("512:0")
    del doc["nodes"]
    with pytest.raises(ScenarioError, match="nodes: there are no nodes"):
        parse_scenario(doc)


def cached(**fields: object) -> dict[str, Any]:
    """A folio of four pages in the swap cache, two pages of which are mapped, and one that nobody maps."""
    doc = document("2:F2.LaCBT.x.m1.f5.i0 2:W0.o10 16:W0.o32 492:-", "2:PA 18:s 492:-")
    doc["synchronous"] = False
    whole = {"offset": 32, "order": 4, "flags": "LaCBT"}
    return {
        **doc,
        "swap_cache": [{"offset": 8, "order": 2, "flags": "", "folio": 5}, whole | fields],
    }


def test_folios_in_the_swap_cache() -> None:
    assert parse_scenario(cached()).swap_cache == ((0, 8, 2, "", 5), (0, 32, 4, "LaCBT", None))
    assert parse_scenario(document()).swap_cache == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offset": 33}, "swap_cache[1].offset: 33 is not a multiple of its 16 pages"),
        ({"offset": 48}, "swap_cache[1].offset: no entry names a slot of it"),
        ({"type": 1}, "swap_cache[1].offset: no entry names a slot of it"),
        ({"offset": 8, "order": 3}, "swap_cache[1].offset: another folio stands for a slot of it"),
        ({"order": 10}, "swap_cache[1].order: no anonymous folio has order 10"),
        ({"order": 64}, "swap_cache[1].order: 64 is outside"),
        ({"offset": 0}, "swap_cache[1].offset: 0 is outside"),
        ({"type": 24}, "swap_cache[1].type: 24 is outside"),
        ({"flags": "LQ"}, "swap_cache[1].flags: 'LQ' has other letters than lRDLAaCBVMPKTI"),
        ({"folio": 5}, "swap_cache[1].folio: f5 is no folio of order 4 in the cache"),
        ({"folio": 6}, "swap_cache[1].folio: f6 is no folio of order 4 in the cache"),
        ({"folio": "x"}, "swap_cache[1].folio: 'x' is not a whole number"),
    ],
)
def test_folios_that_cannot_be_in_the_swap_cache(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(cached(**fields))
    assert message in str(caught.value)


# --- what cannot be -------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]


def vma_set(**fields: object) -> Change:
    return lambda doc: doc["vmas"][0].update(fields)


def top_set(**fields: object) -> Change:
    return lambda doc: doc.update(fields)


def settings_set(**fields: object) -> Change:
    return lambda doc: doc["settings"].update(fields)


def pass_set(**fields: object) -> Change:
    return lambda doc: doc["passes"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (top_set(schema="mthp-scenario/2"), "schema: 'mthp-scenario/2' is not"),
        (lambda doc: doc.pop("schema"), "schema: None is not"),
        (lambda doc: doc.pop("action"), "action: missing"),
        (top_set(action="munmap"), "action: 'munmap' is not one of khugepaged, madvise_collapse"),
        (top_set(kernel=7), "kernel: 7 is not text"),
        (top_set(target=1), "target: 1 is outside 0..0"),
        (top_set(vmas=[]), "vmas: empty"),
        (top_set(vmas={}), "vmas: not a list of VMAs"),
        (top_set(vmas=[3]), "vmas: not a list of VMAs"),
        (lambda doc: doc.pop("vmas"), "vmas: missing"),
        (lambda doc: doc.pop("settings"), "settings: missing"),
        (settings_set(max_ptes_none=512), "settings: max_ptes_none: 512 is outside 0..511"),
        (settings_set(pages_to_scan=0), "settings: pages_to_scan: 0 is outside"),
        (settings_set(enabled={"8kB": "always"}), "settings: enabled: no anonymous folio of 8K"),
        (settings_set(enabled={"global": "inherit"}), "settings: enabled: 'inherit' is not one of"),
        (settings_set(enabled_orders=[4]), "settings: both enabled and enabled_orders"),
        (top_set(settings={"enabled_orders": [4]}), "settings: enabled_value: 'None' is not"),
        (
            top_set(settings={"enabled_orders": [1], "enabled_value": "always"}),
            "settings: sizes: no anonymous folio of order 1",
        ),
        (
            top_set(settings={"enabled_orders": 4, "enabled_value": "always"}),
            "settings: enabled_orders: 4 is not a list",
        ),
        (top_set(geometry={"page_shift": 99}), "settings: geometry"),
        (top_set(prctl="off"), "prctl: 'off' is not one of disable, except_advised"),
        (top_set(prctl={}), "prctl: {} is not one of"),
        (top_set(memcg={"limit_pages": -1}), "memcg.limit_pages: -1 is outside"),
        (top_set(memcg={"limit_pages": 1}), "memcg.usage_pages: missing"),
        (top_set(largest_block=-1), "largest_block: -1 is outside"),
        (top_set(registered=[1]), "registered: not a list of true and false"),
        (top_set(synchronous=0), "synchronous:"),
        (top_set(reserve=-1), "reserve: -1 is outside"),
        (top_set(pcp_high="x"), "pcp_high: 'x' is not a whole number"),
        (top_set(swap_cache=3), "swap_cache: not a list"),
        (top_set(swap_cache=[3]), "swap_cache"),
        (top_set(mm_ids=[]), "mm_ids: [] is not an object"),
        (top_set(mm_ids={"x": []}), "mm_ids.x: not a folio with at most two processes"),
        (top_set(mm_ids={"0": 3}), "mm_ids.0: 3 is not a list"),
        (top_set(mm_ids={"0": [[0, 1]] * 3}), "mm_ids.0: not a folio with at most two"),
        (top_set(mm_ids={"0": [[0]]}), "mm_ids.0: [0] is not [process, mappings]"),
        (top_set(mm_ids={"0": [["a", 1]]}), "mm_ids.0: ['a', 1] is not [process, mappings]"),
        (top_set(mm_ids={"0": [[0, True]]}), "mm_ids.0: [0, True] is not [process, mappings]"),
        (top_set(mm_ids={"9" * 13: []}), "mm_ids.9999999999999: not a folio"),
        (top_set(mm_ids={"0": []}), "mm_ids.0: no large folio of the state"),
        (top_set(free_blocks=3), "free_blocks: not a table"),
        (top_set(free_blocks={"x": 3}), "free_blocks: not a table"),
        (top_set(free_blocks={"999": 3}), "free_blocks: no such order"),
        (top_set(free_blocks={"0": -3}), "free_blocks.0: -3 is outside"),
        (vma_set(start=BASE + 1), "vmas[0].start: 0x7e0000000001 is not on a page boundary"),
        (vma_set(start="0"), "vmas[0].start: '0' is not a whole number"),
        (vma_set(start=True), "vmas[0].start: True is not a whole number"),
        (vma_set(start=-4096), "vmas[0].start: -4096 is outside"),
        (vma_set(pages=0), "vmas[0].pages: 0 is outside"),
        (vma_set(pages=511), "vmas[0].initial.folios: the runs make 512 pages, the VMA has 511"),
        (vma_set(initial={"folios": "512:-", "ptes": "511:-"}), "vmas[0].initial.ptes: the runs"),
        (vma_set(initial={"folios": "512:?", "ptes": None}), "vmas[0].initial.folios: cannot read"),
        (vma_set(initial={"folios": "512:-", "ptes": "512:?"}), "vmas[0].initial.ptes: cannot"),
        (vma_set(initial={"ptes": "512:-"}), "vmas[0].initial.folios: missing"),
        (vma_set(initial=None), "vmas[0].initial: None is not an object"),
        (vma_set(advice="sequential"), "vmas[0].advice: 'sequential' is not one of"),
        (vma_set(hugepage=True), "vmas[0].advice: contradicts hugepage"),
        (vma_set(mlocked="yes"), "vmas[0].mlocked: 'yes' is not true or false"),
        (vma_set(mm=-1), "vmas[0].mm: -1 is outside"),
        (vma_set(pins=[[510, 3]]), "vmas[0].pins: [510, 3] is not inside the VMA's 512 pages"),
        (vma_set(pins=[[-1, 3]]), "vmas[0].pins: [-1, 3] is not inside"),
        (vma_set(pins=[[1, 0]]), "vmas[0].pins: [1, 0] is not inside"),
        (vma_set(pins=[[1, 1, 1]]), "vmas[0].pins: [1, 1, 1] is not [first, pages]"),
        (vma_set(pins=[3]), "vmas[0].pins: 3 is not [first, pages]"),
        (vma_set(extra_refs=[[0, 1, 0]]), "vmas[0].extra_refs: [0, 1, 0] is not inside"),
        (vma_set(anon_vma=False), "F0.RLaB.xs.m1 in a VMA without anon_vma"),
        (pass_set(final=[]), "passes[0].final: not one state for each of 1 VMAs"),
        (pass_set(killed=True), "passes[0].final: not one state for each of 0 VMAs"),
        (pass_set(events=[3]), "passes[0].events[0]: not an event"),
        (pass_set(events=None), "passes[0].events: None is not a list"),
        (pass_set(errno=5), "passes[0].errno: 5 is outside -4095..0"),
        (
            pass_set(final=[{"folios": "512:F0.L.x.m0", "ptes": "512:P"}]),
            "passes[0].final[0].folios: page 0: mapcount 0",
        ),
    ],
)
def test_refused(change: Change, message: str) -> None:
    doc = document()
    change(doc)
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(doc)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


T9 = "F9.LaBT.xs.m1.f0"


@pytest.mark.parametrize(
    ("folios", "ptes", "message"),
    [
        ("512:F0.L.x.m1", "511:P 1:-", "ptes: page 511: entry - under F0.L.x.m1"),
        ("512:F0.L.x.m1", "511:P 1:s", "ptes: page 511: entry s under F0.L.x.m1"),
        ("512:F0.L.x.m1", None, "ptes: page 0: entry - under F0.L.x.m1"),
        ("512:-", "511:- 1:P", "ptes: page 511: entry P under -"),
        ("512:W0", "512:-", "ptes: page 0: entry - under W0"),
        ("512:G", "512:P", "ptes: page 0: entry P under G"),
        ("512:Z", "512:s", "ptes: page 0: entry s under Z"),
        ("512:Z", "512:PW", "ptes: page 0: a zero page is mapped writable (PW)"),
        ("512:Zh", "512:PA", "ptes: page 0: entry PA under Zh"),
        ("512:F0.L..m0", "512:P", "folios: page 0: mapcount 0 of a mapped page"),
        ("512:F0.L.x.m2", "512:P", "mapped exclusively, yet mapcount 2"),
        ("512:F0.L.xw.m1", "512:PA", "uffd-wp differs: F0.L.xw.m1 and entry PA"),
        ("512:F0.L.x.m1", "512:PAU", "uffd-wp differs"),
        ("512:F1.L.x.m1.f0.i0", "512:P", "no anonymous folio has order 1"),
        ("512:F10.L.x.m1.f0.i0", "512:P", "no anonymous folio has order 10"),
        ("512:F2.L.x.m1.f0.i0", "512:P", "index 511 is past the end of f0, a folio of order 2"),
        ("508:- 4:F2.L.x.m1.f0.i1", "508:- 4:P", "index 4 is past the end of f0"),
        (
            "504:- 4:F2.L.x.m1.f0.i0 4:F2.L.x.m1.f0.i0",
            "504:- 8:P",
            "page 508: page 0 of f0 is mapped at 2 places with mapcount 1",
        ),
        (
            "509:- 1:F2.L..m2.f0.i3 1:F2.L..m2.f0.i3 1:F2.L..m2.f0.i3",
            "509:- 3:P",
            "page 3 of f0 is mapped at 3 places with mapcount 2",
        ),
        (
            "504:- 4:F2.L.x.m1.f0.i0 4:F3.L.x.m1.f0.i4",
            "504:- 8:P",
            "page 508: f0 has order 3 here and 2 at vmas[0].initial.folios: page 504",
        ),
        (f"511:{T9}.i0 1:-", "511:HPWAD 1:-", "a huge PMD maps a whole table of 512"),
        (f"1:{T9}.i511 511:{T9}.i0", "512:HPWAD", "a huge PMD maps a whole table"),
        ("512:F0.L.x.m1", "512:HPWAD", "a huge PMD maps a whole table of 512 pages, not"),
        (f"512:{T9}.i0", "256:HPWAD 256:PWAD", "a huge PMD maps a whole table"),
        ("512:-", "511:nopte 1:-", "ptes: page 511: one table is both missing and there"),
    ],
)
def test_impossible_states(folios: str, ptes: str | None, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(document(folios, ptes))
    assert message in str(caught.value)
    assert str(caught.value).startswith("vmas[0].initial.")


def test_possible_states() -> None:
    parse_scenario(document(f"256:{T9}.i0 256:{T9}.i256", "256:HPWAD 256:HPWAD"))
    parse_scenario(document(f"512:{T9}.i0", "512:PWAD"))
    parse_scenario(document(f"511:{T9}.i1 1:{T9}.i0", "512:PWAD"))
    parse_scenario(document("512:Zh", "512:HP"))
    parse_scenario(document("510:- 2:W24", "510:- 2:s"))
    parse_scenario(document("510:- 2:F2.L..m2.f0.i3".replace("2:F", "1:-  1:F"), "511:- 1:P"))


def test_huge_pmds_are_aligned_to_addresses_not_to_the_vma() -> None:
    doc = document(f"1:- 512:{T9}.i0", "1:- 512:HPWAD")
    doc["vmas"][0] |= {"start": BASE - 4096, "pages": 513}
    parse_scenario(doc)
    doc["vmas"][0]["start"] = BASE
    with pytest.raises(ScenarioError, match="a huge PMD maps a whole table"):
        parse_scenario(doc)


def test_one_folio_in_two_vmas_and_two_processes() -> None:
    shared = "4:F2.L..m2.f0.i0 508:-"
    parse_scenario(second_vma(document(shared, "4:PA 508:-"), shared, "4:PA 508:-"))
    alone = "4:F2.L.x.m1.f0.i0 508:-"
    with pytest.raises(ScenarioError, match=r"vmas\[1\].initial.folios: page 0: page 0 of f0 is"):
        parse_scenario(second_vma(document(alone, "4:PA 508:-"), alone, "4:PA 508:-"))


def test_overlap_and_tables_are_per_process() -> None:
    doc = second_vma(document(), "512:-", "512:nopte")
    doc["vmas"][1]["start"] = BASE + 4096
    with pytest.raises(ScenarioError, match=r"vmas\[1\]: overlaps vmas\[0\]"):
        parse_scenario(doc)
    doc["vmas"][1]["mm"] = 1
    parse_scenario(doc)


def test_two_vmas_on_one_table_agree_about_it() -> None:
    doc = second_vma(document(), "512:-", "512:nopte")
    doc["vmas"][0]["start"] = BASE - 4096
    doc["vmas"][1]["start"] = BASE + 511 * 4096
    with pytest.raises(ScenarioError, match="one table is both there and missing"):
        parse_scenario(doc)


# --- files ----------------------------------------------------------------------------------


def write(path: Path, *documents: dict[str, Any]) -> Path:
    text = "".join(json.dumps(each) + "\n" for each in documents)
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "wt") as stream:
        stream.write(text)
    return path


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_plain_and_packed_files(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.jsonl{suffix}", document())
    assert [scenario.id for scenario in load(path)] == ["t-1"]
    assert load_one(str(path)).id == load_one(f"{path}#t-1").id == "t-1"


def test_errors_name_file_line_and_id(tmp_path: Path) -> None:
    bad = document() | {"id": "t-2", "action": "x"}
    path = write(tmp_path / "a#b.jsonl", document(), bad)
    with pytest.raises(ScenarioError) as caught:
        list(load(path))
    assert str(caught.value).startswith(f"{path}:2: t-2: action: 'x' is not one of")
    with pytest.raises(ScenarioError) as again:
        load_one(f"{path}#t-2")
    assert str(again.value) == str(caught.value)
    assert load_one(f"{path}#t-1").id == "t-1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", ":1: bad JSON: "),
        ("[3]", ":1: bad JSON: not an object"),
        ('{"id": ' + "9" * 5000 + "}", ":1: bad JSON: not UTF-8, or a number"),
        ("[" * 100_000, ":1: bad JSON: nested deeper than 64"),
        ("{}", ":1: id: missing"),
        ('{"id": ""}', ":1: id: missing"),
        ('\n{"id": "a\\nb"}', ":2: a?b: schema: None is not"),
        (
            json.dumps(document()) + "\n" + json.dumps(document()),
            ":2: t-1: id: used twice in this file",
        ),
    ],
)
def test_bad_lines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        list(load(path))
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        list(load(tmp_path / "none.jsonl"))
    with pytest.raises(FileError, match="Is a directory"):
        list(load(tmp_path))
    for suffix in (".xz", ".gz"):
        whole = write(tmp_path / f"a.jsonl{suffix}", document()).read_bytes()
        for name, data in (("cut", whole[: len(whole) // 2]), ("not", b"hello")):
            path = tmp_path / f"{name}.jsonl{suffix}"
            path.write_bytes(data)
            with pytest.raises(FileError, match="damaged or cut short after line 0"):
                list(load(path))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(FileError, match="damaged"):
        list(load(tmp_path / "b.jsonl"))


def test_load_one_unknown_or_ambiguous(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(document() | {"id": f"t-{i}"} for i in range(5)))
    with pytest.raises(ScenarioError, match=r"no scenario 'x' \(it holds 5: t-0, t-1, t-2, \.\.\."):
        load_one(f"{path}#x")
    with pytest.raises(ScenarioError, match="which one"):
        load_one(str(path))
    path.write_text("")
    with pytest.raises(ScenarioError, match="holds 0: nothing"):
        load_one(str(path))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from places(inner, (*path, key))


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_stands_in_a_field_is_read_or_refused(data: st.DataObject) -> None:
    """No document makes the loader fail in any other way than with a ScenarioError."""
    doc = second_vma(document(), "512:-", "512:nopte")
    doc |= {"prctl": "disable", "memcg": {"limit_pages": 3, "usage_pages": 1}, "target": 0}
    doc["free_blocks"] = {"0": 1}
    doc["vmas"][0] |= {"pins": [[1, 2]], "extra_refs": [[1, 1, 1]], "mm": 0, "locked": []}
    path = data.draw(st.sampled_from([place for place in places(doc) if place]))
    holder: Any = doc
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(JSON_VALUES)
    try:
        parse_scenario(doc)
    except ScenarioError as error:
        assert "\n" not in str(error)


def test_another_process_may_map_single_pages_of_a_huge_pmd() -> None:
    """Its pages' mapcounts then differ, and the run of the folio is cut there."""
    folios = "501:F9.LaBT.s.m2.f0.i0 1:F9.LaBT.s.m1.f0.i501 10:F9.LaBT.s.m2.f0.i502"
    state = parse_scenario(document(folios, "512:HPAD")).vmas[0].initial
    assert state.folios_text() == folios


def test_more_memory_than_a_world_can_be_made_of() -> None:
    pages = 1 << 28
    doc = document(f"{pages}:Z", f"{pages}:P")
    doc["vmas"][0]["pages"] = pages
    with pytest.raises(ScenarioError, match=f"vmas: {pages} pages are more than"):
        parse_scenario(doc)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda doc: doc["passes"][0].update(counters={"vmstat": 2**64}), "counters.vmstat"),
        (lambda doc: doc["vmas"][0].update(pins=[[0, 512]] * 2000), "times and more"),
        (lambda doc: doc["vmas"][0].update(extra_refs=[[0, 1, 10**30]]), "is over"),
    ],
)
def test_what_would_never_end(change: Callable[[Any], None], says: str) -> None:
    doc = document()
    change(doc)
    with pytest.raises(ScenarioError, match=says):
        parse_scenario(doc)


def test_more_folios_than_a_world_can_be_made_of() -> None:
    """Each page is the first of a folio of its own."""
    pages = 1 << 12
    doc = document(" ".join(f"1:F9.LaBT.x.m1.f{i}.i0" for i in range(pages)), f"{pages}:PWAD")
    doc["vmas"][0]["pages"], doc["passes"] = pages, []
    with pytest.raises(ScenarioError, match=f"folios: {pages << 9} pages are more than"):
        parse_scenario(doc)


def test_more_mappings_than_are_counted() -> None:
    doc = document("512:F9.LaBT..m999999999.f0.i0", "512:HP")
    with pytest.raises(ScenarioError, match="mapped more often than can be counted"):
        parse_scenario(doc)
