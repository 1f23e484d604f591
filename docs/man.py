# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the man pages from the command's own parser, one a verb: python docs/man.py FOLDER"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mthp import __version__
from mthp.cli import EXIT_CODES, build_parser
from mthp.cli.completion import commands


def roff(text: str) -> str:
    """Text as man shows it: no backslash, hyphen or line's first character means anything."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^(?=[.'])", r"\\&", text)


def page(parser: argparse.ArgumentParser, names: list[str]) -> Iterator[str]:
    """The lines of one command's page. names: of all pages."""
    name = parser.prog.replace(" ", "-")
    parser.formatter_class = partial(argparse.HelpFormatter, width=72)
    description = parser.description or ""
    yield f'.TH {name.upper()} 1 "" "mthp {__version__}" "User Commands"'
    yield f".SH NAME\n{name} \\- {roff(description.partition('. ')[0].rstrip('.'))}"
    usage = parser.format_usage().removeprefix("usage: ")
    yield f".SH SYNOPSIS\n.nf\n{roff(usage.rstrip())}\n.fi"
    yield f".SH DESCRIPTION\n{roff(description)}"
    for group in parser._action_groups:
        yield from options(parser, group)
    yield f".SH EXIT STATUS\n{roff(EXIT_CODES.partition(': ')[2])}"
    others = [f".BR {roff(other)} (1)" for other in names if other != name]
    yield ".SH SEE ALSO\n" + "\n".join(others)


def options(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> Iterator[str]:
    """The lines of one group of options; none where all of them are hidden."""
    formatter = parser._get_formatter()
    shown = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
    if shown:
        yield f".SH {roff((group.title or '').upper())}"
        if group.description:
            yield roff(group.description)
    for action in shown:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action._choices_actions:
                yield f".TP\n.B {roff(verb.dest)}\n{roff(verb.help or '')}"
            continue
        yield f".TP\n.B {roff(formatter._format_action_invocation(action))}"
        yield roff(formatter._expand_help(action) if action.help else "")


def main(folder: Path) -> None:
    """Write every page."""
    folder.mkdir(parents=True, exist_ok=True)
    parsers = {each.prog.replace(" ", "-"): each for each in commands(build_parser())}
    for name, parser in parsers.items():
        lines = "\n".join(page(parser, list(parsers)))
        (folder / f"{name}.1").write_text(f"{lines}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
