# SPDX-License-Identifier: GPL-2.0-or-later
"""In the guest: one Python process that runs the host's jobs, since starting one for each is slow there.

Job N is the folder's N.json, complete once N.go is there. A job executes argv in its folder, with its
PATH, uid and a cgroup to join, or calls a function of this file with args. Its output goes to N.out; of
much of it only the end is kept. N.done says `done` and its exit status at its end. Where background is
set, it says `started` once the program runs, and `ended` with the status at its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import socket
import struct
import sys
import time

PR_SET_THP_DISABLE = 41
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
PAUSE = 0.02
LONG_OUTPUT, KEPT_OUTPUT = 1 << 20, 1 << 14
"""Bytes of an output from which on it is shortened, and what is left of it then."""
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


def furnish() -> int:
    """Provide what programs expect and the kernel does not make by itself: a loopback network, which has
    127.0.0.1 once it is up, and names for the standard streams."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket,
    ):
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")
    return 0


def call(name: str, args: list[str]) -> int:
    """Call furnish() or split() of this file, or main() of a module beside it; returns an exit status."""
    if name == "furnish":
        return furnish()
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
    os.chdir(str(job["folder"]))
    os.environ["PATH"] = str(job["path"])
    user, argv = job["user"], job["argv"]
    assert isinstance(user, list) and isinstance(argv, list)
    if user[0]:
        os.setgroups([])
        os.setgid(user[1])
        os.setuid(user[0])
    os.execv(argv[0], argv)


def child(job: dict[str, object], out: int) -> None:
    """Run a job in the forked child. Never returns."""
    status = 127
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        if "argv" in job:
            execute(job)
        status = call(str(job["call"]), job["args"])  # type: ignore[arg-type]
    except OSError as error:
        argv = job.get("argv")
        name = argv[0] if isinstance(argv, list) else job["call"]
        print(f"{name}: {error.strerror or error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def tell(at: str, word: str, value: int) -> None:
    """Write the job's .done, whole at any moment."""
    with open(f"{at}.new", "w", encoding="ascii") as file:
        file.write(f"{word} {value}")
    os.replace(f"{at}.new", f"{at}.done")


def begin(at: str) -> tuple[int, str]:
    """Start a job; returns its pid and the word to tell at its end."""
    with open(f"{at}.json", encoding="utf-8") as file:
        job = json.load(file)
    out = os.open(f"{at}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    running, closed_by_exec = os.pipe()
    pid = os.fork()
    if not pid:
        child(job, out)
    os.close(out)
    os.close(closed_by_exec)
    if job.get("background"):
        os.read(running, 1)
        tell(at, "started", pid)
    os.close(running)
    return pid, "ended" if job.get("background") else "done"


def shorten(path: str) -> None:
    """Leave only the end of a long output, which is in memory here."""
    if os.path.getsize(path) > LONG_OUTPUT:
        with open(path, "rb+") as file:
            file.seek(-KEPT_OUTPUT, os.SEEK_END)
            end = file.read()
            file.truncate(0)
        with open(path, "ab") as file:
            file.write(end)


def look_after(jobs: dict[int, tuple[str, str]]) -> None:
    """Shorten the output of jobs, and tell which have ended. jobs: pid -> where it is, and the word."""
    for pid, (at, word) in list(jobs.items()):
        shorten(f"{at}.out")
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del jobs[pid]
            tell(at, word, os.waitstatus_to_exitcode(status))


def main() -> None:
    """Run the jobs of the folder named on the command line, in their order, until the guest ends."""
    folder = sys.argv[1]
    forbid_huge_pages(1)
    for name in PRELOADED:
        importlib.import_module(name)
    print("ready", flush=True)
    number = 1
    jobs: dict[int, tuple[str, str]] = {}
    while True:
        waits = any(word == "done" for _, word in jobs.values())
        if not waits and os.path.exists(f"{folder}/{number}.go"):
            pid, word = begin(f"{folder}/{number}")
            jobs[pid] = (f"{folder}/{number}", word)
            number += 1
        else:
            time.sleep(PAUSE)
        look_after(jobs)


if __name__ == "__main__":
    main()
