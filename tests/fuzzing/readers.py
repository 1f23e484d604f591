# SPDX-License-Identifier: GPL-2.0-or-later
"""Every reader, with valid inputs to be mutated, and what is done with an input that it accepts.

A reader raises nothing but its refusals; what it accepts is run, in small, and what is printed of it has
no character that a terminal would obey.
"""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast
from zlib import crc32

from rich.console import Console

from mthp.check.drawing import replay
from mthp.check.jobs import Jobs
from mthp.check.rows import Rows
from mthp.check.scorecard import ScorecardRow
from mthp.check.search import Budget
from mthp.check.token import Token
from mthp.compare.campaign import CampaignSpec, open_campaign
from mthp.compare.captures import compare_captures
from mthp.compare.conformance import run_scenario
from mthp.compare.paths import PathVerdict
from mthp.compare.records import Conformance
from mthp.explore.part import NotThisSearch
from mthp.image.capture.proc import CaptureError, read_vmas
from mthp.image.recording import read_recording
from mthp.image.scenario import Scenario, load, parse_scenario
from mthp.image.snapshot import Snapshot, read_snapshot
from mthp.image.vmcore.run import processes_of_dump
from mthp.lab.errors import LabError
from mthp.lab.kernels.apt import parse_list, parse_records, parse_stanzas
from mthp.lab.kernels.modules import modinfo
from mthp.lab.program.program import Draft, ProgramError
from mthp.lab.session.selftest import parse_output
from mthp.lab.vm.elf import needs
from mthp.predict.image import Image, of_dump
from mthp.races.protocol import protocol
from mthp.races.stage import Size
from mthp.races.variant import VariantError
from mthp.races.world import RaceWorld
from mthp.report.captures import render_captures
from mthp.report.conformance import render_conformance
from mthp.report.costs import render_calibration
from mthp.report.json_doc import outcome_document
from mthp.report.text import render_outcome
from mthp.words.costs import PUBLISHED, StopPoint, costs_document, read_costs, stop_ns
from mthp.words.files import FileError
from mthp.words.profiles import DEFAULT
from mthp.words.reading import parse_json, parse_object
from mthp.words.settings import Settings, SettingsError, parse_enabled_flag, parse_thp_anon
from mthp.words.units import Geometry
from tests.fuzzing.mutate import (
    json_text,
    mutate_json,
    mutated_bytes,
    mutated_npz,
    mutated_text,
)
from tests.image.made import made
from tests.image.made_dump import PID, MadeDump
from tests.image.made_recording import made_recording, made_there

DATA = Path(__file__).parent.parent / "data"


class Reader(NamedTuple):
    """A reader. draw: an input. read: read it, and use what is accepted; folder: for its files.

    refusals: what may be raised; the text of a FileError is one line. weight: of a thousand inputs.
    """

    draw: Callable[[Random], Any]
    read: Callable[[Any, Path], object]
    refusals: tuple[type[Exception], ...]
    weight: int


# Snapshots and scenarios


def _snapshot(data: bytes, folder: Path) -> None:
    snapshot = read_snapshot(io.BytesIO(data), "a.npz")
    if _is_used(data):
        use_snapshot(snapshot)


def _is_used(data: bytes) -> bool:
    """Whether an input that was accepted is used: every tenth, for that takes as long as reading many."""
    return crc32(data) % 10 == 0


def use_snapshot(snapshot: Snapshot) -> None:
    """Run it, and print what came of it."""
    image = Image(snapshot, "a.npz", "a snapshot")
    outcome = image.run(passes=2).outcome
    json.dumps(outcome_document(outcome))
    page = io.StringIO()
    render_outcome(outcome, Console(file=page, width=80), verbose=True)
    before = read_snapshot(io.BytesIO(made().packed()), "b.npz")
    with suppress(ValueError):  # they are of two hosts, or nothing in them can be compared
        change = compare_captures(("a", "b"), before, snapshot)
        render_captures(change, Console(file=page, width=80), verbose=True)
    check_page(page.getvalue())


def check_page(text: str) -> None:
    """Check that nothing in it is more than letters and lines."""
    assert text.replace("\n", "").isprintable()


@cache
def _scenarios() -> list[dict[str, Any]]:
    documents = [_small_scenario()]
    for name in ("linux-7.3.4.jsonl.xz", "lab-7.3.4.jsonl.xz"):
        with lzma.open(DATA / name, "rt") as file:
            documents += [json.loads(line) for line in list(file)[:40:4]]
    return documents


