# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios: one initial state, and what a kernel did with it (mthp-scenario/1, JSON lines).

docs/scenario-format.md describes the file; mthp.image.runs its run-length strings;
mthp.image.scenario_checks says which states cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mthp.image.fields import Fields, ScenarioError, short
from mthp.image.runs import (
    FOLIO_FLAGS,
    MOST_DIGITS,
    MOST_NODES,
    SPECIAL_SWAP_TYPE,
    PagesState,
    PteState,
    RunsError,
    Token,
    node_runs,
    parse_folio_token,
    parse_node,
    parse_pte_token,
    parse_runs,
)
from mthp.image.scenario_checks import (
    check_mm_ids,
    check_nodes,
    check_snapshot,
    check_swap_cache,
    check_vmas,
)
from mthp.image.scenario_values import (
    Action,
    Advice,
    CachedFolio,
    KnownMm,
    Memcg,
    Prctl,
    ScenarioVma,
)
from mthp.words.files import FileError
from mthp.words.reading import numbered_lines, parse_object
from mthp.words.settings import Enabled, Settings, SettingsError
from mthp.words.settings_text import SIZE_MODES, parse_mode
from mthp.words.units import Geometry

SCHEMA = "mthp-scenario/1"


@dataclass(frozen=True)
class RecordedPass:
    """One pass of the recording kernel: what it reported and what it left.

    events: in order, as recorded. counters: stats, vmstat, khugepaged, changes only. final: per
    VMA. errno: MADV_COLLAPSE's result, 0 or negative; None for khugepaged. killed: the OOM killer took a
    process of the memory cgroup meanwhile, and there is no final state.
    """

    events: tuple[Mapping[str, Any], ...]
    counters: Mapping[str, Any]
    final: tuple[PagesState, ...]
    errno: int | None = None
    killed: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """A process's memory, the settings, the action, and what a kernel did.

    target: the index of the VMA that MADV_COLLAPSE covers. prctl: the mode of each process (mm).
    free_blocks: free blocks by order at the start, None for plenty. largest_block: no block above this
    order ever becomes free. reserve, pcp_high: pages, as NodeState's. synchronous: the swap device is
    (zram), so nothing is read ahead. registered: for each process, whether it is on khugepaged's list;
    empty where all are. kernel: the recording kernel's release, empty where nothing was recorded (then
    passes is empty too). mm_ids: of large folios that count as shared, by identity in the initial state,
    which processes they know; of the others it follows from who maps them. swap_cache: folios that stand
    for slots which entries name. distances: of NUMA nodes, a row each as node_distance() has it; empty
    where there is one. node_reclaim: vm.zone_reclaim_mode is set.
    """

    id: str
    kernel: str
    settings: Settings
    action: Action
    target: int
    vmas: tuple[ScenarioVma, ...]
    passes: tuple[RecordedPass, ...] = ()
    prctl: tuple[Prctl | None, ...] = (None,)
    memcg: Memcg | None = None
    free_blocks: Mapping[int, int] | None = None
    largest_block: int = 63
    synchronous: bool = True
    reserve: int = 0
    pcp_high: int | None = None
    registered: tuple[bool, ...] = ()
    mm_ids: Mapping[int, tuple[KnownMm, ...]] = field(default_factory=dict)
    swap_cache: tuple[CachedFolio, ...] = ()
    distances: tuple[tuple[int, ...], ...] = ()
    node_reclaim: bool = False
    built_by: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        """Page and PMD sizes; the settings hold them."""
        return self.settings.geometry


def load(path: str | Path) -> Iterator[Scenario]:
    """Yield the scenarios of a .jsonl file, plain or .xz or .gz, one at a time.

    FileError, one line with file, line number and id, for anything unreadable or impossible.
    """
    seen: set[str] = set()
    for number, line in numbered_lines(path):
        name = ""
        try:
            document = _document(line)
            name = document["id"]
            if name in seen:
                raise ScenarioError("id: used twice in this file")
            seen.add(name)
            scenario = parse_scenario(document)
        except FileError as error:
            raise _placed(path, number, name, error) from None
        yield scenario


