# SPDX-License-Identifier: GPL-2.0-or-later
"""From the command line to a world: load the target, settle profile and settings."""

from __future__ import annotations

import argparse
from dataclasses import replace

from mthp.cli.options import UsageError, given_numbers, show
from mthp.image.snapshot import Snapshot
from mthp.image.vmcore.dump import is_dump
from mthp.predict.image import Image, capture, load, of_dump, reconfigured
from mthp.words.profiles import PROFILES, Profile
from mthp.words.settings import Settings, SettingsError
from mthp.words.units import human_bytes
from mthp.worlds.unseen import Assumed, Young

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc: malloc.h."""
LARGE_ARRAY, FREE_AT_ONCE = 1 << 20, 1 << 23


def give_back_large_arrays() -> None:
    """Have the C library give the memory of each large array back when it is freed. Else it comes to keep
    those of up to 32 MiB, and of what lies between such as stay a fifth of a run's memory was made.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_ARRAY)
        mallopt(M_TRIM_THRESHOLD, FREE_AT_ONCE)


def targets(args: argparse.Namespace) -> int:
    """How many ways the command line says what to run on."""
    named = (args.target, args.pid, args.cgroup, args.all or None)
    return sum(value is not None for value in named)


def load_target(args: argparse.Namespace) -> Image:
    """Read the target of the command line; UsageError, FileError or CaptureError if it cannot
    be."""
    if args.target is not None and is_dump(args.target):
        return _of_dump(args)
    if targets(args) != 1:
        raise UsageError(
            "give one of --pid, --cgroup, --all and a file"
            if targets(args)
            else "give a target: --pid N, --cgroup PATH, --all, a snapshot, or FILE.jsonl#ID"
        )
    give_back_large_arrays()
    if args.target is None:
        from mthp.image.capture.command import hidden_of, pids_asked_for

        image = capture(*pids_asked_for(args), hidden=hidden_of(args))
    else:
        image = load(args.target)
    if isinstance(image.data, Snapshot):
        return replace(image, data=replace(image.data, free_memory=args.free_memory))
    if args.assume_young != Young.CAPTURED:
        raise UsageError("--assume-young is for captures: a scenario says what is young")
    if args.registered is not None:
        raise UsageError("--registered is for captures: what a scenario states is registered")
    if args.free_memory is not None:
        raise UsageError("--free-memory is for captures: a scenario says what is free")
    return image


def _of_dump(args: argparse.Namespace) -> Image:
    """The processes that are named of a dump; UsageError where none is, after they were listed."""
    from mthp.image.vmcore.run import processes_of_dump

    if args.cgroup is not None or (args.all and args.pid):
        raise UsageError("of a dump, give --pid N (which may be repeated) or --all")
    if not args.all and not args.pid:
        release, found = processes_of_dump(args.target)
        show(f"kernel {release}, {len(found)} processes with memory of their own", "")
        show(f"{'pid':>8}  {'anonymous':>10}  process")
        for task, size in found:
            show(f"{task.pid:>8}  {human_bytes(size):>10}  {task.name}")
        raise UsageError(f"{args.target} is a dump: say which process with --pid N, or --all")
    give_back_large_arrays()
    image = of_dump(args.target, *([] if args.all else args.pid))
    assert isinstance(image.data, Snapshot)
    return replace(image, data=replace(image.data, free_memory=args.free_memory))


def settle_assumed(args: argparse.Namespace) -> Assumed:
    """What the command line says of that which a capture leaves open."""
    given = getattr(args, "registered", None)
    young = Young(getattr(args, "assume_young", Young.CAPTURED))
    return Assumed(young, None if given is None else given == "yes")


def captured_settings(image: Image) -> Settings:
    """The settings captured with an image; UsageError where the kernel would refuse them."""
    try:
        return image.settings
    except SettingsError as error:
        raise UsageError(f"{image.name}: captured settings: {error}") from None


def settle_profile(name: str | None, image: Image) -> tuple[Profile, str]:
    """The profile that a run uses, and why it was chosen."""
    if name is not None:
        return PROFILES[name], "as asked"
    if not image.kernel:
        return image.profile, "the default: the target names no kernel"
    return image.profile, f"that of the captured kernel {image.kernel}"


def settle_settings(args: argparse.Namespace, base: Settings) -> Settings:
    """The captured settings with the command line's over them; UsageError out of range."""
    defrag = None if args.defrag is None else args.defrag == "1"
    try:
        return reconfigured(base, args.enabled or (), args.thp_anon, defrag, given_numbers(args))
    except SettingsError as error:
        raise UsageError(str(error)) from None
