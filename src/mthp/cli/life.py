# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp life: a recorded life again, under the settings given."""

from __future__ import annotations

import argparse

from mthp.cli.options import UsageError, print_json
from mthp.cli.target import settle_settings
from mthp.image.recording import load_recording
from mthp.life.recorded_life import lived
from mthp.words.settings import Settings, SettingsError


def run_life(args: argparse.Namespace) -> int:
    """Run `mthp life` and return its exit code."""
    recording = load_recording(args.file)
    try:
        recorded = Settings.from_sysfs(recording.meta["sysfs"], recording.geometry)
    except SettingsError as error:
        raise UsageError(f"{args.file}: recorded settings: {error}") from None
    answer = lived(recording, args.file, settle_settings(args, recorded))
    if args.json:
        from mthp.report.life import life_document

        print_json(life_document(answer))
    else:
        from rich.console import Console

        from mthp.report.life import render_life

        render_life(answer, Console(), verbose=args.verbose)
    return 0