def load_one(spec: str) -> Scenario:
    """The scenario meant by FILE#ID, or by FILE where it holds one alone.

    Only the one asked for is checked. FileError as from load(), and for an unknown id.
    """
    path, hash_sign, wanted = spec.rpartition("#")
    if not hash_sign or Path(spec).exists():
        path, wanted = spec, ""
    found: tuple[int, str, dict[str, Any]] | None = None
    names = []
    for number, line in numbered_lines(path):
        try:
            document = _document(line)
        except FileError as error:
            raise _placed(path, number, "", error) from None
        name: str = document["id"]
        names.append(name)
        if name == wanted or not wanted:
            found = number, name, document
            if wanted:
                break
    if found is None or (not wanted and len(names) > 1):
        some = ", ".join(name[:40] for name in names[:3]) + (", ..." if len(names) > 3 else "")
        asked = f"no scenario {wanted!r}" if wanted else "which one? write FILE#ID"
        raise ScenarioError(f"{path}: {asked} (it holds {len(names)}: {some or 'nothing'})")
    number, name, document = found
    try:
        return parse_scenario(document)
    except ScenarioError as error:
        raise _placed(path, number, name, error) from None


def parse_scenario(document: Mapping[str, Any]) -> Scenario:
    """A scenario from its JSON object; ScenarioError says where in it, and what."""
    fields = Fields(document)
    if fields.take("schema", str, "") != SCHEMA:
        raise ScenarioError(f"schema: {document.get('schema')!r} is not {SCHEMA!r}")
    name = fields.take("id", str)
    action = fields.choice("action", Action)
    settings, prctl, unknown = _settings(fields)
    vmas = tuple(
        _vma(each, settings.geometry) for each in fields.objects("vmas", what="a list of VMAs")
    )
    if not vmas:
        raise ScenarioError("vmas: empty")
    target = fields.number("target", 0, len(vmas) - 1, default=0)
    check_vmas(vmas, settings.geometry)
    check_snapshot(
        settings.geometry,
        [(f"vmas[{i}].initial", vma, vma.initial) for i, vma in enumerate(vmas)],
    )
    mm_ids = _mm_ids(fields)
    check_mm_ids(settings.geometry, vmas, mm_ids)
    swap_cache = tuple(map(_cached, fields.objects("swap_cache", what="a list", default=())))
    check_swap_cache(vmas, swap_cache, settings.geometry)
    distances, node_reclaim = _nodes(fields)
    check_nodes(len(distances), [(f"vmas[{i}].initial", v.initial) for i, v in enumerate(vmas)])
    passes = []
    for each in fields.objects("passes", what="a list of passes", default=()):
        recorded = _pass(each, vmas)
        check_snapshot(
            settings.geometry,
            [
                (f"{each.where}final[{i}]", vma, state)
                for i, (vma, state) in enumerate(zip(vmas, recorded.final, strict=False))
            ],
        )
        states = enumerate(recorded.final)
        check_nodes(len(distances), [(f"{each.where}final[{i}]", state) for i, state in states])
        passes.append(recorded)
    return Scenario(
        id=name,
        kernel=fields.take("kernel", str, ""),
        settings=settings,
        action=action,
        target=target,
        vmas=vmas,
        passes=tuple(passes),
        prctl=prctl,
        memcg=_memcg(fields),
        free_blocks=_free_blocks(fields),
        largest_block=fields.number("largest_block", 0, 63, default=63),
        reserve=fields.number("reserve", 0, 2**48, default=0),
        pcp_high=None if fields.is_null("pcp_high") else fields.number("pcp_high", 0, 2**48),
        synchronous=fields.take("synchronous", bool, True),
        registered=_registered(fields),
        mm_ids=mm_ids,
        swap_cache=swap_cache,
        distances=distances,
        node_reclaim=node_reclaim,
        built_by=tuple(fields.take("built_by", list, [])),
        extra=fields.rest() | ({"settings": unknown} if unknown else {}),
    )


def _settings(fields: Fields) -> tuple[Settings, tuple[Prctl | None, ...], dict[str, Any]]:
    """Read the knobs of both flavours, the prctl modes, and the fields of `settings` left over."""
    known = dict(fields.take("settings", dict))
    prctl = known.pop("prctl", None)
    knobs = {key: known.pop(key) for key in Settings().to_json() if key in known}
    knobs["geometry"] = fields.take("geometry", dict, knobs.get("geometry", {}))
    orders, mode = known.pop("enabled_orders", None), known.pop("enabled_value", None)
    try:
        settings = Settings.from_json(knobs)
        if orders is not None:
            if "enabled" in knobs:
                raise SettingsError("both enabled and enabled_orders")
            settings = _one_mode(settings, orders, mode)
    except SettingsError as error:
        raise ScenarioError(f"settings: {error}") from None
    prctl = fields.take("prctl", object, prctl)
    modes = prctl if isinstance(prctl, list) and prctl else [prctl]
    for each in modes:
        if each is not None and each not in list(Prctl):
            raise ScenarioError(f"prctl: {each!r} is not one of {', '.join(Prctl)}")
    return settings, tuple(None if each is None else Prctl(each) for each in modes), known


