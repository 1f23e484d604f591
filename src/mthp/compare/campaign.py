# SPDX-License-Identifier: GPL-2.0-or-later
"""A fuzz campaign: many drawn states over parallel guests, kept in a folder so that it can be resumed."""

from __future__ import annotations

import json
import multiprocessing.util
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mthp.compare.campaign_folder import open_folder, whole_lines
from mthp.compare.coverage import OutcomeCounts
from mthp.compare.fuzz import DraftRunner, DraftVerdict, compare_with_engine
from mthp.compare.paths import PathTotal
from mthp.lab.draw import draw
from mthp.lab.kernels.kernels import CachedKernel
from mthp.lab.program.program import Draft
from mthp.lab.program.shrink import shrink
from mthp.lab.session.boot import Guest
from mthp.lab.session.captures import CapturePath, CaptureTools, capture_tools
from mthp.words.files import append_to, replace_text, replacing
from mthp.words.processes import workers

SCHEMA_VERSION = 1
"""A campaign may be long."""
AHEAD = 8
"""How many drafts are submitted per guest before the first result is awaited."""


@dataclass(frozen=True)
class CampaignSpec:
    """What is drawn, and for which kernel. family: empty to draw families by weight.
    paths: the captures of each state whose predictions are compared too. guest: but for its memory.
    """

    seed: int
    number: int
    kernel: str
    family: str = ""
    paths: tuple[CapturePath, ...] = ()
    guest: Guest = field(default_factory=Guest)

    def to_json(self) -> dict[str, Any]:
        """What must be the same for a campaign to be resumed. The number of states may grow."""
        return {
            "schema_version": SCHEMA_VERSION,
            "seed": self.seed,
            "kernel": self.kernel,
            "family": self.family,
            "captures": [path.value for path in self.paths],
            "cpus": self.guest.cpus,
            "nodes": self.guest.nodes,
            **({"distance": self.guest.distance} if self.guest.nodes > 1 else {}),
            "swap": self.guest.swap.value,
        }


@dataclass
class Campaign:
    """The results so far. done: drafts that were run; built: those whose state was made; killed: passes
    in which the OOM killer took the process; families: counts by family."""

    spec: CampaignSpec
    folder: Path
    done: int = 0
    built: int = 0
    passes: int = 0
    agreed: int = 0
    mismatches: list[dict[str, Any]] = field(default_factory=list)
    not_built: list[dict[str, Any]] = field(default_factory=list)
    killed: list[dict[str, Any]] = field(default_factory=list)
    families: dict[str, dict[str, int]] = field(default_factory=dict)
    coverage: OutcomeCounts = field(default_factory=OutcomeCounts)
    paths: dict[str, PathTotal] = field(default_factory=dict)

    @property
    def records(self) -> Path:
        """The file of the scenarios, as the kernel ran them."""
        return self.folder / "records.jsonl"

    @property
    def log(self) -> Path:
        """The file with one line for each draft, in order."""
        return self.folder / "log.jsonl"

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add the counts of one line of the log."""
        self.done += 1
        self.passes += entry["passes"]
        self.agreed += entry["agreed"]
        self.mismatches += entry["mismatches"]
        row = self.families.setdefault(
            entry["family"], {"drafts": 0, "passes": 0, "agreed": 0, "not_built": 0}
        )
        row["drafts"] += 1
        row["passes"] += entry["passes"]
        row["agreed"] += entry["agreed"]
        if entry["not_built"]:
            row["not_built"] += 1
            self.not_built.append({"id": entry["id"], "reason": entry["not_built"]})
        else:
            self.built += 1
        for path, verdict in entry["paths"].items():
            self.paths.setdefault(path, PathTotal()).add(entry["family"], verdict)

    def cover(self, record: Mapping[str, Any]) -> None:
        """Count a record's outcomes."""
        for number, recorded in enumerate(record["passes"]):
            if recorded.get("killed"):
                self.killed.append({"id": record["id"], "pass": number})
            self.coverage.add_pass(recorded["events"], recorded.get("errno"))

    @property
    def bad_ids(self) -> list[str]:
        """The ids of the drafts on which kernel and engine disagree, in order."""
        return list(dict.fromkeys(str(each["id"]) for each in self.mismatches))

    def to_json(self) -> dict[str, Any]:
        """The document of `mthp lab fuzz --json`."""
        return {
            **self.spec.to_json(),
            "number": self.done,
            "built": self.built,
            "passes": self.passes,
            "agreed": self.agreed,
            "mismatches": self.mismatches,
            "not_built": self.not_built,
            "killed": self.killed,
            "families": dict(sorted(self.families.items())),
            "paths": {path: total.to_json() for path, total in self.paths.items()},
            "coverage": self.coverage.to_json(),
        }


@dataclass(frozen=True)
class ShrunkDraft:
    """A disagreement, shrunk. first: the id of the draft that was found; verdict: on the smallest one."""

    first: str
    verdict: DraftVerdict


def open_campaign(spec: CampaignSpec, folder: Path) -> Campaign:
    """Open a new campaign, or the one that was interrupted in this folder.

    LabError (2): the folder holds another one, is damaged, or cannot be used.
    """
    campaign = Campaign(spec, folder)
    open_folder(folder, spec.to_json(), lambda: _resume(campaign))
    return campaign