def _small_scenario() -> dict[str, Any]:
    """Two processes of a small geometry with everything that a scenario can say."""
    state = {
        "folios": "4:F0.LaB.xs.m1 4:F2.LaBT..m2.f0.i0 2:Z 2:W0.o7 1:W24 1:G 1:F0.aBP.x.m1 1:-",
        "ptes": "4:PWAD 4:PA 2:P 4:s 1:PD 1:-",
    }
    huge = {"folios": "16:F4.LaBT.x.m1.f1.i0", "ptes": "16:HPWAD"}
    shared = {"folios": "4:- 4:F2.LaBT..m2.f0.i0 8:-", "ptes": "4:- 4:P 8:-"}
    state["nodes"], huge["nodes"], shared["nodes"] = "8:0 6:- 1:1 1:-", "16:1", "4:- 4:0 8:-"
    return {
        "schema": "mthp-scenario/1", "id": "a", "kernel": "7.3.4", "action": "khugepaged",
        "settings": {"enabled": {"global": "always", "16kB": "always"}, "max_ptes_none": 15,
            "geometry": {"page_shift": 12, "pmd_order": 4}},
        "prctl": [None, "except_advised"], "memcg": {"limit_pages": 9000, "usage_pages": 100},
        "free_blocks": {"0": 50, "4": 3}, "largest_block": 9, "target": 0,
        "mm_ids": {"0": [[0, 4], [None, 2]]},
        "nodes": {"distance": [[10, 21], [21, 10]], "reclaim": True},
        "vmas": [
            {"start": 1 << 30, "pages": 16, "advice": "hugepage", "initial": state, "pins": [[0, 1]],
             "locked": [[1, 1]], "off_lru": [[2, 1]], "poisoned": [[3, 1]], "extra_refs": [[0, 2, 3]]},
            {"start": (1 << 30) + (1 << 16), "pages": 16, "initial": huge, "softdirty": True},
            {"start": 1 << 30, "pages": 16, "mm": 1, "initial": shared, "ksm": True, "uffd_wp": False},
        ],
        "passes": [{"events": [{"event": "attempt", "address": 1 << 30, "order": 4}], "errno": None,
            "counters": {"stats": {"4": {"nr_anon": 1}}}, "final": [state, huge, shared]}],
    }  # fmt: skip


def _draw_scenario(source: Random) -> str:
    document = json.loads(json.dumps(source.choice([_scenarios()[0], source.choice(_scenarios())])))
    mutate_json(document, source)
    return json_text(document, source)


def _scenario(text: str, folder: Path) -> None:
    scenario = parse_scenario(parse_object(text))
    if _is_used(text.encode("utf-8", "surrogatepass")):
        use_scenario(scenario)


def use_scenario(scenario: Scenario) -> None:
    """Run its passes, and print how they agree."""
    score = Conformance()
    run_scenario(scenario, DEFAULT, score)
    page = io.StringIO()
    render_conformance(score, Console(file=page, width=80))
    check_page(page.getvalue())


def _draw_lines(source: Random) -> tuple[str, bytes]:
    data = json.dumps(source.choice(_scenarios())).encode() + b"\n\n"
    suffix = source.choice(("", ".xz", ".gz"))
    if suffix == ".xz":
        data = lzma.compress(data, preset=0)
    return f"a.jsonl{suffix}", mutated_bytes(data, source)


def _lines(drawn: tuple[str, bytes], folder: Path) -> None:
    file = folder / drawn[0]
    file.write_bytes(drawn[1])
    list(load(file))


# Texts of settings, of /proc, of the lab


def _draw_settings(source: Random) -> Any:
    kind = source.randrange(4)
    if kind < 2:
        return kind, mutated_text(
            source.choice(("16K-64K:always;2M:inherit", "64kB=always,global=madvise")), source
        )
    document = Settings().to_sysfs() if kind == 2 else Settings().to_json()
    mutate_json(document, source)
    return kind, document


def _settings(drawn: Any, folder: Path) -> None:
    kind, what = drawn
    if kind == 0:
        parse_thp_anon(what, Geometry())
    elif kind == 1:
        Settings().with_enabled(parse_enabled_flag(what))
    elif kind == 2:
        if all(isinstance(each, str) for each in what.values()):  # as a snapshot is checked for
            Settings.from_sysfs(what).describe()
    else:
        Settings.from_json(what).describe()


_SMAPS = """7f0000000000-7f0000200000 rw-p 00000000 00:00 0                          [heap]
Size:               2048 kB
Rss:                  16 kB
Anonymous:            16 kB
THPeligible:           1
VmFlags: rd wr mr mw me ac hg
"""


def _smaps(text: str, folder: Path) -> None:
    (folder / "smaps").write_bytes(text.encode("utf-8", "replace"))
    read_vmas(cast(int, f"self/root{folder}"))


_DEB822 = """Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie
Components: main

Package: linux-image
Version: 7.3
Size: 1234
Installed-Size: 99
"""
_TAP = "TAP version 13\n1..3\n# Run test: a (b:c)\nok 1 a\nnot ok 2 b # SKIP\n# Totals: pass:1\n"


