# SPDX-License-Identifier: GPL-2.0-or-later
"""Asking before something large or lasting is done."""

from __future__ import annotations

import sys


def asked(question: str) -> bool:
    """Ask on the terminal: whether the user said yes. Without a terminal the answer is no."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
