# SPDX-License-Identifier: GPL-2.0-or-later
"""From the command line to a world: load the target, settle profile and settings."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mthp.cli.options import NUMBERS, UsageError
from mthp.image import capture
from mthp.image.scenario import Scenario, ScenarioError, load_one
from mthp.image.snapshot import Snapshot, SnapshotError, load
from mthp.words.profiles import DEFAULT, PROFILES, Profile, profile_for_release
from mthp.words.settings import Settings, SettingsError, parse_enabled_flag, parse_thp_anon

MOST = 10**20
"""No limit: the kernel's ranges are checked by the settings."""
MOST_PASSES = 1_000_000
SCENARIO_SUFFIXES = (".jsonl", ".jsonl.xz", ".jsonl.gz")


@dataclass(frozen=True)
class LoadedTarget:
    """A target that was read: a snapshot or a scenario, and how to name it."""

    image: Snapshot | Scenario
    name: str
    source: str

    @property
    def release(self) -> str:
        return self.image.kernel

    def settings(self) -> Settings:
        """The settings captured with it."""
        if isinstance(self.image, Scenario):
            return self.image.settings
        try:
            return Settings.from_sysfs(self.image.sysfs, self.image.geometry)
        except SettingsError as error:
            raise UsageError(f"{self.name}: captured settings: {error}") from None


def load_target(args: argparse.Namespace) -> LoadedTarget:
    """Read what the command line names; UsageError where that cannot be done."""
    if (args.pid is None) == (args.target is None):
        raise UsageError(
            "give a target: --pid N, a snapshot, or FILE.jsonl#ID"
            if args.pid is None
            else "give --pid or a file, not both"
        )
    if args.pid is not None:
        return _capture_pid(args.pid)
    name: str = args.target
    try:
        if name.partition("#")[0].endswith(SCENARIO_SUFFIXES):
            scenario = load_one(name)
            if args.assume_young != "captured":
                raise UsageError("--assume-young is for captures: a scenario says what is young")
            return LoadedTarget(
                scenario, name, f"scenario recorded on {scenario.kernel or 'no kernel'}"
            )
        snapshot = load(name)
    except (ScenarioError, SnapshotError) as error:
        raise UsageError(str(error)) from None
    processes = ", ".join(f"{p.name} ({p.pid})" for p in snapshot.processes[:3])
    more = f" and {len(snapshot.processes) - 3} more" if len(snapshot.processes) > 3 else ""
    return LoadedTarget(snapshot, name, f"snapshot of {processes}{more}, kernel {snapshot.kernel}")


def _capture_pid(pid: str) -> LoadedTarget:
    number = str(os.getpid()) if pid == "self" else pid
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise UsageError(f"--pid: {pid!r} is neither a process's number nor 'self'")
    handle, path = tempfile.mkstemp(suffix=".npz", prefix="mthp-")
    os.close(handle)
    try:
        code = capture.main(["--pid", number, "-o", path, "--quiet"], prog="mthp collapse")
        if code:
            raise SystemExit(code)
        snapshot = load(path)
    except SnapshotError as error:
        raise UsageError(str(error), 1) from None
    finally:
        Path(path).unlink(missing_ok=True)
    name = snapshot.processes[0].name if snapshot.processes else "?"
    return LoadedTarget(
        snapshot, f"pid {number} ({name})", f"captured live, kernel {snapshot.kernel}"
    )


def settle_profile(name: str | None, loaded: LoadedTarget) -> tuple[Profile, str]:
    """The profile, and why it was chosen."""
    if name is not None:
        return PROFILES[name], "as asked"
    if not loaded.release:
        return DEFAULT, "the default: the target names no kernel"
    return profile_for_release(loaded.release), f"that of the captured kernel {loaded.release}"


def settle_settings(args: argparse.Namespace, base: Settings) -> Settings:
    """The captured settings with the command line's over them; UsageError out of range."""
    try:
        settings = base
        if args.thp_anon is not None:
            sizes = parse_thp_anon(args.thp_anon, settings.geometry)
            settings = settings.replace(sizes=sizes)
        for flag in args.enabled or ():
            settings = settings.with_enabled(parse_enabled_flag(flag))
        for name, _ in NUMBERS:
            text = getattr(args, name.replace("-", "_"))
            if text is not None:
                settings = settings.replace(**{name.replace("-", "_"): whole(name, text)})
        if args.defrag is not None:
            settings = settings.replace(defrag=args.defrag == "1")
    except SettingsError as error:
        raise UsageError(str(error)) from None
    return settings


def whole(name: str, text: str, least: int = 0, most: int = MOST) -> int:
    """A whole number of an option; UsageError otherwise."""
    if text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    limits = f"from {least} up" if most == MOST else f"from {least} to {most}"
    raise UsageError(f"--{name}: {text!r} is not a whole number {limits}")


def passes_of(args: argparse.Namespace) -> int | None:
    """--passes, None for the fixed point."""
    return None if args.passes is None else whole("passes", args.passes, 1, MOST_PASSES)


def address_of(name: str, text: str) -> int:
    """An address as people write it: hexadecimal with or without 0x."""
    if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]+", text):
        raise UsageError(f"--{name}: {text!r} is not a hexadecimal address")
    return int(text, 16)