def _one_mode(settings: Settings, orders: object, mode: object) -> Settings:
    """The first flavour: some orders hold one mode, the others never, the global one madvise."""
    if not isinstance(orders, list) or not all(type(order) is int for order in orders):
        raise SettingsError(f"enabled_orders: {orders!r} is not a list of orders")
    value = parse_mode("enabled_value", str(mode), SIZE_MODES)
    sizes = dict.fromkeys(settings.geometry.anon_orders, Enabled.NEVER)
    sizes.update(dict.fromkeys(orders, value))
    return settings.replace(enabled=Enabled.MADVISE, sizes=sizes)


def _vma(fields: Fields, geometry: Geometry) -> ScenarioVma:
    """Read one entry of `vmas`, either flavour."""
    start = fields.number("start", 0, 2**64 - 1)
    if start & (geometry.page_size - 1):
        raise ScenarioError(f"{fields.where}start: {start:#x} is not on a page boundary")
    pages = fields.number("pages", 1, (2**64 - start) >> geometry.page_shift)
    initial = _state(fields.take("initial", dict), pages, f"{fields.where}initial")
    read_only = initial.ptes is None or all(
        entry.state is PteState.NO_TABLE for _, entry in initial.ptes
    )
    return ScenarioVma(
        start=start,
        pages=pages,
        initial=initial,
        advice=_advice(fields),
        mlocked=fields.flag("mlocked"),
        uffd_wp=fields.flag("uffd_wp"),
        anon_vma=fields.flag("anon_vma", not read_only),
        pins=fields.ranges("pins", pages),
        mm=fields.number("mm", 0, 2**31, default=0),
        droppable=fields.flag("droppable"),
        read_only=fields.flag("read_only"),
        ksm=fields.flag("ksm"),
        softdirty=fields.flag("softdirty") if fields.has("softdirty") else None,
        locked=fields.ranges("locked", pages),
        off_lru=fields.ranges("off_lru", pages),
        poisoned=fields.ranges("poisoned", pages),
        extra_refs=fields.counted_ranges("extra_refs", pages),
        thp_eligible=fields.flag("thp_eligible") if fields.has("thp_eligible") else None,
        extra=fields.rest(),
    )


def _advice(fields: Fields) -> Advice | None:
    """Read `advice` where it is given, else `hugepage`; both must say the same."""
    hugepage = fields.flag("hugepage") if fields.has("hugepage") else None
    if not fields.has("advice"):
        return Advice.HUGEPAGE if hugepage else None
    advice = None if fields.is_null("advice") else fields.choice("advice", Advice)
    if hugepage is not None and hugepage != (advice is Advice.HUGEPAGE):
        raise ScenarioError(f"{fields.where}advice: contradicts hugepage")
    return advice


def _state(document: Mapping[str, Any], pages: int, where: str) -> PagesState:
    """Read one state: its strings, each of which must describe exactly `pages` pages."""
    fields = Fields(document, f"{where}.")
    folios = _runs(fields, "folios", parse_folio_token, pages)
    ptes = None if fields.is_null("ptes") else _runs(fields, "ptes", parse_pte_token, pages)
    nodes = _runs(fields, "nodes", parse_node, pages) if fields.has("nodes") else ()
    return PagesState(pages, folios, ptes, node_runs(nodes))


def _runs(
    fields: Fields, key: str, parse: Callable[[str], Token], pages: int
) -> tuple[tuple[int, Token], ...]:
    """Read one run-length string over exactly `pages` pages."""
    text = fields.take(key, str)
    try:
        runs = parse_runs(text, parse)
    except RunsError as error:
        raise ScenarioError(f"{fields.where}{key}: {error}") from None
    total = sum(count for count, _ in runs)
    if total != pages:
        raise ScenarioError(
            f"{fields.where}{key}: the runs make {total} pages, the VMA has {pages}"
        )
    return runs


def _pass(fields: Fields, vmas: tuple[ScenarioVma, ...]) -> RecordedPass:
    """Read one entry of `passes`."""
    events = fields.take("events", list)
    for i, event in enumerate(events):
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise ScenarioError(f"{fields.where}events[{i}]: not an event")
    final, killed = fields.take("final", list), fields.take("killed", bool, False)
    states = 0 if killed else len(vmas)
    if len(final) != states or not all(isinstance(each, dict) for each in final):
        raise ScenarioError(f"{fields.where}final: not one state for each of {states} VMAs")
    counters = fields.table("counters", dict) if fields.has("counters") else {}
    return RecordedPass(
        events=tuple(MappingProxyType(event) for event in events),
        counters=MappingProxyType(counters),
        final=tuple(
            _state(each, vma.pages, f"{fields.where}final[{i}]")
            for i, (each, vma) in enumerate(zip(final, vmas, strict=False))
        ),
        errno=None if fields.is_null("errno") else fields.number("errno", -4095, 0),
        killed=killed,
        extra=fields.rest(),
    )


