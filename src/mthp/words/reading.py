# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading files: regular ones, of a bounded size, JSON of a bounded depth; complaints are one line."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import IO, Any, NoReturn

from mthp.words.files import FileError, PathName
from mthp.words.units import human_bytes

LINE_BYTES = 16 << 20
FILE_BYTES = 256 << 20
DEPTH = 64
MOST_VALUES = 1 << 23
"""Of a JSON document, in all its lists and objects."""
_NOT_NESTING = bytes(set(range(256)) - set(b'"[]{}'))
_UNPACKED: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open}
_BRACKETS = bytes.maketrans(b"[]", b"{}")


def read_text(path: PathName, most: int = FILE_BYTES) -> str:
    """Read the text of a regular file of at most so many bytes; FileError otherwise."""
    try:
        data = bytearray()
        with open_regular(path) as file:
            while part := file.read(1 << 20):
                data += part
                if len(data) > most:
                    raise FileError(f"{path}: more than {human_bytes(most)}")
        return data.decode()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise FileError(f"{path}: not a text in UTF-8") from None


def numbered_lines(path: PathName) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file, plain or .xz or .gz, that are not blank, each with its number.

    FileError for a file that cannot be opened, is damaged or cut short, or has an endless line.
    """
    number = 0
    try:
        with (
            open_regular(path) as file,
            _UNPACKED.get(Path(path).suffix, nullcontext)(file) as stream,
        ):
            for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES + 1), b""), 1):
                if len(line) > LINE_BYTES:
                    raise FileError(f"{path}:{number}: more than {human_bytes(LINE_BYTES)}")
                if line.strip():
                    yield number, line.decode()
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        message = f"{path}: damaged or cut short after line {number} ({type(error).__name__})"
        raise FileError(message) from None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document; FileError, without a place, where it is none or nested too deep."""
    try:
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
            raise FileError(f"bad JSON: more than {MOST_VALUES} values")
        if _is_deep(data):
            raise RecursionError
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise FileError(f"bad JSON: {error.msg}, column {error.colno}") from None
    except RecursionError:
        raise FileError(f"bad JSON: nested deeper than {DEPTH}") from None
    except FileError:
        raise
    except ValueError:
        raise FileError("bad JSON: not UTF-8, or a number without end") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key is there twice: then it says two things."""
    document = dict(pairs)
    if len(document) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise FileError(f"bad JSON: the key {twice[:40]!r} is there twice")
    return document


def _no_number(name: str) -> NoReturn:
    raise FileError(f"bad JSON: {name} is no number")


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON document that is an object; FileError as from parse_json()."""
    document = parse_json(text)
    if not isinstance(document, dict):
        raise FileError("bad JSON: not an object")
    return document


def read_json(path: PathName) -> Any:
    """Read the JSON document in a file; FileError with the file's name."""
    text = read_text(path)
    try:
        return parse_json(text)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None


def check_memory(size: int) -> None:
    """FileError where so many bytes are more than this machine has to spare."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is not None and size > int(found[1]) << 10:
        spare = human_bytes(int(found[1]) << 10)
        raise FileError(
            f"needs {human_bytes(size)} of memory, and this machine has {spare} to spare"
        )


def open_regular(path: PathName) -> IO[bytes]:
    """Open a regular file for reading. FileError: it is a pipe or a device. OSError: it cannot be
    opened."""
    with ExitStack() as closing:
        file = closing.enter_context(open(path, "rb", opener=_open_without_waiting))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileError(f"{path}: not a regular file")
        closing.pop_all()
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _is_deep(data: bytes) -> bool:
    """Whether brackets are nested deeper than DEPTH, found without descending into them.

    What is left of the text is its quotes and brackets; then, level by level from within, the
    pairs of brackets go.
    """
    if b"\\" in data:
        data = re.sub(rb"\\.", b"", data)
    left = data.translate(None, _NOT_NESTING).replace(b'""', b"")
    nesting = re.sub(rb'"[^"]*"', b"", left).translate(_BRACKETS)
    for _ in range(DEPTH):
        if b"{}" not in nesting:
            break
        nesting = nesting.replace(b"{}", b"")
    return b"{}" in nesting
