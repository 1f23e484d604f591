# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that is recorded: started with huge pages off for it alone, and told what we are told.

Kernel: kernel/sys.c, PR_SET_THP_DISABLE, which fork and exec pass on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import stat
from types import TracebackType
from typing import Any, Callable

from mthp.image.capture.proc import FAILED, USAGE, CaptureError, argument_start, text

PR_SET_THP_DISABLE = 41
PTRACE_TRACEME, PTRACE_DETACH = 0, 17


def runnable(command: list[str]) -> str:
    """The file of a command. CaptureError (2): it cannot be started, or has rights of its own."""
    name = command[0]
    path = shutil.which(name)
    if path is None:
        why = "is not executable" if os.path.exists(name) else "no such command"
        raise CaptureError(f"{name}: {why}", USAGE)
    mode = os.stat(path).st_mode
    rights = "set-uid" if mode & stat.S_ISUID else "set-gid" if mode & stat.S_ISGID else ""
    with contextlib.suppress(OSError):
        os.getxattr(path, "security.capability")
        rights = rights or "one with capabilities"
    if rights:
        why = f"is {rights}: run by root it is not what its users run"
        raise CaptureError(f"{path}: {why}", USAGE)
    return path


def mappings(maps: str | None) -> list[dict[str, Any]] | None:
    """The mappings that /proc/PID/maps lists."""
    if not maps:
        return None
    found = []
    for line in maps.splitlines():
        addresses, perms, offset, _, inode, *path = line.split(None, 5)
        start, _, end = addresses.partition("-")
        found.append(
            {"start": int(start, 16), "end": int(end, 16), "perms": perms, "offset": int(offset, 16),
             "inode": int(inode), "path": path[0] if path else ""}
        )  # fmt: skip
    return found


class Child:
    """The command: forked, waiting to begin, then stopped once before its first instruction.

    status: as waitpid() has it; None while it runs. vmas: its first mappings. arguments: where on the stack
    exec put its arguments and environment, which no fault shows.
    """

    def __init__(self, path: str, command: list[str]) -> None:
        self.path = path
        self.status: int | None = None
        self.vmas: list[dict[str, Any]] | None = None
        self.arguments: int | None = None
        go, self._go = os.pipe()
        self._failed, failed = os.pipe()
        libc = ctypes.CDLL(None, use_errno=True)
        self.pid = os.fork()
        if not self.pid:
            os.close(self._go)
            _become(libc, path, command, go, failed)
        os.close(go)
        os.close(failed)

    def begin(self) -> None:
        """Have it run its program. CaptureError: it cannot be started."""
        os.write(self._go, b"x")
        os.close(self._go)
        why = os.read(self._failed, 64).split()
        os.close(self._failed)
        if why:
            os.waitpid(self.pid, 0)
            message = os.strerror(int(why[1]))
            if why[0] == b"prctl":
                raise CaptureError(f"huge pages cannot be turned off for it: {message}", FAILED)
            raise CaptureError(f"{self.path}: {message}", USAGE)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self.status = status
            return
        self.vmas = mappings(text(f"/proc/{self.pid}/maps"))
        self.arguments = argument_start(self.pid) if self.vmas else None
        ctypes.CDLL(None).ptrace(PTRACE_DETACH, self.pid, None, None)

    def ended(self) -> bool:
        """Whether it has; status then says how."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def tasks(self) -> list[int]:
        """What is there of it in the beginning."""
        return [self.pid]

    def tell(self, number: int) -> None:
        """Pass a signal on to it; Ctrl-C of a terminal it hears by itself."""
        if self.status is None and not (number == signal.SIGINT and _has_terminal()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    @property
    def exit_status(self) -> int | None:
        """The code that it ended with."""
        ended = self.status is not None and os.WIFEXITED(self.status)
        return os.WEXITSTATUS(self.status) if ended and self.status is not None else None

    @property
    def signal(self) -> int | None:
        """The signal that ended it."""
        ended = self.status is not None and os.WIFSIGNALED(self.status)
        return os.WTERMSIG(self.status) if ended and self.status is not None else None


def _become(libc: Any, path: str, command: list[str], go: int, failed: int) -> None:
    """Wait to be told, and run the program; does not return. Where we are not told, there is nobody."""
    try:
        if os.read(go, 1) != b"x":
            os._exit(127)
        if libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
            os.write(failed, b"prctl %d" % ctypes.get_errno())
            os._exit(127)
        libc.ptrace(PTRACE_TRACEME, 0, None, None)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(each, signal.SIG_DFL)
        os.execv(path, command)
    except OSError as error:
        os.write(failed, b"exec %d" % (error.errno or errno.EIO))
    finally:
        os._exit(127)


class Signals:
    """While it is entered, what would end us is told, once; another time it is enough.

    tell: is given the signal's number. woken: readable when there is something to heed.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell_of = tell
        self._told = 0
        self._before: dict[int, Any] = {}
        self._old = -1
        self.woken = self._wake = -1

    def __enter__(self) -> Signals:
        self.woken, self._wake = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(self._wake, False)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._tell)
        self._old = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._old)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.woken)
        os.close(self._wake)

    def heed(self) -> None:
        """Take what woke us."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 512)

    @property
    def enough(self) -> bool:
        """Whether we were told to end, and the command did not."""
        return self._told > 1

    def _tell(self, number: int, _: object) -> None:
        self._told += 1
        self._tell_of(number)


def _has_terminal() -> bool:
    """Whether we are in the foreground of a terminal, whose Ctrl-C the command gets too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
