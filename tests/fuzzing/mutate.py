# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutations of valid inputs: field by field, type by type, byte by byte; of texts, JSON and .npz files.

All of them are drawn from one random.Random, so that a seed and a number name an input.
"""

from __future__ import annotations

import copy
import io
import json
import re
import zipfile
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.image.made import Made

NUMBERS = (
    *range(-2, 18), 31, 63, 64, 255, 256, 511, 512, 513, 4095, 4096, 65535, 65536,
    *(1 << bits for bits in (20, 28, 31, 32, 40, 47, 48, 52, 56, 63, 64, 80)),
    (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1, 10**30, 10**400,
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "\x00", "\x1b[31m", "\x1b]0;x\x07", "\u202e", "\u200b", "\ufeff", "\ud800", "\x9b31m",
    "x" * 5000,
    "%s", "{}", "[bold]", "../..", "/dev/zero", "always", "-1", "0", "9" * 5000, "1e999", "nan", "٣", "None",
)  # fmt: skip
_DEEP: list[Any] = []
for _ in range(70):
    _DEEP = [_DEEP]
VALUES = (
    *NUMBERS, *TEXTS, None, True, False, 0.5, -0.0, 1e308, float("inf"), float("nan"), [], {}, [None], [0, 0],
    [0, 1, 2], [[]], {"": None}, {"\x1b": "\u202e"}, _DEEP,
)  # fmt: skip


def mutated_text(text: str, source: Random) -> str:
    """A text with a number, a letter, a word or a line of it changed, one time or several."""
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        kind = source.randrange(7)
        at = source.randrange(len(text) + 1)
        until = min(len(text), at + source.choice((1, 1, 2, 8, 40)))
        numbers = list(re.finditer("[0-9]+", text)) if kind < 2 else []
        if numbers:
            found = source.choice(numbers)
            text = f"{text[: found.start()]}{source.choice(NUMBERS)}{text[found.end() :]}"
        elif kind == 2:
            text = text[:at] + text[until:]
        elif kind == 3:
            text = text[:at] + source.choice(TEXTS) + text[until:]
        elif kind == 4:
            text = text[:at] + text[at:until] * source.choice((2, 3, 100)) + text[until:]
        elif kind == 5:
            text = (
                text[:at] + chr(source.choice((*range(32, 127), 0, 10, 27, 0x202E))) + text[until:]
            )
        else:
            other = source.randrange(len(text) + 1)
            text = text[:at] + text[other : other + 20] + text[at:]
    return text


def mutated_bytes(data: bytes, source: Random) -> bytes:
    """Bytes of which some are changed, missing, doubled, or in another place."""
    for _ in range(source.choice((1, 1, 2, 5))):
        at = source.randrange(len(data) + 1)
        until = min(len(data), at + source.choice((1, 2, 4, 8, 64)))
        match source.randrange(5):
            case 0:
                flipped = bytes(each ^ 1 << source.randrange(8) for each in data[at:until])
                data = data[:at] + flipped + data[until:]
            case 1:
                data = data[:at] + data[until:]
            case 2:
                data = (
                    data[:at]
                    + source.choice((b"\0", b"\xff", b"\x80")) * (until - at)
                    + data[until:]
                )
            case 3:
                data = data[:at] + data[at:until] * source.choice((2, 100)) + data[until:]
            case _:
                data = data[:at] if source.random() < 0.3 else data[at:until] + data
    return data


def _places(document: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a document."""
    keys: Any = document if isinstance(document, dict) else ()
    keys = range(len(document)) if isinstance(document, list) else keys
    for key in keys:
        found.append((document, key))
        _places(document[key], found)
    return found


