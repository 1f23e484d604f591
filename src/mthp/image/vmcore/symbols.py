# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own table of its symbols, read from its memory: VMCOREINFO says where it is.

Kernel: kernel/kallsyms.c, scripts/kallsyms.c, kernel/vmcore_info.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mthp.image.capture.kcore import CoreError, KernelMemory

MOST_SYMBOLS = 1 << 22
MOST_BYTES_OF_NAMES = 64 << 20
_PAGE, _LONGEST = 4096, 1 << 14
_TOKENS = 256
_MOST_BYTES_OF_TOKENS = 1 << 14
_KNOWN = "init_uts_ns"
"""A symbol that VMCOREINFO names as well: by it the way in which addresses are stored is told."""
_WORD = (1 << 64) - 1


def symbol(memory: KernelMemory, name: str) -> int:
    """The address of a symbol that VMCOREINFO names. CoreError: it does not, or not as a number."""
    try:
        return int(memory.info[f"SYMBOL({name})"], 16)
    except KeyError:
        raise CoreError(f"has no SYMBOL({name}) in its VMCOREINFO") from None
    except ValueError:
        raise CoreError(f"has a SYMBOL({name}) in its VMCOREINFO that is no number") from None


def read_symbols(memory: KernelMemory, wanted: frozenset[str]) -> dict[str, int]:
    """The addresses of those of the wanted symbols that the kernel has. CoreError: there is no such table, as
    before Linux 6.0, or it is damaged."""
    at = {
        name: symbol(memory, f"kallsyms_{name}")
        for name in ("names", "num_syms", "token_table", "token_index", "offsets")
    }
    count = int.from_bytes(memory.read(at["num_syms"], 4), "little")
    if not 0 < count <= MOST_SYMBOLS:
        raise CoreError(f"has {count} symbols, which no kernel has")
    tokens = _tokens(memory, at["token_table"], at["token_index"])
    places: dict[str, int] = {}
    for place, name in enumerate(_names(memory, at["names"], count, tokens)):
        if name in wanted or name == _KNOWN:
            places.setdefault(name, place)
    if _KNOWN not in places:
        raise CoreError(f"has a table of symbols without {_KNOWN}")
    offsets: dict[str, int] = {
        name: struct.unpack("<i", memory.read(at["offsets"] + 4 * place, 4))[0]
        for name, place in places.items()
    }
    base = None
    if "SYMBOL(kallsyms_relative_base)" in memory.info:
        base = memory.word(symbol(memory, "kallsyms_relative_base"))
    known = symbol(memory, _KNOWN)

    def by_itself(name: str) -> int:
        return at["offsets"] + 4 * places[name] + offsets[name]

    def by_base(name: str) -> int:
        return (base or 0) + (offsets[name] & 0xFFFFFFFF)

    def by_sign(name: str) -> int:
        """CONFIG_KALLSYMS_ABSOLUTE_PERCPU: per-CPU symbols are absolute, and others negative."""
        return offsets[name] if offsets[name] >= 0 else (base or 0) - 1 - offsets[name]

    for address in (by_itself,) if base is None else (by_sign, by_base):
        if address(_KNOWN) & _WORD == known:
            return {name: address(name) & _WORD for name in places if name in wanted}
    raise CoreError(f"has a table of symbols that has {_KNOWN} elsewhere than its VMCOREINFO")


def _tokens(memory: KernelMemory, table: int, index: int) -> list[bytes]:
    """What each byte of a packed name stands for."""
    starts = struct.unpack(f"<{_TOKENS}H", memory.read(index, 2 * _TOKENS))
    if max(starts) >= _MOST_BYTES_OF_TOKENS:
        raise CoreError("has a table of symbols that is damaged")
    # The last token may be the last of what is mapped there.
    raw = memory.read(table, max(starts))
    raw += memory.read(table + max(starts), 64)
    return [raw[start : raw.find(b"\0", start)] for start in starts]


def _names(memory: KernelMemory, at: int, count: int, tokens: list[bytes]) -> Iterator[str]:
    """The symbols' names in the order of the table, without the letters of their types.

    What follows the names may be in no memory, so they are read by pages; those that are cut off are none.
    """
    data, place, end = b"", 0, at
    for _ in range(count):
        while len(data) - place < _LONGEST and end - at < MOST_BYTES_OF_NAMES:
            size = _PAGE - end % _PAGE
            try:
                data, place = data[place:] + memory.read(end, size), 0
            except CoreError:
                break
            end += size
        length, first = data[place : place + 2].ljust(2, b"\0"), place + 1
        size = length[0]
        if size & 0x80:
            size, first = size & 0x7F | length[1] << 7, place + 2
        place = first + size
        if not size or place > len(data):
            raise CoreError("has a table of symbols that is damaged")
        yield b"".join([tokens[k] for k in data[first:place]])[1:].decode("ascii", "replace")
