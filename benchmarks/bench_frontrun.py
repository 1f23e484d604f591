# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions a second of the default world: our explorers, and frontrun on the same protocol as plain
Python threads (threads/collapse_fault.py), on its own terms.

frontrun is on PyPI and no dependency of the project: install it into an environment of its own and name
its command in FRONTRUN, or have it on the PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.explorers import Search, explorers
from mthp.races.world import RaceWorld

MODEL = Path(__file__).parent / "threads" / "collapse_fault.py"
ROUNDS = 3
THEIR_SECONDS = 10.0
OUR_SECONDS = 2.0


@dataclass(frozen=True)
class Speed:
    """How fast executions were run. finished: the whole of them were seen."""

    executions: int
    seconds: float
    finished: bool

    @property
    def rate(self) -> float:
        """Executions a second."""
        return self.executions / self.seconds


def frontrun_command() -> str:
    """FileNotFoundError where it is not on this host."""
    command = os.environ.get("FRONTRUN") or shutil.which("frontrun")
    if command is None or not Path(command).exists():
        raise FileNotFoundError("frontrun is not on this host (PyPI; FRONTRUN names its command)")
    return command


def theirs(command: str) -> Speed:
    """frontrun's DPOR for some seconds; RuntimeError where it says that something is broken."""
    python = Path(command).with_name("python")
    words = [command, str(python), str(MODEL), str(THEIR_SECONDS)]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    document = json.loads(ran.stdout.splitlines()[-1])
    if document["holds"] is not True:
        raise RuntimeError(f"frontrun: {document}")
    finished = document["seconds"] < THEIR_SECONDS
    return Speed(document["executions"], document["seconds"], finished)


def ours(run: Search, world: RaceWorld) -> Speed:
    """The whole search, again and again for some seconds."""
    executions = 0
    begin = time.perf_counter()
    while (seconds := time.perf_counter() - begin) < OUR_SECONDS:
        executions += run(world).coverage.executions
    return Speed(executions, seconds, finished=True)


def main() -> None:
    """Print a row for each."""
    command = frontrun_command()
    world = RaceWorld.parse("pmd", "7.3", ("fault",))
    runs = explorers()
    for run in runs.values():
        run(world)  # what is compiled or learnt once is not counted
    peers: list[Speed] = []
    mine: dict[str, list[Speed]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        peers.append(theirs(command))
        for name, run in runs.items():
            mine[name].append(ours(run, world))
    print("| what | executions a second | x frontrun | exhausts the world |")
    print("|---|--:|--:|---|")
    rate = median(each.rate for each in peers)
    print(f"| frontrun, DPOR | {rate:,.1f} | 1 | {_said(peers)} |")
    for name, speeds in mine.items():
        ratios = [a.rate / b.rate for a, b in zip(speeds, peers, strict=True)]
        rate = median(each.rate for each in speeds)
        print(f"| {name} | {rate:,.0f} | {median(ratios):,.0f} | {_said(speeds)} |")


def _said(speeds: list[Speed]) -> str:
    if all(each.finished for each in speeds):
        return "yes"
    most = max(each.executions for each in speeds)
    return f"not within {most:,} executions"
