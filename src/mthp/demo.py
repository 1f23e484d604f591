# SPDX-License-Identifier: GPL-2.0-or-later
"""make run: the main job on this very process, and on a bundled snapshot of a real server."""

from __future__ import annotations

import sys
from importlib.resources import as_file, files

from mthp.cli import main

SETTINGS = ["--profile", "7.3", "--enabled", "all=always,always", "--max-ptes-none", "0"]


def demo() -> int:
    """Do both runs, and return the worse exit code."""
    print("== this Python process, live: mthp collapse --pid self", *SETTINGS, flush=True)
    live = main(["collapse", "--pid", "self", *SETTINGS])
    with as_file(files("mthp") / "data" / "redis.npz") as path:
        print("\n== a Redis server, captured: mthp collapse redis.npz", *SETTINGS, flush=True)
        captured = main(["collapse", str(path), *SETTINGS])
    return max(live, captured)


if __name__ == "__main__":
    sys.exit(demo())
