# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading /proc and /sys: small files, the mappings of a process, and what stops a capture.

Kernel: fs/proc/task_mmu.c.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from functools import lru_cache
from itertools import repeat
from operator import add
from typing import Iterator, NamedTuple

from mthp.words.files import naming
from mthp.words.streams import TOO_MANY_FILES

OK, FAILED, USAGE, LACKING = 0, 1, 2, 5


class CaptureError(Exception):
    """What stops a capture: one line for people, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class LeftOut(CaptureError):
    """What keeps a process, or all of a cgroup, out of a capture, now or since it ended.

    A capture of several goes on without it. why: to count it by.
    """

    def __init__(self, message: str, why: str, code: int = USAGE) -> None:
        super().__init__(message, code)
        self.why = why


_SMALL = 1 << 16
"""Bytes read at once: more than most small files have."""


def text(path: str) -> str | None:
    """A small file's text without its last newline; None where it cannot be read."""
    file = open_or_none(path)
    if file is None:
        return None
    try:
        parts = [part := os.read(file, _SMALL)]
        while part:
            parts.append(part := os.read(file, _SMALL))
    except OSError:
        return None
    finally:
        os.close(file)
    return b"".join(parts).decode(errors="replace").rstrip("\n")


def number(path: str) -> int | None:
    """The integer a file holds; None where there is none ("max" included)."""
    value = (text(path) or "").strip()
    return int(value) if value.isdigit() else None


def gone(pid: int) -> LeftOut:
    """The error that says that a process went away."""
    message = f"process {pid} exited (or ran another program) while it was read"
    return LeftOut(message, "ended meanwhile", FAILED)


def open_or_none(path: str) -> int | None:
    """A descriptor for reading; None where the file cannot be opened."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        return None


@contextlib.contextmanager
def reading(pid: int, file: str = "pagemap") -> Iterator[None]:
    """Stand around what reads a process's file: CaptureError where it went away or is not ours; any other
    error names the file."""
    try:
        with naming(f"/proc/{pid}/{file}"):
            yield
    except PermissionError:
        raise LeftOut(f"process {pid} {_not_ours(pid)}", "not ours to read") from None
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT, errno.ENOTTY):
            raise
        raise shows_nothing(pid, file) from None


CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21


def has_capability(number: int) -> bool:
    """Whether we have a capability. Kernel: include/uapi/linux/capability.h."""
    match = re.search(r"^CapEff:\s+([0-9a-f]+)", text("/proc/self/status") or "", re.M)
    return match is not None and int(match[1], 16) >> number & 1 == 1


def _not_ours(pid: int) -> str:
    """Why a process may not be read."""
    user = re.search(r"^Uid:\s+(\d+)", text(f"/proc/{pid}/status") or "", re.M)
    if os.geteuid() == 0 and not has_capability(CAP_SYS_PTRACE):
        return "is not ours to read: CAP_SYS_PTRACE is missing, as in a container"
    if os.geteuid() == 0:
        return "is not ours to read: a user namespace or a security module forbids it"
    if user is not None and int(user[1]) == os.geteuid():
        return "is our user's, but not dumpable, or has rights that we lack (run as root)"
    return "is not ours to read (run as its user or as root)"


def shows_nothing(pid: int, file: str) -> CaptureError:
    """The error for a file of /proc/PID that says nothing: it went away, or the file is masked."""
    alive = open_or_none(f"/proc/{pid}/{file}") if state(pid) not in "?ZX" else None
    if alive is None:
        return gone(pid)
    with open(alive, "rb", buffering=0) as again:
        if again.read(8):
            return gone(pid)
    return CaptureError(f"/proc/{pid}/{file} is masked: nothing can be read from it", LACKING)


def own_pid() -> int:
    """Our own number in this /proc, which may be another PID namespace's."""
    try:
        return int(os.readlink("/proc/self"))
    except (OSError, ValueError):
        return os.getpid()


def not_there(pid: int) -> LeftOut:
    """The error for a process of which /proc shows nothing: there is none, or it is hidden."""
    if own_pid() != os.getpid():
        where = "in this /proc, which is another PID namespace's"
    elif _exists(pid):
        message = (
            f"process {pid} is there, but this /proc hides it (hidepid): run as root, or its user"
        )
        return LeftOut(message, "hidden by /proc")
    elif os.readlink("/proc/self/ns/pid") != INITIAL_PID_NAMESPACE:
        where = "in this PID namespace: a container has its own numbers"
    else:
        where = ""
    return LeftOut(f"no process {pid} {where}".rstrip(), "ended meanwhile")


def hides_processes() -> bool:
    """Whether /proc is mounted so that it hides other users' processes from us."""
    mounts = (line.split() for line in (text("/proc/self/mounts") or "").splitlines())
    hidden = any(words[1] == "/proc" and "hidepid=" in words[3] for words in mounts)
    return hidden and not has_capability(CAP_SYS_PTRACE)


INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""Kernel: include/linux/proc_ns.h, PROC_PID_INIT_INO."""


def _exists(pid: int) -> bool:
    """Ask the kernel past /proc, by a signal that is none."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def open_pagemap(pid: int) -> int:
    """A descriptor of /proc/PID/pagemap; CaptureError where it cannot be opened."""
    with reading(pid):
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)


def state(pid: int) -> str:
    """The letter of a process's state; "?" where there is no such process."""
    match = re.search(r"^State:\s+(\S)", text(f"/proc/{pid}/status") or "", re.M)
    return match[1] if match else "?"


def is_over(pid: int) -> bool:
    """Whether a process, or at least its first thread, has ended."""
    return state(pid) in "ZX"


def _living_thread(pid: int) -> int | None:
    """A thread that has the memory of a process whose first thread has ended; None where all have."""
    for status in sorted(glob.glob(f"/proc/{pid}/task/[0-9]*/status")):
        if re.search(r"^VmSize:", text(status) or "", re.M):
            return int(status.split("/")[4])
    return None


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is no such process.

    A process whose number another has taken since has another start. Kernel: fs/proc/array.c.
    """
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else None


def argument_start(pid: int) -> int | None:
    """Where a process's arguments begin on its stack, below its environment; None where that is hidden."""
    fields = _stat(pid)
    return (int(fields[45]) or None) if len(fields) > 45 else None


def brk_start(pid: int) -> int | None:
    """Where a process's heap begins; None where that is hidden."""
    fields = _stat(pid)
    return (int(fields[44]) or None) if len(fields) > 44 else None


PF_FORKNOEXEC = 0x40
"""Kernel: include/linux/sched.h."""


def forked(pid: int) -> bool | None:
    """Whether its address space is a copy of its parent's, as it has not run a program since fork()."""
    fields = _stat(pid)
    return bool(int(fields[6]) & PF_FORKNOEXEC) if len(fields) > 6 else None


PF_KTHREAD = 0x200000
"""Kernel: include/linux/sched.h."""


def khugepaged_began() -> int | None:
    """When khugepaged's thread started, in clock ticks since boot; None where there is none to be seen.

    It begins when the first size is enabled, and ends with the last. Kernel: mm/khugepaged.c,
    start_stop_khugepaged().
    """
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        if text(f"/proc/{pid}/comm") == "khugepaged":
            fields = _stat(pid)
            if len(fields) > 19 and int(fields[6]) & PF_KTHREAD:
                return int(fields[19])
    return None