def _texts(text: str, folder: Path) -> None:
    text = text.encode("utf-8", "replace").decode()  # as such files are opened
    for parse in (parse_list, parse_stanzas, parse_records):
        list(parse(text))
    parse_output(text)


def _draw_draft(source: Random) -> Any:
    document: Any = {
        "id": "1-1", "family": "f", "ops": ["new", "s base 4096", "s mmap 0 512", "s wr 0 9"],
        "finish": ["s adv 0 512 14", "w /sys/x always"], "settings": Settings().to_json(),
        "action": "khugepaged", "target": ["s", 0, "t"], "passes": 1,
    }  # fmt: skip
    mutate_json(document, source)
    return document


def _elf() -> bytes:
    return Path("/proc/self/exe").read_bytes()[:4096]


def _elves(data: bytes, folder: Path) -> None:
    for parse in (needs, modinfo):
        try:
            parse(data)
        except ValueError:
            continue


def _draw_campaign(source: Random) -> tuple[str, str]:
    entry = {
        "id": "1-0",
        "family": "f",
        "passes": 1,
        "agreed": 1,
        "mismatches": [],
        "not_built": "",
        "paths": {"snap": PathVerdict().to_json()},
    }
    record = {
        "id": "1-0",
        "passes": [{"events": [{"event": "attempt", "order": 4}], "errno": None}],
    }
    for each in (entry, record):
        if source.random() < 0.7:
            mutate_json(each, source)
    return json_text(entry, source), json_text(record, source)


def _campaign(drawn: tuple[str, str], folder: Path) -> None:
    for name, text in zip(("log.jsonl", "records.jsonl"), drawn, strict=True):
        (folder / name).write_bytes(text.encode("utf-8", "replace") + b"\n")
    (folder / "campaign.json").write_text(json.dumps(_SPEC.to_json()))
    json.dumps(open_campaign(_SPEC, folder).to_json())


_SPEC = CampaignSpec(1, 5, "7.3.4")


# The race checker's


_JOB = ScorecardRow(RaceWorld(Size.PMD, "7.3", ("gup",)), Budget(6))


@cache
def _kept() -> dict[str, Any]:
    """The document of a search that was stopped, and of one that was not."""
    rows = Rows(None, "x")
    list(Jobs([_JOB], processes=1, rows=rows).run())
    return rows.document()


def _draw_resume(source: Random) -> str:
    document = json.loads(json.dumps(_kept()))
    mutate_json(source.choice((document, document["finished"], document["unfinished"])), source)
    return json_text(document, source)


def _resume(text: str, folder: Path) -> None:
    file = folder / "resume.json"
    file.write_bytes(text.encode("utf-8", "replace"))
    rows = Rows(file, "x")
    more = ScorecardRow(_JOB.what, Budget(8))
    list(Jobs([more], processes=1, rows=rows).run())


def _token(text: str, folder: Path) -> None:
    token = Token.parse(text)
    if crc32(text.encode("utf-8", "surrogatepass")) % 3 == 0:
        replay(str(token))


_TOKENS = (
    "as-is:7.3:pmd:gup:a12b3",
    "A16:7.3:window+second:store+fault:a5b1a2c3",
    "as-is:v16:pmd+tso:-:a0",
)
_PROTOCOL = """
from mthp.races.protocol import Declares, Rank, Rival
RIVALS = [Rival("made", "does nothing")]
WORLDS = ["pmd:made", "window+second:made+zap"]
DECLARES = Declares(detached_under=frozenset({Rank.MMAP}), collapsers=frozenset({"made"}))
REPLACES = {}
"""


def _protocol(text: str, folder: Path) -> None:
    file = folder / "made.py"
    file.write_bytes(text.encode("utf-8", "replace"))
    with protocol(file) as own:
        json.dumps(own.document())


def _draw_protocol(source: Random) -> str:
    """The declarations with one value changed; what else a protocol is, is a program of the user's."""
    lines = _PROTOCOL.strip().split("\n")
    at = source.randrange(1, len(lines))
    name, _, value = lines[at].partition(" = ")
    words = (
        "{}",
        "[]",
        "None",
        "7",
        "'\\x1b'",
        "[7]",
        "{7: 7}",
        "{'mm.x': ['y']}",
        "1 / 0",
        "[" * 300,
    )
    changed = source.choice((source.choice(words), mutated_text(value, source).replace("\n", " ")))
    lines[at] = f"{name} = {changed}"
    return "\n".join(lines)


def _draw_costs(source: Random) -> str:
    document = costs_document(PUBLISHED)
    row = document["costs"][source.choice(sorted(document["costs"]))]
    mutate_json(source.choice((document, document["costs"], row, row)), source)
    return json_text(document, source)


