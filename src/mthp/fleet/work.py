# SPDX-License-Identifier: GPL-2.0-or-later
"""One snapshot: what was captured, and what each setting makes of it, as two Parquet files.

They are written whole or not at all, and after them a line in done/ that says so. What stands there of the
same content, grid and version is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from mthp import __version__
from mthp.fleet.records import Swept, Unusable
from mthp.fleet.schema import ANSWERS, CAPTURED, NOWHERE, VERSION
from mthp.image.snapshot import ProcessTables, Pte, Snapshot, read_snapshot
from mthp.plan.planner import Planner
from mthp.plan.records import BulkVerdict, Wish
from mthp.plan.sweep import front_of, grid, soon_enough
from mthp.predict.image import reconfigured
from mthp.words.files import FileError, replace_text, replacing, shown
from mthp.words.profiles import PROFILES, profile_for_release
from mthp.words.reading import open_regular, read_json
from mthp.words.settings import Enabled, Settings, SettingsError
from mthp.worlds.arrays import painted, spans
from mthp.worlds.build import arrays_of
from mthp.worlds.unseen import Assumed, Young

HOST_BYTES = 64
"""Of a host's name at most. Kernel: include/uapi/linux/utsname.h, __NEW_UTS_LEN."""

Row = dict[str, Any]


