# SPDX-License-Identifier: GPL-2.0-or-later
"""From the command line to a world: load the target, settle profile and settings."""

from __future__ import annotations

import argparse
import re

from mthp.cli.options import NUMBERS, UsageError
from mthp.image.capture import CaptureError
from mthp.image.scenario import Scenario, ScenarioError
from mthp.image.snapshot import SnapshotError
from mthp.predict.image import Image, capture, load, reconfigured
from mthp.words.profiles import PROFILES, Profile
from mthp.words.settings import Settings, SettingsError
from mthp.worlds.from_snapshot import Young

MOST = 10**20
"""No limit: the kernel's ranges are checked by the settings."""
MOST_PASSES = 1_000_000


def load_target(args: argparse.Namespace) -> Image:
    """Read what the command line names; UsageError where that cannot be done."""
    if (args.pid is None) == (args.target is None):
        raise UsageError(
            "give a target: --pid N, a snapshot, or FILE.jsonl#ID"
            if args.pid is None
            else "give --pid or a file, not both"
        )
    try:
        if args.pid is not None:
            return capture(_pid(args.pid))
        image = load(args.target)
    except CaptureError as error:
        raise UsageError(str(error), error.code) from None
    except SnapshotError as error:
        raise UsageError(str(error), 1 if args.pid is not None else 2) from None
    except ScenarioError as error:
        raise UsageError(str(error)) from None
    if args.assume_young != Young.CAPTURED and isinstance(image.data, Scenario):
        raise UsageError("--assume-young is for captures: a scenario says what is young")
    return image


def _pid(text: str) -> int | None:
    if text == "self":
        return None
    if text.isascii() and text.isdecimal() and int(text):
        return int(text)
    raise UsageError(f"--pid: {text!r} is neither a process's number nor 'self'")


def captured_settings(image: Image) -> Settings:
    """The settings captured with an image; UsageError where the kernel would refuse them."""
    try:
        return image.settings
    except SettingsError as error:
        raise UsageError(f"{image.name}: captured settings: {error}") from None


def settle_profile(name: str | None, image: Image) -> tuple[Profile, str]:
    """The profile, and why it was chosen."""
    if name is not None:
        return PROFILES[name], "as asked"
    if not image.kernel:
        return image.profile, "the default: the target names no kernel"
    return image.profile, f"that of the captured kernel {image.kernel}"


def settle_settings(args: argparse.Namespace, base: Settings) -> Settings:
    """The captured settings with the command line's over them; UsageError out of range."""
    limits = {}
    for name, _ in NUMBERS:
        text = getattr(args, name.replace("-", "_"))
        if text is not None:
            limits[name.replace("-", "_")] = whole(name, text)
    defrag = None if args.defrag is None else args.defrag == "1"
    try:
        return reconfigured(base, args.enabled or (), args.thp_anon, defrag, limits)
    except SettingsError as error:
        raise UsageError(str(error)) from None


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
