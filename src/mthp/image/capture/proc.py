# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading /proc and /sys as text, and what stops a capture."""

from __future__ import annotations

import errno
import os
import re

OK, FAILED, USAGE, LACKING = 0, 1, 2, 5


class CaptureError(Exception):
    """What stops a capture: one line for people, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def text(path: str) -> str | None:
    """A small file's text without its last newline; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None


def number(path: str) -> int | None:
    """The integer a file holds; None where there is none ("max" included)."""
    value = (text(path) or "").strip()
    return int(value) if value.isdigit() else None


def gone(pid: int) -> CaptureError:
    """The error of a process that went away."""
    return CaptureError(f"process {pid} exited (or ran another program) while it was read")


def not_ours(pid: int) -> CaptureError:
    """The error of a process that belongs to somebody else."""
    return CaptureError(f"process {pid} is not ours to read (run as its user or as root)", USAGE)


def open_or_none(path: str) -> int | None:
    """A descriptor for reading; None where it cannot be had."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def open_pagemap(pid: int) -> int:
    """A descriptor of /proc/PID/pagemap; CaptureError where it cannot be opened."""
    try:
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    except PermissionError:
        raise not_ours(pid) from None
    except OSError as error:
        raise (gone(pid) if error.errno in (errno.ESRCH, errno.ENOENT) else error) from None


def state(pid: int) -> str:
    """The letter of a process's state; "?" where there is no such process."""
    match = re.search(r"^State:\s+(\S)", text(f"/proc/{pid}/status") or "", re.M)
    return match[1] if match else "?"


def read_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status that the file keeps; says why a process has no pages."""
    lines = (text(f"/proc/{pid}/status") or "").splitlines()
    fields = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "State" not in fields:
        raise CaptureError(f"no process {pid}", USAGE)
    if fields.get("Tgid", str(pid)) != str(pid):
        raise CaptureError(f"{pid} is a thread: capture its process {fields['Tgid']}", USAGE)
    if fields["State"][0] in "ZX":
        raise CaptureError(f"process {pid} has ended (zombie): it has no address space", USAGE)
    if fields.get("Kthread") == "1" or "VmSize" not in fields:
        raise CaptureError(f"process {pid} is a kernel thread: it has no address space", USAGE)
    keep = ("Name", "State", "Uid", "Threads", "THP_enabled", "VmRSS", "RssAnon", "VmSwap", "VmPTE")
    return {key: fields[key] for key in keep if key in fields}
