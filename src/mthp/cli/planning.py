# SPDX-License-Identifier: GPL-2.0-or-later
"""From the command line to a planner: what `mthp plan` and `mthp sweep` have in common."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection
from typing import NamedTuple

from mthp.cli.collapse import ScanProgress, kept
from mthp.cli.options import UsageError
from mthp.cli.target import (
    captured_settings,
    load_target,
    settle_assumed,
    settle_profile,
    settle_settings,
)
from mthp.image.snapshot import Snapshot
from mthp.plan.picture import picture_of
from mthp.plan.planner import Planner
from mthp.plan.records import BulkVerdict, Picture
from mthp.predict.image import Image
from mthp.predict.outcome import usual
from mthp.predict.records import Basis
from mthp.words.profiles import Profile
from mthp.words.settings import Settings
from mthp.worlds.build import arrays_of


class Planning(NamedTuple):
    """A target ready to be planned. captured: its settings; given: the command line's over them."""

    image: Image
    planner: Planner
    profile: Profile
    captured: Settings
    given: Settings
    basis: Basis

    def names(self, plans: Collection[BulkVerdict]) -> dict[tuple[int, int], tuple[str, str]]:
        """(pid, start) -> process and mapping, of those that plans add memory to."""
        added = {where for plan in plans for where in plan.added_by_vma}
        return {
            (process.pid, vma.start): (process.name, vma.name)
            for process in self.planner.processes
            for vma in process.vmas
            if (process.pid, vma.start) in added
        }


def planning_of(args: argparse.Namespace) -> tuple[Planning, float]:
    """Make what the command line's target is planned with; and when that began, by time.monotonic()."""
    image = load_target(args)
    captured = captured_settings(image)
    given = settle_settings(args, captured)
    profile, reason = settle_profile(args.profile, image)
    began = time.monotonic()
    arrays = arrays_of(image.data, settle_assumed(args))
    snapshot = image.data if isinstance(image.data, Snapshot) else None
    unseen = () if snapshot is None else snapshot.unseen
    basis = Basis(
        image.name, image.source, profile.name, reason, arrays.assumptions, unseen, usual(unseen)
    )
    planner = Planner(arrays, profile, given, snapshot)
    return Planning(image, planner, profile, captured, given, basis), began


def drawn(
    args: argparse.Namespace, planning: Planning, settings: Settings, *, changes: bool = True
) -> Picture:
    """Run the engine under some settings, with a line of progress. Its outcome is incomplete after Ctrl-C.
    changes: look for the least change of each refusal."""
    image, basis = planning.image, planning.basis
    try:
        with kept():
            world, request = image.prepared(
                settings, planning.profile, basis.profile_reason, settle_assumed(args)
            )
    except ValueError as error:
        raise UsageError(f"{image.name}: {error}") from None
    progress = ScanProgress(world, quiet=args.quiet)
    request.changes = changes
    request.on_table, request.on_try = progress.on_table, progress.on_try
    with progress.interruptible():
        return picture_of(world, request)