def _costs(text: str, folder: Path) -> None:
    file = folder / "costs.json"
    file.write_bytes(text.encode("utf-8", "replace"))
    costs = read_costs(file)
    json.dumps(costs_document(costs))
    page = io.StringIO()
    nothing: dict[str, list[StopPoint]] = {"stops": [], "calls": []}
    render_calibration(costs, nothing, {}, 2, 512, Console(file=page, width=80))
    check_page(page.getvalue())
    if "stop" in costs and "copy_page" in costs and "clear_page" in costs:
        assert stop_ns(costs, 511) < float("inf")


def _json(text: str, folder: Path) -> None:
    parse_json(text)
    parse_json(text.encode("utf-8", "surrogatepass"))


# Dumps of a machine


@cache
def _dumps() -> tuple[tuple[bytes, list[int]], ...]:
    """A dump in each form, and where in it something else stands than zeros, eight bytes at a time."""
    made = MadeDump()
    with TemporaryDirectory() as folder:
        where = Path(folder) / "a"
        files = [made.elf(where).read_bytes(), made.kdump(where).read_bytes()]
        files.append(made.kdump(where, packed=0, flat=True).read_bytes())
    return tuple(
        (data, [at for at in range(0, len(data), 8) if any(data[at : at + 8])]) for data in files
    )


def _draw_dump(source: Random) -> tuple[int, list[tuple[int, bytes]], int | None]:
    """Which form, what is put where, and where it is cut off."""
    form = source.choice((0, 0, 0, 1, 2))
    data, places = _dumps()[form]
    near = [at for at in places if at < 1024] if source.random() < 0.3 else places
    changes = []
    for _ in range(source.choice((1, 1, 2, 4))):
        at = source.choice(near) + source.randrange(8)
        width = source.choice((1, 2, 4, 8))
        old = int.from_bytes(data[at : at + width], "little")
        new = source.choice(
            (
                0,
                old + 1,
                old - 1,
                old ^ 1 << source.randrange(8 * width),
                source.getrandbits(8 * width),
                -1,
            )
        )
        changes.append((at, (new & (1 << 8 * width) - 1).to_bytes(width, "little")))
    cut = source.randrange(len(data)) if source.random() < 0.1 else None
    return form, changes, cut


def _dump(drawn: tuple[int, list[tuple[int, bytes]], int | None], folder: Path) -> None:
    form, changes, cut = drawn
    data = bytearray(_dumps()[form][0])
    for at, new in changes:
        data[at : at + len(new)] = new
    path = folder / "a.vmcore"
    path.write_bytes(data[:cut])
    try:
        processes_of_dump(str(path))
        of_dump(str(path), PID)
    except CaptureError as error:
        assert "\n" not in str(error), ascii(str(error))
        raise


READERS: dict[str, Reader] = {
    "snapshot": Reader(
        lambda source: mutated_npz(made(), source), _snapshot, (FileError, SettingsError), 90
    ),
    "scenario": Reader(_draw_scenario, _scenario, (FileError,), 100),
    "recording": Reader(
        lambda source: mutated_npz(source.choice((made_recording, made_there))(), source),
        lambda data, _: read_recording(io.BytesIO(data), "a.npz"),
        (FileError,),
        40,
    ),
    "lines": Reader(_draw_lines, _lines, (FileError,), 135),
    "json": Reader(
        lambda source: json_text(mutated_document(source), source), _json, (FileError,), 80
    ),
    "settings": Reader(_draw_settings, _settings, (SettingsError,), 246),
    "smaps": Reader(lambda source: mutated_text(_SMAPS * 2, source), _smaps, (CaptureError,), 80),
    "texts": Reader(
        lambda source: mutated_text(source.choice((_DEB822, _TAP)), source), _texts, (), 60
    ),
    "draft": Reader(_draw_draft, lambda it, _: str(Draft.from_json(it)), (ProgramError,), 60),
    "costs": Reader(_draw_costs, _costs, (FileError,), 20),
    "elf": Reader(lambda source: mutated_bytes(_elf(), source), _elves, (), 20),
    "dump": Reader(_draw_dump, _dump, (CaptureError, FileError), 4),
    "campaign": Reader(_draw_campaign, _campaign, (LabError, FileError), 8),
    "resume": Reader(_draw_resume, _resume, (FileError, NotThisSearch), 12),
    "token": Reader(
        lambda source: mutated_text(source.choice(_TOKENS), source),
        _token,
        (ValueError,),
        40,
    ),
    "protocol": Reader(_draw_protocol, _protocol, (VariantError, FileError), 5),
}


def mutated_document(source: Random) -> Any:
    """A document of every kind of value."""
    document: Any = {"a": [1, 2.5, "x", None, {"b": [True, {}]}], "c": "\u00fc"}
    mutate_json(document, source)
    return document
