# SPDX-License-Identifier: GPL-2.0-or-later
"""In the guest: one Python process that runs the host's jobs, since starting one for each is slow there.

Job N is the folder's N.json, complete once N.go is there. A job executes argv in /tmp (with uid and
a cgroup to join), or calls a function of this file with args. Its output goes to N.out; N.done says
`done` and its exit status at its end, or `started` and its pid where background is set.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time

PR_SET_THP_DISABLE = 41
PAUSE = 0.02
PRELOADED = ("mthp.image.capture.command", "register")


def forbid_huge_pages(on: int) -> None:
    """Disable huge pages by prctl(2); children and what they execute inherit it."""
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, on, 0, 0, 0)


def split(path: str, size: str) -> int:
    """Split a file into PATH.0, PATH.1 and so on: the size of one answer of the agent is limited."""
    with open(path, "rb") as file:
        data = file.read()
    parts = range(0, len(data), int(size))
    for number, at in enumerate(parts):
        with open(f"{path}.{number}", "wb") as part:
            part.write(data[at : at + int(size)])
    print(len(parts))
    return 0


def call(name: str, args: list[str]) -> int:
    """Call split() of this file, or main() of a module beside it, and return an exit status."""
    if name == "split":
        return split(*args)
    status = importlib.import_module(name).main(args)
    return int(status or 0)


def execute(job: dict[str, object]) -> None:
    """Execute the program in this process. Never returns."""
    forbid_huge_pages(0)
    if job.get("cgroup"):
        with open(f"{job['cgroup']}/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write(str(os.getpid()))
    uid = job.get("uid")
    if isinstance(uid, int) and uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    os.chdir("/tmp")
    argv = job["argv"]
    assert isinstance(argv, list)
    os.execv(argv[0], argv)


def child(job: dict[str, object], output: str) -> None:
    """Run a job in the forked child. Never returns."""
    status = 1
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        if "argv" in job:
            execute(job)
        status = call(str(job["call"]), job["args"])  # type: ignore[arg-type]
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def do(folder: str, number: int) -> None:
    """Run job N, and wait for its end unless it is to run in the background."""
    with open(f"{folder}/{number}.json", encoding="utf-8") as file:
        job = json.load(file)
    pid = os.fork()
    if not pid:
        child(job, f"{folder}/{number}.out")
    word = f"started {pid}"
    if not job.get("background"):
        word = f"done {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"
    with open(f"{folder}/{number}.done", "w", encoding="ascii") as done:
        done.write(word)


def main() -> None:
    """Run the jobs of the folder named on the command line until the guest ends."""
    folder = sys.argv[1]
    forbid_huge_pages(1)
    for name in PRELOADED:
        importlib.import_module(name)
    print("ready", flush=True)
    number = 1
    while True:
        if not os.path.exists(f"{folder}/{number}.go"):
            time.sleep(PAUSE)
            continue
        do(folder, number)
        number += 1


if __name__ == "__main__":
    main()