def parent_of(pid: int) -> int:
    """The number of a process's parent; 0 where there is none, or no such process."""
    fields = _stat(pid)
    return int(fields[1]) if len(fields) > 1 else 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return (text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()


KEPT = (
    "Name", "State", "Uid", "Threads", "THP_enabled", "VmRSS", "RssAnon", "RssFile", "RssShmem",
    "VmSwap", "VmPTE", "VmLck", "VmPin", "HugetlbPages",
)  # fmt: skip
"""The lines of /proc/PID/status that the file keeps."""


def read_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status that the file keeps; says why a process has no pages."""
    lines = (text(f"/proc/{pid}/status") or "").splitlines()
    fields = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "State" not in fields:
        raise not_there(pid)
    if fields.get("Tgid", str(pid)) != str(pid) and not is_over(int(fields["Tgid"])):
        raise CaptureError(f"{pid} is a thread: capture its process {fields['Tgid']}", USAGE)
    if fields["State"][0] in "ZX":
        other = _living_thread(pid)
        if other is None:
            raise LeftOut(f"process {pid} has ended (zombie): it has no address space", "zombies")
        message = f"process {pid} goes on without its first thread: its memory is shown as that of {other}"
        raise LeftOut(f"{message} (--pid {other})", "without their first thread")
    if fields.get("Kthread") == "1" or "VmSize" not in fields:
        message = f"process {pid} is a kernel thread: it has no address space"
        raise LeftOut(message, "kernel threads")
    return {key: fields[key] for key in KEPT if key in fields}


class SmapsEntry(NamedTuple):
    """One entry of smaps; sizes in bytes. skipped: why it is not anonymous, None if it is. identity: the
    beginning of its line in maps, up to the inode."""

    identity: bytes
    start: int
    end: int
    perms: str
    offset: int
    dev: str
    inode: int
    path: str
    flags: str
    sizes: dict[str, int]
    skipped: str | None

    @property
    def captured(self) -> bool:
        """Whether its anonymous pages are in the file: those of private file mappings are, too."""
        if self.skipped is None:
            return True
        written = self.sizes.get("anonymous") or self.sizes.get("swap")
        return bool(written) and self.perms.endswith("p") and self.skipped != "hugetlb"


SIZES = {
    b"Rss": "rss",
    b"Pss": "pss",
    b"Anonymous": "anonymous",
    b"Referenced": "referenced",
    b"Swap": "swap",
    b"AnonHugePages": "anon_huge",
    b"LazyFree": "lazyfree",
    b"Locked": "locked",
    b"THPeligible": "thp_eligible",
    b"Shared_Hugetlb": "hugetlb",
    b"Private_Hugetlb": "hugetlb",
}


@lru_cache
def why_skipped(perms: str, inode: int, path: str, codes: str) -> str | None:
    """Why a VMA is not anonymous to the kernel; None if it is. Kernel: vma_is_anonymous()."""
    flags = codes.split()
    if "ht" in flags:
        return "hugetlb"
    if "pf" in flags or "io" in flags:
        return "device or pfn mapping"
    if path == "/dev/zero" and perms.endswith("p"):
        return None
    if inode or path.startswith("/"):
        return "file mapping" if perms.endswith("p") else "shared mapping"
    if path and not re.match(r"\[(heap|stack(:\d+)?|anon:.*)\]$", path):
        return "special mapping"
    return "shared mapping" if perms.endswith("s") else None


_IDENTITY = rb"(([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+))"
_HEAD = _IDENTITY + rb" *([^\n]*)\n"
_ROWS = re.compile(rb"[^\n]*\n((?:[A-Z][^\n]*\n){0,99})")


def parse_smaps(content: bytes) -> list[SmapsEntry]:
    """The VMAs in smaps. ValueError: it is something else.

    Each has the rows that the one before has, so that one expression finds all fields of many.
    """
    at, form = 0, re.compile(rb"(?!)")
    names: list[tuple[str, int]] = []
    vmas: list[SmapsEntry] = []
    while at < len(content):
        alike = [*iter(form.scanner(content, at).match, None)]  # type: ignore[attr-defined]
        if alike:
            at = alike[-1].end()
            vmas += _vmas(names, [*map(re.Match.groups, alike)])
            continue
        form, names = _form(content, at)
        if form.match(content, at) is None:
            raise ValueError("no VMA")
    return vmas


def _form(content: bytes, at: int) -> tuple[re.Pattern[bytes], list[tuple[str, int]]]:
    """What a VMA like the one there looks like, and the names and units of its sizes.

    Rows that nothing is read of are passed by as so many bytes, as the kernel pads its numbers: where one
    is longer than here, what follows is not found, and this is asked again.
    """
    rows = _ROWS.match(content, at)
    names: list[tuple[str, int]] = []
    form, flags, passed = _HEAD, rb"()", 0
    for row in rows[1].splitlines(keepends=True) if rows is not None else ():
        label = row.partition(b":")[0]
        if label not in SIZES and label != b"VmFlags":
            passed += len(row)
            continue
        form += _bytes_of_rows(passed) + re.escape(label) + b":"
        passed = 0
        if label in SIZES:
            unit = b" kB" if row.endswith(b" kB\n") else b""
            names.append((SIZES[label], 10 if unit else 0))
            form += rb" +(\d{1,18})" + unit + rb"\n"
        else:
            form, flags = form + rb" ?([^\n]*)\n", b""
    return re.compile(form + _bytes_of_rows(passed) + flags), names


def _bytes_of_rows(size: int) -> bytes:
    """What matches so many bytes of whole rows."""
    return b"(?s:.{%d})\n" % (size - 1) if size else b""


def _vmas(names: list[tuple[str, int]], alike: list[tuple[bytes, ...]]) -> Iterator[SmapsEntry]:
    """The VMAs with these fields, made field by field: of most of them there are few values."""
    if not alike:
        return iter(())
    identity, start, end, perms, offset, dev, inode, path, *values, flags = zip(*alike)
    texts = {each: each.decode("utf-8", "replace") for each in {*perms, *dev, *path, *flags}}
    sizes: dict[str, list[int]] = {}
    for (name, unit), column in zip(names, values):
        known = {value: int(value) << unit for value in {*column}}
        numbers = [*map(known.__getitem__, column)]
        sizes[name] = [*map(add, sizes[name], numbers)] if name in sizes else numbers
    keys, rows = tuple(sizes), zip(*sizes.values()) if sizes else repeat(())
    rights, devices, where = ([*map(texts.get, column)] for column in (perms, dev, path))
    words = {each: texts[each].strip() for each in {*flags}}
    codes = [*map(words.get, flags)]
    inodes = [*map(int, inode)]
    starts, ends, offsets = ([*map(int, each, repeat(16))] for each in (start, end, offset))
    columns = zip(
        identity, starts, ends, rights, offsets, devices, inodes, where, codes,
        (dict(zip(keys, row)) for row in rows), map(why_skipped, rights, inodes, where, codes),
    )  # fmt: skip
    return map(SmapsEntry._make, columns)


def read_vmas(pid: int) -> list[SmapsEntry]:
    """The VMAs of /proc/PID/smaps; CaptureError where they cannot be read."""
    with reading(pid, "smaps"), open(f"/proc/{pid}/smaps", "rb") as content:
        try:
            return parse_smaps(content.read())
        except ValueError:
            raise CaptureError(f"/proc/{pid}/smaps is not as Linux writes it", LACKING) from None


def identities(pid: int) -> set[bytes]:
    """What tells the VMAs of a process from others, as SmapsEntry has it."""
    with reading(pid, "maps"), open(f"/proc/{pid}/maps", "rb") as content:
        return {found[0] for found in re.findall(rb"(?m)^" + _IDENTITY, content.read())}
