# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a shell complete the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

FILES = frozenset({"FILE", "TARGET", "DIR", "A", "B"})
"""What metavars of files are called."""


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of its verbs and of theirs, each once."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from commands(below)


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that makes a shell complete the command line, and files where files are meant."""
    for command in commands(parser):
        for action in command._actions:
            if action.metavar in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))
