# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign of random programs over parallel guests, kept in a folder so that it can be resumed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.util
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mthp.compare.campaign_folder import open_folder, whole_lines
from mthp.compare.program_shrink import shrink_program
from mthp.compare.programs import first_difference
from mthp.compare.records import ProgramScore
from mthp.lab.draw.programs import draw_program
from mthp.lab.kernels.kernels import CachedKernel
from mthp.lab.session.boot import Booted, Guest, booted
from mthp.lab.session.programs import COUNTED, NotRun, run_program
from mthp.lab.vm.channel import CommandFailed, GuestGone
from mthp.life.program import parse_program
from mthp.words.files import append_to, replace_text
from mthp.words.processes import workers
from mthp.words.profiles import profile_for_release

SCHEMA_VERSION: Final = 1
DRAWN: Final = "programs, with heaps and limits"
"""What a seed draws: another text wherever that changes, so that no campaign goes on with other programs."""
AHEAD: Final = 8
"""How many programs are submitted per guest before the first result is awaited."""
MEMORY: Final = 512
"""MiB of a guest."""


@dataclass(frozen=True)
class ProgramVerdict:
    """The outcome of one program.

    record: as the kernel ran it; None where it was not run to its end, for the reason in not_run.
    agreed: operations until the first difference. difference: as OperationDifference.to_json() gives it.
    """

    document: Mapping[str, Any]
    record: Mapping[str, Any] | None = None
    not_run: str = ""
    agreed: int = 0
    difference: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The line of a program in the log."""
        operations = [] if self.record is None else self.record["steps"]
        return {
            "id": self.document["id"],
            "operations": len(operations),
            "agreed": self.agreed,
            "difference": self.difference,
            "not_run": self.not_run,
            "words": Counter(_word(step) for step in operations),
            "counters": Counter(
                name.split(".")[1] for step in operations for name in step["delta"]
            ),
        }


def _word(step: Mapping[str, Any]) -> str:
    """What an operation is, in a word; advice with its number."""
    words = step["op"].split() if isinstance(step["op"], str) else step["op"]
    if len(words) < 2 or words[0] in ("w", "set"):
        return str(words[0])
    return f"{words[1]} {words[4]}" if words[1] == "adv" else str(words[1])


@dataclass(frozen=True)
class ProgramSpec:
    """What is drawn, and for which kernel."""

    seed: int
    number: int
    kernel: str

    def to_json(self) -> dict[str, Any]:
        """What must be the same for a campaign to be resumed. The number of programs may grow."""
        return {
            "schema_version": SCHEMA_VERSION,
            "drawn": DRAWN,
            "seed": self.seed,
            "kernel": self.kernel,
        }


@dataclass
class ProgramCampaign:
    """The results so far. programs: those run to their end; agreed: those that agree after every operation.
    words, counters: how often an operation was done, and a counter moved by one.
    """

    spec: ProgramSpec
    folder: Path
    done: int = 0
    programs: int = 0
    agreed: int = 0
    operations: int = 0
    operations_agreed: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)
    not_run: list[dict[str, Any]] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    counters: Counter[str] = field(default_factory=Counter)

    @property
    def log(self) -> Path:
        """The file with one line for each program, in order."""
        return self.folder / "log.jsonl"

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add the counts of one line of the log."""
        self.done += 1
        if entry["not_run"]:
            self.not_run.append({"id": entry["id"], "reason": entry["not_run"]})
            return
        self.programs += 1
        self.agreed += entry["difference"] is None
        self.operations += entry["operations"]
        self.operations_agreed += entry["agreed"]
        self.words.update(entry["words"])
        self.counters.update(entry["counters"])
        if entry["difference"] is not None:
            self.differences.append(entry["difference"])

    def to_json(self) -> dict[str, Any]:
        """The document of `mthp lab fuzz --programs --json`."""
        return {
            **self.spec.to_json(),
            "number": self.done,
            "programs": self.programs,
            "agreed": self.agreed,
            "operations": self.operations,
            "operations_agreed": self.operations_agreed,
            "differences": self.differences,
            "not_run": self.not_run,
            "coverage": {
                "operations": dict(sorted(self.words.items())),
                "counters": dict(sorted(self.counters.items())),
            },
        }


def open_program_campaign(spec: ProgramSpec, folder: Path) -> ProgramCampaign:
    """Open a new campaign, or the one that was interrupted in this folder.

    LabError (2): the folder holds another one, is damaged, or cannot be used.
    """
    campaign = ProgramCampaign(spec, folder)
    open_folder(folder, spec.to_json(), lambda: _resume(campaign))
    return campaign


