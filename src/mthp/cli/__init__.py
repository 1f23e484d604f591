# SPDX-License-Identifier: GPL-2.0-or-later
"""The command: parse, run, print. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from mthp import __version__
from mthp.cli.options import UsageError
from mthp.image.capture.proc import CaptureError
from mthp.lab.errors import LabError
from mthp.words.files import FileError, one_line
from mthp.words.processes import WorkerKilled
from mthp.words.streams import drop, ended_at_once, ended_in_order, failure, occupy, say

EXIT_CODES = (
    "exit codes: 0 fine, 1 failed, 2 usage or bad input, 3 prediction and kernel differ, "
    "4 a law is broken, 5 this host lacks something"
)


_OPTIONS, _LIFE, _LAB = "mthp.cli.options", "mthp.cli.options_life", "mthp.cli.lab"
VERBS = {
    "collapse": _OPTIONS, "plan": _OPTIONS, "sweep": _OPTIONS, "doctor": _OPTIONS, "calibrate": _OPTIONS,
    "snap": _OPTIONS, "record": _OPTIONS, "life": _LIFE, "diff": _OPTIONS, "check": _OPTIONS,
    "replay": _OPTIONS, "lab": _LAB,
}  # fmt: skip
"""The verbs, and the module of each that has its options."""


class OneLine(argparse.ArgumentParser):
    """A parser that complains in one line; the usage is what --help is for."""

    def error(self, message: str) -> NoReturn:
        """Complain, and end with exit code 2."""
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


class PrintCompletion(argparse.Action):
    """The option --print-completion: like --version it does its work whatever else is there, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object) -> None:
        """Print the script for the shell and end."""
        from mthp.cli.completion import completion

        sys.stdout.write(f"{completion(build_parser(), shell)}\n")
        parser.exit()


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, or what one verb needs of it: to build all takes longer than some verbs."""
    parser = OneLine(
        prog="mthp",
        description="khugepaged, executable: what Linux collapses into huge pages in a real "
        "process's memory, to which order, at what cost, and why the rest does not.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"mthp {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=("bash", "zsh", "fish", "tcsh"),
        help="print what makes the shell complete verbs and options",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS if verb is None else (verb,):
        getattr(import_module(VERBS[name]), f"add_{name}")(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Bad input is one line on stderr."""
    # Modules and worlds are many objects that live long: looking for cycles among them took a fifth of a run.
    gc.set_threshold(50_000, 20, 50)
    occupy()
    name = "mthp"
    try:
        with ended_in_order():
            try:
                words = sys.argv[1:] if argv is None else argv
                verb = words[0] if words and words[0] in VERBS else None
                args = build_parser(verb).parse_args(words)
            except SystemExit as stop:
                code = int(stop.code or 0)
            else:
                name = f"mthp {args.verb}"
                code = _run(args)
            sys.stdout.flush()
        return code
    except (UsageError, CaptureError, LabError) as error:
        what, code = str(error), error.code
    except FileError as error:
        what, code = str(error), 2
    except WorkerKilled as error:
        what, code = str(error), 1
    except KeyboardInterrupt:
        what, code = "interrupted", 1
    except BrokenPipeError:
        drop(1)
        return 1
    except MemoryError:
        what, code = "out of memory", 1
    except OSError as error:
        drop(1)
        what, code = failure(error), 1
    say(f"{name}: {what}")
    return code


def _run(args: argparse.Namespace) -> int:
    """Call what the verb's parser has set as run: a function that returns an exit code, or its
    name.

    Named where its module is heavy, and is only to be imported for this verb.
    """
    run = args.run
    if isinstance(run, str):
        module, _, name = run.partition(":")
        with ended_at_once():
            run = getattr(import_module(module), name)
    code: int = run(args)
    return code
