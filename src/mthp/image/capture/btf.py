# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the fields of a kernel's structures stand: what its type information (BTF) says.

Kernel: Documentation/bpf/btf.rst, include/uapi/linux/btf.h.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Iterator, NamedTuple

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(
    1, 12
)
_TYPE_TAG, _ENUM64 = 18, 19
# Bytes that follow a type of each kind: of its own, and for each of the elements it counts.
_MORE = {
    0: (0, 0), _INT: (4, 0), _PTR: (0, 0), _ARRAY: (12, 0), _STRUCT: (0, 12), _UNION: (0, 12),
    _ENUM: (0, 8), _FWD: (0, 0), _TYPEDEF: (0, 0), _VOLATILE: (0, 0), _CONST: (0, 0),
    _RESTRICT: (0, 0), 12: (0, 0), 13: (0, 8), 14: (4, 0), 15: (0, 12), 16: (0, 0), 17: (4, 0),
    _TYPE_TAG: (0, 0), _ENUM64: (0, 12),
}  # fmt: skip
_MOST_NESTED = 32
"""So deep structures, and names of names, may stand in one another."""
_MOST_BYTES = 64 << 20
_AT_ONCE = 1 << 10
"""Types that are gone through together."""


class BtfError(Exception):
    """The type information is damaged, or lacks what was asked for; one line."""


class _Type(NamedTuple):
    """One type. extra: where what follows it begins. other: its size, or the type it names."""

    name: int
    kind: int
    vlen: int
    bitfields: bool
    other: int
    extra: int


class Btf:
    """The types of one kernel, found by name."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size or len(data) > _MOST_BYTES:
            raise BtfError(f"{len(data)} bytes are no type information")
        magic, version, _, length, at, size, names, names_size = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise BtfError(f"magic {magic:#x}, version {version}: no type information")
        self._end = length + at + size
        self._data = data
        self._names = data[length + names : length + names + names_size]
        ends_well = self._names.startswith(b"\0") and self._names.endswith(b"\0")
        if max(self._end, length + names + names_size) > len(data) or not ends_well:
            raise BtfError("type information that is cut off")
        self._at = array("I", [0])
        self._next: int = length + at
        self._named: dict[int, list[int]] = {}

    def _more(self) -> bool:
        """Note where the next types begin, and which are structures and the like of each name; whether
        there were more. What nobody asks for is not gone through: it is the most."""
        at, data, unpack, kept = self._next, self._data, _TYPE.unpack_from, self._named
        for _ in range(_AT_ONCE):
            if at == self._end:
                break
            if at > self._end - _TYPE.size:
                raise BtfError("type information that is cut off")
            name, info, _ = unpack(data, at)
            kind = info >> 24 & 0x1F
            if kind not in _MORE:
                raise BtfError(f"a type of the unknown kind {kind}")
            if name and kind in (_STRUCT, _UNION, _ENUM, _ENUM64, _TYPEDEF):
                kept.setdefault(name, []).append(len(self._at))
            self._at.append(at)
            own, each = _MORE[kind]
            at += _TYPE.size + own + each * (info & 0xFFFF)
        before, self._next = self._next, at
        return before < at

    def _type(self, number: int) -> _Type:
        while not 0 < number < len(self._at):
            if not number or not self._more():
                raise BtfError(f"there is no type {number}")
        at = self._at[number]
        name, info, other = _TYPE.unpack_from(self._data, at)
        extra = at + _TYPE.size
        return _Type(name, info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), other, extra)

    def _named_type(self, name: str, kinds: tuple[int, ...]) -> _Type | None:
        at = self._names.find(b"\0" + name.encode() + b"\0") + 1
        seen = 0
        while at:
            numbers = self._named.get(at, [])[seen:]
            seen += len(numbers)
            for number in numbers:
                found = self._plain(number)
                if found.kind in kinds:
                    return found
            if not self._more():
                break
        return None

    def _plain(self, number: int) -> _Type:
        """The type behind names of it and its qualifiers; of an array, that of its elements."""
        for _ in range(_MOST_NESTED):
            found = self._type(number)
            if found.kind == _ARRAY:
                number = _TYPE.unpack_from(self._data, found.extra)[0]
            elif found.kind in (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG):
                number = found.other
                if not number:  # a name of void
                    return found
            else:
                return found
        raise BtfError("types that name one another in a circle")

    def _text(self, at: int) -> str:
        end = self._names.find(b"\0", at)
        if not 0 <= at < len(self._names):
            raise BtfError("a name that is not there")
        return self._names[at:end].decode("ascii", "replace")

    def has(self, name: str) -> bool:
        """Whether there is a structure, union or enum of this name."""
        return self._named_type(name, (_STRUCT, _UNION, _ENUM, _ENUM64)) is not None

    def size(self, name: str) -> int:
        """The bytes of a structure."""
        return self._structure(name).other

    def _structure(self, name: str) -> _Type:
        found = self._named_type(name, (_STRUCT, _UNION))
        if found is None:
            raise BtfError(f"struct {name}")
        return found

    def offset(self, name: str, path: str) -> int:
        """Where a member of a structure stands, in bytes. path: names joined by dots; members of what
        has no name belong to what it stands in. BtfError names what is missing."""
        at, here = 0, self._structure(name)
        for part in path.split("."):
            for member, number, offset in self._members(here, _MOST_NESTED):
                if member == part:
                    at, here = at + offset, self._plain(number)
                    break
            else:
                raise BtfError(f"{name}.{path}")
        return at

    def _members(self, of: _Type, depth: int) -> Iterator[tuple[str, int, int]]:
        """(name, type, bytes from the start) of each member that is no field of bits."""
        if of.kind not in (_STRUCT, _UNION):
            return
        if not depth:
            raise BtfError("structures that stand in one another without end")
        for k in range(of.vlen):
            name, number, bits = _MEMBER.unpack_from(self._data, of.extra + k * _MEMBER.size)
            if of.bitfields:
                if bits >> 24:
                    continue
                bits &= 0xFFFFFF
            if name:
                yield self._text(name), number, bits // 8
            else:
                for inner, its, offset in self._members(self._plain(number), depth - 1):
                    yield inner, its, bits // 8 + offset

    def enumerators(self, name: str) -> dict[str, int]:
        """The constants of an enum. BtfError: there is no such enum."""
        found = self._named_type(name, (_ENUM, _ENUM64))
        if found is None:
            raise BtfError(f"enum {name}")
        each = _MORE[found.kind][1]
        values = {}
        for k in range(found.vlen):
            at = found.extra + k * each
            value = int.from_bytes(self._data[at + 4 : at + each], sys.byteorder)
            values[self._text(int.from_bytes(self._data[at : at + 4], sys.byteorder))] = value
        return values