def _resume(campaign: ProgramCampaign) -> None:
    """Count what was done. An unfinished last line is dropped."""
    entries = whole_lines(campaign.log)
    for entry in entries:
        campaign.add(entry)
    replace_text(campaign.log, "".join(json.dumps(entry) + "\n" for entry in entries))


# --- the guests -----------------------------------------------------------------------------


class ProgramRunner:
    """Runs one program after another in a guest, which is booted again when it has ended."""

    def __init__(self, kernel: CachedKernel) -> None:
        self._kernel = kernel
        self._stack = contextlib.ExitStack()
        self._booted: Booted | None = None

    def close(self) -> None:
        """End the guest."""
        self._booted = None
        self._stack.close()

    def __call__(self, document: Mapping[str, Any]) -> ProgramVerdict:
        """Run a program there and on the engine. LabError: no guest can be booted."""
        try:
            record = run_program(self._guest().session, document, self._kernel.release)
        except (NotRun, CommandFailed) as error:
            return ProgramVerdict(document, not_run=str(error))
        except GuestGone as error:
            self.close()
            return ProgramVerdict(document, not_run=f"the guest is gone: {error}")
        score = ProgramScore()
        profile = profile_for_release(self._kernel.release)
        found = first_difference(parse_program(record), profile, score)
        difference = None if found is None else found.to_json()
        return ProgramVerdict(document, record, "", score.operations, difference)

    def _guest(self) -> Booted:
        if self._booted is None:
            guest = booted(self._kernel, Guest(memory=MEMORY), counted=COUNTED)
            self._booted = self._stack.enter_context(guest)
        return self._booted


_runner: ProgramRunner | None = None


def _start_worker(kernel: CachedKernel) -> None:
    """Give each worker process a guest of its own, which ends with the process."""
    global _runner
    _runner = ProgramRunner(kernel)
    multiprocessing.util.Finalize(None, _runner.close, exitpriority=10)


def _run_index(spec: ProgramSpec, index: int) -> ProgramVerdict:
    """Run one program in a worker."""
    assert _runner is not None
    return _runner(draw_program(spec.seed, index))


def _shrink_one(spec: ProgramSpec, index: int, budget: int) -> ProgramVerdict:
    """The verdict on the smallest program found that differs still; on the whole one if it does not again."""
    assert _runner is not None
    return shrink_program(draw_program(spec.seed, index), _runner, budget)


# --- a campaign -----------------------------------------------------------------------------


def run_program_campaign(
    campaign: ProgramCampaign,
    kernel: CachedKernel,
    guests: int,
    progress: Callable[[ProgramCampaign, float], None],
) -> None:
    """Run the rest of the campaign in order. Each result is written before the next one is counted; records
    are kept of what differs.

    progress: called after each program with the campaign and the seconds so far. KeyboardInterrupt leaves
    a campaign that can be resumed. LabError: no guest can be booted.
    """
    started = time.monotonic()
    spec = campaign.spec
    with append_to(campaign.log) as log, workers(guests, _start_worker, kernel) as pool:
        waiting: deque[Future[ProgramVerdict]] = deque()
        todo = iter(range(campaign.done, spec.number))
        while True:
            while len(waiting) < guests * AHEAD and (index := next(todo, None)) is not None:
                waiting.append(pool.submit(_run_index, spec, index))
            if not waiting:
                return
            verdict = waiting.popleft().result()
            if verdict.difference is not None:
                keep_record(campaign.folder, verdict)
            entry = verdict.to_json()
            log.write(json.dumps(entry) + "\n")
            log.flush()
            campaign.add(entry)
            progress(campaign, time.monotonic() - started)


def keep_record(folder: Path, verdict: ProgramVerdict) -> None:
    """Write a program's record to a file of its own, which is a file of programs."""
    (folder / "differences").mkdir(exist_ok=True)
    path = folder / "differences" / f"{verdict.document['id']}.jsonl"
    replace_text(path, json.dumps(verdict.record) + "\n")


def shrink_programs(
    campaign: ProgramCampaign, kernel: CachedKernel, guests: int, most: int, budget: int
) -> list[ProgramVerdict]:
    """Shrink the first `most` programs that differ, each in at most `budget` runs in a guest."""
    indices = [int(each["id"].rpartition("-")[2]) for each in campaign.differences[:most]]
    if not indices:
        return []
    with workers(min(guests, len(indices)), _start_worker, kernel) as pool:
        jobs = [pool.submit(_shrink_one, campaign.spec, index, budget) for index in indices]
        return [job.result() for job in jobs]