def mutate_json(document: Any, source: Random) -> None:
    """Change a document in its place: values, keys, types, numbers inside texts."""
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        places = _places(document, [])
        if not places:
            return
        container, key = source.choice(places)
        value = container[key]
        match source.randrange(8):
            case 0 | 1:
                container[key] = copy.deepcopy(source.choice(VALUES))
            case 2:
                container[key] = _alike(value, source)
            case 3:
                del container[key]
            case 4:
                other, at = source.choice(places)
                container[key], other[at] = copy.deepcopy(other[at]), copy.deepcopy(value)
            case 5 if isinstance(container, list):
                container.insert(source.randrange(len(container) + 1), copy.deepcopy(value))
            case 5:
                container[source.choice(TEXTS)] = copy.deepcopy(value)
            case _:
                container[key] = (
                    mutated_text(value, source) if isinstance(value, str) else _alike(value, source)
                )


def _alike(value: Any, source: Random) -> Any:
    """Another value of the same type, or nearly."""
    if isinstance(value, bool) or value is None:
        return source.choice((True, False, None, 0, 1, 2))
    if isinstance(value, int):
        return source.choice((value + 1, value - 1, -value, value * 2, value // 2, *NUMBERS))
    if isinstance(value, float):
        return source.choice((-value, value * 1e300, 0.0, float("inf"), float("nan")))
    if isinstance(value, str):
        return mutated_text(value, source)
    if isinstance(value, list) and value:
        return source.choice((value[::-1], value * 2, value[:1], value[1:]))
    return copy.deepcopy(source.choice(VALUES))


def json_text(document: Any, source: Random) -> str:
    """A document's text, sometimes with a blemish of JSON itself."""
    text = json.dumps(document, ensure_ascii=source.random() < 0.5)
    if source.random() < 0.1:
        text = mutated_text(text, source)
    return text


# .npz


def mutated_npz(made: Made, source: Random) -> bytes:
    """A snapshot's file with something wrong: in the document, the arrays, a header or the archive."""
    made = copy.deepcopy(made)
    kind = source.randrange(10)
    if kind < 4:
        mutate_json(made.meta, source)
        if source.random() < 0.1:
            return made.packed(json_text(made.meta, source).encode("utf-8", "surrogatepass"))
    elif kind < 8:
        for _ in range(source.choice((1, 1, 2, 3))):
            _mutate_array(made.arrays, source)
    try:
        data = made.packed()
    except UnicodeEncodeError:
        return b""
    if kind == 8:
        return _mutated_member(data, source)
    return mutated_bytes(data, source) if kind == 9 else data


def _mutate_array(arrays: dict[str, NDArray[Any]], source: Random) -> None:
    name = source.choice(list(arrays))
    array = np.atleast_1d(arrays[name])
    most = int(np.iinfo(array.dtype).max) if array.dtype.kind == "u" else 1
    match source.randrange(10):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = array.astype(
                source.choice(("u1", "u2", "u4", "u8", "i8", "f8", ">u8", "S3", "?"))
            )
        case 2:
            arrays[name] = source.choice(
                (array[:-1], array[::-1], array.T, array[0], np.concatenate([array, array]))
            )
        case 3:
            arrays[source.choice(list(arrays))] = array
        case 4 if array.ndim == 2 and array.shape[0] > 1:
            array[source.randrange(len(array))] = array[source.randrange(len(array))]
        case _ if array.size and array.dtype.kind == "u":
            flat = array.reshape(-1)
            at = source.randrange(array.size)
            until = at + source.choice((1, 1, 2, 16))
            old = int(flat[at])
            new = source.choice(
                (old + 1, old - 1, old ^ 1 << source.randrange(16), old | 2, *NUMBERS)
            )
            flat[at:until] = max(0, new) & most
            arrays[name] = array


def _mutated_member(data: bytes, source: Random) -> bytes:
    """The archive with one member's bytes changed, and its directory true or not."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        names = before.namelist()
        chosen = source.choice(names)
        for name in names:
            member = before.read(name)
            if name == chosen:
                head = member[:128] if source.random() < 0.7 else member
                member = mutated_bytes(head, source) + member[len(head) :]
            after.writestr(name, member, source.choice((0, 0, 8)))
        if source.random() < 0.2:
            after.writestr(source.choice(("x", "../x", "pte", "meta.npy.npy")), b"x")
    return out.getvalue()
