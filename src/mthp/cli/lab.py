# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab: a real kernel in a virtual machine. Heavy imports wait until a subverb needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mthp.cli.consent import asked
from mthp.cli.lab_fuzz import add_fuzz
from mthp.cli.lab_predict import add_predict
from mthp.cli.lab_run import add_record, add_run
from mthp.cli.lab_selftest import add_selftest
from mthp.cli.options import UsageError, Verbs, print_json, show
from mthp.lab.errors import HOST_LACKS, LabError

if TYPE_CHECKING:
    from mthp.lab.kernels.kernels import CachedKernel
    from mthp.lab.kernels.packages import Offer


def add_lab(verbs: Verbs) -> None:
    """Add `mthp lab` and its subverbs to the parser."""
    parser = verbs.add_parser(
        "lab",
        help="a real kernel in a virtual machine, beside the engine",
        description="Boot a real kernel in a virtual machine and compare its khugepaged with the "
        "engine.",
    )
    subverbs = parser.add_subparsers(dest="subverb", metavar="SUBVERB", required=True)
    _add_setup(subverbs)
    _add_list(subverbs)
    add_run(subverbs)
    add_record(subverbs)
    add_fuzz(subverbs)
    add_selftest(subverbs)
    add_predict(subverbs)


def _add_setup(subverbs: Verbs) -> None:
    parser = subverbs.add_parser(
        "setup",
        help="fetch a kernel and what runs it",
        description="Fetch a kernel from Debian's archive into the cache (MTHP_CACHE, else mthp in "
        "the user's cache folder), without installing it, or copy one from anywhere. Several "
        "kernels may stand side by side. Says beforehand what it fetches, and how much.",
    )
    parser.add_argument(
        "--release",
        action="append",
        metavar="R",
        help="a kernel's release or its beginning, the newest such is taken; may be given several "
        "times (default: 7.3)",
    )
    parser.add_argument("--kernel", metavar="PATH", help="a bzImage or vmlinux from anywhere")
    parser.add_argument(
        "--modules", metavar="DIR", help="modules of --kernel: its lib/modules/RELEASE"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="look for a newer one even if the cache has such a release",
    )
    parser.add_argument("--yes", action="store_true", help="install missing programs unasked")
    parser.add_argument(
        "--rehearse", action="store_true", help="only say what would be fetched and installed"
    )
    parser.set_defaults(run=_run_setup)


def _add_list(subverbs: Verbs) -> None:
    parser = subverbs.add_parser("list", help="the kernels in the cache")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=_run_list)


def _run_setup(args: argparse.Namespace) -> int:
    from mthp.lab.kernels.kernels import add_copy, check_release, release_of_image
    from mthp.lab.kernels.packages import DEFAULT_RELEASE

    if args.modules is not None and args.kernel is None:
        raise UsageError("--modules goes with --kernel")
    if args.kernel is not None and args.release:
        raise UsageError("--kernel names a kernel already: no --release")
    wanted = [check_release(text) for text in args.release or [DEFAULT_RELEASE]]
    if args.kernel is not None:
        release_of_image(Path(args.kernel))
    _provide_tools(args)
    if args.kernel is None:
        _fetch(args, list(dict.fromkeys(wanted)))
    elif args.rehearse:
        show(f"would copy kernel {release_of_image(Path(args.kernel))} from {args.kernel}")
    else:
        modules = None if args.modules is None else Path(args.modules)
        _ready(add_copy(Path(args.kernel), modules))
    return 0


def _provide_tools(args: argparse.Namespace) -> None:
    """Install the programs that the host lacks, if the user agrees and is root."""
    from mthp.lab.kernels.tools import install, missing, plan

    tools = missing()
    if not tools:
        return
    todo = plan(tools)
    show(f"missing on this host: {', '.join(tool.value for tool in tools)}")
    for line in (f"to install: {todo.command}", *todo.sizes):
        show(line)
    if args.rehearse:
        return
    may = os.geteuid() == 0 and (args.yes or asked("Install them now? [y/N] "))
    if not may:
        raise LabError(HOST_LACKS, f"missing programs; as root run: {todo.command}")
    sys.stdout.flush()
    install(todo)


def _fetch(args: argparse.Namespace, wanted: Sequence[str]) -> None:
    from mthp.lab.kernels.apt import debian_archive, system_sources
    from mthp.lab.kernels.kernels import check_room
    from mthp.lab.kernels.packages import DebianKernels

    absent = wanted if args.again else [name for name in wanted if not _in_cache(name)]
    if not absent:
        return
    debian = DebianKernels(debian_archive(system_sources()), partial(print, flush=True))
    chosen = debian.choose(absent)
    for offer in chosen:
        _announce(offer)
    if not args.rehearse:
        check_room(sum(offer.size + offer.installed_size for offer in chosen))
        for offer in chosen:
            _ready(debian.fetch(offer))


def _in_cache(name: str) -> bool:
    from mthp.lab.kernels.kernels import installed, matches

    for kernel in reversed(installed()):
        if matches(kernel.release, name):
            show(f"kernel {kernel.release} is in the cache already (--again looks for a newer)")
            return True
    return False


def _announce(offer: Offer) -> None:
    from mthp.words.units import human_bytes

    show(
        f"kernel {offer.release}, Debian {offer.suite}: {human_bytes(offer.size)} to fetch, "
        f"{human_bytes(offer.installed_size)} unpacked"
    )
    for package in offer.packages:
        show(f"  {package.name} {package.version}  {human_bytes(package.size)}")
    if not offer.complete:
        show("  its modules are no longer in the archive: no swap (zram) in that guest")


def _ready(kernel: CachedKernel) -> None:
    modules = "with modules" if kernel.modules else "without modules"
    show(f"kernel {kernel.release} is ready, {modules}: {kernel.image.parent}")


def _run_list(args: argparse.Namespace) -> int:
    from mthp.lab.kernels.kernels import SCHEMA_VERSION, installed
    from mthp.words.units import human_bytes

    kernels = installed()
    if args.json:
        print_json({"schema_version": SCHEMA_VERSION, "kernels": [_entry(k) for k in kernels]})
        return 0
    for kernel in kernels:
        modules = "modules" if kernel.modules else "no modules"
        size = human_bytes(kernel.image.stat().st_size)
        show(f"{kernel.release}  {size}, {modules}  {kernel.origin.source}")
    if not kernels:
        show("no kernel in the cache: mthp lab setup fetches one")
    return 0


def _entry(kernel: CachedKernel) -> dict[str, object]:
    return {
        "release": kernel.release,
        "image": str(kernel.image),
        "image_bytes": kernel.image.stat().st_size,
        "modules": str(kernel.modules) if kernel.modules else None,
        "source": kernel.origin.source,
        "packages": list(kernel.origin.packages),
        "sha256": kernel.sha256,
        "config": dict(kernel.config),
    }