def _resume(campaign: Campaign) -> None:
    """Count what was done. An unfinished last line is dropped, with all that the other file has
    beyond it."""
    entries = whole_lines(campaign.log)
    records = whole_lines(campaign.records)
    built = sum(not entry["not_built"] for entry in entries)
    while built > len(records):
        built -= not entries.pop()["not_built"]
    records = records[:built]
    for entry in entries:
        campaign.add(entry)
    for record in records:
        campaign.cover(record)
    replace_text(campaign.log, "".join(json.dumps(entry) + "\n" for entry in entries))
    replace_text(campaign.records, "".join(json.dumps(record) + "\n" for record in records))


# --- the guests -----------------------------------------------------------------------------

_runner: DraftRunner | None = None


def _start_worker(kernel: CachedKernel, guest: Guest, tools: CaptureTools | None = None) -> None:
    """Give each worker process a guest of its own, which ends with the process."""
    global _runner
    _runner = DraftRunner(kernel, tools, guest)
    multiprocessing.util.Finalize(None, _runner.close, exitpriority=10)


def _record_index(spec: CampaignSpec, index: int) -> DraftVerdict:
    """Record one draft in a worker. The comparison is left to the main process, so that no guest waits."""
    assert _runner is not None
    return _runner.record(draw(spec.seed, index, spec.family, spec.guest.nodes))


def _shrink_one(spec: CampaignSpec, index: int, budget: int) -> ShrunkDraft:
    """Shrink one draft that disagrees. If it does not disagree again, the result is the draft itself."""
    assert _runner is not None
    draft = draw(spec.seed, index, spec.family, spec.guest.nodes)
    verdicts: dict[str, DraftVerdict] = {}

    def still_bad(candidate: Draft) -> bool:
        assert _runner is not None
        verdict = _runner(candidate)
        if verdict.disagrees:
            verdicts[json.dumps(candidate.to_json())] = verdict
        return verdict.disagrees

    if not still_bad(draft):
        return ShrunkDraft(draft.id, _runner(draft))
    smallest = shrink(draft, still_bad, budget)
    return ShrunkDraft(draft.id, verdicts[json.dumps(smallest.to_json())])


# --- a campaign -----------------------------------------------------------------------------


def run_campaign(
    campaign: Campaign,
    kernel: CachedKernel,
    guests: int,
    progress: Callable[[Campaign, float], None],
) -> None:
    """Run the rest of the campaign in order. Each result is written before the next one is counted.

    progress: called after each draft with the campaign and the seconds so far. KeyboardInterrupt leaves
    a campaign that can be resumed. LabError: no guest can be booted.
    """
    started = time.monotonic()
    spec = campaign.spec
    with (
        append_to(campaign.log) as log,
        append_to(campaign.records) as records,
        capture_tools(spec.paths if campaign.done < spec.number else ()) as tools,
        workers(guests, _start_worker, kernel, spec.guest, tools) as pool,
    ):
        waiting: deque[Future[DraftVerdict]] = deque()
        todo = iter(range(campaign.done, spec.number))
        while True:
            while len(waiting) < guests * AHEAD and (index := next(todo, None)) is not None:
                waiting.append(pool.submit(_record_index, spec, index))
            if not waiting:
                return
            verdict = waiting.popleft().result()
            if verdict.record is not None:
                records.write(json.dumps(verdict.record) + "\n")
                records.flush()
                campaign.cover(verdict.record)
                verdict = compare_with_engine(verdict.draft, verdict.record, verdict.captured)
                _keep_captures(campaign.folder, verdict)
            entry = _entry(verdict)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            campaign.add(entry)
            progress(campaign, time.monotonic() - started)


def _keep_captures(folder: Path, verdict: DraftVerdict) -> None:
    """Keep the captures of a state, for predictions to be made again."""
    for path, data in verdict.captured.files.items() if verdict.captured is not None else ():
        (folder / "captures").mkdir(exist_ok=True)
        with replacing(folder / "captures" / f"{verdict.draft.id}.{path}.npz") as file:
            file.write(data)


def _entry(verdict: DraftVerdict) -> dict[str, Any]:
    """The line of a draft in the log."""
    return {
        "id": verdict.draft.id,
        "family": verdict.draft.family,
        "passes": verdict.passes,
        "agreed": verdict.agreed,
        "not_built": verdict.not_built,
        "mismatches": list(verdict.mismatches),
        "paths": {path: each.to_json() for path, each in verdict.paths.items()},
    }


def shrink_all(
    campaign: Campaign, kernel: CachedKernel, guests: int, most: int, budget: int
) -> list[ShrunkDraft]:
    """Shrink the first `most` disagreements, each in at most `budget` runs in a guest."""
    indices = [int(name.rpartition("-")[2]) for name in campaign.bad_ids[:most]]
    if not indices:
        return []
    with workers(min(guests, len(indices)), _start_worker, kernel, campaign.spec.guest) as pool:
        jobs = [pool.submit(_shrink_one, campaign.spec, index, budget) for index in indices]
        return [job.result() for job in jobs]
