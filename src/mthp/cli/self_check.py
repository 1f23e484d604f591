# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp check --self-check: whether what an exhaustive search claims is so."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from random import Random

from mthp.check.self_check import SelfCheck, Subject, subjects
from mthp.cli.options import print_json, show
from mthp.races.world import RaceWorld

_HOLDS = (
    "what tasks do to one place is ordered by steps; steps that do not depend on one another commute; "
    "no random execution breaks a law that the search does not find"
)


def run_self_check(args: argparse.Namespace, worlds: Sequence[RaceWorld]) -> int:
    """Run `mthp check --self-check` on these worlds, on everything if there are none; exit code 1 where
    something is not as claimed.
    """
    seed, end = args.seed or 0, time.monotonic() + (args.seconds or 0)
    check = SelfCheck(Random(seed))
    every = [Subject(world) for world in worlds] or subjects()
    while True:
        for each in check.random.sample(every, len(every)):
            check.look_at(each)
            if args.seconds and time.monotonic() >= end:
                break
        if time.monotonic() >= end:
            break
    if args.json:
        print_json(
            {
                "schema_version": 1,
                "seed": seed,
                "executions": check.executions,
                "moves": check.moves,
                "defects": [{"what": what, "world": at} for what, at in check.defects.items()],
            }
        )
    else:
        show(f"{check.executions} executions from seed {seed}, {check.moves} steps moved")
        show(
            *(f"{at}: {what}" for what, at in check.defects.items()),
            *([] if check.defects else [_HOLDS]),
        )
    return 1 if check.defects else 0
