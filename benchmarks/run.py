# SPDX-License-Identifier: GPL-2.0-or-later
"""Run every bench_*.py here, or those named: `python benchmarks/run.py [engine ...]`.

A bench that cannot run on this host (not root, a tool or a kernel feature missing) is skipped with
its message and the others go on; exit code 1 only if one fails for another reason.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
LACKS = (ImportError, PermissionError, FileNotFoundError, NotImplementedError)


def machine() -> str:
    """The machine and the interpreter, for the top of a table."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cpus = len(os.sched_getaffinity(0))
    return f"{model}, {cpus} CPUs, Linux {platform.release()}, Python {platform.python_version()}"


def run(name: str) -> bool:
    """One bench, without the arguments that named it; False if it failed."""
    print(f"## {name}\n", flush=True)
    sys.argv[:] = [name]
    try:
        importlib.import_module(f"benchmarks.{name}").main()
    except LACKS as error:
        print(f"skipped: {error}\n")
    except Exception:
        traceback.print_exc()
        return False
    return True


def main(names: list[str]) -> int:
    """Run those named, or all; the exit code."""
    sys.path[:0] = [str(HERE.parent)]
    found = sorted(path.stem for path in HERE.glob("bench_*.py"))
    wanted = [f"bench_{name.removeprefix('bench_')}" for name in names] or found
    unknown = sorted(set(wanted) - set(found))
    if unknown:
        print(f"no such bench: {', '.join(unknown)} (have: {', '.join(found)})", file=sys.stderr)
        return 2
    print(f"{machine()}\n")
    failed = [name for name in wanted if not run(name)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
