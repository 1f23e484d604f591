# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of each verb. Nothing heavy is imported: --help must answer at once."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mthp.image.capture.options import add_arguments, add_processes
from mthp.image.capture.series import duration
from mthp.image.record.options import add_arguments as add_record_arguments
from mthp.words.files import FileError, shown
from mthp.words.profiles import PROFILES
from mthp.words.settings import NUMBERS
from mthp.words.units import parse_size, parse_whole

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[Any]
else:
    Verbs = Any

MOST_PASSES = 1_000_000
DIFFER = 3
"""Exit code: the engine (or a prediction) and the kernel differ."""


def print_json(document: object) -> None:
    """Print one JSON document on stdout."""
    json.dump(document, sys.stdout, indent=1)
    print()


def add_output(group: argparse._ActionsContainer) -> None:
    """Add --json and --ktap: what machines read, on stdout."""
    either = group.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="one JSON document on stdout")
    either.add_argument("--ktap", action="store_true", help="KTAP on stdout, as kernel CI reads it")


def show(*lines: str) -> None:
    """Print lines on stdout, at once; what they have of a stranger's text is made safe."""
    print("\n".join(map(shown, lines)), flush=True)


class UsageError(Exception):
    """Something the user can mend; code is the exit code (2, or 5 where the host lacks a thing)."""

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.code = code


def whole(least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """Make what reads a whole number within least..most, for argparse."""

    def read(text: str) -> int:
        try:
            return parse_whole(text, least, most)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def add_number(
    group: argparse._ActionsContainer,
    name: str,
    what: str,
    least: int = 0,
    most: int | None = None,
    default: int | None = None,
) -> None:
    """Add an option that is a whole number within least..most."""
    read = whole(least, most)
    group.add_argument(f"--{name}", type=read, default=default, metavar="N", help=what)


def address(text: str) -> int:
    """Read an address as people write it, hexadecimal with or without 0x, for argparse."""
    if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]{1,16}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a hexadecimal address")
    return int(text, 16)


def add_settings(
    parser: argparse.ArgumentParser, max_ptes_none: Callable[[str], Any] | None = None
) -> None:
    """Add the knobs of /sys/kernel/mm/transparent_hugepage, under their names there.

    max_ptes_none: how that knob is read, where it is not a whole number.
    """
    group = parser.add_argument_group(
        "settings", "default: those captured with the target, else the kernel's"
    )
    group.add_argument(
        "--enabled",
        action="append",
        metavar="SIZE=MODE,...",
        help="per-size switches, e.g. 64kB=always,2048kB=never; a bare mode is the global switch; "
        "'all' is every size",
    )
    group.add_argument(
        "--thp-anon", metavar="TEXT", help="the boot parameter thp_anon=, e.g. 16K-64K:always"
    )
    for knob, text in NUMBERS.items():
        name = knob.replace("_", "-")
        if knob == "max_ptes_none" and max_ptes_none is not None:
            group.add_argument(f"--{name}", type=max_ptes_none, metavar="N,...", help=text)
        else:
            add_number(group, name, text)
    group.add_argument("--defrag", choices=("0", "1"), help="khugepaged may reclaim and compact")


def given_numbers(args: argparse.Namespace) -> dict[str, int]:
    """The numbers of khugepaged that the command line gives."""
    return {knob: value for knob in NUMBERS if (value := getattr(args, knob)) is not None}


def add_assume_young(group: argparse._ActionsContainer) -> None:
    """Add --assume-young, for captures."""
    group.add_argument(
        "--assume-young",
        choices=("captured", "all", "none"),
        default="captured",
        help="which pages count as used lately (a capture cannot see the accessed bit)",
    )