def _cached(fields: Fields) -> CachedFolio:
    """Read one entry of `swap_cache`."""
    flags = fields.take("flags", str)
    if set(flags) - set(FOLIO_FLAGS):
        raise ScenarioError(
            f"{fields.where}flags: {short(flags)} has other letters than {FOLIO_FLAGS}"
        )
    return CachedFolio(
        fields.number("type", 0, SPECIAL_SWAP_TYPE - 1, default=0),
        fields.number("offset", 1, 10**12),
        fields.number("order", 0, 63),
        flags,
        None if fields.is_null("folio") else fields.number("folio", 0, 10**MOST_DIGITS),
    )


def _nodes(fields: Fields) -> tuple[tuple[tuple[int, ...], ...], bool]:
    """Read `nodes`: the distances of each from each, and whether they reclaim before others are asked."""
    if fields.is_null("nodes"):
        return (), False
    nodes = Fields(fields.take("nodes", dict), "nodes.")
    rows = nodes.take("distance", list)
    whole = all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    if not whole or not 1 < len(rows) <= MOST_NODES:
        raise ScenarioError(f"nodes.distance: not a row for each of 2 to {MOST_NODES} nodes")
    for each in (each for row in rows for each in row):
        if type(each) is not int or not 0 < each < 256:
            raise ScenarioError(f"nodes.distance: {short(each)} is not 1 to 255")
    return tuple(map(tuple, rows)), nodes.take("reclaim", bool, False)


def _memcg(fields: Fields) -> Memcg | None:
    """Read `memcg`: limit_pages and usage_pages."""
    if fields.is_null("memcg"):
        return None
    memcg = Fields(fields.take("memcg", dict), "memcg.")
    return Memcg(memcg.number("limit_pages", 0, 2**64), memcg.number("usage_pages", 0, 2**64))


def _registered(fields: Fields) -> tuple[bool, ...]:
    """Read `registered`: a list with true or false for each process."""
    found = tuple(fields.take("registered", list, []))
    if not all(isinstance(each, bool) for each in found):
        raise ScenarioError("registered: not a list of true and false")
    return found


def _mm_ids(fields: Fields) -> Mapping[int, tuple[KnownMm, ...]]:
    """Read `mm_ids`: folio -> up to two [process or null, mappings]."""
    table = Fields(fields.take("mm_ids", dict, {}), "mm_ids.")
    found = {}
    for name in table.document:
        pairs = table.take(name, list)
        if not name.isdecimal() or len(name) > MOST_DIGITS or len(pairs) > 2:
            raise ScenarioError(f"mm_ids.{name[:40]}: not a folio with at most two processes")
        for each in pairs:
            whole = isinstance(each, list) and len(each) == 2
            if not whole or type(each[1]) is not int or type(each[0]) not in (int, type(None)):
                raise ScenarioError(f"mm_ids.{name}: {short(each)} is not [process, mappings]")
        found[int(name)] = tuple(KnownMm(*each) for each in pairs)
    return MappingProxyType(found)


def _free_blocks(fields: Fields) -> Mapping[int, int] | None:
    """Read `free_blocks`: order -> blocks, as a table or as a list by order (as in buddyinfo)."""
    if fields.is_null("free_blocks"):
        return None
    blocks = fields.take("free_blocks", object)
    if isinstance(blocks, list):
        blocks = {str(order): count for order, count in enumerate(blocks)}
    if not isinstance(blocks, dict) or not all(order.isdecimal() for order in blocks):
        raise ScenarioError("free_blocks: not a table of orders and numbers of blocks")
    table = Fields(blocks, "free_blocks.")
    counts = {int(order): table.number(order, 0, 2**64) for order in blocks if len(order) < 3}
    if len(counts) != len(blocks):
        raise ScenarioError("free_blocks: no such order")
    return MappingProxyType(counts)


def _placed(path: str | Path, number: int, name: str, error: FileError) -> ScenarioError:
    """The error with the file, the line and the id before it."""
    of = f" {name[:40]}:" if name else ""
    return ScenarioError(f"{path}:{number}:{of} {error}")


def _document(line: str) -> dict[str, Any]:
    """One line as a JSON object with an id."""
    document = parse_object(line)
    if not isinstance(document.get("id"), str) or not document["id"]:
        raise ScenarioError("id: missing")
    return document
