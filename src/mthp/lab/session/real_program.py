# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a real program in a guest and captures it before and after khugepaged collapses its memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.kernels import CachedKernel
from mthp.lab.session.boot import Guest, booted
from mthp.lab.session.pace import PacedRun
from mthp.lab.session.recipes import Recipe
from mthp.lab.session.workload import PYTHON, Workload
from mthp.lab.vm.channel import CommandFailed, GuestGone
from mthp.lab.vm.files import HOST, GuestFiles, Root
from mthp.lab.vm.interpreter import add_interpreter
from mthp.lab.vm.roots import debian_root
from mthp.words.files import scratch
from mthp.words.settings import Settings

Progress = Callable[[str], None]
LOAD_SECONDS = 900.0
LOOK_SECONDS = 0.5
EXPECTED = (
    *("/bin/sh", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/localtime"),
    "/etc/ld.so.cache",
)
"""What many programs, or the C library for them, look for: it comes along where this host has it."""


@dataclass(frozen=True)
class Provision:
    """A recipe prepared for a guest. archive: its files; paths: of its programs in the guest."""

    recipe: Recipe
    archive: Path
    paths: Mapping[str, str]


class How(NamedTuple):
    """What the guest does beside full scans. at_pace: khugepaged sleeps between wakeups as the settings say,
    and is not driven from one full scan to the next. shrink: then shrinkers are called (drop_caches), and the
    captures before are deep, and tell which pages hold nothing but zeros."""

    at_pace: bool = False
    shrink: bool = False


@dataclass(frozen=True)
class SnapshotPair:
    """Two snapshots of the stopped program, and the full scans that khugepaged made between them.

    The last of these changed nothing. paced: what it did at its own pace, if it was let. phase: the recipe's,
    if it has several. shrunk: after shrinkers were called, if they were.
    """

    before: Path
    after: Path
    full_scans: int
    paced: PacedRun | None = None
    phase: str = ""
    shrunk: Path | None = None


@contextlib.contextmanager
def provide(
    recipe: Recipe, extra: Sequence[str], memory: int, progress: Progress
) -> Iterator[Provision]:
    """Pack the recipe's files into an archive, which is removed when the block is left.

    extra: files, folders and programs of this host to pack too. memory: the guest's, in MiB.
    LabError: one of them does not exist, or they are too large for it.
    """
    root = _root_of(recipe, progress)
    for name in recipe.programs():
        root.required(name)
    files = GuestFiles((memory << 20) // 5 * 2)
    paths = {PYTHON: add_interpreter(files)}
    for name in EXPECTED:
        if HOST.find(name):
            files.add_tree(HOST, name)
    for name in recipe.programs():
        paths[name] = files.add_program(root, name)
    for tree, skip in recipe.trees.items():
        files.add_tree(root, tree, skip)
    for name in extra:
        path = os.path.join(os.getcwd(), name)
        if HOST.find(path) is None and "/" not in name and HOST.program(name):
            files.add_program(HOST, name)
        else:
            files.add_tree(HOST, path)
    for command in recipe.commands():
        files.add_folder(HOST, command.folder)
    for path, text in recipe.files.items():
        files.add_bytes(path, text.encode())
    with scratch() as folder:
        archive = files.pack(folder / "files.cpio")
        yield Provision(recipe, archive, paths)


def _root_of(recipe: Recipe, progress: Progress) -> Root:
    """The root with the programs: this host's if it has all of them, else Debian's packages unpacked."""
    missing = [name for name in recipe.programs() if HOST.program(name) is None]
    if not missing or not recipe.packages:
        return HOST
    return debian_root((*recipe.packages, _PACKAGE_OF_SH), progress)


_PACKAGE_OF_SH = "dash"


def captures_around_khugepaged(
    provision: Provision,
    kernel: CachedKernel,
    settings: Settings,
    memory: int,
    folder: Path,
    progress: Progress,
    how: How,
) -> Iterator[SnapshotPair]:
    """Run the recipe in a guest of `memory` MiB, stop the program, and let khugepaged work; again in each
    of its phases.

    folder: where the snapshots are written. LabError: the guest or the program fails.
    """
    recipe = provision.recipe
    with booted(kernel, Guest(memory), (provision.archive,)) as guest:
        try:
            workload = Workload(guest.machine.channel, guest.session, provision.paths)
            workload.prepare()
            _perform(workload, recipe, progress)
            stage = _Stage(workload, settings, folder, progress, how)
            yield stage.between_snapshots(recipe.first)
            for phase in recipe.phases:
                workload.resume()
                for job in phase.load:
                    progress(f"{recipe.name}: {phase.name}: {Path(job.argv[0]).name}")
                    workload.run(job)
                _wait(workload, phase.seconds)
                yield stage.between_snapshots(phase.name)
        except GuestGone as error:
            why = f"the guest does not answer: {error}; {guest.machine.why_it_ended()}"
            raise LabError(HOST_LACKS, why) from None
        except CommandFailed as error:
            raise LabError(HOST_LACKS, f"in the guest: {error}") from None


def _perform(workload: Workload, recipe: Recipe, progress: Progress) -> None:
    """Start the program and its load, up to the time when it is to be stopped."""
    for job in recipe.setup:
        progress(f"{recipe.name}: {Path(job.argv[0]).name}")
        workload.run(job)
    progress(f"{recipe.name}: starting it")
    workload.start(recipe.start)
    if recipe.ready is not None:
        workload.wait_for(recipe.ready, recipe.ready_seconds)
    for job in recipe.load:
        progress(f"{recipe.name}: load: {Path(job.argv[0]).name}")
        workload.run(job)
    if recipe.beside is not None:
        progress(f"{recipe.name}: load that goes on: {Path(recipe.beside.argv[0]).name}")
        workload.start_beside(recipe.beside)
    if recipe.until is not None:
        workload.wait_for(recipe.until, LOAD_SECONDS)
    progress(f"{recipe.name}: running")
    _wait(workload, recipe.seconds)


def _wait(workload: Workload, seconds: float) -> None:
    """Let the program run for so long."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        workload.check()
        time.sleep(min(left, LOOK_SECONDS))


class _Stage:
    """A program in a guest, stopped again and again. number: how often it was."""

    def __init__(
        self, workload: Workload, settings: Settings, folder: Path, progress: Progress, how: How
    ) -> None:
        self.workload = workload
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.how = how
        self.number = 0

    def between_snapshots(self, phase: str) -> SnapshotPair:
        """Stop the program, capture it, let khugepaged work, and capture it again."""
        workload, settings, how = self.workload, self.settings, self.how
        self.number += 1
        pids = workload.stop()
        self.progress(f"stopped: {len(pids)} processes")
        if self.number == 1:
            workload.register(pids)
            if how.at_pace:
                workload.set_alloc_sleep(settings)
            workload.apply(settings)
        before, after, shrunk = map(self._path, ("before", "after", "shrunk"))
        workload.snap(before, *(("--deep", "--zeros") if how.shrink else ()))
        self.progress("khugepaged")
        paced = workload.at_pace(settings) if how.at_pace else None
        scans = workload.scan_to_fixed_point() if paced is None else paced.full_scans
        workload.snap(after)
        if not how.shrink:
            return SnapshotPair(before, after, scans, paced, phase)
        self.progress("shrinkers")
        workload.shrink()
        workload.snap(shrunk)
        return SnapshotPair(before, after, scans, paced, phase, shrunk)

    def _path(self, name: str) -> Path:
        """Where a capture of this time goes."""
        return self.folder / (f"{name}.npz" if self.number == 1 else f"{name}-{self.number}.npz")
