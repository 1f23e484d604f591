# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab predict: a real program in a guest, predicted, and compared with real khugepaged."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mthp.cli.options import (
    DIFFER,
    UsageError,
    Verbs,
    add_assume_young,
    add_number,
    add_output,
    add_settings,
    given_numbers,
    print_json,
    show,
    whole,
)
from mthp.lab.errors import FAILED, LabError
from mthp.report.ktap import ktap_lines
from mthp.words.files import one_line, replace_text, scratch
from mthp.words.streams import say

if TYPE_CHECKING:
    from mthp.compare.records import Forecast, NoForecast
    from mthp.lab.kernels.kernels import CachedKernel
    from mthp.lab.session.recipes import Recipe
    from mthp.lab.session.workload import Command
    from mthp.words.settings import Settings

NONE_VALUES = [0, 511]
MOST_SECONDS = 86400


def add_predict(subverbs: Verbs) -> None:
    """Add `mthp lab predict` and its options to the parser."""
    parser = subverbs.add_parser(
        "predict",
        help="predict what khugepaged makes of a real program, and let it show",
        description="Start a program in a guest, unmodified and under load, stop it, and capture "
        "it (mthp snap). Predict from that capture, let the guest's khugepaged work to its fixed "
        "point, capture again, and compare PTE by PTE. Exit code 3 where fewer than 99.9 % of the "
        "anonymous PTEs, or 99.5 % of those that changed, are predicted right; with --plan also where "
        "a size has other folios than planned, or the memory added is more than 1 % off.",
    )
    parser.add_argument(
        "--recipe",
        action="append",
        metavar="NAME",
        help="redis, redis-bloat, memcached, postgres or python: the program with its load; may be repeated; "
        "their programs are this host's, or Debian's packages fetched into the cache",
    )
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="or any command")
    _add_command(parser)
    parser.add_argument("--release", metavar="R", help="which kernel of the cache (the newest)")
    add_number(parser, "memory", "the guest's, in MiB (3072)", 512, 1 << 20, 3072)
    _add_what_is_done(parser)
    parser.add_argument("--keep", metavar="DIR", help="keep the snapshots in this folder")
    add_assume_young(parser)
    add_output(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_settings(parser, lambda text: [whole()(each.strip()) for each in text.split(",")])
    group = parser.add_argument_group("defaults of the settings here")
    group.description = (
        "every size always; max-ptes-none 0,511: each of a list gets a guest of its own"
    )
    parser.set_defaults(run=run_predict)


def _add_command(parser: argparse.ArgumentParser) -> None:
    """Add what goes with a command of one's own."""
    group = parser.add_argument_group("of a command")
    group.add_argument(
        "--load",
        action="append",
        metavar="CMD",
        help="run beside it; the first one "
        "is repeated until it succeeds, for the program may not be up yet",
    )
    ready = "seconds within which the first --load must have succeeded (120)"
    add_number(group, "ready", ready, 1, MOST_SECONDS, 120)
    add_number(group, "settle", "seconds from then until it is stopped (5)", 0, MOST_SECONDS, 5)
    group.add_argument(
        "--with",
        action="append",
        dest="extra",
        metavar="PATH",
        help="a file, a folder or a program to take along; files that the commands name come unasked",
    )
    group.add_argument(
        "--then",
        action="append",
        metavar="CMD",
        help="when it was captured: let it go on, run this, and capture it again; may be repeated",
    )
    group.add_argument("--user", metavar="NAME", help="run it as this user of this host (root)")


def _add_what_is_done(parser: argparse.ArgumentParser) -> None:
    """Add what is done in the guest, and shown of it, beyond the comparison PTE by PTE."""
    parser.add_argument(
        "--under",
        action="append",
        metavar="SETTINGS",
        help="the settings of one guest, as options of mthp plan: '--enabled 64kB=always --max-ptes-none 0'; "
        "over the kernel's defaults with no size enabled; may be repeated",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="let khugepaged sleep and scan at its own pace, and hold what mthp plan says of the capture "
        "against it: folios of each size, memory added, and the time of the last collapse",
    )
    parser.add_argument(
        "--shrink",
        action="store_true",
        help="then have the kernel call its shrinkers, which split huge pages that are underused "
        "(shrink_underused is 1), and hold that against what is predicted, too",
    )
    parser.add_argument(
        "--svg",
        metavar="FILE",
        help="write a picture of the memory in each phase (--then, or a recipe with phases) or with --shrink",
    )


def run_predict(args: argparse.Namespace) -> int:
    """Run `mthp lab predict` and return its exit code."""
    from mthp.compare.records import Forecast
    from mthp.lab.kernels.kernels import find
    from mthp.report.forecast import good, no_forecast_lines

    recipes = _recipes(args)
    _check_svg(args, recipes)
    settings = _settings(args)
    kernel = find(args.release)
    found: list[Forecast] = []
    failed: list[NoForecast] = []
    with _folder(args) as folder:
        try:
            for recipe in recipes:
                for each in _forecasts(args, recipe, settings, kernel, folder):
                    if isinstance(each, Forecast):
                        found.append(each)
                    else:
                        failed.append(each)
                        for line in no_forecast_lines(each):
                            say(f"mthp lab predict: {line}")
        finally:
            if found or failed:
                _print(args, found, failed)
    if failed:
        return failed[0].code
    return 0 if all(map(good, found)) else DIFFER


def _check_svg(args: argparse.Namespace, recipes: Sequence[Recipe]) -> None:
    """UsageError where there would be nothing to draw, or nowhere to put it."""
    if args.svg is None:
        return
    if not args.shrink and not any(recipe.phases for recipe in recipes):
        raise UsageError("--svg goes with --shrink, --then, or a recipe with phases (redis-bloat)")
    folder = os.path.dirname(os.path.abspath(args.svg))
    if not os.path.isdir(folder):
        raise UsageError(f"--svg {args.svg}: no folder {folder}")


def _print(
    args: argparse.Namespace, found: Sequence[Forecast], failed: Sequence[NoForecast]
) -> None:
    from mthp.report.forecast import forecast_document, forecast_tests, render_forecasts
    from mthp.report.phases import phases_svg

    if args.svg is not None and any(each.memory is not None for each in found):
        replace_text(args.svg, phases_svg(found))
    if args.json:
        print_json(forecast_document(found, failed))
    elif args.ktap:
        show(*ktap_lines(forecast_tests(found, failed)))
    elif found:
        from rich.console import Console

        render_forecasts(found, Console())


def _recipes(args: argparse.Namespace) -> list[Recipe]:
    from mthp.lab.session.recipes import RECIPES, Phase, Recipe

    if bool(args.recipe) == bool(args.command):
        raise UsageError("give --recipe NAME, or -- COMMAND")
    if args.recipe:
        if args.load or args.then or args.extra or args.user:
            raise UsageError("--load, --then, --with and --user go with a command of your own")
        for name in args.recipe:
            if name not in RECIPES:
                raise UsageError(f"--recipe: no {name!r} (there are {', '.join(RECIPES)})")
        return [RECIPES[name] for name in dict.fromkeys(args.recipe)]
    loads = [_command(args, _words("load", text)) for text in args.load or ()]
    return [
        Recipe(
            name=Path(args.command[0]).name,
            start=_command(args, args.command),
            ready=loads[0] if loads else None,
            load=tuple(loads[1:]),
            seconds=float(args.settle),
            ready_seconds=float(args.ready),
            first="first" if args.then else "",
            phases=tuple(
                Phase(text, (_command(args, _words("then", text)),), float(args.settle))
                for text in args.then or ()
            ),
        )
    ]


def _command(args: argparse.Namespace, argv: Sequence[str]) -> Command:
    """A command as it would be run here: in this folder, and in it a program that is named with one."""
    import pwd

    from mthp.lab.session.workload import ROOT, Command, User

    user = ROOT
    if args.user is not None:
        try:
            known = pwd.getpwnam(args.user)
        except KeyError:
            raise UsageError(f"--user: nobody is called {args.user} here") from None
        user = User(known.pw_uid, known.pw_gid)
    name = os.path.join(os.getcwd(), argv[0].removeprefix("./")) if "/" in argv[0] else argv[0]
    return Command((name, *argv[1:]), user, os.getcwd())


def _words(option: str, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--{option}: {text!r}: {error}") from None
    if not words:
        raise UsageError(
            f"--{option}: {'nothing in it' if option == 'under' else 'an empty command'}"
        )
    return words


class _Under(argparse.ArgumentParser):
    """The parser of one --under."""

    def error(self, message: str) -> NoReturn:
        """Complain about it as about other input."""
        raise UsageError(f"--under: {one_line(message)}")


def _settings(args: argparse.Namespace) -> list[Settings]:
    """The settings of each guest: the command line's over every size enabled, or those of each --under."""
    from mthp.cli.target import settle_settings
    from mthp.words.settings import Enabled, Settings

    base = Settings(shrink_underused=args.shrink)
    if args.under:
        given = (args.enabled, args.thp_anon, args.defrag, *given_numbers(args).values())
        if any(each is not None for each in given):
            raise UsageError("--under has all settings of a guest: give none beside it")
        parser = _Under(add_help=False, allow_abbrev=False)
        add_settings(parser)
        base = base.replace(sizes=dict.fromkeys(base.sizes, Enabled.NEVER))
        under = [parser.parse_args(_words("under", text)) for text in dict.fromkeys(args.under)]
        return list(dict.fromkeys(settle_settings(each, base) for each in under))
    base = base.replace(sizes=dict.fromkeys(base.sizes, Enabled.ALWAYS))
    values = NONE_VALUES if args.max_ptes_none is None else args.max_ptes_none
    found = []
    for value in dict.fromkeys(values):
        each = argparse.Namespace(**{**vars(args), "max_ptes_none": value})
        found.append(settle_settings(each, base))
    return found


@contextlib.contextmanager
def _folder(args: argparse.Namespace) -> Iterator[Path]:
    if args.keep is None:
        with scratch() as folder:
            yield folder
        return
    folder = Path(args.keep)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--keep: {folder}: {error.strerror}") from None
    yield folder


def _forecasts(
    args: argparse.Namespace,
    recipe: Recipe,
    settings: list[Settings],
    kernel: CachedKernel,
    folder: Path,
) -> Iterator[Forecast | NoForecast]:
    """Make one forecast for each of the settings, each from a guest of its own."""
    from mthp.compare.phases import forecasts
    from mthp.compare.records import NoForecast
    from mthp.lab.session.real_program import How, captures_around_khugepaged, provide
    from mthp.lab.session.workload import ProgramFailed
    from mthp.report.measured import setting_text
    from mthp.worlds.unseen import Young

    def progress(line: str) -> None:
        if not args.quiet:
            say(f"mthp lab predict: {line}")

    try:
        with provide(recipe, _extra(args), args.memory, progress) as provision:
            for number, each in enumerate(settings, 1):
                progress(f"{recipe.name}: {setting_text(each)}: booting {kernel.release}")
                last = f"under-{number}" if args.under else each.max_ptes_none
                place = folder / f"{recipe.name}-{last}"
                place.mkdir(exist_ok=True)
                try:
                    for pair in captures_around_khugepaged(
                        provision,
                        kernel,
                        each,
                        args.memory,
                        place,
                        progress,
                        How(args.plan, args.shrink),
                    ):
                        yield from forecasts(recipe.name, pair, each, Young(args.assume_young))
                except ProgramFailed as error:
                    yield NoForecast(recipe.name, each, str(error), error.code, error.output)
                except LabError as error:
                    yield NoForecast(recipe.name, each, str(error), error.code)
                except ValueError as error:
                    yield NoForecast(recipe.name, each, str(error), FAILED)
    except LabError as error:
        yield NoForecast(recipe.name, None, str(error), error.code)


def _extra(args: argparse.Namespace) -> list[str]:
    """What to take along: what --with says, and the files that words of the commands name."""
    words = [
        *args.command,
        *(word for text in (*(args.load or ()), *(args.then or ())) for word in shlex.split(text)),
    ]
    return [*(args.extra or ()), *filter(os.path.isfile, words)]