def size(text: str) -> int:
    """Read a size such as 64K, 8G or 4096, for argparse."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_named_target(
    parser: argparse.ArgumentParser, title: str = "target"
) -> argparse._ArgumentGroup:
    """Add the options that name what to run on, in a group."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="a snapshot (mthp snap), a scenario FILE.jsonl#ID, or a dump of a machine (vmcore), of which "
        "--pid or --all says which processes; without, they are listed",
    )
    add_processes(group)
    return group


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to run on, and what to take it for."""
    group = add_named_target(parser)
    add_assume_young(group)
    group.add_argument(
        "--registered",
        choices=("yes", "no"),
        help="whether khugepaged has the processes on its list (default: as the capture says; where it "
        "does not, yes, but for those that were there before a size was enabled)",
    )
    group.add_argument(
        "--free-memory",
        type=size,
        metavar="BYTES",
        help="so much memory is free, in the largest blocks (default: what the capture says)",
    )


def percentage(text: str) -> float:
    """Read a share such as 2 or 2.5%, for argparse."""
    match = re.fullmatch(r"([0-9]{1,3}(\.[0-9]{1,6})?) ?%?", text)
    if match is None or float(match[1]) > 100:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a share of 0 to 100 %")
    return float(match[1])


def add_collapse(verbs: Verbs) -> None:
    """Add `mthp collapse` and its options to the parser."""
    parser = verbs.add_parser(
        "collapse",
        help="run khugepaged over a process, a snapshot or a scenario, and explain",
        description="Run khugepaged over a target until nothing changes any more, and say what "
        "collapses, to which order, at what cost, and why the rest does not. Nothing on this "
        "machine is changed: everything shown is predicted.",
    )
    parser.set_defaults(run="mthp.cli.collapse:run_collapse")
    add_target(parser)
    add_settings(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--profile", choices=PROFILES, help="which kernel's collapse")
    add_number(group, "passes", "full scans to run (default: to the fixed point)", 1, MOST_PASSES)
    group.add_argument(
        "--tlb", choices=("plain", "contpte"), default="plain", help="how translations are counted"
    )
    group.add_argument(
        "--madvise-collapse",
        nargs="?",
        const="",
        metavar="RANGE",
        help="not khugepaged: what madvise(MADV_COLLAPSE) would do, and return, on START-END or "
        "START+LENGTH (hexadecimal), or without a range on each anonymous mapping",
    )
    group.add_argument(
        "--reach",
        type=percentage,
        metavar="PERCENT",
        help="with --madvise-collapse: will so much of the memory be in huge pages afterwards?",
    )
    group.add_argument(
        "--no-changes", action="store_true", help="do not look for the least change of refusals"
    )
    group.add_argument(
        "--no-range",
        action="store_true",
        help="where a capture leaves open which pages were used, do not run both ends of the answer",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document")
    group.add_argument("--csv", action="store_true", help="a header, and a row a mapping (or call)")
    group.add_argument("--csv-processes", action="store_true", help="the same, a row a process")
    group.add_argument("--events", choices=("ftrace",), help="the trace, as the kernel prints it")
    group.add_argument(
        "--why", type=address, metavar="ADDR", help="everything about the window at ADDR"
    )
    group.add_argument(
        "--steps",
        type=address,
        metavar="ADDR",
        help="one collapse at ADDR, call by call, with the locks",
    )
    group.add_argument(
        "--conformance", metavar="FILE", help="run recorded scenarios and compare with the kernel"
    )
    group.add_argument(
        "--timeline", action="store_true", help="memory against time too, wakeup by wakeup"
    )
    group.add_argument("--verbose", action="store_true", help="show everything")
    group.add_argument("--quiet", action="store_true", help="no progress")


VARIED = ("defrag", "rate", "profile")


def axes(text: str) -> tuple[str, ...]:
    """Read what a sweep varies, for argparse."""
    found = VARIED if text == "all" else tuple(text.split(","))
    for each in found:
        if each not in VARIED:
            raise argparse.ArgumentTypeError(f"{each[:40]!r} is none of {', '.join(VARIED)}, all")
    return found


def add_plan(verbs: Verbs) -> None:
    """Add `mthp plan` and its options to the parser."""
    parser = verbs.add_parser(
        "plan",
        help="what other settings would make of a target, and what they cost",
        description="Plan what khugepaged makes of a target under the settings given, beside those that are "
        "set: folios, memory added, TLB entries, work and time. Nothing on this machine is changed.",
    )
    parser.set_defaults(run="mthp.cli.plan:run_plan")
    add_target(parser)
    add_settings(parser)
    parser.add_argument("--profile", choices=PROFILES, help="which kernel's collapse")
    parser.add_argument(
        "--costs",
        metavar="FILE",
        help="what time is reckoned by, as mthp calibrate --json has it (default: published figures)",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document")
    group.add_argument(
        "--timeline",
        action="store_true",
        help="memory against time too, as set and as given, for which the engine runs",
    )
    group.add_argument(
        "--html", metavar="FILE", help="write a page there that shows it to others, with a map"
    )
    group.add_argument(
        "--svg", metavar="FILE", help="write the memory before and after as a picture"
    )
    group.add_argument("--verbose", action="store_true", help="every mapping, every assumption")
    group.add_argument("--quiet", action="store_true", help="no progress")


def add_sweep(verbs: Verbs) -> None:
    """Add `mthp sweep` and its options to the parser."""
    parser = verbs.add_parser(
        "sweep",
        help="try every setting that people consider, and say which to take",
        description="Plan what khugepaged makes of a target under a grid of settings: which sizes are "
        "always, and max_ptes_none, and for --within pages_to_scan. Nothing on this machine is changed.",
    )
    parser.set_defaults(run="mthp.cli.sweep:run_sweep")
    add_target(parser)
    add_settings(parser)
    group = parser.add_argument_group("what is wanted")
    group.add_argument("--profile", choices=PROFILES, help="which kernel's collapse")
    group.add_argument(
        "--max-added",
        type=percentage,
        metavar="PERCENT",
        default=1.0,
        help="memory added at most, as a share of the anonymous memory (default: 1)",
    )
    group.add_argument(
        "--min-large",
        type=percentage,
        metavar="PERCENT",
        help="in folios of more than one page at least, as a share of it",
    )
    group.add_argument(
        "--min-reach",
        type=percentage,
        metavar="PERCENT",
        help="mapped by PMDs at least, as a share of it",
    )
    group.add_argument(
        "--within",
        type=duration,
        metavar="TIME",
        help="the last collapse at most so late, e.g. 10min; pages_to_scan is raised as far as it takes",
    )
    group.add_argument(
        "--vary",
        type=axes,
        metavar="WHAT",
        default=(),
        help="try these too: defrag, rate (pages_to_scan and scan_sleep), profile (other kernels); "
        "several with commas, or all",
    )
    add_number(group, "jobs", "processes, where it takes long (default: one a core)", 1, 1024)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document")
    group.add_argument(
        "--html", metavar="FILE", help="write a page there that explains it to others"
    )
    group.add_argument("--verbose", action="store_true", help="every setting, every assumption")
    group.add_argument("--quiet", action="store_true", help="no progress")
    _add_fleet(parser)


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    """Many snapshots in the place of a target."""
    group = parser.add_argument_group("many machines (pip install 'mthp[fleet]')")
    group.add_argument(
        "--fleet",
        metavar="DIR|GLOB",
        help="every snapshot (.npz) below DIR, or of that pattern, in the place of a target",
    )
    group.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="where the answers go, as Parquet; what is there already is not done again",
    )
    group.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster, in the place of local processes"
    )


def add_doctor(verbs: Verbs) -> None:
    """Add `mthp doctor` and its options to the parser."""
    parser = verbs.add_parser(
        "doctor",
        help="find settings that do not mean what they seem to",
        description="Look at the settings of this host, or of a target and its mappings, for those that "
        "do not mean what they seem to: what was read, what it means, and what to write instead. Nothing "
        "on this machine is changed. The exit code is 0 whatever is found.",
    )
    parser.set_defaults(
        run="mthp.cli.doctor:run_doctor", assume_young="captured", registered=None, free_memory=None
    )
    add_named_target(parser, "target (default: this host's settings alone)")
    add_settings(parser)
    parser.add_argument("--profile", choices=PROFILES, help="which kernel's collapse")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def rounds(text: str) -> int:
    """Read how often to measure, for argparse."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 4 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 4 to 10000")
    return int(text)


