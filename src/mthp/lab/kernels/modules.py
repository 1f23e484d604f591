# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules: the information in a module's file, and the modules to load before it."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from mthp.lab.errors import BAD_INPUT, HOST_LACKS, LabError

SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
_SECTION = struct.Struct("<IIQQQQ")
"""The beginning of an ELF64 section header: name, type, flags, address, offset, size."""


def read_module(path: Path) -> bytes:
    """The module's contents, uncompressed. LabError: it cannot be read."""
    try:
        data = path.read_bytes()
        if path.name.endswith(".xz"):
            return lzma.decompress(data)
        if path.name.endswith(".gz"):
            return gzip.decompress(data)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise LabError(BAD_INPUT, f"{path}: cannot be read: {error}") from None
    return _unzstd(path) if path.name.endswith(".zst") else data


def _unzstd(path: Path) -> bytes:
    if shutil.which("zstd") is None:
        raise LabError(HOST_LACKS, f"{path.name} needs the command zstd: apt-get install zstd")
    done = subprocess.run(["zstd", "-dcq", str(path)], capture_output=True, check=False)
    if done.returncode:
        raise LabError(BAD_INPUT, f"{path}: zstd cannot unpack it")
    return done.stdout


def modinfo(data: bytes) -> dict[str, str]:
    """The fields of a module's .modinfo section; the first value of a repeated field.

    Errors: ValueError, not a 64-bit little-endian ELF file with such a section.
    """
    fields: dict[str, str] = {}
    for item in _section(data, b".modinfo").split(b"\0"):
        key, equals, value = item.decode(errors="replace").partition("=")
        if equals:
            fields.setdefault(key, value)
    return fields


def _section(data: bytes, name: bytes) -> bytes:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, strings = struct.unpack_from("<HHH", data, 0x3A)
        heads = [_SECTION.unpack_from(data, table + i * size) for i in range(count)]
        names = heads[strings][4]
        for at, _, _, _, offset, length in heads:
            if data.startswith(name + b"\0", names + at):
                return data[offset : offset + length]
    except (struct.error, IndexError, OverflowError):
        raise ValueError("a damaged ELF file") from None
    raise ValueError(f"no section {name.decode()}")


def module_name(file: str) -> str:
    """The kernel's name for a module's file: "a-b.ko.xz" is a_b."""
    return file.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


class ModuleTree:
    """A folder lib/modules/<release>."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each module, by the module's name."""
        return {
            module_name(path.name): path
            for path in sorted(self.folder.rglob("*.ko*"))
            if path.name.endswith(SUFFIXES) and path.is_file()
        }

    @cached_property
    def builtin(self) -> frozenset[str]:
        """The names of the modules in the kernel's image itself (modules.builtin)."""
        return frozenset(module_name(line) for line in self._lines("modules.builtin"))

    def load_order(self, name: str) -> list[Path]:
        """The files to load, in this order, for the module of that name; none if it is built in.

        Errors: LabError, no such module, or one that it depends on is not there.
        """
        order: dict[str, Path] = {}
        self._collect(name.replace("-", "_"), order, ())
        return list(order.values())

    def release(self) -> str | None:
        """The kernel these modules were built for; None where there is no module."""
        for path in self.files.values():
            return self._modinfo(path).get("vermagic", "").partition(" ")[0] or None
        return None

    def _collect(self, name: str, order: dict[str, Path], above: tuple[str, ...]) -> None:
        if name in order or name in self.builtin:
            return
        if name not in self.files:
            needed = f", which {above[-1]} needs" if above else ""
            raise LabError(HOST_LACKS, f"{self.folder}: no module {name}{needed}")
        if name in above:
            raise LabError(BAD_INPUT, f"{self.folder}: the module {name} depends on itself")
        path = self.files[name]
        for other in self._depends(path):
            self._collect(other, order, (*above, name))
        order[name] = path

    def _depends(self, path: Path) -> list[str]:
        listed = self._listed.get(module_name(path.name))
        if listed is not None:
            return listed
        depends = self._modinfo(path).get("depends", "")
        return [name.replace("-", "_") for name in depends.split(",") if name]

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """modules.dep, which depmod writes and Debian's packages leave to the installation."""
        listed = {}
        for line in self._lines("modules.dep"):
            file, _, depends = line.partition(":")
            # depmod puts what is to be loaded first last
            listed[module_name(file)] = [module_name(each) for each in reversed(depends.split())]
        return listed

    def _modinfo(self, path: Path) -> dict[str, str]:
        try:
            return modinfo(read_module(path))
        except ValueError as error:
            raise LabError(BAD_INPUT, f"{path}: not a module: {error}") from None

    def _lines(self, file: str) -> Iterator[str]:
        path = self.folder / file
        if path.is_file():
            yield from path.read_text(errors="replace").splitlines()
