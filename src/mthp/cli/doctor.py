# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp doctor: settings that do not mean what they seem to, of this host or of a target."""

from __future__ import annotations

import argparse

from mthp.cli.options import UsageError, print_json
from mthp.cli.target import (
    captured_settings,
    load_target,
    settle_profile,
    settle_settings,
    targets,
)
from mthp.image.capture.host import THP, host_facts, host_geometry
from mthp.image.capture.proc import LACKING, CaptureError, text
from mthp.image.snapshot import Snapshot
from mthp.plan.doctor import examine
from mthp.plan.examined import Examined, examined_host, examined_image
from mthp.plan.records import Checkup
from mthp.predict.records import Basis
from mthp.words.profiles import PROFILES, profile_for_release
from mthp.words.settings import Settings, SettingsError


def run_doctor(args: argparse.Namespace) -> int:
    """Run `mthp doctor` and return its exit code: 0, whatever is found."""
    checkup = _of_target(args) if targets(args) else _of_host(args)
    if args.json:
        from mthp.report.doctor import checkup_document

        print_json(checkup_document(checkup))
    else:
        from rich.console import Console

        from mthp.report.doctor import render_checkup

        render_checkup(checkup, Console())
    return 0


def _of_target(args: argparse.Namespace) -> Checkup:
    image = load_target(args)
    if isinstance(image.data, Snapshot) and "enabled" not in image.data.sysfs:
        raise UsageError(f"{image.name}: it has no settings of transparent_hugepage")
    settings = settle_settings(args, captured_settings(image))
    profile, reason = settle_profile(args.profile, image)
    cmdline = _cmdline(args, live=args.target is None)
    case = examined_image(settings, profile, image.data, cmdline)
    return _checkup(image.name, image.source, reason, case)


def _of_host(args: argparse.Namespace) -> Checkup:
    geometry, facts = host_geometry(), host_facts()
    if "enabled" not in facts["sysfs"]:
        raise CaptureError(f"{THP} cannot be read here", LACKING)
    try:
        captured = Settings.from_sysfs(facts["sysfs"], geometry)
    except SettingsError as error:
        raise UsageError(f"this host: {error}") from None
    settings, kernel = settle_settings(args, captured), str(facts["kernel"])
    profile, reason = profile_for_release(kernel), f"that of the running kernel {kernel}"
    if args.profile is not None:
        profile, reason = PROFILES[args.profile], "as asked"
    case = examined_host(settings, profile, facts, _cmdline(args, live=True))
    return _checkup("this host", "", reason, case)


def _cmdline(args: argparse.Namespace, *, live: bool) -> str | None:
    """The boot's command line, or what of it is asked about."""
    if args.thp_anon is not None:
        return f'thp_anon="{args.thp_anon}"'
    return text("/proc/cmdline") if live else None


def _checkup(target: str, source: str, reason: str, case: Examined) -> Checkup:
    findings, looked_at, left_out = examine(case)
    basis = Basis(target, source, case.profile.name, reason)
    return Checkup(basis, case.settings, findings, looked_at, left_out)