def add_calibrate(verbs: Verbs) -> None:
    """Add `mthp calibrate` and its options to the parser."""
    parser = verbs.add_parser(
        "calibrate",
        help="measure what collapses, faults and flushes cost on this host",
        description="Measure on 2 MiB of mthp's own memory what copying, faults, scans, TLB flushes and "
        "collapses (MADV_COLLAPSE) cost here, beside what was published. No setting is read or changed. "
        "Run it while the host is idle.",
    )
    parser.set_defaults(run="mthp.cli.calibrate:run_calibrate")
    parser.add_argument(
        "--rounds", type=rounds, default=64, metavar="N", help="measure each N times (default: 64)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document: a table of costs")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_check(verbs: Verbs) -> None:
    """Add `mthp check` and its options to the parser."""
    parser = verbs.add_parser(
        "check",
        help="explore what can run while a collapse runs, and find broken rules",
        description="Run the collapse against its rivals in every order of steps that can differ, "
        "in tiny worlds, and look at the laws after every step. Without options: the profile "
        "against each rival alone.",
    )
    parser.set_defaults(run="mthp.cli.check:run_check")
    group = parser.add_argument_group("what is explored")
    group.add_argument("--profile", choices=PROFILES, help="which kernel's collapse (default 7.3)")
    group.add_argument(
        "--world",
        metavar="NAME",
        help="pmd or window; then +second, +scan, … (--list; default: both)",
    )
    group.add_argument(
        "--rivals", metavar="A+B", help="who runs beside it, '-' for nobody (default: each alone)"
    )
    group.add_argument("--mutant", metavar="ID", help="take a rule away: A16, flush-window")
    group.add_argument(
        "--protocol", metavar="FILE", help="your own text of an engine module, e.g. of collapse.py"
    )
    group.add_argument("--all", action="store_true", help="every profile and every mutant")
    group.add_argument(
        "--pairs", action="store_true", help="then every pair of rivals (in the PMD world)"
    )
    group.add_argument(
        "--mutations",
        metavar="MODULE",
        choices=("collapse", "isolate", "install", "copy", "swapin"),
        help="take out or swap each call of a module in turn, and say what notices",
    )
    group.add_argument("--list", action="store_true", help="the rivals, the mutants and the laws")
    group.add_argument(
        "--self-check",
        action="store_true",
        help="draw executions, and see whether what an exhaustive search claims is so",
    )
    group = parser.add_argument_group("the litmus tests")
    group.add_argument(
        "--litmus", action="store_true", help="how stores are published, under each memory model"
    )
    group.add_argument(
        "--herd", action="store_true", help="ask herd7 too, under the kernel's model"
    )
    group.add_argument(
        "--memory-model", metavar="DIR", help="a kernel's tools/memory-model (default: the cache's)"
    )
    group.add_argument("--yes", action="store_true", help="fetch the memory model unasked")
    group = parser.add_argument_group("how far")
    add_number(group, "executions", "stop each world after N executions", 1)
    add_number(group, "sample", "draw N executions instead of exploring", 1)
    add_number(group, "seed", "of --sample and --self-check (0)")
    add_number(group, "seconds", "of --self-check: go on for so long (default: each once)", 1)
    add_number(group, "preemptions", "only executions with at most N, all")
    add_number(group, "steps", "cut each execution off after N steps", 1)
    add_number(group, "jobs", "processes (default: one a core)", 1)
    group.add_argument(
        "--explorer",
        choices=("reference", "compiled"),
        help="which one searches (default: the compiled one where it pays); both find the same",
    )
    group.add_argument(
        "--resume", metavar="FILE", help="keep what is known here, and go on from it (Ctrl-C stops)"
    )
    group = parser.add_argument_group("output")
    add_output(group)
    _add_drawing(group)
    group.add_argument("--quiet", action="store_true", help="no progress")


