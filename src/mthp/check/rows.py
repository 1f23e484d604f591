# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that a long check keeps its rows in: finished ones, and how far the others have come.

It belongs to one command and to one text of the engine; any other is refused. It is replaced whole, so
that a crash leaves the file before.
"""

from __future__ import annotations

import hashlib
import json
import time
import types
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import mthp
from mthp.check.records import MutantResult, Ran, RanLines, WorldResult
from mthp.explore.part import Key, Parts, part_document, part_of
from mthp.laws.broken import Broken, Kind, Thing
from mthp.words.files import FileError, check_target, replace_text, shown
from mthp.words.reading import read_json

FORMAT = "mthp-check/1"
EVERY = 5.0
"""Seconds between two times that the file is written, but for the last."""
Result = WorldResult | MutantResult
_RESULTS = {kind.__name__: kind for kind in (WorldResult, MutantResult)}
_ROOMS = ("words", "machine", "mm", "khugepaged", "vectorised", "laws", "races", "explore")


@cache
def engine() -> str:
    """A fingerprint of everything that a search depends on."""
    root = Path(mthp.__file__).parent
    digest = hashlib.sha256()
    for room in _ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Unfinished:
    """How far a row has come, how many seconds that took, and what ran of the protocol."""

    parts: Parts
    seconds: float
    ran: Ran


class Rows:
    """The rows of one command. of: the command, in words. path: None keeps them for this process alone.

    FileError: it cannot be read or written, is another's, or is damaged. OSError: the disk is full.
    """

    def __init__(self, path: Path | None, of: str) -> None:
        self.path = path
        self.of = of
        self._saved = 0.0
        self.finished: dict[str, Result] = {}
        self.unfinished: dict[str, Unfinished] = {}
        if path is not None:
            check_target(path)
        if path is not None and path.exists() and path.stat().st_size:
            self._read(path)
        self.save()

    def finish(self, key: str, result: Result) -> None:
        """A row is known."""
        self.unfinished.pop(key, None)
        self.finished[key] = result
        self._save_now_and_then()

    def keep(self, key: str, unfinished: Unfinished) -> None:
        """A row is not."""
        self.unfinished[key] = unfinished
        self._save_now_and_then()

    def _save_now_and_then(self) -> None:
        """The file is written whole, so not for each of many small rows."""
        if time.monotonic() - self._saved >= EVERY:
            self.save()

    def save(self) -> None:
        """Write the file."""
        if self.path is None:
            return
        self._saved = time.monotonic()
        replace_text(self.path, json.dumps(self.document()))

    def document(self) -> dict[str, Any]:
        """What the file has of the rows."""
        return {
            "format": FORMAT,
            "engine": engine(),
            "of": self.of,
            "finished": {
                key: {"kind": type(each).__name__, **asdict(each)}
                for key, each in self.finished.items()
            },
            "unfinished": {
                key: {
                    "seconds": each.seconds,
                    "ran": [asdict(lines) for lines in each.ran],
                    "parts": [part_document(part, list) for part in each.parts.values()],
                }
                for key, each in self.unfinished.items()
            },
        }

    def _read(self, path: Path) -> None:
        document = read_json(path)
        try:
            if document["format"] != FORMAT:
                kind = str(document["format"])[:40]
                raise FileError(f"{path}: not a file of `mthp check`, but {kind!r}")
            if document["of"] != self.of:
                raise FileError(f"{path}: it is of another check: {str(document['of'])[:200]}")
            if document["engine"] != engine():
                why = "the engine has changed since; remove the file to begin again"
                raise FileError(f"{path}: {why}")
            self.finished = {
                key: _record(_RESULTS[each.pop("kind")], each)
                for key, each in document["finished"].items()
            }
            for key, each in document["unfinished"].items():
                parts = [part_of(part, _broken) for part in each["parts"]]
                by_key = {part.key: part for part in parts}
                if Key() not in by_key:
                    raise ValueError("no whole")
                ran = tuple(_record(RanLines, lines) for lines in each["ran"])
                self.unfinished[key] = Unfinished(by_key, float(each["seconds"]), ran)
        except FileError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise FileError(f"{path}: not a file of `mthp check`, or damaged") from error


def _broken(document: Any) -> Broken:
    law, (kind, name), text = document
    return Broken(int(law), Thing(Kind(kind), name), str(text))


# Records as documents


def _record(kind: Any, document: Any) -> Any:
    """A value of a type out of JSON: records, tuples, optional values and what JSON has itself."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if set(document) != {field.name for field in fields(kind)}:
            raise ValueError(f"not the fields of {kind}")
        return kind(**{name: _record(hints[name], value) for name, value in document.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(document) if kinds[-1] is Ellipsis else kinds
        return tuple(_record(each, value) for each, value in zip(kinds, document, strict=True))
    if get_origin(kind) in (Union, types.UnionType):
        (some,) = (each for each in get_args(kind) if each is not type(None))
        return None if document is None else _record(some, document)
    value = kind(document)
    if isinstance(value, str) and shown(value) != value:
        raise ValueError("control characters")
    if isinstance(value, int | float) and not 0 <= value < float("inf"):
        raise ValueError(f"the number {value}")
    return value
