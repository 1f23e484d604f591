# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing files: whole or not at all, in the place of regular files alone, and never through a link.

Every file that mthp writes and every temporary one is made here. What a killed run leaves has a name that
the next run of its kind knows, and is not locked any more: it is removed then. A recording that fails is
kept beside its place. What is said of files is one line that a terminal may have. The capture takes this
module along to hosts: the standard library of Python 3.8, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import IO, Iterator, Union

PathName = Union[str, "os.PathLike[str]"]


_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that count as printable and show nothing (Unicode: Default_Ignorable_Code_Point)."""
LINE_LENGTH = 1000


def shown(text: str) -> str:
    """A stranger's text as a terminal may have it: '?' for what is no character that one sees.

    Such are control characters, new lines among them, surrogates, marks that turn the direction of
    writing, and those without width.
    """
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if text.isascii() else _UNSEEN.sub("?", text)


def one_line(text: str) -> str:
    """A message as one line that a terminal may have, of at most LINE_LENGTH characters."""
    if len(text) > LINE_LENGTH:
        text = f"{text[: LINE_LENGTH // 2 - 5]} ... {text[-LINE_LENGTH // 2 :]}"
    return shown(text)


class FileError(ValueError):
    """A file that cannot be read or written, or does not hold what it should. One line."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


def check_target(path: PathName) -> None:
    """FileError where replacing() could not write path: nothing but a regular file is replaced."""
    target = os.fspath(path)
    folder = os.path.dirname(target) or "."
    try:
        if not stat.S_ISREG(os.lstat(target).st_mode):
            raise FileError(f"{target}: not a regular file")
    except FileNotFoundError:
        if not target or not os.path.isdir(folder):
            raise FileError(f"{target}: No such file or directory") from None
    except OSError as error:
        raise FileError(f"{target}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"{target}: its folder cannot be written to")


@contextlib.contextmanager
def replacing(path: PathName, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A new file that takes the place of path, on the disk, when the body ends well.

    mode: of the file, less the umask, and less what the file in its place does not allow. What a run
    that was killed left beside path is removed. FileError: path is something else than a regular file,
    or no file can be made beside it.
    """
    target = os.fspath(path)
    check_target(target)
    folder, name = os.path.split(target)
    with contextlib.suppress(FileNotFoundError):
        mode &= os.lstat(target).st_mode | 0o111
    parts = re.compile(rf"\.{re.escape(name[:50])}\.[0-9a-f]{{16}}\.part")
    try:
        with contextlib.suppress(PermissionError):  # a folder that may be written but not listed
            _remove_abandoned(folder or ".", parts)
        file, part = _create(os.path.join(folder, f".{name[:50]}."), mode)
    except OSError as error:
        raise FileError(f"{target}: {error.strerror}") from None
    try:
        with naming(target), file:
            yield file
            _finish(file, part, target)
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
        with naming(target), file:
            yield file
            _finish(file, part, target)
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
    """Open a regular file to add lines to, or make it. FileError: it is something else, or has
    another name too."""
    check_target(path)
    try:
        held = _open_safely(os.fspath(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: {error.strerror}") from None
    if os.fstat(held).st_nlink != 1:
        os.close(held)
        raise FileError(f"{os.fspath(path)}: has other names too")
    return os.fdopen(held, "a", encoding="utf-8")


def write_new(path: PathName, data: bytes) -> None:
    """Make a file in a folder of scratch(). FileExistsError: there is something of that name."""
    with open(path, "xb", opener=_open_safely) as file:
        file.write(data)


def copy_new(source: PathName, target: PathName) -> None:
    """Copy a file's contents into a new one in a folder of scratch()."""
    with open(source, "rb") as old, open(target, "xb", opener=_open_safely) as new:
        shutil.copyfileobj(old, new)


def set_to(path: PathName, value: str) -> None:
    """Write a word into a control file of the kernel, which must be there. OSError: it refuses."""
    with os.fdopen(_open_safely(os.fspath(path), os.O_WRONLY), "w") as file:
        file.write(value)


def spooled(folder: str | None = None) -> IO[bytes]:
    """A file without a name: in memory while it is small, then on disk, in the folder or the usual
    one for temporary files."""
    return tempfile.SpooledTemporaryFile(4 << 20, dir=folder)


@contextlib.contextmanager
def scratch(folder: PathName | None = None) -> Iterator[Path]:
    """A new folder of the user's alone, removed with all in it when the body ends.

    It is made in the folder, or the usual one for temporary files. What runs that were killed left
    there is removed too. OSError: no folder can be made there.
    """
    where = tempfile.gettempdir() if folder is None else os.fspath(folder)
    with contextlib.suppress(PermissionError):
        _remove_abandoned(where, re.compile(r"mthp-\w{8}\.part"))
    while True:
        made = tempfile.mkdtemp(".part", "mthp-", where)
        with contextlib.suppress(FileNotFoundError):  # another run took it for abandoned
            held = os.open(made, os.O_RDONLY | _SAFE)
            if _lock(held) != errno.EWOULDBLOCK and os.path.isdir(made):
                break
            os.close(held)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(held)


def put_in_place(made: Path, place: Path) -> None:
    """Move a file or folder made in scratch() to its place, where an old one is replaced."""
    if place.is_dir():
        import ctypes

        # The old one goes where the new one was, in one step: there always is one of them.
        there, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        rename = getattr(ctypes.CDLL(None), "renameat2", None)
        if rename and not rename(there, os.fsencode(made), there, os.fsencode(place), exchange):
            return
        place.rename(made.with_suffix(".old"))  # a file system that cannot do that
    made.rename(place)


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
    """Remove what was made here under such a name and no process holds locked, if it is ours."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if not parts.fullmatch(entry.name) or not (
                is_folder or entry.is_file(follow_symlinks=False)
            ):
                continue
            with contextlib.suppress(OSError):
                held = os.open(entry.path, (os.O_RDONLY if is_folder else os.O_RDWR) | _SAFE)
                try:
                    if os.fstat(held).st_uid == os.geteuid() and not _lock(held):
                        (shutil.rmtree if is_folder else os.unlink)(entry.path)
                finally:
                    os.close(held)


@contextlib.contextmanager
def naming(target: str) -> Iterator[None]:
    """Have an error of the system that names no file, such as a full disk, name this one: what reads or
    writes by a descriptor stands in it."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = target
        raise


def _finish(file: IO[bytes], part: str, target: str) -> None:
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