def _add_drawing(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """How a race is shown: the one that is replayed, or the first that is found."""
    group.add_argument("--full", action="store_true", help="draw the whole race, with every call")
    group.add_argument("--svg", metavar="FILE", help="write the race there as a picture")
    group.add_argument("--itf", metavar="FILE", help="write the race's every state there")


def add_replay(verbs: Verbs) -> None:
    """Add `mthp replay` and its options to the parser."""
    parser = verbs.add_parser(
        "replay",
        help="run one execution that `mthp check` printed",
        description="Run the one execution of a token again, and draw it.",
    )
    parser.set_defaults(run="mthp.cli.check:run_replay", ktap=False)
    parser.add_argument("token", metavar="TOKEN", help="as `mthp check` printed it")
    parser.add_argument("--protocol", metavar="FILE", help="as it was given to `mthp check`")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    _add_drawing(parser)


class WriteZipapp(argparse.Action):
    """The option --zipapp: like --version it does its work whatever else is there, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, file: Any, *__: object) -> None:
        """Write the file and end; exit code 2 where it cannot be written."""
        from mthp.image.zipped import write_zipapp

        try:
            write_zipapp(file, self.const)
        except FileError as error:
            parser.error(str(error))
        except OSError as error:
            parser.exit(1, f"{parser.prog}: {file}: {error.strerror}\n")
        parser.exit()


def add_snap(verbs: Verbs) -> None:
    """Add `mthp snap` and its options to the parser."""
    parser = verbs.add_parser(
        "snap",
        help="capture a process's page tables into a file",
        description="Capture the page tables of live processes, or of those in a dump of a machine, into a "
        "file that `mthp collapse` reads anywhere. Reads only.",
    )
    parser.set_defaults(run="mthp.cli.snap:run_snap")
    add_arguments(parser)
    parser.add_argument(
        "--vmcore",
        metavar="FILE",
        help="the processes are those of a dump of a machine (ELF core, or as makedumpfile packs it): its "
        "kernel's memory is read as with --deep",
    )
    parser.add_argument(
        "--zipapp",
        action=WriteZipapp,
        const="image/capture",
        metavar="FILE",
        help="write the program that does this on other hosts (mthp-snap.pyz), and nothing else",
    )


def add_record(verbs: Verbs) -> None:
    """Add `mthp record` and its options to the parser."""
    parser = verbs.add_parser(
        "record",
        help="run a program without huge pages, and record its life in memory",
        description="Run a command with huge pages off for it and its children alone, and record its page "
        "faults and memory system calls into a file. Needs root and tracefs; changes no setting.",
    )
    parser.set_defaults(run="mthp.image.record.command:run")
    add_record_arguments(parser)
    parser.add_argument(
        "--zipapp",
        action=WriteZipapp,
        const="image/record",
        metavar="FILE",
        help="write the program that does this on other hosts (mthp-record.pyz), and nothing else",
    )


def add_diff(verbs: Verbs) -> None:
    """Add `mthp diff` and its options to the parser."""
    parser = verbs.add_parser(
        "diff",
        help="where two kernels' collapses differ, or what changed between two captures",
        description="Of two profiles: the points where they differ, with reasons; with a target, what "
        "each would do differently there. Of two captures (mthp snap): what changed from the first to "
        "the second, by process, page and mapping, and which settings.",
    )
    parser.set_defaults(run="mthp.cli.diff:run_diff")
    parser.add_argument("a", metavar="A", help=f"a profile ({', '.join(PROFILES)}), or a capture")
    parser.add_argument("b", metavar="B", help="another profile, or a later capture")
    add_target(parser)
    add_settings(parser)
    add_number(parser, "passes", "full scans to run", 1, MOST_PASSES)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--verbose", action="store_true", help="of captures: show everything")
    parser.add_argument("--quiet", action="store_true", help="no progress")
