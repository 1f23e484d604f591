# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp life: a recorded life again, under the settings given."""

from __future__ import annotations

import argparse

from mthp.cli.options import UsageError, print_json
from mthp.cli.target import settle_settings
from mthp.image.recording import Recording, load_recording
from mthp.life.recorded_life import lived, sweep_life
from mthp.life.recorded_replay import Meanwhile
from mthp.words.costs import PUBLISHED, read_costs
from mthp.words.files import check_target, replace_text
from mthp.words.profiles import PROFILES, profile_for_release
from mthp.words.settings import Settings, SettingsError


def run_life(args: argparse.Namespace) -> int:
    """Run `mthp life` and return its exit code."""
    for target in (args.html, args.svg):
        if target is not None:
            check_target(target)
    if args.svg is not None and args.sweep:
        raise UsageError("--svg is a picture of one setting: it does not go with --sweep")
    recording = load_recording(args.file)
    try:
        recorded = Settings.from_sysfs(recording.meta["sysfs"], recording.geometry)
    except SettingsError as error:
        raise UsageError(f"{args.file}: recorded settings: {error}") from None
    settings = settle_settings(args, recorded)
    profile = PROFILES[args.profile] if args.profile else profile_for_release(recording.kernel)
    meanwhile = Meanwhile(
        profile, args.assume_young == "all", tuple(args.pressure), not args.no_khugepaged
    )
    if any(each >= recording.seconds * 1e9 for each in args.pressure):
        raise UsageError(f"{args.file}: --pressure: it was recorded for {recording.seconds:.1f} s")
    if args.sweep:
        return _sweep(args, recording, settings, meanwhile)
    answer = lived(recording, args.file, settings, recorded, meanwhile)
    if args.html is not None:
        from mthp.report.life_html import life_html_text

        replace_text(args.html, life_html_text(answer, recorded))
    if args.svg is not None:
        from mthp.report.web.life_svg import life_svg_text

        replace_text(args.svg, life_svg_text(answer))
    if args.json:
        from mthp.report.life import life_document

        print_json(life_document(answer))
    else:
        from rich.console import Console

        from mthp.report.life import render_life

        render_life(answer, Console(), verbose=args.verbose)
    return 0


def _sweep(
    args: argparse.Namespace, recording: Recording, settings: Settings, meanwhile: Meanwhile
) -> int:
    """Show one table of settings."""
    costs = PUBLISHED if args.costs is None else read_costs(args.costs).or_else(PUBLISHED)
    sweep = sweep_life(recording, args.file, settings, meanwhile)
    if args.html is not None:
        from mthp.report.life_html import sweep_html_text

        replace_text(args.html, sweep_html_text(sweep, costs))
    if args.json:
        from mthp.report.life import life_sweep_document

        print_json(life_sweep_document(sweep, costs))
    else:
        from rich.console import Console

        from mthp.report.life import render_life_sweep

        render_life_sweep(sweep, costs, Console())
    return 0