@dataclass(frozen=True)
class FleetJob:
    """What is done with each snapshot. enabled, thp_anon, defrag, limits: in the place of what was captured,
    as reconfigured() takes them. profile: None for that of each kernel. within: milliseconds, for which
    pages_to_scan is raised. young, registered, free_memory: as the options of these names.
    """

    enabled: tuple[str, ...] = ()
    thp_anon: str | None = None
    defrag: bool | None = None
    limits: Mapping[str, int] | None = None
    profile: str | None = None
    within: int | None = None
    young: str = Young.CAPTURED
    registered: bool | None = None
    free_memory: int | None = None

    @cached_property
    def run(self) -> str:
        """What tells this job, and the version that does it, from others."""
        text = json.dumps([__version__, VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def settings(self, snapshot: Snapshot) -> Settings:
        """The captured ones with those over them that are given."""
        base = Settings.from_sysfs(snapshot.sysfs, snapshot.geometry)
        return reconfigured(base, self.enabled, self.thp_anon, self.defrag, self.limits or {})


def sweep_snapshot(path: str, folder: str, job: FleetJob, command: str) -> Swept | Unusable:
    """Do one snapshot, unless it is done. command: what tells this run of the command from all others.
    OSError: nothing can be written to the folder."""
    try:
        with open_regular(path) as file:
            digest = _digest(file)
            done = _done(folder, digest, job, command)
            if done is not None:
                return done._replace(path=path)
            file.seek(0)
            snapshot = read_snapshot(file, path)
    except FileError as error:
        return Unusable(path, str(error).removeprefix(f"{path}: "))
    except OSError as error:
        return Unusable(path, error.strerror or str(error))
    except MemoryError:
        return Unusable(path, "out of memory")
    try:
        snapshot = replace(snapshot, free_memory=job.free_memory)
        host, time = _host(snapshot), _time(snapshot)
        common = {
            "snapshot": digest,
            "path": shown(path),
            "time": time,
            "kernel": shown(snapshot.kernel),
            "page_size": snapshot.geometry.page_size,
            "pmd_size": snapshot.geometry.pmd_size,
        }
        profile = job.profile or profile_for_release(snapshot.kernel).name
        answers = [*_answers(snapshot, job, profile)]
    except (FileError, SettingsError, ValueError) as error:
        return Unusable(path, str(error))
    day = NOWHERE if time is None else f"{time:%Y-%m-%d}"
    name = NOWHERE if host is None else quote(host, safe="", errors="replace")
    part = os.path.join(f"host={name}", f"day={day}", f"{digest}.parquet")
    swept = Swept(
        path, digest, host, shown(snapshot.kernel), profile,
        snapshot.geometry.page_size, snapshot.geometry.pmd_size, part,
    )  # fmt: skip
    _write(folder, "captured", part, CAPTURED, common, [*_captured(snapshot)])
    more = {**common, "run": job.run, "profile": profile}
    _write(folder, "answers", part, ANSWERS, more, answers)
    line = {"run": job.run, "command": command, **swept._asdict()}
    replace_text(_line(folder, digest), json.dumps(line) + "\n")
    return swept


def done_before(path: str, folder: str, job: FleetJob) -> Swept | None:
    """What an earlier run of the same job says of a snapshot; None where there is none, or no file."""
    try:
        with open_regular(path) as file:
            done = _done(folder, _digest(file), job, "")
    except (FileError, OSError):
        return None
    return None if done is None else done._replace(path=path)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


# --- what is done -----------------------------------------------------------------------------


def _line(folder: str, digest: str) -> str:
    return os.path.join(folder, "done", f"{digest}.json")


def _done(folder: str, digest: str, job: FleetJob, command: str) -> Swept | None:
    """What a run of the same job says of this content, if both files are there. It may be this run's own:
    what a worker has told nobody yet dies with it."""
    try:
        line = read_json(_line(folder, digest))
        if line.pop("run") != job.run:
            return None
        line["anew"] = line.pop("command") == command
        swept = Swept(**line)
        parts = [os.path.join(folder, name, swept.part) for name in ("captured", "answers")]
    except (FileError, TypeError, AttributeError, KeyError):
        return None
    return swept if all(map(os.path.isfile, parts)) else None


def _write(
    folder: str, dataset: str, part: str, schema: pa.Schema, common: Row, rows: list[Row]
) -> None:
    path = os.path.join(folder, dataset, part)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    table = pa.Table.from_pylist([{**common, **row} for row in rows], schema)
    with replacing(path) as file:
        parquet.write_table(table, file)


def _host(snapshot: Snapshot) -> str | None:
    host = snapshot.meta.get("hostname") or None
    if host is not None and len(host.encode("utf-8", "replace")) > HOST_BYTES:
        raise FileError(f"hostname: longer than the {HOST_BYTES} bytes that a kernel allows")
    return None if host is None else shown(host)


def _time(snapshot: Snapshot) -> datetime | None:
    text = snapshot.meta.get("time")
    if text is None:
        return None
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text, re.ASCII):
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except ValueError:
            pass
    raise FileError(f"time: {shown(text)[:40]!r} is none in UTC, such as 2026-11-28T09:41:14Z")


# --- rows -------------------------------------------------------------------------------------


def _captured(snapshot: Snapshot) -> Iterator[Row]:
    """A row for each captured mapping of each process."""
    for process in snapshot.processes:
        vmas = [vma for vma in process.vmas if vma.captured]
        ranges = [(vma.start, vma.end) for vma in vmas]
        number = np.arange(1, len(vmas) + 1, dtype=np.int32)
        ends = spans(process.table_address, snapshot.geometry, ranges)
        of_vma = painted(process.pte.size, *ends, number).reshape(process.pte.shape)
        columns = {
            name: None if which is None else _bytes(snapshot, of_vma, which, len(vmas))
            for name, which in _kinds(snapshot, process).items()
        }
        orders = _orders(snapshot, process, of_vma, len(vmas))
        for k, vma in enumerate(vmas):
            yield {
                "pid": process.pid,
                "process": process.meta.get("comm") and shown(process.name),
                "start": vma.start,
                "end": vma.end,
                "mapping": shown(vma.name),
                "kind": vma.kind.value,
                "of_order": orders[k],
                "lazyfree": vma.lazyfree,
                **{name: None if all_ is None else all_[k] for name, all_ in columns.items()},
            }


def _kinds(snapshot: Snapshot, process: ProcessTables) -> dict[str, NDArray[np.bool_] | None]:
    """Column -> the pages that it counts, by table; None where the capture does not tell."""
    pte = process.pte
    here = (pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
    shared = None
    if process.kpagecount is not None:
        shared = here & (process.kpagecount > 1)
    elif snapshot.privilege.exclusive:
        shared = here & (pte & Pte.EXCLUSIVE == 0)
    return {
        "mapped": here,
        "by_pmd": here & (pte & Pte.HUGE != 0),
        "shared": shared,
        "zero": pte & Pte.ZERO != 0,
        "swapped": (pte & (Pte.SWAPPED | Pte.GUARD)) == Pte.SWAPPED,
    }


def _bytes(
    snapshot: Snapshot, of_vma: NDArray[np.int32], which: NDArray[np.bool_], count: int
) -> list[int]:
    pages = np.bincount(of_vma[which], minlength=count + 1)[1:]
    sizes: list[int] = (pages << snapshot.geometry.page_shift).tolist()
    return sizes


def _orders(
    snapshot: Snapshot, process: ProcessTables, of_vma: NDArray[np.int32], count: int
) -> list[dict[int, int] | None]:
    """Of each mapping, the mapped bytes by the order of their folio."""
    if process.folio_order is None:
        return [None] * count
    here = (process.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
    kinds = snapshot.geometry.pmd_order + 1
    place = of_vma[here].astype(np.int64) * kinds + process.folio_order[here]
    pages = np.bincount(place, minlength=(count + 1) * kinds).reshape(-1, kinds)[1:]
    sizes = pages << snapshot.geometry.page_shift
    return [{order: size for order, size in enumerate(row) if size} for row in sizes.tolist()]


def _answers(snapshot: Snapshot, job: FleetJob, profile_name: str) -> Iterator[Row]:
    """A row for what is set, and one for each setting of the grid, in its order.

    The grid is the same for all: the host's own max_ptes_none is in the first row alone.
    """
    base, profile = job.settings(snapshot), PROFILES[profile_name]
    arrays = arrays_of(snapshot, Assumed(Young(job.young), job.registered))
    planner = Planner(arrays, profile, base, snapshot)
    wish = Wish(within=job.within)
    tried = base
    if "max_ptes_none" not in (job.limits or {}):
        tried = base.replace(max_ptes_none=base.geometry.ptrs_per_pte - 1)
    plans = [soon_enough(planner, settings, wish) for settings in grid(tried, profile)]
    places = sorted(range(len(plans)), key=lambda k: plans[k].price)
    front = front_of([plans[k] for k in places])
    best = {k for k, is_on in zip(places, front, strict=True) if is_on}
    yield {**_row(planner.plan(base)), "current": True, "front": None}
    for k, plan in enumerate(plans):
        yield {**_row(plan), "current": False, "front": k in best}


def enabled_text(settings: Settings) -> str:
    """The switches of the sizes that are not never, as --enabled takes them."""
    sizes = (
        f"{settings.geometry.size_name(order)}={mode}"
        for order, mode in settings.sizes.items()
        if mode is not Enabled.NEVER
    )
    return ",".join(sizes)


def _row(plan: BulkVerdict) -> Row:
    settings = plan.settings
    return {
        "enabled": enabled_text(settings),
        "max_ptes_none": settings.max_ptes_none,
        "pages_to_scan": settings.pages_to_scan,
        "before": sorted(plan.before.items()),
        "after": sorted(plan.after.items()),
        "collapses": sorted(plan.windows.items()),
        "mapped_before": sum(plan.before.values()),
        "mapped": plan.mapped,
        "large": plan.large,
        "memory_added": plan.memory_added,
        "tlb_entries": plan.translations,
        "reach": plan.reach,
        "copied": plan.copied_bytes,
        "last_collapse_ms": plan.last_collapse_ms,
        "counted_tables": plan.counted_tables,
        "engine_tables": plan.engine_tables,
        "all_engine": plan.all_engine,
    }
