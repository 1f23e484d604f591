# SPDX-License-Identifier: GPL-2.0-or-later
"""The standard streams, whatever they are connected to, and a command that is told to end.

The capture takes this module along to hosts: the standard library of Python 3.8, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
from typing import Any, Iterable, Iterator, NoReturn

from mthp.words.files import one_line

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
UNWRITABLE = (errno.EBADF, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def occupy() -> None:
    """Have descriptors 0, 1 and 2 be open, so that no other file is ever taken for one of them.

    Where they were closed, the input is empty, output cannot be written, and errors go nowhere. A
    character that an output's encoding lacks is written as its escape; COLUMNS that no terminal has,
    0 among them, are not heeded.
    """
    for number, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_RDONLY),
        (2, "stderr", os.O_WRONLY),
    ):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if not re.fullmatch(r"[2-9]\d|[1-9]\d{2,3}", os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str, begin: str = "", end: str = "\n") -> None:
    """Print a line on stderr, at once, made safe; where that cannot be, it is lost."""
    try:
        print(f"{begin}{one_line(text)}", end=end, file=sys.stderr, flush=True)
    except OSError:
        drop(2)


def failure(error: OSError) -> str:
    """Say what the system refused: of the file that it names, or else of the output."""
    if error.errno in TOO_MANY_FILES:
        return "too many open files (ulimit -n)"
    where = "cannot write: " if error.errno in UNWRITABLE else ""
    if error.filename:
        where = f"{error.filename}: "
    return where + (error.strerror or str(error))


def drop(number: int) -> None:
    """Lose what is still buffered for a descriptor: Python must not try to write it at its end."""
    os.close(number)
    os.open(os.devnull, os.O_WRONLY)  # the lowest number that is free: this one


@contextlib.contextmanager
def _handled(numbers: Iterable[int], handler: Any) -> Iterator[None]:
    """Have a handler for some signals, but for those that are ignored."""
    before = {}
    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread: signals are another's
        pass
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ended_at_once() -> contextlib.AbstractContextManager[None]:
    """Have Ctrl-C, SIGTERM and SIGHUP end us without a word: while modules are loaded nothing is begun,
    and an exception from a handler may come out of a module in C as another one.
    """
    return _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)


def ended_in_order() -> contextlib.AbstractContextManager[None]:
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does: the first one.

    So files and processes are put away. What comes after it is ignored meanwhile.
    """
    endings = (signal.SIGTERM, signal.SIGHUP)

    def end(*_: Any) -> NoReturn:
        for number in endings:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    return _handled(endings, end)
