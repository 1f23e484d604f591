# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing files: whole or not at all, in the place of regular files alone, and never through a link.

A recording that fails is kept beside its place. The capture takes this module along to hosts: the
standard library of Python 3.8, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from typing import IO, Iterator, Union

PathName = Union[str, "os.PathLike[str]"]


class FileError(ValueError):
    """A file that cannot be read or written, or does not hold what it should. One line."""


def check_target(path: PathName) -> None:
    """FileError where replacing() could not write path: nothing but a regular file is replaced."""
    target = os.fspath(path)
    try:
        if not stat.S_ISREG(os.lstat(target).st_mode):
            raise FileError(f"{target}: not a regular file")
    except FileNotFoundError:
        if not target or not os.path.isdir(os.path.dirname(target) or "."):
            raise FileError(f"{target}: No such file or directory") from None
    except OSError as error:
        raise FileError(f"{target}: {error.strerror}") from None


@contextlib.contextmanager
def replacing(path: PathName, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A new file that takes the place of path, on the disk, when the body ends well.

    mode: of the file, less the umask. What a run that was killed left beside path is removed.
    FileError: path is something else than a regular file, or no file can be made beside it.
    """
    target = os.fspath(path)
    check_target(target)
    folder, name = os.path.split(target)
    parts = re.compile(rf"\.{re.escape(name[:50])}\.[0-9a-f]{{16}}\.part")
    try:
        with contextlib.suppress(PermissionError):  # a folder that may be written but not listed
            _remove_abandoned(folder or ".", parts)
        file, part = _create(os.path.join(folder, f".{name[:50]}."), mode)
    except OSError as error:
        raise FileError(f"{target}: {error.strerror}") from None
    try:
        with file:
            yield file
            _put_in_place(file, part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


@contextlib.contextmanager
def recording(path: PathName) -> Iterator[IO[bytes]]:
    """Do what replacing() does, but what was written when the body fails, or is killed, is kept in
    path.part.

    FileError: also where path.part is there, for it may hold what cannot be recorded again.
    """
    target = os.fspath(path)
    check_target(target)
    part = f"{target}.part"
    try:
        file = os.fdopen(_open_safely(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")
    except FileExistsError:
        raise FileError(f"{part}: is in the way, from an earlier run or one at work") from None
    except OSError as error:
        raise FileError(f"{part}: {error.strerror}") from None
    try:
        with file:
            yield file
            _put_in_place(file, part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            if not os.stat(part).st_size:
                os.unlink(part)
        raise


def replace_text(path: PathName, text: str) -> None:
    """Write a whole file. FileError as from replacing(); OSError: the disk is full, or broken."""
    with replacing(path) as file:
        file.write(text.encode())


def append_to(path: PathName) -> IO[str]:
    """Open a regular file to add lines to, or make it. FileError: it is something else."""
    check_target(path)
    try:
        return open(path, "a", encoding="utf-8", opener=_open_safely)
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: {error.strerror}") from None


_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _create(prefix: str, mode: int) -> tuple[IO[bytes], str]:
    """Create a file of a name that cannot be guessed, locked for as long as it is open.

    Another run may have taken it for abandoned before it was locked: then it gets another name.
    """
    while True:
        part = f"{prefix}{os.urandom(8).hex()}.part"
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, mode)
        if _lock(file) != errno.EWOULDBLOCK and os.fstat(file).st_nlink:
            return os.fdopen(file, "wb"), part
        os.close(file)


def _remove_abandoned(folder: str, parts: re.Pattern[str]) -> None:
    """Remove files of _create() that no process holds open, if they are ours."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not parts.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError), open(entry.path, "r+b", opener=_open_safely) as file:
                if os.fstat(file.fileno()).st_uid == os.geteuid() and not _lock(file.fileno()):
                    os.unlink(entry.path)


def _put_in_place(file: IO[bytes], part: str, target: str) -> None:
    """Have what was written to part on the disk, and then in the place of target."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(part, target)


def _open_safely(path: str, flags: int) -> int:
    return os.open(path, flags | _SAFE, 0o666)


def _lock(file: int) -> int:
    """Lock a file until it is closed; returns the error's number where it cannot be.

    EWOULDBLOCK: another process has locked it. A file system may know no locks at all.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
